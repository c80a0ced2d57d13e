// The contiguous form of the depthwise stage: vectors run over flat output pixels of one plane.
//
// Every tap is a constant offset from the output pixel's flat index, and a border is a set of lanes: one mask per (vector, tap), computed once for a tile
// and shared by all channels. Where the input plane itself has that form (float32, stride 1, same width) it is read as it lies in memory. Otherwise the
// rows a tile needs are copied as float32, one plane for every residue of the column modulo the stride, one set of rows for every residue of the row.
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

// Where the taps of a tile read. `columns` is for maps narrower than a residue of their input (no padding): one copy per horizontal tap.
enum class PlaneSource { in_place, residues, columns };
inline PlaneSource plane_source(const ConvGeometry& g, DType dtype, Activation input_activation) {
  const bool as_stored = dtype == DType::f32 && (input_activation == Activation::identity || input_activation == Activation::relu);
  if (as_stored && g.sh == 1 && g.sw == 1 && g.ow == g.w) return PlaneSource::in_place;
  return ceil_div(g.w, g.sw) <= g.ow ? PlaneSource::residues : PlaneSource::columns;
}

constexpr int64_t floor_div(int64_t a, int64_t b) { return (a >= 0 ? a : a - b + 1) / b; }
constexpr int64_t modulo(int64_t a, int64_t b) { return a - floor_div(a, b) * b; }

// The copy of one channel for the tile [p0, p1): planes of rows of ow values.
//   column plane q   holds x[..][sw * i + start(q)] at i: start(q) is q (residues) or the start of horizontal tap q (columns)
//   shared           row residue r holds input rows sh * (oy0 + first + i) + r, i < rows: neighbouring vertical taps share rows
//   not shared       vertical tap k holds its own `rows` rows: with a wide dilation the rows between them would be more
struct PlaneStage {
  PlaneSource source;
  int64_t oy0, rows_out;  // output rows the tile touches
  bool shared;
  int64_t first, rows;
  int64_t plane;  // floats of a column plane

  PlaneStage(const ConvGeometry& g, PlaneSource source, int64_t p0, int64_t p1) : source(source) {
    oy0 = p0 / g.ow;
    rows_out = (p1 - 1) / g.ow - oy0 + 1;
    first = floor_div(-g.pt, g.sh);
    rows = rows_out + floor_div((g.kh - 1) * g.dh - g.pt, g.sh) - first;
    shared = g.sh * rows <= g.kh * rows_out;
    if (!shared) rows = rows_out;
    plane = round_up((shared ? g.sh : g.kh) * rows * g.ow, 16) + 16;
  }
  // The most floats a tile of `pixels` needs.
  static int64_t floats(const ConvGeometry& g, PlaneSource source, int64_t pixels) {
    if (source == PlaneSource::in_place) return 0;
    const int64_t rows_out = min64(g.oh, ceil_div(pixels, g.ow) + 1);
    return (source == PlaneSource::residues ? g.sw : g.kw) * (round_up(g.kh * rows_out * g.ow, 16) + 16);
  }

  int64_t column_planes(const ConvGeometry& g) const { return source == PlaneSource::residues ? g.sw : g.kw; }
  int64_t column_start(const ConvGeometry& g, int64_t q) const { return source == PlaneSource::residues ? q : q * g.dw - g.pl; }
  // Floats from the value under output pixel (oy0, 0) at the start of the copy to the one tap (ky, kx) meets; elements of the input plane in place.
  int64_t offset(const ConvGeometry& g, int64_t ky, int64_t kx) const {
    const int64_t dy = ky * g.dh - g.pt, dx = kx * g.dw - g.pl;
    if (source == PlaneSource::in_place) return dy * g.w + dx;
    const int64_t row = shared ? modulo(dy, g.sh) * rows + floor_div(dy, g.sh) - first : ky * rows;
    const bool residues = source == PlaneSource::residues;
    return (residues ? modulo(dx, g.sw) : kx) * plane + row * g.ow + (residues ? floor_div(dx, g.sw) : 0);
  }
};

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

