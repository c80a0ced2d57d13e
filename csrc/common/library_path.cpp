#include "library_path.h"

namespace fastconv::library {
namespace {

using torch::headeronly::HeaderOnlyArrayRef;
using torch::stable::detail::from;
using torch::stable::detail::to;
using IntList = HeaderOnlyArrayRef<int64_t>;

template <size_t Outputs = 1, class... Args>
std::array<Tensor, Outputs> call(const char* op, const char* overload, const Args&... args) {
  std::array<StableIValue, (sizeof...(Args) > Outputs ? sizeof...(Args) : Outputs)> stack{from(args)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION));
  std::array<Tensor, Outputs> out;
  for (size_t i = 0; i < Outputs; ++i) out[i] = to<Tensor>(stack[i]);
  return out;
}

IntList list(const std::vector<int64_t>& v) { return IntList(v.data(), v.size()); }

bool symmetric(const std::vector<int64_t>& p) { return p[0] == p[1] && p[2] == p[3]; }

Tensor pad(const Tensor& x, const std::vector<int64_t>& p) {
  const std::vector<int64_t> wide{p[2], p[3], p[0], p[1]};
  return torch::stable::pad(x, list(wide), "constant", 0.0);
}

// conv2d with 4-sided padding; asymmetric padding is a copy of the input.
Tensor convolution(const Tensor& x, const Tensor& weight, const OptTensor& bias, const ConvArgs& a, int64_t groups) {
  const bool even = symmetric(a.padding);
  const std::vector<int64_t> padding = even ? std::vector<int64_t>{a.padding[0], a.padding[2]} : std::vector<int64_t>{0, 0}, none{0, 0};
  return call("aten::convolution", "", even ? x : pad(x, a.padding), weight, bias, list(a.stride), list(padding), list(a.dilation), false, list(none), groups)[0];
}

std::array<Tensor, 3> convolution_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight, const ConvArgs& a, int64_t groups, bool want_x, bool want_weight, bool want_bias) {
  const bool even = symmetric(a.padding);
  const std::vector<int64_t> padding = even ? std::vector<int64_t>{a.padding[0], a.padding[2]} : std::vector<int64_t>{0, 0}, none{0, 0};
  const std::vector<int64_t> bias_size{weight.size(0)};
  const bool wanted[3] = {want_x, want_weight, want_bias};
  const HeaderOnlyArrayRef<bool> mask(wanted, 3);
  auto grads = call<3>(
      "aten::convolution_backward", "", grad, even ? x : pad(x, a.padding), weight, std::optional<IntList>(list(bias_size)), list(a.stride), list(padding),
      list(a.dilation), false, list(none), groups, mask);
  if (!even && want_x) {
    grads[0] = torch::stable::narrow(grads[0], 2, a.padding[0], x.size(2));
    grads[0] = torch::stable::narrow(grads[0], 3, a.padding[2], x.size(3));
  }
  return grads;
}

// The dispatcher shim takes no Scalar arguments; these forms have none.
Tensor add(const Tensor& a, const Tensor& b) { return torch::stable::subtract(a, b, -1.0); }
Tensor scalar(double value, const Tensor& like) { return torch::stable::full(std::vector<int64_t>{}, value, like.scalar_type(), std::nullopt, like.device()); }
Tensor keep_where(const Tensor& condition, const Tensor& grad) { return call("aten::where", "self", condition, grad, scalar(0.0, grad))[0]; }

ConvArgs pointwise_args() { return {{1, 1}, {0, 0, 0, 0}, {1, 1}}; }
Tensor as_kernel(const Tensor& weight) {
  return weight.dim() == 4 ? weight : torch::stable::view(to_dense(weight), std::vector<int64_t>{weight.size(0), weight.size(1), 1, 1});
}
Tensor dense_like(const Tensor& t, const Tensor& like) { return to_dense(t, suggested_layout(like)); }

}  // namespace

Tensor activate(const Tensor& x, Activation a) {
  switch (a) {
    case Activation::identity: return x;
    case Activation::relu: return call("aten::relu", "", x)[0];
    case Activation::relu6: return call("aten::relu6", "", x)[0];
    case Activation::silu: return call("aten::silu", "", x)[0];
    case Activation::gelu: return call("aten::gelu", "", x, std::string("none"))[0];
    case Activation::gelu_tanh: return call("aten::gelu", "", x, std::string("tanh"))[0];
    case Activation::hardswish: return call("aten::hardswish", "", x)[0];
  }
  return x;
}

