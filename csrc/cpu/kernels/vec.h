// A small vector wrapper: `vf` holds L float32 lanes of the instruction set this file is compiled for. Loads and stores convert from and
// to float32, float16, bfloat16. Partial and masked forms never touch memory outside their lanes.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/params.h"

namespace fastconv::FASTCONV_ISA {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

#define FASTCONV_INLINE inline __attribute__((always_inline))

// A number known at compile time, to pass to a generic lambda.
template <int N>
struct Int {
  static constexpr int value = N;
};

// Calls f with a value of the element type.
template <class F>
FASTCONV_INLINE void with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f16: return f(f16{});
    case DType::bf16: return f(bf16{});
    default: return f(float{});
  }
}

#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
constexpr int L = 16;
#elif FASTCONV_ISA_avx2
constexpr int L = 8;
#else
constexpr int L = 4;
#endif

#if FASTCONV_ISA_avx512_bf16
constexpr bool kBf16Dot = true;
#else
constexpr bool kBf16Dot = false;
#endif

typedef float vf __attribute__((vector_size(4 * L)));
typedef int32_t vi __attribute__((vector_size(4 * L)));
typedef uint32_t vu __attribute__((vector_size(4 * L)));

FASTCONV_INLINE vf set1(float a) { return a - vf{}; }
FASTCONV_INLINE vu set1u(uint32_t a) { return a - vu{}; }

FASTCONV_INLINE float to_float(float a) { return a; }
FASTCONV_INLINE float to_float(bf16 a) {
  const uint32_t u = uint32_t(a.bits) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
FASTCONV_INLINE float to_float(f16 a) {
#if defined(__F16C__)
  return _cvtsh_ss(a.bits);
#else
  const uint32_t sign = uint32_t(a.bits & 0x8000) << 16, rest = a.bits & 0x7fff;
  uint32_t u;
  float f;
  if (rest >= 0x7c00) {
    u = sign | 0x7f800000 | (rest & 0x3ff) << 13;
  } else {
    // Shifting the exponent field into place and scaling by 2^112 rebiases it, subnormals included.
    u = rest << 13;
    memcpy(&f, &u, 4);
    f *= 0x1p112f;
    memcpy(&u, &f, 4);
    u |= sign;
  }
  memcpy(&f, &u, 4);
  return f;
#endif
}

FASTCONV_INLINE void from_float(float* p, float a) { *p = a; }
FASTCONV_INLINE void from_float(bf16* p, float a) {
  uint32_t u;
  memcpy(&u, &a, 4);
  p->bits = a != a ? 0x7fc0 : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
FASTCONV_INLINE void from_float(f16* p, float a) {
#if defined(__F16C__)
  p->bits = _cvtss_sh(a, 0);
#else
  uint32_t u;
  memcpy(&u, &a, 4);
  const uint32_t sign = (u >> 16) & 0x8000;
  u &= 0x7fffffff;
  if (u > 0x7f800000) {
    p->bits = uint16_t(sign | 0x7e00);
  } else if (u >= 0x477ff000) {  // rounds to infinity
    p->bits = uint16_t(sign | 0x7c00);
  } else if (u < 0x38800000) {  // subnormal: adding 0.5 aligns the ulp of the sum with the ulp of a subnormal half
    float f;
    memcpy(&f, &u, 4);
    f += 0.5f;
    memcpy(&u, &f, 4);
    p->bits = uint16_t(sign | (u - 0x3f000000));
  } else {
    u += 0xc8000fff + ((u >> 13) & 1);
    p->bits = uint16_t(sign | u >> 13);
  }
#endif
}

// ---- full-width loads and stores ----
FASTCONV_INLINE vf load(const float* p) {
  vf v;
  memcpy(&v, p, sizeof(v));
  return v;
}
FASTCONV_INLINE void store(float* p, vf v) { memcpy(p, &v, sizeof(v)); }

#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
FASTCONV_INLINE vf load(const bf16* p) { return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16); }
FASTCONV_INLINE vf load(const f16* p) { return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
FASTCONV_INLINE __m256i to_bf16(vf v) {
#if FASTCONV_ISA_avx512_bf16
  return (__m256i)_mm512_cvtneps_pbh((__m512)v);
#else
  const __m512i u = (__m512i)v;
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
  return _mm512_cvtepi32_epi16(r);
#endif
}
FASTCONV_INLINE void store(bf16* p, vf v) { _mm256_storeu_si256((__m256i*)p, to_bf16(v)); }
FASTCONV_INLINE void store(f16* p, vf v) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, 0)); }
#elif FASTCONV_ISA_avx2
FASTCONV_INLINE vf load(const bf16* p) { return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16); }
FASTCONV_INLINE vf load(const f16* p) { return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
FASTCONV_INLINE __m128i to_bf16(vf v) {
  const __m256i u = (__m256i)v;
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), (__m256i)_mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q));
  return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
FASTCONV_INLINE void store(bf16* p, vf v) { _mm_storeu_si128((__m128i*)p, to_bf16(v)); }
FASTCONV_INLINE void store(f16* p, vf v) { _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, 0)); }
#else
template <class T>
FASTCONV_INLINE vf load(const T* p) {
  vf v;
  for (int i = 0; i < L; ++i) v[i] = to_float(p[i]);
  return v;
}
template <class T>
FASTCONV_INLINE void store(T* p, vf v) {
  for (int i = 0; i < L; ++i) from_float(p + i, v[i]);
}
#endif

