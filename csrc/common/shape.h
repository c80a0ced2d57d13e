// The only shape logic of the C++ side. fastconv/_meta.py holds its Python twin; a property test holds the two equal.
#pragma once
#include "params.h"

namespace fastconv {

// The kernels include no standard library.
constexpr int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Output length of a convolution along one axis; 0 when the dilated kernel does not fit.
constexpr int64_t conv_out(int64_t size, int64_t pad_low, int64_t pad_high, int64_t dilation, int64_t kernel, int64_t stride) {
  const int64_t span = size + pad_low + pad_high - dilation * (kernel - 1) - 1;
  return span < 0 ? 0 : span / stride + 1;
}

constexpr int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -ceil_div(-a, b); }

// Number of positions of a pool evaluated at stride 1. In ceil mode the dense map reaches to the last window that PyTorch's ceil mode keeps:
// that window starts inside the input or its left padding.
constexpr int64_t dense_length(int64_t size, int64_t padding, int64_t dilation, int64_t kernel, int64_t stride, bool ceil_mode) {
  const int64_t dense = size + 2 * padding - dilation * (kernel - 1);
  if (!ceil_mode) return dense;
  const int64_t reaching = floor_div(dense - 1 + stride - 1, stride), starting = floor_div(size + padding - 1, stride);
  return max64(min64(reaching, starting) * stride + 1, dense);
}

// Rows that fragment `offset` really holds; the rest of its ceil(dense / stride) rows is filled.
constexpr int64_t fragment_length(int64_t dense, int64_t offset, int64_t stride) {
  return offset >= dense ? 0 : (dense - 1 - offset) / stride + 1;
}

}  // namespace fastconv
