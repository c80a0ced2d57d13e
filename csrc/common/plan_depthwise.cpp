#include "plan_depthwise.h"

#include <algorithm>

#include "widest_vector.h"

namespace fastconv::cuda {

DepthwisePlan plan_depthwise(const DepthwiseForward& p, const Device& device) {
  const ConvGeometry& g = p.g;
  const int64_t e = element_bytes(p.dtype), channels = g.out_channels();
  const int k = static_cast<int>(g.kh);
  const bool pixels = p.layout == Layout::channels_last;
  const bool special = depthwise_special(g.kh, g.kw) && g.sh == 1 && g.sw == 1 && g.multiplier == 1 && p.input_activation == Activation::identity;
  DepthwisePlan plan{};

  if (special && pixels && g.c % depthwise_channels(k) == 0 && widest_vector(address(p.x.data), address(p.out.data)) >= depthwise_channels(k) * e) {
    plan.form = DepthwiseForm::pixels;
    plan.strips = plan_strips(g.n, g.c / depthwise_channels(k), g.oh, g.ow, g.dh, g.dw, depthwise_columns(k), k - 1, device);
    plan.threads = 128;
    plan.blocks = ceil_div(plan.strips.total, plan.threads);
    plan.shared_bytes = static_cast<size_t>(kDepthwiseStages * (depthwise_columns(k) + k - 1) * depthwise_channels(k) * e * plan.threads);
    return plan;
  }
  if (special && !pixels) {
    plan.band = plan_bands(g.n, g.c, g.oh, g.ow, g.dh, depthwise_band_columns(k), k - 1, (k - 1) * g.dw, static_cast<int>(e), device);
    if (plan.band.blocks > 0) {
      plan.form = DepthwiseForm::bands;
      plan.threads = plan.band.threads, plan.blocks = plan.band.blocks, plan.shared_bytes = plan.band.shared_bytes;
      return plan;
    }
  }
  plan.threads = 256;
  // Weights wait in shared memory as floats; several blocks should fit on a multiprocessor.
  const int64_t vector = 16 / e, vectors = g.c / vector, vector_bytes = g.taps() * vector * 4, most = device.shared_per_multiprocessor / 6;
  if (pixels && g.multiplier == 1 && g.c % vector == 0 && widest_vector(address(p.x.data), address(p.out.data), address(p.bias)) == 16 && vector_bytes <= most) {
    plan.form = DepthwiseForm::vectors;
    plan.slices = ceil_div(vectors, std::clamp<int64_t>(most / vector_bytes, 1, 32));
    plan.slice_vectors = ceil_div(vectors, plan.slices);
    plan.rows = plan_rows(g.n, 1, g.oh, g.ow, 1, plan.slice_vectors * 16);
    plan.blocks = plan.rows.blocks * plan.slices;
    plan.shared_bytes = static_cast<size_t>(plan.slice_vectors * vector_bytes);
    return plan;
  }
  plan.form = DepthwiseForm::elements;
  plan.rows = plan_rows(g.n, pixels ? 1 : channels, g.oh, g.ow * (pixels ? channels : 1), pixels ? channels : 1, e);
  plan.blocks = plan.rows.blocks;
  return plan;
}

}  // namespace fastconv::cuda