// A store that bypasses the caches, for maps larger than they are. p is aligned to the vector; other types and widths store as usual.
template <class T>
FASTCONV_INLINE void store_streaming(T* p, vf v) {
  store(p, v);
}
#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
template <>
FASTCONV_INLINE void store_streaming(float* p, vf v) { _mm512_stream_ps(p, (__m512)v); }
#endif

// ---- lanes [0, n) only; the others load as 0 ----
template <class T>
FASTCONV_INLINE vf load_part(const T* p, int n) {
  T lanes[L] = {};
  memcpy(lanes, p, sizeof(T) * n);
  return load(lanes);
}
template <class T>
FASTCONV_INLINE void store_part(T* p, vf v, int n) {
  T lanes[L];
  store(lanes, v);
  memcpy(p, lanes, sizeof(T) * n);
}

// ---- lanes whose bit is set; the others load as 0 ----
#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
FASTCONV_INLINE vf load_masked(const float* p, uint32_t bits) { return (vf)_mm512_maskz_loadu_ps((__mmask16)bits, p); }
template <>
FASTCONV_INLINE vf load_part(const float* p, int n) { return load_masked(p, (1u << n) - 1); }
template <>
FASTCONV_INLINE vf load_part(const bf16* p, int n) {
  return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p)), 16);
}
template <>
FASTCONV_INLINE vf load_part(const f16* p, int n) { return (vf)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p)); }
template <>
FASTCONV_INLINE void store_part(float* p, vf v, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v); }
template <>
FASTCONV_INLINE void store_part(bf16* p, vf v, int n) { _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), to_bf16(v)); }
template <>
FASTCONV_INLINE void store_part(f16* p, vf v, int n) { _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), _mm512_cvtps_ph((__m512)v, 0)); }
// acc + a * b; lanes without a bit keep acc.
FASTCONV_INLINE vf fma_masked(vf a, vf b, vf acc, uint32_t bits) { return (vf)_mm512_mask3_fmadd_ps((__m512)a, (__m512)b, (__m512)acc, (__mmask16)bits); }
FASTCONV_INLINE vf fma_masked(vf a, const float* p, vf acc, uint32_t bits) { return fma_masked(a, load_masked(p, bits), acc, bits); }
// `here` moved down by Shift > 0 lanes, the free ones taken from `next`; with Shift < 0 moved up, the free ones from the end of `next`.
template <int Shift>
FASTCONV_INLINE vf lanes_from(vf here, vf next) {
  return (vf)(Shift > 0 ? _mm512_alignr_epi32((__m512i)next, (__m512i)here, Shift & 15) : _mm512_alignr_epi32((__m512i)here, (__m512i)next, Shift & 15));
}
#elif FASTCONV_ISA_avx2
FASTCONV_INLINE vf load_masked(const float* p, uint32_t bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i mask = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), lane), lane);
  return (vf)_mm256_maskload_ps(p, mask);
}
#else
FASTCONV_INLINE vf load_masked(const float* p, uint32_t bits) {
  vf v = {};
  for (int i = 0; i < L; ++i)
    if (bits >> i & 1) v[i] = p[i];
  return v;
}
#endif

// ---- arithmetic ----
FASTCONV_INLINE vf fma(vf a, vf b, vf c) {
#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif FASTCONV_ISA_avx2
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
#if !(FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16)
FASTCONV_INLINE vf fma_masked(vf a, const float* p, vf acc, uint32_t bits) { return fma(a, load_masked(p, bits), acc); }
#endif
// Both propagate a NaN in `a`, as PyTorch's activations do: the instructions return their second operand then.
#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
FASTCONV_INLINE vf max(vf b, vf a) { return (vf)_mm512_max_ps((__m512)b, (__m512)a); }
FASTCONV_INLINE vf min(vf b, vf a) { return (vf)_mm512_min_ps((__m512)b, (__m512)a); }
#elif FASTCONV_ISA_avx2
FASTCONV_INLINE vf max(vf b, vf a) { return (vf)_mm256_max_ps((__m256)b, (__m256)a); }
FASTCONV_INLINE vf min(vf b, vf a) { return (vf)_mm256_min_ps((__m256)b, (__m256)a); }
#else
FASTCONV_INLINE vf max(vf b, vf a) { return a < b ? b : a; }
FASTCONV_INLINE vf min(vf b, vf a) { return b < a ? b : a; }
#endif

// Sign bit of every lane.
FASTCONV_INLINE uint32_t sign_bits(vi v) {
#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
  return _mm512_movepi32_mask((__m512i)v);
#elif FASTCONV_ISA_avx2
  return (uint32_t)_mm256_movemask_ps((__m256)v);
#else
  uint32_t bits = 0;
  for (int i = 0; i < L; ++i) bits |= uint32_t(v[i] < 0) << i;
  return bits;
#endif
}

FASTCONV_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
FASTCONV_INLINE void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace fastconv::FASTCONV_ISA
