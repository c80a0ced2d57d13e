// The contiguous form of the depthwise stage: vectors run over flat output pixels of one plane.
//
// Every tap is a constant offset from the output pixel's flat index (plane_taps.h). Where the input plane itself has that form (float32, stride 1, same
// width) it is read as it lies in memory. Otherwise the rows a tile needs are copied as float32, one plane for every residue of the column modulo the
// stride, one set of rows for every residue of the row.
#pragma once
#include "plane_taps.h"

namespace fastconv::FASTCONV_ISA {

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

// ---- copies -------------------------------------------------------------------------------------------------------------------

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

// The depthwise stage of one tile: bind a channel, then run its groups.
template <class T>
class PlaneTile {
 public:
  // memory: scratch_bytes() of it.
  PlaneTile(const ConvGeometry& g, PlaneSource source, Activation input_activation, int64_t p0, int64_t p1, TileGroups groups, void* memory)
      : g_(g), stage_(g, source, p0, p1), input_activation_(input_activation), p0_(p0), groups_(groups), taps_(place_tile_taps(memory, groups.count, g.taps())),
        window_(source == PlaneSource::columns ? Window{0, 0} : shared_window(g)), copy_(reinterpret_cast<float*>(static_cast<char*>(memory) + tile_taps_bytes(groups.count, g.taps()))) {
    find_tile_taps(g, [&](int64_t ky, int64_t kx) { return stage_.offset(g, ky, kx); }, p0, p1, groups, taps_);
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

  // sink(vector, acc) for every group of the tile and one output channel; `vector` is the group's first of the tile's vectors.
  template <class Sink>
  FASTCONV_INLINE void channel(const float* weight, float bias, Activation activation, Sink&& sink) const {
    const bool relu = stage_.source == PlaneSource::in_place && input_activation_ == Activation::relu;
    with_window(window_, [&](auto taps, auto distance) __attribute__((always_inline)) {
      if (relu)
        groups<Read::relu, taps.value, distance.value>(weight, bias, activation, sink);
      else
        groups<Read::plain, taps.value, distance.value>(weight, bias, activation, sink);
    });
  }

 private:
  template <Read R, int K, int D, class Sink>
  FASTCONV_INLINE void groups(const float* weight, float bias, Activation activation, Sink&& sink) const {
    const GroupTap* taps = taps_.taps;
    const GroupTaps* found = taps_.found;
    const float* from = from_;
    const int64_t count = groups_.count, window = g_.taps(), ahead = ahead_;
    for (int64_t group = 0; group < count; ++group, ++found, taps += window) {
      const float* x = from + int64_t(found->begin) * L;
      if (ahead != 0)
#pragma GCC unroll 4
        for (int v = 0; v < kGroup; ++v) prefetch_l2(x + v * L + ahead);
      with_group_size(found->vectors, [&](auto size) __attribute__((always_inline)) {
        vf acc[size.value];
        bool summed = false;
        if constexpr (K > 0)
          if ((summed = found->whole)) sum_rows<K, D, R>(x, taps, weight, bias, acc);
        if (!summed) sum_taps<R>(x, taps, found->taps, weight, bias, acc);
        activate_all(acc, activation);
        sink(int64_t(found->begin), acc);
      });
    }
  }

  const ConvGeometry& g_;
  const PlaneStage stage_;
  const Activation input_activation_;
  const int64_t p0_;
  const TileGroups groups_;
  const TileTaps taps_;
  const Window window_;
  float* const copy_;
  const float* from_ = nullptr;
  int64_t ahead_ = 0;
};

}  // namespace fastconv::FASTCONV_ISA
