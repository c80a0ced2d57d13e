// Rows of a max pool, one at a time: each input row of the strip is reduced along its columns once, kept in a ring, and the rows of the
// ring are reduced into output rows. Columns first, then rows, each from first to last tap, picks the element that a walk through the
// window in row-major order picks.
#pragma once
#include "pool_rows.h"

namespace fastconv::FASTCONV_ISA {

// In place: row[e] becomes the maximum of row[e + k*step], 0 <= k < taps.
template <class A, int K>
void max_across(A* row, int64_t n, int64_t step, int64_t taps) {
  using V = Lanes<A>;
  for (int64_t e = 0; e < n; e += V::n) {
    typename V::V best = V::get(row + e);
    if constexpr (K > 0) {
#pragma GCC unroll 8
      for (int k = 1; k < K; ++k) best = V::max(best, V::get(row + e + k * step));
    } else {
      for (int64_t k = 1; k < taps; ++k) best = V::max(best, V::get(row + e + k * step));
    }
    V::put(row + e, best);
  }
}

// The same, and which k it was; `first` holds the k to report when no element is greater than minus infinity.
template <class A>
void max_across(A* row, int32_t* tap, const int32_t* first, int64_t n, int64_t step, int64_t taps) {
  using V = Lanes<A>;
  for (int64_t e = 0; e < n; e += V::n) {
    typename V::V best = V::get(row + e);
    typename V::I at = V::get(first + e);
    for (int64_t k = 1; k < taps; ++k) V::take(best, at, V::get(row + e + k * step), V::set_index(int32_t(k)));
    V::put(row + e, best);
    V::put(tap + e, at);
  }
}

// out[e] = maximum of rows[i][e].
template <class T, class A, int K>
void max_down(const A* const* rows, int64_t count, int64_t n, T* out) {
  using V = Lanes<A>;
  const auto best_at = [&](int64_t e) {
    typename V::V best = V::get(rows[0] + e);
    if constexpr (K > 0) {
#pragma GCC unroll 8
      for (int i = 1; i < K; ++i) best = V::max(best, V::get(rows[i] + e));
    } else {
      for (int64_t i = 1; i < count; ++i) best = V::max(best, V::get(rows[i] + e));
    }
    return best;
  };
  int64_t e = 0;
  for (; e + V::n <= n; e += V::n) Exact::put(out + e, best_at(e));
  if (e < n) Exact::put_part(out + e, best_at(e), int(n - e));
}

// The same, and the tap of the window: that of the row, plus what `base` says for the row. out_tap has room for whole vectors.
template <class T, class A, class Tap>
void max_down(const A* const* rows, const int32_t* const* taps, const int32_t* base, int64_t count, int64_t n, T* out, Tap* out_tap) {
  using V = Lanes<A>;
  for (int64_t e = 0; e < n; e += V::n) {
    typename V::V best = V::get(rows[0] + e);
    typename V::I at = V::get(taps[0] + e) + V::set_index(base[0]);
    for (int64_t i = 1; i < count; ++i) V::take(best, at, V::get(rows[i] + e), V::get(taps[i] + e) + V::set_index(base[i]));
    if (n - e >= V::n)
      Exact::put(out + e, best);
    else
      Exact::put_part(out + e, best, int(n - e));
    V::put(out_tap + e, at);
  }
}

template <class T, bool WithTaps>
class MaxRows {
  using A = typename Compute<T>::type;

 public:
  // Dense columns [x0, x1) of the strip's channels; `carver` must hold scratch_bytes().
  MaxRows(const PoolGeometry& g, Layout layout, const void* x, Carver& carver, int64_t columns, int64_t channels) : g_(g), map_(plain_map(g, layout)), x_(static_cast<const T*>(x)) {
    const int64_t loaded = (columns + (g.kw - 1) * g.dw) * channels;
    pitch_ = ring_pitch<A>(loaded);
    values_ = carver.take<A>(pitch_ * g.kh);
    if (WithTaps) taps_ = carver.take<int32_t>(pitch_ * g.kh), first_ = carver.take<int32_t>(columns * channels + kSlack);
    ring_ = {carver.take<int64_t>(g.kh), g.kh, g.dh};
    row_values_ = carver.take<const A*>(g.kh), row_taps_ = carver.take<const int32_t*>(g.kh), base_ = carver.take<int32_t>(g.kh);
  }

