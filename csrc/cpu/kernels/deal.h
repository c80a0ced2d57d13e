// Dealing a run of elements out to fragments and collecting it again: row[ox + sx*v] <-> fragment ox, element v.
#pragma once
#include "vec.h"

namespace fastconv::FASTCONV_ISA {

// With S known the compiler turns the strided access into shuffles.
template <class T, int S>
void spread_by(const T* __restrict row, T* __restrict first, int64_t fragment_stride, int64_t count) {
  for (int64_t v = 0; v < count; ++v)
    for (int o = 0; o < S; ++o) first[o * fragment_stride + v] = row[v * S + o];
}
template <class T, int S>
void collect_by(const T* __restrict first, int64_t fragment_stride, int64_t count, T* __restrict row) {
  for (int64_t v = 0; v < count; ++v)
    for (int o = 0; o < S; ++o) row[v * S + o] = first[o * fragment_stride + v];
}

// `count` elements of every fragment.
template <class T>
void spread(const T* row, T* first, int64_t fragment_stride, int64_t sx, int64_t count) {
  if (sx == 2) return spread_by<T, 2>(row, first, fragment_stride, count);
  if (sx == 3) return spread_by<T, 3>(row, first, fragment_stride, count);
  if (sx == 4) return spread_by<T, 4>(row, first, fragment_stride, count);
  for (int64_t o = 0; o < sx; ++o)
    for (int64_t v = 0; v < count; ++v) first[o * fragment_stride + v] = row[v * sx + o];
}
template <class T>
void collect(const T* first, int64_t fragment_stride, int64_t sx, int64_t count, T* row) {
  if (sx == 2) return collect_by<T, 2>(first, fragment_stride, count, row);
  if (sx == 3) return collect_by<T, 3>(first, fragment_stride, count, row);
  if (sx == 4) return collect_by<T, 4>(first, fragment_stride, count, row);
  for (int64_t o = 0; o < sx; ++o)
    for (int64_t v = 0; v < count; ++v) row[v * sx + o] = first[o * fragment_stride + v];
}

}  // namespace fastconv::FASTCONV_ISA
