// depthwise_conv2d_backward on the CPU: check -> plan -> parallel loops -> kernels/depthwise_backward*.cpp.
#include "depthwise_backward.h"

#include "common/check.h"
#include "common/library_path.h"
#include "forward.h"
#include "isa.h"
#include "parallel.h"

namespace fastconv {

void run_depthwise_backward(const DepthwiseBackward& p, const ActivationGate& gate) {
  // Its own: a caller may hold call_scratch() while this runs as one of its phases.
  static thread_local Scratch partials_scratch;
  const Kernels& k = kernels();
  const DepthwiseBackwardPlan plan = k.depthwise_backward_plan(p, gate);
  void* partials = partials_scratch.get(plan.partial_bytes);
  for_each_run(plan.items, plan.scratch_bytes, [&](int64_t begin, int64_t end, void* scratch) { k.depthwise_backward(p, gate, plan, begin, end, partials, scratch); });
  if (p.dw || p.db) for_each_run(plan.reduce_items, 0, [&](int64_t begin, int64_t end, void*) { k.depthwise_backward_reduce(p, plan, begin, end, partials); });
}

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
  const library::ConvArgs args{stride, padding, dilation};
  if (dtype == DType::f64) return library::depthwise_backward(grad_output, input, weight, bias, output, args, act, output_mask);

  const Layout layout = suggested_layout(input);
  const Tensor x = to_dense(input, layout), w = to_dense(weight), grad = to_dense(grad_output, layout);
  Tensor z;
  ActivationGate gate = {act, {}};
  if (act != Activation::identity) {
    if (derivative_from_output(act) && output) {
      z = to_dense(*output, layout);
    } else {
      const OptTensor b = to_dense(bias);
      z = empty_map(input, size, layout);
      if (z.numel() > 0)
        run_depthwise_forward(
            {g, dtype, layout, Activation::identity, Activation::identity, view(x, layout), w.const_data_ptr(), data_or_null(b), mutable_view(z, layout)});
    }
    gate.z = view(z, layout);
  }
  const Tensor none = nothing(input);
  Tensor dx = output_mask[0] ? empty_map(input, {g.n, g.c, g.h, g.w}, layout) : none;
  Tensor dw = output_mask[1] ? empty_dense(input, sizes_of(weight), ScalarType::Float) : none;
  Tensor db = output_mask[2] ? empty_dense(input, {g.out_channels()}, ScalarType::Float) : none;
  DepthwiseBackward p{g, dtype, layout, Activation::identity, view(x, layout), view(grad, layout), w.const_data_ptr(), {}, nullptr, nullptr};
  if (output_mask[0] && dx.numel() > 0) p.dx = mutable_view(dx, layout);
  if (output_mask[1]) p.dw = static_cast<float*>(dw.mutable_data_ptr());
  if (output_mask[2]) p.db = static_cast<float*>(db.mutable_data_ptr());
  if (p.dx.data || p.dw || p.db) run_depthwise_backward(p, gate);
  const ScalarType wanted = weight.scalar_type();
  return {dx, output_mask[1] ? torch::stable::to(dw, wanted) : none, output_mask[2] ? torch::stable::to(db, wanted) : none};
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) { m.impl("depthwise_conv2d_backward", TORCH_BOX(&fastconv::depthwise_conv2d_backward)); }