  static int64_t scratch_bytes(const PoolGeometry& g, int64_t columns, int64_t channels) {
    const int64_t loaded = (columns + (g.kw - 1) * g.dw) * channels;
    return ring_pitch<A>(loaded) * g.kh * (sizeof(A) + (WithTaps ? 4 : 0)) + (columns * channels + kSlack) * 4 + g.kh * 32 + 512;
  }

  void start(const Strip& s) {
    s_ = s;
    n_ = (s.x1 - s.x0) * s.channels;
    ring_.reset();
    if constexpr (WithTaps) {
      for (int64_t x = s.x0; x < s.x1; ++x) {
        const int64_t k = g_.pw > x ? ceil_div(g_.pw - x, g_.dw) : 0;
        for (int64_t c = 0; c < s.channels; ++c) first_[(x - s.x0) * s.channels + c] = int32_t(k < g_.kw ? k : 0);
      }
    }
  }

  // Row y of the dense map: values into `out`, taps into `tap` (room for whole vectors).
  template <class Tap>
  void row(int64_t y, T* out, Tap* tap) {
    int64_t count = 0;
    for (int64_t ky = 0; ky < g_.kh; ++ky) {
      const int64_t iy = y - g_.ph + ky * g_.dh;
      if (iy < 0 || iy >= g_.h) continue;
      const int64_t slot = ring_.slot(iy);
      row_values_[count] = values_ + slot * pitch_;
      if constexpr (WithTaps) row_taps_[count] = taps_ + slot * pitch_, base_[count] = int32_t(ky * g_.kw);
      ++count;
      if (ring_.held[slot] != iy) reduce(iy, slot);
    }
    if (count == 0) return nothing(out, tap);
    if constexpr (WithTaps) {
      max_down<T, A>(row_values_, row_taps_, base_, count, n_, out, tap);
    } else if (count == 3) {
      max_down<T, A, 3>(row_values_, count, n_, out);
    } else if (count == 2) {
      max_down<T, A, 2>(row_values_, count, n_, out);
    } else {
      max_down<T, A, 0>(row_values_, count, n_, out);
    }
  }

 private:
  void reduce(int64_t iy, int64_t slot) {
    A* row = values_ + slot * pitch_;
    const int64_t xa = s_.x0 - g_.pw, step = g_.dw * s_.channels;
    load_row<T, A>(map_, x_, s_, iy, xa, s_.x1 - g_.pw + (g_.kw - 1) * g_.dw, g_.w, A(-__builtin_inf()), row, static_cast<T*>(nullptr));
    if constexpr (WithTaps) {
      max_across<A>(row, taps_ + slot * pitch_, first_, n_, step, g_.kw);
    } else if (g_.kw == 3) {
      max_across<A, 3>(row, n_, step, 3);
    } else if (g_.kw == 2) {
      max_across<A, 2>(row, n_, step, 2);
    } else {
      max_across<A, 0>(row, n_, step, g_.kw);
    }
    ring_.held[slot] = iy;
  }

  // All windows of the row lie in the padding.
  template <class Tap>
  void nothing(T* out, Tap* tap) {
    using V = Lanes<A>;
    const typename V::V v = V::set(A(-__builtin_inf()));
    for (int64_t e = 0; e < n_; e += V::n) {
      Exact::put_part(out + e, v, int(n_ - e < V::n ? n_ - e : V::n));
      if constexpr (WithTaps) V::put(tap + e, V::set_index(0));
    }
  }

  const PoolGeometry& g_;
  DealtMap map_;
  const T* x_;
  A* values_;
  int32_t *taps_, *first_;
  int64_t pitch_, n_;
  RowRing ring_;
  const A** row_values_;
  const int32_t** row_taps_;
  int32_t* base_;
  Strip s_;
};

}  // namespace fastconv::FASTCONV_ISA
