// How the fused kernels divide a result: a block takes a tile of pixels of one residue class and a range of output channels.
//
// Rows y, y+dh, y+2dh, ... and columns x, x+dw, ... see each other's input as neighbours do without dilation, so a tile inside a class has the halo
// and the reuse of dilation 1.
#pragma once
#include "activation.cuh"
#include "common/fast_division.h"
#include "common/plan_separable.h"
#include "product.cuh"

namespace fastconv::cuda {

struct SeparableArgs {
  const void* x;
  const void* depthwise_weight;  // (C*M, Kh, Kw)
  const void* depthwise_bias;    // or null
  const void* bias;              // of the pointwise product, or null
  const void* residual;          // as out, or null
  void* out;
  MatrixArgs weight;             // (O, C*M)
  int64_t xn, xc, xh, xw;
  int64_t on, oc, oh, ow;        // of out and residual
  int h, w, out_h, out_w, middle, o;
  int kh, kw, stride_h, stride_w, dh, dw, pt, pl;
  FastDivision by_multiplier;
  ActivationArgs input_activation, depthwise_activation, activation;
  bool smooth;   // an activation needs scratch
  bool vectors;  // a lane's output channels can be stored as 16 bytes

  // The tiles.
  int rows, columns, step_h, step_w;
  int group;           // residue classes of columns in a tile
  FastDivision by_splits, by_tiles_x, by_classes_x, by_tiles_y, by_classes_y, by_columns, by_class_columns;
  int split;       // output channels of a block
  int chunk;       // channels produced at a time, whole slabs
  int unit_rows;   // rows of a unit of the march
  int units;       // of a chunk
  FastDivision by_vectors, by_units_x;  // a unit's channels in a chunk; column groups or row units of a tile

  SeparableArgs(const SeparableForward& p, const SeparablePlan& plan, const void* packed_weight);
};

struct TileAt {
  int n, y, x;        // of the first pixel
  int first_o, last_o;
};

// `channels`: of the result that is divided into splits.
FASTCONV_DEVICE TileAt tile_at(const SeparableArgs& a, uint32_t index, int channels) {
  uint32_t split, tile_x, class_x, tile_y, class_y;
  index = a.by_splits.divide(index, &split);
  index = a.by_tiles_x.divide(index, &tile_x);
  index = a.by_classes_x.divide(index, &class_x);
  index = a.by_tiles_y.divide(index, &tile_y);
  TileAt at;
  at.n = static_cast<int>(a.by_classes_y.divide(index, &class_y));
  at.y = static_cast<int>(class_y + tile_y * a.rows * a.step_h);
  at.x = static_cast<int>(class_x * a.group + tile_x * a.columns * a.step_w);
  at.first_o = static_cast<int>(split) * a.split;
  at.last_o = at.first_o + a.split < channels ? at.first_o + a.split : channels;
  return at;
}

// The x of a tile's column; beyond the last class it is no pixel of the tile.
struct ColumnAt {
  int x;
  bool exists;
};
FASTCONV_DEVICE ColumnAt column_at(const SeparableArgs& a, const TileAt& at, int column) {
  uint32_t in_class;
  const int next = static_cast<int>(a.by_class_columns.divide(static_cast<uint32_t>(column), &in_class));
  return {at.x + next + static_cast<int>(in_class) * a.step_w, next == 0 || at.x + next < a.step_w};
}

// Where pixel p of the tile lies in a map of these strides, or -1.
FASTCONV_DEVICE int64_t pixel_offset(const SeparableArgs& a, const TileAt& at, int p, int64_t image, int64_t map_row, int64_t map_pixel) {
  uint32_t column;
  const int row = static_cast<int>(a.by_columns.divide(static_cast<uint32_t>(p), &column));
  const int y = at.y + row * a.step_h;
  const ColumnAt to = column_at(a, at, static_cast<int>(column));
  return row < a.rows && y < a.out_h && to.exists && to.x < a.out_w ? at.n * image + y * map_row + to.x * map_pixel : -1;
}

// Rows of a tile of slabs beyond its pixels take part in products: zeros.
template <int Pixels, int Threads, bool Permuted>
FASTCONV_DEVICE void clear_spare_rows(const SeparableArgs& a, unsigned char* tile, int slabs) {
  const int first = a.rows * a.columns, spare = Pixels - first;
  for (int i = threadIdx.x; i < spare * slabs * 8; i += Threads) {
    const int p = first + i / 8 % spare;
    *reinterpret_cast<Bytes<16>*>(tile + i / 8 / spare * (Pixels * kSlabBytes) + (Permuted ? fragment_row(p) : p) * kSlabBytes + i % 8 * 16) = {};
  }
}

// The values of a thread through an activation chosen at run time. The smooth ones pass through shared memory that only this thread touches, an
// array that a rolled loop may index: unrolled they would multiply the size of the kernel.
constexpr int kScratchValues = 8;
// As many of `count` as a pass takes: they divide it.
constexpr int scratch_part(int count) {
  int part = count < kScratchValues ? count : kScratchValues;
  while (count % part) --part;
  return part;
}
template <bool Fast, int Threads, int N>
FASTCONV_DEVICE void activate_values(const ActivationArgs& a, float (&v)[N], float* scratch) {
  if (a.kind == Activation::identity) return;
  if (a.kind == Activation::relu || a.kind == Activation::relu6) {
    FASTCONV_UNROLL
    for (int i = 0; i < N; ++i) v[i] = activate<Form::clamp, Fast>(a, v[i]);
    return;
  }
  constexpr int kPart = scratch_part(N);
  float* mine = scratch + threadIdx.x;
  FASTCONV_UNROLL
  for (int base = 0; base < N; base += kPart) {
    FASTCONV_UNROLL
    for (int i = 0; i < kPart; ++i) mine[i * Threads] = v[base + i];
    FASTCONV_NO_UNROLL
    for (int i = 0; i < kPart; ++i) mine[i * Threads] = smooth_activation<Fast>(a.kind, mine[i * Threads]);
    FASTCONV_UNROLL
    for (int i = 0; i < kPart; ++i) v[base + i] = mine[i * Threads];
  }
}

}  // namespace fastconv::cuda
