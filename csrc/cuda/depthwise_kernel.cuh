// Depthwise convolution, stride 1, channels_last: a thread owns a few channels and Q neighbouring columns of a residue class and marches down its
// rows. Every input row is loaded and converted once; it continues K-1 running sums (one for each output row it touches), the oldest of which is
// then complete. Dilation changes nothing but addresses.
//
// Rows wait in a ring of shared memory that is private to the thread, filled by asynchronous copies a few rows ahead: enough bytes in flight to keep
// the memory busy with the few warps that the registers allow, borders filled with zeros by the copy itself, and no barrier anywhere.
#pragma once
#include "activation.cuh"
#include "common/plan_depthwise.h"
#include "numeric.cuh"
#include "strips.cuh"

namespace fastconv::cuda {

struct DepthwiseArgs {
  const void* x;
  const void* weight;  // (C, K, K)
  const void* bias;    // or null
  void* out;
  int64_t sn, sh, sw;     // of x
  int64_t on, oh, ow;     // of out
  int h, w, pt, pl, dh, dw;
  ActivationArgs activation;
  bool turned;         // the kernel is to be turned round
};

template <class T, int K, Form F>
FASTCONV_KERNEL(128, depthwise_blocks(K)) depthwise_pixels(DepthwiseArgs a, Strips strips) {
  constexpr int C = depthwise_channels(K), Q = depthwise_columns(K), kColumns = Q + K - 1, kBytes = C * sizeof(T);
  constexpr int kThreads = 128, kStages = kDepthwiseStages, kSlot = kBytes * kThreads;
  SharedCarver shared;
  unsigned char* ring = shared.take<unsigned char>(kStages * kColumns * kSlot) + threadIdx.x * kBytes;
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= strips.total) return;
  const StripAt s = strip_at(strips, index);
  if (s.rows == 0) return;

  const int left = s.x - a.pl;
  uint32_t inside = 0;
  FASTCONV_UNROLL
  for (int j = 0; j < kColumns; ++j) inside |= static_cast<uint32_t>(left + j * a.dw >= 0 && left + j * a.dw < a.w) << j;
  const int64_t column_step = a.dw * a.sw, row_step = a.dh * a.sh, out_column_step = a.dw * a.ow, out_row_step = a.dh * a.oh;
  int y = s.y - a.pt;
  // Rows below the last one that this strip needs count as outside, so that the ring runs dry instead of ahead.
  const int needed = y + (s.rows + K - 1) * a.dh, end = needed < 0 ? 0 : needed < a.h ? needed : a.h;
  const T* row = static_cast<const T*>(a.x) + s.n * a.sn + y * a.sh + left * a.sw + s.vector * C;
  T* out = static_cast<T*>(a.out) + s.n * a.on + s.y * a.oh + s.x * a.ow + s.vector * C;
  const int columns = (strips.w - s.x + a.dw - 1) / a.dw;

  auto fetch_row = [&](unsigned char* to) {
    const uint32_t valid = below(y, end) ? inside : 0;
    FASTCONV_UNROLL
    for (int j = 0; j < kColumns; ++j) ptx::copy_async<kBytes>(to + j * kSlot, row + j * column_step, valid >> j & 1);
    ptx::commit_copies();
    y += a.dh, row += row_step;
  };
  FASTCONV_UNROLL
  for (int i = 0; i < kStages - 1; ++i) fetch_row(ring + i * (kColumns * kSlot));

  float weight[K][K][C], bias[C];
  FASTCONV_UNROLL
  for (int c = 0; c < C; ++c) {
    const T* w = static_cast<const T*>(a.weight) + (s.vector * C + c) * (K * K);
    FASTCONV_UNROLL
    for (int t = 0; t < K * K; ++t) weight[t / K][t % K][c] = Element<T>::value(w[a.turned ? K * K - 1 - t : t]);
    bias[c] = a.bias ? Element<T>::value(static_cast<const T*>(a.bias)[s.vector * C + c]) : 0.f;
  }

  float running[K - 1][Q][C];
  FASTCONV_UNROLL
  for (int i = 0; i < (K - 1) * Q * C; ++i) running[i / (Q * C)][i / C % Q][i % C] = 0.f;
  int stage = 0;
  FASTCONV_NO_UNROLL
  for (int i = 1 - K; i < s.rows; ++i) {
    ptx::wait_copies<kStages - 2>();
    float x[kColumns][C];
    FASTCONV_UNROLL
    for (int j = 0; j < kColumns; ++j) unpack<T>(*reinterpret_cast<const Bytes<kBytes>*>(ring + stage + j * kSlot), x[j]);
    // Into the slots of the row before, whose values are in use no more.
    fetch_row(ring + (stage == 0 ? (kStages - 1) * (kColumns * kSlot) : stage - kColumns * kSlot));
    stage = stage == (kStages - 1) * (kColumns * kSlot) ? 0 : stage + kColumns * kSlot;
    auto add_row = [&](float sum, int ky, int q, int c) {
      FASTCONV_UNROLL
      for (int kx = 0; kx < K; ++kx) sum += weight[ky][kx][c] * x[q + kx][c];
      return sum;
    };
    float done[Q][C];
    FASTCONV_UNROLL
    for (int q = 0; q < Q; ++q)
      FASTCONV_UNROLL
      for (int c = 0; c < C; ++c) {
        done[q][c] = add_row(running[K - 2][q][c], K - 1, q, c);
        FASTCONV_UNROLL
        for (int j = K - 2; j > 0; --j) running[j][q][c] = add_row(running[j - 1][q][c], j, q, c);
        running[0][q][c] = add_row(bias[c], 0, q, c);
      }
    if (i < 0) continue;
    if (F == Form::smooth || a.activation.kind != Activation::identity) {
      FASTCONV_UNROLL
      for (int q = 0; q < Q; ++q)
        FASTCONV_UNROLL
        for (int c = 0; c < C; ++c) done[q][c] = activate<F, sizeof(T) == 2>(a.activation, done[q][c]);
    }
    FASTCONV_UNROLL
    for (int q = 0; q < Q; ++q) ptx::store_if(q < columns, out + q * out_column_step, pack<T, kBytes>(done[q]));
    out += out_row_step;
  }
  ptx::wait_copies<0>();
}

}  // namespace fastconv::cuda
