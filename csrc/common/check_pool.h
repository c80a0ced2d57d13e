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

inline std::vector<int64_t> pooled_size(const PoolGeometry& g) {
  if (g.fragments) return {g.n * g.sh * g.sw, g.c, g.frag_h, g.frag_w};
  return {g.n, g.c, g.dense_h, g.dense_w};
}

inline void check_size(const Tensor& t, const char* argument, const std::vector<int64_t>& size) {
  STD_TORCH_CHECK(sizes_of(t) == size, argument, ": expected shape ", shape_string(size), ", got ", shape_string(t));
}

// The argmax is one byte an element.
inline void check_argmax_taps(const PoolGeometry& g) {
  STD_TORCH_CHECK(g.kh * g.kw <= 256, "kernel_size: the argmax holds one of at most 256 taps, got ", g.kh * g.kw, " of (", g.kh, ", ", g.kw, ")");
}

}  // namespace fastconv
