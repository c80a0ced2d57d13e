// Max pool at every offset. Columns are reduced first, then rows, each from first to last tap and only a greater element displaces: that picks
// what a walk through the window in row-major order picks. The argmax of a window is its tap, ky*kw + kx.
//
// The fast kernels compare packed elements and know nothing of NaN; they watch for it (and for windows where nothing exceeds minus infinity),
// and what they find suspicious is computed again by exact_max, one window at a time.
#pragma once
#include "dealt.cuh"
#include "lanes.cuh"
#include "rows.cuh"
#include "strips.cuh"

namespace fastconv::cuda {

struct MaxPoolArgs {
  const void* x;
  void* out;
  uint8_t* argmax;
  int64_t* indices;
  int64_t sn, sc, sh, sw;  // of x
  Dealt to;
  DealtWalk walk;
  int h, w, dense_h, dense_w;
  int kh, kw, ph, pw, dh, dw;
  double fill;
};

template <class T>
struct Window {
  T value;
  int tap;    // -1: the window holds no element of the map
  int index;  // y*w + x of the tap
};

// By definition: first of the greatest, last of the NaN, the first element of the map where all are minus infinity.
template <class T>
FASTCONV_DEVICE Window<T> exact_max(const MaxPoolArgs& a, const T* plane, int y, int x) {
  Window<T> best;
  best.tap = -1;
  best.index = -1;
  typename Element<T>::Value most = 0;
  FASTCONV_NO_UNROLL
  for (int ky = 0; ky < a.kh; ++ky) {
    const int iy = y - a.ph + ky * a.dh;
    if (iy < 0 || iy >= a.h) continue;
    FASTCONV_NO_UNROLL
    for (int kx = 0; kx < a.kw; ++kx) {
      const int ix = x - a.pw + kx * a.dw;
      if (ix < 0 || ix >= a.w) continue;
      const T element = plane[iy * a.sh + ix * a.sw];
      const typename Element<T>::Value v = Element<T>::value(element);
      if (best.tap >= 0 && !(v > most || v != v)) continue;
      most = v;
      best.value = element;
      best.tap = ky * a.kw + kx;
      best.index = iy * a.w + ix;
    }
  }
  if (best.tap < 0) best.value = Element<T>::element(-INFINITY);
  return best;
}

// One window a thread, any kernel, any dtype, argmax or int64 indices or neither. Positions beyond the dense map are a fragment's tail.
template <class T>
FASTCONV_KERNEL(256, 1) max_pool_windows(MaxPoolArgs a, Rows rows) {
  const RowsAt at = rows_at(rows);
  for (uint32_t i = threadIdx.x; i < at.elements; i += 256) {
    uint32_t in_row, c;
    const int y = at.first + static_cast<int>(rows.by_row.divide(i, &in_row));
    const int x = static_cast<int>(rows.by_pixel.divide(in_row, &c));
    c += at.plane;
    const int64_t to = dealt_row(a.to, at.n, y) + dealt_column(a.to, x) + c * a.to.channel;
    Window<T> best;
    best.value = Element<T>::element(static_cast<typename Element<T>::Value>(a.fill));
    best.tap = best.index = -1;
    if (y < a.dense_h && x < a.dense_w) best = exact_max(a, static_cast<const T*>(a.x) + at.n * a.sn + c * a.sc, y, x);
    static_cast<T*>(a.out)[to] = best.value;
    if (a.argmax) a.argmax[to] = static_cast<uint8_t>(best.tap < 0 ? 0 : best.tap);
    if (a.indices) a.indices[to] = best.index;
  }
}

// ---- channels_last, K by K ---------------------------------------------------------------------------------------------------------

// 16 bytes of channels: the greatest so far, and its tap.
template <class T>
struct Best {
  uint32_t value[4], tap[Lanes<T>::kIndexWords];
};

// What is greater in `value` displaces; `tap` is its index, `later` is added to it.
template <class T, bool WithArgmax>
FASTCONV_DEVICE void displace(Best<T>& best, const uint32_t (&value)[4], const uint32_t (&tap)[Lanes<T>::kIndexWords], uint32_t later) {
  using L = Lanes<T>;
  typename L::Mask mask[4];
  FASTCONV_UNROLL
  for (int i = 0; i < 4; ++i) {
    mask[i] = L::greater(value[i], best.value[i]);
    best.value[i] = L::select(mask[i], value[i], best.value[i]);
  }
  if constexpr (WithArgmax) {
    uint32_t moved[L::kIndexWords];
    FASTCONV_UNROLL
    for (int i = 0; i < L::kIndexWords; ++i) moved[i] = tap[i] + L::splat_index(later);
    L::select_index(mask, moved, best.tap);
  }
}

// A thread marches down its strip. A row of the input is reduced along its columns once; the result continues K-1 running maxima, of which the
// oldest is then complete.
template <class T, int K, int Q, bool WithArgmax>
FASTCONV_KERNEL(128, 3) max_pool_pixels(MaxPoolArgs a, Strips strips) {
  using L = Lanes<T>;
  constexpr int kColumns = Q + K - 1, kVector = kElements<T, 16>;
  const uint32_t index = blockIdx.x * 128 + threadIdx.x;
  if (index >= strips.total) return;
  const StripAt s = strip_at(strips, index);
  if (s.rows == 0) return;

  const T* image = static_cast<const T*>(a.x) + s.n * a.sn + s.vector * kVector;
  const int left = s.x - a.pw;
  uint32_t inside = 0;
  FASTCONV_UNROLL
  for (int j = 0; j < kColumns; ++j) inside |= static_cast<uint32_t>(left + j * a.dw >= 0 && left + j * a.dw < a.w) << j;
  const int64_t column_step = a.dw * a.sw;
  int input_y = s.y - a.ph;
  const T* row = image + input_y * a.sh + left * a.sw;

  const int columns = (strips.w - s.x + a.dw - 1) / a.dw;  // that exist; the strip has Q
  uint32_t to_column[Q];                                  // in vectors
  FASTCONV_UNROLL
  for (int q = 0; q < Q; ++q) to_column[q] = static_cast<uint32_t>(dealt_column(a.to, s.x + q * a.dw) / kVector) + s.vector;

  Best<T> running[K - 1][Q];
  FASTCONV_UNROLL
  for (int j = 0; j < K - 1; ++j)
    FASTCONV_UNROLL
    for (int q = 0; q < Q; ++q) running[j][q] = {};
  DealtRow to_row = dealt_walk(a.to, s.n, s.y);
  uint32_t nan_seen = 0, least = L::kHighest;
  FASTCONV_NO_UNROLL
  for (int i = 1 - K; i < s.rows; ++i, input_y += a.dh, row += a.dh * a.sh) {
    Bytes<16> v[kColumns];
    const bool row_inside = input_y >= 0 && input_y < a.h;
    if (row_inside && inside == (1u << kColumns) - 1) {
      FASTCONV_UNROLL
      for (int j = 0; j < kColumns; ++j) v[j] = ptx::load<16>(row + j * column_step);
    } else {
      FASTCONV_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        v[j] = {{L::kLowest, L::kLowest, L::kLowest, L::kLowest}};
        if (row_inside && (inside >> j & 1)) v[j] = ptx::load<16>(row + j * column_step);
      }
    }
    FASTCONV_UNROLL
    for (int j = 0; j < kColumns; ++j)
      FASTCONV_UNROLL
      for (int k = 0; k < 4; ++k) nan_seen = L::max_nan(nan_seen, v[j].word[k]);

    Best<T> done[Q];
    FASTCONV_UNROLL
    for (int q = 0; q < Q; ++q) {
      Best<T> across = {};
      FASTCONV_UNROLL
      for (int k = 0; k < 4; ++k) across.value[k] = v[q].word[k];
      FASTCONV_UNROLL
      for (int kx = 1; kx < K; ++kx) {
        constexpr uint32_t none[L::kIndexWords] = {};
        displace<T, WithArgmax>(across, v[q + kx].word, none, kx);
      }
      done[q] = running[K - 2][q];
      displace<T, WithArgmax>(done[q], across.value, across.tap, (K - 1) * K);
      FASTCONV_UNROLL
      for (int j = K - 2; j > 0; --j) {
        running[j][q] = running[j - 1][q];
        displace<T, WithArgmax>(running[j][q], across.value, across.tap, j * K);
      }
      running[0][q] = across;
    }
    if (i < 0) continue;
    T* out = static_cast<T*>(a.out) + to_row.offset;
    uint8_t* argmax = a.argmax + to_row.offset;
    walk_on(to_row, a.walk);
    ptx::keep(out), ptx::keep(argmax);
    FASTCONV_UNROLL
    for (int q = 0; q < Q; ++q) {
      FASTCONV_UNROLL
      for (int k = 0; k < 4; ++k) least = L::min_number(least, done[q].value[k]);
      const Bytes<16> value{{done[q].value[0], done[q].value[1], done[q].value[2], done[q].value[3]}};
      ptx::store_if(q < columns, out + static_cast<uint64_t>(to_column[q]) * kVector, value);
      if constexpr (WithArgmax) ptx::store_if(q < columns, argmax + static_cast<uint64_t>(to_column[q]) * kVector, L::index_bytes(done[q].tap));
    }
  }

