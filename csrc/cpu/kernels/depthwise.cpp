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
    const PlaneSource source = plane_source(g, p.dtype, p.input_activation);
    s.flat = source == PlaneSource::in_place;
    s.tile_pixels = min64(round_up(plane, kGroupPixels), s.flat ? kTilePixels : 1024);
    s.tiles = ceil_div(plane, s.tile_pixels);
    // An item is a run of channels of one tile: enough channels to pay for its masks, enough items for every thread.
    s.channels_per_item = max64(1, min64(channels, g.n * s.tiles * channels / (8 * threads)));
    s.items = g.n * s.tiles * ceil_div(channels, s.channels_per_item);
    s.packed_bytes = 4 * channels * (g.taps() + 1);
    s.scratch_bytes = PlaneTile<float>::scratch_bytes(g, source, s.tile_pixels);
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
  const int64_t p0 = tile * s.tile_pixels, p1 = min64(plane, p0 + s.tile_pixels);
  const TileGroups groups = even_groups(p1 - p0);
  PlaneTile<T> stage(g, plane_source(g, p.dtype, p.input_activation), p.input_activation, p0, p1, groups, scratch);
  for (int64_t c = run * s.channels_per_item; c < min64(channels, (run + 1) * s.channels_per_item); ++c) {
    stage.bind(static_cast<const T*>(p.x.data) + n * p.x.sn + c / g.multiplier * p.x.sc, p.x.sh);
    T* out = static_cast<T*>(p.out.data) + (n * channels + c) * plane + p0;
    stage.channel(packed + c * taps, packed[channels * taps + c], p.activation, [&](int64_t group, auto& acc) __attribute__((always_inline)) {
      constexpr int size = sizeof(acc) / sizeof(vf);
      const int64_t at = groups.begin(group) * L, left = p1 - p0 - at;
#pragma GCC unroll 4
      for (int v = 0; v < size; ++v) {
        if (left >= (v + 1) * L)
          store(out + at + v * L, acc[v]);
        else
          store_part(out + at + v * L, acc[v], int(left - v * L));
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
