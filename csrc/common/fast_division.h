// Division of 32-bit numbers by a divisor known at launch: one high product and a shift (Granlund and Montgomery, 1994; the divisor is
// rounded up). Exact for every dividend below 2^31.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define FASTCONV_CALLABLE __host__ __device__ __forceinline__
#else
#define FASTCONV_CALLABLE inline
#endif

namespace fastconv {

struct FastDivision {
  uint32_t divisor, multiplier, shift;

  FastDivision() : FastDivision(1) {}
  explicit FastDivision(int64_t d) : divisor(static_cast<uint32_t>(d)), multiplier(0), shift(0) {
    if (divisor == 1) return;
    while ((uint64_t(1) << shift) < divisor) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t(1) << (31 + shift)) + divisor - 1) / divisor);
    --shift;
  }

  FASTCONV_CALLABLE uint32_t divide(uint32_t n) const {
    if (divisor == 1) return n;
#ifdef __CUDA_ARCH__
    return __umulhi(n, multiplier) >> shift;
#else
    return static_cast<uint32_t>(uint64_t(n) * multiplier >> 32) >> shift;
#endif
  }
  // Quotient, and the remainder through `remainder`.
  FASTCONV_CALLABLE uint32_t divide(uint32_t n, uint32_t* remainder) const {
    const uint32_t q = divide(n);
    *remainder = n - q * divisor;
    return q;
  }
};

}  // namespace fastconv
