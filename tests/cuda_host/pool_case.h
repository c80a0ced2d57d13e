// What the pooling programs share: geometry of a case, maps of its results.
#pragma once
#include <cmath>

#include "common/params_pool.h"
#include "common/shape.h"
#include "driver.h"

namespace driver {

inline fastconv::PoolGeometry pool_geometry(const Case& c) {
  using namespace fastconv;
  PoolGeometry g;
  g.n = c.number("n"), g.c = c.number("c"), g.h = c.number("h"), g.w = c.number("w");
  g.kh = c.number("kh", c.number("k", 3)), g.kw = c.number("kw", c.number("k", 3));
  g.sh = c.number("sh", c.number("s", 1)), g.sw = c.number("sw", c.number("s", 1));
  g.ph = c.number("ph", c.number("p", 0)), g.pw = c.number("pw", c.number("p", 0));
  g.dh = c.number("dh", c.number("d", 1)), g.dw = c.number("dw", c.number("d", 1));
  const bool ceil_mode = c.number("ceil", 0) != 0;
  g.dense_h = dense_length(g.h, g.ph, g.dh, g.kh, g.sh, ceil_mode);
  g.dense_w = dense_length(g.w, g.pw, g.dw, g.kw, g.sw, ceil_mode);
  require(g.dense_h > 0 && g.dense_w > 0, "the case's kernel does not fit");
  g.frag_h = ceil_div(g.dense_h, g.sh), g.frag_w = ceil_div(g.dense_w, g.sw);
  g.fragments = c.number("fragments", 0) != 0;
  return g;
}

inline Map pooled_map(const fastconv::PoolGeometry& g, DType t, Layout layout) {
  return g.fragments ? Map(t, layout, g.n * g.sh * g.sw, g.c, g.frag_h, g.frag_w) : Map(t, layout, g.n, g.c, g.dense_h, g.dense_w);
}

// f(n, c, y, x, batch, u, v): dense position (y, x), which lies beyond the dense map in a fragment's tail, and where it is stored.
template <class F>
void for_each_pooled(const fastconv::PoolGeometry& g, const Map& out, const F& f) {
  const int64_t sh = g.fragments ? g.sh : 1, sw = g.fragments ? g.sw : 1;
  for (int64_t b = 0; b < out.n; ++b)
    for (int64_t k = 0; k < out.c; ++k)
      for (int64_t u = 0; u < out.h; ++u)
        for (int64_t v = 0; v < out.w; ++v) f(b / (sh * sw), k, b / sw % sh + sh * u, b % sw + sw * v, b, u, v);
}

// ties: few distinct values and both zeros; nan and lowest: the same with some NaN or minus infinity, or nothing but.
inline void fill_for_max(Map& x, Random& random, const std::string& kind) {
  if (kind == "normal") return x.fill(random);
  x.fill([&](int64_t) {
    const uint64_t b = random.bits();
    const double v = static_cast<double>(b % 5) - 2.0;
    if (kind == "nan" && b >> 8 & 1) return static_cast<double>(NAN);
    if (kind == "lowest" && b >> 8 & 7) return static_cast<double>(-INFINITY);
    return v == 0 && (b >> 20 & 1) ? -0.0 : v;
  });
}

}  // namespace driver
