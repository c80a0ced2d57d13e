// Cases of the max pool, forward: n c h w k (or kh kw) s p d ceil fragments dtype layout data=normal|ties|nan|lowest want=value|argmax|indices
// [offset] [gap: image stride of the input in elements].
#include <cmath>

#include "cuda/launch.h"
#include "cuda/ptx.cuh"
#include "device_case.h"
#include "driver.h"
#include "pool_case.h"

namespace {

using namespace driver;
using namespace fastconv;

struct Expected {
  double value;
  int tap;
  int64_t index;
};

// torch.nn.functional.max_pool2d, window by window.
Expected window(const PoolGeometry& g, const Map& x, int64_t n, int64_t c, int64_t y, int64_t xx) {
  Expected e{-INFINITY, 0, -1};
  bool any = false;
  for (int64_t ky = 0; ky < g.kh; ++ky)
    for (int64_t kx = 0; kx < g.kw; ++kx) {
      const int64_t iy = y - g.ph + ky * g.dh, ix = xx - g.pw + kx * g.dw;
      if (iy < 0 || iy >= g.h || ix < 0 || ix >= g.w) continue;
      const double v = x.get(n, c, iy, ix);
      if (any && !(v > e.value || v != v)) continue;
      any = true;
      e = {v, static_cast<int>(ky * g.kw + kx), iy * g.w + ix};
    }
  return e;
}

// The comparison that chips without a packed one use, against the definition.
void compare() {
  const uint16_t some[] = {0x0000, 0x8000, 0x0001, 0x8001, 0x3f80, 0xbf80, 0x3f81, 0x7f7f, 0xff7f, 0x7f80, 0xff80, 0x7fc0, 0xffc0, 0x0080, 0x8080, 0x4049};
  for (uint32_t a : some)
    for (uint32_t b : some) {
      const uint32_t fast = ptx::greater_by_sign(a | b << 16, b | a << 16), right = ptx::greater_mask_bf16(a | b << 16, b | a << 16);
      require(fast == right, "greater_by_sign(" + std::to_string(a) + ", " + std::to_string(b) + ")");
    }
}

void run(const Case& c) {
  if (c.word("op", "max") == "compare") return compare();
  const PoolGeometry g = pool_geometry(c);
  const DType t = c.dtype();
  const Layout layout = c.layout();
  Random random(static_cast<uint64_t>(c.number("seed", 1)));
  Map x(t, layout, g.n, g.c, g.h, g.w, c.number("offset", 0), c.number("gap", 0));
  fill_for_max(x, random, c.word("data", "normal"));
  Map out = pooled_map(g, t, layout);
  const std::string want = c.word("want", "value");
  const int64_t count = out.size();
  Memory argmax(want == "argmax" ? count : 0, 0), indices(want == "indices" ? count * 8 : 0, 0);
  const double fill = -3.5;
  const MaxPool p{g, t, layout, fill, x.data(), out.data(), want == "argmax" ? argmax.data() : nullptr, want == "indices" ? reinterpret_cast<int64_t*>(indices.data()) : nullptr};
  cuda::launch_max_pool(p, cuda::plan_max_pool(p, device_of(c)), nullptr);

  Comparison result;
  for_each_pooled(g, out, [&](int64_t n, int64_t k, int64_t y, int64_t xx, int64_t b, int64_t u, int64_t v) {
    const int64_t at = b * out.sn + k * out.sc + u * out.sh + v * out.sw;
    const bool dense = y < g.dense_h && xx < g.dense_w;
    const Expected e = dense ? window(g, x, n, k, y, xx) : Expected{rounded(t, fill), 0, -1};
    result.equal("out", at, out.get(b, k, u, v), e.value);
    if (want == "argmax" && dense && e.index >= 0) result.equal("argmax", at, argmax.data()[at], e.tap);
    if (want == "indices") result.equal("indices", at, static_cast<double>(reinterpret_cast<const int64_t*>(indices.data())[at]), static_cast<double>(e.index));
  });
  finish(result);
}

}  // namespace

int main(int argc, char** argv) { return driver::main_loop(argc, argv, run); }
