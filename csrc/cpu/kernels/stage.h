// Depthwise convolution of a run of output pixels, the part shared by the stand-alone kernel and the fused one.
//
// Padding never enters an inner loop: an output row is cut into segments whose pixels share the same range of valid taps, so the taps outside
// the map are not computed at all and dilation changes offsets, not work.
#pragma once
#include "activation.h"
#include "common/shape.h"
#include "gemm.h"
#include "pixels.h"

namespace fastconv::FASTCONV_ISA {

constexpr int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

// Taps t with 0 <= start + t * dilation < size are [lo, hi).
struct TapRange {
  int64_t lo, hi;
};
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

// How input values are read: as they are, through ReLU, or with everything else (depth multiplier, other input activations).
enum class Read { plain, relu, general };

template <Read R, class T>
FASTCONV_INLINE vf read_channels(const T* x, int64_t c, int n, const ConvGeometry& g, Activation input_activation) {
  if constexpr (R == Read::plain) return n == L ? load(x + c) : load_part(x + c, n);
  if constexpr (R == Read::relu) return max(vf{}, n == L ? load(x + c) : load_part(x + c, n));
  T lanes[L] = {};
  for (int i = 0; i < n; ++i) lanes[i] = x[(c + i) / g.multiplier];
  vf v[1] = {load(lanes)};
  activate_all(v, input_activation);
  return v[0];
}

// Where the stage puts pixel u, channel c: data[u * pixel + c / kStagePanel * panel + c % kStagePanel]. With panel == kStagePanel rows are plain.
constexpr int64_t kStagePanel = kPanelVectors * L;
template <class Out>
struct StageTarget {
  Out* data;
  int64_t pixel;
  int64_t panel = kStagePanel;
  FASTCONV_INLINE Out* at(int64_t u, int64_t c) const { return data + u * pixel + c / kStagePanel * panel + c % kStagePanel; }
};

// Depthwise, from where to where. `ahead` > 0 is the distance, in input rows, at which the coming rows are fetched into L2: the map streams from
// memory, and its rows are too short for the hardware to see a stream.
struct StageCall {
  const float* packed;
  Activation input_activation, activation;
  int64_t ahead;
};

// K horizontal taps of eight pixels where the distance of two taps is Q pixels: every input pixel is loaded and converted once for all of them.
template <int K, int Q, Read R, class T>
FASTCONV_INLINE void shared_taps(const T* x, int64_t step, const float* weight, int64_t pitch, int64_t c, int n, const ConvGeometry& g, vf (&acc)[8]) {
  vf w[K];
#pragma GCC unroll 8
  for (int t = 0; t < K; ++t) w[t] = load(weight + t * pitch);
#pragma GCC unroll 20
  for (int j = 0; j < 8 + (K - 1) * Q; ++j) {
    const vf v = read_channels<R>(x + j * step, c, n, g, Activation::identity);
#pragma GCC unroll 8
    for (int t = 0; t < K; ++t)
      if (j - t * Q >= 0 && j - t * Q < 8) acc[j - t * Q] = fma(w[t], v, acc[j - t * Q]);
  }
}

// U neighbouring pixels of one segment, all channels. `x` is the input pixel under tap (0, 0) of the first, `step` the distance of two pixels,
// `coming` the input pixel whose row is fetched (or null).
// K > 0: the segment's K taps lie Q pixels apart (U is 8 then).
template <int U, int K, int Q, Read R, class T, class Out>
__attribute__((noinline)) void stage_block_nhwc(
    const ConvGeometry& g, const StageCall& call, TapRange ty, TapRange tx, const T* x, int64_t row, int64_t column, int64_t step, const T* coming, Out* out,
    int64_t out_pixel, int64_t out_panel) {
  const float* packed = call.packed;
  const StageTarget<Out> to{out, out_pixel, out_panel};
  const int64_t channels = g.out_channels(), pitch = round_up(channels, L);
  const float* bias = packed + g.taps() * pitch;
  auto vectors = [&](int64_t c, int n) __attribute__((always_inline)) {
    vf acc[U];
    if (coming && c * int64_t(sizeof(T)) % 64 == 0)
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) prefetch_l2(coming + u * step + c);
    const vf b = load(bias + c);
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) acc[u] = b;
    for (int64_t i = ty.lo; i < ty.hi; ++i) {
      if constexpr (K > 0) {
        shared_taps<K, Q, R>(x + i * row + tx.lo * column, step, packed + (i * g.kw + tx.lo) * pitch + c, pitch, c, n, g, acc);
        continue;
      }
      const T* xt = x + i * row + tx.lo * column;
      const float* wt = packed + (i * g.kw + tx.lo) * pitch + c;
      for (int64_t j = tx.lo; j < tx.hi; ++j, xt += column, wt += pitch) {
        const vf w = load(wt);
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) acc[u] = fma(w, read_channels<R>(xt + u * step, c, n, g, call.input_activation), acc[u]);
      }
    }
    activate_all(acc, call.activation);
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
      if (n == L)
        store(to.at(u, c), acc[u]);
      else
        store_part(to.at(u, c), acc[u], n);
    }
  };
  int64_t c = 0;
  if constexpr (U == 1 && R != Read::general) {
    // One pixel alone is one chain of additions; four channel vectors are four.
    for (; c + 4 * L <= channels; c += 4 * L) {
      vf acc[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) acc[v] = load(bias + c + v * L);
      for (int64_t i = ty.lo; i < ty.hi; ++i)
        for (int64_t j = tx.lo; j < tx.hi; ++j) {
          const T* xt = x + i * row + j * column + c;
          const float* wt = packed + (i * g.kw + j) * pitch + c;
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) acc[v] = fma(load(wt + v * L), read_channels<R>(xt, v * L, L, g, Activation::identity), acc[v]);
        }
      activate_all(acc, call.activation);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) store(to.at(0, c + v * L), acc[v]);
    }
  }
  for (; c + L <= channels; c += L) vectors(c, L);
  if (c < channels) vectors(c, int(channels - c));
}

