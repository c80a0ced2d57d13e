// Polyphase strips: how kernels that march down rows divide a channels_last map among threads.
//
// Rows y, y+dh, y+2dh, ... and columns x, x+dw, ... of one residue class see each other's input exactly as neighbours do without dilation, so
// a thread that stays inside a class has the halo and the reuse of dilation 1. A thread owns one vector of channels, `columns` neighbouring
// columns of a class and `rows` rows of it. Threads of a warp differ in the channels first and in the column group next.
#pragma once
#include "common/fast_division.h"
#include "common/plan.h"
#include "device.cuh"

namespace fastconv::cuda {

// 0 <= i < end by one comparison; end is not negative.
FASTCONV_DEVICE bool below(int i, int end) { return static_cast<uint32_t>(i) < static_cast<uint32_t>(end); }

struct Strips {
  FastDivision by_vectors, by_groups, by_column_classes, by_strips, by_row_classes;
  uint32_t total;
  int columns, rows;  // of a strip
  int dh, dw;
  int h, w;           // the map that is divided

  explicit Strips(const StripPlan& p)
      : by_vectors(p.vectors),
        by_groups(p.groups),
        by_column_classes(p.column_classes),
        by_strips(p.strips),
        by_row_classes(p.row_classes),
        total(static_cast<uint32_t>(p.total)),
        columns(p.columns),
        rows(p.rows),
        dh(static_cast<int>(p.dh)),
        dw(static_cast<int>(p.dw)),
        h(static_cast<int>(p.h)),
        w(static_cast<int>(p.w)) {}
};

// Columns x + q*dw, rows y + r*dh, r < rows; rows end with the map, columns may lie beyond it.
struct StripAt {
  int n, y, x, vector, rows;
};

FASTCONV_DEVICE StripAt strip_at(const Strips& s, uint32_t index) {
  uint32_t vector, group, column_class, strip, row_class;
  index = s.by_vectors.divide(index, &vector);
  index = s.by_groups.divide(index, &group);
  index = s.by_column_classes.divide(index, &column_class);
  index = s.by_strips.divide(index, &strip);
  const uint32_t n = s.by_row_classes.divide(index, &row_class);
  StripAt at;
  at.n = static_cast<int>(n), at.vector = static_cast<int>(vector);
  at.x = static_cast<int>(column_class + group * s.columns * s.dw);
  at.y = static_cast<int>(row_class + strip * s.rows * s.dh);
  const int left = at.y < s.h ? (s.h - at.y + s.dh - 1) / s.dh : 0;
  at.rows = left < s.rows ? left : s.rows;
  return at;
}

}  // namespace fastconv::cuda
