// What the pooling kernels share: strips of a map, rows of a strip in and out of memory. In scratch a row of a strip is [column][channel],
// converted to the type of computation, with the padding written out, so that no loop over taps ever tests a border.
#pragma once
#include "common/params_pool.h"
#include "common/shape.h"
#include "deal.h"
#include "pool_lanes.h"

namespace fastconv::FASTCONV_ISA {

// One plane (contiguous) or some channels of one image (channels_last), columns [x0, x1), rows [y0, y1).
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

// Vectors may run past the end of a scratch row by less than this many elements.
constexpr int64_t kSlack = 64;

// Elements between two scratch rows: whole cache lines, an odd number of them, which spreads the rows over all cache sets.
template <class E>
int64_t row_pitch(int64_t elements) {
  const int64_t line = 64 / sizeof(E);
  return (ceil_div(elements, line) | 1) * line;
}

template <class A>
void fill_row(A* dst, int64_t n, A value) {
  for (int64_t e = 0; e < n; ++e) dst[e] = value;
}

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

// Whether a reader looks out for NaNs and infinities in what it passes on.
enum class Look { past, out };

template <Look look, class T, class A>
FASTCONV_INLINE void widen(const T* src, A* dst, int64_t n, typename Lanes<A>::V& watched) {
  using V = Lanes<A>;
  // Four chains, for a chain of multiply-adds waits for itself.
  typename V::V seen[4] = {};
  int64_t e = 0;
  const auto pass = [&](int chain, typename V::V v) {
    if constexpr (look == Look::out) seen[chain] = V::watch(seen[chain], v);
    return v;
  };
  for (; e + 4 * V::n <= n; e += 4 * V::n) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) V::put(dst + e + i * V::n, pass(i, get_whole(src + e + i * V::n)));
  }
  for (; e + V::n <= n; e += V::n) V::put(dst + e, pass(0, get_whole(src + e)));
  if (e < n) Exact::put_part(dst + e, pass(1, get_part(src + e, int(n - e))), int(n - e));
  if constexpr (look == Look::out) watched += (seen[0] + seen[1]) + (seen[2] + seen[3]);
}

// Reads rows of a strip of a map: columns [xa, xb), of which [0, width) exist. Only those are written; the padding around them is for the
// caller to put in place once.
template <class T>
class RowReader {
 public:
  RowReader(const DealtMap& map, const T* data, T* deal) : map_(map), data_(data), deal_(deal) {}
  // Room for the `deal` row.
  static int64_t deal_elements(const DealtMap& map, int64_t columns) { return map.sx > 1 && map.pixel() == 1 ? columns + 2 * map.sx : 0; }

  void start(const Strip& s, int64_t xa, int64_t xb, int64_t width) {
    s_ = s;
    const int64_t in = xa > 0 ? xa : 0, end = xb < width ? xb : width;
    lo_ = in < xb ? in : xb, hi_ = end > lo_ ? end : lo_;
    left_ = (lo_ - xa) * s.channels;
  }

  template <Look look, class A>
  void read(int64_t y, A* row, typename Lanes<A>::V& watched) const {
    each_run(y, [&](const T* from, int64_t at, int64_t n) { widen<look>(from, row + at, n, watched); });
  }
  // As they are.
  void copy(int64_t y, T* row) const {
    each_run(y, [&](const T* from, int64_t at, int64_t n) { copy_run(row + at, from, n); });
  }

 private:
  template <class F>
  FASTCONV_INLINE void each_run(int64_t y, const F& f) const {
    const int64_t pixel = map_.pixel(), channels = s_.channels;
    if (hi_ <= lo_) return;
    const T* from = data_ + map_.offset(s_.n, s_.c, y, 0);
    if (map_.sx == 1 && pixel == channels) {
      f(from + lo_ * pixel, left_, (hi_ - lo_) * channels);
    } else if (map_.sx == 1) {
      for (int64_t x = lo_; x < hi_; ++x) f(from + x * pixel, left_ + (x - lo_) * channels, channels);
    } else if (pixel == 1) {
      const int64_t v0 = lo_ / map_.sx, v1 = ceil_div(hi_, map_.sx);
      collect(from + v0, map_.fragment_stride(), map_.sx, v1 - v0, deal_);
      f(deal_ + (lo_ - v0 * map_.sx), left_, hi_ - lo_);
    } else {
      int64_t o = lo_ % map_.sx, v = lo_ / map_.sx;
      for (int64_t x = lo_; x < hi_; ++x) {
        f(from + o * map_.fragment_stride() + v * pixel, left_ + (x - lo_) * channels, channels);
        if (++o == map_.sx) o = 0, ++v;
      }
    }
  }

  DealtMap map_;
  const T* data_;
  T* deal_;
  Strip s_;
  int64_t lo_, hi_, left_;
};

// Writes rows of a strip of a map; x0 and x1 are multiples of sx.
template <class T>
class RowWriter {
 public:
  RowWriter(const DealtMap& map, T* data) : map_(map), data_(data) {}
  void start(const Strip& s) { s_ = s; }

  // Where row y lies in memory as one run, for the kernel to write it there; null where it has to go through write().
  T* direct(int64_t y) const { return map_.sx == 1 && map_.pixel() == s_.channels ? at(y) : nullptr; }

