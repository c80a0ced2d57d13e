// The register-blocked microkernel of every matrix product on the CPU:
//
//   acc[r][v] += sum_k b[r * rs + k * ks] * panel[k * ldv + v * L ...]      0 <= r < R, 0 <= v < NV
//
// "panel" is loaded as vectors, "b" is broadcast. One kernel serves both layouts: channels_last loads packed weights as vectors and broadcasts the
// depthwise result of R pixels; contiguous loads the depthwise result of NV*L pixels and broadcasts R rows of weights.
#pragma once
#include "vec.h"

namespace fastconv::FASTCONV_ISA {

// Register block: NV vectors by R broadcasts fill the register file with accumulators and leave room for NV loads and one broadcast.
#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
constexpr int kPanelVectors = 4, kRows = 6;
#elif FASTCONV_ISA_avx2
constexpr int kPanelVectors = 2, kRows = 6;
#else
constexpr int kPanelVectors = 2, kRows = 4;
#endif

// One step of k: a float32 product.
struct F32Dot {
  using Element = float;
  static constexpr int kStep = 1;  // k advanced by one element
  static FASTCONV_INLINE vf vectors(const float* p) { return load(p); }
  static FASTCONV_INLINE vf broadcast(const float* p) { return set1(*p); }
  static FASTCONV_INLINE vf mac(vf acc, vf panel, vf b) { return fma(panel, b, acc); }
  static FASTCONV_INLINE void put(float* p, int64_t, vf v) { store(p, v); }
};

#if FASTCONV_ISA_avx512_bf16
// An element is a pair of bfloat16 neighbours in k; float32 accumulation.
struct BF16Dot {
  using Element = uint32_t;
  static constexpr int kStep = 2;
  static FASTCONV_INLINE __m512i vectors(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static FASTCONV_INLINE __m512i broadcast(const uint32_t* p) { return _mm512_set1_epi32((int)*p); }
  static FASTCONV_INLINE vf mac(vf acc, __m512i panel, __m512i b) { return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)panel, (__m512bh)b); }
  // Channel k of L pixels, into pairs that are complete once both of their channels are stored, the even one first.
  static FASTCONV_INLINE void put(uint32_t* pairs, int64_t k, vf v) {
    const __m512i half = _mm512_cvtepu16_epi32(to_bf16(v));
    _mm512_storeu_si512(pairs, k % 2 ? _mm512_or_si512(_mm512_loadu_si512(pairs), _mm512_slli_epi32(half, 16)) : half);
  }
};
#endif

// Memory to bring into L2 while a product keeps the arithmetic busy: cache lines from `at` on.
struct Fetch {
  const char* at = nullptr;
  int64_t lines = 0;
};

template <class Dot, int NV, int R>
FASTCONV_INLINE void gemm_block(
    int64_t k_count, const typename Dot::Element* panel, int64_t ldv, const typename Dot::Element* b, int64_t rs, int64_t ks, vf (&acc)[R][NV],
    Fetch fetch = {}) {
  for (int64_t k = 0; k < k_count; ++k) {
    if (k < fetch.lines) prefetch_l2(fetch.at + 64 * k);
    decltype(Dot::vectors(panel)) p[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) p[v] = Dot::vectors(panel + v * L);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const auto x = Dot::broadcast(b + r * rs);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] = Dot::mac(acc[r][v], p[v], x);
    }
    panel += ldv;
    b += ks;
  }
}

}  // namespace fastconv::FASTCONV_ISA
