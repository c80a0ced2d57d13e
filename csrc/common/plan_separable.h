// Plans of the fused depthwise-separable kernels: plain C++, no torch, no CUDA headers.
#pragma once
#include <cstddef>

#include "plan.h"

namespace fastconv::cuda {

// How float32 products run; 16-bit ones always run on tensor cores.
enum class FloatProducts { full, tf32 };
constexpr FloatProducts float_products(bool allow_tf32) { return allow_tf32 ? FloatProducts::tf32 : FloatProducts::full; }

// Which producer computes the depthwise part.
enum class Producer {
  ring_pixels,  // channels_last, stride 1, no multiplier, K = 3, 5, 7, an even number of channels
  ring_planes,  // contiguous, the same with channels in fours
  taps,         // anything
};

// Which instance of the tile: pixels x output channels, threads.
enum class TileForm {
  pair,   // 128 x 128, 256 threads, all channels resident, two blocks a multiprocessor
  wide,   // 128 x 128, 512 threads, channels in chunks where they do not fit
  small,  // 64 x 64, 128 threads, all channels resident: maps with few tiles
  plain,  // 64 x 128, 256 threads, channels in chunks where they do not fit
  slim,   // 64 x 64, 128 threads, the same: rings that need more registers
};
struct TileShape {
  int pixels, channels, threads;
  bool resident;
};
constexpr TileShape tile_shape(TileForm f) {
  switch (f) {
    case TileForm::pair: return {128, 128, 256, true};
    case TileForm::wide: return {128, 128, 512, false};
    case TileForm::small: return {64, 64, 128, true};
    case TileForm::slim: return {64, 64, 128, false};
    default: return {64, 128, 256, false};
  }
}

struct SeparablePlan {
  Producer producer;
  TileForm form;
  FloatProducts products;
  int rows, columns;                  // of a tile
  int64_t step_h, step_w;             // between neighbouring pixels of a tile
  int group;                          // residue classes of columns that a tile holds side by side
  int64_t tiles_y, tiles_x, classes_y, classes_x, splits;  // classes_x: groups of them
  int split, chunk, unit_rows;
  bool smooth, vectors;               // an activation needs scratch; results are stored in vectors
  bool pack;                          // the pointwise weights need rows of whole 16 bytes
  int64_t weight_pitch;               // elements, of the weights that the kernel reads
  int64_t blocks;
  size_t shared_bytes, workspace_bytes;
};
SeparablePlan plan_separable(const SeparableForward& p, FloatProducts products, const Device& device);

// Which producer can compute the depthwise part, and whether its weights wait in shared memory as floats.
Producer choose_producer(const SeparableForward& p);
constexpr bool staged_weights(const SeparableForward& p, Producer producer) {
  return producer == Producer::ring_planes || (producer == Producer::ring_pixels && p.g.kh > 3);
}
// Residue classes of the result and their tiles of at most `pixels`, for a plan whose producer is chosen.
void place_tiles(const SeparableForward& p, int pixels, SeparablePlan& plan);

constexpr bool smooth_activation(Activation a) { return a != Activation::identity && !derivative_from_output(a); }

// A tile of at most `pixels` positions of an h x w map that a kernel of k taps reads: the least work in tiles and halo.
struct TilePlan {
  int rows, columns;
  int64_t tiles_y, tiles_x;
};
TilePlan plan_tile(int64_t h, int64_t w, int64_t halo_h, int64_t halo_w, int pixels, int columns_multiple);

// Rows that a unit of a march takes, given how many other units there are: the shortest longest thread.
int plan_unit_rows(int rows, int64_t others, int halo, int threads);

}  // namespace fastconv::cuda
