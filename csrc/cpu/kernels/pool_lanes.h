// Lanes of the type in which pooling computes: float vectors for float32 and the 16-bit types, plain double for float64. A maximum keeps the
// operand that came first in window order unless the later one is greater or NaN: ties take the first, so -0.0 before +0.0 stays -0.0, and
// the last NaN wins. Where rows are known to hold no NaN, one instruction does that; the exact forms are for rows that do.
#pragma once
#include "vec.h"

namespace fastconv::FASTCONV_ISA {

#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
#define FASTCONV_POOL_AVX512 1
#endif

template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

template <bool b>
struct Flag {
  static constexpr bool value = b;
};

template <class A>
struct Lanes;
// Vectors of window taps beside the values they belong to: Tap is how they are stored.
template <class A, class Tap>
struct TapLanes;

// ---- float ----
template <>
struct Lanes<float> {
  static constexpr int n = L;
  using V = vf;
  static FASTCONV_INLINE V get(const float* p) { return load(p); }
  static FASTCONV_INLINE void put(float* p, V v) { store(p, v); }
  static FASTCONV_INLINE V set(float a) { return set1(a); }
  // Becomes, and stays, NaN where v is NaN or infinite.
  static FASTCONV_INLINE V watch(V watched, V v) { return fma(v, V{}, watched); }
  static FASTCONV_INLINE bool alarmed(V watched) {
    float lanes[L], sum = 0;
    store(lanes, watched);
    for (int i = 0; i < L; ++i) sum += lanes[i];
    return sum != sum;
  }

#if FASTCONV_POOL_AVX512
  using M = __mmask16;
  static FASTCONV_INLINE M none() { return 0; }
  static FASTCONV_INLINE M either(M a, M b) { return _kor_mask16(a, b); }
  static FASTCONV_INLINE M both(M a, M b) { return a & b; }
  static FASTCONV_INLINE M neither(M a) { return ~a; }
  static FASTCONV_INLINE bool any(M m) { return m; }
  static FASTCONV_INLINE M between(int from, int to) { return from < to ? M(0xffffu >> (L - to) & 0xffffu << from) : 0; }
  static FASTCONV_INLINE M unordered(V a, V b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_UNORD_Q); }
  static FASTCONV_INLINE M lowest(V v) { return _mm512_cmp_ps_mask((__m512)v, _mm512_set1_ps(-__builtin_inff()), _CMP_EQ_OQ); }
  static FASTCONV_INLINE M nan(V v) { return _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q); }
  static FASTCONV_INLINE M greater(V a, V b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ); }
  static FASTCONV_INLINE V choose(M m, V yes, V no) { return (V)_mm512_mask_mov_ps((__m512)no, m, (__m512)yes); }
  static FASTCONV_INLINE V max(V first, V later) { return (V)_mm512_max_ps((__m512)later, (__m512)first); }
#elif FASTCONV_ISA_avx2
  using M = vi;
  static FASTCONV_INLINE M none() { return M{}; }
  static FASTCONV_INLINE M either(M a, M b) { return a | b; }
  static FASTCONV_INLINE M both(M a, M b) { return a & b; }
  static FASTCONV_INLINE M neither(M a) { return ~a; }
  static FASTCONV_INLINE M between(int from, int to) {
    M m;
    for (int i = 0; i < L; ++i) m[i] = i >= from && i < to ? -1 : 0;
    return m;
  }
  static FASTCONV_INLINE bool any(M m) { return _mm256_movemask_ps((__m256)m); }
  static FASTCONV_INLINE M unordered(V a, V b) { return (M)_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_UNORD_Q); }
  static FASTCONV_INLINE M lowest(V v) { return (M)_mm256_cmp_ps((__m256)v, _mm256_set1_ps(-__builtin_inff()), _CMP_EQ_OQ); }
  static FASTCONV_INLINE M nan(V v) { return (M)_mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q); }
  static FASTCONV_INLINE M greater(V a, V b) { return (M)_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ); }
  static FASTCONV_INLINE V choose(M m, V yes, V no) { return (V)_mm256_blendv_ps((__m256)no, (__m256)yes, (__m256)m); }
  static FASTCONV_INLINE V max(V first, V later) { return (V)_mm256_max_ps((__m256)later, (__m256)first); }
