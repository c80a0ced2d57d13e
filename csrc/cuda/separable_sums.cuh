// The sums of a fused kernel for channels_last maps: they start from the bias; residual and activation are applied to them in registers, and each lane
// stores 16 bytes. Lane 4g + t of a warp owns channels 8t .. 8t + 7 of 32 (product.cuh).
#pragma once
#include "separable_tile.cuh"

namespace fastconv::cuda {

template <class T>
FASTCONV_DEVICE float bias_at(const SeparableArgs& a, int channel) {
  return a.bias && channel < a.o ? Element<T>::value(static_cast<const T*>(a.bias)[channel]) : 0.f;
}

// `bias_of(i)`: of the lane's i-th channel.
template <int MT, class Bias>
FASTCONV_DEVICE void start_pixels(float (&acc)[MT][4][4], const Bias& bias_of) {
  FASTCONV_UNROLL
  for (int i = 0; i < 8; ++i) {
    const float bias = bias_of(i);
    FASTCONV_UNROLL
    for (int m = 0; m < 2 * MT; ++m) acc[m / 2][i / 2][m % 2 * 2 + i % 2] = bias;
  }
}

// Eight output channels of a pixel (channels_last).
template <class M, int Threads>
FASTCONV_DEVICE void finish_pixel(const SeparableArgs& a, float (&v)[8], int64_t offset, int channel, float* scratch) {
  using T = typename M::T;
  constexpr int kPer = kElements<T, 16>;
  const int count = a.o - channel;
  if (a.residual) {
    const T* residual = static_cast<const T*>(a.residual) + offset + channel;
    FASTCONV_UNROLL
    for (int i = 0; i < 8; i += kPer) {
      float r[kPer];
      if (a.vectors) {
        unpack<T>(ptx::load<16>(residual + i), r);
      } else {
        FASTCONV_UNROLL
        for (int k = 0; k < kPer; ++k) r[k] = i + k < count ? Element<T>::value(residual[i + k]) : 0.f;
      }
      FASTCONV_UNROLL
      for (int k = 0; k < kPer; ++k) v[i + k] += r[k];
    }
  }
  activate_values<sizeof(T) == 2, Threads>(a.activation, v, scratch);
  T* out = static_cast<T*>(a.out) + offset + channel;
  FASTCONV_UNROLL
  for (int i = 0; i < 8; i += kPer) {
    float part[kPer];
    FASTCONV_UNROLL
    for (int k = 0; k < kPer; ++k) part[k] = v[i + k];
    if (a.vectors) {
      ptx::store<16>(out + i, pack<T, 16>(part));
    } else {
      FASTCONV_UNROLL
      for (int k = 0; k < kPer; ++k)
        if (i + k < count) out[i + k] = Element<T>::element(part[k]);
    }
  }
}

// `offsets` of the warp's pixels in the result, -1 where there is none.
template <class M, int Threads, int MT>
FASTCONV_DEVICE void finish_pixels(const SeparableArgs& a, const float (&acc)[MT][4][4], const int64_t* offsets, int first, int last, float* scratch) {
  const int g = threadIdx.x % 32 / 4, channel = first + threadIdx.x % 4 * 8;
  if (channel >= last) return;
  FASTCONV_UNROLL
  for (int m = 0; m < 2 * MT; ++m) {
    const int64_t offset = offsets[m * 8 + g];
    if (offset < 0) continue;
    float v[8];
    FASTCONV_UNROLL
    for (int i = 0; i < 8; ++i) v[i] = acc[m / 2][i / 2][m % 2 * 2 + i % 2];
    finish_pixel<M, Threads>(a, v, offset, channel, scratch);
  }
}

}  // namespace fastconv::cuda
