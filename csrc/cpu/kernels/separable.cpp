// Fused separable forward: the depthwise result of a tile of pixels goes into an L2-resident scratch in the form the product reads it, and is consumed at once.
//
//   channels_last  scratch [pixel][channel]; vectors run over output channels (packed weights), pixels are broadcast
//   contiguous     scratch [panel of pixels][channel][pixel]; vectors run over pixels, weights are broadcast
//
// With bf16 dot products an element of either is a pair of neighbouring channels.
#include "../kernels.h"
#include "gemm.h"
#include "stage.h"
#include "stage_nchw.h"
#include "transpose.h"

namespace fastconv::FASTCONV_ISA {
namespace {

constexpr int64_t kScratchBudget = 448 << 10;  // bytes of depthwise results resident at a time: leaves room in a 1 MB L2 for a panel of weights
constexpr int64_t kBypassFrom = 8 << 20;        // bytes: larger outputs leave the caches before anybody reads them
constexpr int64_t kMaxPixelsNhwc = 192, kMaxPixelsNchw = 384;

int64_t align64(int64_t bytes) { return round_up(bytes, 64); }

// Rows of the scratch start on different cache sets: an odd number of cache lines apart.
int64_t odd_lines(int64_t elements, int64_t size) {
  const int64_t per_line = 64 / size, lines = ceil_div(elements, per_line);
  return (lines | 1) * per_line;
}

int64_t panel_begin(int64_t vectors, int64_t panels, int64_t panel) { return vectors * panel / panels; }

// Contiguous rows of a tile that wait for their store around the caches.
int64_t waiting_bytes(int64_t tile_pixels) { return align64(4 * kRows * tile_pixels); }

// Contiguous: whether the rows of the pointwise weight are rows of the product's elements already.
bool pointwise_in_place(const SeparableForward& p, bool bf16_dot) { return p.dtype == DType::f32 || (bf16_dot && p.g.out_channels() % 2 == 0); }

// Tiles of equal size, a multiple of `unit`, at most `most` pixels, and enough of them for every thread.
int64_t tile_size(int64_t pixels, int64_t most, int64_t unit, int threads) {
  int64_t tiles = ceil_div(pixels, max64(unit, most / unit * unit));
  if (threads > 1) tiles = round_up(tiles, threads);
  return max64(unit, round_up(ceil_div(pixels, tiles), unit));
}

SeparablePlan plan(const SeparableForward& p, int threads) {
  const ConvGeometry& g = p.g;
  const int64_t channels = g.out_channels(), pixels = g.oh * g.ow;
  SeparablePlan s = {};
  s.panel_rows = kRows;
  s.bf16_dot = kBf16Dot && p.dtype == DType::bf16;
  s.splits = 1;
  const bool aligned = p.layout == Layout::contiguous || (p.o % L == 0 && reinterpret_cast<uintptr_t>(p.out.data) % 64 == 0);
  s.streaming = L == 16 && p.dtype == DType::f32 && 4 * g.n * p.o * pixels > kBypassFrom && aligned;
  if (p.layout == Layout::channels_last) {
    const int64_t vectors = ceil_div(p.o, L), size = s.bf16_dot ? 2 : 4;
    s.panel_vectors = kPanelVectors;
    s.panels = ceil_div(vectors, kPanelVectors);
    s.row_stride = odd_lines(round_up(channels, 2 * L), size);
    const int64_t most = min64(kMaxPixelsNhwc, max64(kRows * 4, kScratchBudget / (s.row_stride * size)));
    s.tile_pixels = tile_size(g.n * pixels, most, kRows, threads);
    s.tiles = ceil_div(g.n * pixels, s.tile_pixels);
    s.items = s.tiles;
    if (s.tiles < threads) {
      // Each split repeats the depthwise part, which is small beside its share of the product.
      s.splits = min64(s.panels, ceil_div(threads, s.tiles));
      s.items = s.tiles * s.splits;
    }
    s.scratch_bytes = s.tile_pixels * s.row_stride * size;
    const int64_t k_count = s.bf16_dot ? ceil_div(channels, 2) : channels;
    s.packed_bytes = align64(4 * stage_weight_floats(g)) + align64(4 * vectors * L) + 4 * vectors * L * k_count;
    s.pack_items = s.panels + 1;
  } else {
    const PlaneSource source = plane_source(g, p.dtype, p.input_activation);
    s.flat = source == PlaneSource::in_place;
    s.panel_vectors = kGroup;
    const int64_t k_count = s.bf16_dot ? ceil_div(channels, 2) : channels;  // elements of four bytes
    const int64_t vectors = ceil_div(pixels, L), most = min64(kMaxPixelsNchw, max64(kGroupPixels, kScratchBudget / (4 * k_count))) / L;
    // Tiles of equal size but for a vector, and as many for every thread.
    s.tiles = ceil_div(vectors, most);
    if (g.n < threads) s.tiles = min64(vectors, round_up(s.tiles, threads));
    s.tile_pixels = ceil_div(vectors, s.tiles) * L;
    s.panels = ceil_div(s.tile_pixels, kGroupPixels);
    s.items = s.tiles * g.n;
    if (s.items < threads) {
      s.splits = min64(ceil_div(p.o, 4 * kRows), ceil_div(threads, s.items));
      s.items *= s.splits;
    }
    s.row_stride = kGroupPixels;
    s.scratch_bytes = align64(4 * s.tile_pixels * k_count) + PlaneTile<float>::scratch_bytes(g, source, s.tile_pixels) + (s.streaming ? waiting_bytes(s.tile_pixels) : 0);
    // Depthwise weights and bias, pointwise bias, all as float32, and pointwise weights that are not read where they lie.
    const bool in_place = pointwise_in_place(p, s.bf16_dot);
    s.packed_bytes = align64(4 * channels * (g.taps() + 1)) + align64(4 * p.o) + (in_place ? 0 : 4 * p.o * k_count);
    s.pack_items = 1 + (in_place ? 0 : ceil_div(p.o, 16));
  }
  return s;
}

// ---- channels_last ------------------------------------------------------------------------------------------------------------

struct PackedNhwc {
  float* depthwise;
  float* bias;
  void* panels;  // float32 or pairs of bfloat16: [panel][k][vectors of the panel * L]
};
PackedNhwc place_nhwc(const SeparableForward& p, void* packed) {
  char* at = static_cast<char*>(packed);
  PackedNhwc w;
  w.depthwise = reinterpret_cast<float*>(at);
  at += align64(4 * stage_weight_floats(p.g));
  w.bias = reinterpret_cast<float*>(at);
  at += align64(4 * ceil_div(p.o, L) * L);
  w.panels = at;
  return w;
}

// L neighbours in k of one row of weights, as the panel's elements.
template <class T>
FASTCONV_INLINE vf panel_row(const T* weight, int64_t k, int64_t channels, float*) {
  const int64_t n = channels - k;
  return n >= L ? load(weight + k) : load_part(weight + k, int(n));
}
FASTCONV_INLINE vf panel_row(const bf16* weight, int64_t k, int64_t channels, uint32_t*) {
  const int64_t n = channels - 2 * k;
  vf v = {};
  if (n >= 2 * L)
    memcpy(&v, weight + 2 * k, sizeof(v));
  else
    memcpy(&v, weight + 2 * k, 2 * n);
  return v;
}

// Weights (O, K) -> [k][lane] of one panel: transposed in registers.
template <class T, class Element>
void pack_panel(const T* weight, int64_t o, int64_t channels, int64_t k_count, int64_t first, int64_t lanes, Element* to) {
  for (int64_t lane = 0; lane < lanes; lane += L)
    for (int64_t k = 0; k < k_count; k += L) {
      vf v[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        const int64_t row = first + lane + i;
        v[i] = row < o ? panel_row(weight + row * channels, k, channels, static_cast<Element*>(nullptr)) : vf{};
      }
      transpose(v);
      float* panel = reinterpret_cast<float*>(to) + k * lanes + lane;
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i)
        if (k + i < k_count) store(panel + i * lanes, v[i]);
    }
}

template <class T, class Element>
void pack_nhwc(const SeparableForward& p, const SeparablePlan& s, int64_t begin, int64_t end, void* packed) {
  const PackedNhwc w = place_nhwc(p, packed);
  const int64_t channels = p.g.out_channels(), vectors = ceil_div(p.o, L), k_count = s.bf16_dot ? ceil_div(channels, 2) : channels;
  for (int64_t item = begin; item < end; ++item) {
    if (item == s.panels) {
      stage_pack_nhwc(p.g, static_cast<const T*>(p.depthwise_weight), static_cast<const T*>(p.depthwise_bias), w.depthwise);
      const T* bias = static_cast<const T*>(p.pointwise_bias);
      for (int64_t i = 0; i < vectors * L; ++i) w.bias[i] = bias && i < p.o ? to_float(bias[i]) : 0.f;
      continue;
    }
    const int64_t v0 = panel_begin(vectors, s.panels, item), v1 = panel_begin(vectors, s.panels, item + 1);
    pack_panel(
        static_cast<const T*>(p.pointwise_weight), p.o, channels, k_count, v0 * L, (v1 - v0) * L, static_cast<Element*>(w.panels) + v0 * L * k_count);
  }
}

// A register block to memory: + residual, activation. Row r of the residual lies at residual + at(r), of the output at out + to_row(r); lanes beyond `lanes` and
// rows beyond `rows` are dropped.
template <int R, int NV, class T, class At, class To>
FASTCONV_INLINE void finish(
    vf (&acc)[R][NV], int rows, int64_t lanes, Activation activation, const T* residual, T* out, bool streaming, const At& at, const To& to_row) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    if (r >= rows) break;
    const int64_t row = to_row(r);
    if (residual)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        const T* res = residual + at(r) + v * L;
        const int64_t n = lanes - v * L;
        if (n >= L)
          acc[r][v] += load(res);
        else if (n > 0)
          acc[r][v] += load_part(res, int(n));
      }
    activate_all(acc[r], activation);
    if (streaming && lanes >= NV * L) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) store_streaming(out + row + v * L, acc[r][v]);
      continue;
    }
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      const int64_t n = lanes - v * L;
      T* to = out + row + v * L;
      if (n >= L)
        store(to, acc[r][v]);
      else if (n > 0)
        store_part(to, acc[r][v], int(n));
    }
  }
}

