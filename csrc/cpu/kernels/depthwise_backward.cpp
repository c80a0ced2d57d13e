// Entries of the depthwise backward: which of its two kernels runs, and the ordered sum of the weight gradients of all strips.
#include "depthwise_backward.h"

namespace fastconv::FASTCONV_ISA {

namespace {

DepthwiseBackwardPlan plan(const DepthwiseBackward& p, const ActivationGate& gate) { return plan_pixels(p, gate); }

void backward(
    const DepthwiseBackward& p, const ActivationGate& gate, const DepthwiseBackwardPlan& plan, int64_t begin, int64_t end, void* partials, void* scratch) {
  backward_pixels(p, gate, plan, begin, end, (float*)partials, scratch);
}

// An item is a chunk of channels: its partials, (strip, tap, lane), are added up in the order of the strips.
void reduce(const DepthwiseBackward& p, const DepthwiseBackwardPlan& plan, int64_t begin, int64_t end, const void* partials) {
  const ConvGeometry& g = p.g;
  const int64_t taps = g.taps(), lanes = plan.blocks * L;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * plan.chunk * g.multiplier, channels = least(plan.chunk * g.multiplier, g.out_channels() - first);
    for (int64_t c = 0; c < channels; c += L)
      for (int64_t t = 0; t <= taps; t += L) {
        const int64_t rows = least<int64_t>(L, taps + 1 - t);
        vf sum[L] = {};
        for (int64_t strip = 0; strip < g.n * plan.strips; ++strip) {
          const float* part = (const float*)partials + ((strip * plan.chunks + chunk) * (taps + 1) + t) * lanes + c;
          for (int64_t i = 0; i < rows; ++i) sum[i] += load(part + i * lanes);
        }
        if (p.db && t + rows == taps + 1) store_lanes(p.db + first + c, sum[rows - 1], channels - c);
        if (!p.dw || t == taps) continue;
        transpose(sum);
        for (int64_t i = 0; i < least<int64_t>(L, channels - c); ++i) store_lanes(p.dw + (first + c + i) * taps + t, sum[i], taps - t);
      }
  }
}

}  // namespace

void register_depthwise_backward(Kernels& t) {
  t.depthwise_backward_plan = &plan;
  t.depthwise_backward = &backward;
  t.depthwise_backward_reduce = &reduce;
}

}  // namespace fastconv::FASTCONV_ISA
