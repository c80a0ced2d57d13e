// Arguments of the pooling operators -> checked geometry. As in check.h: nothing after these may fail.
#pragma once
#include "check.h"
#include "params_pool.h"
#include "shape.h"

namespace fastconv {

// The geometry of a pool of a map of `size` (N, C, H, W), named `argument` in messages.
inline PoolGeometry check_pool(
    const std::vector<int64_t>& size, const char* argument, const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, bool ceil_mode, bool fragments) {
  check_list(kernel_size, "kernel_size", 2, 1);
  check_list(stride, "stride", 2, 1);
  check_list(padding, "padding", 2, 0);
  check_list(dilation, "dilation", 2, 1);
  STD_TORCH_CHECK(
      size.size() == 4 && size[0] >= 0 && size[1] > 0 && size[2] > 0 && size[3] > 0, argument, ": expected (N, C, H, W) with C, H and W of at least 1, got ",
      shape_string(size));
  STD_TORCH_CHECK(
      kernel_size[0] <= INT32_MAX && kernel_size[1] <= INT32_MAX / kernel_size[0], "kernel_size: expected at most 2^31 - 1 taps, got ", shape_string(kernel_size));
  PoolGeometry g;
  g.n = size[0], g.c = size[1], g.h = size[2], g.w = size[3];
  g.kh = kernel_size[0], g.kw = kernel_size[1], g.sh = stride[0], g.sw = stride[1];
  g.ph = padding[0], g.pw = padding[1], g.dh = dilation[0], g.dw = dilation[1];
  g.dense_h = dense_length(g.h, g.ph, g.dh, g.kh, g.sh, ceil_mode);
  g.dense_w = dense_length(g.w, g.pw, g.dw, g.kw, g.sw, ceil_mode);
  STD_TORCH_CHECK(
      g.dense_h > 0 && g.dense_w > 0, argument, ": ", shape_string(size), " with padding ", shape_string(padding), " is smaller than the dilated kernel (",
      g.dh * (g.kh - 1) + 1, ", ", g.dw * (g.kw - 1) + 1, ")");
  g.frag_h = ceil_div(g.dense_h, g.sh), g.frag_w = ceil_div(g.dense_w, g.sw);
  g.fragments = fragments;
  return g;
}

inline PoolGeometry check_pool_input(
    const Tensor& input, const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation, bool ceil_mode, bool fragments) {
  check_4d(input, "input");
  parse_dtype(input, "input");
  return check_pool(sizes_of(input), "input", kernel_size, stride, padding, dilation, ceil_mode, fragments);
}

inline std::vector<int64_t> pooled_size(const PoolGeometry& g) {
  if (g.fragments) return {g.n * g.sh * g.sw, g.c, g.frag_h, g.frag_w};
  return {g.n, g.c, g.dense_h, g.dense_w};
}

inline void check_size(const Tensor& t, const char* argument, const std::vector<int64_t>& size) {
  STD_TORCH_CHECK(sizes_of(t) == size, argument, ": expected shape ", shape_string(size), ", got ", shape_string(t));
}

inline PoolGeometry check_pool_gradient(
    const Tensor& grad_output, const std::vector<int64_t>& input_size, const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, bool ceil_mode, bool fragments) {
  parse_dtype(grad_output, "grad_output");
  const PoolGeometry g = check_pool(input_size, "input_size", kernel_size, stride, padding, dilation, ceil_mode, fragments);
  check_size(grad_output, "grad_output", pooled_size(g));
  return g;
}

// What the forward pass of a max pool gives beside its result.
enum class Extra { none, argmax, indices };

// The argmax is one byte an element.
inline void check_argmax_taps(const PoolGeometry& g) {
  STD_TORCH_CHECK(g.kh * g.kw <= 256, "kernel_size: the argmax holds one of at most 256 taps, got ", g.kh * g.kw, " of (", g.kh, ", ", g.kw, ")");
}

// Where the gradient of a max pool finds the taps that won: the argmax of the forward pass, or its input.
inline void check_max_pool_source(
    const Tensor& grad_output, const OptTensor& input, const OptTensor& argmax, const std::vector<int64_t>& input_size, const PoolGeometry& g) {
  STD_TORCH_CHECK(input || argmax, "argmax: expected the argmax of the forward pass, or else its input to recompute it from; got neither");
  if (argmax) {
    check_argmax_taps(g);
    check_size(*argmax, "argmax", pooled_size(g));
    STD_TORCH_CHECK(argmax->scalar_type() == ScalarType::Byte, "argmax: expected dtype uint8");
  } else {
    check_same_kind(*input, "input", grad_output);
    check_size(*input, "input", input_size);
  }
}

// Forward and backward of an average pool differ in which of the two maps is read: one problem, whose pointers are still to be set.
inline AvgPool check_avg_pool(
    const PoolGeometry& g, const Tensor& from, bool count_include_pad, std::optional<int64_t> divisor_override, double fill, bool backward) {
  STD_TORCH_CHECK(!divisor_override || *divisor_override != 0, "divisor_override: expected a divisor other than 0, got 0");
  return {g, parse_dtype(from, backward ? "grad_output" : "input"), suggested_layout(from), backward, count_include_pad, divisor_override.value_or(0), fill, nullptr, nullptr};
}
inline std::vector<int64_t> avg_pool_size(const AvgPool& p) {
  return p.backward ? std::vector<int64_t>{p.g.n, p.g.c, p.g.h, p.g.w} : pooled_size(p.g);
}

// ---- shift and stitch ------------------------------------------------------------------------------------------------------------------

// The map and its fragments; pointers and fill are still to be set.
inline ShiftStitch check_shift(const Tensor& input, const std::vector<int64_t>& stride) {
  check_4d(input, "input");
  check_list(stride, "stride", 2, 1);
  const int64_t h = input.size(2), w = input.size(3), sy = stride[0], sx = stride[1];
  return {{input.size(1), ceil_div(h, sy), ceil_div(w, sx), sy, sx, suggested_layout(input)}, input.size(0), h, w, static_cast<int>(input.element_size()), nullptr, nullptr, 0};
}

inline ShiftStitch check_stitch(const Tensor& input, const std::vector<int64_t>& stride, const std::vector<int64_t>& size) {
  check_4d(input, "input");
  check_list(stride, "stride", 2, 1);
  check_list(size, "size", 2, 0);
  const int64_t sy = stride[0], sx = stride[1], u = input.size(2), v = input.size(3);
  STD_TORCH_CHECK(input.size(0) % (sy * sx) == 0, "input: expected a batch that is a multiple of ", sy, "*", sx, " fragments, got shape ", shape_string(input));
  STD_TORCH_CHECK(
      size[0] <= u * sy && size[1] <= v * sx, "size: expected at most (", u * sy, ", ", v * sx, "), which the fragments cover, got ", shape_string(size));
  return {{input.size(1), u, v, sy, sx, suggested_layout(input)}, input.size(0) / (sy * sx), size[0], size[1], static_cast<int>(input.element_size()), nullptr, nullptr, 0};
}

}  // namespace fastconv
