// Separable backward up to the depthwise result's gradient, and the pointwise weight gradient. For a tile of pixels:
//
//   z1 = depthwise(x)                       recomputed, never saved
//   g2 = grad * pointwise_activation'       into the block's buffer
//   dz1 = (W^T g2) * depthwise_activation'(z1)
//   m  = depthwise_activation(z1)           into the block's buffer, [pixel][channel] in panels
//
// and for a block of tiles dW += g2^T m, db += sum g2. Both products run on the microkernel of gemm.h. channels_last keeps rows of pixels, contiguous groups
// of pixels per channel; only m is transposed for the latter, so that one loop serves the weight gradient of both.
#include "../kernels.h"
#include "gemm.h"
#include "stage.h"
#include "stage_nchw.h"
#include "transpose.h"

namespace fastconv::FASTCONV_ISA {
namespace {

constexpr int64_t kPanel = kPanelVectors * L;    // channels in a panel of m
static_assert(kPanel == kStagePanel && kPanel == kGroupPixels, "the stage writes panels of the product");
constexpr int64_t kBlockPixels = 1536;           // a panel of m of one block stays in L2
constexpr int64_t kTile = 192;                   // pixels; a multiple of kGroupPixels for every L
constexpr int64_t kScratchBudget = 448 << 10;
constexpr int64_t kRowsPerItem = 2 * kRows;      // rows of the weight gradient per item

int64_t align64(int64_t bytes) { return round_up(bytes, 64); }
int64_t channel_panels(const SeparableBackward& p) { return ceil_div(p.f.g.out_channels(), kPanel); }
bool channels_last(const SeparableBackward& p) { return p.f.layout == Layout::channels_last; }

SeparableBackwardPlan plan(const SeparableBackward& p, int) {
  const ConvGeometry& g = p.f.g;
  const int64_t channels = g.out_channels(), plane = g.oh * g.ow, o = p.f.o;
  SeparableBackwardPlan s = {};
  // Block and tile sizes follow from the shape alone: they order the sums of the weight gradient.
  const int64_t unit = channels_last(p) ? kRows * 2 : kGroupPixels;
  const int64_t most = max64(unit, min64(kTile, kScratchBudget / (4 * channels)) / unit * unit);
  const int64_t pixels = channels_last(p) ? g.n * plane : plane;
  s.tile_pixels = min64(most, round_up(pixels, unit));
  s.tiles = ceil_div(pixels, s.tile_pixels);
  s.tile_items = channels_last(p) ? s.tiles : g.n * s.tiles;
  s.block_tiles = min64(s.tile_items, max64(1, kBlockPixels / s.tile_pixels));
  s.weight_items = channel_panels(p) * ceil_div(o, kRowsPerItem);
  const PlaneSource source = plane_source(g, p.f.dtype, p.f.input_activation);
  const int64_t block_pixels = s.block_tiles * s.tile_pixels;
  // Odd number of cache lines between pixels, so that rows spread over the cache's sets.
  s.row_stride = (ceil_div(round_up(o, L) + kRows, 16) | 1) * 16;
  s.grad_bytes = channels_last(p) ? 4 * (block_pixels + kRows) * s.row_stride : 4 * (block_pixels * o + kRows * kGroupPixels);
  s.middle_bytes = 4 * channel_panels(p) * kPanel * block_pixels;
  if (channels_last(p)) {
    s.scratch_bytes = 4 * s.tile_pixels * channel_panels(p) * kPanel;
    s.packed_bytes = align64(4 * stage_weight_floats(g)) + 4 * channel_panels(p) * kPanel * o;
    s.pack_items = 1 + channel_panels(p);
  } else {
    s.scratch_bytes = align64(4 * s.tile_pixels * channels) + PlaneTile<float>::scratch_bytes(g, source, s.tile_pixels);
    s.packed_bytes = align64(4 * channels * (g.taps() + 1)) + 4 * o * round_up(channels, kRows) + 64;
    s.pack_items = 1 + ceil_div(o, 16);
  }
  return s;
}

// ---- weights ------------------------------------------------------------------------------------------------------------------

struct Packed {
  float* depthwise;  // channels_last: [tap][channel] with the bias last; contiguous: [channel][tap], then the biases
  float* pointwise;  // channels_last: [panel of channels][o][channel]; contiguous: [o][channel, padded to whole register rows]
};
Packed place(const SeparableBackward& p, void* packed) {
  const ConvGeometry& g = p.f.g;
  char* at = static_cast<char*>(packed);
  const int64_t depthwise = channels_last(p) ? 4 * stage_weight_floats(g) : 4 * g.out_channels() * (g.taps() + 1);
  return {reinterpret_cast<float*>(at), reinterpret_cast<float*>(at + align64(depthwise))};
}

template <class T>
void pack_typed(const SeparableBackward& p, int64_t begin, int64_t end, void* packed) {
  const SeparableForward& f = p.f;
  const Packed w = place(p, packed);
  const int64_t channels = f.g.out_channels(), taps = f.g.taps();
  const T *weight = static_cast<const T*>(f.pointwise_weight), *dw = static_cast<const T*>(f.depthwise_weight), *db = static_cast<const T*>(f.depthwise_bias);
  for (int64_t item = begin; item < end; ++item) {
    if (item == 0) {
      if (channels_last(p)) {
        stage_pack_nhwc(f.g, dw, db, w.depthwise);
      } else {
        for (int64_t i = 0; i < channels * taps; ++i) w.depthwise[i] = to_float(dw[i]);
        for (int64_t i = 0; i < channels; ++i) w.depthwise[channels * taps + i] = db ? to_float(db[i]) : 0.f;
      }
    } else if (channels_last(p)) {
      const int64_t c0 = (item - 1) * kPanel;
      for (int64_t i = 0; i < f.o; ++i) {
        float* to = w.pointwise + (c0 * f.o + i * kPanel);
        for (int64_t c = 0; c < kPanel; c += L) {
          const int64_t n = min64(L, channels - c0 - c);
          const T* from = weight + i * channels + c0 + c;
          store(to + c, n >= L ? load(from) : n > 0 ? load_part(from, int(n)) : vf{});
        }
      }
    } else {
      const int64_t pitch = round_up(channels, kRows);
      for (int64_t i = (item - 1) * 16; i < min64(f.o, item * 16); ++i)
        for (int64_t c = 0; c < pitch; ++c) w.pointwise[i * pitch + c] = c < channels ? to_float(weight[i * channels + c]) : 0.f;
    }
  }
}

// ---- pieces of a tile ---------------------------------------------------------------------------------------------------------

template <class T>
FASTCONV_INLINE vf load_up_to(const T* p, int64_t n) {
  return n >= L ? load(p) : n > 0 ? load_part(p, int(n)) : vf{};
}
template <class T>
FASTCONV_INLINE void store_up_to(T* p, vf v, int64_t n) {
  if (n >= L)
    store(p, v);
  else if (n > 0)
    store_part(p, v, int(n));
}

__attribute__((noinline)) vf derivative_at(vf z, Activation a) {
  vf d = set1(1.f);
  with_activation(a, [&](auto c) { d = derivative<c.value>(z); });
  return d;
}

// `count` values of g2 = grad * activation'(z) to float32, and to dresidual where that is wanted.
template <class T>
FASTCONV_INLINE void gate_run(const T* grad, const T* z, Activation a, int64_t count, float* to, T* dresidual) {
  for (int64_t i = 0; i < count; i += L) {
    const int64_t n = count - i;
    vf v = load_up_to(grad + i, n);
    if (a == Activation::relu) {
      v = load_up_to(z + i, n) > vf{} ? v : vf{};
    } else if (a != Activation::identity) {
      v *= derivative_at(load_up_to(z + i, n), a);
    }
    store(to + i, v);
    if (dresidual) store_up_to(dresidual + i, v, n);
  }
}

// dz1 = acc * activation'(z1) for one register block.
template <int R, int NV, class T>
FASTCONV_INLINE void finish(vf (&acc)[R][NV], int64_t rows, int64_t lanes, Activation a, const float* z1, int64_t z1_pitch, T* out, int64_t pitch) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    if (r >= rows) break;
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      vf y = acc[r][v];
      if (a == Activation::relu)
        y = load(z1 + r * z1_pitch + v * L) > vf{} ? y : vf{};
      else if (a != Activation::identity)
        y *= derivative_at(load(z1 + r * z1_pitch + v * L), a);
      store_up_to(out + r * pitch + v * L, y, lanes - v * L);
    }
  }
}

