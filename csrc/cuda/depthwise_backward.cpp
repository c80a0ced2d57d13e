// depthwise_conv2d_backward on CUDA: check -> plan -> launch.
#include "common/check.h"
#include "common/library_path.h"
#include "entry.h"

namespace fastconv::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> depthwise_conv2d_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& output, std::vector<int64_t> stride,
    std::vector<int64_t> padding, std::vector<int64_t> dilation, std::string activation, std::vector<bool> output_mask) {
  const ConvGeometry g = check_conv(input, weight, "weight", bias, "bias", stride, padding, dilation);
  const Activation act = parse_activation(activation, "activation");
  const std::vector<int64_t> size{g.n, g.out_channels(), g.oh, g.ow};
  check_map(grad_output, "grad_output", size, input);
  check_map(output, "output", size, input);
  check_mask(output_mask, 3);
  const DType dtype = parse_dtype(input, "input");
  if (dtype == DType::f64) return library::depthwise_backward(grad_output, input, weight, bias, output, {stride, padding, dilation}, act, output_mask);

  const Scope scope(input);
  const Layout layout = suggested_layout(input);
  const Tensor x = to_dense(input, layout), w = to_dense(weight);
  Tensor grad = to_dense(grad_output, layout);
  const Tensor none = nothing(input);
  Tensor dx = output_mask[0] ? empty_map(input, {g.n, g.c, g.h, g.w}, layout) : none;
  const bool wants_dw = output_mask[1] || output_mask[2];
  Tensor dw = output_mask[1] ? empty_dense(input, sizes_of(weight), weight.scalar_type()) : none;
  Tensor db = output_mask[2] ? empty_dense(input, {g.out_channels()}, weight.scalar_type()) : none;
  if (g.n == 0) return {dx, output_mask[1] ? torch::stable::zero_(dw) : none, output_mask[2] ? torch::stable::zero_(db) : none};

  if (act != Activation::identity) {
    Tensor z, dz = empty_map(input, size, layout);
    if (derivative_from_output(act) && output) {
      z = to_dense(*output, layout);
    } else {
      const OptTensor b = to_dense(bias);
      z = empty_map(input, size, layout);
      const DepthwiseForward f{g, dtype, layout, Activation::identity, Activation::identity, view(x, layout), w.const_data_ptr(), data_or_null(b), mutable_view(z, layout)};
      launch_depthwise(f, plan_depthwise(f, scope.device), scope.stream);
    }
    launch_activation_gate(grad.const_data_ptr(), z.const_data_ptr(), dz.mutable_data_ptr(), dz.numel(), dtype, act, scope.device, scope.stream);
    grad = dz;
  }
  DepthwiseBackward p{g, dtype, layout, Activation::identity, view(x, layout), view(grad, layout), w.const_data_ptr(), {}, nullptr, nullptr};
  if (output_mask[0]) p.dx = mutable_view(dx, layout);
  if (p.dx.data || wants_dw) {
    const DepthwiseBackwardPlan plan = plan_depthwise_backward(p, wants_dw, scope.device);
    Tensor partials = empty_dense(input, {static_cast<int64_t>(plan.partial_bytes / sizeof(float))}, ScalarType::Float);
    const WeightGradients to{
        output_mask[1] ? dw.mutable_data_ptr() : nullptr, output_mask[2] ? db.mutable_data_ptr() : nullptr, static_cast<float*>(partials.mutable_data_ptr())};
    launch_depthwise_backward(p, to, plan, scope.stream);
  }
  scope.check();
  return {dx, dw, db};
}

}  // namespace
}  // namespace fastconv::cuda

STABLE_TORCH_LIBRARY_IMPL(fastconv, CUDA, m) { m.impl("depthwise_conv2d_backward", TORCH_BOX(&fastconv::cuda::depthwise_conv2d_backward)); }
