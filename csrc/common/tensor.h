// Thin helpers over torch's stable tensors: dtypes, memory formats, views, allocation. Argument checks are in check.h.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "params.h"

namespace fastconv {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptTensor = std::optional<Tensor>;

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  const auto s = t.sizes();
  return std::vector<int64_t>(s.begin(), s.end());
}

inline std::string shape_string(const std::vector<int64_t>& size) {
  std::string s = "(";
  for (size_t i = 0; i < size.size(); ++i) s += (i ? ", " : "") + std::to_string(size[i]);
  return s + ")";
}
inline std::string shape_string(const Tensor& t) { return shape_string(sizes_of(t)); }

// torch's suggest_memory_format for 4-D tensors: channels_last when the strides are ordered that way and contiguous is not as good a reading.
inline Layout suggested_layout(const Tensor& t) {
  if (t.dim() != 4 || t.stride(1) == 0) return Layout::contiguous;
  int64_t least = 0;
  for (int d : {1, 3, 2, 0}) {
    if (t.size(d) == 0 || t.stride(d) < least) return Layout::contiguous;
    if (d == 0 && least == t.stride(1)) return Layout::contiguous;
    least = t.stride(d) * (t.size(d) > 1 ? t.size(d) : 1);
  }
  return Layout::channels_last;
}

inline MemoryFormat memory_format(Layout layout) { return layout == Layout::channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous; }

inline bool is_dense(const Tensor& t, Layout layout) {
  const int nchw[4] = {3, 2, 1, 0}, nhwc[4] = {1, 3, 2, 0};
  int64_t expected = 1;
  if (t.numel() == 0) return true;
  for (int d : layout == Layout::channels_last ? nhwc : nchw) {
    if (t.size(d) == 1) continue;
    if (t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}
// Dense in `layout`, so that kernels may rely on every stride; copies once when it is not.
inline Tensor to_dense(const Tensor& t, Layout layout) { return is_dense(t, layout) ? t : torch::stable::contiguous(t, memory_format(layout)); }
inline Tensor to_dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
inline OptTensor to_dense(const OptTensor& t) { return t ? OptTensor(to_dense(*t)) : OptTensor(); }
inline OptTensor to_dense(const OptTensor& t, Layout layout) { return t ? OptTensor(to_dense(*t, layout)) : OptTensor(); }

// Strides follow from sizes and layout alone: what a tensor reports for dimensions of size 1 is arbitrary.
template <class View, class Pointer>
View dense_view(Pointer data, Layout layout, int64_t c, int64_t h, int64_t w) {
  if (layout == Layout::channels_last) return {data, c * h * w, 1, w * c, c};
  return {data, c * h * w, h * w, w, 1};
}
inline MapView view(const Tensor& t, Layout layout) { return dense_view<MapView>(t.const_data_ptr(), layout, t.size(1), t.size(2), t.size(3)); }
inline MapView view(const OptTensor& t, Layout layout) { return t ? view(*t, layout) : MapView{nullptr, 0, 0, 0, 0}; }
inline MutableMapView mutable_view(const Tensor& t, Layout layout) {
  return dense_view<MutableMapView>(t.mutable_data_ptr(), layout, t.size(1), t.size(2), t.size(3));
}

inline Tensor empty_map(const Tensor& like, const std::vector<int64_t>& size, Layout layout, std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::empty(size, dtype ? *dtype : like.scalar_type(), std::nullopt, like.device(), std::nullopt, memory_format(layout));
}
inline Tensor empty_dense(const Tensor& like, const std::vector<int64_t>& size, ScalarType dtype) {
  return torch::stable::empty(size, dtype, std::nullopt, like.device());
}
// Stands for a gradient that was not asked for.
inline Tensor nothing(const Tensor& like) { return empty_dense(like, {0}, like.scalar_type()); }

inline const void* data_or_null(const OptTensor& t) { return t ? t->const_data_ptr() : nullptr; }

}  // namespace fastconv
