// Cases of the max pool's gradient: as the forward pass's, with by=argmax|indices.
#include <vector>

#include "cuda/launch.h"
#include "device_case.h"
#include "driver.h"
#include "pool_case.h"

namespace {

using namespace driver;
using namespace fastconv;

void run(const Case& c) {
  const PoolGeometry g = pool_geometry(c);
  const DType t = c.dtype();
  const Layout layout = c.layout();
  Random random(static_cast<uint64_t>(c.number("seed", 1)));
  Map grad = pooled_map(g, t, layout), dx(t, layout, g.n, g.c, g.h, g.w);
  grad.fill(random);
  const bool by_argmax = c.word("by", "argmax") == "argmax";
  Memory argmax(by_argmax ? grad.size() : 0, 0), indices(by_argmax ? 0 : grad.size() * 8, 0);
  std::vector<double> expected(dx.size(), 0.0), magnitude(dx.size(), 0.0);

  // Any tap inside the map will do as the argmax; windows without one, and tails, name the first and are to be ignored.
  for_each_pooled(g, grad, [&](int64_t n, int64_t k, int64_t y, int64_t x, int64_t b, int64_t u, int64_t v) {
    const int64_t at = b * grad.sn + k * grad.sc + u * grad.sh + v * grad.sw;
    std::vector<int> inside;
    for (int64_t tap = 0; tap < g.kh * g.kw; ++tap) {
      const int64_t iy = y - g.ph + tap / g.kw * g.dh, ix = x - g.pw + tap % g.kw * g.dw;
      if (y < g.dense_h && x < g.dense_w && iy >= 0 && iy < g.h && ix >= 0 && ix < g.w) inside.push_back(static_cast<int>(tap));
    }
    const int tap = inside.empty() ? 0 : inside[random.bits() % inside.size()];
    const int64_t iy = y - g.ph + tap / g.kw * g.dh, ix = x - g.pw + tap % g.kw * g.dw;
    if (by_argmax) {
      argmax.data()[at] = static_cast<uint8_t>(tap);
    } else {
      reinterpret_cast<int64_t*>(indices.data())[at] = inside.empty() ? -1 : iy * g.w + ix;
    }
    if (inside.empty()) return;
    expected[((n * g.c + k) * g.h + iy) * g.w + ix] += grad.get(b, k, u, v);
    magnitude[((n * g.c + k) * g.h + iy) * g.w + ix] += std::fabs(grad.get(b, k, u, v));
  });

  const int64_t* by_indices = by_argmax ? nullptr : reinterpret_cast<const int64_t*>(indices.data());
  const MaxPoolBackward p{g, t, layout, grad.data(), by_argmax ? argmax.data() : nullptr, nullptr, dx.data()};
  cuda::launch_max_pool_backward(p, by_indices, cuda::plan_max_pool_backward(p, by_indices, device_of(c)), nullptr);
  Comparison result;
  int64_t i = 0;
  for (int64_t n = 0; n < g.n; ++n)
    for (int64_t k = 0; k < g.c; ++k)
      for (int64_t y = 0; y < g.h; ++y)
        for (int64_t x = 0; x < g.w; ++x, ++i) {
          // One rounding of the result, and sums of up to kh*kw terms, each of which rounds once; in float64 those of the reference round as well.
          const double sums = double(g.kh * g.kw) * (t == DType::f64 ? 0x1p-52 : 0x1p-24);
          result.near("dx", i, dx.get(n, k, y, x), expected[i], magnitude[i] * sums + least_step(t), unit_roundoff(t) * 1.01);
        }
  finish(result);
}

}  // namespace

int main(int argc, char** argv) { return driver::main_loop(argc, argv, run); }
