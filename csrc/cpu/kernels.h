// The table through which the rest of the library reaches the kernels of one instruction set. Every kernel source is compiled once per
// instruction set and defines its entries in namespace fastconv::<isa>; isa.cpp picks one table when the library is loaded.
//
// All kernels split their work into independent items: an item's result does not depend on which thread runs it nor on how many
// threads there are.
#pragma once
#include "common/params.h"
#include "common/params_pool.h"

namespace fastconv {

// What the depthwise forward kernel decided.
struct DepthwisePlan {
  int64_t items;
  int64_t rows_per_item;      // output rows: channels_last, and contiguous maps that are computed with transposed channels; else 0
  int64_t tile_pixels;        // contiguous: pixels of a plane handled at a time,
  int64_t tiles;              //   and how many of these a plane has
  int64_t channels_per_item;  // input channels of an item
  int64_t scratch_bytes;      // per thread
  int64_t packed_bytes;       // weights as float32, shared
  bool flat;                  // contiguous: taps are constant offsets in the flat plane as it lies in memory
};

// What the fused separable forward kernel decided before it runs: what explain() prints and what the kernel obeys.
struct SeparablePlan {
  int64_t tile_pixels;    // output pixels whose depthwise result is resident at a time
  int64_t tiles;          // pixel tiles: of the batch (channels_last) or of one image (contiguous)
  int64_t splits;         // splits of the output channels, for maps too small to feed every thread
  int64_t items;
  int64_t panels;         // GEMM panels: over output channels (channels_last) or over the tile's pixels (contiguous)
  int64_t panel_vectors;  // vectors in a panel
  int64_t panel_rows;     // rows of the register block
  int64_t row_stride;     // scratch elements between two rows of the depthwise result
  int64_t scratch_bytes;  // per thread
  int64_t packed_bytes;   // weights in the order the kernel reads them, shared
  int64_t pack_items;
  bool bf16_dot;          // products on bf16 dot-product instructions
  bool flat;              // contiguous: taps are constant offsets in a flat plane, borders are masks
  bool streaming;         // the output bypasses the caches
};

// What the gradient arriving at a depthwise convolution must still be multiplied by: activation'(z), z with the shape and layout of that
// gradient. With activation identity z is not read.
struct ActivationGate {
  Activation activation;
  MapView z;
};

// How the depthwise backward kernel splits its work. Nothing here depends on the number of threads: weight gradients are summed strip by strip.
struct DepthwiseBackwardPlan {
  bool flat;              // lanes are neighbouring pixels of a plane (contiguous only), otherwise channels
  int64_t chunk, chunks;  // input channels of an item, and how many such chunks
  int64_t blocks;         // vectors of output channels in a chunk
  int64_t strips;         // strips of rows of one image
  int64_t items;
  int64_t scratch_bytes;  // per thread
  int64_t partial_bytes;  // weight gradients of every strip, shared
  int64_t reduce_items;
};

// The separable backward walks the pixels in blocks. Of a block, the tiles are computed in parallel (depthwise recomputed, gradient pulled through
// the pointwise product); then the block's share of the pointwise weight gradient, in parallel over that gradient's entries. Blocks follow each
// other in order, so sums do not depend on threads.
struct SeparableBackwardPlan {
  int64_t tile_pixels;
  int64_t tiles;           // of the batch (channels_last) or of one image (contiguous)
  int64_t tile_items;      // all tiles
  int64_t block_tiles;     // tiles of one block
  int64_t weight_items;    // pieces of the pointwise weight gradient
  int64_t pack_items;
  int64_t packed_bytes;
  int64_t scratch_bytes;   // per thread
  int64_t grad_bytes;      // the block's pointwise pre-activation gradients, float32, shared
  int64_t middle_bytes;    // the block's depthwise results, float32, shared
  int64_t row_stride;      // floats between two rows of either
};
struct SeparableBackwardMemory {
  void* packed;
  float* grads;   // channels_last: [slot][pixel][o]; contiguous: [slot][group][o][pixel]
  float* middle;  // [panel of channels][slot][pixel][channel]
};

struct Kernels {
  const char* name;
  int lanes;              // float32 lanes of a vector
  bool bf16_dot;

  DepthwisePlan (*depthwise_plan)(const DepthwiseForward&, int threads);
  void (*depthwise_pack)(const DepthwiseForward&, const DepthwisePlan&, void* packed);
  void (*depthwise_forward)(const DepthwiseForward&, const DepthwisePlan&, const void* packed, int64_t begin, int64_t end, void* scratch);

  SeparablePlan (*separable_plan)(const SeparableForward&, int threads);
  void (*separable_pack)(const SeparableForward&, const SeparablePlan&, int64_t begin, int64_t end, void* packed);
  void (*separable_forward)(const SeparableForward&, const SeparablePlan&, const void* packed, int64_t begin, int64_t end, void* scratch);

  DepthwiseBackwardPlan (*depthwise_backward_plan)(const DepthwiseBackward&, const ActivationGate&);
  void (*depthwise_backward)(
      const DepthwiseBackward&, const ActivationGate&, const DepthwiseBackwardPlan&, int64_t begin, int64_t end, void* partials, void* scratch);
  void (*depthwise_backward_reduce)(const DepthwiseBackward&, const DepthwiseBackwardPlan&, int64_t begin, int64_t end, const void* partials);
  PoolPlan (*max_pool_plan)(const MaxPool&, int threads);
  void (*max_pool)(const MaxPool&, const PoolPlan&, int64_t begin, int64_t end, void* scratch);
  PoolPlan (*max_pool_backward_plan)(const MaxPoolBackward&, int threads);
  void (*max_pool_backward)(const MaxPoolBackward&, const PoolPlan&, int64_t begin, int64_t end, void* scratch);
  PoolPlan (*avg_pool_plan)(const AvgPool&, int threads);
  void (*avg_pool)(const AvgPool&, const PoolPlan&, int64_t begin, int64_t end, void* scratch);
  // Items: rows of the map (stitch), of the fragments together (shift).
  void (*shift)(const ShiftStitch&, int64_t begin, int64_t end);
  void (*stitch)(const ShiftStitch&, int64_t begin, int64_t end);

  SeparableBackwardPlan (*separable_backward_plan)(const SeparableBackward&, int threads);
  void (*separable_backward_pack)(const SeparableBackward&, const SeparableBackwardPlan&, int64_t begin, int64_t end, void* packed);
  // Tiles first_tile + [begin, end), which fill slots [begin, end).
  void (*separable_backward_tiles)(
      const SeparableBackward&, const SeparableBackwardPlan&, const SeparableBackwardMemory&, int64_t first_tile, int64_t begin, int64_t end, void* scratch);
  void (*separable_backward_weights)(
      const SeparableBackward&, const SeparableBackwardPlan&, const SeparableBackwardMemory&, int64_t first_tile, int64_t slots, int64_t begin, int64_t end);

  // Independent multiply-add chains for `rounds` rounds; returns the floating-point operations done. The machine's own ceiling.
  double (*fma_peak)(int64_t rounds);
  double (*bf16_peak)(int64_t rounds);
};

}  // namespace fastconv
