// depthwise_separable_conv2d on CUDA: check -> plan -> launch.
#include "common/check_separable.h"
#include "common/cost_choice.h"
#include "entry.h"
#include "separable_launch.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <string>

namespace fastconv::cuda {
namespace {

// Each choice of the library once, where the environment asks for it.
void log_library(const SeparableForward& p, FloatProducts products, const SeparableChoice& choice) {
  static const char* const asked = std::getenv("FASTCONV_LOG");
  if (!asked || std::string(asked) != "1") return;
  static std::mutex mutex;
  static std::set<std::string> said;
  const std::string line = describe_choice(p, products, choice);
  const std::lock_guard<std::mutex> lock(mutex);
  if (said.insert(line).second) std::fprintf(stderr, "fastconv: %s\n", line.c_str());
}

// The depthwise kernel, its result in memory, and the library's product.
Tensor through_memory(const SeparableOperands& operands, const Tensor& input, const Scope& scope) {
  const SeparableForward& p = operands.forward;
  Tensor m = empty_map(input, {p.g.n, p.g.out_channels(), p.g.oh, p.g.ow}, p.layout);
  const DepthwiseForward d{
      p.g, p.dtype, p.layout, p.input_activation, p.depthwise_activation, p.x, p.depthwise_weight, p.depthwise_bias, mutable_view(m, p.layout)};
  launch_depthwise(d, plan_depthwise(d, scope.device), scope.stream);
  scope.check();
  const Tensor out = library::pointwise(m, operands.pointwise_weight, operands.pointwise_bias, operands.residual, p.pointwise_activation, library_rows(p));
  return to_dense(out, p.layout);
}

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
  SeparableForward& p = operands.forward;
  const FloatProducts products = float_products(allow_tf32);
  if (problem.g.n > 0) {
    const SeparableChoice choice = choose_separable(p, products, scope.device);
    if (choice.library) {
      log_library(p, products, choice);
      return through_memory(operands, input, scope);
    }
  }
  Tensor out = empty_map(input, problem.size, operands.layout);
  if (out.numel() == 0) return out;
  p.out = mutable_view(out, operands.layout);
  const SeparablePlan plan = plan_separable(p, products, scope.device);
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
