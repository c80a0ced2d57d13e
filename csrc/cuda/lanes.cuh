// Comparisons on the packed elements of a 32-bit word: two of a 16-bit type, one float. A mask selects values; beside the 16 bytes of values
// that a thread handles goes one small integer for each element, its index, packed to bytes where masks are words.
#pragma once
#include "numeric.cuh"

namespace fastconv::cuda {

// Four words of two 16-bit elements: eight index bytes in two words.
struct PackedLanes {
  using Mask = uint32_t;
  static constexpr int kIndexWords = 2;
  FASTCONV_DEVICE static uint32_t select(uint32_t mask, uint32_t yes, uint32_t no) { return (yes & mask) | (no & ~mask); }
  FASTCONV_DEVICE static uint32_t splat_index(uint32_t i) { return i * 0x01010101u; }
  // One byte of each 16-bit mask.
  FASTCONV_DEVICE static void select_index(const Mask (&mask)[4], const uint32_t (&yes)[2], uint32_t (&no)[2]) {
    FASTCONV_UNROLL
    for (int i = 0; i < 2; ++i) no[i] = select(ptx::permute_bytes(mask[2 * i], mask[2 * i + 1], 0x6420), yes[i], no[i]);
  }
  FASTCONV_DEVICE static Bytes<8> index_bytes(const uint32_t (&index)[2]) { return {{index[0], index[1]}}; }
};

template <class T>
struct Lanes;

template <>
struct Lanes<bf16> : PackedLanes {
  static constexpr uint32_t kLowest = 0xff80ff80u, kHighest = 0x7f807f80u;  // minus and plus infinity
  FASTCONV_DEVICE static Mask greater(uint32_t a, uint32_t b) { return ptx::greater_mask_bf16(a, b); }
  FASTCONV_DEVICE static uint32_t max_nan(uint32_t a, uint32_t b) { return ptx::max_nan_bf16(a, b); }
  FASTCONV_DEVICE static uint32_t min_number(uint32_t a, uint32_t b) { return ptx::min_bf16(a, b); }
  FASTCONV_DEVICE static bool any_nan(uint32_t a) { return (a & 0x7fffu) > 0x7f80u || (a >> 16 & 0x7fffu) > 0x7f80u; }
  FASTCONV_DEVICE static bool any_lowest(uint32_t a) { return (a & 0xffffu) == 0xff80u || a >> 16 == 0xff80u; }
};
template <>
struct Lanes<f16> : PackedLanes {
  static constexpr uint32_t kLowest = 0xfc00fc00u, kHighest = 0x7c007c00u;
  FASTCONV_DEVICE static Mask greater(uint32_t a, uint32_t b) { return ptx::greater_mask_f16(a, b); }
  FASTCONV_DEVICE static uint32_t max_nan(uint32_t a, uint32_t b) { return ptx::max_nan_f16(a, b); }
  FASTCONV_DEVICE static uint32_t min_number(uint32_t a, uint32_t b) { return ptx::min_f16(a, b); }
  FASTCONV_DEVICE static bool any_nan(uint32_t a) { return (a & 0x7fffu) > 0x7c00u || (a >> 16 & 0x7fffu) > 0x7c00u; }
  FASTCONV_DEVICE static bool any_lowest(uint32_t a) { return (a & 0xffffu) == 0xfc00u || a >> 16 == 0xfc00u; }
};

// Four floats, and an index word for each.
template <>
struct Lanes<float> {
  using Mask = bool;
  static constexpr int kIndexWords = 4;
  static constexpr uint32_t kLowest = 0xff800000u, kHighest = 0x7f800000u;
  FASTCONV_DEVICE static Mask greater(uint32_t a, uint32_t b) { return ptx::bits_to_float(a) > ptx::bits_to_float(b); }
  FASTCONV_DEVICE static uint32_t select(Mask mask, uint32_t yes, uint32_t no) { return mask ? yes : no; }
  FASTCONV_DEVICE static uint32_t splat_index(uint32_t i) { return i; }
  FASTCONV_DEVICE static void select_index(const Mask (&mask)[4], const uint32_t (&yes)[4], uint32_t (&no)[4]) {
    FASTCONV_UNROLL
    for (int i = 0; i < 4; ++i) no[i] = select(mask[i], yes[i], no[i]);
  }
  FASTCONV_DEVICE static Bytes<4> index_bytes(const uint32_t (&index)[4]) {
    const uint32_t low = ptx::permute_bytes(index[0], index[1], 0x0040), high = ptx::permute_bytes(index[2], index[3], 0x0040);
    return {{ptx::permute_bytes(low, high, 0x5410)}};
  }
  FASTCONV_DEVICE static uint32_t max_nan(uint32_t a, uint32_t b) { return ptx::float_to_bits(ptx::max_nan(ptx::bits_to_float(a), ptx::bits_to_float(b))); }
  FASTCONV_DEVICE static uint32_t min_number(uint32_t a, uint32_t b) { return ptx::float_to_bits(ptx::min_number(ptx::bits_to_float(a), ptx::bits_to_float(b))); }
  FASTCONV_DEVICE static bool any_nan(uint32_t a) { return (a & 0x7fffffffu) > 0x7f800000u; }
  FASTCONV_DEVICE static bool any_lowest(uint32_t a) { return a == kLowest; }
};

}  // namespace fastconv::cuda
