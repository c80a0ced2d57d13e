// Both gradients of a depthwise convolution, stride 1, channels_last, from one load of each operand:
//
//   dx[p] = sum_t w[t] grad[p - t],   dw[t] = sum_p x[p] grad[p - t]
//
// share a window of grad, so x needs no halo. A thread owns a few channels and Q columns of a residue class and marches down its rows. Each row of
// grad that arrives continues K-1 running sums of dx, as in the forward kernel, and meets the K rows of x that it belongs to, which wait in a
// register ring (the loop is unrolled K times, so that the ring turns by renaming). The sums of dw and of the bias stay in registers over all
// strips of a thread, then the block adds its threads up in a fixed order and writes one partial result; sum_partials adds those up, again in
// order: no atomics, the same bits every time.
//
// Positions are numbered so that every element of x and every element of grad has one owner, for any padding: see Reach.
#pragma once
#include "activation.cuh"
#include "common/plan_depthwise.h"
#include "numeric.cuh"
#include "strips.cuh"

namespace fastconv::cuda {

struct DepthwiseBackwardArgs {
  const void* x;
  const void* grad;
  const void* weight;  // (C, K, K)
  void* dx;            // strides of x; or null
  float* partials;     // (split, C, K*K + 1), the bias last
  int64_t sn, sh, sw;  // of x
  int64_t gn, gh, gw;  // of grad
  int h, w, oh, ow, dh, dw;
  int y_low, x_low;    // position 0 of the division into strips, in x
  int grad_y, grad_x;  // row and column of grad that tap (0, 0) of x's row and column 0 takes
  int channels;
  ActivationArgs input_activation;
};

// Threads of a block: `vectors` channel vectors side by side, several strips at a time; splits of the strips are blocks of their own.
struct Slots {
  FastDivision by_slices, by_vectors;
  int groups, splits, vectors;  // strips at a time, blocks along the strips, vectors of the whole map
  uint32_t strips;              // of one vector

