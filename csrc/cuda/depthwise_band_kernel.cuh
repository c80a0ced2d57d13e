// Depthwise convolution, stride 1, contiguous: see band.cuh for how a block is fed. A thread marches down Q columns of its item; every row read
// continues K-1 running sums, the oldest of which is then complete.
#pragma once
#include "activation.cuh"
#include "band.cuh"
#include "common/plan_depthwise.h"

namespace fastconv::cuda {

struct DepthwiseBandArgs {
  const void* x;
  const void* weight;  // (C, K, K)
  const void* bias;    // or null
  void* out;
  int64_t on, oc, oh;
  int dw;
  ActivationArgs activation;
  bool turned;         // the kernel is to be turned round
};

template <class T, int K, Form F>
FASTCONV_KERNEL(256, K == 7 ? 2 : 4) depthwise_bands(DepthwiseBandArgs a, Band b) {
  constexpr int Q = depthwise_band_columns(K);
  SharedCarver shared;
  T* staged = shared.take<T>(b.items_per_block * b.input_rows * b.pitch);
  const uint32_t first_item = blockIdx.x * b.items_per_block;
  const uint32_t item_count = b.items - first_item < static_cast<uint32_t>(b.items_per_block) ? b.items - first_item : b.items_per_block;
  const T* x = static_cast<const T*>(a.x);
  stage_bands<T>(b, x, first_item, item_count, staged, 0);

  uint32_t lane;
  const uint32_t item = b.by_lanes.divide(threadIdx.x, &lane);
  const bool active = item < item_count;
  const BandAt at = band_at(b, first_item + (active ? item : 0));
  float weight[K][K];
  const T* w = static_cast<const T*>(a.weight) + int64_t(at.c) * (K * K);
  FASTCONV_UNROLL
  for (int t = 0; t < K * K; ++t) weight[t / K][t % K] = Element<T>::value(w[a.turned ? K * K - 1 - t : t]);
  const float bias = a.bias ? Element<T>::value(static_cast<const T*>(a.bias)[at.c]) : 0.f;
  ptx::wait_copies<0>();
  sync_threads();
  if (!active) return;

  // Lanes beyond the map's edge do what the last column's lane does, and store the same: cheaper than asking at every store.
  const int last = (b.w - at.x < b.columns ? b.w - at.x : b.columns) - 1;
  int column[Q];
  FASTCONV_UNROLL
  for (int q = 0; q < Q; ++q) {
    const int c = static_cast<int>(lane) + q * b.lanes;
    column[q] = c < last ? c : last;
  }
  T* out = static_cast<T*>(a.out) + at.n * a.on + at.c * a.oc + at.y * a.oh + at.x;
  const int64_t out_step = b.dh * a.oh;
  const T* row = staged + item * b.input_rows * b.pitch;
  // The offset of a row within its 16 bytes grows by the same amount from row to row.
  constexpr uint32_t kWrap = 16 / sizeof(T) - 1;
  uint32_t offset = staged_offset<T>(b, x, at, 0);
  const uint32_t offset_step = static_cast<uint32_t>(b.dh * b.sh);

  float running[K - 1][Q];
  FASTCONV_UNROLL
  for (int i = 0; i < (K - 1) * Q; ++i) running[i / Q][i % Q] = 0.f;
  FASTCONV_NO_UNROLL
  for (int i = 1 - K; i < at.rows; ++i) {
    float v[Q][K];
    FASTCONV_UNROLL
    for (int kx = 0; kx < K; ++kx) {
      const T* tap = row + (offset & kWrap) + kx * a.dw;
      FASTCONV_UNROLL
      for (int q = 0; q < Q; ++q) v[q][kx] = Element<T>::value(tap[column[q]]);
    }
    row += b.pitch, offset += offset_step;
    auto add_row = [&](float sum, int ky, int q) {
      FASTCONV_UNROLL
      for (int kx = 0; kx < K; ++kx) sum += weight[ky][kx] * v[q][kx];
      return sum;
    };
    float done[Q];
    FASTCONV_UNROLL
    for (int q = 0; q < Q; ++q) {
      done[q] = add_row(running[K - 2][q], K - 1, q);
      FASTCONV_UNROLL
      for (int j = K - 2; j > 0; --j) running[j][q] = add_row(running[j - 1][q], j, q);
      running[0][q] = add_row(bias, 0, q);
    }
    if (i < 0) continue;
    if (F == Form::smooth || a.activation.kind != Activation::identity) {
      FASTCONV_UNROLL
      for (int q = 0; q < Q; ++q) done[q] = activate<F, sizeof(T) == 2>(a.activation, done[q]);
    }
    FASTCONV_UNROLL
    for (int q = 0; q < Q; ++q) out[column[q]] = Element<T>::element(done[q]);
    out += out_step;
  }
}

}  // namespace fastconv::cuda
