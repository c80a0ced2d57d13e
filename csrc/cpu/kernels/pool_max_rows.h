// Rows of a max pool, in order: input rows of the strip are reduced along their columns once, kept in a ring, and rows of the ring are
// reduced into output rows. Columns first, then rows, each from first to last tap, picks the element that a walk through the window
// in row-major order picks.
//
// Every function comes twice: a plain one, and one (exact) for rows in which the reader met a NaN or an infinity. Plain maxima lose NaNs, and
// plain taps may name the padding where nothing is greater than it.
#pragma once
#include "pool_rows.h"

namespace fastconv::FASTCONV_ISA {

template <bool exact, class A>
FASTCONV_INLINE typename Lanes<A>::V later_max(typename Lanes<A>::V first, typename Lanes<A>::V later) {
  if constexpr (exact) return Lanes<A>::max_exact(first, later);
  return Lanes<A>::max(first, later);
}

// The maximum so far and the tap it came from.
template <class A, class Tap>
struct Best {
  using V = Lanes<A>;
  using X = TapLanes<A, Tap>;
  typename V::V value;
  typename X::I tap;
  template <bool exact>
  FASTCONV_INLINE void take(typename V::V later, typename X::I later_tap) {
    const typename V::M m = exact ? V::wins(value, later) : V::greater(later, value);
    value = exact ? V::choose(m, later, value) : V::max(value, later);
    tap = X::choose(m, later_tap, tap);
  }
};

// to[e] = maximum of from[e + k*step], 0 <= k < taps. K is `taps` where the loop is unrolled, or 0.
template <int K, bool exact, class A>
void max_across(const A* from, A* to, int64_t n, int64_t step, int64_t taps) {
  using V = Lanes<A>;
  for (int64_t e = 0; e < n; e += V::n) {
    typename V::V best = V::get(from + e);
#pragma GCC unroll 4
    for (int64_t k = 1; k < (K ? K : taps); ++k) best = later_max<exact, A>(best, V::get(from + e + k * step));
    V::put(to + e, best);
  }
}

// The same, and which k it was; `first` is the first k inside the map, where the maximum may be no greater than the padding.
template <int K, bool exact, class A, class Tap>
void max_across(const A* from, A* to, Tap* tap, const Tap* first, int64_t n, int64_t step, int64_t taps) {
  using V = Lanes<A>;
  using X = TapLanes<A, Tap>;
  for (int64_t e = 0; e < n; e += V::n) {
    Best<A, Tap> best{V::get(from + e), exact ? X::get(first + e) : X::set(0)};
#pragma GCC unroll 4
    for (int64_t k = 1; k < (K ? K : taps); ++k) best.template take<exact>(V::get(from + e + k * step), X::set(int32_t(k)));
    V::put(to + e, best.value);
    X::put(tap + e, best.tap);
  }
}

// out[e] = maximum of rows[i][e].
template <int K, bool exact, class T, class A>
void max_down(const A* const* rows, int64_t count, int64_t n, T* out) {
  using V = Lanes<A>;
  const auto best_at = [&](int64_t e) {
    typename V::V best = V::get(rows[0] + e);
#pragma GCC unroll 4
    for (int64_t i = 1; i < (K ? K : count); ++i) best = later_max<exact, A>(best, V::get(rows[i] + e));
    return best;
  };
  int64_t e = 0;
  for (; e + V::n <= n; e += V::n) Exact::put(out + e, best_at(e));
  if (e < n) Exact::put_part(out + e, best_at(e), int(n - e));
}

// The same, and the tap of the window: that of the row plus what base[i] says for the row.
template <int K, bool exact, class T, class A, class Tap>
void max_down(const A* const* rows, const Tap* const* taps, const int32_t* base, int64_t count, int64_t n, T* out, Tap* out_tap) {
  using V = Lanes<A>;
  using X = TapLanes<A, Tap>;
  const auto best_at = [&](int64_t e) {
    Best<A, Tap> best{V::get(rows[0] + e), X::add(X::get(taps[0] + e), X::set(base[0]))};
#pragma GCC unroll 4
    for (int64_t i = 1; i < (K ? K : count); ++i) best.template take<exact>(V::get(rows[i] + e), X::add(X::get(taps[i] + e), X::set(base[i])));
    return best;
  };
  int64_t e = 0;
  for (; e + V::n <= n; e += V::n) {
    const Best<A, Tap> best = best_at(e);
    Exact::put(out + e, best.value);
    X::put(out_tap + e, best.tap);
  }
  if (e < n) {
    const Best<A, Tap> best = best_at(e);
    Exact::put_part(out + e, best.value, int(n - e));
    X::put_part(out_tap + e, best.tap, int(n - e));
  }
}

template <int N>
struct Unrolled {
  static constexpr int value = N;
};
template <class F>
FASTCONV_INLINE void unrolled(int64_t count, const F& f) {
  if (count == 2) return f(Unrolled<2>{});
  if (count == 3) return f(Unrolled<3>{});
  f(Unrolled<0>{});
}

// Tap: how the argmax is kept, uint8_t where its taps fit; with_taps: whether it is wanted at all.
template <class T, class Tap, bool with_taps>
class MaxRows {
  using A = typename Compute<T>::type;

