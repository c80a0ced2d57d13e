// What the convolution programs share: the geometry of a case.
#pragma once
#include "common/params.h"
#include "common/shape.h"
#include "driver.h"

namespace driver {

// n c h w m, k or kh kw, s or sh sw, d or dh dw, p (all sides) or pt pb pl pr.
inline fastconv::ConvGeometry conv_geometry(const Case& c) {
  using namespace fastconv;
  ConvGeometry g;
  g.n = c.number("n"), g.c = c.number("c"), g.h = c.number("h"), g.w = c.number("w"), g.multiplier = c.number("m", 1);
  g.kh = c.number("kh", c.number("k", 3)), g.kw = c.number("kw", c.number("k", 3));
  g.sh = c.number("sh", c.number("s", 1)), g.sw = c.number("sw", c.number("s", 1));
  g.dh = c.number("dh", c.number("d", 1)), g.dw = c.number("dw", c.number("d", 1));
  const int64_t p = c.number("p", 0);
  g.pt = c.number("pt", p), g.pb = c.number("pb", p), g.pl = c.number("pl", p), g.pr = c.number("pr", p);
  g.oh = conv_out(g.h, g.pt, g.pb, g.dh, g.kh, g.sh), g.ow = conv_out(g.w, g.pl, g.pr, g.dw, g.kw, g.sw);
  require(g.oh > 0 && g.ow > 0, "the case's kernel does not fit");
  return g;
}

// Elements from one image to the next: beyond 32 bits for far=1.
inline int64_t image_stride(const Case& c) { return c.number("far", 0) ? (int64_t(1) << 31) + 64 : 0; }

}  // namespace driver
