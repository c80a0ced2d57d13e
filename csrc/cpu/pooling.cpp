// shift_stitch_max_pool2d, shift_stitch_avg_pool2d and their backward operators on the CPU: check -> plan -> parallel loop -> kernels/pooling_*.cpp.
#include "common/check_pool.h"
#include "isa.h"
#include "parallel.h"

namespace fastconv {
namespace {

using Ints = std::vector<int64_t>;

// Maps this small are done before a second thread is awake.
constexpr int64_t kSerialElements = 1 << 14;

int threads_for(int64_t elements) { return elements <= kSerialElements ? 1 : num_threads(); }

template <class F>
void run(const PoolPlan& plan, int threads, const F& f) {
  if (threads == 1)
    f(int64_t(0), plan.items, thread_scratch().get(plan.scratch_bytes));
  else
    for_each_run(plan.items, plan.scratch_bytes, f);
}

std::tuple<Tensor, Tensor> max_pool(
    const Tensor& input, const Ints& kernel_size, const Ints& stride, const Ints& padding, const Ints& dilation, bool ceil_mode, bool fragments, double fill,
    Extra extra) {
  const PoolGeometry g = check_pool_input(input, kernel_size, stride, padding, dilation, ceil_mode, fragments);
  if (extra == Extra::argmax) check_argmax_taps(g);
  const Layout layout = suggested_layout(input);
  const Tensor x = to_dense(input, layout);
  Tensor out = empty_map(input, pooled_size(g), layout), taps;
  if (extra != Extra::none) taps = empty_map(input, pooled_size(g), layout, extra == Extra::argmax ? ScalarType::Byte : ScalarType::Long);
  if (out.numel() == 0) return {out, taps};
  const MaxPool p{
      g, parse_dtype(input, "input"), layout, fill, x.const_data_ptr(), out.mutable_data_ptr(),
      extra == Extra::argmax ? static_cast<uint8_t*>(taps.mutable_data_ptr()) : nullptr,
      extra == Extra::indices ? static_cast<int64_t*>(taps.mutable_data_ptr()) : nullptr};
  const Kernels& k = kernels();
  const int threads = threads_for(out.numel());
  const PoolPlan plan = k.max_pool_plan(p, threads);
  run(plan, threads, [&](int64_t begin, int64_t end, void* scratch) { k.max_pool(p, plan, begin, end, scratch); });
  return {out, taps};
}

Tensor shift_stitch_max_pool2d(
    const Tensor& input, Ints kernel_size, Ints stride, Ints padding, Ints dilation, bool ceil_mode, bool fragments, double fill) {
  return std::get<0>(max_pool(input, kernel_size, stride, padding, dilation, ceil_mode, fragments, fill, Extra::none));
}
std::tuple<Tensor, Tensor> shift_stitch_max_pool2d_argmax(
    const Tensor& input, Ints kernel_size, Ints stride, Ints padding, Ints dilation, bool ceil_mode, bool fragments, double fill) {
  return max_pool(input, kernel_size, stride, padding, dilation, ceil_mode, fragments, fill, Extra::argmax);
}
std::tuple<Tensor, Tensor> shift_stitch_max_pool2d_indices(
    const Tensor& input, Ints kernel_size, Ints stride, Ints padding, Ints dilation, bool ceil_mode, bool fragments, double fill) {
  return max_pool(input, kernel_size, stride, padding, dilation, ceil_mode, fragments, fill, Extra::indices);
}

Tensor shift_stitch_max_pool2d_backward(
    const Tensor& grad_output, const OptTensor& input, const OptTensor& argmax, Ints input_size, Ints kernel_size, Ints stride, Ints padding, Ints dilation,
    bool ceil_mode, bool fragments) {
  const PoolGeometry g = check_pool_gradient(grad_output, input_size, kernel_size, stride, padding, dilation, ceil_mode, fragments);
  check_max_pool_source(grad_output, input, argmax, input_size, g);
  const Layout layout = suggested_layout(grad_output);
  const Tensor grad = to_dense(grad_output, layout);
  const OptTensor taps = to_dense(argmax, layout), x = argmax ? OptTensor() : to_dense(input, layout);
  Tensor dx = empty_map(grad_output, input_size, layout);
  if (dx.numel() == 0) return dx;
  const MaxPoolBackward p{g, parse_dtype(grad_output, "grad_output"), layout, grad.const_data_ptr(), static_cast<const uint8_t*>(data_or_null(taps)), data_or_null(x), dx.mutable_data_ptr()};
  const Kernels& k = kernels();
  const int threads = threads_for(dx.numel());
  const PoolPlan plan = k.max_pool_backward_plan(p, threads);
  run(plan, threads, [&](int64_t begin, int64_t end, void* scratch) { k.max_pool_backward(p, plan, begin, end, scratch); });
  return dx;
}

Tensor avg_pool(const Tensor& from, const PoolGeometry& g, bool count_include_pad, std::optional<int64_t> divisor_override, double fill, bool backward) {
  AvgPool p = check_avg_pool(g, from, count_include_pad, divisor_override, fill, backward);
  const Tensor in = to_dense(from, p.layout);
  Tensor out = empty_map(from, avg_pool_size(p), p.layout);
  if (out.numel() == 0) return out;
  p.in = in.const_data_ptr(), p.out = out.mutable_data_ptr();
  const Kernels& k = kernels();
  const int threads = threads_for(out.numel());
  const PoolPlan plan = k.avg_pool_plan(p, threads);
  run(plan, threads, [&](int64_t begin, int64_t end, void* scratch) { k.avg_pool(p, plan, begin, end, scratch); });
  return out;
}

Tensor shift_stitch_avg_pool2d(
    const Tensor& input, Ints kernel_size, Ints stride, Ints padding, Ints dilation, bool ceil_mode, bool count_include_pad,
    std::optional<int64_t> divisor_override, bool fragments, double fill) {
  const PoolGeometry g = check_pool_input(input, kernel_size, stride, padding, dilation, ceil_mode, fragments);
  return avg_pool(input, g, count_include_pad, divisor_override, fill, false);
}

Tensor shift_stitch_avg_pool2d_backward(
    const Tensor& grad_output, Ints input_size, Ints kernel_size, Ints stride, Ints padding, Ints dilation, bool ceil_mode, bool count_include_pad,
    std::optional<int64_t> divisor_override, bool fragments) {
  const PoolGeometry g = check_pool_gradient(grad_output, input_size, kernel_size, stride, padding, dilation, ceil_mode, fragments);
  return avg_pool(grad_output, g, count_include_pad, divisor_override, 0, true);
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("shift_stitch_max_pool2d", TORCH_BOX(&fastconv::shift_stitch_max_pool2d));
  m.impl("shift_stitch_max_pool2d_argmax", TORCH_BOX(&fastconv::shift_stitch_max_pool2d_argmax));
  m.impl("shift_stitch_max_pool2d_indices", TORCH_BOX(&fastconv::shift_stitch_max_pool2d_indices));
  m.impl("shift_stitch_max_pool2d_backward", TORCH_BOX(&fastconv::shift_stitch_max_pool2d_backward));
  m.impl("shift_stitch_avg_pool2d", TORCH_BOX(&fastconv::shift_stitch_avg_pool2d));
  m.impl("shift_stitch_avg_pool2d_backward", TORCH_BOX(&fastconv::shift_stitch_avg_pool2d_backward));
}
