// depthwise_conv2d on the CPU: check -> plan -> parallel loop -> kernels/depthwise.cpp.
#include "common/check.h"
#include "common/library_path.h"
#include "forward.h"
#include "isa.h"
#include "parallel.h"

namespace fastconv {

void run_depthwise_forward(const DepthwiseForward& p) {
  const Kernels& k = kernels();
  const DepthwisePlan plan = k.depthwise_plan(p, num_threads());
  void* packed = call_scratch().get(plan.packed_bytes);
  k.depthwise_pack(p, plan, packed);
  for_each_run(plan.items, plan.scratch_bytes, [&](int64_t begin, int64_t end, void* scratch) { k.depthwise_forward(p, plan, packed, begin, end, scratch); });
}

namespace {

Tensor depthwise_conv2d(
    const Tensor& input, const Tensor& weight, const OptTensor& bias, std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
    std::string activation) {
  const ConvGeometry g = check_conv(input, weight, "weight", bias, "bias", stride, padding, dilation);
  const Activation act = parse_activation(activation, "activation");
  const Layout layout = suggested_layout(input);
  if (input.scalar_type() == ScalarType::Double && g.n > 0) return library::depthwise(input, weight, bias, {stride, padding, dilation}, act);

  const Tensor x = to_dense(input, layout), w = to_dense(weight);
  const OptTensor b = to_dense(bias);
  Tensor out = empty_map(input, {g.n, g.out_channels(), g.oh, g.ow}, layout);
  if (out.numel() == 0) return out;
  const DepthwiseForward p{
      g, parse_dtype(input, "input"), layout, Activation::identity, act, view(x, layout), w.const_data_ptr(), data_or_null(b), mutable_view(out, layout)};
  run_depthwise_forward(p);
  return out;
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&fastconv::depthwise_conv2d));
}
