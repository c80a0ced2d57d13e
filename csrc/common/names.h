// The words for dtypes and memory formats, as people and tables write them. Plain C++.
#pragma once
#include "params.h"

namespace fastconv {

constexpr const char* dtype_name(DType t) {
  constexpr const char* names[] = {"float32", "float16", "bfloat16", "float64"};
  return names[static_cast<int>(t)];
}
constexpr const char* layout_name(Layout l) { return l == Layout::channels_last ? "channels_last" : "contiguous"; }

}  // namespace fastconv
