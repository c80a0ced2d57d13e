// Stand-alone depthwise forward: the stage of the fused kernel, written straight to the output map.
#include "../kernels.h"
#include "stage.h"
#include "stage_nchw.h"

namespace fastconv::FASTCONV_ISA {
namespace {

constexpr int64_t kTilePixels = 8192;  // contiguous: pixels of a plane handled at a time, so that the masks of a tile stay in L1

DepthwisePlan plan(const DepthwiseForward& p, int threads) {
  const ConvGeometry& g = p.g;
  const int64_t channels = g.out_channels(), plane = g.oh * g.ow;
  DepthwisePlan s = {};
  if (p.layout == Layout::channels_last) {
    // Items are runs of output rows; neighbouring rows share input rows, so runs are as long as balance allows.
    const int64_t rows = g.n * g.oh;
    s.rows_per_item = max64(1, min64(32, rows / (8 * threads)));
    s.items = ceil_div(rows, s.rows_per_item);
    s.packed_bytes = 4 * stage_weight_floats(g);
  } else {
    s.flat = flat_in_place(g, p.dtype, p.input_activation);
    s.tile_pixels = min64(round_up(plane, kGroupPixels), s.flat ? kTilePixels : 1024);
    s.tiles = ceil_div(plane, s.tile_pixels);
    // An item is a run of channels of one tile: enough channels to pay for its masks, enough items for every thread.
    s.channels_per_item = max64(1, min64(channels, g.n * s.tiles * channels / (8 * threads)));
    s.items = g.n * s.tiles * ceil_div(channels, s.channels_per_item);
    s.packed_bytes = 4 * channels * (g.taps() + 1);
    s.scratch_bytes = tile_taps_bytes(ceil_div(s.tile_pixels, kGroupPixels), g.taps()) + (s.flat ? 0 : 4 * stage_floats(g, s.tile_pixels));
  }
  return s;
}

template <class T>
void pack_nchw(const DepthwiseForward& p, float* packed) {
  const int64_t channels = p.g.out_channels(), taps = p.g.taps();
  const T *weight = static_cast<const T*>(p.weight), *bias = static_cast<const T*>(p.bias);
  for (int64_t i = 0; i < channels * taps; ++i) packed[i] = to_float(weight[i]);
  for (int64_t c = 0; c < channels; ++c) packed[channels * taps + c] = bias ? to_float(bias[c]) : 0.f;
}

template <class T>
void rows_nhwc(const DepthwiseForward& p, const DepthwisePlan& s, const float* packed, int64_t item) {
  const ConvGeometry& g = p.g;
  const int64_t begin = item * s.rows_per_item, end = min64(g.n * g.oh, begin + s.rows_per_item), channels = g.out_channels();
  const StageCall call{packed, p.input_activation, p.activation, fetch_ahead(g, sizeof(T))};
  T* out = static_cast<T*>(p.out.data);
  stage_pixels_nhwc<T>(g, call, p.x, begin * g.ow, end * g.ow, StageTarget<T>{out + begin * g.ow * channels, channels});
}

template <class T>
void tile_nchw(const DepthwiseForward& p, const DepthwisePlan& s, const float* packed, int64_t item, void* scratch) {
  const ConvGeometry& g = p.g;
  const int64_t channels = g.out_channels(), taps = g.taps(), plane = g.oh * g.ow, runs = ceil_div(channels, s.channels_per_item);
  const int64_t run = item % runs, tile = item / runs % s.tiles, n = item / runs / s.tiles;
  const int64_t p0 = tile * s.tile_pixels, p1 = min64(plane, p0 + s.tile_pixels), groups = ceil_div(p1 - p0, kGroupPixels);
  const int64_t most = ceil_div(s.tile_pixels, kGroupPixels);
  const TileTaps tile_taps = place_tile_taps(scratch, most, taps);
  float* staged = reinterpret_cast<float*>(static_cast<char*>(scratch) + tile_taps_bytes(most, taps));
  const StageShape shape = stage_shape(g, p0, p1);
  if (s.flat)
    flat_tile_taps(g, p0, p1, tile_taps);
  else
    staged_taps(g, shape, tile_taps.taps);
  for (int64_t c = run * s.channels_per_item; c < min64(channels, (run + 1) * s.channels_per_item); ++c) {
    const T* x = static_cast<const T*>(p.x.data) + n * p.x.sn + c / g.multiplier * p.x.sc;
    const float* from;
    if (s.flat) {
      from = reinterpret_cast<const float*>(x) + p0;
    } else {
      stage_plane(g, shape, x, p.x.sh, p.input_activation, staged);
      from = staged + p0 - shape.oy0 * g.ow;
    }
    T* out = static_cast<T*>(p.out.data) + (n * channels + c) * plane + p0;
    stage_channel(
        from, groups, s.flat, tile_taps, taps, packed + c * taps, packed[channels * taps + c], p.activation, [&](int64_t group, vf(&acc)[kGroup]) {
          const int64_t left = p1 - p0 - group * kGroupPixels;
          T* to = out + group * kGroupPixels;
          for (int v = 0; v < kGroup; ++v) {
            if (left >= (v + 1) * L)
              store(to + v * L, acc[v]);
            else if (left > v * L)
              store_part(to + v * L, acc[v], int(left - v * L));
          }
        });
  }
}

void pack(const DepthwiseForward& p, const DepthwisePlan&, void* packed) {
  with_type(p.dtype, [&](auto t) {
    using T = decltype(t);
    if (p.layout == Layout::channels_last)
      stage_pack_nhwc(p.g, static_cast<const T*>(p.weight), static_cast<const T*>(p.bias), static_cast<float*>(packed));
    else
      pack_nchw<T>(p, static_cast<float*>(packed));
  });
}

void forward(const DepthwiseForward& p, const DepthwisePlan& s, const void* packed, int64_t begin, int64_t end, void* scratch) {
  with_type(p.dtype, [&](auto t) {
    using T = decltype(t);
    for (int64_t item = begin; item < end; ++item) {
      if (p.layout == Layout::channels_last)
        rows_nhwc<T>(p, s, static_cast<const float*>(packed), item);
      else
        tile_nchw<T>(p, s, static_cast<const float*>(packed), item, scratch);
    }
  });
}

}  // namespace

void register_depthwise(Kernels& k) {
  k.depthwise_plan = &plan;
  k.depthwise_pack = &pack;
  k.depthwise_forward = &forward;
}

}  // namespace fastconv::FASTCONV_ISA