template <class Dot, int NV, class T>
__attribute__((noinline)) void block_nhwc(
    const SeparableForward& p, int64_t k_count, const typename Dot::Element* panel, const typename Dot::Element* a, int64_t row_stride, const float* bias,
    const int64_t* pixel, int rows, int64_t lanes, const T* residual, T* out, Fetch fetch, bool streaming) {
  vf acc[kRows][NV];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[r][v] = load(bias + v * L);
  gemm_block<Dot, NV, kRows>(k_count, panel, NV * L, a, row_stride, 1, acc, fetch);
  const auto row = [&](int r) { return pixel[r] * p.o; };
  finish(acc, rows, lanes, p.pointwise_activation, residual, out, streaming, row, row);
}

// Scratch: float32 for float32 products, bfloat16 read as pairs for dot products.
template <class Dot>
struct ScratchOf {
  using type = float;
};
#if FASTCONV_ISA_avx512_bf16
template <>
struct ScratchOf<BF16Dot> {
  using type = bf16;
};
#endif

// The input rows that the tile [p0, p1) reads and the one before it did not, handed out over `calls` products. The map streams from memory in pieces too short
// for the hardware to see a stream; fetching them during the products overlaps the two.
class RowFetch {
 public:
  RowFetch(const SeparableForward& p, PixelOrder order, int64_t size, int64_t p0, int64_t p1, int64_t calls) {
    const ConvGeometry& g = p.g;
    const int64_t plane = g.oh * g.ow, total = g.n * g.h * g.w, pixel_bytes = g.c * size;
    if (total * pixel_bytes < kStreamsFrom || p0 >= g.n * plane) return;
    int64_t lines = 0;
    for_each_row_part(g, order, p0, min64(p1, g.n * plane), [&](int64_t, int64_t pixel, int64_t count) {
      const int64_t n = pixel / plane, oy = pixel % plane / g.ow, row = oy * g.sh - g.pt + (g.kh - 1) * g.dh;
      if (row < 0 || row >= g.h || parts_ == kParts) return;
      const int64_t first = (n * g.h + row) * g.w + min64(pixel % g.ow * g.sw, g.w - 1), last = min64(total, first + count * g.sh * g.sw);
      part_[parts_++] = {static_cast<const char*>(p.x.data) + first * pixel_bytes, (last - first) * pixel_bytes / 64};
      lines += part_[parts_ - 1].lines;
    });
    lines_ = ceil_div(lines, max64(1, calls));
  }
  Fetch next() {
    if (at_ == parts_) return {};
    Fetch& part = part_[at_];
    const Fetch now{part.at, min64(lines_, part.lines)};
    part.at += 64 * now.lines, part.lines -= now.lines;
    if (part.lines == 0) ++at_;
    return now;
  }

