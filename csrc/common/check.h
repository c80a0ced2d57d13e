// Tensor arguments -> checked parameters, with the errors people read. functional.py checks first, in Python's names; these checks
// stand for callers of torch.ops.fastconv. Nothing after them may fail: an exception inside a parallel loop loses its message.
#pragma once
#include "shape.h"
#include "tensor.h"

namespace fastconv {

inline Activation parse_activation(const std::string& name, const char* argument) {
  static const char* const names[] = {"identity", "relu", "relu6", "silu", "gelu", "gelu_tanh", "hardswish"};
  for (int i = 0; i < 7; ++i)
    if (name == names[i]) return static_cast<Activation>(i);
  STD_TORCH_CHECK(false, argument, ": expected one of identity, relu, relu6, silu, gelu, gelu_tanh, hardswish, got '", name, "'");
  return Activation::identity;
}

inline DType parse_dtype(const Tensor& t, const char* argument) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Half: return DType::f16;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Double: return DType::f64;
    default: STD_TORCH_CHECK(false, argument, ": expected float32, float16, bfloat16 or float64"); return DType::f32;
  }
}

inline void check_same_kind(const Tensor& t, const char* argument, const Tensor& input) {
  STD_TORCH_CHECK(t.scalar_type() == input.scalar_type(), argument, ": its dtype differs from the dtype of input");
  STD_TORCH_CHECK(t.device() == input.device(), argument, ": its device differs from the device of input");
}

inline void check_vector(const OptTensor& t, const char* argument, int64_t length, const Tensor& input) {
  if (!t) return;
  check_same_kind(*t, argument, input);
  STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == length, argument, ": expected shape (", length, "), got ", shape_string(*t));
}

inline void check_list(const std::vector<int64_t>& values, const char* argument, size_t length, int64_t least) {
  STD_TORCH_CHECK(values.size() == length, argument, ": expected ", length, " integers, got ", values.size());
  for (int64_t v : values) STD_TORCH_CHECK(v >= least, argument, ": expected values >= ", least, ", got ", v);
}

inline void check_4d(const Tensor& t, const char* argument) {
  STD_TORCH_CHECK(t.dim() == 4, argument, ": expected 4 dimensions (N, C, H, W), got shape ", shape_string(t));
}

inline ConvGeometry check_conv(
    const Tensor& input, const Tensor& weight, const char* weight_name, const OptTensor& bias, const char* bias_name, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  check_4d(input, "input");
  parse_dtype(input, "input");
  check_same_kind(weight, weight_name, input);
  check_list(stride, "stride", 2, 1);
  check_list(padding, "padding", 4, 0);
  check_list(dilation, "dilation", 2, 1);
  const int64_t c = input.size(1);
  STD_TORCH_CHECK(
      weight.dim() == 4 && weight.size(1) == 1 && c > 0 && weight.size(0) > 0 && weight.size(0) % c == 0 && weight.size(2) > 0 && weight.size(3) > 0, weight_name,
      ": expected shape (C*M, 1, Kh, Kw) with C = ", c, " channels of input and M >= 1, got ", shape_string(weight));
  check_vector(bias, bias_name, weight.size(0), input);
  ConvGeometry g;
  g.n = input.size(0), g.c = c, g.h = input.size(2), g.w = input.size(3);
  g.multiplier = weight.size(0) / c;
  g.kh = weight.size(2), g.kw = weight.size(3);
  g.sh = stride[0], g.sw = stride[1], g.dh = dilation[0], g.dw = dilation[1];
  g.pt = padding[0], g.pb = padding[1], g.pl = padding[2], g.pr = padding[3];
  g.oh = conv_out(g.h, g.pt, g.pb, g.dh, g.kh, g.sh);
  g.ow = conv_out(g.w, g.pl, g.pr, g.dw, g.kw, g.sw);
  STD_TORCH_CHECK(
      g.oh > 0 && g.ow > 0, "input: ", shape_string(input), " with its padding is smaller than the dilated kernel (", g.dh * (g.kh - 1) + 1, ", ",
      g.dw * (g.kw - 1) + 1, ")");
  return g;
}

inline int64_t check_pointwise(const Tensor& weight, int64_t in_channels, const Tensor& input) {
  check_same_kind(weight, "pointwise_weight", input);
  const bool flat = weight.dim() == 2, kernel = weight.dim() == 4 && weight.size(2) == 1 && weight.size(3) == 1;
  STD_TORCH_CHECK(
      (flat || kernel) && weight.size(1) == in_channels && weight.size(0) > 0,
      "pointwise_weight: expected shape (O, C*M) or (O, C*M, 1, 1) with C*M = ", in_channels, ", got ", shape_string(weight));
  return weight.size(0);
}

inline void check_map(const OptTensor& t, const char* argument, const std::vector<int64_t>& size, const Tensor& input) {
  if (!t) return;
  check_same_kind(*t, argument, input);
  STD_TORCH_CHECK(sizes_of(*t) == size, argument, ": expected shape ", shape_string(size), ", got ", shape_string(*t));
}

inline void check_mask(const std::vector<bool>& mask, size_t length) {
  STD_TORCH_CHECK(mask.size() == length, "output_mask: expected ", length, " booleans, got ", mask.size());
}

}  // namespace fastconv
