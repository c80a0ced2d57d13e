#include "cost_separable.h"

#include <algorithm>

#include "widest_vector.h"

namespace fastconv::cuda {
namespace {

struct Sizes {
  double e, pixels, middle, out_channels, in_bytes, out_bytes, weight_bytes;

  explicit Sizes(const SeparableForward& p)
      : e(double(element_bytes(p.dtype))),
        pixels(double(p.g.n) * double(p.g.oh) * double(p.g.ow)),
        middle(double(p.g.out_channels())),
        out_channels(double(p.o)),
        in_bytes(e * double(p.g.n) * double(p.g.c) * double(p.g.h) * double(p.g.w)),
        out_bytes(e * pixels * out_channels * (p.residual.data ? 2 : 1)),
        weight_bytes(e * (middle * out_channels + middle * double(p.g.taps()))) {}
  double flops() const { return 2 * pixels * middle * out_channels; }
};

// Of the vendor's library: TF32 runs at half the rate of 16 bits, float32 in full at most of what the ordinary units multiply.
double library_rate(const SeparableForward& p, FloatProducts products, const Rates& rates) {
  constexpr double kOfOrdinaryUnits = 0.85;
  if (p.dtype != DType::f32) return rates.library_product;
  return products == FloatProducts::tf32 ? rates.library_product / 2 : 2 * rates.issue * kOfOrdinaryUnits;
}

}  // namespace

std::vector<Cost> cost_separable(const SeparableForward& p, FloatProducts products, const Device& device, const Rates& rates) {
  const SeparablePlan plan = plan_separable(p, products, device);
  const TileShape tile = tile_shape(plan.form);
  const SeparableTime time = separable_time(p, plan, device, rates);
  static const char* const producers[] = {"strips of channels_last", "strips of planes", "taps"};
  Cost c;
  c.kernel = "separable";
  c.tile = std::string(tile_form_name(plan.form)) + ": " + std::to_string(tile.pixels) + " pixels x " + std::to_string(tile.channels) + " channels, tiles of " + std::to_string(plan.rows) + " x " +
      std::to_string(plan.columns) + ", " + (persistent(plan.form) ? "all pointwise weights resident, " + std::to_string(plan.slots) + " slots"
       : plan.chunk >= p.g.out_channels() ? "all input channels resident" : "chunks of " + std::to_string(plan.chunk) + " channels") +
      (plan.splits > 1 ? ", output channels in " + std::to_string(plan.splits) + " parts" : "") + ", depthwise part by " + producers[static_cast<int>(plan.producer)];
  c.blocks = plan.blocks, c.threads = tile.threads, c.shared_bytes = plan.shared_bytes, c.resident = time.resident, c.waves = time.waves;
  c.registers = 65536 / (tile.threads * tile_blocks(plan.form, static_cast<int>(p.g.kh))) / 8 * 8;
  c.bytes = time.bytes, c.second_level_bytes = time.pixel_bytes, c.product_bytes = time.weight_bytes, c.shared_traffic = time.shared_traffic;
  c.instructions = time.instructions, c.flops = time.flops;
  c.seconds = time.seconds + rates.launch, c.bound = time.bound;
  return {c};
}

std::vector<Cost> cost_unfused(const SeparableForward& p, FloatProducts products, const Device& device, const Rates& rates) {
  const Sizes s(p);
  DepthwiseForward d{p.g, p.dtype, p.layout, p.input_activation, p.depthwise_activation, p.x, p.depthwise_weight, p.depthwise_bias, p.out};
  std::vector<Cost> steps = cost_depthwise(d, device, rates);
  Cost c;
  c.kernel = "matrix product of the library", c.tile = "its own";
  c.threads = 384, c.registers = 168, c.resident = 1, c.shared_bytes = 0;
  c.blocks = static_cast<int64_t>(s.pixels / 128 + 1) * ceil_div(p.o, 256), c.waves = double(c.blocks) / device.multiprocessors;
  c.bytes = s.e * s.pixels * s.middle + s.out_bytes + s.weight_bytes, c.second_level_bytes = c.bytes, c.flops = s.flops();
  const double memory = c.bytes / rates.copy, product = c.flops / (library_rate(p, products, rates) * std::min(1.0, c.waves));
  const char* unit = p.dtype == DType::f32 && products == FloatProducts::full ? "instructions" : "tensor cores";
  c.seconds = std::max(memory, product) + rates.launch, c.bound = product > memory ? unit : "memory bandwidth";
  steps.push_back(c);
  return steps;
}

double floor_seconds(const SeparableForward& p, FloatProducts products, const Rates& rates) {
  const Sizes s(p);
  return std::max((s.in_bytes + s.out_bytes + s.weight_bytes) / rates.copy, s.flops() / library_rate(p, products, rates));
}

}  // namespace fastconv::cuda