 private:
  static constexpr int kParts = 8;
  Fetch part_[kParts];
  int parts_ = 0, at_ = 0;
  int64_t lines_ = 0;
};

template <class T, class Dot>
void tile_nhwc(const SeparableForward& p, const SeparablePlan& s, const PackedNhwc& w, int64_t tile, int64_t split, void* scratch) {
  using Element = typename Dot::Element;
  using Stored = typename ScratchOf<Dot>::type;
  const ConvGeometry& g = p.g;
  const int64_t channels = g.out_channels(), plane = g.oh * g.ow, p0 = tile * s.tile_pixels, p1 = min64(g.n * plane, p0 + s.tile_pixels);
  Stored* a = static_cast<Stored*>(scratch);
  const PixelOrder order = pixel_order(g, sizeof(T));
  // Where the tile's pixels lie in the output.
  int64_t pixel[kMaxPixelsNhwc + kRows];
  for_each_row_part(g, order, p0, p1, [&](int64_t at, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) pixel[at - p0 + i] = first + i;
  });
  // Coming rows are fetched during the products, not here.
  const StageCall call{w.depthwise, p.input_activation, p.depthwise_activation, 0};
  stage_pixels_nhwc<T>(g, call, p.x, order, p0, p1, StageTarget<Stored>{a, s.row_stride});
  if (Dot::kStep == 2 && channels % 2)  // the odd channel's partner
    for (int64_t r = 0; r < p1 - p0; ++r) memset(static_cast<void*>(a + r * s.row_stride + channels), 0, sizeof(Stored));

  const int64_t vectors = ceil_div(p.o, L), k_count = ceil_div(channels, Dot::kStep), row_stride = s.row_stride / Dot::kStep;
  const Element* rows = static_cast<const Element*>(scratch);
  const T* residual = static_cast<const T*>(p.residual.data);
  T* out = static_cast<T*>(p.out.data);
  const int64_t first = s.panels * split / s.splits, last = s.panels * (split + 1) / s.splits;
  RowFetch fetch(p, order, sizeof(T), p1, p1 + s.tile_pixels, (last - first) * ceil_div(p1 - p0, kRows));
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t v0 = panel_begin(vectors, s.panels, panel), nv = panel_begin(vectors, s.panels, panel + 1) - v0;
    const Element* weights = static_cast<const Element*>(w.panels) + v0 * L * k_count;
    for (int64_t r = 0; r < p1 - p0; r += kRows) {
      const int count = int(min64(kRows, p1 - p0 - r));
      auto block = [&](auto width) __attribute__((always_inline)) {
        block_nhwc<Dot, width.value, T>(
            p, k_count, weights, rows + r * row_stride, row_stride, w.bias + v0 * L, pixel + r, count, p.o - v0 * L, residual ? residual + v0 * L : nullptr,
            out + v0 * L, fetch.next(), s.streaming);
      };
      switch (nv) {
        case 1: block(Int<1>{}); break;
        case 2: block(Int<2>{}); break;
        case 3: block(Int<(kPanelVectors >= 3 ? 3 : 1)>{}); break;
        default: block(Int<(kPanelVectors >= 4 ? 4 : 1)>{}); break;
      }
    }
  }
}

