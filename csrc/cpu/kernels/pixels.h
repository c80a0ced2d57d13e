// Runs of pixels of a map <-> float32 scratch with the channels innermost, whatever the map's layout and dtype.
#pragma once
#include "common/shape.h"
#include "transpose.h"

namespace fastconv::FASTCONV_ISA {

template <class T>
FASTCONV_INLINE vf load_lanes(const T* p, int64_t n) { return n >= L ? load(p) : load_part(p, int(n)); }
template <class T>
FASTCONV_INLINE void store_lanes(T* p, vf v, int64_t n) {
  if (n >= L)
    store(p, v);
  else
    store_part(p, v, int(n));
}

// `channels` channels of `pixels` neighbours of a map -> `to`, channels innermost, `step` floats between pixels. Lanes up to the next
// multiple of L are written too (as 0).
template <class T>
inline void load_pixels(const T* from, int64_t channel_stride, int64_t pixel_stride, int64_t channels, int64_t pixels, float* to, int64_t step) {
  if (channel_stride == 1) {
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t c = 0; c < channels; c += L) store(to + p * step + c, load_lanes(from + p * pixel_stride + c, channels - c));
    return;
  }
  for (int64_t c = 0; c < channels; c += L)
    for (int64_t p = 0; p < pixels; p += L) {
      vf block[L];
      for (int i = 0; i < L; ++i) block[i] = c + i < channels ? load_lanes(from + (c + i) * channel_stride + p, pixels - p) : vf{};
      transpose(block);
      const int64_t n = min64(L, pixels - p);
      for (int64_t i = 0; i < n; ++i) store(to + (p + i) * step + c, block[i]);
    }
}

template <class T>
inline void store_pixels(T* to, int64_t channel_stride, int64_t pixel_stride, int64_t channels, int64_t pixels, const float* from, int64_t step) {
  if (channel_stride == 1) {
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t c = 0; c < channels; c += L) store_lanes(to + p * pixel_stride + c, load(from + p * step + c), channels - c);
    return;
  }
  for (int64_t c = 0; c < channels; c += L)
    for (int64_t p = 0; p < pixels; p += L) {
      vf block[L];
      const int64_t n = min64(L, pixels - p);
      for (int i = 0; i < L; ++i) block[i] = i < n ? load(from + (p + i) * step + c) : vf{};
      transpose(block);
      const int64_t rows = min64(L, channels - c);
      for (int64_t i = 0; i < rows; ++i) store_lanes(to + (c + i) * channel_stride + p, block[i], pixels - p);
    }
}

}  // namespace fastconv::FASTCONV_ISA
