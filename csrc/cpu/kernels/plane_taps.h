// Sums over the taps of a flat plane, the arithmetic of stage_nchw.h.
//
// Every tap is a constant offset from the output pixel's flat index, and a border is a set of lanes: one mask per (vector, tap), computed once for a tile
// and shared by all channels.
#pragma once
#include "stage.h"

namespace fastconv::FASTCONV_ISA {

constexpr int kGroup = kPanelVectors;  // vectors computed together: a panel of the product
constexpr int64_t kGroupPixels = kGroup * L;

// The vectors of a tile, dealt evenly to the groups that are computed together.
struct TileGroups {
  int64_t vectors, count;
  int64_t begin(int64_t group) const { return vectors * group / count; }
  int64_t size(int64_t group) const { return begin(group + 1) - begin(group); }
};
inline TileGroups even_groups(int64_t pixels) {
  const int64_t vectors = ceil_div(pixels, L);
  return {vectors, ceil_div(vectors, kGroup)};
}
// Groups of the full size, lanes past the tile included.
inline TileGroups whole_groups(int64_t pixels) {
  const int64_t count = ceil_div(pixels, kGroupPixels);
  return {count * kGroup, count};
}

// f(Int<n>{}) for the group's number of vectors.
template <class F>
FASTCONV_INLINE void with_group_size(int64_t n, const F& f) {
  switch (n) {
    case 1: return f(Int<1>{});
    case 2: return f(Int<2>{});
    case 3: return f(Int<(kGroup >= 3 ? 3 : 1)>{});
    default: return f(Int<(kGroup >= 4 ? 4 : 1)>{});
  }
}

// One tap of one group of vectors.
struct GroupTap {
  int64_t offset;  // elements from the group's first pixel
  int32_t weight;  // index of the tap
  bool full;
  uint16_t bits[kGroup];
};

// Taps of the tile [p0, p1): groups hold `found[group].taps` taps each, at taps[group * g.taps()]. A whole group lies between the upper and the lower
// border: all its taps are there, in order, and those of one column have the same lanes.
struct GroupTaps {
  int32_t begin, vectors;  // of the tile's vectors
  int32_t taps;
  bool whole;
};
struct TileTaps {
  GroupTap* taps;
  GroupTaps* found;
};
constexpr int64_t tile_taps_bytes(int64_t groups, int64_t taps) { return round_up(groups * (taps * int64_t(sizeof(GroupTap)) + int64_t(sizeof(GroupTaps))), 64); }

inline TileTaps place_tile_taps(void* memory, int64_t groups, int64_t taps) {
  GroupTap* t = static_cast<GroupTap*>(memory);
  return {t, reinterpret_cast<GroupTaps*>(t + groups * taps)};
}

// offset(ky, kx): from an output pixel's index to the value that tap meets.
template <class Offset>
void find_tile_taps(const ConvGeometry& g, const Offset& offset, int64_t p0, int64_t p1, TileGroups groups, TileTaps out) {
  vi lane;
  for (int i = 0; i < L; ++i) lane[i] = i;
  const vi zero = {}, out_width = zero + int32_t(g.ow), width = zero + int32_t(g.w), height = zero + int32_t(g.h);
  const int32_t sh = int32_t(g.sh), sw = int32_t(g.sw);
  for (int64_t group = 0; group < groups.count; ++group) {
    const int64_t p = p0 + groups.begin(group) * L;
    const int vectors = int(groups.size(group));
    vi x[kGroup], y[kGroup], live[kGroup];
    for (int v = 0; v < vectors; ++v) {
      const int64_t first = p + v * L, row = first / g.ow, column = first - row * g.ow;
      y[v] = zero + int32_t(row);
      x[v] = lane + int32_t(column);
      live[v] = lane < int32_t(max64(0, min64(L, p1 - first)));
      while (sign_bits(x[v] >= out_width)) {
        const vi over = x[v] >= out_width;
        y[v] -= over;
        x[v] -= over & out_width;
      }
      y[v] *= sh, x[v] *= sw;
    }
    GroupTap* t = out.taps + group * g.taps();
    int32_t n = 0;
    for (int64_t ky = 0; ky < g.kh; ++ky)
      for (int64_t kx = 0; kx < g.kw; ++kx) {
        const int32_t dy = int32_t(ky * g.dh - g.pt), dx = int32_t(kx * g.dw - g.pl);
        GroupTap tap;
        tap.offset = offset(ky, kx);
        tap.weight = int32_t(ky * g.kw + kx);
        uint32_t any = 0, all = ~0u;
        for (int v = 0; v < vectors; ++v) {
          const vi ix = x[v] + dx, iy = y[v] + dy;
          tap.bits[v] = uint16_t(sign_bits(live[v] & (ix >= zero) & (ix < width) & (iy >= zero) & (iy < height)));
          any |= tap.bits[v];
          all &= tap.bits[v];
        }
        tap.full = all == (1u << L) - 1;
        if (any) t[n++] = tap;
      }
    bool whole = n == g.taps();
    for (int64_t ky = 0; whole && ky < g.kh; ++ky) whole = t[ky * g.kw + g.kw / 2].full;
    out.found[group] = {int32_t(groups.begin(group)), vectors, n, whole};
  }
}

// Read::general applies `a` by itself.
template <Read R>
FASTCONV_INLINE vf activated(vf v, Activation a) {
  if constexpr (R == Read::plain) return v;
  if constexpr (R == Read::relu) return max(vf{}, v);
  vf one[1] = {v};
  activate_all(one, a);
  return one[0];
}

// acc[v] = bias + sum over taps, for one group of vectors starting at x: a load for every tap.
template <Read R, int NV>
FASTCONV_INLINE void sum_taps(const float* x, const GroupTap* taps, int64_t count, const float* weight, float bias, vf (&acc)[NV]) {
  const vf b = set1(bias);
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) acc[v] = b;
  for (int64_t i = 0; i < count; ++i) {
    const GroupTap& t = taps[i];
    const vf w = set1(weight[t.weight]);
    const float* p = x + t.offset;
    if (t.full) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[v] = fma(w, activated<R>(load(p + v * L), Activation::identity), acc[v]);
    } else {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[v] = R == Read::relu ? fma(w, max(vf{}, load_masked(p + v * L, t.bits[v])), acc[v]) : fma_masked(w, p + v * L, acc[v], t.bits[v]);
    }
  }
}