// ---- contiguous ---------------------------------------------------------------------------------------------------------------

struct PackedNchw {
  float* depthwise;  // [channel][tap]
  float* depthwise_bias;
  float* bias;
  void* weights;  // (O, K): float32 or pairs of bfloat16
};
PackedNchw place_nchw(const SeparableForward& p, const SeparablePlan& s, void* packed) {
  char* at = static_cast<char*>(packed);
  PackedNchw w;
  w.depthwise = reinterpret_cast<float*>(at);
  w.depthwise_bias = w.depthwise + p.g.out_channels() * p.g.taps();
  at += align64(4 * p.g.out_channels() * (p.g.taps() + 1));
  w.bias = reinterpret_cast<float*>(at);
  at += align64(4 * p.o);
  w.weights = pointwise_in_place(p, s.bf16_dot) ? const_cast<void*>(p.pointwise_weight) : at;
  return w;
}

template <class T>
void pack_nchw(const SeparableForward& p, const SeparablePlan& s, int64_t begin, int64_t end, void* packed) {
  const PackedNchw w = place_nchw(p, s, packed);
  const int64_t channels = p.g.out_channels();
  for (int64_t item = begin; item < end; ++item) {
    if (item == 0) {
      const T *dw = static_cast<const T*>(p.depthwise_weight), *db = static_cast<const T*>(p.depthwise_bias), *pb = static_cast<const T*>(p.pointwise_bias);
      for (int64_t i = 0; i < channels * p.g.taps(); ++i) w.depthwise[i] = to_float(dw[i]);
      for (int64_t i = 0; i < channels; ++i) w.depthwise_bias[i] = db ? to_float(db[i]) : 0.f;
      for (int64_t i = 0; i < p.o; ++i) w.bias[i] = pb ? to_float(pb[i]) : 0.f;
    } else {
      const T* from = static_cast<const T*>(p.pointwise_weight);
      const int64_t first = (item - 1) * 16, last = min64(p.o, item * 16);
      if (s.bf16_dot) {  // rows of an odd length get a partner
        T* to = static_cast<T*>(w.weights);
        for (int64_t o = first; o < last; ++o) {
          memcpy(to + o * (channels + 1), from + o * channels, sizeof(T) * channels);
          to[o * (channels + 1) + channels] = {};
        }
      } else {
        float* to = static_cast<float*>(w.weights);
        for (int64_t i = first * channels; i < last * channels; ++i) to[i] = to_float(from[i]);
      }
    }
  }
}