#else
  using M = vi;
  static FASTCONV_INLINE M none() { return M{}; }
  static FASTCONV_INLINE M either(M a, M b) { return a | b; }
  static FASTCONV_INLINE M both(M a, M b) { return a & b; }
  static FASTCONV_INLINE M neither(M a) { return ~a; }
  static FASTCONV_INLINE M between(int from, int to) {
    M m;
    for (int i = 0; i < L; ++i) m[i] = i >= from && i < to ? -1 : 0;
    return m;
  }
  static FASTCONV_INLINE bool any(M m) {
    int32_t all = 0;
    for (int i = 0; i < L; ++i) all |= m[i];
    return all;
  }
  static FASTCONV_INLINE M unordered(V a, V b) { return (a != a) | (b != b); }
  static FASTCONV_INLINE M lowest(V v) { return v == set1(-__builtin_inff()); }
  static FASTCONV_INLINE M nan(V v) { return v != v; }
  static FASTCONV_INLINE M greater(V a, V b) { return a > b; }
  static FASTCONV_INLINE V choose(M m, V yes, V no) { return (V)(((M)yes & m) | ((M)no & ~m)); }
  static FASTCONV_INLINE V max(V first, V later) { return later > first ? later : first; }
#endif
  static FASTCONV_INLINE M wins(V first, V later) { return greater(later, first) | nan(later); }
  static FASTCONV_INLINE V max_exact(V first, V later) { return choose(nan(later), later, max(first, later)); }
};

#if FASTCONV_POOL_AVX512
template <>
struct TapLanes<float, uint8_t> {
  using I = __m128i;
  static FASTCONV_INLINE I get(const uint8_t* p) { return _mm_loadu_si128((const __m128i*)p); }
  // Lanes [from, to); the others are 0 and are not read.
  static FASTCONV_INLINE I get_between(const uint8_t* p, int from, int to) { return _mm_maskz_loadu_epi8(Lanes<float>::between(from, to), p); }
  static FASTCONV_INLINE void put(uint8_t* p, I v) { _mm_storeu_si128((__m128i*)p, v); }
  static FASTCONV_INLINE void put_part(uint8_t* p, I v, int n) { _mm_mask_storeu_epi8(p, __mmask16((1u << n) - 1), v); }
  static FASTCONV_INLINE I set(int32_t a) { return _mm_set1_epi8(char(a)); }
  static FASTCONV_INLINE I add(I a, I b) { return _mm_add_epi8(a, b); }
  static FASTCONV_INLINE I choose(__mmask16 m, I yes, I no) { return _mm_mask_mov_epi8(no, m, yes); }
  static FASTCONV_INLINE vf add_where(vf sum, I tap, I wanted, vf v) {
    return (vf)_mm512_mask_add_ps((__m512)sum, _mm_cmpeq_epi8_mask(tap, wanted), (__m512)sum, (__m512)v);
  }
};
template <>
struct TapLanes<float, int32_t> {
  using I = __m512i;
  static FASTCONV_INLINE I get(const int32_t* p) { return _mm512_loadu_si512(p); }
  static FASTCONV_INLINE void put(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
  static FASTCONV_INLINE void put_part(int32_t* p, I v, int n) { _mm512_mask_storeu_epi32(p, __mmask16((1u << n) - 1), v); }
  static FASTCONV_INLINE I set(int32_t a) { return _mm512_set1_epi32(a); }
  static FASTCONV_INLINE I add(I a, I b) { return _mm512_add_epi32(a, b); }
  static FASTCONV_INLINE I choose(__mmask16 m, I yes, I no) { return _mm512_mask_mov_epi32(no, m, yes); }
  static FASTCONV_INLINE vf add_where(vf sum, I tap, I wanted, vf v) {
    return (vf)_mm512_mask_add_ps((__m512)sum, _mm512_cmpeq_epi32_mask(tap, wanted), (__m512)sum, (__m512)v);
  }
};
#else
template <class Tap>
struct TapLanes<float, Tap> {
  using I = vi;
  static FASTCONV_INLINE I get(const int32_t* p) {
    I v;
    memcpy(&v, p, sizeof(v));
    return v;
  }
  static FASTCONV_INLINE void put(int32_t* p, I v) { memcpy(p, &v, sizeof(v)); }
#if FASTCONV_ISA_avx2
  static FASTCONV_INLINE I get(const uint8_t* p) { return (I)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
  static FASTCONV_INLINE void put(uint8_t* p, I v) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
    _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(words, words));
  }
#else
  static FASTCONV_INLINE I get(const uint8_t* p) {
    I v;
    for (int i = 0; i < L; ++i) v[i] = p[i];
    return v;
  }
  static FASTCONV_INLINE void put(uint8_t* p, I v) {
    for (int i = 0; i < L; ++i) p[i] = uint8_t(v[i]);
  }
#endif
  static FASTCONV_INLINE I get_between(const Tap* p, int from, int to) {
    I v{};
    for (int i = from; i < to; ++i) v[i] = p[i];
    return v;
  }
  static FASTCONV_INLINE void put_part(Tap* p, I v, int n) {
    Tap lanes[L];
    put(lanes, v);
    memcpy(p, lanes, sizeof(Tap) * n);
  }
  static FASTCONV_INLINE I set(int32_t a) { return a - I{}; }
  static FASTCONV_INLINE I add(I a, I b) { return a + b; }
  static FASTCONV_INLINE I choose(vi m, I yes, I no) { return (I)Lanes<float>::choose(m, (vf)yes, (vf)no); }
  static FASTCONV_INLINE vf add_where(vf sum, I tap, I wanted, vf v) { return sum + (vf)((I)v & (tap == wanted)); }
};
#endif

