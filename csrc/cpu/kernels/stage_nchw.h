// The contiguous form of the depthwise stage: vectors run over flat output pixels of one plane.
//
// Where an output pixel's flat index equals the input's (stride 1, same width), every tap is a constant offset in the flat plane and a border is a set of
// lanes: one mask per (vector, tap), computed once for a tile and shared by all channels. Every other case is brought into that form by a zero-padded
// float32 copy of the rows a tile needs, one copy per horizontal tap, where no lane needs a mask.
#pragma once
#include "stage.h"

namespace fastconv::FASTCONV_ISA {

constexpr int kGroup = kPanelVectors;  // vectors computed together: a panel of the product
constexpr int64_t kGroupPixels = kGroup * L;

// Whether taps are constant offsets in the input plane as it lies in memory.
inline bool flat_in_place(const ConvGeometry& g, DType dtype, Activation input_activation) {
  return dtype == DType::f32 && input_activation == Activation::identity && g.sh == 1 && g.sw == 1 && g.ow == g.w;
}

// One tap of one group of vectors.
struct GroupTap {
  int64_t offset;  // elements from the group's first pixel
  int32_t weight;  // index of the tap
  bool full;
  uint16_t bits[kGroup];
};

// Taps of the tile [p0, p1): groups hold `count[group]` taps each, at taps[group * g.taps()].
struct TileTaps {
  GroupTap* taps;
  int32_t* count;
};
constexpr int64_t tile_taps_bytes(int64_t groups, int64_t taps) { return round_up(groups * taps * int64_t(sizeof(GroupTap)) + groups * 4, 64); }

inline TileTaps place_tile_taps(void* memory, int64_t groups, int64_t taps) {
  GroupTap* t = static_cast<GroupTap*>(memory);
  return {t, reinterpret_cast<int32_t*>(t + groups * taps)};
}

inline void flat_tile_taps(const ConvGeometry& g, int64_t p0, int64_t p1, TileTaps out) {
  vi lane;
  for (int i = 0; i < L; ++i) lane[i] = i;
  const vi zero = {}, width = zero + int32_t(g.w), height = zero + int32_t(g.h);
  for (int64_t p = p0, group = 0; p < p1; p += kGroupPixels, ++group) {
    vi x[kGroup], y[kGroup], live[kGroup];
    for (int v = 0; v < kGroup; ++v) {
      const int64_t first = p + v * L, row = first / g.ow, column = first - row * g.ow;
      y[v] = zero + int32_t(row);
      x[v] = lane + int32_t(column);
      live[v] = lane < int32_t(max64(0, min64(L, p1 - first)));
      while (sign_bits(x[v] >= width)) {
        const vi over = x[v] >= width;
        y[v] -= over;
        x[v] -= over & width;
      }
    }
    GroupTap* t = out.taps + group * g.taps();
    int32_t n = 0;
    for (int64_t ky = 0; ky < g.kh; ++ky)
      for (int64_t kx = 0; kx < g.kw; ++kx) {
        const int32_t dy = int32_t(ky * g.dh - g.pt), dx = int32_t(kx * g.dw - g.pl);
        GroupTap tap;
        tap.offset = int64_t(dy) * g.w + dx;
        tap.weight = int32_t(ky * g.kw + kx);
        uint32_t any = 0, all = ~0u;
        for (int v = 0; v < kGroup; ++v) {
          const vi ix = x[v] + dx, iy = y[v] + dy;
          tap.bits[v] = uint16_t(sign_bits(live[v] & (ix >= zero) & (ix < width) & (iy >= zero) & (iy < height)));
          any |= tap.bits[v];
          all &= tap.bits[v];
        }
        tap.full = all == (1u << L) - 1;
        if (any) t[n++] = tap;
      }
    out.count[group] = n;
  }
}

// ---- staging ----
// Buffer of one channel: for horizontal tap kx, rows of ow float32 values x[iy][ox * sw - pl + kx * dw] or 0. Rows of tap ky start at ky_row(ky); with
// overlapping rows (vertical stride 1) neighbouring taps share them.
struct StageShape {
  int64_t oy0, rows_out;  // output rows the tile touches
  bool shared;            // rows of different ky overlap in one run of input rows
  int64_t rows;           // rows of one horizontal tap
  int64_t plane;          // floats of one horizontal tap, with slack for whole vectors
};
inline StageShape stage_shape(const ConvGeometry& g, int64_t p0, int64_t p1) {
  StageShape s;
  s.oy0 = p0 / g.ow;
  s.rows_out = (p1 - 1) / g.ow - s.oy0 + 1;
  s.shared = g.sh == 1 && (g.kh - 1) * g.dh < g.kh * s.rows_out;
  s.rows = s.shared ? s.rows_out + (g.kh - 1) * g.dh : g.kh * s.rows_out;
  s.plane = round_up(s.rows * g.ow + kGroupPixels, 16) + 16;
  return s;
}
// The largest a tile of `pixels` can need.
inline int64_t stage_floats(const ConvGeometry& g, int64_t pixels) {
  const int64_t rows_out = min64(g.oh, ceil_div(pixels, g.ow) + 1);
  return g.kw * (round_up(g.kh * rows_out * g.ow + (g.kh - 1) * g.ow + kGroupPixels, 16) + 32);
}

template <class T>
void stage_plane(const ConvGeometry& g, const StageShape& s, const T* x, int64_t row_stride, Activation input_activation, float* out) {
  auto copy_row = [&](int64_t iy, int64_t row) {
    for (int64_t kx = 0; kx < g.kw; ++kx) {
      float* to = out + kx * s.plane + row * g.ow;
      const int64_t start = kx * g.dw - g.pl;
      int64_t lo = start < 0 ? min64(g.ow, ceil_div(-start, g.sw)) : 0;
      int64_t hi = start < g.w ? min64(g.ow, (g.w - 1 - start) / g.sw + 1) : 0;
      if (iy < 0 || iy >= g.h) lo = hi = 0;
      hi = max64(lo, hi);
      memset(to, 0, 4 * lo);
      const T* from = x + iy * row_stride + start;
      int64_t i = lo;
      if (g.sw == 1)
        for (; i + L <= hi; i += L) store(to + i, load(from + i));
      for (; i < hi; ++i) to[i] = to_float(from[i * g.sw]);
      if (input_activation != Activation::identity)
        for (i = lo; i < hi; i += L) {
          vf v[1] = {load_part(to + i, int(min64(L, hi - i)))};
          activate_all(v, input_activation);
          store_part(to + i, v[0], int(min64(L, hi - i)));
        }
      memset(to + hi, 0, 4 * (g.ow - hi));
    }
  };
  if (s.shared) {
    for (int64_t r = 0; r < s.rows; ++r) copy_row(s.oy0 - g.pt + r, r);
  } else {
    for (int64_t ky = 0; ky < g.kh; ++ky)
      for (int64_t r = 0; r < s.rows_out; ++r) copy_row((s.oy0 + r) * g.sh - g.pt + ky * g.dh, ky * s.rows_out + r);
  }
}

// Offsets of the taps of a staged tile, the same for every group.
inline void staged_taps(const ConvGeometry& g, const StageShape& s, GroupTap* taps) {
  for (int64_t ky = 0; ky < g.kh; ++ky)
    for (int64_t kx = 0; kx < g.kw; ++kx) {
      GroupTap& t = taps[ky * g.kw + kx];
      t.offset = kx * s.plane + (s.shared ? ky * g.dh : ky * s.rows_out) * g.ow;
      t.weight = int32_t(ky * g.kw + kx);
      t.full = true;
    }
}

// acc[v] = bias + sum over taps, for one group of vectors starting at x.
FASTCONV_INLINE void stage_group(const float* x, const GroupTap* taps, int64_t count, const float* weight, float bias, vf (&acc)[kGroup]) {
  const vf b = set1(bias);
#pragma GCC unroll 4
  for (int v = 0; v < kGroup; ++v) acc[v] = b;
  for (int64_t i = 0; i < count; ++i) {
    const GroupTap& t = taps[i];
    const vf w = set1(weight[t.weight]);
    const float* p = x + t.offset;
    if (t.full) {
#pragma GCC unroll 4
      for (int v = 0; v < kGroup; ++v) acc[v] = fma(w, load(p + v * L), acc[v]);
    } else {
#pragma GCC unroll 4
      for (int v = 0; v < kGroup; ++v) acc[v] = fma_masked(w, p + v * L, acc[v], t.bits[v]);
    }
  }
}

// Runs `sink(group, acc)` for every group of the tile and one output channel.
//   x: the channel's plane (flat) or its staged copy; pixel p0 of the tile lies at x[base].
template <class Sink>
FASTCONV_INLINE void stage_channel(
    const float* x, int64_t groups, bool flat, TileTaps tile, int64_t taps, const float* weight, float bias, Activation activation, Sink&& sink) {
  for (int64_t group = 0; group < groups; ++group) {
    vf acc[kGroup];
    if (flat)
      stage_group(x + group * kGroupPixels, tile.taps + group * taps, tile.count[group], weight, bias, acc);
    else
      stage_group(x + group * kGroupPixels, tile.taps, taps, weight, bias, acc);
    activate_all(acc, activation);
    sink(group, acc);
  }
}

}  // namespace fastconv::FASTCONV_ISA
