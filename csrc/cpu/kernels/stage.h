// Depthwise convolution of a run of output pixels, the part shared by the stand-alone kernel and the fused one.
//
// Taps outside the map are not computed at all, and dilation changes offsets, not work.
#pragma once
#include "stage_block.h"

namespace fastconv::FASTCONV_ISA {

// Taps t with 0 <= start + t * dilation < size are [lo, hi).
FASTCONV_INLINE TapRange valid_taps(int64_t start, int64_t dilation, int64_t taps, int64_t size) {
  const int64_t lo = start < 0 ? min64(taps, ceil_div(-start, dilation)) : 0;
  const int64_t hi = start < size ? min64(taps, (size - 1 - start) / dilation + 1) : 0;
  return {lo, max64(lo, hi)};
}

// End of the run of output columns from `x` on whose valid horizontal taps are `taps`: tap lo - 1 enters from the left, tap hi - 1 leaves to the right.
FASTCONV_INLINE int64_t segment_end(const ConvGeometry& g, int64_t x, TapRange taps, int64_t limit) {
  int64_t end = limit;
  if (taps.lo > 0) end = min64(end, ceil_div(g.pl - (taps.lo - 1) * g.dw, g.sw));
  if (taps.hi > taps.lo) end = min64(end, (g.w - 1 + g.pl - (taps.hi - 1) * g.dw) / g.sw + 1);
  return max64(end, x + 1);
}

// ---- channels_last ------------------------------------------------------------------------------------------------------------

// Weights as the stage reads them: float32, [tap][channel], channels padded with zeros to whole vectors; the bias row comes last.
constexpr int64_t stage_weight_floats(const ConvGeometry& g) { return (g.taps() + 1) * round_up(g.out_channels(), L); }

template <class T>
void stage_pack_nhwc(const ConvGeometry& g, const T* weight, const T* bias, float* packed) {
  const int64_t channels = g.out_channels(), pitch = round_up(channels, L), taps = g.taps();
  // Taps are the pixels of a map with a plane per channel; of one tap, the channels are neighbours.
  load_pixels(weight, taps, taps == 1 ? channels : 1, channels, taps, packed, pitch);
  for (int64_t c = 0; c < pitch; c += L) store(packed + taps * pitch + c, bias ? load_lanes(bias + c, channels - c) : vf{});
}

// Whether the taps of a row share their loads.
inline bool shares_taps(const ConvGeometry& g, Activation input_activation) {
  return g.multiplier == 1 && g.sw == 1 && (g.kw == 3 || g.kw == 5 || g.kw == 7) && (input_activation == Activation::identity || input_activation == Activation::relu);
}
// Whether output rows oy and oy + dh are best computed together.
inline bool pairs_rows(const ConvGeometry& g, Activation input_activation) {
  return shares_taps(g, input_activation) && g.kw == 3 && g.kh == 3 && g.sh == 1 && g.dh < g.oh;
}

// Output pixels [x0, x1) of R rows from `oy` on, the second `out_row` elements behind the first; pixel x0 goes to `to`'s pixel 0.
template <int K, int R, Read Rd, class T, class Out>
void stage_shared_row_nhwc(
    const ConvGeometry& g, const StageCall& call, const MapView& view, int64_t n, int64_t oy, int64_t x0, int64_t x1, StageTarget<Out> to, int64_t out_row) {
  constexpr int U = kSharedPixels<K, R>;
  const int64_t iy = oy * g.sh - g.pt, coming = iy + call.ahead + (R - 1) * g.dh;
  SharedBlock<T, Out> b;
  b.row = g.dh * view.sh, b.column = g.dw * view.sw, b.out_row = out_row;
  b.rows = valid_taps(iy, g.dh, g.kh + R - 1, g.h);
  const T* base = static_cast<const T*>(view.data) + n * view.sn;
  const bool fetch = call.ahead > 0 && coming >= 0 && coming < g.h;
  // One residue class of the columns after the other, dealt evenly into blocks.
  for (int64_t q = 0; q < g.dw && x0 + q < x1; ++q) {
    const int64_t pixels = (x1 - x0 - q - 1) / g.dw + 1, blocks = ceil_div(pixels, U);
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t first = pixels * i / blocks, x = x0 + q + first * g.dw;
      b.pixels = int(pixels * (i + 1) / blocks - first);
      b.columns = valid_taps(x - g.pl, g.dw, b.pixels + K - 1, g.w);
      b.x = base + iy * view.sh + (x - g.pl) * view.sw;
      b.coming = fetch ? base + coming * view.sh + x * view.sw : nullptr;
      b.out = {to.at(x - x0, 0), g.dw * to.pixel, to.panel};
      stage_shared_nhwc<R, U, K, Rd>(g, call, b);
    }
  }
}

