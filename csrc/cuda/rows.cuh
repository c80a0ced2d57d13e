// How kernels without a march divide a map: a block takes some rows of an image (channels_last) or of a plane (contiguous), and visits their
// elements or vectors in the order of memory.
#pragma once
#include "common/fast_division.h"
#include "common/plan.h"
#include "device.cuh"

namespace fastconv::cuda {

struct Rows {
  FastDivision by_chunks, by_planes, by_row, by_pixel;
  int chunk_rows, rows;

  explicit Rows(const RowPlan& p)
      : by_chunks(p.chunks),
        by_planes(p.planes),
        by_row(p.row),
        by_pixel(p.pixel),
        chunk_rows(static_cast<int>(p.chunk_rows)),
        rows(static_cast<int>(p.rows)) {}
};

struct RowsAt {
  int n, plane, first;
  uint32_t elements;
};

FASTCONV_DEVICE RowsAt rows_at(const Rows& r) {
  uint32_t chunk, plane;
  RowsAt at;
  at.n = static_cast<int>(r.by_planes.divide(r.by_chunks.divide(blockIdx.x, &chunk), &plane));
  at.plane = static_cast<int>(plane);
  at.first = static_cast<int>(chunk) * r.chunk_rows;
  const int count = at.first + r.chunk_rows < r.rows ? r.chunk_rows : r.rows - at.first;
  at.elements = static_cast<uint32_t>(count) * r.by_row.divisor;
  return at;
}

}  // namespace fastconv::cuda
