#include "plan_depthwise.h"

#include <algorithm>

#include "plan_measured.h"
#include "widest_vector.h"

namespace fastconv::cuda {

namespace {

// `only`: the forms that come into question, "elements" always does; empty for all.
DepthwisePlan plan_among(const DepthwiseForward& p, const std::string& only, const Device& device) {
  const auto may = [&](DepthwiseForm form) { return only.empty() || only == depthwise_form_name(form); };
  const ConvGeometry& g = p.g;
  const int64_t e = element_bytes(p.dtype), channels = g.out_channels();
  const int k = static_cast<int>(g.kh);
  const bool pixels = p.layout == Layout::channels_last;
  const bool special = depthwise_special(g.kh, g.kw) && g.sh == 1 && g.sw == 1 && g.multiplier == 1 && p.input_activation == Activation::identity;
  DepthwisePlan plan{};

  if (may(DepthwiseForm::pixels) && special && pixels &&
      g.c % depthwise_channels(k) == 0 && widest_vector(address(p.x.data), address(p.out.data)) >= depthwise_channels(k) * e) {
    plan.form = DepthwiseForm::pixels;
    plan.threads = 128;
    plan.strips = plan_strips(g.n, g.c / depthwise_channels(k), g.oh, g.ow, g.dh, g.dw, depthwise_columns(k), k - 1, depthwise_blocks(k) * plan.threads, device);
    plan.blocks = ceil_div(plan.strips.total, plan.threads);
    plan.shared_bytes = static_cast<size_t>(kDepthwiseStages * (depthwise_columns(k) + k - 1) * depthwise_channels(k) * e * plan.threads);
    return plan;
  }
  if (may(DepthwiseForm::bands) && special && !pixels) {
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
  if (may(DepthwiseForm::vectors) && pixels && g.multiplier == 1 && g.c % vector == 0 &&
      widest_vector(address(p.x.data), address(p.out.data), address(p.bias)) == 16 && vector_bytes <= most) {
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

}  // namespace

DepthwisePlan plan_depthwise(const DepthwiseForward& p, const Device& device) {
  const std::string measured = measured_tile(device.table, "depthwise_conv2d", p.dtype, p.layout, p.g, p.g.out_channels());
  const DepthwisePlan plan = plan_among(p, measured, device);
  // A layer of the class may have an alignment that the measured form does not take.
  return measured.empty() || measured == depthwise_form_name(plan.form) ? plan : plan_among(p, {}, device);
}

Reach reach(int64_t size, int64_t out, int64_t padding, int64_t dilation, int64_t kernel) {
  const int64_t first = (kernel - 1) / 2 * dilation - padding, low = std::min<int64_t>(0, first);
  return {low, std::max(size, out + first) - low};
}

DepthwiseForward turned(const DepthwiseBackward& p) {
  const ConvGeometry& g = p.g;
  DepthwiseForward f{};
  f.g = g;
  f.g.h = g.oh, f.g.w = g.ow, f.g.oh = g.h, f.g.ow = g.w;
  f.g.pt = (g.kh - 1) * g.dh - g.pt, f.g.pb = (g.kh - 1) * g.dh - g.pb, f.g.pl = (g.kw - 1) * g.dw - g.pl, f.g.pr = (g.kw - 1) * g.dw - g.pr;
  f.dtype = p.dtype, f.layout = p.layout, f.input_activation = f.activation = Activation::identity;
  f.x = p.grad, f.weight = p.weight, f.bias = nullptr, f.out = p.dx;
  return f;
}

namespace {

// Channel vectors side by side so that as few of a block's threads as possible have none, strips beside them, and as many blocks as are resident.
SlotPlan plan_slots(const StripPlan& strips, int64_t vectors, int threads, const Device& device) {
  SlotPlan s{};
  s.vectors = vectors, s.strips = strips.total / vectors;
  double best = 0;
  for (int64_t wide = std::min<int64_t>(vectors, 32); wide >= std::min<int64_t>(vectors, 8); --wide) {
    const double busy = double(vectors) / double(round_up(vectors, wide)) * double(threads / wide * wide) / threads;
    if (busy > best + 1e-9) best = busy, s.slice_vectors = wide;
  }
  s.slices = ceil_div(vectors, s.slice_vectors), s.groups = threads / s.slice_vectors;
  const int64_t resident = int64_t(device.multiprocessors) * 2;
  s.splits = std::clamp<int64_t>(resident / s.slices, 1, ceil_div(s.strips, s.groups));
  return s;
}

}  // namespace

DepthwiseBackwardPlan plan_depthwise_backward(const DepthwiseBackward& p, bool wants_dw, const Device& device) {
  const ConvGeometry& g = p.g;
  const int64_t e = element_bytes(p.dtype), channels = g.out_channels();
  const int k = static_cast<int>(g.kh);
  const bool pixels = p.layout == Layout::channels_last, wants_dx = p.dx.data != nullptr;
  const bool clamped = p.input_activation == Activation::identity || derivative_from_output(p.input_activation);
  const bool special = depthwise_special(g.kh, g.kw) && g.sh == 1 && g.sw == 1 && g.multiplier == 1 && clamped;
  const Reach rows = reach(g.h, g.oh, g.pt, g.dh, g.kh), columns = reach(g.w, g.ow, g.pl, g.dw, g.kw);
  DepthwiseBackwardPlan plan{};
  auto by_forward = [&] {
    if (p.input_activation != Activation::identity) return false;
    // What was measured best for forward passes may be a form that no gradient can take.
    plan.turned = plan_among(turned(p), {}, device);
    return plan.turned.form == DepthwiseForm::pixels || plan.turned.form == DepthwiseForm::bands;
  };

  if (special && !wants_dw && by_forward()) {
    plan.form = DepthwiseBackwardForm::forward;
    return plan;
  }
  const int64_t vector = depthwise_backward_channels(k);
  if (special && wants_dw && pixels && g.c % vector == 0 && widest_vector(address(p.x.data), address(p.grad.data), address(p.dx.data)) >= vector * e &&
      (k != 7 || !wants_dx || by_forward())) {
    plan.form = k == 7 ? DepthwiseBackwardForm::pixels_twice : DepthwiseBackwardForm::pixels;
    plan.threads = 128;
    plan.strips = plan_strips(g.n, g.c / vector, rows.size, columns.size, g.dh, g.dw, depthwise_backward_columns(k), k - 1, 2 * plan.threads, device);
    plan.slots = plan_slots(plan.strips, g.c / vector, plan.threads, device);
    plan.blocks = plan.slots.slices * plan.slots.splits, plan.splits = plan.slots.splits;
    const int64_t ring = kDepthwiseStages * (2 * depthwise_backward_columns(k) + k - 1) * vector * e * plan.threads;
    plan.shared_bytes = static_cast<size_t>(std::max<int64_t>(ring, (g.taps() + 1) * vector * 4 * plan.threads));
  } else if (special && wants_dw && !pixels) {
    const size_t totals = (g.taps() + 1) * 4 * 256;
    Device smaller = device;
    smaller.shared_per_block -= static_cast<int>(totals);
    plan.band = plan_bands(g.n, g.c, rows.size, columns.size, g.dh, depthwise_band_columns(k), k - 1, (k - 1) * g.dw, static_cast<int>(e), smaller, true);
    plan.form = plan.band.blocks > 0 ? DepthwiseBackwardForm::bands : DepthwiseBackwardForm::elements;
    if (plan.band.blocks > 0) {
      plan.own = plan.band;
      plan.own.input_rows = plan.band.rows, plan.own.pitch_bytes = plan.band.own_pitch_bytes;
      plan.threads = plan.band.threads, plan.blocks = plan.band.blocks;
      plan.splits = g.n * plan.band.row_classes * plan.band.strips * plan.band.tiles;
      plan.shared_bytes = plan.band.shared_bytes + totals;
    }
  } else {
    plan.form = DepthwiseBackwardForm::elements;
  }
  if (plan.form == DepthwiseBackwardForm::elements) {
    plan.threads = 256;
    plan.rows = plan_rows(g.n, pixels ? 1 : g.c, g.h, g.w * (pixels ? g.c : 1), pixels ? g.c : 1, e);
    plan.lanes = pixels ? std::min<int64_t>(32, channels) : 1;
    const int64_t slices = ceil_div(channels, plan.lanes), positions = g.n * g.oh * g.ow;
    // Four blocks a multiprocessor, and enough positions for each thread to be worth its share of the sums.
    const int64_t most = ceil_div(positions, 4 * (plan.threads / plan.lanes));
    plan.splits = std::clamp<int64_t>(int64_t(device.multiprocessors) * 4 / slices, 1, std::max<int64_t>(most, 1));
    plan.blocks = slices * plan.splits;
    plan.shared_bytes = size_t(kDepthwiseTapsAtOnce) * 4 * plan.threads;
  }
  plan.partial_bytes = wants_dw ? static_cast<size_t>(plan.splits * channels * (g.taps() + 1) * 4) : 0;
  return plan;
}

}  // namespace fastconv::cuda
