// The maps of a pool as kernels address them.
#pragma once
#include "dealt.cuh"

namespace fastconv::cuda {

inline DealtMap plain_map(const PoolGeometry& g, Layout layout) { return {g.c, g.h, g.w, 1, 1, layout}; }
inline DealtMap pooled_map(const PoolGeometry& g, Layout layout) {
  return g.fragments ? DealtMap{g.c, g.frag_h, g.frag_w, g.sh, g.sw, layout} : DealtMap{g.c, g.dense_h, g.dense_w, 1, 1, layout};
}

}  // namespace fastconv::cuda
