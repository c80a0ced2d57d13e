// Gradients of depthwise convolutions that have no kernel of their own (any kernel size, stride, dilation, depth multiplier, either layout), and
// the last stage that all weight gradients share.
#pragma once
#include "activation.cuh"
#include "common/fast_division.h"
#include "common/plan_depthwise.h"
#include "numeric.cuh"
#include "rows.cuh"

namespace fastconv::cuda {

struct DepthwiseBackwardGeneralArgs {
  const void* x;
  const void* grad;
  const void* weight;  // (C*M, Kh, Kw)
  void* dx;            // strides of x
  float* partials;     // (split, C*M, Kh*Kw + 1), the bias last
  int64_t sn, sc, sh, sw;  // of x
  int64_t gn, gc, gh, gw;  // of grad
  int h, w, oh, ow, kh, kw, stride_h, stride_w, dh, dw, pt, pl, multiplier, channels;
  FastDivision by_stride_h, by_stride_w, by_multiplier;
  ActivationArgs input_activation;
};

// One element of dx a thread.
template <class T>
FASTCONV_KERNEL(256, 1) depthwise_dx_elements(DepthwiseBackwardGeneralArgs a, Rows rows) {
  const RowsAt at = rows_at(rows);
  for (uint32_t i = threadIdx.x; i < at.elements; i += 256) {
    uint32_t in_row, c;
    const int iy = at.first + static_cast<int>(rows.by_row.divide(i, &in_row));
    const int ix = static_cast<int>(rows.by_pixel.divide(in_row, &c));
    c += at.plane;
    float sum = 0.f;
    FASTCONV_NO_UNROLL
    for (int ky = 0; ky < a.kh; ++ky) {
      uint32_t between;
      const int from_y = iy + a.pt - ky * a.dh;
      if (from_y < 0) break;
      const int y = static_cast<int>(a.by_stride_h.divide(static_cast<uint32_t>(from_y), &between));
      if (between || y >= a.oh) continue;
      FASTCONV_NO_UNROLL
      for (int kx = 0; kx < a.kw; ++kx) {
        const int from_x = ix + a.pl - kx * a.dw;
        if (from_x < 0) break;
        const int x = static_cast<int>(a.by_stride_w.divide(static_cast<uint32_t>(from_x), &between));
        if (between || x >= a.ow) continue;
        const T* grad = static_cast<const T*>(a.grad) + at.n * a.gn + y * a.gh + x * a.gw;
        FASTCONV_NO_UNROLL
        for (int j = 0; j < a.multiplier; ++j) {
          const int64_t channel = int64_t(c) * a.multiplier + j;
          const float w = Element<T>::value(static_cast<const T*>(a.weight)[(channel * a.kh + ky) * a.kw + kx]);
          sum += w * Element<T>::value(grad[channel * a.gc]);
        }
      }
    }
    const int64_t to = at.n * a.sn + c * a.sc + iy * a.sh + ix * a.sw;
    if (a.input_activation.kind != Activation::identity) {
      sum *= derivative_any<sizeof(T) == 2>(a.input_activation, Element<T>::value(static_cast<const T*>(a.x)[to]));
    }
    static_cast<T*>(a.dx)[to] = Element<T>::element(sum);
  }
}

// Weight gradient: a block takes `lanes` channels and a split of the output's positions. Its threads carry a few taps at a time in registers down
// their positions, then the block adds them up in order.
template <class T>
FASTCONV_KERNEL(256, 2) depthwise_dw_elements(DepthwiseBackwardGeneralArgs a, FastDivision by_lanes, FastDivision by_slices, FastDivision by_row, FastDivision by_plane, uint32_t positions, int splits) {
  constexpr int kTaps = kDepthwiseTapsAtOnce, kThreads = 256;
  SharedCarver shared;
  float* totals = shared.take<float>(kTaps * kThreads);
  uint32_t slice, lane;
  const uint32_t split = by_slices.divide(blockIdx.x, &slice), group = by_lanes.divide(threadIdx.x, &lane);
  const int lanes = static_cast<int>(by_lanes.divisor), groups = kThreads / lanes;
  const int channel = static_cast<int>(slice) * lanes + static_cast<int>(lane), taps = a.kh * a.kw;
  const bool active = static_cast<int>(group) < groups && channel < a.channels;
  const int input_channel = static_cast<int>(a.by_multiplier.divide(active ? static_cast<uint32_t>(channel) : 0));

  FASTCONV_NO_UNROLL
  for (int first = 0; first <= taps; first += kTaps) {
    float sums[kTaps];
    FASTCONV_UNROLL
    for (int t = 0; t < kTaps; ++t) sums[t] = 0.f;
    FASTCONV_NO_UNROLL
    for (uint32_t i = split * groups + group; active && i < positions; i += static_cast<uint32_t>(splits * groups)) {
      uint32_t in_plane, ox;
      const int n = static_cast<int>(by_plane.divide(i, &in_plane)), oy = static_cast<int>(by_row.divide(in_plane, &ox));
      const float g = Element<T>::value(static_cast<const T*>(a.grad)[n * a.gn + int64_t(channel) * a.gc + oy * a.gh + static_cast<int>(ox) * a.gw]);
      const T* plane = static_cast<const T*>(a.x) + n * a.sn + int64_t(input_channel) * a.sc;
      int ky = first / a.kw, kx = first - ky * a.kw;
      FASTCONV_UNROLL
      for (int t = 0; t < kTaps; ++t) {
        const int iy = oy * a.stride_h - a.pt + ky * a.dh, ix = static_cast<int>(ox) * a.stride_w - a.pl + kx * a.dw;
        // The tap after the last is the bias.
        if (first + t < taps) {
          if (iy >= 0 && iy < a.h && ix >= 0 && ix < a.w)
            sums[t] += g * activate_any<sizeof(T) == 2>(a.input_activation, Element<T>::value(plane[iy * a.sh + ix * a.sw]));
        } else if (first + t == taps) {
          sums[t] += g;
        }
        if (++kx == a.kw) kx = 0, ++ky;
      }
    }
    FASTCONV_UNROLL
    for (int t = 0; t < kTaps; ++t) totals[t * kThreads + threadIdx.x] = sums[t];
    sync_threads();
    // Halves of the groups onto each other: a tree of fixed shape.
    int left = groups;
    FASTCONV_NO_UNROLL
    while (left > 1) {
      const int half = (left + 1) / 2;
      if (static_cast<int>(group) < left - half) {
        FASTCONV_UNROLL
        for (int t = 0; t < kTaps; ++t) totals[t * kThreads + threadIdx.x] += totals[t * kThreads + threadIdx.x + half * lanes];
      }
      left = half;
      sync_threads();
    }
    if (group == 0 && active) {
      FASTCONV_UNROLL
      for (int t = 0; t < kTaps; ++t)
        if (first + t <= taps) a.partials[(int64_t(split) * a.channels + channel) * (taps + 1) + first + t] = totals[t * kThreads + threadIdx.x];
    }
    sync_threads();
  }
}

// dw and db from the partial results of `count` splits: 32 sums a block, each by eight threads that take every eighth split, in order.
template <class T>
FASTCONV_KERNEL(256, 4) sum_partials(const float* partials, int count, int channels, FastDivision by_taps, void* dw, void* db) {
  SharedCarver shared;
  float* totals = shared.take<float>(256);
  const int lane = static_cast<int>(threadIdx.x) & 31, part = static_cast<int>(threadIdx.x) >> 5;
  const int columns = channels * static_cast<int>(by_taps.divisor), i = static_cast<int>(blockIdx.x) * 32 + lane;
  float total = 0.f;
  if (i < columns) {
    const float* from = partials + i;
    _Pragma("unroll 8")
    for (int split = part; split < count; split += 8) total += from[int64_t(split) * columns];
  }
  totals[threadIdx.x] = total;
  sync_threads();
  if (part || i >= columns) return;
  FASTCONV_UNROLL
  for (int p = 1; p < 8; ++p) total += totals[p * 32 + lane];
  uint32_t tap;
  const uint32_t channel = by_taps.divide(static_cast<uint32_t>(i), &tap);
  const uint32_t taps = by_taps.divisor - 1;
  if (tap == taps) {
    if (db) static_cast<T*>(db)[channel] = Element<T>::element(total);
  } else if (dw) {
    static_cast<T*>(dw)[int64_t(channel) * taps + tap] = Element<T>::element(total);
  }
}

// grad * activation'(z), where z is the activation's output (relu, relu6) or its input (the others); 16 bytes a thread, the rest element by element.
template <class T>
FASTCONV_KERNEL(256, 4) gate_elements(const void* grad, const void* z, void* dz, int64_t elements, ActivationArgs activation, bool vectors) {
  constexpr int V = kElements<T, 16>;
  const int64_t thread = int64_t(blockIdx.x) * 256 + threadIdx.x, threads = int64_t(gridDim.x) * 256;
  const int64_t whole = vectors ? elements / V : 0;
  for (int64_t i = thread; i < whole; i += threads) {
    float g[V], v[V];
    unpack<T>(ptx::load<16>(static_cast<const T*>(grad) + i * V), g);
    unpack<T>(ptx::load<16>(static_cast<const T*>(z) + i * V), v);
    FASTCONV_UNROLL
    for (int k = 0; k < V; ++k) g[k] *= derivative_any<sizeof(T) == 2>(activation, v[k]);
    ptx::store<16>(static_cast<T*>(dz) + i * V, pack<T, 16>(g));
  }
  for (int64_t i = whole * V + thread; i < elements; i += threads) {
    const float g = Element<T>::value(static_cast<const T*>(grad)[i]);
    static_cast<T*>(dz)[i] = Element<T>::element(g * derivative_any<sizeof(T) == 2>(activation, Element<T>::value(static_cast<const T*>(z)[i])));
  }
}

}  // namespace fastconv::cuda