  void write(int64_t y, const T* row) const {
    const int64_t pixel = map_.pixel(), channels = s_.channels;
    T* to = at(y);
    if (map_.sx == 1 && pixel == channels) {
      copy_run(to, row, (s_.x1 - s_.x0) * channels);
    } else if (pixel == 1) {
      spread(row, to, map_.fragment_stride(), map_.sx, (s_.x1 - s_.x0) / map_.sx);
    } else {
      for (int64_t x = s_.x0; x < s_.x1; x += map_.sx, to += pixel)
        for (int64_t o = 0; o < map_.sx; ++o, row += channels) copy_run(to + o * map_.fragment_stride(), row, channels);
    }
  }

 private:
  T* at(int64_t y) const { return data_ + map_.offset(s_.n, s_.c, y, 0) + s_.x0 / map_.sx * map_.pixel(); }

  DealtMap map_;
  T* data_;
  Strip s_;
};

// The source rows behind consecutive rows of one residue class of the dilation. Row j of the class needs units j .. j + kernel - 1; unit i is
// source row first + i*dilation and exists for lo <= i < hi. Units are loaded in order, a block at a time, into a ring of slots.
struct RowWindow {
  int64_t kernel, dilation, block, mask;
  int64_t first, lo, hi, loaded;

  // As many rows a block as make a loop over them worth its start; a block is contiguous in the ring.
  static RowWindow of(int64_t kernel, int64_t dilation, int64_t pitch, int64_t rows) {
    RowWindow w = {};
    w.kernel = kernel, w.dilation = dilation, w.block = 1;
    while (w.block < 16 && w.block * pitch < 512 && w.block < rows) w.block *= 2;
    int64_t slots = w.block;
    while (slots < kernel - 1 + w.block) slots *= 2;
    w.mask = slots - 1;
    return w;
  }
  int64_t slots() const { return mask + 1; }

  void begin(int64_t first_row, int64_t height, int64_t outputs) {
    first = first_row;
    lo = first < 0 ? ceil_div(-first, dilation) : 0;
    const int64_t all = outputs + kernel - 1, end = first < height ? ceil_div(height - first, dilation) : 0;
    hi = all < end ? all : end;
    loaded = lo;
  }
  int64_t row(int64_t unit) const { return first + unit * dilation; }
  int64_t slot(int64_t unit) const { return (unit - lo) & mask; }
  int64_t from(int64_t j) const { return j > lo ? j : lo; }
  int64_t to(int64_t j) const { return j + kernel < hi ? j + kernel : hi; }
  // load(first unit, count, first slot) for what row j still lacks.
  template <class F>
  void need(int64_t j, const F& load) {
    while (loaded < to(j)) {
      const int64_t count = hi - loaded < block ? hi - loaded : block;
      load(loaded, count, slot(loaded));
      loaded += count;
    }
  }
};

// f(first row, rows) for every residue class of the dilation: neighbours in a class share all source rows of their windows but one.
template <class F>
void for_each_class(const Strip& s, int64_t dilation, const F& f) {
  for (int64_t r = 0; r < dilation && s.y0 + r < s.y1; ++r) f(s.y0 + r, ceil_div(s.y1 - s.y0 - r, dilation));
}

inline DealtMap plain_map(const PoolGeometry& g, Layout layout) { return {g.c, g.h, g.w, 1, 1, layout}; }
inline DealtMap pooled_map(const PoolGeometry& g, Layout layout) {
  if (g.fragments) return {g.c, g.frag_h, g.frag_w, g.sh, g.sw, layout};
  return {g.c, g.dense_h, g.dense_w, 1, 1, layout};
}
// Positions that have to be written: a fragment's tail is a row or column beyond the dense map.
inline int64_t pooled_height(const PoolGeometry& g) { return g.fragments ? g.frag_h * g.sh : g.dense_h; }
inline int64_t pooled_width(const PoolGeometry& g) { return g.fragments ? g.frag_w * g.sw : g.dense_w; }

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

// The same for kernels that keep no rows and pay nothing for halos: strips as wide as their blocks of rows fit the second-level cache.
inline PoolPlan plan_blocks(const PoolGeometry& g, Layout layout, int64_t height, int64_t width, int64_t quantum, int64_t bytes, int threads) {
  constexpr int64_t kCache = 768 * 1024, kRows = 10;
  PoolPlan plan = {};
  plan.channels = layout == Layout::channels_last ? g.c : 1, plan.chunks = 1;
  const int64_t images = layout == Layout::channels_last ? g.n : g.n * g.c, halo = (g.kw - 1) * g.dw;
  const int64_t fitting = kCache / (kRows * bytes * plan.channels) - halo, columns = fitting > 4 * halo + 8 ? fitting : 4 * halo + 8;
  plan.strips = ceil_div(width, columns);
  plan.columns = round_up(ceil_div(width, plan.strips), quantum);
  plan.strips = ceil_div(width, plan.columns);
  // Bands are whole blocks of rows: the last block of a band overlaps the one before it, which is work done twice.
  const int64_t items = images * plan.strips, block = 4 * g.dh;
  const int64_t wanted = items >= 4 * threads || threads == 1 ? 1 : ceil_div(8 * threads, items > 0 ? items : 1);
  plan.rows = round_up(ceil_div(height, wanted), block);
  plan.bands = ceil_div(height, plan.rows);
  plan.items = images * plan.strips * plan.bands;
  return plan;
}

}  // namespace fastconv::FASTCONV_ISA
