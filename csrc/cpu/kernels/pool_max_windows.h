// Gradient of the max pool of small square windows, straight from a stitched gradient and its argmax: an input element asks the windows that
// hold it, K x K loads a vector, and nothing but the result is stored. Windows outside the map read as zero through a mask.
#pragma once
#include "pool_lanes.h"

namespace fastconv::FASTCONV_ISA {

// `count` rows of windows that hold an input row, topmost first; the input row is tap row `ky` of the topmost, ky - 1 of the next, ...
template <int K, class T>
struct WindowRows {
  const T* grad[K];       // of the window whose tap column 0 is element 0 of the output
  const uint8_t* tap[K];  // beside it
  int ky, count;
  int64_t lo, hi;  // windows that exist, in elements relative to `grad`
  int64_t ahead;   // elements from the lowest row to the one to fetch meanwhile
};

// C: rows.count where it is K, or 0.
template <int K, int C, class T>
void gather_row(const WindowRows<K, T>& rows, int64_t n, int64_t step, T* out) {
  using V = Lanes<float>;
  using X = TapLanes<float, uint8_t>;
  const int count = C ? C : rows.count, ky = C ? C - 1 : rows.ky;
  const auto at = [&](int64_t e, auto border) __attribute__((always_inline)) {
    constexpr bool kBorder = decltype(border)::value;
    vf sum{};
    if constexpr (!kBorder) {
      prefetch(rows.grad[count - 1] + e + rows.ahead);
      prefetch(rows.tap[count - 1] + e + rows.ahead);
    }
    int from[K] = {}, to[K] = {};
    V::M inside[K] = {};
    if constexpr (kBorder) {
      for (int k = 0; k < K; ++k) {
        const int64_t first = rows.lo - e + k * step, last = rows.hi - e + k * step;
        from[k] = first < 0 ? 0 : first < V::n ? int(first) : V::n;
        to[k] = last < 0 ? 0 : last < V::n ? int(last) : V::n;
        inside[k] = V::between(from[k], to[k]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < count; ++i) {
#pragma GCC unroll 4
      for (int k = K - 1; k >= 0; --k) {
        const int64_t w = e - k * step;
        const auto wanted = X::set((ky - i) * K + k);
        if constexpr (kBorder)
          sum = X::add_where(sum, X::get_between(rows.tap[i] + w, from[k], to[k]), wanted, get_between(rows.grad[i] + w, from[k], to[k], inside[k], 0.0f));
        else
          sum = X::add_where(sum, X::get(rows.tap[i] + w), wanted, get_whole(rows.grad[i] + w));
      }
    }
    if (!kBorder || n - e >= V::n)
      Rounded::put(out + e, sum);
    else
      Rounded::put_part(out + e, sum, int(n - e));
  };
  // Whole vectors all of whose windows exist.
  const int64_t first = rows.lo + (K - 1) * step, last = rows.hi < n ? rows.hi : n;
  int64_t e = 0;
  for (; e < n && e < first; e += V::n) at(e, Flag<true>{});
  for (; e + V::n <= last; e += V::n) at(e, Flag<false>{});
  for (; e < n; e += V::n) at(e, Flag<true>{});
}

}  // namespace fastconv::FASTCONV_ISA