// `pitch` is the distance of two rows of `out`.
template <class Dot, int R, int NV, class T>
__attribute__((noinline)) void block_nchw(
    const SeparableForward& p, int64_t k_count, const typename Dot::Element* panel, const typename Dot::Element* weights, const float* bias, int64_t pixels,
    const T* residual, T* out, int64_t pitch, Fetch fetch) {
  const int64_t plane = p.g.oh * p.g.ow;
  vf acc[R][NV];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[r][v] = set1(bias[r]);
  gemm_block<Dot, NV, R>(k_count, panel, NV * L, weights, k_count, 1, acc, fetch);
  finish(
      acc, R, pixels, p.pointwise_activation, residual, out, false, [&](int r) { return r * plane; }, [&](int r) { return r * pitch; });
}

// The same for planes: the lowest rows of the next tile, one channel after the other, handed out over `calls` products.
template <class T>
class PlaneFetch {
 public:
  PlaneFetch(const SeparableForward& p, const T* image, int64_t p0, int64_t pixels, int64_t calls) : view_(p.x), calls_(calls), channels_(p.g.c) {
    const ConvGeometry& g = p.g;
    const int64_t row = p0 / g.ow * g.sh - g.pt + (g.kh - 1) * g.dh;
    if (g.c * g.h * g.w * int64_t(sizeof(T)) < kStreamsFrom || p0 >= g.oh * g.ow || row < 0 || row >= g.h) return;
    const int64_t first = row * g.w + p0 % g.ow, last = min64(g.h * g.w, first + pixels * g.sh * g.sw);
    if (last <= first) return;
    at_ = image + first;
    lines_ = ceil_div((last - first) * int64_t(sizeof(T)), 64);
  }
  // Whole channels at once, the last of them spread over the product to come.
  Fetch next() {
    const int64_t begin = call_ * channels_ / calls_, end = ++call_ * channels_ / calls_;
    if (!at_ || begin >= end || end > channels_) return {};
    for (int64_t c = begin; c + 1 < end; ++c)
      for (int64_t i = 0; i < lines_; ++i) prefetch_l2(reinterpret_cast<const char*>(at_ + c * view_.sc) + 64 * i);
    return {reinterpret_cast<const char*>(at_ + (end - 1) * view_.sc), lines_};
  }