// ---- channels_last ------------------------------------------------------------------------------------------------------------

template <class T>
__attribute__((noinline)) void block_nhwc(
    int64_t o, const float* panel, const float* g2, int64_t row_stride, int64_t rows, int64_t lanes, Activation a, const float* z1, int64_t z1_pitch, T* out,
    int64_t pitch) {
  vf acc[kRows][kPanelVectors] = {};
  gemm_block<F32Dot, kPanelVectors, kRows>(o, panel, kPanel, g2, row_stride, 1, acc);
  finish(acc, rows, lanes, a, z1, z1_pitch, out, pitch);
}

template <class T>
void tile_nhwc(const SeparableBackward& p, const SeparableBackwardPlan& s, const SeparableBackwardMemory& memory, int64_t tile, int64_t slot, void* scratch) {
  const SeparableForward& f = p.f;
  const ConvGeometry& g = f.g;
  const Packed w = place(p, memory.packed);
  const int64_t channels = g.out_channels(), plane = g.oh * g.ow, p0 = tile * s.tile_pixels, p1 = min64(g.n * plane, p0 + s.tile_pixels), count = p1 - p0;
  const int64_t block_pixels = s.block_tiles * s.tile_pixels;
  float* middle = memory.middle + slot * s.tile_pixels * kPanel;
  // Where the derivative can be read off m, the stage writes m to the block's buffer at once; else z1 stays in scratch, in the same panels.
  const bool in_place = p.dpointwise && (f.depthwise_activation == Activation::identity || derivative_from_output(f.depthwise_activation));
  const StageTarget<float> target{in_place ? middle : static_cast<float*>(scratch), kPanel, (in_place ? block_pixels : s.tile_pixels) * kPanel};
  const PixelOrder order{1, g.ow};
  const StageCall call{w.depthwise, f.input_activation, in_place ? f.depthwise_activation : Activation::identity, fetch_ahead(g, order, sizeof(T))};
  if (p.dz1.data || p.dpointwise) stage_pixels_nhwc<T>(g, call, f.x, order, p0, p1, target);
  float* g2 = memory.grads + slot * s.tile_pixels * s.row_stride;
  const T *grad = static_cast<const T*>(p.grad.data), *z2 = static_cast<const T*>(p.pointwise_z.data);
  T* dresidual = static_cast<T*>(p.dresidual.data);
  for (int64_t r = 0; r < count; ++r) {
    const int64_t at = (p0 + r) * f.o;
    gate_run(grad + at, z2 ? z2 + at : nullptr, f.pointwise_activation, f.o, g2 + r * s.row_stride, dresidual ? dresidual + at : nullptr);
  }
  if (p.dz1.data) {
    T* dz1 = static_cast<T*>(p.dz1.data);
    for (int64_t c = 0; c < channels; c += kPanel)
      for (int64_t r = 0; r < count; r += kRows)
        block_nhwc<T>(
            f.o, w.pointwise + c * f.o, g2 + r * s.row_stride, s.row_stride, count - r, channels - c, f.depthwise_activation, target.at(r, c), kPanel,
            dz1 + (p0 + r) * channels + c, channels);
  }
  if (p.dpointwise && !in_place)
    for (int64_t c = 0; c < channels; c += kPanel)
      for (int64_t r = 0; r < count; ++r) {
        vf m[kPanelVectors];
        for (int v = 0; v < kPanelVectors; ++v) m[v] = load(target.at(r, c) + v * L);
        activate_all(m, f.depthwise_activation);
        for (int v = 0; v < kPanelVectors; ++v) store(middle + c * block_pixels + r * kPanel + v * L, m[v]);
      }
}

