// L x L transpose in registers.
#pragma once
#include "vec.h"

namespace fastconv::FASTCONV_ISA {

// Lanes whose index has bit D clear come from a, the others from b, D lanes apart: one stage of the butterfly that transposes.
template <int D>
FASTCONV_INLINE void transpose_stage(vf (&v)[L]) {
  vi low, high;
#pragma GCC unroll 16
  for (int j = 0; j < L; ++j) {
    low[j] = j & D ? L + j - D : j;
    high[j] = j & D ? L + j : j + D;
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    if (i & D) continue;
    const vf a = v[i], b = v[i + D];
    v[i] = __builtin_shuffle(a, b, low);
    v[i + D] = __builtin_shuffle(a, b, high);
  }
}

// v[i][j] <-> v[j][i].
FASTCONV_INLINE void transpose(vf (&v)[L]) {
  transpose_stage<1>(v);
  transpose_stage<2>(v);
  if constexpr (L >= 8) transpose_stage<4>(v);
  if constexpr (L >= 16) transpose_stage<8>(v);
}

}  // namespace fastconv::FASTCONV_ISA
