// Every inline PTX instruction and intrinsic the kernels use, wrapped. tests/cuda_host/ptx_host.h is its twin for the host.
#pragma once
#include "device.cuh"

#ifdef FASTCONV_CUDA_HOST
#include "ptx_host.h"
#else

namespace fastconv::ptx {

// ---- global memory -----------------------------------------------------------------------------------------------------------
// Read-only data through the non-coherent path: the compiler may then move loads freely.
template <int N>
FASTCONV_DEVICE Bytes<N> load(const void* p) {
  Bytes<N> v;
  if constexpr (N == 16) {
    const uint4 u = __ldg(static_cast<const uint4*>(p));
    v.word[0] = u.x, v.word[1] = u.y, v.word[2] = u.z, v.word[3] = u.w;
  } else if constexpr (N == 8) {
    const uint2 u = __ldg(static_cast<const uint2*>(p));
    v.word[0] = u.x, v.word[1] = u.y;
  } else if constexpr (N == 4) {
    v.word[0] = __ldg(static_cast<const unsigned*>(p));
  } else if constexpr (N == 2) {
    v.word[0] = __ldg(static_cast<const unsigned short*>(p));
  } else {
    v.word[0] = __ldg(static_cast<const unsigned char*>(p));
  }
  return v;
}

// Spelled out, because the compiler splits a struct of four words when it likes.
template <int N>
FASTCONV_DEVICE void store(void* p, const Bytes<N>& v) {
  if constexpr (N == 16) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3]) : "memory");
  } else if constexpr (N == 8) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(v.word[0]), "r"(v.word[1]) : "memory");
  } else {
    *static_cast<Bytes<N>*>(p) = v;
  }
}

// The same where `wanted`, by predication: a branch around one store costs four instructions.
template <int N>
FASTCONV_DEVICE void store_if(bool wanted, void* p, const Bytes<N>& v) {
  const int flag = wanted;
  if constexpr (N == 16) {
    asm volatile("{ .reg .pred q; setp.ne.b32 q, %5, 0; @q st.global.v4.u32 [%0], {%1, %2, %3, %4}; }" ::"l"(p), "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]),
                 "r"(v.word[3]), "r"(flag)
                 : "memory");
  } else if constexpr (N == 8) {
    asm volatile("{ .reg .pred q; setp.ne.b32 q, %3, 0; @q st.global.v2.u32 [%0], {%1, %2}; }" ::"l"(p), "r"(v.word[0]), "r"(v.word[1]), "r"(flag) : "memory");
  } else {
    static_assert(N == 4);
    asm volatile("{ .reg .pred q; setp.ne.b32 q, %2, 0; @q st.global.u32 [%0], %1; }" ::"l"(p), "r"(v.word[0]), "r"(flag) : "memory");
  }
}

// Keeps the compiler from taking the pointer apart into terms that it would add up anew at every use.
template <class T>
FASTCONV_DEVICE void keep(T*& p) {
  asm("" : "+l"(p));
}
// Keeps a value in its register where the compiler would rather compute it again, and has it computed here.
FASTCONV_DEVICE void keep(uint32_t& v) { asm volatile("" : "+r"(v)); }
FASTCONV_DEVICE void keep(int& v) { asm volatile("" : "+r"(v)); }
FASTCONV_DEVICE void keep(float& v) { asm volatile("" : "+f"(v)); }
// base + bytes * times, by one instruction.
FASTCONV_DEVICE const unsigned char* advance(const unsigned char* base, uint32_t bytes, uint32_t times) {
  const unsigned char* p;
  asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(p) : "r"(bytes), "r"(times), "l"(base));
  return p;
}

// ---- conversions -------------------------------------------------------------------------------------------------------------
// Two floats to a packed pair, round to nearest even; `low` lands in the low half.
FASTCONV_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
FASTCONV_DEVICE uint32_t pack_f16(float low, float high) {
  uint32_t d;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
FASTCONV_DEVICE float f16_to_float(uint16_t h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}
FASTCONV_DEVICE float bits_to_float(uint32_t u) { return __uint_as_float(u); }
FASTCONV_DEVICE uint32_t float_to_bits(float f) { return __float_as_uint(f); }
FASTCONV_DEVICE uint32_t float_to_tf32(float f) {
  uint32_t d;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(d) : "f"(f));
  return d;
}

// ---- arithmetic --------------------------------------------------------------------------------------------------------------
// NaN goes through, as PyTorch's relu and clamp let it.
FASTCONV_DEVICE float max_nan(float a, float b) {
  float d;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
  return d;
}
FASTCONV_DEVICE float min_nan(float a, float b) {
  float d;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
  return d;
}
FASTCONV_DEVICE float min_number(float a, float b) { return fminf(a, b); }
FASTCONV_DEVICE float fast_exp2(float x) {
  float d;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
  return d;
}
FASTCONV_DEVICE float fast_reciprocal(float x) {
  float d;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
  return d;
}
FASTCONV_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }
FASTCONV_DEVICE uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }

// a * b + c in each half, one rounding, subnormals kept.
FASTCONV_DEVICE uint32_t fma_bf16(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
// 0xffff in each half whose sign bit is set.
FASTCONV_DEVICE uint32_t sign_mask(uint32_t a) {
  uint32_t d;
  asm("prmt.b32 %0, %1, 0, 0xbb99;" : "=r"(d) : "r"(a));
  return d;
}
// a > b in each half of packed bf16, for chips that cannot compare them: the sign of b - a. Adding +0 turns the -0 of (+0, -0) into +0; a NaN
// comes out positive.
FASTCONV_DEVICE uint32_t greater_by_sign(uint32_t a, uint32_t b) { return sign_mask(fma_bf16(fma_bf16(a, 0xbf80bf80u, b), 0x3f803f80u, 0u)); }

// 0xffff in each half where a > b (false where either is NaN).
FASTCONV_DEVICE uint32_t greater_mask_f16(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("set.gt.u32.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
FASTCONV_DEVICE uint32_t greater_mask_bf16(uint32_t a, uint32_t b) {
#if __CUDA_ARCH__ >= 900
  uint32_t d;
  asm("set.gt.u32.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
#else
  return greater_by_sign(a, b);
#endif
}
// The larger (smaller) of each half; max_nan lets NaN through, min does not.
FASTCONV_DEVICE uint32_t max_nan_f16(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
FASTCONV_DEVICE uint32_t max_nan_bf16(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
FASTCONV_DEVICE uint32_t min_f16(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("min.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
FASTCONV_DEVICE uint32_t min_bf16(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("min.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

// ---- warps -------------------------------------------------------------------------------------------------------------------
FASTCONV_DEVICE float shuffle_xor(float v, int lanes) { return __shfl_xor_sync(0xffffffffu, v, lanes); }
FASTCONV_DEVICE uint32_t shuffle_xor(uint32_t v, int lanes) { return __shfl_xor_sync(0xffffffffu, v, lanes); }
FASTCONV_DEVICE bool any_lane(bool v) { return __any_sync(0xffffffffu, v); }
FASTCONV_DEVICE void named_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
// Counts as arrived there without waiting; what was written before is seen by those that wait.
FASTCONV_DEVICE void arrive_at_barrier(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// ---- asynchronous copies into shared memory ----------------------------------------------------------------------------------
using SharedAddress = uint32_t;
FASTCONV_DEVICE SharedAddress shared_address(const void* p) { return static_cast<SharedAddress>(__cvta_generic_to_shared(p)); }
template <int N>
FASTCONV_DEVICE void store_shared(SharedAddress to, const Bytes<N>& v) {
  if constexpr (N == 16) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3]) : "memory");
  } else if constexpr (N == 8) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(to), "r"(v.word[0]), "r"(v.word[1]) : "memory");
  } else {
    static_assert(N == 4);
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(v.word[0]) : "memory");
  }
}

template <int N>
FASTCONV_DEVICE Bytes<N> load_shared(SharedAddress from) {
  Bytes<N> v;
  if constexpr (N == 8) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.word[0]), "=r"(v.word[1]) : "r"(from) : "memory");
  } else {
    static_assert(N == 4);
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v.word[0]) : "r"(from) : "memory");
  }
  return v;
}

// N bytes; zeros instead where `valid` is false (the source is then not read). 16-byte copies bypass L1.
template <int N>
FASTCONV_DEVICE void copy_async(void* to, const void* from, bool valid) {
  const int bytes = valid ? N : 0;
  if constexpr (N == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes), "n"(N) : "memory");
  }
}
// 16 bytes, only where `wanted`, by predication.
FASTCONV_DEVICE void copy_async_if(bool wanted, SharedAddress to, const void* from, bool valid) {
  const int bytes = valid ? 16 : 0, flag = wanted;
  asm volatile("{ .reg .pred q; setp.ne.b32 q, %3, 0; @q cp.async.cg.shared.global [%0], [%1], 16, %2; }" ::"r"(to), "l"(from), "r"(bytes), "r"(flag) : "memory");
}
FASTCONV_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GroupsLeft>
FASTCONV_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GroupsLeft) : "memory");
}

// ---- tensor cores ------------------------------------------------------------------------------------------------------------
// Four 8 x 8 matrices of 16-bit elements; lane 8i + r gives the address of row r of matrix i (16 bytes, aligned).
FASTCONV_DEVICE void load_matrices(uint32_t (&d)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(shared_address(row))
               : "memory");
}
FASTCONV_DEVICE void load_matrices_transposed(uint32_t (&d)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(shared_address(row))
               : "memory");
}
// d += a * b; a is 16 x 16 (row), b is 16 x 8 (column), fp32 accumulators.
FASTCONV_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
FASTCONV_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// a is 16 x 8, b is 8 x 8, operands rounded to tf32.
FASTCONV_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace fastconv::ptx
#endif