// ---- contiguous ---------------------------------------------------------------------------------------------------------------

template <class T>
__attribute__((noinline)) void block_nchw(
    int64_t o, const float* g2, const float* weights, int64_t weight_pitch, int64_t rows, int64_t pixels, Activation a, const float* z1, T* out, int64_t plane) {
  vf acc[kRows][kGroup] = {};
  gemm_block<F32Dot, kGroup, kRows>(o, g2, kGroupPixels, weights, 1, weight_pitch, acc);
  finish(acc, rows, pixels, a, z1, kGroupPixels, out, plane);
}

template <class T>
void tile_nchw(const SeparableBackward& p, const SeparableBackwardPlan& s, const SeparableBackwardMemory& memory, int64_t item, int64_t slot, void* scratch) {
  const SeparableForward& f = p.f;
  const ConvGeometry& g = f.g;
  const Packed w = place(p, memory.packed);
  const int64_t channels = g.out_channels(), plane = g.oh * g.ow, taps = g.taps(), n = item / s.tiles, p0 = item % s.tiles * s.tile_pixels;
  const int64_t p1 = min64(plane, p0 + s.tile_pixels), groups = ceil_div(p1 - p0, kGroupPixels);
  float* z1 = static_cast<float*>(scratch);  // [group][channel][pixel]

  if (p.dz1.data || p.dpointwise) {
    PlaneTile<T> stage(
        g, plane_source(g, f.dtype, f.input_activation), f.input_activation, p0, p1, whole_groups(p1 - p0),
        static_cast<char*>(scratch) + align64(4 * s.tile_pixels * channels));
    const T* image = static_cast<const T*>(f.x.data) + n * f.x.sn;
    for (int64_t c = 0; c < channels; ++c) {
      if (c % g.multiplier == 0) stage.bind(image + c / g.multiplier * f.x.sc, f.x.sh);
      stage.channel(
          w.depthwise + c * taps, w.depthwise[channels * taps + c], Activation::identity, [&](int64_t vector, auto& acc) __attribute__((always_inline)) {
            constexpr int size = sizeof(acc) / sizeof(vf);
#pragma GCC unroll 4
            for (int v = 0; v < size; ++v) store(z1 + vector * L * channels + c * kGroupPixels + v * L, acc[v]);
          });
    }
  }

  float* g2 = memory.grads + slot * s.tile_pixels * f.o;  // [group][o][pixel]
  const T *grad = static_cast<const T*>(p.grad.data), *z2 = static_cast<const T*>(p.pointwise_z.data);
  T* dresidual = static_cast<T*>(p.dresidual.data);
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t pixel = p0 + group * kGroupPixels, count = min64(kGroupPixels, p1 - pixel);
    for (int64_t o = 0; o < f.o; ++o) {
      const int64_t i = (n * f.o + o) * plane + pixel;
      gate_run(grad + i, z2 ? z2 + i : nullptr, f.pointwise_activation, count, g2 + (group * f.o + o) * kGroupPixels, dresidual ? dresidual + i : nullptr);
    }
  }
  if (p.dz1.data) {
    T* dz1 = static_cast<T*>(p.dz1.data);
    const int64_t pitch = round_up(channels, kRows);
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t pixel = p0 + group * kGroupPixels;
      // Lanes past the tile hold g2 of no pixel; their results are dropped.
      for (int64_t c = 0; c < channels; c += kRows)
        block_nchw<T>(
            f.o, g2 + group * f.o * kGroupPixels, w.pointwise + c, pitch, channels - c, p1 - pixel, f.depthwise_activation,
            z1 + (group * channels + c) * kGroupPixels, dz1 + (n * channels + c) * plane + pixel, plane);
    }
  }
  if (p.dpointwise) {
    const int64_t block_pixels = s.block_tiles * s.tile_pixels;
    for (int64_t c = 0; c < channel_panels(p) * kPanel; c += L)
      for (int64_t group = 0; group < groups; ++group)
        for (int64_t v = 0; v < kGroup; ++v) {
          vf m[L];
#pragma GCC unroll 16
          for (int i = 0; i < L; ++i) m[i] = c + i < channels ? load(z1 + (group * channels + c + i) * kGroupPixels + v * L) : vf{};
          activate_all(m, f.depthwise_activation);
          transpose(m);
          float* to = memory.middle + c / kPanel * kPanel * block_pixels + (slot * s.tile_pixels + group * kGroupPixels + v * L) * kPanel + c % kPanel;
#pragma GCC unroll 16
          for (int i = 0; i < L; ++i) store(to + i * kPanel, m[i]);
        }
  }
}