  // Only the map's last rows and columns can be a fragment's tail.
  const int last_x = s.x + ((columns < Q ? columns : Q) - 1) * a.dw;
  const bool tail = s.y + (s.rows - 1) * a.dh >= a.dense_h || last_x >= a.dense_w;
  if (!tail && !L::any_nan(nan_seen) && !L::any_lowest(least)) return;
  FASTCONV_NO_UNROLL
  for (int r = 0; r < s.rows; ++r) {
    const int y = s.y + r * a.dh;
    FASTCONV_NO_UNROLL
    for (int x = s.x; x <= last_x; x += a.dw) {
      const int64_t to = dealt_row(a.to, s.n, y) + dealt_column(a.to, x) + s.vector * kVector;
      FASTCONV_NO_UNROLL
      for (int c = 0; c < kVector; ++c) {
        Window<T> best;
        best.value = Element<T>::element(static_cast<float>(a.fill));
        best.tap = -1;
        if (y < a.dense_h && x < a.dense_w) best = exact_max(a, image + c, y, x);
        static_cast<T*>(a.out)[to + c] = best.value;
        if constexpr (WithArgmax) a.argmax[to + c] = static_cast<uint8_t>(best.tap < 0 ? 0 : best.tap);
      }
    }
  }
}

}  // namespace fastconv::cuda
