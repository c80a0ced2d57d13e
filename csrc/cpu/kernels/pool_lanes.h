// Lanes of the type in which pooling computes: float vectors for float32 and the 16-bit types, plain double for float64. A maximum keeps the
// operand that came first in window order unless the later one is greater or NaN: ties take the first, so -0.0 before +0.0 stays -0.0, and
// the last NaN wins.
#pragma once
#include "vec.h"

namespace fastconv::FASTCONV_ISA {

template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

template <class A>
struct Lanes;

template <>
struct Lanes<float> {
  static constexpr int n = L;
  using V = vf;
  using I = vi;
  static FASTCONV_INLINE V get(const float* p) { return load(p); }
  static FASTCONV_INLINE I get(const int32_t* p) {
    I v;
    memcpy(&v, p, sizeof(v));
    return v;
  }
  static FASTCONV_INLINE I get(const uint8_t* p) {
#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
    return (I)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif FASTCONV_ISA_avx2
    return (I)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
    I v;
    for (int i = 0; i < L; ++i) v[i] = p[i];
    return v;
#endif
  }
  static FASTCONV_INLINE void put(float* p, V v) { store(p, v); }
  static FASTCONV_INLINE void put(int32_t* p, I v) { memcpy(p, &v, sizeof(v)); }
  static FASTCONV_INLINE void put(uint8_t* p, I v) {
#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
    _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)v));
#elif FASTCONV_ISA_avx2
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
    _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(words, words));
#else
    for (int i = 0; i < L; ++i) p[i] = uint8_t(v[i]);
#endif
  }
  static FASTCONV_INLINE V set(float a) { return set1(a); }
  static FASTCONV_INLINE I set_index(int32_t a) { return a - I{}; }

#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
  static FASTCONV_INLINE V max(V first, V later) {
    const __m512 m = _mm512_max_ps((__m512)later, (__m512)first);
    return (V)_mm512_fixupimm_ps(m, (__m512)later, _mm512_set1_epi32(0x11), 0);  // the maximum, or `later` where that is NaN
  }
  static FASTCONV_INLINE void take(V& best, I& tap, V later, I later_tap) {
    const __mmask16 m = _mm512_cmp_ps_mask((__m512)later, (__m512)best, _CMP_GT_OQ) | _mm512_cmp_ps_mask((__m512)later, (__m512)later, _CMP_UNORD_Q);
    best = (V)_mm512_mask_mov_ps((__m512)best, m, (__m512)later);
    tap = (I)_mm512_mask_mov_epi32((__m512i)tap, m, (__m512i)later_tap);
  }
  static FASTCONV_INLINE V add_where(V sum, I tap, I wanted, V v) {
    return (V)_mm512_mask_add_ps((__m512)sum, _mm512_cmpeq_epi32_mask((__m512i)tap, (__m512i)wanted), (__m512)sum, (__m512)v);
  }
#elif FASTCONV_ISA_avx2
  static FASTCONV_INLINE V max(V first, V later) {
    const __m256 m = _mm256_max_ps((__m256)later, (__m256)first), nan = _mm256_cmp_ps((__m256)later, (__m256)later, _CMP_UNORD_Q);
    return (V)_mm256_blendv_ps(m, (__m256)later, nan);
  }
  static FASTCONV_INLINE void take(V& best, I& tap, V later, I later_tap) {
    const __m256 m = _mm256_or_ps(_mm256_cmp_ps((__m256)later, (__m256)best, _CMP_GT_OQ), _mm256_cmp_ps((__m256)later, (__m256)later, _CMP_UNORD_Q));
    best = (V)_mm256_blendv_ps((__m256)best, (__m256)later, m);
    tap = (I)_mm256_blendv_ps((__m256)(V)tap, (__m256)(V)later_tap, m);
  }
  static FASTCONV_INLINE V add_where(V sum, I tap, I wanted, V v) { return sum + (V)((I)v & (tap == wanted)); }
#else
  static FASTCONV_INLINE V max(V first, V later) {
    const I m = (later > first) | (later != later);
    return (V)(((I)later & m) | ((I)first & ~m));
  }
  static FASTCONV_INLINE void take(V& best, I& tap, V later, I later_tap) {
    const I m = (later > best) | (later != later);
    best = (V)(((I)later & m) | ((I)best & ~m));
    tap = (later_tap & m) | (tap & ~m);
  }
  static FASTCONV_INLINE V add_where(V sum, I tap, I wanted, V v) { return sum + (V)((I)v & (tap == wanted)); }
#endif
};

template <>
struct Lanes<double> {
  static constexpr int n = 1;
  using V = double;
  using I = int32_t;
  static FASTCONV_INLINE V get(const double* p) { return *p; }
  static FASTCONV_INLINE I get(const int32_t* p) { return *p; }
  static FASTCONV_INLINE I get(const uint8_t* p) { return *p; }
  static FASTCONV_INLINE void put(double* p, V v) { *p = v; }
  static FASTCONV_INLINE void put(int32_t* p, I v) { *p = v; }
  static FASTCONV_INLINE void put(uint8_t* p, I v) { *p = uint8_t(v); }
  static FASTCONV_INLINE V set(double a) { return a; }
  static FASTCONV_INLINE I set_index(int32_t a) { return a; }
  static FASTCONV_INLINE V max(V first, V later) { return later > first || later != later ? later : first; }
  static FASTCONV_INLINE void take(V& best, I& tap, V later, I later_tap) {
    const bool m = later > best || later != later;
    best = m ? later : best;
    tap = m ? later_tap : tap;
  }
  static FASTCONV_INLINE V add_where(V sum, I tap, I wanted, V v) { return tap == wanted ? sum + v : sum; }
};

// ---- between storage and computation ----
template <class T>
FASTCONV_INLINE vf get_whole(const T* p) { return load(p); }
FASTCONV_INLINE double get_whole(const double* p) { return *p; }
template <class T>
FASTCONV_INLINE vf get_part(const T* p, int n) { return load_part(p, n); }
FASTCONV_INLINE double get_part(const double* p, int) { return *p; }

// For values that were loaded from a T. bfloat16 is not stored through its rounding conversion, which may flush subnormals.
struct Exact {
  static FASTCONV_INLINE void put(float* p, vf v) { store(p, v); }
  static FASTCONV_INLINE void put(f16* p, vf v) { store(p, v); }
  static FASTCONV_INLINE void put(double* p, double v) { *p = v; }
  static FASTCONV_INLINE void put(bf16* p, vf v) {
    const vu u = (vu)v >> 16;
#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)u));
#elif FASTCONV_ISA_avx2
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)u, (__m256i)u), 0x08);
    _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(words));
#else
    for (int i = 0; i < L; ++i) p[i].bits = uint16_t(u[i]);
#endif
  }
  template <class T, class V>
  static FASTCONV_INLINE void put_part(T* p, V v, int n) {
#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
    if constexpr (sizeof(T) == 4) return store_part(p, v, n);
#endif
    T lanes[L];
    put(lanes, v);
    memcpy(p, lanes, sizeof(T) * n);
  }
};

// For values that were computed.
struct Rounded {
  static FASTCONV_INLINE void put(double* p, double v) { *p = v; }
  static FASTCONV_INLINE void put_part(double* p, double v, int) { *p = v; }
  template <class T>
  static FASTCONV_INLINE void put(T* p, vf v) { store(p, v); }
  template <class T>
  static FASTCONV_INLINE void put_part(T* p, vf v, int n) { store_part(p, v, n); }
};

}  // namespace fastconv::FASTCONV_ISA