// ---- weight gradient ----------------------------------------------------------------------------------------------------------

// Calls f(pixels, g2, rs, ks, m) for every run of pixels of the block whose g2 lies at constant strides.
template <class F>
FASTCONV_INLINE void for_each_pixel_run(
    const SeparableBackward& p, const SeparableBackwardPlan& s, const SeparableBackwardMemory& memory, int64_t first_tile, int64_t slots, int64_t o,
    const float* panel, F&& f) {
  const ConvGeometry& g = p.f.g;
  const int64_t pixels = (channels_last(p) ? g.n : 1) * g.oh * g.ow;
  for (int64_t slot = 0; slot < slots; ++slot) {
    const int64_t p0 = (first_tile + slot) % s.tiles * s.tile_pixels, count = min64(s.tile_pixels, pixels - p0);
    const float* m = panel + slot * s.tile_pixels * kPanel;
    if (channels_last(p)) {
      f(count, memory.grads + slot * s.tile_pixels * s.row_stride + o, int64_t(1), s.row_stride, m);
    } else {
      for (int64_t at = 0; at < count; at += kGroupPixels)
        f(min64(kGroupPixels, count - at), memory.grads + slot * s.tile_pixels * p.f.o + at * p.f.o + o * kGroupPixels, kGroupPixels, int64_t(1),
          m + at * kPanel);
    }
  }
}

