// Launches the depthwise convolution's backward kernels; they are in depthwise_backward_kernel.cuh (channels_last),
// depthwise_backward_band_kernel.cuh (contiguous) and depthwise_backward_general_kernel.cuh (the rest, and the last stage of weight gradients).
#include "common/widest_vector.h"
#include "depthwise_backward_band_kernel.cuh"
#include "depthwise_backward_general_kernel.cuh"
#include "depthwise_backward_kernel.cuh"
#include "launch.h"

namespace fastconv::cuda {
namespace {

int narrow(int64_t v) { return static_cast<int>(v); }

DepthwiseBackwardArgs pixel_arguments(const DepthwiseBackward& p, const WeightGradients& to) {
  const ConvGeometry& g = p.g;
  const Reach rows = reach(g.h, g.oh, g.pt, g.dh, g.kh), columns = reach(g.w, g.ow, g.pl, g.dw, g.kw);
  return {p.x.data, p.grad.data, p.weight, p.dx.data, to.partials, p.x.sn, p.x.sh, p.x.sw, p.grad.sn, p.grad.sh, p.grad.sw,
          narrow(g.h), narrow(g.w), narrow(g.oh), narrow(g.ow), narrow(g.dh), narrow(g.dw), narrow(rows.low), narrow(columns.low),
          narrow(g.pt), narrow(g.pl), narrow(g.c), ActivationArgs(p.input_activation)};
}

template <class T, int K>
void launch_pixels(const DepthwiseBackward& p, const WeightGradients& to, const DepthwiseBackwardPlan& plan, Stream stream) {
  auto go = [&](auto kernel) {
    launch(kernel, Dim3(static_cast<unsigned>(plan.blocks)), Dim3(plan.threads), plan.shared_bytes, stream, pixel_arguments(p, to), Strips(plan.strips), Slots(plan.slots));
  };
  constexpr bool kWithDx = K != 7;
  p.input_activation == Activation::identity ? go(depthwise_backward_pixels<T, K, kWithDx, false>) : go(depthwise_backward_pixels<T, K, kWithDx, true>);
}

template <class T, int K>
void launch_bands(const DepthwiseBackward& p, const WeightGradients& to, const DepthwiseBackwardPlan& plan, Stream stream) {
  const ConvGeometry& g = p.g;
  const Reach rows = reach(g.h, g.oh, g.pt, g.dh, g.kh), columns = reach(g.w, g.ow, g.pl, g.dw, g.kw);
  const int64_t x_strides[3] = {p.x.sn, p.x.sc, p.x.sh}, grad_strides[3] = {p.grad.sn, p.grad.sc, p.grad.sh};
  const Band grad(plan.band, g.oh, g.ow, (g.kh - 1) * g.dh - g.pt - rows.low, (g.kw - 1) * g.dw - g.pl - columns.low, grad_strides);
  const Band own(plan.own, g.h, g.w, -rows.low, -columns.low, x_strides);
  const DepthwiseBackwardBandArgs a{
      p.x.data, p.grad.data, p.weight, p.dx.data, to.partials, p.x.sn, p.x.sc, p.x.sh, narrow(g.h), narrow(g.w), narrow(rows.low), narrow(columns.low),
      narrow(g.dw), static_cast<uint32_t>(plan.band.row_classes * plan.band.strips * plan.band.tiles), narrow(g.c), ActivationArgs(p.input_activation)};
  auto go = [&](auto kernel) { launch(kernel, Dim3(static_cast<unsigned>(plan.blocks)), Dim3(plan.threads), plan.shared_bytes, stream, a, grad, own); };
  p.input_activation == Activation::identity ? go(depthwise_backward_bands<T, K, false>) : go(depthwise_backward_bands<T, K, true>);
}

template <class T>
void launch_elements(const DepthwiseBackward& p, const WeightGradients& to, const DepthwiseBackwardPlan& plan, Stream stream) {
  const ConvGeometry& g = p.g;
  const DepthwiseBackwardGeneralArgs a{
      p.x.data, p.grad.data, p.weight, p.dx.data, to.partials, p.x.sn, p.x.sc, p.x.sh, p.x.sw, p.grad.sn, p.grad.sc, p.grad.sh, p.grad.sw,
      narrow(g.h), narrow(g.w), narrow(g.oh), narrow(g.ow), narrow(g.kh), narrow(g.kw), narrow(g.sh), narrow(g.sw), narrow(g.dh), narrow(g.dw), narrow(g.pt),
      narrow(g.pl), narrow(g.multiplier), narrow(g.out_channels()), FastDivision(g.sh), FastDivision(g.sw), FastDivision(g.multiplier),
      ActivationArgs(p.input_activation)};
  if (p.dx.data) launch(depthwise_dx_elements<T>, Dim3(static_cast<unsigned>(plan.rows.blocks)), Dim3(plan.threads), 0, stream, a, Rows(plan.rows));
  if (!to.dw && !to.db) return;
  launch(
      depthwise_dw_elements<T>, Dim3(static_cast<unsigned>(plan.blocks)), Dim3(plan.threads), plan.shared_bytes, stream, a, FastDivision(plan.lanes),
      FastDivision(ceil_div(g.out_channels(), plan.lanes)), FastDivision(g.ow), FastDivision(g.oh * g.ow), static_cast<uint32_t>(g.n * g.oh * g.ow),
      narrow(plan.splits));
}

template <class T>
void launch_main(const DepthwiseBackward& p, const WeightGradients& to, const DepthwiseBackwardPlan& plan, Stream stream) {
  switch (plan.form) {
    case DepthwiseBackwardForm::forward: return launch_depthwise(turned(p), plan.turned, stream, true);
    case DepthwiseBackwardForm::elements: return launch_elements<T>(p, to, plan, stream);
    case DepthwiseBackwardForm::pixels_twice:
      if (p.dx.data) launch_depthwise(turned(p), plan.turned, stream, true);
      return launch_pixels<T, 7>(p, to, plan, stream);
    case DepthwiseBackwardForm::pixels: return p.g.kh == 3 ? launch_pixels<T, 3>(p, to, plan, stream) : launch_pixels<T, 5>(p, to, plan, stream);
    case DepthwiseBackwardForm::bands:
      switch (p.g.kh) {
        case 3: return launch_bands<T, 3>(p, to, plan, stream);
        case 5: return launch_bands<T, 5>(p, to, plan, stream);
        default: return launch_bands<T, 7>(p, to, plan, stream);
      }
  }
}

}  // namespace

void launch_depthwise_backward(const DepthwiseBackward& p, const WeightGradients& gradients, const DepthwiseBackwardPlan& plan, Stream stream) {
  with_dtype(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    launch_main<T>(p, gradients, plan, stream);
    if (!gradients.dw && !gradients.db) return;
    const int64_t columns = p.g.out_channels() * (p.g.taps() + 1);
    const float* partials = gradients.partials;
    launch(
        sum_partials<T>, Dim3(static_cast<unsigned>(ceil_div(columns, 32))), Dim3(256), 256 * sizeof(float), stream, partials, narrow(plan.splits),
        narrow(p.g.out_channels()), FastDivision(p.g.taps() + 1), gradients.dw, gradients.db);
  });
}

void launch_activation_gate(const void* grad, const void* z, void* dz, int64_t elements, DType dtype, Activation activation, const Device& device, Stream stream) {
  with_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    const bool vectors = widest_vector(address(grad), address(z), address(dz)) == 16;
    const int64_t threads = ceil_div(elements * static_cast<int64_t>(sizeof(T)), 16), most = int64_t(device.multiprocessors) * 8;
    const int64_t blocks = ceil_div(threads, 256) < most ? ceil_div(threads, 256) : most;
    launch(gate_elements<T>, Dim3(static_cast<unsigned>(blocks)), Dim3(256), 0, stream, grad, z, dz, elements, ActivationArgs(activation), vectors);
  });
}

}  // namespace fastconv::cuda
