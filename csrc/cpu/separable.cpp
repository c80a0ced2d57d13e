// depthwise_separable_conv2d on the CPU: check -> plan -> parallel loop -> kernels/separable.cpp.
#include "common/check_separable.h"
#include "forward.h"
#include "isa.h"
#include "parallel.h"

namespace fastconv {

void run_separable_forward(const SeparableForward& p) {
  const Kernels& k = kernels();
  const SeparablePlan plan = k.separable_plan(p, num_threads());
  void* packed = call_scratch().get(plan.packed_bytes);
  for_each_run(plan.pack_items, 0, [&](int64_t begin, int64_t end, void*) { k.separable_pack(p, plan, begin, end, packed); });
  for_each_run(plan.items, plan.scratch_bytes, [&](int64_t begin, int64_t end, void* scratch) { k.separable_forward(p, plan, packed, begin, end, scratch); });
}

namespace {

Tensor depthwise_separable_conv2d(
    const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight, const OptTensor& depthwise_bias, const OptTensor& pointwise_bias,
    const OptTensor& residual, std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation, std::string input_activation,
    std::string depthwise_activation, std::string pointwise_activation, bool /*allow_tf32*/) {
  const SeparableProblem problem = check_separable(
      input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual, stride, padding, dilation, input_activation, depthwise_activation,
      pointwise_activation);
  if (input.scalar_type() == ScalarType::Double && problem.g.n > 0)
    return library::separable(input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual, problem.conv, problem.act);

  SeparableOperands operands(problem, input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual);
  Tensor out = empty_map(input, problem.size, operands.layout);
  if (out.numel() == 0) return out;
  SeparableForward& p = operands.forward;
  p.out = mutable_view(out, operands.layout);
  run_separable_forward(p);
  return out;
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("depthwise_separable_conv2d", TORCH_BOX(&fastconv::depthwise_separable_conv2d));
}