Tensor activate_backward(const Tensor& grad, const Tensor& x, Activation a) {
  switch (a) {
    case Activation::identity: return grad;
    case Activation::relu: return keep_where(call("aten::gt", "Tensor", x, scalar(0.0, x))[0], grad);
    case Activation::relu6: {
      const Tensor above = call("aten::gt", "Tensor", x, scalar(0.0, x))[0], below = call("aten::lt", "Tensor", x, scalar(6.0, x))[0];
      return keep_where(call("aten::logical_and", "", above, below)[0], grad);
    }
    case Activation::silu: return call("aten::silu_backward", "", grad, x)[0];
    case Activation::gelu: return call("aten::gelu_backward", "", grad, x, std::string("none"))[0];
    case Activation::gelu_tanh: return call("aten::gelu_backward", "", grad, x, std::string("tanh"))[0];
    case Activation::hardswish: return call("aten::hardswish_backward", "", grad, x)[0];
  }
  return grad;
}

Tensor depthwise(const Tensor& input, const Tensor& weight, const OptTensor& bias, const ConvArgs& args, Activation activation) {
  return dense_like(activate(convolution(input, weight, bias, args, input.size(1)), activation), input);
}

std::tuple<Tensor, Tensor, Tensor> depthwise_backward(
    const Tensor& grad, const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& output, const ConvArgs& args, Activation activation,
    const std::vector<bool>& mask) {
  Tensor dz = grad;
  if (activation != Activation::identity)
    dz = activate_backward(grad, derivative_from_output(activation) && output ? *output : convolution(input, weight, bias, args, input.size(1)), activation);
  auto grads = convolution_backward(dz, input, weight, args, input.size(1), mask[0], mask[1], mask[2]);
  return {mask[0] ? dense_like(grads[0], input) : nothing(input), mask[1] ? to_dense(grads[1]) : nothing(input), mask[2] ? to_dense(grads[2]) : nothing(input)};
}

Tensor separable(
    const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight, const OptTensor& depthwise_bias, const OptTensor& pointwise_bias,
    const OptTensor& residual, const ConvArgs& args, const Activations& act) {
  const Tensor m = activate(convolution(activate(input, act.input), depthwise_weight, depthwise_bias, args, input.size(1)), act.depthwise);
  return dense_like(pointwise(m, pointwise_weight, pointwise_bias, residual, act.pointwise, suggested_layout(m) == Layout::channels_last), input);
}

Tensor pointwise(const Tensor& m, const Tensor& weight, const OptTensor& bias, const OptTensor& residual, Activation activation, bool rows) {
  Tensor z;
  if (rows) {
    const std::vector<int64_t> channels_inside{0, 2, 3, 1}, channels_second{0, 3, 1, 2}, flat{weight.size(0), weight.size(1)};
    const Tensor product = call("aten::linear", "", call("aten::permute", "", m, list(channels_inside))[0], torch::stable::view(to_dense(weight), flat), bias)[0];
    z = call("aten::permute", "", product, list(channels_second))[0];
  } else {
    z = convolution(m, as_kernel(weight), bias, pointwise_args(), 1);
  }
  if (residual) z = add(z, *residual);
  return activate(z, activation);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> separable_backward(
    const Tensor& grad, const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight, const OptTensor& depthwise_bias,
    const OptTensor& pointwise_bias, const OptTensor& residual, const OptTensor& output, const ConvArgs& args, const Activations& act,
    const std::vector<bool>& mask) {
  const Tensor x = activate(input, act.input), kernel = as_kernel(pointwise_weight);
  const Tensor z1 = convolution(x, depthwise_weight, depthwise_bias, args, input.size(1)), m = activate(z1, act.depthwise);
  Tensor dz2 = grad;
  if (act.pointwise != Activation::identity) {
    Tensor z2;
    if (derivative_from_output(act.pointwise) && output) {
      z2 = *output;
    } else {
      z2 = convolution(m, kernel, pointwise_bias, pointwise_args(), 1);
      if (residual) z2 = add(z2, *residual);
    }
    dz2 = activate_backward(grad, z2, act.pointwise);
  }
  const bool want_dz1 = mask[0] || mask[1] || mask[3];
  auto outer = convolution_backward(dz2, m, kernel, pointwise_args(), 1, want_dz1, mask[2], mask[4]);
  std::array<Tensor, 3> inner;
  if (want_dz1) inner = convolution_backward(activate_backward(outer[0], z1, act.depthwise), x, depthwise_weight, args, input.size(1), mask[0], mask[1], mask[3]);
  const Tensor none = nothing(input);
  return {
      mask[0] ? dense_like(activate_backward(inner[0], input, act.input), input) : none,
      mask[1] ? to_dense(inner[1]) : none,
      mask[2] ? torch::stable::view(to_dense(outer[1]), sizes_of(pointwise_weight)) : none,
      mask[3] ? to_dense(inner[2]) : none,
      mask[4] ? to_dense(outer[2]) : none,
      // The gradient of an operator may not alias its inputs.
      mask[5] ? (act.pointwise == Activation::identity ? torch::stable::clone(dense_like(dz2, input)) : dense_like(dz2, input)) : none};
}

}  // namespace fastconv::library
