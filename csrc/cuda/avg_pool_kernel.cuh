// Average pool at every offset, and its gradient: both are sums over a rectangle of taps. The forward pass divides what it stores, the backward
// pass what it loads; the gradient's window is the mirror image, so only its padding differs.
#pragma once
#include "dealt.cuh"
#include "numeric.cuh"
#include "rows.cuh"
#include "strips.cuh"

namespace fastconv::cuda {

// Taps that the divisor counts along one axis, for the window at a dense position.
struct DivisorAxis {
  int size, kernel, padding, dilation, edge;  // edge: how much of the padding counts
};

struct AvgPoolArgs {
  const void* in;
  void* out;
  Dealt from, to;
  DealtWalk from_walk, to_walk;
  int from_h, from_w;  // positions that `in` has
  int to_h, to_w;      // positions that get a sum; beyond them, up to the map being divided, lies a fragment's tail
  int kh, kw, ph, pw, dh, dw;
  DivisorAxis rows, columns;
  float divisor;  // 0: the number of taps counted
  double fill;
};

FASTCONV_DEVICE int counted_taps(const DivisorAxis& d, int at) {
  const int start = at - d.padding;
  const int low = start < -d.edge ? (-d.edge - start + d.dilation - 1) / d.dilation : 0;
  const int high = start < d.size + d.edge ? (d.size + d.edge - start + d.dilation - 1) / d.dilation : 0;
  const int taps = (high < d.kernel ? high : d.kernel) - low;
  return taps > 0 ? taps : 1;
}

// The same for a known kernel, without divisions.
template <int K>
FASTCONV_DEVICE float tap_scale(const AvgPoolArgs& a, const DivisorAxis& d, int at) {
  const uint32_t first = static_cast<uint32_t>(at - d.padding + d.edge), range = static_cast<uint32_t>(d.size + 2 * d.edge);
  int taps = 0;
  FASTCONV_UNROLL
  for (int k = 0; k < K; ++k) taps += first + static_cast<uint32_t>(k * d.dilation) < range;
  return a.divisor != 0.f || taps == 0 ? 1.f : ptx::fast_reciprocal(static_cast<float>(taps));
}

// One element of the result a thread, any kernel, any dtype.
template <class T, bool Backward>
FASTCONV_KERNEL(256, 1) avg_pool_elements(AvgPoolArgs a, Rows rows) {
  using Value = typename Element<T>::Value;
  const RowsAt at = rows_at(rows);
  for (uint32_t i = threadIdx.x; i < at.elements; i += 256) {
    uint32_t in_row, c;
    const int y = at.first + static_cast<int>(rows.by_row.divide(i, &in_row));
    const int x = static_cast<int>(rows.by_pixel.divide(in_row, &c));
    c += at.plane;
    Value sum = static_cast<Value>(a.fill);
    if (y < a.to_h && x < a.to_w) {
      sum = 0;
      FASTCONV_NO_UNROLL
      for (int ky = 0; ky < a.kh; ++ky) {
        const int iy = y - a.ph + ky * a.dh;
        if (iy < 0 || iy >= a.from_h) continue;
        const int64_t row = dealt_row(a.from, at.n, iy) + c * a.from.channel;
        const int row_taps = Backward && a.divisor == 0.f ? counted_taps(a.rows, iy) : 1;
        FASTCONV_NO_UNROLL
        for (int kx = 0; kx < a.kw; ++kx) {
          const int ix = x - a.pw + kx * a.dw;
          if (ix < 0 || ix >= a.from_w) continue;
          Value v = Element<T>::value(static_cast<const T*>(a.in)[row + dealt_column(a.from, ix)]);
          if (Backward) v /= a.divisor == 0.f ? static_cast<Value>(row_taps * counted_taps(a.columns, ix)) : static_cast<Value>(a.divisor);
          sum += v;
        }
      }
      if (!Backward) sum /= a.divisor == 0.f ? static_cast<Value>(counted_taps(a.rows, y) * counted_taps(a.columns, x)) : static_cast<Value>(a.divisor);
    }
    static_cast<T*>(a.out)[dealt_row(a.to, at.n, y) + dealt_column(a.to, x) + c * a.to.channel] = Element<T>::element(sum);
  }
}

// channels_last: a thread marches down a strip of a residue class. A row is summed along its columns once and continues K-1 running sums, of which
// the oldest is then complete.
template <class T, int K, int Q, bool Backward>
FASTCONV_KERNEL(128, 3) avg_pool_pixels(AvgPoolArgs a, Strips strips) {
  constexpr int kColumns = Q + K - 1, kVector = kElements<T, 16>;
  const uint32_t index = blockIdx.x * 128 + threadIdx.x;
  if (index >= strips.total) return;
  const StripAt s = strip_at(strips, index);
  if (s.rows == 0) return;

  // What a column's sums are multiplied by, where they are loaded (backward) or stored (forward).
  constexpr int kScaled = Backward ? kColumns : Q;
  float column_scale[kScaled];
  uint32_t inside = 0, from_column[kColumns], to_column[Q];  // in vectors
  FASTCONV_UNROLL
  for (int j = 0; j < kColumns; ++j) {
    const int x = s.x - a.pw + j * a.dw;
    const bool valid = x >= 0 && x < a.from_w;
    inside |= static_cast<uint32_t>(valid) << j;
    from_column[j] = valid ? static_cast<uint32_t>(dealt_column(a.from, x) / kVector) + s.vector : 0;
    if (Backward) column_scale[j] = tap_scale<K>(a, a.columns, x);
  }
  FASTCONV_UNROLL
  for (int q = 0; q < Q; ++q) {
    const int x = s.x + q * a.dw;
    to_column[q] = static_cast<uint32_t>(dealt_column(a.to, x) / kVector) + s.vector;
    if (!Backward) column_scale[q] = tap_scale<K>(a, a.columns, x);
  }
  const int columns = (strips.w - s.x + a.dw - 1) / a.dw;

  const float fixed_scale = a.divisor == 0.f ? 1.f : 1.f / a.divisor;
  const uint32_t fill = Element<T>::pack(static_cast<float>(a.fill), static_cast<float>(a.fill));
  float running[K - 1][Q][kVector];
  FASTCONV_UNROLL
  for (int j = 0; j < K - 1; ++j)
    FASTCONV_UNROLL
    for (int q = 0; q < Q; ++q)
      FASTCONV_UNROLL
      for (int c = 0; c < kVector; ++c) running[j][q][c] = 0.f;

  DealtRow from_row = dealt_walk(a.from, s.n, s.y - a.ph), to_row = dealt_walk(a.to, s.n, s.y);
  FASTCONV_NO_UNROLL
  for (int i = 1 - K; i < s.rows; ++i, walk_on(from_row, a.from_walk)) {
    float across[Q][kVector];
    const int from_y = s.y - a.ph + (i + K - 1) * a.dh;
    const bool row_inside = from_y >= 0 && from_y < a.from_h;
    const T* row = static_cast<const T*>(a.in) + from_row.offset;
    ptx::keep(row);
    const float scale = Backward ? tap_scale<K>(a, a.rows, from_y) * fixed_scale : 1.f;
    Bytes<16> v[kColumns];
    if (row_inside && inside == (1u << kColumns) - 1) {
      FASTCONV_UNROLL
      for (int j = 0; j < kColumns; ++j) v[j] = ptx::load<16>(row + static_cast<uint64_t>(from_column[j]) * kVector);
    } else {
      FASTCONV_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        v[j] = {};
        if (row_inside && (inside >> j & 1)) v[j] = ptx::load<16>(row + static_cast<uint64_t>(from_column[j]) * kVector);
      }
    }
    FASTCONV_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      float f[kVector];
      unpack<T>(v[j], f);
      FASTCONV_UNROLL
      for (int c = 0; c < kVector; ++c) {
        if (Backward) f[c] *= scale * column_scale[Backward ? j : 0];
        FASTCONV_UNROLL
        for (int q = 0; q < Q; ++q) {
          if (j == q) across[q][c] = f[c];
          if (j > q && j < q + K) across[q][c] += f[c];
        }
      }
    }
    if (i >= 0) {
      const int y = s.y + i * a.dh;
      const float scale = Backward ? 1.f : tap_scale<K>(a, a.rows, y) * fixed_scale;
      T* out = static_cast<T*>(a.out) + to_row.offset;
      ptx::keep(out);
      walk_on(to_row, a.to_walk);
      FASTCONV_UNROLL
      for (int q = 0; q < Q; ++q) {
        const bool tail = y >= a.to_h || s.x + q * a.dw >= a.to_w;
        const float factor = Backward ? 1.f : scale * column_scale[Backward ? 0 : q];
        float sum[kVector];
        FASTCONV_UNROLL
        for (int c = 0; c < kVector; ++c) {
          sum[c] = running[K - 2][q][c] + across[q][c];
          if (!Backward) sum[c] *= factor;
        }
        Bytes<16> value = pack<T, 16>(sum);
        if (!Backward) {
          FASTCONV_UNROLL
          for (int k = 0; k < 4; ++k) value.word[k] = tail ? fill : value.word[k];
        }
        ptx::store_if(q < columns, out + static_cast<uint64_t>(to_column[q]) * kVector, value);
      }
    }
    FASTCONV_UNROLL
    for (int q = 0; q < Q; ++q)
      FASTCONV_UNROLL
      for (int c = 0; c < kVector; ++c) {
        FASTCONV_UNROLL
        for (int j = K - 2; j > 0; --j) running[j][q][c] = running[j - 1][q][c] + across[q][c];
        running[0][q][c] = across[q][c];
      }
  }
}

}  // namespace fastconv::cuda