 private:
  MapView view_;
  const T* at_ = nullptr;
  int64_t lines_ = 0, calls_, channels_, call_ = 0;
};

// n elements around the caches, but for the ends, which share a cache line with others.
template <class T>
void copy_streaming(const T* from, int64_t n, T* to) {
  const int64_t head = min64(n, int64_t(-reinterpret_cast<uintptr_t>(to) % (L * sizeof(T)) / sizeof(T)));
  if (head > 0) store_part(to, load_part(from, int(head)), int(head));
  int64_t i = head;
  for (; i + L <= n; i += L) store_streaming(to + i, load(from + i));
  if (i < n) store_part(to + i, load_part(from + i, int(n - i)), int(n - i));
}

template <class T, class Dot>
void tile_nchw(const SeparableForward& p, const SeparablePlan& s, const PackedNchw& w, int64_t n, int64_t tile, int64_t split, void* scratch) {
  using Element = typename Dot::Element;
  const ConvGeometry& g = p.g;
  const int64_t channels = g.out_channels(), k_count = ceil_div(channels, Dot::kStep), plane = g.oh * g.ow, taps = g.taps(), vectors = ceil_div(plane, L);
  const int64_t p0 = vectors * tile / s.tiles * L, p1 = min64(plane, vectors * (tile + 1) / s.tiles * L);
  const TileGroups groups = even_groups(p1 - p0);
  Element* panels = static_cast<Element*>(scratch);  // [group][k][pixel]
  const Element* weights = static_cast<const Element*>(w.weights);
  PlaneTile<T> stage(
      g, plane_source(g, p.dtype, p.input_activation), p.input_activation, p0, p1, groups, static_cast<char*>(scratch) + align64(4 * s.tile_pixels * k_count));

  const T* image = static_cast<const T*>(p.x.data) + n * p.x.sn;
  for (int64_t c = 0; c < channels; ++c) {
    if (c % g.multiplier == 0) stage.bind(image + c / g.multiplier * p.x.sc, p.x.sh);
    stage.channel(w.depthwise + c * taps, w.depthwise_bias[c], p.depthwise_activation, [&](int64_t vector, auto& acc) __attribute__((always_inline)) {
      constexpr int64_t size = sizeof(acc) / sizeof(vf);
      Element* to = panels + (vector * k_count + c / Dot::kStep * size) * L;
#pragma GCC unroll 4
      for (int v = 0; v < size; ++v) Dot::put(to + v * L, c, acc[v]);
    });
  }

  const T* residual = static_cast<const T*>(p.residual.data);
  T* out = static_cast<T*>(p.out.data);
  const int64_t first = p.o * split / s.splits, last = p.o * (split + 1) / s.splits;
  PlaneFetch<T> fetch(p, image, p1, s.tile_pixels, groups.count * ceil_div(last - first, kRows));
  // Rows that go around the caches wait in scratch until the tile's run is complete: rows of a plane start at any address, stores around the caches do not.
  T* waiting = s.streaming ? static_cast<T*>(static_cast<void*>(static_cast<char*>(scratch) + s.scratch_bytes - waiting_bytes(s.tile_pixels))) : nullptr;
  // Groups innermost: a row of the output is written in one run of the tile's pixels.
  auto rows = [&](auto count, int64_t o) __attribute__((always_inline)) {
    const int64_t run = (n * p.o + o) * plane + p0;
    for (int64_t group = 0; group < groups.count; ++group) {
      const int64_t at = groups.begin(group) * L;
      with_group_size(groups.size(group), [&](auto size) __attribute__((always_inline)) {
        block_nchw<Dot, count.value, size.value, T>(
            p, k_count, panels + at * k_count, weights + o * k_count, w.bias + o, p1 - p0 - at, residual ? residual + run + at : nullptr,
            waiting ? waiting + at : out + run + at, waiting ? s.tile_pixels : plane, fetch.next());
      });
    }
    if (waiting)
      for (int r = 0; r < count.value; ++r) copy_streaming(waiting + r * s.tile_pixels, p1 - p0, out + run + r * plane);
  };
  int64_t o = first;
  for (; o + kRows <= last; o += kRows) rows(Int<kRows>{}, o);
  // The last rows overlap their predecessors: the same values are written twice.
  if (o < last && last - first >= kRows)
    rows(Int<kRows>{}, last - kRows);
  else
    for (; o < last; ++o) rows(Int<1>{}, o);
}

