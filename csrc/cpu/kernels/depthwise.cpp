// Stand-alone depthwise forward: the stage of the fused kernel, written straight to the output map.
#include "../kernels.h"
#include "stage.h"
#include "stage_nchw.h"

namespace fastconv::FASTCONV_ISA {
namespace {

// Contiguous maps come in two forms. Most are computed plane by plane, vectors along pixels (stage_nchw.h), with an unaligned and at the border masked
// load per tap. Where taps are many, L planes at a time are transposed into scratch with the channels innermost, and the channels_last stage runs on that.
constexpr int64_t kBlockTaps = 20;          // from so many taps on, transposing in and out costs less
constexpr int64_t kBlockBytes = 384 << 10;  // of transposed rows
constexpr int64_t kTilePixels = 8192;       // contiguous: pixels of a plane handled at a time, so that the masks of a tile stay in L1

// Input channels in runs of `run`, the last one shorter: their geometry, and the weights of all of them as the channels_last stage reads them.
ConvGeometry run_geometry(const ConvGeometry& g, int64_t run, int64_t c) {
  ConvGeometry part = g;
  part.c = min64(run, g.c - c);
  return part;
}
int64_t run_floats(const ConvGeometry& g, int64_t run) { return stage_weight_floats(run_geometry(g, run, 0)); }
int64_t packed_floats(const ConvGeometry& g, int64_t run) { return ceil_div(g.c, run) * run_floats(g, run); }

template <class T>
void pack_runs(const DepthwiseForward& p, int64_t run, float* packed) {
  const T *weight = static_cast<const T*>(p.weight), *bias = static_cast<const T*>(p.bias);
  for (int64_t c = 0; c < p.g.c; c += run, packed += run_floats(p.g, run))
    stage_pack_nhwc(run_geometry(p.g, run, c), weight + c * p.g.multiplier * p.g.taps(), bias ? bias + c * p.g.multiplier : nullptr, packed);
}

int64_t input_rows(const ConvGeometry& g, int64_t rows) { return min64(g.h, (rows - 1) * g.sh + (g.kh - 1) * g.dh + 1); }
int64_t block_bytes(const ConvGeometry& g, int64_t rows) { return 4 * L * (input_rows(g, rows) * g.w + rows * g.ow); }

// Output rows of an item of the blocked form, or 0 where that form does not pay.
int64_t block_rows(const DepthwiseForward& p, int threads) {
  const ConvGeometry& g = p.g;
  if (g.taps() < kBlockTaps || g.multiplier != 1 || p.layout == Layout::channels_last) return 0;
  int64_t rows = g.oh;
  while (rows > 1 && block_bytes(g, rows) > kBlockBytes) rows = ceil_div(rows, 2);
  // Rows that two items share are transposed twice.
  const int64_t least_rows = max64(8, input_rows(g, 1));
  if (rows < g.oh && rows < least_rows) return 0;
  const int64_t blocks = g.n * ceil_div(g.c, L);
  while (blocks * ceil_div(g.oh, rows) < 4 * threads && ceil_div(rows, 2) >= least_rows) rows = ceil_div(rows, 2);
  return rows;
}

// The order of output rows: in pairs where the kernel takes pairs, which with a dilation means one residue class after the other.
PixelOrder row_order(const DepthwiseForward& p) {
  const ConvGeometry& g = p.g;
  const PixelOrder order = pixel_order(g, p.dtype == DType::f32 ? 4 : 2);
  return order.classes == 1 && pairs_rows(g, p.input_activation) ? PixelOrder{g.dh, order.strip} : order;
}

DepthwisePlan plan(const DepthwiseForward& p, int threads) {
  const ConvGeometry& g = p.g;
  const int64_t channels = g.out_channels(), plane = g.oh * g.ow;
  DepthwisePlan s = {};
  if (p.layout == Layout::channels_last) {
    // Items are runs of output rows; neighbouring rows share input rows, so runs are as long as balance allows.
    const int64_t rows = g.n * g.oh * ceil_div(g.ow, row_order(p).strip);
    s.rows_per_item = max64(1, min64(32, rows / (8 * threads)));
    s.items = ceil_div(rows, s.rows_per_item);
    s.channels_per_item = g.c;
    s.packed_bytes = 4 * packed_floats(g, g.c);
  } else if ((s.rows_per_item = block_rows(p, threads)) > 0) {
    s.channels_per_item = L;
    s.items = g.n * ceil_div(g.c, L) * ceil_div(g.oh, s.rows_per_item);
    s.packed_bytes = 4 * packed_floats(g, L);
    s.scratch_bytes = block_bytes(g, s.rows_per_item);
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

// Whether the row after this one is its partner.
bool paired(const ConvGeometry& g, PixelOrder order, int64_t position) {
  return position + 1 < g.oh && order.row(position + 1, g.oh) == order.row(position, g.oh) + g.dh;
}

// Rows of strips, counted through strips and images.
template <class T>
void rows_nhwc(const DepthwiseForward& p, const DepthwisePlan& s, const float* packed, int64_t item) {
  const ConvGeometry& g = p.g;
  const PixelOrder order = row_order(p);
  const int64_t strips = ceil_div(g.ow, order.strip), begin = item * s.rows_per_item, end = min64(g.n * strips * g.oh, begin + s.rows_per_item);
  const int64_t channels = g.out_channels(), pair_row = g.dh * g.ow * channels;
  const bool pairs = pairs_rows(g, p.input_activation);
  const StageCall call{packed, p.input_activation, p.activation, fetch_ahead(g, order, sizeof(T))};
  for (int64_t at = begin; at < end;) {
    const int64_t n = at / g.oh / strips, x = at / g.oh % strips * order.strip, position = at % g.oh, oy = order.row(position, g.oh);
    const int64_t rows = pairs && at + 1 < end && paired(g, order, position) ? 2 : 1;
    T* out = static_cast<T*>(p.out.data) + ((n * g.oh + oy) * g.ow + x) * channels;
    stage_row_nhwc<T>(g, call, p.x, n, oy, x, min64(g.ow, x + order.strip), StageTarget<T>{out, channels}, rows, pair_row);
    at += rows;
  }
}

// Items [begin, end), which are of one tile but for the images and channels: they share its masks.
template <class T>
void tile_nchw(const DepthwiseForward& p, const DepthwisePlan& s, const float* packed, int64_t tile, int64_t begin, int64_t end, void* scratch) {
  const ConvGeometry& g = p.g;
  const int64_t channels = g.out_channels(), taps = g.taps(), plane = g.oh * g.ow, runs = ceil_div(channels, s.channels_per_item);
  const int64_t p0 = tile * s.tile_pixels, p1 = min64(plane, p0 + s.tile_pixels);
  const TileGroups groups = even_groups(p1 - p0);
  PlaneTile<T> stage(g, plane_source(g, p.dtype, p.input_activation), p.input_activation, p0, p1, groups, scratch);
  if (g.n * g.c * g.h * g.w * int64_t(sizeof(T)) > kStreamsFrom) stage.fetch_ahead();
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / runs % g.n, first = item % runs * s.channels_per_item, last = min64(channels, first + s.channels_per_item);
    for (int64_t c = first; c < last; ++c) {
      // The outputs of one input channel read the same plane.
      if (c == first || c % g.multiplier == 0)
        stage.bind(static_cast<const T*>(p.x.data) + n * p.x.sn + c / g.multiplier * p.x.sc, p.x.sh);
      T* out = static_cast<T*>(p.out.data) + (n * channels + c) * plane + p0;
      stage.channel(packed + c * taps, packed[channels * taps + c], p.activation, [&](int64_t vector, auto& acc) __attribute__((always_inline)) {
        constexpr int size = sizeof(acc) / sizeof(vf);
        const int64_t at = vector * L, left = p1 - p0 - at;
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
}

template <class T>
void block_nchw(const DepthwiseForward& p, const DepthwisePlan& s, const float* packed, int64_t item, void* scratch) {
  const ConvGeometry& g = p.g;
  const int64_t bands = ceil_div(g.oh, s.rows_per_item), blocks = ceil_div(g.c, L), band = item % bands, block = item / bands % blocks, n = item / bands / blocks;
  const int64_t oy0 = g.oh * band / bands, oy1 = g.oh * (band + 1) / bands, c = block * L, channels = min64(L, g.c - c);
  const int64_t first = oy0 * g.sh - g.pt, iy0 = min64(g.h, max64(0, first)), iy1 = max64(iy0, min64(g.h, (oy1 - 1) * g.sh - g.pt + (g.kh - 1) * g.dh + 1));
  float *rows = static_cast<float*>(scratch), *result = rows + (iy1 - iy0) * g.w * L;
  const T* x = static_cast<const T*>(p.x.data) + n * p.x.sn + c * p.x.sc;
  load_pixels(x + iy0 * p.x.sh, p.x.sc, 1, channels, (iy1 - iy0) * g.w, rows, L);

  // The band as a map of its own.
  ConvGeometry here = g;
  here.n = 1, here.c = L, here.h = iy1 - iy0, here.oh = oy1 - oy0, here.pt = iy0 - first;
  const MapView view{rows, 0, 1, g.w * L, L};
  const StageCall call{packed + block * run_floats(g, L), p.input_activation, p.activation, 0};
  const bool pairs = pairs_rows(here, p.input_activation);
  const PixelOrder order{pairs ? g.dh : 1, g.ow};
  for (int64_t position = 0; position < here.oh;) {
    const int64_t oy = order.row(position, here.oh), count = pairs && paired(here, order, position) ? 2 : 1;
    stage_row_nhwc<float>(here, call, view, 0, oy, 0, g.ow, StageTarget<float>{result + oy * g.ow * L, L}, count, g.dh * g.ow * L);
    position += count;
  }
  store_pixels(static_cast<T*>(p.out.data) + n * p.out.sn + c * p.out.sc + oy0 * p.out.sh, p.out.sc, 1, channels, here.oh * g.ow, result, L);
}

void pack(const DepthwiseForward& p, const DepthwisePlan& s, void* packed) {
  with_type(p.dtype, [&](auto t) {
    using T = decltype(t);
    if (p.layout == Layout::channels_last || s.rows_per_item > 0)
      pack_runs<T>(p, s.channels_per_item, static_cast<float*>(packed));
    else
      pack_nchw<T>(p, static_cast<float*>(packed));
  });
}

void forward(const DepthwiseForward& p, const DepthwisePlan& s, const void* packed, int64_t begin, int64_t end, void* scratch) {
  const float* weights = static_cast<const float*>(packed);
  with_type(p.dtype, [&](auto t) {
    using T = decltype(t);
    if (p.layout == Layout::channels_last) {
      for (int64_t item = begin; item < end; ++item) rows_nhwc<T>(p, s, weights, item);
    } else if (s.rows_per_item > 0) {
      for (int64_t item = begin; item < end; ++item) block_nchw<T>(p, s, weights, item, scratch);
    } else {
      const int64_t per_tile = s.items / s.tiles;
      while (begin < end) {
        const int64_t next = min64(end, (begin / per_tile + 1) * per_tile);
        tile_nchw<T>(p, s, weights, begin / per_tile, begin, next, scratch);
        begin = next;
      }
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
