#include "plan_separable.h"

#include <algorithm>

#include "widest_vector.h"

namespace fastconv::cuda {
namespace {

constexpr int64_t kSlabBytes = 128, kStepBytes = 32, kWeightStages = 3, kScratchBytes = 8 * sizeof(float);
// A block cannot have these bytes of a multiprocessor's shared memory: the system's share.
constexpr int64_t kReserved = 1024;

bool aligned(const void* p, int64_t bytes) { return address(p) % static_cast<uint64_t>(bytes) == 0; }

struct Memory {
  int64_t chunk;  // channels
  size_t bytes;
};

// Shared memory of a block, as its kernel carves it.
size_t block_bytes(const SeparableForward& p, const SeparablePlan& plan, int64_t chunk) {
  const TileShape t = tile_shape(plan.form);
  const int64_t slab = kSlabBytes / element_bytes(p.dtype);
  size_t bytes = ceil_div(chunk, slab) * t.pixels * kSlabBytes + kWeightStages * t.channels * kSlabBytes + t.pixels * sizeof(int64_t);
  if (p.layout == Layout::contiguous) bytes += t.threads * 16 * sizeof(float);
  if (staged_weights(p, plan.producer))
    bytes += static_cast<size_t>(round_up((chunk + 4) * p.g.taps() * sizeof(float), 16));
  if (plan.smooth) bytes += t.threads * kScratchBytes;
  return bytes;
}

// All channels, or where the tile allows chunks the most whole slabs that fit.
Memory choose_chunk(const SeparableForward& p, const SeparablePlan& plan, int64_t budget) {
  const int64_t e = element_bytes(p.dtype), slab = kSlabBytes / e, middle = p.g.out_channels();
  int64_t chunk = round_up(middle, kStepBytes / e);
  if (!tile_shape(plan.form).resident) {
    while (static_cast<int64_t>(block_bytes(p, plan, chunk)) > budget && chunk > slab) chunk = round_up(chunk, slab) - slab;
    // Chunks of equal size.
    if (chunk < middle) chunk = round_up(ceil_div(middle, ceil_div(middle, chunk)), slab);
  }
  return {chunk, block_bytes(p, plan, chunk)};
}

}  // namespace

Producer choose_producer(const SeparableForward& p) {
  const ConvGeometry& g = p.g;
  const bool ring = g.sh == 1 && g.sw == 1 && g.multiplier == 1 && g.kh == g.kw && (g.kh == 3 || g.kh == 5 || g.kh == 7);
  const int64_t e = element_bytes(p.dtype);
  if (p.layout == Layout::channels_last) {
    const bool pairs = g.c % 2 == 0 && aligned(p.x.data, 2 * e) && aligned(p.depthwise_weight, 4) && aligned(p.depthwise_bias, 2 * e);
    // K = 5 and 7 have no instance for float32.
    return ring && pairs && (g.kh == 3 || p.dtype != DType::f32) ? Producer::ring_pixels : Producer::taps;
  }
  return ring && g.c % 4 == 0 && (g.kh == 3 || p.dtype != DType::f32) ? Producer::ring_planes : Producer::taps;
}

TilePlan plan_tile(int64_t h, int64_t w, int64_t halo_h, int64_t halo_w, int pixels, int multiple) {
  TilePlan best{};
  double least = 0;
  for (int64_t columns = multiple; columns <= pixels; columns += multiple) {
    if (columns > round_up(w, multiple)) break;
    const int64_t tiles_x = ceil_div(w, columns), most_rows = std::min<int64_t>(pixels / columns, h), tiles_y = ceil_div(h, most_rows), rows = ceil_div(h, tiles_y);
    // A tile multiplies all its rows whether they hold pixels or not, and loads and marches its halo.
    const double cost = static_cast<double>(tiles_x * tiles_y) * 2.0 * static_cast<double>(pixels + (rows + halo_h) * (columns + halo_w));
    if (best.rows == 0 || cost < least) {
      least = cost;
      best = {static_cast<int>(rows), static_cast<int>(columns), tiles_y, tiles_x};
    }
  }
  return best;
}

int plan_unit_rows(int rows, int64_t others, int halo, int threads) {
  int best = rows;
  double least = 0;
  for (int unit = 1; unit <= rows; ++unit) {
    const int64_t units = others * ceil_div(rows, unit);
    const double cost = static_cast<double>(ceil_div(units, threads)) * (unit + 0.6 * halo);
    if (unit == 1 || cost < least) least = cost, best = unit;
  }
  return best;
}

void place_tiles(const SeparableForward& p, int pixels, SeparablePlan& plan) {
  const ConvGeometry& g = p.g;
  // Contiguous columns stay neighbours: classes of rows only.
  const bool unit_stride = g.sh == 1 && g.sw == 1;
  plan.step_h = unit_stride ? std::min(g.dh, g.oh) : 1;
  plan.step_w = unit_stride && p.layout == Layout::channels_last ? std::min(g.dw, g.ow) : 1;
  plan.classes_y = plan.step_h;
  const TilePlan tile = plan_tile(
      ceil_div(g.oh, plan.step_h), ceil_div(g.ow, plan.step_w), g.kh - 1, plan.step_w == g.dw ? g.kw - 1 : g.dw * (g.kw - 1), pixels,
      plan.producer == Producer::ring_pixels ? 4 : 1);
  plan.rows = tile.rows, plan.columns = tile.columns, plan.tiles_y = tile.tiles_y, plan.tiles_x = tile.tiles_x;
  // A class smaller than the tile would leave the rest of it idle.
  const int64_t fit = tile.tiles_x == 1 && tile.tiles_y == 1 ? std::min<int64_t>(pixels / (tile.rows * tile.columns), plan.step_w) : 1;
  plan.classes_x = ceil_div(plan.step_w, fit);
  plan.group = static_cast<int>(ceil_div(plan.step_w, plan.classes_x));
  plan.columns *= plan.group;
}

SeparablePlan plan_separable(const SeparableForward& p, FloatProducts products, const Device& device) {
  const ConvGeometry& g = p.g;
  const int64_t e = element_bytes(p.dtype), middle = g.out_channels();
  SeparablePlan plan{};
  plan.producer = choose_producer(p);
  plan.products = products;
  plan.smooth = smooth_activation(p.input_activation) || smooth_activation(p.depthwise_activation) || smooth_activation(p.pointwise_activation);
  plan.vectors = p.o % 8 == 0 && aligned(p.out.data, 16) && aligned(p.residual.data, 16);
  plan.pack = middle * e % 16 != 0 || !aligned(p.pointwise_weight, 16);
  plan.weight_pitch = plan.pack ? round_up(middle, 16 / e) : middle;
  plan.workspace_bytes = plan.pack ? static_cast<size_t>(p.o * plan.weight_pitch * e) : 0;

  const auto try_form = [&](TileForm form) {
    plan.form = form;
    place_tiles(p, tile_shape(form).pixels, plan);
    const Memory memory = choose_chunk(p, plan, device.shared_per_block);
    plan.chunk = static_cast<int>(memory.chunk), plan.shared_bytes = memory.bytes;
    return static_cast<int64_t>(memory.bytes);
  };
  const auto tiles = [&] { return g.n * plan.classes_y * plan.classes_x * plan.tiles_y * plan.tiles_x; };

  bool chosen = false;
  if (plan.producer == Producer::ring_pixels && g.kh == 3 && e == 2) {
    const bool fits = try_form(TileForm::pair) <= device.shared_per_multiprocessor / 2 - kReserved;
    const int64_t across = tiles() * ceil_div(p.o, 128);
    chosen = fits && across >= device.multiprocessors;
    if (!chosen && across < device.multiprocessors) chosen = try_form(TileForm::small) <= device.shared_per_block;
    if (!chosen) chosen = try_form(TileForm::wide) <= device.shared_per_block;
  }
  const bool many_registers = (plan.producer == Producer::ring_pixels && e == 4) || (plan.producer != Producer::taps && g.kh > 3);
  if (!chosen) try_form(many_registers ? TileForm::slim : TileForm::plain);

  // Output channels are split, and their depthwise part computed again, only where too few blocks would leave multiprocessors idle.
  const int64_t wanted = std::clamp<int64_t>(device.multiprocessors / std::max<int64_t>(tiles(), 1), 1, ceil_div(p.o, tile_shape(plan.form).channels));
  plan.split = static_cast<int>(round_up(ceil_div(p.o, wanted), tile_shape(plan.form).channels));
  plan.splits = ceil_div(p.o, plan.split);
  plan.blocks = tiles() * plan.splits;
  const int64_t vectors = plan.chunk / (plan.producer == Producer::ring_planes ? 4 : 2);
  plan.unit_rows = plan_unit_rows(
      plan.rows, vectors * (plan.producer == Producer::ring_pixels ? plan.columns / 4 : plan.columns), static_cast<int>(g.kh - 1), tile_shape(plan.form).threads);
  return plan;
}

}  // namespace fastconv::cuda
