// What the pooling kernels share: strips of a map, rows of a strip in and out of memory. In scratch a row of a strip is [column][channel],
// converted to the type of computation, with the padding written out, so that no loop over taps ever tests a border.
#pragma once
#include "common/params_pool.h"
#include "common/shape.h"
#include "deal.h"
#include "pool_lanes.h"

namespace fastconv::FASTCONV_ISA {

struct Strip {
  int64_t n, c, channels, x0, x1, y0, y1;
};

// The item'th strip of a map of `height` x `width` positions.
inline Strip strip_of(const PoolPlan& plan, const PoolGeometry& g, Layout layout, int64_t height, int64_t width, int64_t item) {
  Strip s;
  const int64_t chunk = item % plan.chunks, strip = item / plan.chunks % plan.strips, band = item / plan.chunks / plan.strips % plan.bands;
  const int64_t image = item / plan.chunks / plan.strips / plan.bands;
  s.n = layout == Layout::contiguous ? image / g.c : image;
  s.c = layout == Layout::contiguous ? image % g.c : chunk * plan.channels;
  s.channels = layout == Layout::contiguous || s.c + plan.channels <= g.c ? plan.channels : g.c - s.c;
  s.x0 = strip * plan.columns, s.y0 = band * plan.rows;
  s.x1 = s.x0 + plan.columns < width ? s.x0 + plan.columns : width;
  s.y1 = s.y0 + plan.rows < height ? s.y0 + plan.rows : height;
  return s;
}

// Hands out pieces of the thread's scratch, each on its own cache lines.
struct Carver {
  char* p;
  template <class T>
  T* take(int64_t count) {
    T* out = reinterpret_cast<T*>(p);
    p += round_up(count * int64_t(sizeof(T)), 64);
    return out;
  }
};

template <class T>
inline T narrow(double v) {
  T out;
  from_float(&out, float(v));
  return out;
}
template <>
inline double narrow(double v) {
  return v;
}

// Vectors may run past the end of a scratch row by less than this.
constexpr int64_t kSlack = 64;

// Elements between two rows of a ring. An odd number of cache lines spreads the rows over all cache sets.
template <class A>
int64_t ring_pitch(int64_t elements) {
  const int64_t line = 64 / sizeof(A);
  return (ceil_div(elements + kSlack, line) | 1) * line;
}

template <class A>
void fill_row(A* dst, int64_t n, A value) {
  using V = Lanes<A>;
  const typename V::V v = V::set(value);
  for (int64_t e = 0; e < n; e += V::n) V::put(dst + e, v);
}

template <class T, class A>
FASTCONV_INLINE void widen(const T* src, A* dst, int64_t n) {
  constexpr int N = Lanes<A>::n;
  int64_t e = 0;
  for (; e + N <= n; e += N) Lanes<A>::put(dst + e, get_whole(src + e));
  if (e < n) Lanes<A>::put(dst + e, get_part(src + e, int(n - e)));
}

FASTCONV_INLINE void fill_row(uint8_t* dst, int64_t n, uint8_t value) { memset(dst, value, n); }
FASTCONV_INLINE void widen(const uint8_t* src, uint8_t* dst, int64_t n) { memcpy(dst, src, n); }

// Columns [xa, xb) of row y, of which [0, width) exist, the others read as `pad`. `deal` is room for the row as T.
template <class T, class A>
void load_row(const DealtMap& m, const T* data, const Strip& s, int64_t y, int64_t xa, int64_t xb, int64_t width, A pad, A* dst, T* deal) {
  const int64_t in = xa > 0 ? xa : 0, lo = in < xb ? in : xb, end = xb < width ? xb : width, hi = end > lo ? end : lo;
  const int64_t pixel = m.pixel(), channels = s.channels;
  if (lo > xa) fill_row(dst, (lo - xa) * channels, pad);
  A* to = dst + (lo - xa) * channels;
  if (hi > lo) {
    const T* from = data + m.offset(s.n, s.c, y, 0);
    if (m.sx == 1 && pixel == channels) {
      widen(from + lo * pixel, to, (hi - lo) * channels);
    } else if (m.sx == 1) {
      for (int64_t x = lo; x < hi; ++x) widen(from + x * pixel, to + (x - lo) * channels, channels);
    } else if (pixel == 1) {
      const int64_t v0 = lo / m.sx, v1 = ceil_div(hi, m.sx);
      collect(from + v0, m.fragment_stride(), m.sx, v1 - v0, deal);
      widen(deal + (lo - v0 * m.sx), to, hi - lo);
    } else {
      for (int64_t x = lo; x < hi; ++x) widen(from + (x % m.sx) * m.fragment_stride() + x / m.sx * pixel, to + (x - lo) * channels, channels);
    }
  }
  if (xb > hi) fill_row(dst + (hi - xa) * channels, (xb - hi) * channels, pad);
}

// Whether a row of the strip lies in memory as one run, to be written without a detour.
inline bool is_run(const DealtMap& m, const Strip& s) { return m.sx == 1 && m.pixel() == s.channels; }
template <class T>
T* run_at(const DealtMap& m, T* data, const Strip& s, int64_t y) {
  return data + m.offset(s.n, s.c, y, 0) + s.x0 * m.pixel();
}

// Row y of the strip from scratch into the map; x0 and x1 are multiples of sx.
template <class T>
void store_row(const DealtMap& m, T* data, const Strip& s, int64_t y, const T* row) {
  const int64_t pixel = m.pixel(), channels = s.channels;
  T* to = data + m.offset(s.n, s.c, y, 0) + s.x0 / m.sx * pixel;
  if (m.sx == 1 && pixel == channels) {
    memcpy(to, row, sizeof(T) * (s.x1 - s.x0) * channels);
  } else if (pixel == 1) {
    spread(row, to, m.fragment_stride(), m.sx, (s.x1 - s.x0) / m.sx);
  } else {
    for (int64_t x = s.x0; x < s.x1; x += m.sx, to += pixel)
      for (int64_t o = 0; o < m.sx; ++o, row += channels) memcpy(to + o * m.fragment_stride(), row, sizeof(T) * channels);
  }
}

// f(y) for the rows of the strip, one residue class of the dilation after the other: neighbours in a class share all rows of their windows but one.
template <class F>
void for_each_row(const Strip& s, int64_t dilation, const F& f) {
  for (int64_t r = 0; r < dilation && s.y0 + r < s.y1; ++r)
    for (int64_t y = s.y0 + r; y < s.y1; y += dilation) f(y);
}

inline DealtMap plain_map(const PoolGeometry& g, Layout layout) { return {g.c, g.h, g.w, 1, 1, layout}; }
inline DealtMap pooled_map(const PoolGeometry& g, Layout layout) {
  if (g.fragments) return {g.c, g.frag_h, g.frag_w, g.sh, g.sw, layout};
  return {g.c, g.dense_h, g.dense_w, 1, 1, layout};
}
// Positions that have to be written: a fragment's tail is a row or column beyond the dense map.
inline int64_t pooled_height(const PoolGeometry& g) { return g.fragments ? g.frag_h * g.sh : g.dense_h; }
inline int64_t pooled_width(const PoolGeometry& g) { return g.fragments ? g.frag_w * g.sw : g.dense_w; }

// The rows of a strip that the windows of one row need: `slots` of them, `dilation` apart, found again by their number.
struct RowRing {
  int64_t* held;
  int64_t slots, dilation;
  void reset() {
    for (int64_t i = 0; i < slots; ++i) held[i] = -1;
  }
  int64_t slot(int64_t row) const { return row / dilation % slots; }
};

// Cuts a map of `height` x `width` positions into strips whose ring of rows stays in the first-level cache where the halo allows it.
// `bytes` is what one element of a row costs, over all rows of the ring; strips are multiples of `quantum` columns.
inline PoolPlan plan_strips(const PoolGeometry& g, Layout layout, int64_t height, int64_t width, int64_t quantum, int64_t bytes, int threads) {
  constexpr int64_t kCache = 32 * 1024;
  const int64_t budget = kCache / bytes > 256 ? kCache / bytes : 256, halo = (g.kw - 1) * g.dw;
  const auto lesser = [](int64_t a, int64_t b) { return a < b ? a : b; };
  const auto greater = [](int64_t a, int64_t b) { return a > b ? a : b; };
  PoolPlan plan = {};
  plan.channels = 1, plan.chunks = 1;
  int64_t images = g.n * g.c;
  if (layout == Layout::channels_last) {
    images = g.n;
    plan.channels = g.c;
    // A strip worth its halo: all columns, or four times the halo. Where all channels of it are too much, take them by the cache line.
    const int64_t wanted = lesser(width, greater(4 * halo, 8)) + halo;
    if (wanted * g.c > budget) plan.channels = lesser(g.c, greater(round_up(budget / wanted, 64), 64));
    plan.chunks = ceil_div(g.c, plan.channels);
  }
  const int64_t columns = greater(budget / plan.channels - halo, greater(halo, 8));
  plan.strips = ceil_div(width, columns);
  plan.columns = round_up(ceil_div(width, plan.strips), quantum);
  plan.strips = ceil_div(width, plan.columns);
  // Too few strips for the threads: cut them into bands, tall enough that the rows recomputed at the seams don't matter.
  const int64_t items = images * plan.chunks * plan.strips, least = greater(8, 4 * (g.kh - 1) * g.dh);
  plan.bands = items >= 4 * threads || threads == 1 ? 1 : lesser(ceil_div(4 * threads, greater(items, 1)), greater(height / least, 1));
  plan.rows = ceil_div(height, plan.bands);
  plan.bands = ceil_div(height, plan.rows);
  plan.items = images * plan.chunks * plan.strips * plan.bands;
  return plan;
}

}  // namespace fastconv::FASTCONV_ISA
