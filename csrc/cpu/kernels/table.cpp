// The table of this instruction set, and the loops that measure its own ceilings.
#include "../kernels.h"
#include "vec.h"

namespace fastconv::FASTCONV_ISA {

void register_depthwise_backward(Kernels&);
void register_depthwise(Kernels&);
void register_separable(Kernels&);
void register_pooling_max(Kernels&);
void register_pooling_max_backward(Kernels&);
void register_pooling_avg(Kernels&);
void register_shift_stitch(Kernels&);
void register_separable_backward(Kernels&);

namespace {

#define FASTCONV_TEXT2(x) #x
#define FASTCONV_TEXT(x) FASTCONV_TEXT2(x)

#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
#define FASTCONV_KEEP(v) "+v"(v)
#elif defined(__x86_64__)
#define FASTCONV_KEEP(v) "+x"(v)
#else
#define FASTCONV_KEEP(v) "+m"(v)
#endif

constexpr int kChains = 12;

double fma_peak(int64_t rounds) {
  vf acc[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) acc[i] = set1(float(i));
  const vf a = set1(0.999f), b = set1(0.001f);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) acc[i] = fma(acc[i], a, b);
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) asm volatile("" : FASTCONV_KEEP(acc[i]));
  }
  return double(rounds) * kChains * L * 2;
}

#if FASTCONV_ISA_avx512_bf16
double bf16_peak(int64_t rounds) {
  __m512 acc[kChains] = {};
  const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], a, a);
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) asm volatile("" : FASTCONV_KEEP(acc[i]));
  }
  return double(rounds) * kChains * L * 4;
}
#else
double bf16_peak(int64_t rounds) { return fma_peak(rounds); }
#endif

}  // namespace

const Kernels& table() {
  static const Kernels t = [] {
    Kernels k = {};
    k.name = FASTCONV_TEXT(FASTCONV_ISA);
    k.lanes = L;
    k.bf16_dot = kBf16Dot;
    k.fma_peak = &fma_peak;
    k.bf16_peak = &bf16_peak;
    register_depthwise_backward(k);
    register_depthwise(k);
    register_separable(k);
    register_pooling_max(k);
    register_pooling_max_backward(k);
    register_pooling_avg(k);
    register_shift_stitch(k);
    register_separable_backward(k);
    return k;
  }();
  return t;
}

}  // namespace fastconv::FASTCONV_ISA