// ---- entries -----------------------------------------------------------------------------------------------------------------

void pack(const SeparableForward& p, const SeparablePlan& s, int64_t begin, int64_t end, void* packed) {
  if (s.bf16_dot && p.layout == Layout::channels_last) return pack_nhwc<bf16, uint32_t>(p, s, begin, end, packed);
  with_type(p.dtype, [&](auto t) {
    if (p.layout == Layout::channels_last)
      pack_nhwc<decltype(t), float>(p, s, begin, end, packed);
    else
      pack_nchw<decltype(t)>(p, s, begin, end, packed);
  });
}

template <class T, class Dot>
void forward_as(const SeparableForward& p, const SeparablePlan& s, void* packed, int64_t begin, int64_t end, void* scratch) {
  for (int64_t item = begin; item < end; ++item) {
    const int64_t split = item % s.splits, tile = item / s.splits;
    if (p.layout == Layout::channels_last)
      tile_nhwc<T, Dot>(p, s, place_nhwc(p, packed), tile, split, scratch);
    else
      tile_nchw<T, Dot>(p, s, place_nchw(p, s, packed), tile / s.tiles, tile % s.tiles, split, scratch);
  }
}

void forward(const SeparableForward& p, const SeparablePlan& s, const void* packed, int64_t begin, int64_t end, void* scratch) {
  void* weights = const_cast<void*>(packed);
#if FASTCONV_ISA_avx512_bf16
  if (s.bf16_dot) return forward_as<bf16, BF16Dot>(p, s, weights, begin, end, scratch);
#endif
  with_type(p.dtype, [&](auto t) { forward_as<decltype(t), F32Dot>(p, s, weights, begin, end, scratch); });
}

}  // namespace

void register_separable(Kernels& k) {
  k.separable_plan = &plan;
  k.separable_pack = &pack;
  k.separable_forward = &forward;
}

}  // namespace fastconv::FASTCONV_ISA
