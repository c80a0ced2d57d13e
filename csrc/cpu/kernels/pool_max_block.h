// Max pool of small square windows straight from the map: a block of output rows is made in registers, vector by vector, so that each input
// row is reduced along its columns once for all output rows of the block that need it, and nothing but the result is stored.
// Vectors at the left and right border read through a mask; clipped rows are blocks of one row with a lower window.
#pragma once
#include "pool_max_rows.h"

namespace fastconv::FASTCONV_ISA {

// Output rows of a block. With its window's rows it stays below the ways of the first-level cache, to one set of which all rows may map.
constexpr int kBlockRows = 4;

template <class T, class Tap>
struct MaxBlock {
  const T* in;        // first row, at the column of tap 0 of element 0
  int64_t in_stride;  // elements between two rows of the residue class
  T* out;
  Tap* tap;
  int64_t out_stride;
  int64_t n;       // elements of an output row
  int64_t step;    // elements between two tap columns
  int64_t lo, hi;  // columns that exist, in elements relative to `in`
  int64_t ahead;   // elements from a row to the one to fetch meanwhile
};

// R output rows from KH + R - 1 input rows, windows of KH x K taps; base: the tap of their first row. exact: see pool_max_rows.h; without it, whether
// the result can be relied on.
template <int K, int KH, int R, bool exact, bool with_taps, class T, class Tap>
bool max_block(MaxBlock<T, Tap> b, int32_t base) {
  using A = typename Compute<T>::type;
  using V = Lanes<A>;
  using X = TapLanes<A, Tap>;
  using Value = typename V::V;
  using Taps = typename X::I;
  constexpr int kRows = R + KH - 1;
  typename V::M suspect = V::none();

  const auto at = [&](int64_t e, auto border) __attribute__((always_inline)) {
    constexpr bool kBorder = decltype(border)::value;
    typename V::M inside[K];
    int from[K], to[K];
    if constexpr (kBorder) {
      for (int k = 0; k < K; ++k) {
        const int64_t first = b.lo - e - k * b.step, last = b.hi - e - k * b.step;
        from[k] = first < 0 ? 0 : first < V::n ? int(first) : V::n;
        to[k] = last < 0 ? 0 : last < V::n ? int(last) : V::n;
        inside[k] = V::between(from[k], to[k]);
      }
    }
    Value row[kRows];
    Taps row_tap[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const T* p = b.in + r * b.in_stride + e;
      if (!kBorder && R > 1 && r < R) prefetch(p + b.ahead);
      Value v[K];
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        if constexpr (kBorder)
          v[k] = get_between(p + k * b.step, from[k], to[k], inside[k], A(-__builtin_inf()));
        else
          v[k] = get_whole(p + k * b.step);
      }
      if constexpr (!exact) suspect = V::either(suspect, V::unordered(v[0], v[K - 1]));
      row[r] = v[0];
      if constexpr (with_taps) {
        row_tap[r] = X::set(0);
        typename V::M seen = kBorder ? inside[0] : V::none();
#pragma GCC unroll 4
        for (int k = 1; k < K; ++k) {
          typename V::M m = exact ? V::wins(row[r], v[k]) : V::greater(v[k], row[r]);
          if constexpr (exact && kBorder) {
            // The first tap inside the map wins over the padding, whatever it holds.
            m = V::both(inside[k], V::either(m, V::neither(seen)));
            seen = V::either(seen, inside[k]);
          }
          row[r] = exact ? V::choose(m, v[k], row[r]) : V::max(row[r], v[k]);
          row_tap[r] = X::choose(m, X::set(k), row_tap[r]);
        }
      } else {
#pragma GCC unroll 4
        for (int k = 1; k < K; ++k) row[r] = later_max<exact, A>(row[r], v[k]);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < R; ++j) {
      Best<A, Tap> best{row[j], with_taps ? X::add(row_tap[j], X::set(base)) : row_tap[j]};
#pragma GCC unroll 4
      for (int i = 1; i < KH; ++i) {
        if constexpr (with_taps)
          best.template take<exact>(row[j + i], X::add(row_tap[j + i], X::set(base + i * K)));
        else
          best.value = later_max<exact, A>(best.value, row[j + i]);
      }
      T* const out = b.out + j * b.out_stride + e;
      const int64_t left = b.n - e;
      if constexpr (!exact && with_taps) {
        const typename V::M low = V::lowest(best.value);
        suspect = V::either(suspect, kBorder && left < V::n ? V::both(low, V::between(0, int(left))) : low);
      }
      if (!kBorder || left >= V::n) {
        Exact::put(out, best.value);
        if constexpr (with_taps) X::put(b.tap + j * b.out_stride + e, best.tap);
      } else {
        Exact::put_part(out, best.value, int(left));
        if constexpr (with_taps) X::put_part(b.tap + j * b.out_stride + e, best.tap, int(left));
      }
    }
  };

  // Whole vectors whose taps all exist.
  const int64_t last = b.hi - (K - 1) * b.step < b.n ? b.hi - (K - 1) * b.step : b.n;
  int64_t e = 0;
  for (; e < b.n && e < b.lo; e += V::n) at(e, Flag<true>{});
  for (; e + V::n <= last; e += V::n) at(e, Flag<false>{});
  for (; e < b.n; e += V::n) at(e, Flag<true>{});
  return exact || !V::any(suspect);
}

// Output rows of one residue class, in order: windows of K x K taps.
template <int K, bool with_taps, class T, class Tap>
class MaxBlocks {
 public:
  // Rows y, y + dilation, ... (count of them) of the strip, written `out_stride` elements apart.
  static void rows(const PoolGeometry& g, const DealtMap& map, const T* x, const Strip& s, int64_t y, int64_t count, T* out, Tap* tap, int64_t out_stride) {
    const int64_t pitch = g.w * map.pixel(), first = y - g.ph;
    const T* const plane = x + map.offset(s.n, s.c, 0, 0);
    MaxBlock<T, Tap> b;
    b.in_stride = g.dh * pitch, b.out_stride = out_stride;
    b.n = (s.x1 - s.x0) * s.channels, b.step = g.dw * s.channels;
    // The new rows of the next block; of a later one where rows are so short that memory would not answer in time.
    constexpr int64_t kAhead = 8192 / sizeof(T);
    const int64_t block = kBlockRows * b.in_stride;
    b.ahead = (K - 1) * b.in_stride + block * (block < kAhead ? ceil_div(kAhead, block) : 1);
    b.lo = (g.pw - s.x0) * s.channels, b.hi = b.lo + g.w * s.channels;
    // Unit i of the class is input row first + i*dh; units [lo, hi) exist.
    const int64_t lo = first < 0 ? ceil_div(-first, g.dh) : 0, end = first < g.h ? ceil_div(g.h - first, g.dh) : 0;
    const int64_t all = count + K - 1, hi = end < all ? end : all;
    const auto place = [&](int64_t j, int64_t unit) {
      b.in = plane + (first + unit * g.dh) * pitch - b.lo;
      b.out = out + j * out_stride;
      if constexpr (with_taps) b.tap = tap + j * out_stride;
    };
    const auto one_row = [&](int64_t j) {
      const int64_t from = j > lo ? j : lo, to = j + K < hi ? j + K : hi;
      const int32_t base = int32_t((from - j) * K);
      place(j, from);
      if (to - from == K) return max_block<K, K, 1, true, with_taps>(b, base);
      if (to - from == 2) return max_block<K, 2, 1, true, with_taps>(b, base);
      if (to - from == 1) return max_block<K, 1, 1, true, with_taps>(b, base);
      fill_row(b.out, b.n, narrow<T>(-__builtin_inf()));
      if constexpr (with_taps) fill_row(b.tap, b.n, Tap(0));
      return true;
    };
    // Windows with all their rows: j in [lo, hi - K].
    const int64_t stop = hi - K + 1;
    // Checking taps 0 and K-1 for NaN sees every element of a row that is not narrower than the window's halo.
    const bool blocks = stop - lo >= kBlockRows && b.n >= (K - 1) * b.step;
    int64_t j = 0;
    for (; j < count && (j < lo || !blocks); ++j) one_row(j);
    while (j < stop) {
      // The last block overlaps the one before it.
      if (j + kBlockRows > stop) j = stop - kBlockRows;
      place(j, j);
      const bool sound = max_block<K, K, kBlockRows, false, with_taps>(b, 0);
      for (int64_t i = 0; i < kBlockRows && !sound; ++i) one_row(j + i);
      j += kBlockRows;
    }
    for (; j < count; ++j) one_row(j);
  }
};

}  // namespace fastconv::FASTCONV_ISA
