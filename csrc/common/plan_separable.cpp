#include "plan_separable.h"

#include <algorithm>
#include <iterator>

#include "plan_measured.h"
#include "plan_separable_time.h"
#include "remembered.h"
#include "widest_vector.h"

namespace fastconv::cuda {
namespace {

constexpr int64_t kSlabBytes = 128, kStepBytes = 32, kScratchBytes = 8 * sizeof(float);
// A block cannot have these bytes of a multiprocessor's shared memory: the system's share.
constexpr int64_t kReserved = 1024;

bool aligned(const void* p, int64_t bytes) { return address(p) % static_cast<uint64_t>(bytes) == 0; }

bool any_smooth(const SeparableForward& p) {
  return smooth_activation(p.input_activation) || smooth_activation(p.depthwise_activation) || smooth_activation(p.pointwise_activation);
}

struct Memory {
  int64_t chunk;  // channels
  size_t bytes;
};

// Shared memory of a block, as its kernel carves it.
size_t block_bytes(const SeparableForward& p, const SeparablePlan& plan, int64_t chunk) {
  const TileShape t = tile_shape(plan.form);
  const int64_t e = element_bytes(p.dtype), slab = kSlabBytes / e;
  const int rows = plan.producer == Producer::ring_pixels ? row_ring_bytes(march_warps(plan.form), row_stages(t.row_stages, e), static_cast<int>(p.g.kh), static_cast<int>(p.g.sh), static_cast<int>(e)) : 0;
  size_t bytes = ceil_div(chunk, slab) * t.pixels * kSlabBytes + ring_bytes(t.weight_stages * t.channels * kSlabBytes, rows, t.resident) + t.pixels * sizeof(int64_t);
  if (p.layout == Layout::contiguous) bytes += t.threads * 16 * sizeof(float);
  if (staged_weights(p, plan.producer))
    bytes += static_cast<size_t>(round_up((chunk + 4) * p.g.taps() * sizeof(float), 16));
  if (plan.smooth) bytes += t.threads * kScratchBytes;
  return bytes;
}

// All channels, or where the tile allows chunks the most whole slabs that fit.
Memory choose_chunk(const SeparableForward& p, const SeparablePlan& plan, int64_t budget) {
  const bool warps = plan.producer == Producer::ring_pixels;
  const int64_t e = element_bytes(p.dtype), slab = warps ? unit_channels(plan.producer) : kSlabBytes / e, middle = p.g.out_channels();
  int64_t chunk = round_up(middle, warps ? slab : kStepBytes / e);
  if (!tile_shape(plan.form).resident) {
    while (static_cast<int64_t>(block_bytes(p, plan, chunk)) > budget && chunk > slab) chunk = round_up(chunk, slab) - slab;
    // Chunks of equal size.
    if (chunk < middle) chunk = round_up(ceil_div(middle, ceil_div(middle, chunk)), slab);
  }
  return {chunk, block_bytes(p, plan, chunk)};
}

// Slots for slabs of depthwise results, two named barriers each, of which a block has sixteen; warps that march, the same ones every time for a slot, one for
// each unit of a slab at least. A slot is being multiplied: the choice keeps most warps marching beside it.
void place_slots(const SeparableForward& p, const Device& device, SeparablePlan& plan) {
  constexpr int kMostSlots = 7;
  const TileShape t = tile_shape(plan.form);
  const int64_t slot = t.pixels * kSlabBytes, warps = march_warps(plan.form), rows = row_ring_bytes(static_cast<int>(warps), t.row_stages, 3, 1, 2);
  const int64_t rest = weight_steps(p) * t.channels * kStepBytes + rows + 2 * t.pixels * int64_t(sizeof(int64_t)) + t.channels * int64_t(sizeof(float)) + (plan.smooth ? t.threads * kScratchBytes : 0);
  const int64_t fit = std::min<int64_t>(kMostSlots, (device.shared_per_block - rest) / slot), of_slab = plan.units / plan.unit_vectors;
  int64_t most = 0;
  for (int64_t slots = 2; slots <= fit; ++slots)
    for (int64_t marchers = of_slab; marchers <= warps; ++marchers) {
      const int64_t beside = std::min(marchers, (slots - 1) * of_slab);
      if (slots * of_slab % marchers != 0 || beside < most) continue;
      most = beside, plan.slots = static_cast<int>(slots), plan.marchers = static_cast<int>(marchers);
    }
  plan.shared_bytes = static_cast<size_t>(rest + plan.slots * slot);
}

}  // namespace

Producer choose_producer(const SeparableForward& p) {
  const ConvGeometry& g = p.g;
  const bool square = g.multiplier == 1 && g.kh == g.kw && g.sh == g.sw, ring = square && g.sh == 1 && (g.kh == 3 || g.kh == 5 || g.kh == 7);
  const int64_t e = element_bytes(p.dtype);
  if (p.layout == Layout::channels_last) {
    const auto whole = [&](int64_t elements) { return elements * e % 16 == 0; };
    const bool rows = whole(g.c) && whole(p.x.sn) && whole(p.x.sh) && whole(p.x.sw) && aligned(p.x.data, 16) && aligned(p.depthwise_weight, 4) &&
        aligned(p.depthwise_bias, 2 * e);
    const bool strided = square && g.sh == 2 && g.kh == 3 && g.dh == 1 && g.dw == 1;
    return rows && (strided || ring) ? Producer::ring_pixels : Producer::taps;
  }
  return ring && g.c % 4 == 0 ? Producer::ring_planes : Producer::taps;
}

TilePlan plan_tile(int64_t h, int64_t w, int64_t halo_h, int64_t halo_w, int pixels, int multiple, int only) {
  TilePlan best{};
  double least = 0;
  for (int64_t columns = only ? only : multiple; columns <= (only ? only : pixels); columns += multiple) {
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

void place_tiles(const SeparableForward& p, int pixels, SeparablePlan& plan, int columns) {
  const ConvGeometry& g = p.g;
  // Contiguous columns stay neighbours: classes of rows only.
  const bool unit_stride = g.sh == 1 && g.sw == 1;
  plan.step_h = unit_stride ? std::min(g.dh, g.oh) : 1;
  plan.step_w = unit_stride && p.layout == Layout::channels_last ? std::min(g.dw, g.ow) : 1;
  plan.classes_y = plan.step_h;
  const TilePlan tile = plan_tile(
      ceil_div(g.oh, plan.step_h), ceil_div(g.ow, plan.step_w), g.kh - 1, plan.step_w == g.dw ? g.kw - 1 : g.dw * (g.kw - 1), pixels,
      plan.producer == Producer::ring_pixels ? 4 : 1, columns);
  if (tile.rows == 0) return;
  plan.rows = tile.rows, plan.columns = tile.columns, plan.tiles_y = tile.tiles_y, plan.tiles_x = tile.tiles_x;
  // A class smaller than the tile would leave the rest of it idle.
  const int64_t fit = tile.tiles_x == 1 && tile.tiles_y == 1 ? std::min<int64_t>(pixels / (tile.rows * tile.columns), plan.step_w) : 1;
  plan.classes_x = ceil_div(plan.step_w, fit);
  plan.group = static_cast<int>(ceil_div(plan.step_w, plan.classes_x));
  plan.columns *= plan.group;
  plan.tiles = g.n * plan.classes_y * plan.classes_x * plan.tiles_y * plan.tiles_x;
}

void plan_units(const SeparableForward& p, int threads, SeparablePlan& plan, int unit_rows) {
  const bool warps = plan.producer == Producer::ring_pixels;
  plan.unit_vectors = ceil_div(plan.chunk, unit_channels(plan.producer));
  const int64_t across = plan.unit_vectors * (warps ? plan.columns / 4 : plan.columns);
  plan.unit_rows = unit_rows ? std::min(unit_rows, plan.rows) : plan_unit_rows(plan.rows, across, static_cast<int>(p.g.kh - 1), warps ? threads / 32 : threads);
  plan.units = static_cast<int>(across * ceil_div(plan.rows, plan.unit_rows));
}

SeparablePlan plan_separable_as(const SeparableForward& p, FloatProducts products, const Device& device, const TileChoice& choice) {
  const ConvGeometry& g = p.g;
  const TileShape shape = tile_shape(choice.form);
  const int64_t e = element_bytes(p.dtype), middle = g.out_channels();
  SeparablePlan plan{};
  plan.producer = choice.producer, plan.form = choice.form, plan.products = products;
  plan.smooth = any_smooth(p);
  plan.vectors = p.o % 8 == 0 && aligned(p.out.data, 16) && aligned(p.residual.data, 16);
  plan.pack = middle * e % 16 != 0 || !aligned(p.pointwise_weight, 16);
  plan.weight_pitch = plan.pack ? round_up(middle, 16 / e) : middle;
  plan.workspace_bytes = plan.pack ? static_cast<size_t>(p.o * plan.weight_pitch * e) : 0;
  const bool stays = persistent(choice.form);
  if (stays && (choice.producer != Producer::ring_pixels || g.kh != 3 || g.sh != 1 || e != 2 || p.o > shape.channels)) return SeparablePlan{};
  const Memory memory = stays ? Memory{round_up(middle, unit_channels(choice.producer)), 0} : choose_chunk(p, plan, device.shared_per_block);
  if (static_cast<int64_t>(memory.bytes) > device.shared_per_block) return SeparablePlan{};
  place_tiles(p, shape.pixels, plan, choice.columns);
  if (plan.rows == 0) return SeparablePlan{};
  plan.chunk = static_cast<int>(memory.chunk), plan.shared_bytes = memory.bytes;
  plan.split = static_cast<int>(round_up(std::max<int64_t>(ceil_div(p.o, std::max<int64_t>(choice.splits, 1)), 1), shape.channels));
  plan.splits = ceil_div(p.o, plan.split);
  plan.blocks = plan.tiles * plan.splits;
  plan_units(p, march_warps(choice.form) * 32, plan, choice.unit_rows);
  if (stays) {
    place_slots(p, device, plan);
    if (plan.slots == 0) return SeparablePlan{};
    plan.blocks = std::min<int64_t>(plan.tiles, device.multiprocessors);
  }
  return plan;
}

namespace {

// Of all forms, or of the one that is named; no splits where that cannot serve the layer.
TileChoice choose_tile(const SeparableForward& p, FloatProducts products, const Device& device, const std::string& only) {
  // For K = 3; strides have the first three of them, products in full precision what needs fewer registers.
  static constexpr TileForm kPixelForms[] = {TileForm::pair, TileForm::tall, TileForm::small, TileForm::wide, TileForm::persistent, TileForm::persistent_narrow};
  static constexpr TileForm kFullForms[] = {TileForm::small, TileForm::slim};
  static constexpr int kStridedForms = 3;
  Rates rates;  // an H200's, for as many multiprocessors: only the order of the candidates is asked
  for (double* rate : {&rates.copy, &rates.second_level, &rates.issue, &rates.product}) *rate *= device.multiprocessors / double(Device{}.multiprocessors);

  TileChoice best{};
  double least = 0;
  const auto consider = [&](const TileChoice& choice) {
    const SeparablePlan plan = plan_separable_as(p, products, device, choice);
    // More splits come to the same where whole tiles of channels are dealt out.
    if (plan.blocks == 0 || plan.splits != choice.splits) return;
    const double seconds = separable_time(p, plan, device, rates).seconds;
    if (best.splits == 0 || seconds < least) least = seconds, best = choice;
  };
  const auto consider_form = [&](Producer producer, TileForm form) {
    if (!only.empty() && only != tile_form_name(form)) return;
    const TileShape shape = tile_shape(form);
    const SeparablePlan whole = plan_separable_as(p, products, device, {producer, form, 0, 0, 1});
    // Output channels are split where few tiles leave multiprocessors idle.
    const int64_t most_splits = whole.blocks == 0 ? 0 : std::clamp<int64_t>(4 * device.multiprocessors / whole.blocks, 1, std::max<int64_t>(ceil_div(p.o, shape.channels), 1));
    for (int64_t splits = 1; splits <= most_splits; ++splits) {
      if (producer != Producer::ring_pixels) {
        consider({producer, form, 0, 0, splits});
        continue;
      }
      for (int columns = 4; columns <= shape.pixels / 2; columns += 4)
        for (int parts = 1; parts <= 4; ++parts)
          consider({producer, form, columns, static_cast<int>(ceil_div(std::min<int64_t>(shape.pixels / columns, ceil_div(p.g.oh, whole.step_h)), parts)), splits});
    }
  };
  const Producer producer = choose_producer(p);
  const bool full = p.dtype == DType::f32 && products == FloatProducts::full;
  if (producer == Producer::ring_pixels && p.g.kh == 3 && full) {
    for (const TileForm form : kFullForms) consider_form(producer, form);
  } else if (producer == Producer::ring_pixels && p.g.kh == 3) {
    for (int i = 0; i < (p.g.sh == 1 ? static_cast<int>(std::size(kPixelForms)) : kStridedForms); ++i) consider_form(producer, kPixelForms[i]);
  } else if (producer != Producer::taps) {
    // They need more registers.
    const bool slim = producer == Producer::ring_pixels || p.g.kh > 3 || (p.dtype == DType::f32 && !full);
    consider_form(producer, slim ? TileForm::slim : TileForm::plain);
  }
  if (best.splits == 0) consider_form(Producer::taps, TileForm::plain);
  return best;
}

}  // namespace

SeparablePlan plan_separable(const SeparableForward& p, FloatProducts products, const Device& device) {
  static Remembered<TileChoice, 12> chosen;
  const int64_t rest[] = {p.o, static_cast<int64_t>(p.dtype), static_cast<int64_t>(p.layout), static_cast<int64_t>(products), static_cast<int64_t>(choose_producer(p)), any_smooth(p),
                          p.residual.data != nullptr, device.multiprocessors, device.shared_per_block, device.shared_per_multiprocessor, device.table, measured_version()};
  const TileChoice choice = chosen.of(p.g, rest, [&] {
    // A table may name a tile, or that the layer is fused by whichever is best; and a layer of the class may have an alignment that the named one does not take.
    const TileChoice named = choose_tile(p, products, device, measured_tile(device.table, p));
    return named.splits == 0 ? choose_tile(p, products, device, {}) : named;
  });
  return plan_separable_as(p, products, device, choice);
}

}  // namespace fastconv::cuda
