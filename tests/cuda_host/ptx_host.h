// Twin of csrc/cuda/ptx.cuh for the host: the same names, each instruction evaluated from its definition in the PTX manual. Collectives are
// evaluated when all lanes have come.
#pragma once
#include "cuda_host.h"

namespace fastconv::ptx {

// ---- global memory -----------------------------------------------------------------------------------------------------------
template <int N>
inline Bytes<N> load(const void* p) {
  cuda_host::check_alignment(p, N, "load");
  return *static_cast<const Bytes<N>*>(p);
}
template <int N>
inline void store(void* p, const Bytes<N>& v) {
  cuda_host::check_alignment(p, N, "store");
  *static_cast<Bytes<N>*>(p) = v;
}

template <int N>
inline void store_if(bool wanted, void* p, const Bytes<N>& v) {
  if (wanted) store<N>(p, v);
}
template <class T>
inline void keep(T*&) {}
inline void keep(uint32_t&) {}
inline void keep(int&) {}
inline void keep(float&) {}
inline const unsigned char* advance(const unsigned char* base, uint32_t bytes, uint32_t times) { return base + uint64_t(bytes) * times; }

// ---- conversions -------------------------------------------------------------------------------------------------------------
inline float bits_to_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline uint32_t float_to_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}
inline uint32_t bf16_bits(float f) {
  if (f != f) return 0x7fff;
  const uint32_t u = float_to_bits(f);
  return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
inline uint32_t f16_bits(float f) {
  if (f != f) return 0x7fff;
  const _Float16 h = static_cast<_Float16>(f);
  uint16_t u;
  std::memcpy(&u, &h, 2);
  return u;
}
inline uint32_t pack_bf16(float low, float high) { return bf16_bits(low) | bf16_bits(high) << 16; }
inline uint32_t pack_f16(float low, float high) { return f16_bits(low) | f16_bits(high) << 16; }
inline float f16_to_float(uint16_t h) {
  _Float16 f;
  std::memcpy(&f, &h, 2);
  return static_cast<float>(f);
}
inline float bf16_to_float(uint32_t h) { return bits_to_float(h << 16); }
// Round to nearest, ties away, to 10 mantissa bits.
inline uint32_t float_to_tf32(float f) {
  if (f != f) return 0x7fffffff;
  const uint32_t u = float_to_bits(f);
  return (u & 0x7f800000) == 0x7f800000 ? u : (u + 0x1000) & ~0x1fffu;
}

// ---- arithmetic --------------------------------------------------------------------------------------------------------------
inline float max_nan(float a, float b) { return a != a || b != b ? NAN : (a > b || (a == b && !std::signbit(a)) ? a : b); }
inline float min_nan(float a, float b) { return a != a || b != b ? NAN : (a < b || (a == b && std::signbit(a)) ? a : b); }
inline float min_number(float a, float b) { return std::fmin(a, b); }
inline float fast_exp2(float x) { return std::exp2(x); }
inline float fast_reciprocal(float x) { return 1.f / x; }
inline uint32_t multiply_high(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t(a) * b >> 32); }
inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = uint64_t(b) << 32 | a;
  uint32_t d = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t s = selector >> 4 * i & 0xf;
    uint32_t byte = static_cast<uint32_t>(both >> 8 * (s & 7)) & 0xff;
    if (s & 8) byte = byte & 0x80 ? 0xff : 0;
    d |= byte << 8 * i;
  }
  return d;
}
inline float half_of(uint32_t pair, int i, bool bf16) {
  const uint16_t h = static_cast<uint16_t>(pair >> 16 * i);
  return bf16 ? bf16_to_float(h) : f16_to_float(h);
}
inline uint32_t fma_bf16(uint32_t a, uint32_t b, uint32_t c) {
  float v[2];
  for (int i = 0; i < 2; ++i) v[i] = std::fma(half_of(a, i, true), half_of(b, i, true), half_of(c, i, true));
  return pack_bf16(v[0], v[1]);
}
inline uint32_t sign_mask(uint32_t a) { return permute_bytes(a, 0, 0xbb99); }
inline uint32_t greater_by_sign(uint32_t a, uint32_t b) { return sign_mask(fma_bf16(fma_bf16(a, 0xbf80bf80u, b), 0x3f803f80u, 0u)); }
inline uint32_t greater_mask(uint32_t a, uint32_t b, bool bf16) {
  uint32_t d = 0;
  for (int i = 0; i < 2; ++i)
    if (half_of(a, i, bf16) > half_of(b, i, bf16)) d |= 0xffffu << 16 * i;
  return d;
}
inline uint32_t greater_mask_f16(uint32_t a, uint32_t b) { return greater_mask(a, b, false); }
inline uint32_t greater_mask_bf16(uint32_t a, uint32_t b) { return greater_mask(a, b, true); }
template <class Pick>
inline uint32_t pick_halves(uint32_t a, uint32_t b, bool bf16, Pick pick) {
  uint32_t d = 0;
  for (int i = 0; i < 2; ++i) {
    const float v = pick(half_of(a, i, bf16), half_of(b, i, bf16));
    d |= (bf16 ? bf16_bits(v) : f16_bits(v)) << 16 * i;
  }
  return d;
}
inline uint32_t max_nan_f16(uint32_t a, uint32_t b) { return pick_halves(a, b, false, max_nan); }
inline uint32_t max_nan_bf16(uint32_t a, uint32_t b) { return pick_halves(a, b, true, max_nan); }
inline uint32_t min_f16(uint32_t a, uint32_t b) { return pick_halves(a, b, false, min_number); }
inline uint32_t min_bf16(uint32_t a, uint32_t b) { return pick_halves(a, b, true, min_number); }