// Windows whose whole groups share their loads: K x K taps around the pixel, D apart, all of a row within a vector of the pixel. Shorter vectors seldom
// lie across two cache lines and have no masks in registers.
struct Window {
  int taps, distance;  // 0, 0: none of these
};
inline Window shared_window(const ConvGeometry& g) {
  const bool listed = g.kw == 3 || g.kw == 5 ? g.dw <= 2 : g.kw == 7 && g.dw == 1;
  return L == 16 && listed && g.kh == g.kw && g.sw == 1 && g.pl == g.dw * (g.kw / 2) ? Window{int(g.kw), int(g.dw)} : Window{0, 0};
}

template <int K, int D, Read R, int NV>
void sum_rows(const float* x, const GroupTap* taps, const float* weight, float bias, vf (&acc)[NV]);

#if FASTCONV_ISA_avx512 || FASTCONV_ISA_avx512_bf16
// f(Int<K>{}, Int<D>{}).
template <class F>
FASTCONV_INLINE void with_window(Window w, const F& f) {
  switch (w.taps * 2 + w.distance) {
    case 7: return f(Int<3>{}, Int<1>{});
    case 8: return f(Int<3>{}, Int<2>{});
    case 11: return f(Int<5>{}, Int<1>{});
    case 12: return f(Int<5>{}, Int<2>{});
    case 15: return f(Int<7>{}, Int<1>{});
    default: return f(Int<0>{}, Int<0>{});
  }
}

// Tap of a row whose middle tap meets `row` at p, Shift lanes aside: neighbours in registers, but for the lanes that come from outside the group.
template <int Shift, Read R, int NV>
FASTCONV_INLINE void add_tap(vf weight, const float* p, const vf (&row)[NV], const __mmask16 (&bits)[NV], vf (&acc)[NV]) {
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    if constexpr (Shift == 0) {
      acc[v] = fma(weight, row[v], acc[v]);
    } else {
      constexpr int from = Shift < 0 ? -1 : 1;
      const bool outside = Shift < 0 ? v == 0 : v == NV - 1;
      const vf in = outside ? activated<R>(load_masked(p + v * L + Shift, bits[v]), Activation::identity) : lanes_from<Shift>(row[v], row[outside ? v : v + from]);
      acc[v] = fma_masked(weight, in, acc[v], bits[v]);
    }
  }
}

// The same sum for a whole group: a row is loaded once for all its taps, since a vector across two cache lines costs as much as three within one.
// The masks come first: the compiler would otherwise fetch them again for every row.
template <int K, int D, Read R, int NV>
FASTCONV_INLINE void sum_rows(const float* x, const GroupTap* taps, const float* weight, float bias, vf (&acc)[NV]) {
  const vf b = set1(bias);
  __mmask16 lanes[K][NV];
#pragma GCC unroll 8
  for (int j = 0; j < K; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) lanes[j][v] = taps[j].bits[v];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) acc[v] = b;
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) {
    const float* p = x + taps[i * K + K / 2].offset;
    vf row[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) row[v] = activated<R>(load(p + v * L), Activation::identity);
    const auto tap = [&](auto j) __attribute__((always_inline)) {
      if constexpr (j.value < K) add_tap<(j.value - K / 2) * D, R>(set1(weight[i * K + j.value]), p, row, lanes[j.value], acc);
    };
    tap(Int<0>{}), tap(Int<1>{}), tap(Int<2>{}), tap(Int<3>{}), tap(Int<4>{}), tap(Int<5>{}), tap(Int<6>{});
  }
}
#else
template <class F>
FASTCONV_INLINE void with_window(Window, const F& f) {
  f(Int<0>{}, Int<0>{});
}
#endif

}  // namespace fastconv::FASTCONV_ISA
