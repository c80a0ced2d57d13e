// Dealing a run of elements out to fragments and collecting it again: row[ox + sx*v] <-> fragment ox, element v.
#pragma once
#include "vec.h"

namespace fastconv::FASTCONV_ISA {

// Runs are often a few elements, channels of a pixel: a call of memcpy would cost more than they do.
template <class T>
FASTCONV_INLINE void copy_run(T* __restrict to, const T* __restrict from, int64_t n) {
  int64_t bytes = n * int64_t(sizeof(T));
  const char* a = reinterpret_cast<const char*>(from);
  char* b = reinterpret_cast<char*>(to);
  typedef char block __attribute__((vector_size(4 * L)));
  for (; bytes >= int64_t(sizeof(block)); bytes -= sizeof(block), a += sizeof(block), b += sizeof(block)) {
    block v;
    memcpy(&v, a, sizeof(v));
    memcpy(b, &v, sizeof(v));
  }
  for (; bytes >= 8; bytes -= 8, a += 8, b += 8) memcpy(b, a, 8);
  if (bytes & 4) memcpy(b, a, 4), a += 4, b += 4;
  if (bytes & 2) memcpy(b, a, 2), a += 2, b += 2;
  if (bytes & 1) *b = *a;
}

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
