// shift_stitch_max_pool2d, shift_stitch_avg_pool2d and their backward operators on CUDA: check -> plan -> launch.
#include "common/check_pool.h"
#include "entry.h"

namespace fastconv::cuda {
namespace {

using Ints = std::vector<int64_t>;

struct Pooled {
  Tensor out, taps;
};

Pooled max_pool(const Tensor& x, const PoolGeometry& g, Layout layout, double fill, Extra extra, const Scope& scope) {
  Pooled r;
  r.out = empty_map(x, pooled_size(g), layout);
  if (extra != Extra::none) r.taps = empty_map(x, pooled_size(g), layout, extra == Extra::argmax ? ScalarType::Byte : ScalarType::Long);
  if (r.out.numel() == 0) return r;
  const MaxPool p{
      g, parse_dtype(x, "input"), layout, fill, x.const_data_ptr(), r.out.mutable_data_ptr(),
      extra == Extra::argmax ? static_cast<uint8_t*>(r.taps.mutable_data_ptr()) : nullptr,
      extra == Extra::indices ? static_cast<int64_t*>(r.taps.mutable_data_ptr()) : nullptr};
  launch_max_pool(p, plan_max_pool(p, scope.device), scope.stream);
  scope.check();
  return r;
}

Pooled max_pool(
    const Tensor& input, const Ints& kernel_size, const Ints& stride, const Ints& padding, const Ints& dilation, bool ceil_mode, bool fragments, double fill,
    Extra extra) {
  const PoolGeometry g = check_pool_input(input, kernel_size, stride, padding, dilation, ceil_mode, fragments);
  if (extra == Extra::argmax) check_argmax_taps(g);
  const Scope scope(input);
  const Layout layout = suggested_layout(input);
  return max_pool(to_dense(input, layout), g, layout, fill, extra, scope);
}

Tensor shift_stitch_max_pool2d(
    const Tensor& input, Ints kernel_size, Ints stride, Ints padding, Ints dilation, bool ceil_mode, bool fragments, double fill) {
  return max_pool(input, kernel_size, stride, padding, dilation, ceil_mode, fragments, fill, Extra::none).out;
}
std::tuple<Tensor, Tensor> shift_stitch_max_pool2d_argmax(
    const Tensor& input, Ints kernel_size, Ints stride, Ints padding, Ints dilation, bool ceil_mode, bool fragments, double fill) {
  const Pooled r = max_pool(input, kernel_size, stride, padding, dilation, ceil_mode, fragments, fill, Extra::argmax);
  return {r.out, r.taps};
}
std::tuple<Tensor, Tensor> shift_stitch_max_pool2d_indices(
    const Tensor& input, Ints kernel_size, Ints stride, Ints padding, Ints dilation, bool ceil_mode, bool fragments, double fill) {
  const Pooled r = max_pool(input, kernel_size, stride, padding, dilation, ceil_mode, fragments, fill, Extra::indices);
  return {r.out, r.taps};
}

Tensor shift_stitch_max_pool2d_backward(
    const Tensor& grad_output, const OptTensor& input, const OptTensor& argmax, Ints input_size, Ints kernel_size, Ints stride, Ints padding, Ints dilation,
    bool ceil_mode, bool fragments) {
  const PoolGeometry g = check_pool_gradient(grad_output, input_size, kernel_size, stride, padding, dilation, ceil_mode, fragments);
  check_max_pool_source(grad_output, input, argmax, input_size, g);
  const Scope scope(grad_output);
  const Layout layout = suggested_layout(grad_output);
  const Tensor grad = to_dense(grad_output, layout);
  Tensor dx = empty_map(grad_output, input_size, layout);
  if (dx.numel() == 0) return dx;
  // A byte cannot name one of more than 256 taps; such kernels go by the position in the plane.
  const bool bytes = g.kh * g.kw <= 256;
  const Tensor taps = argmax ? to_dense(*argmax, layout) : max_pool(to_dense(*input, layout), g, layout, 0, bytes ? Extra::argmax : Extra::indices, scope).taps;
  const MaxPoolBackward p{
      g, parse_dtype(grad_output, "grad_output"), layout, grad.const_data_ptr(), bytes ? static_cast<const uint8_t*>(taps.const_data_ptr()) : nullptr, nullptr, dx.mutable_data_ptr()};
  const int64_t* indices = bytes ? nullptr : static_cast<const int64_t*>(taps.const_data_ptr());
  launch_max_pool_backward(p, indices, plan_max_pool_backward(p, indices, scope.device), scope.stream);
  scope.check();
  return dx;
}

Tensor avg_pool(const Tensor& from, const PoolGeometry& g, bool count_include_pad, std::optional<int64_t> divisor_override, double fill, bool backward) {
  AvgPool p = check_avg_pool(g, from, count_include_pad, divisor_override, fill, backward);
  const Scope scope(from);
  const Tensor in = to_dense(from, p.layout);
  Tensor out = empty_map(from, avg_pool_size(p), p.layout);
  if (out.numel() == 0) return out;
  p.in = in.const_data_ptr(), p.out = out.mutable_data_ptr();
  launch_avg_pool(p, plan_avg_pool(p, scope.device), scope.stream);
  scope.check();
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
}  // namespace fastconv::cuda

STABLE_TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  m.impl("shift_stitch_max_pool2d", TORCH_BOX(&fastconv::cuda::shift_stitch_max_pool2d));
  m.impl("shift_stitch_max_pool2d_argmax", TORCH_BOX(&fastconv::cuda::shift_stitch_max_pool2d_argmax));
  m.impl("shift_stitch_max_pool2d_indices", TORCH_BOX(&fastconv::cuda::shift_stitch_max_pool2d_indices));
  m.impl("shift_stitch_max_pool2d_backward", TORCH_BOX(&fastconv::cuda::shift_stitch_max_pool2d_backward));
  m.impl("shift_stitch_avg_pool2d", TORCH_BOX(&fastconv::cuda::shift_stitch_avg_pool2d));
  m.impl("shift_stitch_avg_pool2d_backward", TORCH_BOX(&fastconv::cuda::shift_stitch_avg_pool2d_backward));
}