 public:
  MaxRows(const PoolGeometry& g, Layout layout, const void* x, Carver& carver, int64_t columns, int64_t channels, int64_t rows)
      : g_(g), reader_(plain_map(g, layout), static_cast<const T*>(x), nullptr) {
    const Room room(g, columns, channels, rows);
    pitch_ = room.pitch, window_ = room.window;
    staged_ = carver.take<A>(room.staged);
    values_ = carver.take<A>(room.ring);
    if (with_taps) taps_ = carver.take<Tap>(room.ring), first_ = carver.take<Tap>(pitch_);
    row_values_ = carver.take<const A*>(g.kh), row_taps_ = carver.take<const Tap*>(g.kh), base_ = carver.take<int32_t>(g.kh);
  }

  static int64_t scratch_bytes(const PoolGeometry& g, int64_t columns, int64_t channels, int64_t rows) {
    const Room room(g, columns, channels, rows);
    return room.staged * int64_t(sizeof(A)) + room.ring * int64_t(sizeof(A) + sizeof(Tap)) + room.pitch * int64_t(sizeof(Tap)) + g.kh * 20 + 512;
  }

  // Dense columns [s.x0, s.x1); rows of a class are then asked for from first to last.
  void start(const Strip& s) {
    const int64_t xa = s.x0 - g_.pw, halo = (g_.kw - 1) * g_.dw;
    n_ = (s.x1 - s.x0) * s.channels, step_ = g_.dw * s.channels;
    reader_.start(s, xa, s.x1 - g_.pw + halo, g_.w);
    fill_row(staged_, window_.block * pitch_, A(-__builtin_inf()));
    if constexpr (with_taps) {
      for (int64_t x = s.x0; x < s.x1; ++x) {
        const int64_t k = g_.pw > x ? ceil_div(g_.pw - x, g_.dw) : 0;
        fill_row(first_ + (x - s.x0) * s.channels, s.channels, Tap(k < g_.kw ? k : 0));
      }
    }
  }
  void begin_class(int64_t y, int64_t rows) {
    window_.begin(y - g_.ph, g_.h, rows);
    suspects_ = 0;
  }

  // Row j of the class.
  void row(int64_t j, T* out, Tap* tap) {
    window_.need(j, [&](int64_t unit, int64_t count, int64_t slot) { reduce(unit, count, slot); });
    const int64_t from = window_.from(j), count = window_.to(j) - from;
    if (count <= 0) return nothing(out, tap);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t slot = window_.slot(from + i);
      row_values_[i] = values_ + slot * pitch_;
      if constexpr (with_taps) row_taps_[i] = taps_ + slot * pitch_, base_[i] = int32_t((from + i - j) * g_.kw);
    }
    const bool exact = suspects_ > j;
    unrolled(count, [&](auto k) {
      constexpr int K = decltype(k)::value;
      if constexpr (with_taps)
        (exact ? &max_down<K, true, T, A, Tap> : &max_down<K, false, T, A, Tap>)(row_values_, row_taps_, base_, count, n_, out, tap);
      else
        (exact ? &max_down<K, true, T, A> : &max_down<K, false, T, A>)(row_values_, count, n_, out);
    });
  }

 private:
  struct Room {
    int64_t pitch, staged, ring;
    RowWindow window;
    Room(const PoolGeometry& g, int64_t columns, int64_t channels, int64_t rows) {
      const int64_t halo = (g.kw - 1) * g.dw * channels;
      pitch = row_pitch<A>(columns * channels + halo);
      window = RowWindow::of(g.kh, g.dh, pitch, ceil_div(rows, g.dh));
      staged = window.block * pitch + halo + kSlack, ring = window.slots() * pitch + kSlack;
    }
  };

  void reduce(int64_t unit, int64_t count, int64_t slot) {
    typename Lanes<A>::V watched = Lanes<A>::set(0);
    for (int64_t i = 0; i < count; ++i) reader_.template read<Look::out>(window_.row(unit + i), staged_ + i * pitch_, watched);
    const bool exact = Lanes<A>::alarmed(watched);
    if (exact) suspects_ = unit + count;
    // Rows of a block lie one behind the other: one loop runs through them and their halos.
    const int64_t n = (count - 1) * pitch_ + n_;
    A* const values = values_ + slot * pitch_;
    unrolled(g_.kw, [&](auto k) {
      constexpr int K = decltype(k)::value;
      if constexpr (!with_taps) {
        (exact ? &max_across<K, true, A> : &max_across<K, false, A>)(staged_, values, n, step_, g_.kw);
      } else if (!exact) {
        max_across<K, false, A, Tap>(staged_, values, taps_ + slot * pitch_, nullptr, n, step_, g_.kw);
      } else {
        for (int64_t i = 0; i < count; ++i)
          max_across<K, true, A, Tap>(staged_ + i * pitch_, values + i * pitch_, taps_ + (slot + i) * pitch_, first_, n_, step_, g_.kw);
      }
    });
  }

  // All windows of the row lie in the padding.
  void nothing(T* out, Tap* tap) {
    fill_row(out, n_, narrow<T>(-__builtin_inf()));
    if constexpr (with_taps) fill_row(tap, n_, Tap(0));
  }

  const PoolGeometry& g_;
  RowReader<T> reader_;
  RowWindow window_;
  A *staged_, *values_;
  Tap *taps_, *first_;
  const A** row_values_;
  const Tap** row_taps_;
  int32_t* base_;
  int64_t pitch_, n_, step_;
  int64_t suspects_;  // units before this one may need the exact functions
};

}  // namespace fastconv::FASTCONV_ISA