// Output rows `oy` and, where `rows` is 2, oy + dh.
template <Read Rd, class T, class Out>
void stage_shared_rows_nhwc(
    const ConvGeometry& g, const StageCall& call, const MapView& view, int64_t n, int64_t oy, int64_t rows, int64_t x0, int64_t x1, StageTarget<Out> to,
    int64_t out_row) {
  if (g.kw == 3 && rows == 2) return stage_shared_row_nhwc<3, 2, Rd, T>(g, call, view, n, oy, x0, x1, to, out_row);
  if (g.kw == 3) return stage_shared_row_nhwc<3, 1, Rd, T>(g, call, view, n, oy, x0, x1, to, out_row);
  if (g.kw == 5) return stage_shared_row_nhwc<5, 1, Rd, T>(g, call, view, n, oy, x0, x1, to, out_row);
  stage_shared_row_nhwc<7, 1, Rd, T>(g, call, view, n, oy, x0, x1, to, out_row);
}

// The row of every other geometry is cut into segments whose pixels have the same taps inside the map.
template <Read R, class T, class Out>
void stage_segments_nhwc(const ConvGeometry& g, const StageCall& call, const MapView& view, int64_t n, int64_t oy, int64_t x0, int64_t x1, StageTarget<Out> to) {
  const int64_t iy = oy * g.sh - g.pt;
  const TapRange ty = valid_taps(iy, g.dh, g.kh, g.h);
  const T* base = static_cast<const T*>(view.data) + n * view.sn;
  const int64_t row = g.dh * view.sh, column = g.dw * view.sw, step = g.sw * view.sw;
  const bool fetch = call.ahead > 0 && iy + call.ahead >= 0 && iy + call.ahead < g.h;
  for (int64_t x = x0; x < x1;) {
    const TapRange tx = valid_taps(x * g.sw - g.pl, g.dw, g.kw, g.w);
    const int64_t end = segment_end(g, x, tx, x1);
    auto block = [&](auto width) __attribute__((always_inline)) {
      // Taps outside are never dereferenced, so this address may lie outside the map.
      const T* corner = base + iy * view.sh + (x * g.sw - g.pl) * view.sw;
      const T* coming = fetch ? corner + call.ahead * view.sh + g.pl * view.sw : nullptr;
      stage_block_nhwc<width.value, R>(g, call, ty, tx, corner, row, column, step, coming, StageTarget<Out>{to.at(x - x0, 0), to.pixel, to.panel});
      x += width.value;
    };
    // The rest of a segment overlaps its predecessors where that costs less than going pixel by pixel: the same values are written twice.
    const int64_t begin = x;
    while (x + 8 <= end) block(Int<8>{});
    if (end - x > 4 && end - begin >= 8) {
      x = end - 8;
      block(Int<8>{});
    } else {
      if (end - x >= 4) block(Int<4>{});
      if (end - x > 1 && end - begin >= 4) {
        x = end - 4;
        block(Int<4>{});
      }
    }
    while (x < end) block(Int<1>{});
  }
}

// Output pixels [x0, x1) of row `oy` of image `n`, all channels; pixel x0 goes to `to`'s pixel 0. Where `rows` is 2 (pairs_rows), of row oy + dh too,
// `out_row` elements behind.
template <class T, class Out>
void stage_row_nhwc(
    const ConvGeometry& g, const StageCall& call, const MapView& view, int64_t n, int64_t oy, int64_t x0, int64_t x1, StageTarget<Out> to, int64_t rows = 1,
    int64_t out_row = 0) {
  if (shares_taps(g, call.input_activation)) {
    if (call.input_activation == Activation::relu) return stage_shared_rows_nhwc<Read::relu, T>(g, call, view, n, oy, rows, x0, x1, to, out_row);
    return stage_shared_rows_nhwc<Read::plain, T>(g, call, view, n, oy, rows, x0, x1, to, out_row);
  }
  if (g.multiplier == 1 && call.input_activation == Activation::identity)
    stage_segments_nhwc<Read::plain, T>(g, call, view, n, oy, x0, x1, to);
  else if (g.multiplier == 1 && call.input_activation == Activation::relu)
    stage_segments_nhwc<Read::relu, T>(g, call, view, n, oy, x0, x1, to);
  else
    stage_segments_nhwc<Read::general, T>(g, call, view, n, oy, x0, x1, to);
}

