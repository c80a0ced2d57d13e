#include "plan_separable_time.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "widest_vector.h"

namespace fastconv::cuda {
namespace {

// Instructions of a lane that are neither march nor product, counted in the compiled code: finding its tile and pixels and starting the sums, less where
// biases wait in shared memory; starting a unit of the march, more where it may be of another tile; finishing a result, without and with a clamp.
constexpr double kPrologue = 200, kPersistentPrologue = 110, kUnitStart = 150, kPersistentUnitStart = 240, kPlainResult = 3.5, kClampedResult = 6;
constexpr double kLanes = 32;

// One block's two phases, of one tile where blocks are persistent: what they ask for, and how long they take where nothing else runs.
struct Phases {
  double pixel_bytes, march, product_instructions, shared_traffic, flops, weight_bytes;
  double load_seconds, march_seconds, product_seconds;
};

// TF32 runs at half the rate of 16 bits, full-precision products of float32 on the ordinary units.
double product_rate(const SeparableForward& p, FloatProducts products, const Rates& rates) {
  if (p.dtype != DType::f32) return rates.product;
  return products == FloatProducts::tf32 ? rates.product / 2 : 2 * rates.issue * 0.7;
}

Phases block_phases(const SeparableForward& p, const SeparablePlan& plan, const Device& device, const Rates& rates) {
  const ConvGeometry& g = p.g;
  const TileShape t = tile_shape(plan.form);
  const bool stays = persistent(plan.form);
  const double e = double(element_bytes(p.dtype)), k = double(g.kh), clock = rates.issue / (device.multiprocessors * 128.0);
  const double warps = double(t.threads) / kLanes - (stays ? march_warps(plan.form) : 0);  // those that multiply
  // Those that march: a slot is being multiplied.
  const double marching = stays ? std::min<double>(plan.marchers, (plan.slots - 1) * double(plan.units / plan.unit_vectors)) : warps;
  const double middle = double(g.out_channels()), chunks = double(ceil_div(g.out_channels(), plan.chunk)), o_tiles = double(ceil_div(std::min<int64_t>(plan.split, p.o), t.channels));
  const double passes = chunks > 1 ? o_tiles : 1;  // how often the depthwise part is computed
  const double warp_issue = std::min(kWarpIssue, kSchedulers / warps) * clock;  // instructions a second of each warp, the block alone
  Phases b{};

  double in_flight = 0, computed = double(plan.rows) * plan.columns * middle * passes;
  if (plan.producer == Producer::ring_pixels) {
    // Columns between neighbouring warps are loaded by both. Rows above a strip continue sums that are not finished: for K = 3 only in part.
    const int stride = static_cast<int>(g.sh);
    const double strips = double(ceil_div(plan.rows, plan.unit_rows)), across = plan.units / strips, columns = ring_columns(static_cast<int>(k), stride);
    const double head = stride == 2 ? 0.5 : k == 3 ? 1.3 : k - 1;
    b.pixel_bytes = passes * across / double(plan.unit_vectors) * middle * e * columns * (plan.rows * stride + strips * (k - stride));
    const double row = 8 * march_instructions(static_cast<int>(k), stride), start = stays ? kPersistentUnitStart : kUnitStart, rounds = std::ceil(plan.units / marching);
    b.march = kLanes * passes * chunks * (across * (plan.rows + strips * head) * row + plan.units * start);
    // Warps of a block that stays go on with the next tile's units.
    b.march_seconds = stays ? b.march / kLanes / marching / warp_issue : passes * chunks * rounds * ((plan.unit_rows + head) * row + start) / warp_issue;
    in_flight = std::min<double>(marching, stays ? marching : plan.units) * (row_stages(t.row_stages, element_bytes(p.dtype)) - 1) * columns * 64 * e;
  } else {
    const double halo = double(plan.rows * g.sh + g.kh - g.sh) * double(plan.columns * g.sw + g.kw - g.sw) / (double(plan.rows * g.sh) * double(plan.columns * g.sw));
    b.pixel_bytes = passes * halo * double(plan.rows * g.sh) * double(plan.columns * g.sw) * double(g.c) * e;
    b.march = computed * (plan.producer == Producer::taps ? 3.5 * double(g.taps()) + 10 : 2.2 * double(g.taps()) + 13);
    b.march_seconds = b.march / kLanes / warps / warp_issue;
    // A row ahead of a thread's four channels, or a tap of its two.
    in_flight = t.threads * (plan.producer == Producer::taps ? 2 : 4 * k) * e;
  }
  b.load_seconds = rates.latency * std::max(1.0, b.pixel_bytes / in_flight);

  // A warp's step of 32 bytes: m row fragments by 32 columns, four products each, a matrix load for each and two more.
  const double m = double(t.pixels) * t.channels / (warps * 512), steps = std::ceil(middle * e / 32) * o_tiles, step_products = m * 16 * 32 * 32 / e;
  b.flops = 2 * steps * warps * step_products;
  b.product_instructions = kLanes * warps * (steps * (m * 5 + 5) + (stays ? kPersistentPrologue : kPrologue)) +
      double(plan.rows) * plan.columns * double(std::min<int64_t>(plan.split, p.o)) * (p.pointwise_activation == Activation::identity ? kPlainResult : kClampedResult);
  const double product_traffic = steps * warps * (m * 16 + 32) * 32;
  // The ring is written and read, the tile written, then read by the product.
  b.shared_traffic = product_traffic + computed * e + (plan.producer == Producer::ring_pixels ? 2 * b.pixel_bytes : 0);
  b.weight_bytes = o_tiles * t.channels * middle * e;
  const double weights_in_flight = double(std::max(t.weight_stages - 1, 1)) * t.channels * 128;
  const double rate = product_rate(p, plan.products, rates);
  b.product_seconds = std::max({b.flops * device.multiprocessors / rate, product_traffic * device.multiprocessors / rates.issue, b.product_instructions / kLanes / warps / warp_issue});
  if (!stays) b.product_seconds = std::max(b.product_seconds, b.weight_bytes / weights_in_flight * rates.second_level_latency) + rates.second_level_latency;
  return b;
}

}  // namespace

SeparableTime separable_time(const SeparableForward& p, const SeparablePlan& plan, const Device& device, const Rates& rates) {
  constexpr int kReserved = 1024;
  const ConvGeometry& g = p.g;
  const Phases b = block_phases(p, plan, device, rates);
  const bool stays = persistent(plan.form);
  const double e = double(element_bytes(p.dtype)), blocks = double(plan.blocks), tiles = double(plan.tiles * plan.splits), pixels = double(g.n) * double(g.oh) * double(g.ow);
  const double out_bytes = e * pixels * double(p.o) * (p.residual.data ? 2 : 1);
  SeparableTime time{};
  time.resident = std::clamp(static_cast<int>(device.shared_per_multiprocessor / (plan.shared_bytes + kReserved)), 1, tile_blocks(plan.form, static_cast<int>(g.kh)));
  time.bytes = e * double(g.n) * double(g.c) * double(g.h) * double(g.w) + out_bytes + e * double(g.out_channels()) * double(p.o + g.taps());
  time.pixel_bytes = tiles * b.pixel_bytes + out_bytes, time.weight_bytes = blocks * b.weight_bytes;
  time.shared_traffic = tiles * b.shared_traffic, time.instructions = tiles * (b.march + b.product_instructions), time.flops = tiles * b.flops;
  const double places = double(device.multiprocessors) * time.resident, busy = device.multiprocessors * std::min(1.0, blocks / device.multiprocessors);
  time.waves = blocks / places;

  // What blocks that run side by side ask of each unit, and what one takes by itself.
  struct Part {
    const char* name;
    double seconds;
  };
  const auto by_seconds = [](const Part& x, const Part& y) { return x.seconds < y.seconds; };
  const double running = std::min(blocks, places), share = running / blocks, units = rates.issue * busy / device.multiprocessors;
  const Part together[] = {{"memory bandwidth", time.bytes * share / rates.copy},
                           {"L2 bandwidth", (time.pixel_bytes + time.weight_bytes) * share / rates.second_level},
                           {"instructions", time.instructions * share / units},
                           {"feeding tensor cores", time.shared_traffic * share / units},
                           {p.dtype == DType::f32 && plan.products == FloatProducts::full ? "multiply-adds of the product" : "tensor cores", time.flops * share / (product_rate(p, plan.products, rates) * busy / device.multiprocessors)}};
  const Part alone[] = {{"bytes in flight", b.load_seconds}, {"instructions of the march", b.march_seconds}, {"the product of one block", b.product_seconds}};
  if (stays) {
    // March and product of neighbouring tiles overlap; the first slab waits for its pixels and for the weights, the last tile is multiplied alone.
    const double each = std::ceil(tiles / blocks), before = rates.latency + std::max(b.march_seconds, time.weight_bytes / rates.second_level);
    const Part alone[] = {{"bytes in flight", each * b.load_seconds}, {"instructions of the march", each * b.march_seconds}, {"the product of one block", each * b.product_seconds}};
    const Part& longest = std::max(*std::max_element(std::begin(together), std::end(together), by_seconds), *std::max_element(std::begin(alone), std::end(alone), by_seconds), by_seconds);
    time.block_seconds = time.seconds = before + longest.seconds + b.product_seconds;
    time.bound = longest.name;
    return time;
  }
  const Part& most = *std::max_element(std::begin(together), std::end(together), by_seconds);
  const double one = rates.latency + std::max(b.load_seconds - rates.latency, b.march_seconds) + b.product_seconds;
  const double whole = std::floor(time.waves), rest = time.waves - whole, wave = std::max(most.seconds, one);
  // The last, partly filled wave takes as long as a block at least.
  time.seconds = time.waves < 1 ? wave : whole * wave + (rest > 1e-9 ? std::max(one, rest * most.seconds) : 0);
  time.block_seconds = one;
  time.bound = most.seconds >= one ? most.name : std::max_element(std::begin(alone), std::end(alone), by_seconds)->name;
  return time;
}

}  // namespace fastconv::cuda