// dbias[o0, o1) += sum of g2 over the block's pixels. Vectors run over output channels (channels_last) or over pixels (contiguous).
void bias_run(
    const SeparableBackward& p, const SeparableBackwardPlan& s, const SeparableBackwardMemory& memory, int64_t first_tile, int64_t slots, int64_t o0,
    int64_t o1) {
  const bool first = first_tile == 0;
  for (int64_t o = o0; o < o1; o += channels_last(p) ? L : 1) {
    vf sum = {};
    for_each_pixel_run(p, s, memory, first_tile, slots, o, memory.middle, [&](int64_t count, const float* g2, int64_t, int64_t ks, const float*) {
      if (channels_last(p)) {
        for (int64_t i = 0; i < count; ++i) sum += load(g2 + i * ks);
      } else {
        for (int64_t i = 0; i < count; i += L) sum += load_up_to(g2 + i, count - i);
      }
    });
    if (channels_last(p)) {
      store_up_to(p.dbias + o, first ? sum : sum + load_up_to(p.dbias + o, o1 - o), o1 - o);
    } else {
      float total = 0.f;
      for (int i = 0; i < L; ++i) total += sum[i];
      p.dbias[o] = first ? total : p.dbias[o] + total;
    }
  }
}

void weights(
    const SeparableBackward& p, const SeparableBackwardPlan& s, const SeparableBackwardMemory& memory, int64_t first_tile, int64_t slots, int64_t begin,
    int64_t end) {
  const int64_t channels = p.f.g.out_channels(), runs = ceil_div(p.f.o, kRowsPerItem);
  const bool first = first_tile == 0;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t c = item / runs * kPanel, o0 = item % runs * kRowsPerItem, o1 = min64(p.f.o, o0 + kRowsPerItem);
    const float* panel = memory.middle + c * s.block_tiles * s.tile_pixels;
    for (int64_t o = o0; o < o1 && p.dpointwise; o += kRows) {
      vf acc[kRows][kPanelVectors] = {};
      for_each_pixel_run(p, s, memory, first_tile, slots, o, panel, [&](int64_t count, const float* g2, int64_t rs, int64_t ks, const float* m) __attribute__((always_inline)) {
        gemm_block<F32Dot, kPanelVectors, kRows>(count, m, kPanel, g2, rs, ks, acc);
      });
      for (int r = 0; r < kRows && o + r < o1; ++r)
        for (int v = 0; v < kPanelVectors; ++v) {
          const int64_t n = channels - c - v * L;
          float* to = p.dpointwise + (o + r) * channels + c + v * L;
          store_up_to(to, first ? acc[r][v] : acc[r][v] + load_up_to(to, n), n);
        }
    }
    if (c == 0 && p.dbias) bias_run(p, s, memory, first_tile, slots, o0, o1);
  }
}

void pack(const SeparableBackward& p, const SeparableBackwardPlan&, int64_t begin, int64_t end, void* packed) {
  with_type(p.f.dtype, [&](auto t) { pack_typed<decltype(t)>(p, begin, end, packed); });
}

void tiles(
    const SeparableBackward& p, const SeparableBackwardPlan& s, const SeparableBackwardMemory& memory, int64_t first_tile, int64_t begin, int64_t end,
    void* scratch) {
  with_type(p.f.dtype, [&](auto t) {
    for (int64_t slot = begin; slot < end; ++slot) {
      if (channels_last(p))
        tile_nhwc<decltype(t)>(p, s, memory, first_tile + slot, slot, scratch);
      else
        tile_nchw<decltype(t)>(p, s, memory, first_tile + slot, slot, scratch);
    }
  });
}

}  // namespace

void register_separable_backward(Kernels& k) {
  k.separable_backward_plan = &plan;
  k.separable_backward_pack = &pack;
  k.separable_backward_tiles = &tiles;
  k.separable_backward_weights = &weights;
}

}  // namespace fastconv::FASTCONV_ISA
