// Element types as kernels see them: bits in memory, float (or double) in registers, and pairs of 16-bit elements in one 32-bit word.
#pragma once
#include "common/params.h"
#include "ptx.cuh"

namespace fastconv::cuda {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class T>
struct Element;

template <>
struct Element<bf16> {
  using Value = float;
  static constexpr int kPerWord = 2;
  FASTCONV_DEVICE static float value(bf16 e) { return ptx::bits_to_float(static_cast<uint32_t>(e.bits) << 16); }
  FASTCONV_DEVICE static bf16 element(float v) { return {static_cast<uint16_t>(ptx::pack_bf16(v, 0.f))}; }
  FASTCONV_DEVICE static float unpack(uint32_t word, int i) { return ptx::bits_to_float(i ? word & 0xffff0000u : word << 16); }
  FASTCONV_DEVICE static uint32_t pack(float low, float high) { return ptx::pack_bf16(low, high); }
};

template <>
struct Element<f16> {
  using Value = float;
  static constexpr int kPerWord = 2;
  FASTCONV_DEVICE static float value(f16 e) { return ptx::f16_to_float(e.bits); }
  FASTCONV_DEVICE static f16 element(float v) { return {static_cast<uint16_t>(ptx::pack_f16(v, 0.f))}; }
  FASTCONV_DEVICE static float unpack(uint32_t word, int i) { return ptx::f16_to_float(static_cast<uint16_t>(i ? word >> 16 : word)); }
  FASTCONV_DEVICE static uint32_t pack(float low, float high) { return ptx::pack_f16(low, high); }
};

template <>
struct Element<float> {
  using Value = float;
  static constexpr int kPerWord = 1;
  FASTCONV_DEVICE static float value(float e) { return e; }
  FASTCONV_DEVICE static float element(float v) { return v; }
  FASTCONV_DEVICE static float unpack(uint32_t word, int) { return ptx::bits_to_float(word); }
  FASTCONV_DEVICE static uint32_t pack(float low, float) { return ptx::float_to_bits(low); }
};

template <>
struct Element<double> {
  using Value = double;
  FASTCONV_DEVICE static double value(double e) { return e; }
  FASTCONV_DEVICE static double element(double v) { return v; }
};

// The element in the low bits of a word.
FASTCONV_DEVICE void fill_element(bf16& e, uint32_t word) { e.bits = static_cast<uint16_t>(word); }
FASTCONV_DEVICE void fill_element(f16& e, uint32_t word) { e.bits = static_cast<uint16_t>(word); }
FASTCONV_DEVICE void fill_element(float& e, uint32_t word) { e = ptx::bits_to_float(word); }

// Elements of T in a vector of N bytes.
template <class T, int N>
constexpr int kElements = N / static_cast<int>(sizeof(T));

template <class T, int N>
FASTCONV_DEVICE void unpack(const Bytes<N>& v, float (&f)[kElements<T, N>]) {
  constexpr int kPer = Element<T>::kPerWord;
  FASTCONV_UNROLL
  for (int i = 0; i < kElements<T, N>; ++i) f[i] = Element<T>::unpack(v.word[i / kPer], i % kPer);
}
template <class T, int N>
FASTCONV_DEVICE Bytes<N> pack(const float (&f)[kElements<T, N>]) {
  constexpr int kPer = Element<T>::kPerWord;
  Bytes<N> v;
  FASTCONV_UNROLL
  for (int w = 0; w < N / 4; ++w) v.word[w] = Element<T>::pack(f[w * kPer], f[w * kPer + kPer - 1]);
  return v;
}

// Calls f with a value of the element type for `dtype` as a tag.
template <class F>
void with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: return f(float{});
    case DType::f16: return f(f16{});
    case DType::bf16: return f(bf16{});
    case DType::f64: return;
  }
}
template <class F>
void with_any_dtype(DType dtype, F&& f) {
  if (dtype == DType::f64) return f(double{});
  with_dtype(dtype, f);
}

}  // namespace fastconv::cuda
