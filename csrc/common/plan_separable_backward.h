// Plans of the pointwise half of the fused backward pass.
#pragma once
#include "plan_separable.h"

namespace fastconv::cuda {

constexpr int kBackwardRowStages = 4;  // rows of input in 16 bits that have a place in shared memory

struct SeparableBackwardPlan {
  SeparablePlan f;      // producer, tiles of 64 pixels, vectors of the gradient dz; its chunk is the 64 channels of a tile
  bool grad_vectors;
  int grad_chunk;
  int64_t row_tiles, channel_tiles;          // of output channels and depthwise channels
  int64_t split_tiles, splits;               // of pixel tiles, for the weight gradient
  int64_t dz_blocks, dweight_blocks;
  int64_t weight_pitch;                      // elements, of the transposed pointwise weights
  size_t dz_shared, dweight_shared;
  size_t weight_bytes, partial_bytes;        // workspace: transposed weights, then partial sums
};
// `dweight`, `dbias`: which sums over pixels are asked for. Their splits do not depend on the device, so they are the same bits everywhere.
SeparableBackwardPlan plan_separable_backward(const SeparableBackward& p, bool dweight, bool dbias, FloatProducts products, const Device& device);

}  // namespace fastconv::cuda