// Output pixels [x0, x1) of row `oy` of image `n`, all channels; pixel x0 goes to `to`'s pixel 0.
template <Read R, class T, class Out>
void stage_row_nhwc(const ConvGeometry& g, const StageCall& call, const MapView& view, int64_t n, int64_t oy, int64_t x0, int64_t x1, StageTarget<Out> to) {
  const int64_t iy = oy * g.sh - g.pt;
  const TapRange ty = valid_taps(iy, g.dh, g.kh, g.h);
  const T* base = static_cast<const T*>(view.data) + n * view.sn;
  const int64_t row = g.dh * view.sh, column = g.dw * view.sw, step = g.sw * view.sw;
  const bool fetch = call.ahead > 0 && iy + call.ahead >= 0 && iy + call.ahead < g.h;
  for (int64_t x = x0; x < x1;) {
    const TapRange tx = valid_taps(x * g.sw - g.pl, g.dw, g.kw, g.w);
    const int64_t end = segment_end(g, x, tx, x1);
    auto block = [&](auto width, auto taps, auto apart) __attribute__((always_inline)) {
      // Taps outside are never dereferenced, so this address may lie outside the map.
      const T* corner = base + iy * view.sh + (x * g.sw - g.pl) * view.sw;
      const T* coming = fetch ? corner + call.ahead * view.sh + g.pl * view.sw : nullptr;
      stage_block_nhwc<width.value, taps.value, apart.value, R>(g, call, ty, tx, corner, row, column, step, coming, to.at(x - x0, 0), to.pixel, to.panel);
      x += width.value;
    };
    // The rest of a segment overlaps its predecessors where that costs less than going pixel by pixel: the same values are written twice.
    const int64_t begin = x;
    const int64_t taps = tx.hi - tx.lo, apart = column == step ? 1 : column == 2 * step ? 2 : 0;
    auto eight = [&]() __attribute__((always_inline)) {
      if constexpr (R != Read::general) {
        if (taps == 3 && apart == 1) return block(Int<8>{}, Int<3>{}, Int<1>{});
        if (taps == 3 && apart == 2) return block(Int<8>{}, Int<3>{}, Int<2>{});
        if (taps == 5 && apart == 2) return block(Int<8>{}, Int<5>{}, Int<2>{});
        if (taps == 5 && apart == 1) return block(Int<8>{}, Int<5>{}, Int<1>{});
        if (taps == 7 && apart == 1) return block(Int<8>{}, Int<7>{}, Int<1>{});
      }
      block(Int<8>{}, Int<0>{}, Int<0>{});
    };
    while (x + 8 <= end) eight();
    if (end - x > 4 && end - begin >= 8) {
      x = end - 8;
      eight();
    } else {
      if (end - x >= 4) block(Int<4>{}, Int<0>{}, Int<0>{});
      if (end - x > 1 && end - begin >= 4) {
        x = end - 4;
        block(Int<4>{}, Int<0>{}, Int<0>{});
      }
    }
    while (x < end) block(Int<1>{}, Int<0>{}, Int<0>{});
  }
}

template <class T, class Out>
void stage_row_nhwc(const ConvGeometry& g, const StageCall& call, const MapView& view, int64_t n, int64_t oy, int64_t x0, int64_t x1, StageTarget<Out> to) {
  if (g.multiplier == 1 && call.input_activation == Activation::identity)
    stage_row_nhwc<Read::plain, T>(g, call, view, n, oy, x0, x1, to);
  else if (g.multiplier == 1 && call.input_activation == Activation::relu)
    stage_row_nhwc<Read::relu, T>(g, call, view, n, oy, x0, x1, to);
  else
    stage_row_nhwc<Read::general, T>(g, call, view, n, oy, x0, x1, to);
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
