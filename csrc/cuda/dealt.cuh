// A map dealt out to sy*sx fragments, addressed by its dense positions; sy = sx = 1 is an ordinary map. Offsets count elements.
#pragma once
#include "common/fast_division.h"
#include "common/params_pool.h"
#include "device.cuh"

namespace fastconv::cuda {

struct Dealt {
  int64_t batch, channel, row, pixel;  // strides within and between fragments
  int sy, sx;
  FastDivision by_sy, by_sx;

  explicit Dealt(const DealtMap& m)
      : batch(m.channels * m.h * m.w),
        channel(m.layout == Layout::channels_last ? 1 : m.h * m.w),
        row(m.w * m.pixel()),
        pixel(m.pixel()),
        sy(static_cast<int>(m.sy)),
        sx(static_cast<int>(m.sx)),
        by_sy(m.sy),
        by_sx(m.sx) {}
};

FASTCONV_DEVICE int64_t dealt_row(const Dealt& d, int n, int y) {
  uint32_t oy;
  const uint32_t u = d.by_sy.divide(static_cast<uint32_t>(y), &oy);
  return (int64_t(n) * d.sy + oy) * d.sx * d.batch + u * d.row;
}
// A walk down the rows y, y+d, y+2d, ... of a dealt map: one addition a row, and another when the fragment changes. y may lie outside the map.
struct DealtWalk {
  int64_t step, wrap;
  int add, sy;

  DealtWalk(const Dealt& m, int64_t d)
      : step(d / m.sy * m.row + d % m.sy * m.sx * m.batch), wrap(m.row - int64_t(m.sy) * m.sx * m.batch), add(static_cast<int>(d % m.sy)), sy(m.sy) {}
};
struct DealtRow {
  int64_t offset;
  int oy;
};

FASTCONV_DEVICE DealtRow dealt_walk(const Dealt& d, int n, int y) {
  const int u = y < 0 ? -((-y + d.sy - 1) / d.sy) : y / d.sy, oy = y - u * d.sy;
  return {(int64_t(n) * d.sy + oy) * d.sx * d.batch + u * d.row, oy};
}
FASTCONV_DEVICE void walk_on(DealtRow& row, const DealtWalk& w) {
  row.offset += w.step;
  row.oy += w.add;
  if (row.oy >= w.sy) {
    row.oy -= w.sy;
    row.offset += w.wrap;
  }
}

FASTCONV_DEVICE int64_t dealt_column(const Dealt& d, int x) {
  uint32_t ox;
  const uint32_t v = d.by_sx.divide(static_cast<uint32_t>(x), &ox);
  return ox * d.batch + v * d.pixel;
}

}  // namespace fastconv::cuda
