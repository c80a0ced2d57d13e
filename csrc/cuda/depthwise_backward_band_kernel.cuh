// Both gradients of a depthwise convolution, stride 1, contiguous: bands of grad (with their halo) and of x (without) are staged in shared memory,
// see band.cuh; the arithmetic is that of depthwise_backward_kernel.cuh for one channel. Every item gives one partial result of dw, its threads
// added up in a fixed order.
#pragma once
#include "activation.cuh"
#include "band.cuh"
#include "common/plan_depthwise.h"
#include "strips.cuh"

namespace fastconv::cuda {

struct DepthwiseBackwardBandArgs {
  const void* x;
  const void* grad;
  const void* weight;  // (C, K, K)
  void* dx;            // strides of x; or null
  float* partials;     // (n, item of the plane, C, K*K + 1), the bias last
  int64_t sn, sc, sh;  // of x
  int h, w;            // of x
  int y_low, x_low;    // position 0 of the division into bands, in x
  int dw;
  uint32_t items_per_plane;
  int channels;
  ActivationArgs input_activation;
};

template <class T, int K, bool Activated>
FASTCONV_KERNEL(256, K == 3 ? 3 : K == 5 ? 2 : 1) depthwise_backward_bands(DepthwiseBackwardBandArgs a, Band b, Band own) {
  constexpr int Q = depthwise_band_columns(K), kTaps = K * K, kCentre = (K - 1) / 2, kThreads = 256;
  SharedCarver shared;
  T* staged = shared.take<T>(b.items_per_block * b.input_rows * b.pitch);
  T* staged_x = shared.take<T>(b.items_per_block * own.input_rows * own.pitch);
  float* totals = shared.take<float>((kTaps + 1) * kThreads);
  const uint32_t first_item = blockIdx.x * b.items_per_block;
  const uint32_t item_count = b.items - first_item < static_cast<uint32_t>(b.items_per_block) ? b.items - first_item : b.items_per_block;
  stage_bands<T>(b, static_cast<const T*>(a.grad), first_item, item_count, staged, 0);
  stage_bands<T>(own, static_cast<const T*>(a.x), first_item, item_count, staged_x, 0);

  uint32_t lane;
  const uint32_t item = b.by_lanes.divide(threadIdx.x, &lane);
  const bool active = item < item_count;
  const BandAt at = band_at(b, first_item + (active ? item : 0));
  float weight[K][K], sums[K][K], bias_sum = 0.f;
  const T* w = static_cast<const T*>(a.weight) + int64_t(at.c) * kTaps;
  FASTCONV_UNROLL
  for (int t = 0; t < kTaps; ++t) weight[t / K][t % K] = Element<T>::value(w[t]), sums[t / K][t % K] = 0.f;
  ptx::wait_copies<0>();
  sync_threads();

  const int columns = b.w - at.x < b.columns ? b.w - at.x : b.columns;
  int column[Q];
  uint32_t owned[Q];  // a mask of bits: lanes beyond the map's edge read what the last column's lane reads, and count it for nothing
  bool stored[Q];
  FASTCONV_UNROLL
  for (int q = 0; q < Q; ++q) {
    const int c = static_cast<int>(lane) + q * b.lanes, x = at.x + c + a.x_low;
    column[q] = c < columns ? c : columns - 1;
    owned[q] = c < columns ? 0xffffffffu : 0;
    stored[q] = c < columns && below(x, a.w) && a.dx;
  }
  const T* grad_row = staged + item * b.input_rows * b.pitch;
  const T* x_row = staged_x + item * own.input_rows * own.pitch;
  constexpr uint32_t kWrap = 16 / sizeof(T) - 1;
  uint32_t grad_offset = staged_offset<T>(b, a.grad, at, 0), x_offset = staged_offset<T>(own, a.x, at, 0);
  const uint32_t grad_offset_step = static_cast<uint32_t>(b.dh * b.sh), x_offset_step = static_cast<uint32_t>(own.dh * own.sh);
  const int64_t start = at.n * a.sn + at.c * a.sc + (at.y + a.y_low) * a.sh + at.x + a.x_low;
  // Where dx is not wanted, an address that is never used.
  T* dx = static_cast<T*>(a.dx ? a.dx : const_cast<void*>(a.x)) + start;
  int dx_y = at.y + a.y_low;

  float window[K][Q], running[K - 1][Q];
  FASTCONV_UNROLL
  for (int i = 0; i < K * Q; ++i) window[i / Q][i % Q] = 0.f;
  FASTCONV_UNROLL
  for (int i = 0; i < (K - 1) * Q; ++i) running[i / Q][i % Q] = 0.f;
  const int steps = active ? at.rows + K - 1 : 0;
  FASTCONV_NO_UNROLL
  for (int base = 0; base < steps; base += K) {
    FASTCONV_UNROLL
    for (int u = 0; u < K; ++u) {
      const int m = base + u;
      if (m >= steps) break;
      float g[Q][K];
      FASTCONV_UNROLL
      for (int kx = 0; kx < K; ++kx) {
        const T* tap = grad_row + (grad_offset & kWrap) + (K - 1 - kx) * a.dw;
        FASTCONV_UNROLL
        for (int q = 0; q < Q; ++q) g[q][kx] = Element<T>::value(tap[column[q]]);
      }
      grad_row += b.pitch, grad_offset += grad_offset_step;
      FASTCONV_UNROLL
      for (int q = 0; q < Q; ++q) window[u][q] = 0.f;
      if (m < at.rows) {
        FASTCONV_UNROLL
        for (int q = 0; q < Q; ++q) {
          const float v = ptx::bits_to_float(ptx::float_to_bits(Element<T>::value(x_row[(x_offset & kWrap) + column[q]])) & owned[q]);
          window[u][q] = Activated ? activate<Form::clamp, true>(a.input_activation, v) : v;
        }
      }
      x_row += own.pitch, x_offset += x_offset_step;

      FASTCONV_UNROLL
      for (int ky = 0; ky < K; ++ky)
        FASTCONV_UNROLL
        for (int kx = 0; kx < K; ++kx)
          FASTCONV_UNROLL
          for (int q = 0; q < Q; ++q) sums[ky][kx] += window[(u + 1 + ky) % K][q] * g[q][kx];
      if (below(m - (K - 1 - kCentre), at.rows)) {
        FASTCONV_UNROLL
        for (int q = 0; q < Q; ++q) bias_sum += ptx::bits_to_float(ptx::float_to_bits(g[q][kCentre]) & owned[q]);
      }
      auto add_row = [&](float sum, int ky, int q) {
        FASTCONV_UNROLL
        for (int kx = 0; kx < K; ++kx) sum += weight[ky][kx] * g[q][kx];
        return sum;
      };
      float done[Q];
      FASTCONV_UNROLL
      for (int q = 0; q < Q; ++q) {
        done[q] = add_row(running[K - 2][q], 0, q);
        FASTCONV_UNROLL
        for (int j = K - 2; j > 0; --j) running[j][q] = add_row(running[j - 1][q], K - 1 - j, q);
        running[0][q] = add_row(0.f, K - 1, q);
      }
      if (m < K - 1) continue;
      if (below(dx_y, a.h)) {
        FASTCONV_UNROLL
        for (int q = 0; q < Q; ++q) {
          if (!stored[q]) continue;
          if constexpr (Activated) done[q] = clamp_gate(a.input_activation, window[(u + 1) % K][q], done[q]);
          dx[column[q]] = Element<T>::element(done[q]);
        }
      }
      dx_y += b.dh, dx += b.dh * a.sh;
    }
  }

  FASTCONV_UNROLL
  for (int t = 0; t < kTaps; ++t) totals[t * kThreads + threadIdx.x] = sums[t / K][t % K];
  totals[kTaps * kThreads + threadIdx.x] = bias_sum;
  sync_threads();
  // An item's threads in segments, then the segments: few additions one after the other, always the same ones.
  const int sums_wanted = static_cast<int>(item_count) * (kTaps + 1), segments = kThreads / sums_wanted > 1 ? kThreads / sums_wanted : 1;
  const int segment_lanes = (b.lanes + segments - 1) / segments;
  FASTCONV_NO_UNROLL
  for (int i = threadIdx.x; i < sums_wanted * segments; i += kThreads) {
    const int segment = i % segments, wanted = i / segments, tap = wanted % (kTaps + 1), of_item = wanted / (kTaps + 1);
    float* from = totals + tap * kThreads + of_item * b.lanes;
    const int low = segment * segment_lanes, high = low + segment_lanes < b.lanes ? low + segment_lanes : b.lanes;
    float total = 0.f;
    FASTCONV_NO_UNROLL
    for (int l = low; l < high; ++l) total += from[l];
    if (low < high) from[low] = total;
  }
  sync_threads();
  FASTCONV_NO_UNROLL
  for (int i = threadIdx.x; i < sums_wanted; i += kThreads) {
    const int tap = i % (kTaps + 1), of_item = i / (kTaps + 1);
    const float* from = totals + tap * kThreads + of_item * b.lanes;
    float total = 0.f;
    FASTCONV_NO_UNROLL
    for (int low = 0; low < b.lanes; low += segment_lanes) total += from[low];
    const BandAt done = band_at(b, first_item + of_item);
    const uint32_t of_plane = (first_item + of_item) % a.items_per_plane;
    a.partials[((int64_t(done.n) * a.items_per_plane + of_plane) * a.channels + done.c) * (kTaps + 1) + tap] = total;
  }
}

}  // namespace fastconv::cuda
