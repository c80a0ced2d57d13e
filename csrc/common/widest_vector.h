// How wide accesses may be, from what they must divide: addresses and lengths in bytes.
#pragma once
#include "params.h"

namespace fastconv {

// The widest of 16, 8, 4, 2, 1 bytes that divides every one of these.
template <class... Values>
int widest_vector(Values... values) {
  const uint64_t all = (static_cast<uint64_t>(values) | ...);
  for (int bytes = 16; bytes > 1; bytes /= 2)
    if (all % bytes == 0) return bytes;
  return 1;
}

inline uint64_t address(const void* p) { return reinterpret_cast<uint64_t>(p); }
constexpr int64_t element_bytes(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

}  // namespace fastconv
