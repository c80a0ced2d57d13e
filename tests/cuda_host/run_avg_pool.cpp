// Cases of the average pool and its gradient: n c h w k s p d ceil fragments dtype layout backward include_pad divisor [offset].
#include <vector>

#include "cuda/launch.h"
#include "device_case.h"
#include "driver.h"
#include "pool_case.h"

namespace {

using namespace driver;
using namespace fastconv;

int64_t counted(int64_t at, int64_t size, int64_t k, int64_t p, int64_t d, bool include_pad) {
  int64_t taps = 0;
  for (int64_t i = 0; i < k; ++i) {
    const int64_t x = at - p + i * d;
    taps += include_pad ? x >= -p && x < size + p : x >= 0 && x < size;
  }
  return taps ? taps : 1;
}

void run(const Case& c) {
  const PoolGeometry g = pool_geometry(c);
  const DType t = c.dtype();
  const Layout layout = c.layout();
  const bool backward = c.number("backward", 0) != 0, include_pad = c.number("include_pad", 1) != 0;
  const int64_t divisor = c.number("divisor", 0), offset = c.number("offset", 0);
  const double fill = -3.5;
  Random random(static_cast<uint64_t>(c.number("seed", 1)));
  Map pooled = pooled_map(g, t, layout), plain(t, layout, g.n, g.c, g.h, g.w, offset);
  (backward ? pooled : plain).fill(random);

  std::vector<double> sum(backward ? plain.size() : pooled.size(), 0.0), magnitude(sum.size(), 0.0);
  std::vector<bool> tail(sum.size(), false);
  int64_t at = 0;
  for_each_pooled(g, pooled, [&](int64_t n, int64_t k, int64_t y, int64_t x, int64_t b, int64_t u, int64_t v) {
    const int64_t window = at++;
    if (y >= g.dense_h || x >= g.dense_w) {
      if (!backward) tail[window] = true;
      return;
    }
    const double count = divisor ? divisor : counted(y, g.h, g.kh, g.ph, g.dh, include_pad) * counted(x, g.w, g.kw, g.pw, g.dw, include_pad);
    for (int64_t ky = 0; ky < g.kh; ++ky)
      for (int64_t kx = 0; kx < g.kw; ++kx) {
        const int64_t iy = y - g.ph + ky * g.dh, ix = x - g.pw + kx * g.dw;
        if (iy < 0 || iy >= g.h || ix < 0 || ix >= g.w) continue;
        const double value = (backward ? pooled.get(b, k, u, v) : plain.get(n, k, iy, ix)) / count;
        const int64_t to = backward ? ((n * g.c + k) * g.h + iy) * g.w + ix : window;
        sum[to] += value, magnitude[to] += std::fabs(value);
      }
  });

  const AvgPool p{g, t, layout, backward, include_pad, divisor, fill, backward ? pooled.data() : plain.data(), backward ? plain.data() : pooled.data()};
  cuda::launch_avg_pool(p, cuda::plan_avg_pool(p, device_of(c)), nullptr);
  // One rounding of the result; fp32 sums of up to kh*kw terms and two reciprocals.
  const double sums = t == DType::f64 ? 0x1p-50 : 0x1p-20;
  const Map& out = backward ? plain : pooled;
  Comparison result;
  int64_t i = 0;
  for (int64_t n = 0; n < out.n; ++n)
    for (int64_t k = 0; k < out.c; ++k)
      for (int64_t y = 0; y < out.h; ++y)
        for (int64_t x = 0; x < out.w; ++x, ++i) {
          if (tail[i]) {
            result.equal("tail", i, out.get(n, k, y, x), fill);
          } else {
            result.near("out", i, out.get(n, k, y, x), sum[i], magnitude[i] * sums + least_step(t), unit_roundoff(t) * 1.01);
          }
        }
  finish(result);
}

}  // namespace

int main(int argc, char** argv) { return driver::main_loop(argc, argv, run); }