  explicit Slots(const SlotPlan& p)
      : by_slices(p.slices),
        by_vectors(p.slice_vectors),
        groups(static_cast<int>(p.groups)),
        splits(static_cast<int>(p.splits)),
        vectors(static_cast<int>(p.vectors)),
        strips(static_cast<uint32_t>(p.strips)) {}
};

// Activated: the input passes through relu or relu6 first.
template <class T, int K, bool WithDx, bool Activated>
FASTCONV_KERNEL(128, 2) depthwise_backward_pixels(DepthwiseBackwardArgs a, Strips strips, Slots slots) {
  constexpr int C = depthwise_backward_channels(K), Q = depthwise_backward_columns(K), kColumns = Q + K - 1, kBytes = C * sizeof(T);
  constexpr int kThreads = 128, kStages = kDepthwiseStages, kSlot = kBytes * kThreads, kRow = (kColumns + Q) * kSlot, kTaps = K * K, kCentre = (K - 1) / 2;
  SharedCarver shared;
  constexpr int kRing = kStages * kRow, kSums = (kTaps + 1) * C * kThreads * static_cast<int>(sizeof(float));
  unsigned char* memory = shared.take<unsigned char>(kRing > kSums ? kRing : kSums);
  unsigned char* ring = memory + threadIdx.x * kBytes;

  uint32_t slice, lane_vector;
  const uint32_t split = slots.by_slices.divide(blockIdx.x, &slice), group = slots.by_vectors.divide(threadIdx.x, &lane_vector);
  const int vector = static_cast<int>(slice * slots.by_vectors.divisor + lane_vector);
  const bool active = static_cast<int>(group) < slots.groups && vector < slots.vectors;

  float weight[K][K][C], sums[K][K][C], bias_sum[C];
  FASTCONV_UNROLL
  for (int c = 0; c < C; ++c) {
    const T* w = static_cast<const T*>(a.weight) + (int64_t(active ? vector : 0) * C + c) * kTaps;
    FASTCONV_UNROLL
    for (int t = 0; t < kTaps; ++t) {
      if constexpr (WithDx) weight[t / K][t % K][c] = Element<T>::value(w[t]);
      sums[t / K][t % K][c] = 0.f;
    }
    bias_sum[c] = 0.f;
  }

  int stage = 0;
  const uint32_t first = split * slots.groups + group, step = static_cast<uint32_t>(slots.splits * slots.groups);
  FASTCONV_NO_UNROLL
  for (uint32_t index = first; active && index < slots.strips; index += step) {
    StripAt s = strip_at(strips, index * strips.by_vectors.divisor);
    const int columns_left = (strips.w - s.x + a.dw - 1) / a.dw;
    s.y += a.y_low, s.x += a.x_low;
    const int steps = s.rows + K - 1;
    int grad_y = s.y + a.grad_y - (K - 1) * a.dh, y = s.y;
    const int grad_x = s.x + a.grad_x - (K - 1) * a.dw;
    uint32_t inside = 0, owned = 0;
    FASTCONV_UNROLL
    for (int j = 0; j < kColumns; ++j) inside |= static_cast<uint32_t>(grad_x + j * a.dw >= 0 && grad_x + j * a.dw < a.ow) << j;
    FASTCONV_UNROLL
    for (int q = 0; q < Q; ++q) owned |= static_cast<uint32_t>(q < columns_left && s.x + q * a.dw >= 0 && s.x + q * a.dw < a.w) << q;
    auto clip = [](int end, int size) { return end < 0 ? 0 : end < size ? end : size; };
    const int grad_end = clip(grad_y + steps * a.dh, a.oh), end = clip(y + s.rows * a.dh, a.h);
    const T* grad = static_cast<const T*>(a.grad) + s.n * a.gn + grad_y * a.gh + grad_x * a.gw + int64_t(vector) * C;
    const int64_t start = s.n * a.sn + y * a.sh + s.x * a.sw + int64_t(vector) * C;
    const T* x = static_cast<const T*>(a.x) + start;
    // Where dx is not wanted, an address that is never used.
    T* dx = static_cast<T*>(a.dx ? a.dx : const_cast<void*>(a.x)) + start;
    const int64_t grad_column = a.dw * a.gw, column = a.dw * a.sw, grad_row = a.dh * a.gh, row = a.dh * a.sh;

    auto fetch = [&](unsigned char* to) {
      const uint32_t valid = below(grad_y, grad_end) ? inside : 0, valid_x = below(y, end) ? owned : 0;
      FASTCONV_UNROLL
      for (int j = 0; j < kColumns; ++j) ptx::copy_async<kBytes>(to + j * kSlot, grad + j * grad_column, valid >> j & 1);
      FASTCONV_UNROLL
      for (int q = 0; q < Q; ++q) ptx::copy_async<kBytes>(to + (kColumns + q) * kSlot, x + q * column, valid_x >> q & 1);
      ptx::commit_copies();
      grad_y += a.dh, grad += grad_row, y += a.dh, x += row;
    };
    FASTCONV_NO_UNROLL
    for (int i = 0; i < kStages - 1; ++i) {
      const int to = stage + i * kRow;
      fetch(ring + (to < kRing ? to : to - kRing));
    }

    float window[K][Q][C], running[K - 1][Q][C];
    FASTCONV_UNROLL
    for (int i = 0; i < K * Q * C; ++i) window[i / (Q * C)][i / C % Q][i % C] = 0.f;
    FASTCONV_UNROLL
    for (int i = 0; i < (K - 1) * Q * C; ++i) running[i / (Q * C)][i / C % Q][i % C] = 0.f;
    int dx_y = s.y;
    FASTCONV_NO_UNROLL
    for (int base = 0; base < steps; base += K) {
      FASTCONV_UNROLL
      for (int u = 0; u < K; ++u) {
        const int m = base + u;
        if (m >= steps) break;
        ptx::wait_copies<kStages - 2>();
        float g[kColumns][C];
        FASTCONV_UNROLL
        for (int j = 0; j < kColumns; ++j) unpack<T>(*reinterpret_cast<const Bytes<kBytes>*>(ring + stage + j * kSlot), g[j]);
        FASTCONV_UNROLL
        for (int q = 0; q < Q; ++q) {
          unpack<T>(*reinterpret_cast<const Bytes<kBytes>*>(ring + stage + (kColumns + q) * kSlot), window[u][q]);
          if constexpr (Activated) {
            FASTCONV_UNROLL
            for (int c = 0; c < C; ++c) window[u][q][c] = activate<Form::clamp, true>(a.input_activation, window[u][q][c]);
          }
        }
        // Into the slots of the row before, whose values are in use no more.
        fetch(ring + (stage == 0 ? kRing - kRow : stage - kRow));
        stage = stage == kRing - kRow ? 0 : stage + kRow;

        FASTCONV_UNROLL
        for (int ky = 0; ky < K; ++ky)
          FASTCONV_UNROLL
          for (int kx = 0; kx < K; ++kx)
            FASTCONV_UNROLL
            for (int q = 0; q < Q; ++q)
              FASTCONV_UNROLL
              for (int c = 0; c < C; ++c) sums[ky][kx][c] += window[(u + 1 + ky) % K][q][c] * g[q + K - 1 - kx][c];
        if (below(m - (K - 1 - kCentre), s.rows)) {
          FASTCONV_UNROLL
          for (int q = 0; q < Q; ++q)
            FASTCONV_UNROLL
            for (int c = 0; c < C; ++c) bias_sum[c] += g[q + K - 1 - kCentre][c];
        }
        if constexpr (WithDx) {
          auto add_row = [&](float sum, int ky, int q, int c) {
            FASTCONV_UNROLL
            for (int kx = 0; kx < K; ++kx) sum += weight[ky][kx][c] * g[q + K - 1 - kx][c];
            return sum;
          };
          float done[Q][C];
          FASTCONV_UNROLL
          for (int q = 0; q < Q; ++q)
            FASTCONV_UNROLL
            for (int c = 0; c < C; ++c) {
              done[q][c] = add_row(running[K - 2][q][c], 0, q, c);
              FASTCONV_UNROLL
              for (int j = K - 2; j > 0; --j) running[j][q][c] = add_row(running[j - 1][q][c], K - 1 - j, q, c);
              running[0][q][c] = add_row(0.f, K - 1, q, c);
            }
          if (m < K - 1) continue;
          const bool wanted = a.dx && below(dx_y, a.h);
          if constexpr (Activated) {
            FASTCONV_UNROLL
            for (int q = 0; q < Q; ++q)
              FASTCONV_UNROLL
              for (int c = 0; c < C; ++c) done[q][c] = clamp_gate(a.input_activation, window[(u + 1) % K][q][c], done[q][c]);
          }
          FASTCONV_UNROLL
          for (int q = 0; q < Q; ++q) ptx::store_if(wanted && (owned >> q & 1), dx + q * column, pack<T, kBytes>(done[q]));
          dx_y += a.dh, dx += row;
        }
      }
    }
    // The ring ran dry in zeros; the next strip fills the same slots.
    ptx::wait_copies<0>();
  }
  sync_threads();

  float* totals = reinterpret_cast<float*>(memory);  // (tap, channel, thread)
  FASTCONV_UNROLL
  for (int t = 0; t < kTaps; ++t)
    FASTCONV_UNROLL
    for (int c = 0; c < C; ++c) totals[(t * C + c) * kThreads + threadIdx.x] = sums[t / K][t % K][c];
  FASTCONV_UNROLL
  for (int c = 0; c < C; ++c) totals[(kTaps * C + c) * kThreads + threadIdx.x] = bias_sum[c];
  sync_threads();
  // Threads side by side take vectors side by side; a vector's sums lie slice_vectors threads apart, one for each group.
  const int slice_vectors = static_cast<int>(slots.by_vectors.divisor);
  FASTCONV_NO_UNROLL
  for (int i = threadIdx.x; i < (kTaps + 1) * C * slice_vectors; i += kThreads) {
    uint32_t v;
    const int row_of_totals = static_cast<int>(slots.by_vectors.divide(i, &v)), tap = row_of_totals / C, c = row_of_totals % C;
    const int channel = (static_cast<int>(slice * slots.by_vectors.divisor) + static_cast<int>(v)) * C + c;
    if (channel >= a.channels) continue;
    float total = 0.f;
    FASTCONV_NO_UNROLL
    for (int g = 0; g < slots.groups; ++g) total += totals[row_of_totals * kThreads + g * slice_vectors + v];
    a.partials[(int64_t(split) * a.channels + channel) * (kTaps + 1) + tap] = total;
  }
}

}  // namespace fastconv::cuda
