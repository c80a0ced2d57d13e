// depthwise_separable_conv2d_backward on the CPU: the pointwise half block by block (kernels/separable_backward.cpp), then the depthwise backward.
#include "common/check_separable.h"
#include "depthwise_backward.h"
#include "forward.h"
#include "isa.h"
#include "parallel.h"

namespace fastconv {
namespace {

void run_pointwise_half(const SeparableBackward& p) {
  const Kernels& k = kernels();
  const SeparableBackwardPlan plan = k.separable_backward_plan(p, num_threads());
  char* at = static_cast<char*>(call_scratch().get(round_up(plan.packed_bytes, 64) + round_up(plan.grad_bytes, 64) + plan.middle_bytes));
  SeparableBackwardMemory memory;
  memory.packed = at;
  at += round_up(plan.packed_bytes, 64);
  memory.grads = reinterpret_cast<float*>(at);
  at += round_up(plan.grad_bytes, 64);
  memory.middle = reinterpret_cast<float*>(at);
  for_each_run(plan.pack_items, 0, [&](int64_t begin, int64_t end, void*) { k.separable_backward_pack(p, plan, begin, end, memory.packed); });
  for (int64_t first = 0; first < plan.tile_items; first += plan.block_tiles) {
    const int64_t slots = std::min(plan.block_tiles, plan.tile_items - first);
    for_each_run(slots, plan.scratch_bytes, [&](int64_t begin, int64_t end, void* scratch) {
      k.separable_backward_tiles(p, plan, memory, first, begin, end, scratch);
    });
    if (p.dpointwise || p.dbias)
      for_each_run(plan.weight_items, 0, [&](int64_t begin, int64_t end, void*) { k.separable_backward_weights(p, plan, memory, first, slots, begin, end); });
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> depthwise_separable_conv2d_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight, const OptTensor& depthwise_bias,
    const OptTensor& pointwise_bias, const OptTensor& residual, const OptTensor& output, std::vector<int64_t> stride, std::vector<int64_t> padding,
    std::vector<int64_t> dilation, std::string input_activation, std::string depthwise_activation, std::string pointwise_activation, std::vector<bool> output_mask,
    bool /*allow_tf32*/) {
  const SeparableProblem problem = check_separable(
      input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual, stride, padding, dilation, input_activation, depthwise_activation,
      pointwise_activation);
  check_separable_backward(problem, grad_output, input, output, output_mask);
  const ConvGeometry& g = problem.g;
  const library::Activations& act = problem.act;
  if (input.scalar_type() == ScalarType::Double)
    return library::separable_backward(
        grad_output, input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual, output, problem.conv, act, output_mask);

  SeparableOperands operands(problem, input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual);
  SeparableForward& f = operands.forward;
  const Layout layout = operands.layout;
  const Tensor grad = to_dense(grad_output, layout);
  const Tensor none = nothing(input);
  const ScalarType type = input.scalar_type();
  const Tensor dx = output_mask[0] ? empty_map(input, {g.n, g.c, g.h, g.w}, layout) : none;
  const Tensor ddw = output_mask[1] ? empty_dense(input, sizes_of(depthwise_weight), ScalarType::Float) : none;
  const Tensor dpw = output_mask[2] ? empty_dense(input, sizes_of(pointwise_weight), ScalarType::Float) : none;
  const Tensor ddb = output_mask[3] ? empty_dense(input, {g.out_channels()}, ScalarType::Float) : none;
  const Tensor dpb = output_mask[4] ? empty_dense(input, {problem.o}, ScalarType::Float) : none;
  const bool inner = output_mask[0] || output_mask[1] || output_mask[3];
  const auto floats = [](const Tensor& t, bool wanted) { return wanted ? static_cast<float*>(t.mutable_data_ptr()) : nullptr; };

  Tensor dres = none, dz1, z2;
  if (grad.numel() == 0) {
    for (const Tensor* t : {&ddw, &dpw, &ddb, &dpb}) {
      Tensor zeroed = *t;
      torch::stable::zero_(zeroed);
    }
    if (output_mask[5]) dres = empty_map(input, problem.size, layout);
  } else {
    if (output_mask[5]) dres = empty_map(input, problem.size, layout);
    SeparableBackward p{f, view(grad, layout), {}, {}, {}, floats(dpw, output_mask[2]), floats(dpb, output_mask[4])};
    if (act.pointwise != Activation::identity) {
      if (derivative_from_output(act.pointwise) && output) {
        z2 = to_dense(*output, layout);
      } else {
        z2 = empty_map(input, problem.size, layout);
        f.pointwise_activation = Activation::identity;
        f.out = mutable_view(z2, layout);
        run_separable_forward(f);
        f.pointwise_activation = act.pointwise;
      }
      p.pointwise_z = view(z2, layout);
    }
    if (inner) {
      dz1 = empty_map(input, {g.n, g.out_channels(), g.oh, g.ow}, layout);
      p.dz1 = mutable_view(dz1, layout);
    }
    if (output_mask[5]) p.dresidual = mutable_view(dres, layout);
    run_pointwise_half(p);
    if (inner) {
      DepthwiseBackward d{g, f.dtype, layout, act.input, f.x, view(dz1, layout), f.depthwise_weight, {}, floats(ddw, output_mask[1]), floats(ddb, output_mask[3])};
      if (output_mask[0] && dx.numel() > 0) d.dx = mutable_view(dx, layout);
      if (d.dx.data || d.dw || d.db) run_depthwise_backward(d);
    }
  }
  const auto typed = [&](const Tensor& t, bool wanted) { return wanted ? torch::stable::to(t, type) : none; };
  return {dx, typed(ddw, output_mask[1]), typed(dpw, output_mask[2]), typed(ddb, output_mask[3]), typed(dpb, output_mask[4]), dres};
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) { m.impl("depthwise_separable_conv2d_backward", TORCH_BOX(&fastconv::depthwise_separable_conv2d_backward)); }
