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

// Full-precision products of float32 run on the ordinary units; TF32 at half the rate of 16 bits.
double product_rate(DType dtype, FloatProducts products, double rate, const Rates& rates) {
  if (dtype != DType::f32) return rate;
  return products == FloatProducts::tf32 ? rate / 2 : 2 * rates.issue * 0.7;
}

}  // namespace

std::vector<Cost> cost_separable(const SeparableForward& p, FloatProducts products, const Device& device, const Rates& rates) {
  const ConvGeometry& g = p.g;
  const SeparablePlan plan = plan_separable(p, products, device);
  const TileShape tile = tile_shape(plan.form);
  const Sizes s(p);
  static const char* const producers[] = {"strips of channels_last", "strips of planes", "taps"};
  Cost c;
  c.kernel = "separable";
  c.tile = std::to_string(tile.pixels) + " pixels x " + std::to_string(tile.channels) + " channels, tiles of " + std::to_string(plan.rows) + " x " +
      std::to_string(plan.columns) + ", " + (plan.chunk >= g.out_channels() ? "all input channels resident" : "chunks of " + std::to_string(plan.chunk) + " channels") +
      ", depthwise part by " + producers[static_cast<int>(plan.producer)];
  c.blocks = plan.blocks, c.threads = tile.threads, c.shared_bytes = plan.shared_bytes;
  c.registers = plan.form == TileForm::slim ? (g.kh == 7 ? 208 : 168) : plan.form == TileForm::small ? 104 : 128;
  // Every block reads its pixels with their halo, and the weights of its output channels.
  const double tiles = double(plan.blocks) / double(plan.splits);
  const double halo = double(plan.rows * g.sh + g.kh - g.sh) * double(plan.columns * g.sw + g.kw - g.sw) / (double(plan.rows * g.sh) * double(plan.columns * g.sw));
  const double computed = tiles * tile.pixels * s.middle * double(plan.splits);  // depthwise values, those of a tile's unused pixels included
  c.bytes = s.in_bytes + s.out_bytes + s.weight_bytes;
  c.second_level_bytes = s.in_bytes * halo * double(plan.splits) + s.out_bytes, c.product_bytes = tiles * s.weight_bytes;
  const double k2 = double(g.taps());
  const double march = plan.producer == Producer::taps ? 3.5 * k2 + 10 : plan.producer == Producer::ring_planes ? 2.2 * k2 + 13 : 1.35 * k2 + 6;
  const double multiplied = tiles * tile.pixels * s.middle * double(round_up(p.o, tile.channels)) * 2;
  // A warp's mma is 4096 products and takes two more instructions around it.
  c.instructions = computed * march + multiplied / 4096 * 32 * 3 + s.out_bytes / s.e * 6;
  c.flops = multiplied * rates.product / product_rate(p.dtype, products, rates.product, rates);
  // What mma.sync reads through ldmatrix, and the tile written once.
  c.shared_traffic = computed * s.e + multiplied / 2 * 0.094;
  // A row ahead of each thread: four columns of two channels that nobody else loads.
  const double in_flight = tile.threads * 8.0 * s.e;
  finish_cost(c, in_flight, true, device, rates);
  // With one block on a multiprocessor, nothing is multiplied while the depthwise part is computed.
  if (c.resident == 1) finish_cost(c, in_flight, false, device, rates);
  return {c};
}

std::vector<Cost> cost_unfused(const SeparableForward& p, const Device& device, const Rates& rates) {
  const Sizes s(p);
  DepthwiseForward d{p.g, p.dtype, p.layout, p.input_activation, p.depthwise_activation, p.x, p.depthwise_weight, p.depthwise_bias, p.out};
  std::vector<Cost> steps = cost_depthwise(d, device, rates);
  Cost c;
  c.kernel = "matrix product of the library", c.tile = "its own";
  c.threads = 384, c.registers = 168, c.resident = 1, c.shared_bytes = 0;
  c.blocks = static_cast<int64_t>(s.pixels / 128 + 1) * ceil_div(p.o, 256), c.waves = double(c.blocks) / device.multiprocessors;
  c.bytes = s.e * s.pixels * s.middle + s.out_bytes + s.weight_bytes, c.second_level_bytes = c.bytes, c.flops = s.flops();
  const double rate = p.dtype == DType::f32 ? rates.library_product / 2 : rates.library_product;
  const double memory = c.bytes / rates.copy, product = c.flops / (rate * std::min(1.0, c.waves));
  c.seconds = std::max(memory, product) + rates.launch, c.bound = product > memory ? "tensor cores" : "memory bandwidth";
  steps.push_back(c);
  return steps;
}

double floor_seconds(const SeparableForward& p, const Rates& rates) {
  const Sizes s(p);
  const double rate = p.dtype == DType::f32 ? rates.library_product / 2 : rates.library_product;
  return std::max((s.in_bytes + s.out_bytes + s.weight_bytes) / rates.copy, s.flops() / rate);
}

}  // namespace fastconv::cuda
