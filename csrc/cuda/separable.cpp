// depthwise_separable_conv2d on CUDA: check -> plan -> launch.
#include "common/check_separable.h"
#include "entry.h"
#include "separable_launch.h"

namespace fastconv::cuda {
namespace {

Tensor depthwise_separable_conv2d(
    const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight, const OptTensor& depthwise_bias, const OptTensor& pointwise_bias,
    const OptTensor& residual, std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation, std::string input_activation,
    std::string depthwise_activation, std::string pointwise_activation, bool allow_tf32) {
  const SeparableProblem problem = check_separable(
      input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual, stride, padding, dilation, input_activation, depthwise_activation,
      pointwise_activation);
  if (input.scalar_type() == ScalarType::Double && problem.g.n > 0)
    return library::separable(input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual, problem.conv, problem.act);

  const Scope scope(input);
  SeparableOperands operands(problem, input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual);
  Tensor out = empty_map(input, problem.size, operands.layout);
  if (out.numel() == 0) return out;
  SeparableForward& p = operands.forward;
  p.out = mutable_view(out, operands.layout);
  const SeparablePlan plan = plan_separable(p, float_products(allow_tf32), scope.device);
  Tensor workspace = empty_dense(input, {static_cast<int64_t>(plan.workspace_bytes)}, ScalarType::Byte);
  launch_separable(p, plan, workspace.mutable_data_ptr(), scope.stream);
  scope.check();
  return out;
}

}  // namespace
}  // namespace fastconv::cuda

STABLE_TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  m.impl("depthwise_separable_conv2d", TORCH_BOX(&fastconv::cuda::depthwise_separable_conv2d));
}
