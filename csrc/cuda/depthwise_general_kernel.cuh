// Depthwise convolutions that have no kernel of their own: any kernel size, stride, dilation, depth multiplier and activation, in either layout.
#pragma once
#include "activation.cuh"
#include "numeric.cuh"
#include "rows.cuh"

namespace fastconv::cuda {

struct DepthwiseGeneralArgs {
  const void* x;
  const void* weight;  // (C*M, Kh, Kw)
  const void* bias;    // or null
  void* out;
  int64_t sn, sc, sh, sw;  // of x
  int64_t on, oc, oh, ow;  // of out
  int h, w, kh, kw, stride_h, stride_w, dh, dw, pt, pl;
  FastDivision by_multiplier;
  ActivationArgs input_activation, activation;
};

// One output element a thread.
template <class T>
FASTCONV_KERNEL(256, 1) depthwise_elements(DepthwiseGeneralArgs a, Rows rows) {
  const RowsAt at = rows_at(rows);
  for (uint32_t i = threadIdx.x; i < at.elements; i += 256) {
    uint32_t in_row, c;
    const int y = at.first + static_cast<int>(rows.by_row.divide(i, &in_row));
    const int x = static_cast<int>(rows.by_pixel.divide(in_row, &c));
    c += at.plane;
    const T* plane = static_cast<const T*>(a.x) + at.n * a.sn + a.by_multiplier.divide(c) * a.sc;
    const T* weight = static_cast<const T*>(a.weight) + int64_t(c) * a.kh * a.kw;
    float sum = a.bias ? Element<T>::value(static_cast<const T*>(a.bias)[c]) : 0.f;
    FASTCONV_NO_UNROLL
    for (int ky = 0; ky < a.kh; ++ky) {
      const int iy = y * a.stride_h - a.pt + ky * a.dh;
      if (iy < 0 || iy >= a.h) continue;
      FASTCONV_NO_UNROLL
      for (int kx = 0; kx < a.kw; ++kx) {
        const int ix = x * a.stride_w - a.pl + kx * a.dw;
        if (ix < 0 || ix >= a.w) continue;
        const float v = Element<T>::value(plane[iy * a.sh + ix * a.sw]);
        sum += Element<T>::value(weight[ky * a.kw + kx]) * activate_any<sizeof(T) == 2>(a.input_activation, v);
      }
    }
    static_cast<T*>(a.out)[at.n * a.on + c * a.oc + y * a.oh + x * a.ow] = Element<T>::element(activate_any<sizeof(T) == 2>(a.activation, sum));
  }
}

// channels_last without a multiplier: 16 bytes of channels of one output position a thread. The weights of the block's slice of channels wait in
// shared memory as floats, channels innermost.
template <class T>
FASTCONV_KERNEL(256, 2) depthwise_vectors(DepthwiseGeneralArgs a, Rows rows, FastDivision by_slices, FastDivision by_slice, int vectors) {
  constexpr int V = kElements<T, 16>;
  uint32_t slice, chunk;
  const int n = static_cast<int>(rows.by_chunks.divide(by_slices.divide(blockIdx.x, &slice), &chunk));
  const int first_vector = static_cast<int>(slice * by_slice.divisor);
  const int slice_vectors = first_vector + static_cast<int>(by_slice.divisor) < vectors ? static_cast<int>(by_slice.divisor) : vectors - first_vector;
  const int taps = a.kh * a.kw, channels = static_cast<int>(by_slice.divisor) * V;
  SharedCarver shared;
  float* weight = shared.take<float>(taps * channels);
  const T* from = static_cast<const T*>(a.weight) + int64_t(first_vector) * V * taps;
  for (int i = threadIdx.x; i < slice_vectors * V * taps; i += 256) weight[i % taps * channels + i / taps] = Element<T>::value(from[i]);
  sync_threads();

  const int first_row = static_cast<int>(chunk) * rows.chunk_rows;
  const int row_count = first_row + rows.chunk_rows < rows.rows ? rows.chunk_rows : rows.rows - first_row;
  const uint32_t positions = static_cast<uint32_t>(row_count) * rows.by_row.divisor;
  for (uint32_t i = threadIdx.x; i < positions * by_slice.divisor; i += 256) {
    uint32_t vector, column;
    const int y = first_row + static_cast<int>(rows.by_row.divide(by_slice.divide(i, &vector), &column));
    const int x = static_cast<int>(column);
    if (static_cast<int>(vector) >= slice_vectors) continue;
    const int c = (first_vector + static_cast<int>(vector)) * V;
    float sum[V];
    FASTCONV_UNROLL
    for (int k = 0; k < V; ++k) sum[k] = 0.f;
    if (a.bias) unpack<T>(ptx::load<16>(static_cast<const T*>(a.bias) + c), sum);
    const T* image = static_cast<const T*>(a.x) + n * a.sn + c;
    const float* w = weight + vector * V;
    FASTCONV_NO_UNROLL
    for (int ky = 0; ky < a.kh; ++ky) {
      const int iy = y * a.stride_h - a.pt + ky * a.dh;
      if (iy < 0 || iy >= a.h) continue;
      FASTCONV_NO_UNROLL
      for (int kx = 0; kx < a.kw; ++kx) {
        const int ix = x * a.stride_w - a.pl + kx * a.dw;
        if (ix < 0 || ix >= a.w) continue;
        float v[V];
        unpack<T>(ptx::load<16>(image + iy * a.sh + ix * a.sw), v);
        if (a.input_activation.kind != Activation::identity) {
          FASTCONV_UNROLL
          for (int k = 0; k < V; ++k) v[k] = activate_any<sizeof(T) == 2>(a.input_activation, v[k]);
        }
        const float4* tap = reinterpret_cast<const float4*>(w + (ky * a.kw + kx) * channels);
        FASTCONV_UNROLL
        for (int k = 0; k < V; k += 4) {
          const float4 f = tap[k / 4];
          sum[k] += f.x * v[k], sum[k + 1] += f.y * v[k + 1], sum[k + 2] += f.z * v[k + 2], sum[k + 3] += f.w * v[k + 3];
        }
      }
    }
    FASTCONV_UNROLL
    for (int k = 0; k < V; ++k) sum[k] = activate_any<sizeof(T) == 2>(a.activation, sum[k]);
    ptx::store<16>(static_cast<T*>(a.out) + n * a.on + c + y * a.oh + x * a.ow, pack<T, 16>(sum));
  }
}

}  // namespace fastconv::cuda
