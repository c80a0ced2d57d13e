#include "plan_separable_backward.h"

#include <algorithm>

#include "widest_vector.h"

namespace fastconv::cuda {

SeparableBackwardPlan plan_separable_backward(const SeparableBackward& p, bool dweight, bool dbias, FloatProducts products, const Device& device) {
  constexpr int64_t kPixels = 64, kChannels = 64, kThreads = 128, kSlabBytes = 128, kStages = 3;
  const ConvGeometry& g = p.f.g;
  const int64_t e = element_bytes(p.f.dtype), slab = kSlabBytes / e, middle = g.out_channels();
  SeparableBackwardPlan plan{};
  SeparablePlan& f = plan.f;
  f.producer = choose_producer(p.f);
  f.products = products;
  f.smooth = smooth_activation(p.f.input_activation) || smooth_activation(p.f.depthwise_activation) || smooth_activation(p.f.pointwise_activation);
  f.vectors = middle % 8 == 0 && address(p.dz1.data) % 16 == 0;
  plan.grad_vectors = p.f.o % 8 == 0 && address(p.grad.data) % 16 == 0 && address(p.pointwise_z.data) % 16 == 0;

  place_tiles(p.f, static_cast<int>(kPixels), f);
  f.chunk = static_cast<int>(kChannels);
  plan_units(p.f, static_cast<int>(kThreads), f);

  // Gradients of a tile: all output channels where they fit beside the rest, two blocks a multiprocessor.
  const bool derive = p.f.depthwise_activation != Activation::identity;
  const int64_t tile = ceil_div(kChannels, slab) * kPixels * kSlabBytes, scratch = f.smooth ? kThreads * 8 * sizeof(float) : 0;
  const int64_t rows = f.producer == Producer::ring_pixels ? row_ring_bytes(kThreads / 32, row_stages(kBackwardRowStages, e), static_cast<int>(g.kh), static_cast<int>(g.sh), static_cast<int>(e)) : 0;
  const int64_t staged = staged_weights(p.f, f.producer) ? round_up((kChannels + 4) * g.taps() * sizeof(float), 16) : 0;
  const int64_t dz_fixed = (derive ? tile + staged + rows : 0) + kStages * kChannels * kSlabBytes + 2 * kPixels * sizeof(int64_t) + scratch +
                           (p.f.layout == Layout::contiguous ? kThreads * 16 * sizeof(float) : 0);
  const int64_t slabs = ceil_div(p.f.o, slab), fit = std::max<int64_t>((device.shared_per_multiprocessor / 2 - 1024 - dz_fixed) / (kPixels * kSlabBytes), 1);
  const int64_t chunk_slabs = slabs <= fit ? slabs : ceil_div(slabs, ceil_div(slabs, fit));
  plan.grad_chunk = static_cast<int>(chunk_slabs * slab);
  plan.dz_shared = static_cast<size_t>(dz_fixed + chunk_slabs * kPixels * kSlabBytes);
  plan.weight_pitch = round_up(p.f.o, 16 / e);
  plan.weight_bytes = static_cast<size_t>(round_up(middle * plan.weight_pitch * e, 16));

  // A grid that fills any chip, fixed by the shape; channels are split where there are few tiles of pixels, and their gradients loaded again.
  constexpr int64_t kBlocks = 400;
  const int64_t wanted = std::clamp<int64_t>(kBlocks / f.tiles, 1, ceil_div(middle, kChannels));
  f.split = static_cast<int>(round_up(ceil_div(middle, wanted), kChannels));
  f.splits = ceil_div(middle, f.split);
  plan.dz_blocks = f.tiles * f.splits;

  plan.row_tiles = ceil_div(p.f.o, kChannels);
  plan.channel_tiles = dweight ? ceil_div(middle, kChannels) : 1;
  const int64_t splits = std::clamp<int64_t>(kBlocks / (plan.row_tiles * plan.channel_tiles), 1, f.tiles);
  plan.split_tiles = ceil_div(f.tiles, splits);
  plan.splits = ceil_div(f.tiles, plan.split_tiles);
  plan.dweight_blocks = plan.row_tiles * plan.channel_tiles * plan.splits;
  plan.dweight_shared = static_cast<size_t>(2 * tile + kPixels * sizeof(int64_t) + rows + staged + scratch);
  plan.partial_bytes = static_cast<size_t>(plan.splits * p.f.o * ((dweight ? middle : 0) + (dbias ? 1 : 0))) * sizeof(float);
  return plan;
}

}  // namespace fastconv::cuda
