// Plans of the fused depthwise-separable kernels: plain C++, no torch, no CUDA headers.
#pragma once
#include <cstddef>

#include "plan.h"
#include "widest_vector.h"

namespace fastconv::cuda {

// How float32 products run; 16-bit ones always run on tensor cores.
enum class FloatProducts { full, tf32 };
constexpr FloatProducts float_products(bool allow_tf32) { return allow_tf32 ? FloatProducts::tf32 : FloatProducts::full; }

// Which producer computes the depthwise part.
enum class Producer {
  ring_pixels,  // channels_last, no multiplier, K = 3, 5, 7, stride 1, or 2 for K = 3, pixels of whole 16 bytes
  ring_planes,  // contiguous, stride 1, the same with channels in fours
  taps,         // anything
};

// Which instance of the tile: pixels x output channels, threads.
enum class TileForm {
  pair,   // 128 x 128, 256 threads, all channels resident, two blocks a multiprocessor up to 320 channels
  tall,   // 256 x 64, 256 threads, the same up to 128 channels: weights are read half as often
  wide,   // 128 x 128, 512 threads, channels in chunks where they do not fit
  small,  // 64 x 64, 128 threads, all channels resident: maps with few tiles, and many channels
  slim,   // 64 x 64, 128 threads, channels in chunks where they do not fit: rings that need more registers
  plain,  // 64 x 128, 256 threads, the same: any producer
  // 64 x 256 or x 128, 512 threads, blocks that stay: one a multiprocessor keeps all pointwise weights, half of its warps march while the others multiply.
  persistent,
  persistent_narrow,
};
constexpr TileForm kTileForms[] = {TileForm::pair,  TileForm::tall,       TileForm::wide,             TileForm::small, TileForm::slim,
                                   TileForm::plain, TileForm::persistent, TileForm::persistent_narrow};
constexpr const char* tile_form_name(TileForm f) {
  constexpr const char* names[] = {"pair", "tall", "wide", "small", "slim", "plain", "persistent", "persistent_narrow"};
  return names[static_cast<int>(f)];
}
constexpr bool persistent(TileForm f) { return f == TileForm::persistent || f == TileForm::persistent_narrow; }
struct TileShape {
  int pixels, channels, threads;
  bool resident;
  int weight_stages, row_stages;  // slabs of weights, rows of input in 16 bits that have a place in shared memory
};
constexpr TileShape tile_shape(TileForm f) {
  switch (f) {
    case TileForm::pair: return {128, 128, 256, true, 2, 5};
    case TileForm::tall: return {256, 64, 256, true, 3, 4};
    case TileForm::wide: return {128, 128, 512, false, 2, 4};
    case TileForm::small: return {64, 64, 128, true, 3, 5};
    case TileForm::slim: return {64, 64, 128, false, 3, 4};
    case TileForm::persistent: return {64, 256, 512, true, 0, 5};
    case TileForm::persistent_narrow: return {64, 128, 512, true, 0, 5};
    default: return {64, 128, 256, false, 3, 0};
  }
}
// Warps that compute the depthwise part.
constexpr int march_warps(TileForm f) { return tile_shape(f).threads / (persistent(f) ? 64 : 32); }
// Blocks that a multiprocessor should hold: registers are limited to what that leaves.
constexpr int tile_blocks(TileForm f, int k) {
  switch (f) {
    case TileForm::pair:
    case TileForm::tall:
    case TileForm::plain: return 2;
    case TileForm::small: return 3;
    case TileForm::slim: return k == 7 ? 2 : 3;
    default: return 1;
  }
}

// Where ring_pixels keeps rows of input on their way: for each warp some rows of what four columns read, 64 channels.
constexpr int ring_columns(int k, int stride) { return 3 * stride + k; }
constexpr int row_ring_bytes(int warps, int stages, int k, int stride, int element_bytes) {
  return warps * stages * ring_columns(k, stride) * 64 * element_bytes;
}
// As many bytes on their way in rows of float32.
constexpr int row_stages(int of_16_bits, int64_t element_bytes) { return element_bytes == 2 ? of_16_bits : (of_16_bits + 2) / 2; }
// Bytes for the stages of weights and for those rows, which share them where a tile is produced before it is multiplied; the stages of weights that are
// sent for before the rows have passed.
constexpr int ring_bytes(int weights, int rows, bool shared) { return shared ? (weights > rows ? weights : rows) : weights + rows; }
constexpr int early_stages(int stages, int stage_bytes, int ring, int rows) {
  const int free = (ring - rows) / stage_bytes;
  return free < stages - 1 ? free : stages - 1;
}

struct SeparablePlan {
  Producer producer;
  TileForm form;
  FloatProducts products;
  int rows, columns;                  // of a tile
  int64_t step_h, step_w;             // between neighbouring pixels of a tile
  int group;                          // residue classes of columns that a tile holds side by side
  int64_t tiles_y, tiles_x, classes_y, classes_x, splits;  // classes_x: groups of them
  int split, chunk;
  int64_t unit_vectors;               // of the chunk's channels, one a unit of the march
  int unit_rows, units;               // rows of a unit; units of a chunk
  int slots, marchers;                // where blocks are persistent: slabs of depthwise results on their way, warps that march
  int64_t tiles;                      // of all images
  bool smooth, vectors;               // an activation needs scratch; results are stored in vectors
  bool pack;                          // the pointwise weights need rows of whole 16 bytes
  int64_t weight_pitch;               // elements, of the weights that the kernel reads
  int64_t blocks;
  size_t shared_bytes, workspace_bytes;
};
SeparablePlan plan_separable(const SeparableForward& p, FloatProducts products, const Device& device);
// What plan_separable chooses among. `columns` of a tile and `unit_rows`: 0 takes those of the least work; `splits`: ranges of output channels, each of
// which computes its own depthwise part.
struct TileChoice {
  Producer producer;
  TileForm form;
  int columns, unit_rows;
  int64_t splits;
};
// The plan of one choice; no blocks where it does not fit.
SeparablePlan plan_separable_as(const SeparableForward& p, FloatProducts products, const Device& device, const TileChoice& choice);

// Which producer can compute the depthwise part, and whether its weights wait in shared memory as floats.
Producer choose_producer(const SeparableForward& p);
constexpr bool staged_weights(const SeparableForward& p, Producer producer) {
  return producer == Producer::ring_planes || (producer == Producer::ring_pixels && p.g.kh > 3);
}
// Residue classes of the result and their tiles of at most `pixels`, for a plan whose producer is chosen; of so many columns, if any are given.
void place_tiles(const SeparableForward& p, int pixels, SeparablePlan& plan, int columns = 0);

// Steps of 32 bytes of a row of pointwise weights.
constexpr int64_t weight_steps(const SeparableForward& p) { return ceil_div(p.g.out_channels() * element_bytes(p.dtype), 32); }

// Channels of a unit of the march: a warp's, or a thread's.
constexpr int64_t unit_channels(Producer p) { return p == Producer::ring_pixels ? 64 : p == Producer::ring_planes ? 4 : 2; }
// How the channels and rows of a plan's tiles are shared out among `threads`; units of so many rows, if any are given.
void plan_units(const SeparableForward& p, int threads, SeparablePlan& plan, int unit_rows = 0);

constexpr bool smooth_activation(Activation a) { return a != Activation::identity && !derivative_from_output(a); }

// A tile of at most `pixels` positions of an h x w map that a kernel of k taps reads: the least work in tiles and halo, if no columns are given.
struct TilePlan {
  int rows, columns;
  int64_t tiles_y, tiles_x;
};
TilePlan plan_tile(int64_t h, int64_t w, int64_t halo_h, int64_t halo_w, int pixels, int columns_multiple, int columns = 0);

// Rows that a unit of a march takes, given how many other units there are: the shortest longest thread.
int plan_unit_rows(int rows, int64_t others, int halo, int threads);

}  // namespace fastconv::cuda