// ---- double ----
template <>
struct Lanes<double> {
  static constexpr int n = 1;
  using V = double;
  using M = bool;
  static FASTCONV_INLINE V get(const double* p) { return *p; }
  static FASTCONV_INLINE void put(double* p, V v) { *p = v; }
  static FASTCONV_INLINE V set(double a) { return a; }
  static FASTCONV_INLINE V watch(V watched, V v) { return watched + v * 0; }
  static FASTCONV_INLINE bool alarmed(V watched) { return watched != watched; }
  static FASTCONV_INLINE M nan(V v) { return v != v; }
  static FASTCONV_INLINE V choose(M m, V yes, V no) { return m ? yes : no; }
  static FASTCONV_INLINE M greater(V a, V b) { return a > b; }
  static FASTCONV_INLINE M wins(V first, V later) { return later > first || later != later; }
  static FASTCONV_INLINE V max(V first, V later) { return later > first ? later : first; }
  static FASTCONV_INLINE V max_exact(V first, V later) { return wins(first, later) ? later : first; }
};
template <class Tap>
struct TapLanes<double, Tap> {
  using I = int32_t;
  static FASTCONV_INLINE I get(const Tap* p) { return *p; }
  static FASTCONV_INLINE void put(Tap* p, I v) { *p = Tap(v); }
  static FASTCONV_INLINE void put_part(Tap* p, I v, int) { *p = Tap(v); }
  static FASTCONV_INLINE I set(int32_t a) { return a; }
  static FASTCONV_INLINE I add(I a, I b) { return a + b; }
  static FASTCONV_INLINE I choose(bool m, I yes, I no) { return m ? yes : no; }
  static FASTCONV_INLINE double add_where(double sum, I tap, I wanted, double v) { return tap == wanted ? sum + v : sum; }
};

// ---- between storage and computation ----
template <class T>
FASTCONV_INLINE vf get_whole(const T* p) { return load(p); }
FASTCONV_INLINE double get_whole(const double* p) { return *p; }
template <class T>
FASTCONV_INLINE vf get_part(const T* p, int n) { return load_part(p, n); }
FASTCONV_INLINE double get_part(const double* p, int) { return *p; }

// Lanes [from, to), which are those of `inside`; the others are `outside` and are not read.
template <class T>
FASTCONV_INLINE vf get_between(const T* p, int from, int to, Lanes<float>::M inside, float outside) {
#if FASTCONV_POOL_AVX512
  if constexpr (sizeof(T) == 4) return (vf)_mm512_mask_loadu_ps(_mm512_set1_ps(outside), inside, p);
  if constexpr (sizeof(T) == 2) {
    T lanes[L];
    _mm256_storeu_si256((__m256i*)lanes, _mm256_maskz_loadu_epi16(inside, p));
    return Lanes<float>::choose(inside, load(lanes), set1(outside));
  }
#endif
  float lanes[L];
  for (int i = 0; i < L; ++i) lanes[i] = outside;
  for (int i = from; i < to; ++i) lanes[i] = to_float(p[i]);
  return load(lanes);
}

// For values that were loaded from a T. bfloat16 is not stored through its rounding conversion, which may flush subnormals.
struct Exact {
  static FASTCONV_INLINE void put(float* p, vf v) { store(p, v); }
  static FASTCONV_INLINE void put(f16* p, vf v) { store(p, v); }
  static FASTCONV_INLINE void put(double* p, double v) { *p = v; }
  static FASTCONV_INLINE void put(bf16* p, vf v) {
    const vu u = (vu)v >> 16;
#if FASTCONV_POOL_AVX512
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)u));
#elif FASTCONV_ISA_avx2
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)u, (__m256i)u), 0x08);
    _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(words));
#else
    for (int i = 0; i < L; ++i) p[i].bits = uint16_t(u[i]);
#endif
  }
  static FASTCONV_INLINE void put_part(float* p, vf v, int n) { store_part(p, v, n); }
  static FASTCONV_INLINE void put_part(f16* p, vf v, int n) { store_part(p, v, n); }
  static FASTCONV_INLINE void put_part(double* p, double v, int) { *p = v; }
  static FASTCONV_INLINE void put_part(bf16* p, vf v, int n) {
#if FASTCONV_POOL_AVX512
    _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), _mm512_cvtepi32_epi16((__m512i)((vu)v >> 16)));
#else
    bf16 lanes[L];
    put(lanes, v);
    memcpy(p, lanes, sizeof(bf16) * n);
#endif
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