inline void find_tile_taps(const ConvGeometry& g, const PlaneStage& stage, int64_t p0, int64_t p1, TileGroups groups, TileTaps out) {
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
        tap.offset = stage.offset(g, ky, kx);
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
    out.count[group] = n;
  }
}

// ---- copies -------------------------------------------------------------------------------------------------------------------

// Read::general applies `a` by itself.
template <Read R>
FASTCONV_INLINE vf activated(vf v, Activation a) {
  if constexpr (R == Read::plain) return v;
  if constexpr (R == Read::relu) return max(vf{}, v);
  vf one[1] = {v};
  activate_all(one, a);
  return one[0];
}

// to[i] = from[i * step], 0 <= i < n.
template <Read R, class T>
void copy_strided(const T* from, int64_t step, int64_t n, Activation a, float* to) {
  int64_t i = 0;
  if (step == 1) {
    for (; i + L <= n; i += L) store(to + i, activated<R>(load(from + i), a));
    if (i < n) store_part(to + i, activated<R>(load_part(from + i, int(n - i)), a), int(n - i));
    return;
  }
  for (; i < n; ++i) to[i] = to_float(from[i * step]);
  if constexpr (R != Read::plain)
    for (i = 0; i < n; i += L) store_part(to + i, activated<R>(load_part(to + i, int(min64(L, n - i))), a), int(min64(L, n - i)));
}

// even[i] = from[2 * i], odd[i] = from[2 * i + 1], of n elements.
template <Read R, class T>
void copy_halves(const T* from, int64_t n, Activation a, float* even, float* odd) {
  vi first, second;
  for (int i = 0; i < L; ++i) first[i] = 2 * i, second[i] = 2 * i + 1;
  int64_t i = 0;
  for (; i + 2 * L <= n; i += 2 * L) {
    const vf low = activated<R>(load(from + i), a), high = activated<R>(load(from + i + L), a);
    store(even + i / 2, __builtin_shuffle(low, high, first));
    store(odd + i / 2, __builtin_shuffle(low, high, second));
  }
  copy_strided<R>(from + i, 2, ceil_div(n - i, 2), a, even + i / 2);
  copy_strided<R>(from + i + 1, 2, (n - i) / 2, a, odd + i / 2);
}

template <Read R, class T>
void copy_plane(const ConvGeometry& g, const PlaneStage& s, const T* x, int64_t row_stride, Activation a, float* out) {
  const auto copy_row = [&](int64_t iy, int64_t row) {
    if (iy < 0 || iy >= g.h) return;
    const T* from = x + iy * row_stride;
    float* to = out + row * g.ow;
    if (s.source == PlaneSource::residues && g.sw == 2) return copy_halves<R>(from, g.w, a, to, to + s.plane);
    for (int64_t q = 0; q < s.column_planes(g); ++q) {
      const int64_t start = s.column_start(g, q), lo = start < 0 ? ceil_div(-start, g.sw) : 0, hi = start < g.w ? min64(g.ow, (g.w - 1 - start) / g.sw + 1) : 0;
      if (lo < hi) copy_strided<R>(from + lo * g.sw + start, g.sw, hi - lo, a, to + q * s.plane + lo);
    }
  };
  if (!s.shared) {
    for (int64_t ky = 0; ky < g.kh; ++ky)
      for (int64_t r = 0; r < s.rows; ++r) copy_row((s.oy0 + r) * g.sh - g.pt + ky * g.dh, ky * s.rows + r);
    return;
  }
  for (int64_t residue = 0; residue < g.sh; ++residue) {
    bool used = false;
    for (int64_t ky = 0; ky < g.kh; ++ky) used |= modulo(ky * g.dh - g.pt, g.sh) == residue;
    for (int64_t r = 0; used && r < s.rows; ++r) copy_row((s.oy0 + s.first + r) * g.sh + residue, residue * s.rows + r);
  }
}

// ---- sums ---------------------------------------------------------------------------------------------------------------------