// The order in which output pixels are taken: row by row as they lie, or, with a wide dilation, in strips of columns and one residue class of the dilation
// after the other. Neighbours in a class share all input rows but one, so the rows between the first and the last tap stay in cache.
struct PixelOrder {
  int64_t classes;  // of rows
  int64_t strip;    // columns

  // Row number `position` of `rows`.
  int64_t row(int64_t position, int64_t rows) const {
    const int64_t longer = rows % classes, length = rows / classes, split = longer * (length + 1);
    if (position < split) return position % (length + 1) * classes + position / (length + 1);
    return (position - split) % length * classes + longer + (position - split) / length;
  }
};
inline PixelOrder pixel_order(const ConvGeometry& g, int64_t element_size) {
  constexpr int64_t kCache = 640 << 10;
  const int64_t pixel = g.c * element_size, halo = (g.kw - 1) * g.dw, most = kCache / ((g.kh + 1) * pixel) - halo;
  const bool far = g.sh == 1 && g.sw == 1 && g.kh > 1 && g.dh > 1 && g.dh < g.oh && ((g.kh - 1) * g.dh + 1) * g.w * pixel > kCache;
  // Columns that two strips share are read twice.
  if (!far || most < min64(g.ow, max64(32, 2 * halo))) return {1, g.ow};
  return {g.dh, ceil_div(g.ow, ceil_div(g.ow, most))};
}

constexpr int64_t kStreamsFrom = 1 << 20;  // bytes: smaller inputs are in cache, larger ones are fetched ahead

// Input rows ahead of the first one in use worth fetching, those of the next output row: none while the whole input stays in cache anyway.
inline int64_t fetch_ahead(const ConvGeometry& g, PixelOrder order, int64_t element_size) {
  if (g.c * g.h * g.w * element_size <= kStreamsFrom) return 0;
  return (g.kh - 1) * g.dh + (order.classes > 1 ? g.dh : g.sh);
}

// f(position, pixel, count): pixels of the tile [p0, p1), counted in `order`, that lie side by side in one row of one image; `pixel` counts through rows
// and images as they lie.
template <class F>
FASTCONV_INLINE void for_each_row_part(const ConvGeometry& g, PixelOrder order, int64_t p0, int64_t p1, const F& f) {
  const int64_t plane = g.oh * g.ow;
  for (int64_t at = p0; at < p1;) {
    const int64_t n = at / plane, strip = (at - n * plane) / (g.oh * order.strip), left = strip * order.strip, width = min64(order.strip, g.ow - left);
    const int64_t rest = at - n * plane - strip * g.oh * order.strip, position = rest / width, x = rest % width, count = min64(width - x, p1 - at);
    f(at, n * plane + order.row(position, g.oh) * g.ow + left + x, count);
    at += count;
  }
}

// Output pixels [p0, p1) in `order`; pixel p0 goes to `to`'s pixel 0.
template <class T, class Out>
void stage_pixels_nhwc(const ConvGeometry& g, const StageCall& call, const MapView& view, PixelOrder order, int64_t p0, int64_t p1, StageTarget<Out> to) {
  const int64_t plane = g.oh * g.ow;
  for_each_row_part(g, order, p0, p1, [&](int64_t at, int64_t pixel, int64_t count) {
    const int64_t n = pixel / plane, oy = pixel % plane / g.ow, x0 = pixel % g.ow;
    stage_row_nhwc<T>(g, call, view, n, oy, x0, x0 + count, StageTarget<Out>{to.at(at - p0, 0), to.pixel, to.panel});
  });
}

}  // namespace fastconv::FASTCONV_ISA