// ---- warps -------------------------------------------------------------------------------------------------------------------
struct Shuffle {
  uint32_t value;
  int lanes;
  uint32_t result;
};
inline uint32_t shuffle_xor(uint32_t v, int lanes) {
  Shuffle s{v, lanes, 0};
  cuda_host::collective("shuffle_xor", 0xffffffffu, &s, [](void** operands, uint32_t) {
    for (int l = 0; l < 32; ++l) {
      Shuffle& me = *static_cast<Shuffle*>(operands[l]);
      me.result = static_cast<Shuffle*>(operands[l ^ me.lanes])->value;
    }
  });
  return s.result;
}
inline float shuffle_xor(float v, int lanes) { return bits_to_float(shuffle_xor(float_to_bits(v), lanes)); }
inline bool any_lane(bool v) {
  cuda_host::collective("any_lane", 0xffffffffu, &v, [](void** operands, uint32_t) {
    bool any = false;
    for (int l = 0; l < 32; ++l) any |= *static_cast<bool*>(operands[l]);
    for (int l = 0; l < 32; ++l) *static_cast<bool*>(operands[l]) = any;
  });
  return v;
}
inline void named_barrier(int id, int threads) { cuda_host::named_barrier(id, threads); }
inline void arrive_at_barrier(int id, int threads) { cuda_host::arrive_at_barrier(id, threads); }

// ---- asynchronous copies into shared memory ----------------------------------------------------------------------------------
using SharedAddress = uintptr_t;
inline SharedAddress shared_address(const void* p) { return reinterpret_cast<SharedAddress>(p); }
template <int N>
inline void store_shared(SharedAddress to, const Bytes<N>& v) {
  store<N>(reinterpret_cast<void*>(to), v);
}
template <int N>
inline Bytes<N> load_shared(SharedAddress from) {
  return load<N>(reinterpret_cast<const void*>(from));
}
template <int N>
inline void copy_async(void* to, const void* from, bool valid) {
  cuda_host::copy_async(to, from, N, valid ? N : 0);
}
inline void copy_async_if(bool wanted, SharedAddress to, const void* from, bool valid) {
  if (wanted) copy_async<16>(reinterpret_cast<void*>(to), from, valid);
}
inline void commit_copies() { cuda_host::commit_copies(); }
template <int GroupsLeft>
inline void wait_copies() {
  cuda_host::wait_copies(GroupsLeft);
}

// ---- tensor cores ------------------------------------------------------------------------------------------------------------
struct MatrixLoad {
  const void* row;
  uint32_t* d;
};
struct Mma {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};
// In ptx_host.cpp, which no build instruments.
void evaluate_matrix_load(void** operands, uint32_t);
void evaluate_matrix_load_transposed(void** operands, uint32_t);
void evaluate_mma_bf16(void** operands, uint32_t);
void evaluate_mma_f16(void** operands, uint32_t);
void evaluate_mma_tf32(void** operands, uint32_t);

inline void load_matrices(uint32_t (&d)[4], const void* row) {
  cuda_host::check_alignment(row, 16, "ldmatrix");
  cuda_host::note_shared_read(row, 16);
  MatrixLoad m{row, d};
  cuda_host::collective("ldmatrix.x4", 0xffffffffu, &m, evaluate_matrix_load);
}
inline void load_matrices_transposed(uint32_t (&d)[4], const void* row) {
  cuda_host::check_alignment(row, 16, "ldmatrix");
  cuda_host::note_shared_read(row, 16);
  MatrixLoad m{row, d};
  cuda_host::collective("ldmatrix.x4.trans", 0xffffffffu, &m, evaluate_matrix_load_transposed);
}

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Mma m{d, a, {b0, b1}};
  cuda_host::collective("mma.m16n8k16.bf16", 0xffffffffu, &m, evaluate_mma_bf16);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Mma m{d, a, {b0, b1}};
  cuda_host::collective("mma.m16n8k16.f16", 0xffffffffu, &m, evaluate_mma_f16);
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Mma m{d, a, {b0, b1}};
  cuda_host::collective("mma.m16n8k8.tf32", 0xffffffffu, &m, evaluate_mma_tf32);
}

}  // namespace fastconv::ptx