// acc[v] = bias + sum over taps, for one group of vectors starting at x.
template <Read R, int NV>
FASTCONV_INLINE void stage_group(const float* x, const GroupTap* taps, int64_t count, const float* weight, float bias, vf (&acc)[NV]) {
  const vf b = set1(bias);
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) acc[v] = b;
  for (int64_t i = 0; i < count; ++i) {
    const GroupTap& t = taps[i];
    const vf w = set1(weight[t.weight]);
    const float* p = x + t.offset;
    if (t.full) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[v] = fma(w, activated<R>(load(p + v * L), Activation::relu), acc[v]);
    } else {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[v] = R == Read::relu ? fma(w, max(vf{}, load_masked(p + v * L, t.bits[v])), acc[v]) : fma_masked(w, p + v * L, acc[v], t.bits[v]);
    }
  }
}

// The depthwise stage of one tile: bind a channel, then run its groups.
template <class T>
class PlaneTile {
 public:
  // memory: scratch_bytes() of it.
  PlaneTile(const ConvGeometry& g, PlaneSource source, Activation input_activation, int64_t p0, int64_t p1, TileGroups groups, void* memory)
      : g_(g), stage_(g, source, p0, p1), input_activation_(input_activation), p0_(p0), groups_(groups), taps_(place_tile_taps(memory, groups.count, g.taps())),
        copy_(reinterpret_cast<float*>(static_cast<char*>(memory) + tile_taps_bytes(groups.count, g.taps()))) {
    find_tile_taps(g, stage_, p0, p1, groups, taps_);
  }
  static int64_t scratch_bytes(const ConvGeometry& g, PlaneSource source, int64_t pixels) {
    return tile_taps_bytes(ceil_div(pixels, kGroupPixels), g.taps()) + 4 * PlaneStage::floats(g, source, pixels);
  }

  // Planes that are read in place and come from memory: fetch what the lowest tap will meet four kilobytes later.
  void fetch_ahead() {
    if (stage_.source == PlaneSource::in_place) ahead_ = ((g_.kh - 1) * g_.dh - g_.pt) * g_.w + 1024;
  }
  // The input plane that the channels to come read.
  void bind(const T* x, int64_t row_stride) {
    if (stage_.source == PlaneSource::in_place) {
      from_ = reinterpret_cast<const float*>(x) + p0_;
      return;
    }
    if (input_activation_ == Activation::identity)
      copy_plane<Read::plain>(g_, stage_, x, row_stride, input_activation_, copy_);
    else if (input_activation_ == Activation::relu)
      copy_plane<Read::relu>(g_, stage_, x, row_stride, input_activation_, copy_);
    else
      copy_plane<Read::general>(g_, stage_, x, row_stride, input_activation_, copy_);
    from_ = copy_ + p0_ - stage_.oy0 * g_.ow;
  }

  // sink(group, acc) for every group of the tile and one output channel.
  template <class Sink>
  FASTCONV_INLINE void channel(const float* weight, float bias, Activation activation, Sink&& sink) const {
    if (stage_.source == PlaneSource::in_place && input_activation_ == Activation::relu)
      groups<Read::relu>(weight, bias, activation, sink);
    else
      groups<Read::plain>(weight, bias, activation, sink);
  }

 private:
  template <Read R, class Sink>
  FASTCONV_INLINE void groups(const float* weight, float bias, Activation activation, Sink&& sink) const {
    for (int64_t group = 0; group < groups_.count; ++group) {
      if (ahead_ != 0)
#pragma GCC unroll 4
        for (int v = 0; v < kGroup; ++v) prefetch_l2(from_ + groups_.begin(group) * L + v * L + ahead_);
      with_group_size(groups_.size(group), [&](auto size) __attribute__((always_inline)) {
        vf acc[size.value];
        stage_group<R>(from_ + groups_.begin(group) * L, taps_.taps + group * g_.taps(), taps_.count[group], weight, bias, acc);
        activate_all(acc, activation);
        sink(group, acc);
      });
    }
  }

  const ConvGeometry& g_;
  const PlaneStage stage_;
  const Activation input_activation_;
  const int64_t p0_;
  const TileGroups groups_;
  const TileTaps taps_;
  float* const copy_;
  const float* from_ = nullptr;
  int64_t ahead_ = 0;
};

}  // namespace fastconv::FASTCONV_ISA
