// depthwise_separable_conv2d_backward on CUDA: the pointwise half by one kernel for the gradient of the depthwise result and one for the weights,
// then the depthwise backward.
#include "common/check_separable.h"
#include "entry.h"
#include "separable_backward_launch.h"
#include "separable_launch.h"

namespace fastconv::cuda {
namespace {

// The forward pass once more, into the pre-activation of the pointwise product.
Tensor pre_activation(SeparableForward f, const Tensor& input, const std::vector<int64_t>& size, FloatProducts products, const Scope& scope) {
  Tensor z = empty_map(input, size, f.layout);
  f.pointwise_activation = Activation::identity;
  f.out = mutable_view(z, f.layout);
  const SeparablePlan plan = plan_separable(f, products, scope.device);
  Tensor workspace = empty_dense(input, {static_cast<int64_t>(plan.workspace_bytes)}, ScalarType::Byte);
  launch_separable(f, plan, workspace.mutable_data_ptr(), scope.stream);
  return z;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> depthwise_separable_conv2d_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight, const OptTensor& depthwise_bias,
    const OptTensor& pointwise_bias, const OptTensor& residual, const OptTensor& output, std::vector<int64_t> stride, std::vector<int64_t> padding,
    std::vector<int64_t> dilation, std::string input_activation, std::string depthwise_activation, std::string pointwise_activation, std::vector<bool> output_mask,
    bool allow_tf32) {
  const SeparableProblem problem = check_separable(
      input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual, stride, padding, dilation, input_activation, depthwise_activation,
      pointwise_activation);
  check_separable_backward(problem, grad_output, input, output, output_mask);
  const ConvGeometry& g = problem.g;
  const library::Activations& act = problem.act;
  const Scope scope(input);
  if (input.scalar_type() == ScalarType::Double || grad_output.numel() == 0)
    return library::separable_backward(
        grad_output, input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual, output, problem.conv, act, output_mask);

  const SeparableOperands operands(problem, input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual);
  const Layout layout = operands.layout;
  const Tensor none = nothing(input);
  Tensor grad = to_dense(grad_output, layout);
  SeparableBackward p{};
  p.f = operands.forward;
  Tensor z2, dresidual = none, dz1;
  if (act.pointwise != Activation::identity)
    z2 = derivative_from_output(act.pointwise) && output ? to_dense(*output, layout) : pre_activation(p.f, input, problem.size, float_products(allow_tf32), scope);
  if (output_mask[5]) {
    // The gradient before the activation is wanted itself: everything else starts from it.
    dresidual = empty_map(input, problem.size, layout);
    launch_activation_gate(
        grad.const_data_ptr(), act.pointwise == Activation::identity ? grad.const_data_ptr() : z2.const_data_ptr(), dresidual.mutable_data_ptr(), grad.numel(),
        p.f.dtype, act.pointwise, scope.device, scope.stream);
    grad = dresidual;
    p.f.pointwise_activation = Activation::identity;
  } else if (act.pointwise != Activation::identity) {
    p.pointwise_z = view(z2, layout);
  }
  p.grad = view(grad, layout);

  const bool inner = output_mask[0] || output_mask[1] || output_mask[3];
  if (inner) {
    dz1 = empty_map(input, {g.n, g.out_channels(), g.oh, g.ow}, layout);
    p.dz1 = mutable_view(dz1, layout);
  }
  Tensor dpw = output_mask[2] ? empty_dense(input, sizes_of(pointwise_weight), input.scalar_type()) : none;
  Tensor dpb = output_mask[4] ? empty_dense(input, {problem.o}, input.scalar_type()) : none;
  if (inner || output_mask[2] || output_mask[4]) {
    const SeparableBackwardPlan plan = plan_separable_backward(p, output_mask[2], output_mask[4], float_products(allow_tf32), scope.device);
    Tensor workspace = empty_dense(input, {static_cast<int64_t>(plan.weight_bytes + plan.partial_bytes)}, ScalarType::Byte);
    launch_separable_backward(
        p, plan, output_mask[2] ? dpw.mutable_data_ptr() : nullptr, output_mask[4] ? dpb.mutable_data_ptr() : nullptr, workspace.mutable_data_ptr(), scope.stream);
    scope.check();
  }

  Tensor dx = output_mask[0] ? empty_map(input, {g.n, g.c, g.h, g.w}, layout) : none;
  const bool sums = output_mask[1] || output_mask[3];
  Tensor ddw = output_mask[1] ? empty_dense(input, sizes_of(depthwise_weight), input.scalar_type()) : none;
  Tensor ddb = output_mask[3] ? empty_dense(input, {g.out_channels()}, input.scalar_type()) : none;
  if (inner) {
    DepthwiseBackward d{g, p.f.dtype, layout, act.input, p.f.x, view(dz1, layout), p.f.depthwise_weight, {}, nullptr, nullptr};
    if (output_mask[0]) d.dx = mutable_view(dx, layout);
    const DepthwiseBackwardPlan plan = plan_depthwise_backward(d, sums, scope.device);
    Tensor partials = empty_dense(input, {static_cast<int64_t>(plan.partial_bytes / sizeof(float))}, ScalarType::Float);
    launch_depthwise_backward(
        d, {output_mask[1] ? ddw.mutable_data_ptr() : nullptr, output_mask[3] ? ddb.mutable_data_ptr() : nullptr, static_cast<float*>(partials.mutable_data_ptr())},
        plan, scope.stream);
    scope.check();
  }
  return {dx, ddw, dpw, ddb, dpb, dresidual};
}

}  // namespace
}  // namespace fastconv::cuda

STABLE_TORCH_LIBRARY_IMPL(fastconv, CUDA, m) { m.impl("depthwise_separable_conv2d_backward", TORCH_BOX(&fastconv::cuda::depthwise_separable_conv2d_backward)); }
