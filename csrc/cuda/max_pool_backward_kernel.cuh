// Gradient of the max pool from the argmax of every window.
//
// The fast kernel scatters: a thread owns Q columns of a residue class and four channels, marches down the rows, and adds each incoming gradient at
// its argmax in a ring of partial sums that no other thread touches, so sums need no atomics and come in one fixed order. Windows that start left of
// the owned columns are read by two threads; what such a window gives to a column of the neighbour lands in columns of the ring that nobody reads.
#pragma once
#include "dealt.cuh"
#include "numeric.cuh"
#include "rows.cuh"
#include "strips.cuh"

namespace fastconv::cuda {

struct MaxPoolBackwardArgs {
  const void* grad;
  const uint8_t* argmax;    // one of the two
  const int64_t* indices;
  void* dx;
  Dealt from;               // grad and argmax
  DealtWalk walk;
  int64_t sn, sc, sh, sw;   // of dx
  int h, w, dense_h, dense_w;
  int kh, kw, ph, pw, dh, dw;
};

// One element of dx a thread, any kernel, any dtype.
template <class T>
FASTCONV_KERNEL(256, 1) max_pool_backward_elements(MaxPoolBackwardArgs a, Rows rows) {
  using Value = typename Element<T>::Value;
  const RowsAt at = rows_at(rows);
  for (uint32_t i = threadIdx.x; i < at.elements; i += 256) {
    uint32_t in_row, c;
    const int iy = at.first + static_cast<int>(rows.by_row.divide(i, &in_row));
    const int ix = static_cast<int>(rows.by_pixel.divide(in_row, &c));
    c += at.plane;
    Value sum = 0;
    FASTCONV_NO_UNROLL
    for (int ky = 0; ky < a.kh; ++ky) {
      const int y = iy + a.ph - ky * a.dh;
      if (y < 0 || y >= a.dense_h) continue;
      const int64_t row = dealt_row(a.from, at.n, y) + c * a.from.channel;
      FASTCONV_NO_UNROLL
      for (int kx = 0; kx < a.kw; ++kx) {
        const int x = ix + a.pw - kx * a.dw;
        if (x < 0 || x >= a.dense_w) continue;
        const int64_t from = row + dealt_column(a.from, x);
        const bool mine = a.argmax ? a.argmax[from] == ky * a.kw + kx : a.indices[from] == int64_t(iy) * a.w + ix;
        if (mine) sum += Element<T>::value(static_cast<const T*>(a.grad)[from]);
      }
    }
    static_cast<T*>(a.dx)[at.n * a.sn + c * a.sc + iy * a.sh + ix * a.sw] = Element<T>::element(sum);
  }
}

// The ring of a thread: kSlots rows of kPitch columns, both powers of two, so that one mask wraps a packed sum of row and column.
template <int K, int Q>
struct ScatterRing {
  static constexpr int kPitch = Q + 2 * (K - 1), kSlots = K <= 2 ? 2 : 4, kCells = kPitch * kSlots;
  static_assert((kPitch & (kPitch - 1)) == 0 && K <= 3 && kCells <= 64);
};

template <class T, int K, int Q>
FASTCONV_KERNEL(128, 3) max_pool_backward_pixels(MaxPoolBackwardArgs a, Strips strips) {
  using Ring = ScatterRing<K, Q>;
  constexpr int kColumns = Q + K - 1, kBytes = 4 * sizeof(T), kThreads = 128;
  SharedCarver shared;
  float* ring = shared.take<float>(Ring::kCells * 4 * kThreads) + threadIdx.x;
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= strips.total) return;
  const StripAt s = strip_at(strips, index);
  if (s.rows == 0) return;

  // Consecutive threads in consecutive words; a cell's address is one multiply-add.
  auto cell = [&](int channel, uint32_t i) -> float& {
    return *reinterpret_cast<float*>(reinterpret_cast<unsigned char*>(ring) + i * (kThreads * 4) + channel * (Ring::kCells * kThreads * 4));
  };
  FASTCONV_NO_UNROLL
  for (int i = 0; i < Ring::kCells * 4; ++i) cell(0, i) = 0.f;

  // A column beyond the map reads some other one and adds it to cell 0, which is left of the owned columns.
  const int first_x = s.x + a.pw - (K - 1) * a.dw;
  constexpr uint32_t kWrap = (Ring::kCells - 1) * 0x01010101u;
  uint32_t wrap[kColumns], from_column[kColumns];  // in vectors of four
  FASTCONV_UNROLL
  for (int j = 0; j < kColumns; ++j) {
    const int x = first_x + j * a.dw;
    const bool valid = x >= 0 && x < a.dense_w;
    wrap[j] = valid ? kWrap : 0;
    from_column[j] = static_cast<uint32_t>(dealt_column(a.from, valid ? x : 0) / 4) + s.vector;
  }
  const int columns = (a.w - s.x + a.dw - 1) / a.dw;
  T* dx = static_cast<T*>(a.dx) + s.n * a.sn + s.y * a.sh + s.x * a.sw + s.vector * 4;
  const int64_t column_step = a.dw * a.sw, row_step = a.dh * a.sh;

  DealtRow row = dealt_walk(a.from, s.n, s.y + a.ph + (1 - K) * a.dh);
  uint32_t phase = 0;  // of the row being finished, times kPitch, in every byte
  FASTCONV_NO_UNROLL
  for (int i = 1 - K; i < s.rows; ++i) {
    const int y = s.y + a.ph + i * a.dh;
    if (y >= 0 && y < a.dense_h) {
      const T* grad = static_cast<const T*>(a.grad) + row.offset;
      const uint8_t* argmax = a.argmax + row.offset;
      ptx::keep(grad), ptx::keep(argmax);
      Bytes<kBytes> g[kColumns];
      Bytes<4> tap[kColumns];
      FASTCONV_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        g[j] = ptx::load<kBytes>(grad + static_cast<uint64_t>(from_column[j]) * 4);
        tap[j] = ptx::load<4>(argmax + static_cast<uint64_t>(from_column[j]) * 4);
      }
      FASTCONV_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        // Four taps at a time, one a byte: tap = ky * K + kx becomes ky * kPitch + kx, moved to this row and column of the ring.
        const uint32_t ky = K == 2 ? tap[j].word[0] >> 1 & 0x01010101u : tap[j].word[0] * 11 >> 5 & 0x03030303u;
        const uint32_t at = (tap[j].word[0] + ky * (Ring::kPitch - K) + phase + j * 0x01010101u) & wrap[j];
        float v[4];
        unpack<T>(g[j], v);
        FASTCONV_UNROLL
        for (int c = 0; c < 4; ++c) cell(c, ptx::permute_bytes(at, 0, 0x4440 | c)) += v[c];
      }
    }
    if (i >= 0) {
      FASTCONV_UNROLL
      for (int q = 0; q < Q; ++q) {
        float sum[4];
        FASTCONV_UNROLL
        for (int c = 0; c < 4; ++c) sum[c] = cell(c, (phase & 0xff) + q + K - 1);
        ptx::store_if(q < columns, dx + q * column_step, pack<T, kBytes>(sum));
      }
    }
    FASTCONV_UNROLL
    for (int q = 0; q < Q; ++q)
      FASTCONV_UNROLL
      for (int c = 0; c < 4; ++c) cell(c, (phase & 0xff) + q + K - 1) = 0.f;
    phase = (phase + Ring::kPitch * 0x01010101u) & kWrap;
    if (i >= 0) dx += row_step;
    walk_on(row, a.walk);
  }
}

}  // namespace fastconv::cuda
