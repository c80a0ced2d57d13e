// Blocks of the channels_last depthwise stage: a few output pixels, all channels, a vector of channels of every pixel in registers at a time.
#pragma once
#include "activation.h"
#include "common/shape.h"
#include "gemm.h"
#include "pixels.h"

namespace fastconv::FASTCONV_ISA {

// [lo, hi)
struct TapRange {
  int64_t lo, hi;
};

// How input values are read: as they are, through ReLU, or with everything else (depth multiplier, other input activations).
enum class Read { plain, relu, general };

template <Read R, class T>
FASTCONV_INLINE vf read_channels(const T* x, int n) {
  const vf v = n == L ? load(x) : load_part(x, n);
  return R == Read::relu ? max(vf{}, v) : v;
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

// ---- taps that share their loads -----------------------------------------------------------------------------------------------

// Pixels as far apart as two horizontal taps, which with a dilation are those of one residue class: every input pixel is loaded, and in 16-bit types
// converted, once for its K taps. A pair of output rows shares input rows in the same way.
template <class T, class Out>
struct SharedBlock {
  const T* x;              // input under tap (0, 0) of the first pixel; may lie outside the map
  int64_t row, column;     // elements between two rows, two columns of taps
  TapRange rows, columns;  // of the block's inputs those inside the map
  int pixels;              // wanted of the kernel's
  const T* coming;         // fetched, as many pixels as the block's, or null
  StageTarget<Out> out;
  int64_t out_row;  // elements between the two rows of a pair
};

// Keeps the compiler from working a value out ahead for every step of an unrolled loop, in more registers than there are.
template <class V>
FASTCONV_INLINE void opaque(V& v) { asm("" : "+r"(v)); }

// Pixels of a block. Many keep the adders busy and share more loads; with three taps, where memory is the limit, few are few streams at a time.
template <int K, int R>
constexpr int kSharedPixels = K == 3 ? (R == 2 ? (L == 16 ? 6 : 5) : 8) : L < 16 ? 10 : K == 5 ? 17 : 14;

// R rows of U pixels, K taps in a row; R = 2 is for 3 x 3 taps, all weights of which stay in registers.
template <int R, int U, int K, Read Rd, class T, class Out>
__attribute__((noinline)) void stage_shared_nhwc(const ConvGeometry& g, const StageCall& call, const SharedBlock<T, Out>& b) {
  static_assert(R == 1 || K == 3);
  constexpr int kColumns = U + K - 1;
  const int64_t channels = g.out_channels(), pitch = round_up(channels, L), row = b.row, column = b.column, out_pixel = b.out.pixel;
  const int pixels = b.pixels;
  const uint32_t inside = uint32_t((uint64_t(1) << b.columns.hi) - (uint64_t(1) << b.columns.lo));
  auto vectors = [&](int64_t c, int n) __attribute__((always_inline)) {
    if (b.coming && c * int64_t(sizeof(T)) % 64 == 0)
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 20
        for (int u = 0; u < U; ++u) prefetch_l2(b.coming + r * row + u * column + c);
    const float* packed = call.packed + c;
    uint32_t mask = inside;
    vf acc[R * U];
    const vf bias = load(packed + g.taps() * pitch);
#pragma GCC unroll 32
    for (int u = 0; u < R * U; ++u) acc[u] = bias;
    // One row of inputs: tap row `first` of w for the first output row, first - 1 for the second.
    auto input_row = [&](const T* x, const auto& w, int first) __attribute__((always_inline)) {
#pragma GCC unroll 32
      for (int j = 0; j < kColumns; ++j) {
        const T* at = x;
        x += column;
        opaque(x), opaque(mask);
        if (!(mask >> j & 1)) continue;
        const vf v = read_channels<Rd>(at, n);
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
          for (int k = 0; k < K; ++k)
            if (first - r >= 0 && first - r < int(sizeof(w) / sizeof(w[0])) && j - k >= 0 && j - k < U) acc[r * U + j - k] = fma(w[first - r][k], v, acc[r * U + j - k]);
      }
    };
    if constexpr (R == 1) {
      for (int64_t i = b.rows.lo; i < b.rows.hi; ++i) {
        vf w[1][K];
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k) w[0][k] = load(packed + (i * K + k) * pitch);
        input_row(b.x + i * row + c, w, 0);
      }
    } else {
      vf w[K][K];
#pragma GCC unroll 16
      for (int k = 0; k < K * K; ++k) w[k / K][k % K] = load(packed + k * pitch);
#pragma GCC unroll 8
      for (int i = 0; i < K + R - 1; ++i)
        if (i >= b.rows.lo && i < b.rows.hi) input_row(b.x + i * row + c, w, i);
    }
    activate_all(acc, call.activation);
    Out* to = b.out.at(0, c);
#pragma GCC unroll 20
    for (int u = 0; u < U; ++u) {
      if (u >= pixels) break;
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        if (n == L)
          store(to + r * b.out_row, acc[r * U + u]);
        else
          store_part(to + r * b.out_row, acc[r * U + u], n);
      }
      to += out_pixel;
      opaque(to);
    }
  };
  int64_t c = 0;
  for (; c + L <= channels; c += L) vectors(c, L);
  if (c < channels) vectors(c, int(channels - c));
}

// ---- every other geometry ------------------------------------------------------------------------------------------------------

template <Read R, class T>
FASTCONV_INLINE vf read_channels(const T* x, int64_t c, int n, const ConvGeometry& g, Activation input_activation) {
  if constexpr (R != Read::general) return read_channels<R>(x + c, n);
  T lanes[L] = {};
  for (int i = 0; i < n; ++i) lanes[i] = x[(c + i) / g.multiplier];
  vf v[1] = {load(lanes)};
  activate_all(v, input_activation);
  return v[0];
}

// U neighbouring pixels with the same taps inside the map. `x` is the input pixel under tap (0, 0) of the first, `step` the distance of two pixels,
// `coming` the input pixel whose row is fetched (or null).
template <int U, Read R, class T, class Out>
__attribute__((noinline)) void stage_block_nhwc(
    const ConvGeometry& g, const StageCall& call, TapRange ty, TapRange tx, const T* x, int64_t row, int64_t column, int64_t step, const T* coming,
    StageTarget<Out> to) {
  const float* packed = call.packed;
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
          for (int v = 0; v < 4; ++v) acc[v] = fma(load(wt + v * L), read_channels<R>(xt + v * L, L), acc[v]);
        }
      activate_all(acc, call.activation);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) store(to.at(0, c + v * L), acc[v]);
    }
  }
  for (; c + L <= channels; c += L) vectors(c, L);
  if (c < channels) vectors(c, int(channels - c));
}

}  // namespace fastconv::FASTCONV_ISA
