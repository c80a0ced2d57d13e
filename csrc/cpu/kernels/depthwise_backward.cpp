// Entries of the depthwise backward: which of its two kernels runs, and the ordered sum of the weight gradients of all strips.
#include "depthwise_backward.h"

namespace fastconv::FASTCONV_ISA {

namespace {

template <Activation A>
FASTCONV_INLINE vf gated(vf g, vf z) {
  if (A == Activation::relu) return z <= vf{} ? vf{} : g;
  if (A == Activation::relu6) return (z <= vf{}) | (z >= set1(6.f)) ? vf{} : g;
  return g * derivative<A>(z);
}

DepthwiseBackwardPlan plan(const DepthwiseBackward& p, const ActivationGate&) { return planes_take(p) ? plan_planes(p) : plan_pixels(p); }

void backward(
    const DepthwiseBackward& p, const ActivationGate& gate, const DepthwiseBackwardPlan& plan, int64_t begin, int64_t end, void* partials, void* scratch) {
  (plan.flat ? backward_planes : backward_pixels)(p, gate, plan, begin, end, (float*)partials, scratch);
}

// Channels [first, first + channels); partials are (strip, chunk, tap, lane).
void reduce_lanes(const DepthwiseBackward& p, const DepthwiseBackwardPlan& plan, int64_t chunk, const float* partials) {
  const ConvGeometry& g = p.g;
  const int64_t taps = g.taps(), lanes = plan.blocks * L;
  const int64_t first = chunk * plan.chunk * g.multiplier, channels = min64(plan.chunk * g.multiplier, g.out_channels() - first);
  for (int64_t c = 0; c < channels; c += L)
    for (int64_t t = 0; t <= taps; t += L) {
      const int64_t rows = min64(L, taps + 1 - t);
      vf sum[L] = {};
      for (int64_t strip = 0; strip < g.n * plan.strips; ++strip) {
        const float* part = partials + ((strip * plan.chunks + chunk) * (taps + 1) + t) * lanes + c;
        for (int64_t i = 0; i < rows; ++i) sum[i] += load(part + i * lanes);
      }
      if (p.db && t + rows == taps + 1) store_lanes(p.db + first + c, sum[rows - 1], channels - c);
      if (!p.dw || t == taps) continue;
      transpose(sum);
      for (int64_t i = 0; i < min64(L, channels - c); ++i) store_lanes(p.dw + (first + c + i) * taps + t, sum[i], taps - t);
    }
}

// Partials are (strip, out channel, tap).
void reduce_channels(const DepthwiseBackward& p, const DepthwiseBackwardPlan& plan, int64_t chunk, const float* partials) {
  const ConvGeometry& g = p.g;
  const int64_t taps = g.taps(), first = chunk * plan.chunk * g.multiplier;
  for (int64_t c = first; c < min64(first + plan.chunk * g.multiplier, g.out_channels()); ++c)
    for (int64_t t = 0; t <= taps; t += L) {
      const int64_t n = min64(L, taps + 1 - t);
      vf sum = {};
      for (int64_t strip = 0; strip < g.n * plan.strips; ++strip) sum += load_lanes(partials + (strip * g.out_channels() + c) * (taps + 1) + t, n);
      if (p.dw && t < taps) store_lanes(p.dw + c * taps + t, sum, taps - t);
      if (p.db && t + n == taps + 1) p.db[c] = sum[n - 1];
    }
}

void reduce(const DepthwiseBackward& p, const DepthwiseBackwardPlan& plan, int64_t begin, int64_t end, const void* partials) {
  for (int64_t chunk = begin; chunk < end; ++chunk) (plan.flat ? reduce_channels : reduce_lanes)(p, plan, chunk, (const float*)partials);
}

}  // namespace

void apply_activation(Activation a, const float* from, float* to, int64_t count) {
  with_activation(a, [&](auto act) {
    for (int64_t i = 0; i < count; i += L) store(to + i, activate<decltype(act)::value>(load(from + i)));
  });
}

void multiply_by_slope(Activation a, const float* z, float* values, int64_t count) {
  with_activation(a, [&](auto act) {
    // Lanes past the end may hold anything, NaN too: they are neither read nor written.
    for (int64_t i = 0; i < count; i += L)
      store_lanes(values + i, gated<decltype(act)::value>(load_lanes(values + i, count - i), load_lanes(z + i, count - i)), count - i);
  });
}

void register_depthwise_backward(Kernels& t) {
  t.depthwise_backward_plan = &plan;
  t.depthwise_backward = &backward;
  t.depthwise_backward_reduce = &reduce;
}

}  // namespace fastconv::FASTCONV_ISA
