// depthwise_separable_conv2d on the CPU: check -> plan -> parallel loop -> kernels/separable.cpp.
#include "common/check.h"
#include "common/library_path.h"
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
  const ConvGeometry g = check_conv(input, depthwise_weight, "depthwise_weight", depthwise_bias, "depthwise_bias", stride, padding, dilation);
  const int64_t o = check_pointwise(pointwise_weight, g.out_channels(), input);
  check_vector(pointwise_bias, "pointwise_bias", o, input);
  const std::vector<int64_t> size{g.n, o, g.oh, g.ow};
  check_map(residual, "residual", size, input);
  const library::Activations act{
      parse_activation(input_activation, "input_activation"), parse_activation(depthwise_activation, "depthwise_activation"),
      parse_activation(pointwise_activation, "pointwise_activation")};
  const Layout layout = suggested_layout(input);
  if (input.scalar_type() == ScalarType::Double && g.n > 0)
    return library::separable(input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual, {stride, padding, dilation}, act);

  const Tensor x = to_dense(input, layout), dw = to_dense(depthwise_weight), pw = to_dense(pointwise_weight);
  const OptTensor db = to_dense(depthwise_bias), pb = to_dense(pointwise_bias), res = to_dense(residual, layout);
  Tensor out = empty_map(input, size, layout);
  if (out.numel() == 0) return out;
  const SeparableForward p{
      g, o, parse_dtype(input, "input"), layout, act.input, act.depthwise, act.pointwise, view(x, layout), dw.const_data_ptr(), data_or_null(db),
      pw.const_data_ptr(), data_or_null(pb), view(res, layout), mutable_view(out, layout)};
  run_separable_forward(p);
  return out;
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("depthwise_separable_conv2d", TORCH_BOX(&fastconv::depthwise_separable_conv2d));
}
