#include "cost.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "widest_vector.h"

namespace fastconv::cuda {
namespace {

const Compiled& compiled(const char* kernel, int64_t size) {
  for (const Compiled& c : compiled_kernels())
    if (!std::strcmp(c.kernel, kernel) && c.size == size) return c;
  static const Compiled unknown{"", 0, 0, 255};
  return unknown;
}

double elements(const ConvGeometry& g) { return double(g.n) * double(g.out_channels()) * double(g.oh) * double(g.ow); }

Cost launch_of(const char* kernel, int64_t size, int64_t blocks, int threads, size_t shared_bytes) {
  Cost c;
  const Compiled& code = compiled(kernel, size);
  c.kernel = kernel, c.blocks = blocks, c.threads = threads, c.shared_bytes = shared_bytes, c.registers = code.registers;
  return c;
}

std::string text(const char* what, int64_t n) { return std::to_string(n) + " " + what; }

}  // namespace

const std::vector<Compiled>& compiled_kernels() {
  static const std::vector<Compiled> all{
      {"depthwise_pixels", 3, 18.6, 128},
      {"depthwise_pixels", 5, 41, 216},
      {"depthwise_pixels", 7, 68.5, 232},
      {"depthwise_bands", 3, 28, 64},
      {"depthwise_bands", 5, 55, 64},
      {"depthwise_bands", 7, 85, 128},
      {"depthwise_backward_pixels", 3, 30.6, 255},
      {"depthwise_backward_pixels", 5, 77, 255},
      {"depthwise_backward_pixels", 7, 0, 255},
      {"depthwise_backward_bands", 3, 51, 80},
      {"depthwise_backward_bands", 5, 99, 128},
      {"depthwise_backward_bands", 7, 150, 184},
      {"depthwise_vectors", 0, 0, 64},
      {"depthwise_elements", 0, 0, 40},
      {"depthwise_dx_elements", 0, 0, 48},
      {"depthwise_dw_elements", 0, 0, 64},
      {"sum_partials", 0, 0, 40},
  };
  return all;
}

void finish_cost(Cost& c, double in_flight, bool overlapped, const Device& device, const Rates& rates) {
  constexpr int kRegisters = 65536, kBlocks = 32, kReserved = 1024;
  const int registers = (c.registers + 7) / 8 * 8;
  c.resident = std::max(1, std::min({kRegisters / (registers * c.threads), device.threads_per_multiprocessor / c.threads, kBlocks,
                                     static_cast<int>(device.shared_per_multiprocessor / (c.shared_bytes + kReserved))}));
  const double places = double(device.multiprocessors) * c.resident;
  c.waves = double(c.blocks) / places;
  // Blocks that run at a time, and the turns of the last, unfilled wave.
  const double running = std::min(double(c.blocks), places), turns = c.waves > 1 ? std::ceil(c.waves) / c.waves : 1;
  const double busy = std::min(1.0, double(c.blocks) / device.multiprocessors);
  const double warps = running / (device.multiprocessors * busy) * c.threads / 32 / kSchedulers;
  const double memory = c.bytes / std::min(rates.copy, running * in_flight / rates.latency);
  const double second_level = (c.second_level_bytes + (overlapped ? c.product_bytes : 0)) / rates.second_level;
  const double issue = c.instructions / (rates.issue * busy * std::min(1.0, warps * kWarpIssue));
  const double product = std::max({c.flops / (rates.product * busy), c.shared_traffic / (rates.issue * busy), overlapped ? 0 : c.product_bytes / rates.second_level});
  const double loading = std::max({memory, second_level, issue});
  const double work = overlapped ? std::max(loading, product) : loading + product;
  const char* busiest = issue >= loading ? "instructions" : second_level >= loading ? "L2 bandwidth" :
      rates.copy > running * in_flight / rates.latency ? "bytes in flight" : "memory bandwidth";
  c.bound = product >= loading ? (c.flops / (rates.product * busy) >= product ? "tensor cores" : "feeding tensor cores") : busiest;
  c.seconds = work * turns + rates.launch;
}

namespace {

Cost cost_of(const DepthwiseForward& p, const DepthwisePlan& plan, const Device& device, const Rates& rates) {
  const ConvGeometry& g = p.g;
  const double e = double(element_bytes(p.dtype)), out = elements(g), in = double(g.n) * double(g.c) * double(g.h) * double(g.w), taps = double(g.taps());
  const int k = static_cast<int>(g.kh);
  Cost c;
  double in_flight = 0;
  switch (plan.form) {
    case DepthwiseForm::pixels: {
      c = launch_of("depthwise_pixels", k, plan.blocks, plan.threads, plan.shared_bytes);
      const double columns = depthwise_columns(k), rows = plan.strips.rows;
      c.tile = text("channels x ", depthwise_channels(k)) + text("columns a thread, strips of ", depthwise_columns(k)) + text("rows", plan.strips.rows);
      c.second_level_bytes = e * (in * (columns + k - 1) / columns * (rows + k - 1) / rows + out);
      // The rows above a strip are marched through as the others are.
      c.instructions = out * (rows + k - 1) / rows * compiled("depthwise_pixels", k).instructions;
      in_flight = double(kDepthwiseStages - 1) * columns * depthwise_channels(k) * e * plan.threads;
      break;
    }
    case DepthwiseForm::bands: {
      c = launch_of("depthwise_bands", k, plan.blocks, plan.threads, plan.shared_bytes);
      const BandPlan& b = plan.band;
      c.tile = text("bands a block, ", b.items_per_block) + text("rows of ", b.rows) + text("columns each", b.columns);
      const double staged = double(b.items) * b.input_rows * std::min<double>(b.pitch_bytes, double(g.w) * e + 16);
      c.second_level_bytes = staged + e * out;
      c.instructions = out * compiled("depthwise_bands", k).instructions + staged / 16 * 20;
      in_flight = double(plan.shared_bytes);
      break;
    }
    case DepthwiseForm::vectors:
      // Per tap: a load and an address for sixteen bytes, a conversion and a product for each element, weights by fours.
      c = launch_of("depthwise_vectors", 0, plan.blocks, plan.threads, plan.shared_bytes);
      c.tile = text("channels of one position a thread", int64_t(16 / e));
      c.second_level_bytes = e * (std::min(out * taps, 3 * in) + out);
      c.instructions = out * (taps * 3.5 + 6);
      in_flight = 16.0 * plan.threads;
      break;
    case DepthwiseForm::elements:
      c = launch_of("depthwise_elements", 0, plan.blocks, plan.threads, 0);
      c.tile = "one element a thread";
      c.second_level_bytes = e * (std::min(out * taps, 3 * in) + out);
      c.instructions = out * (taps * 12 + 40);
      in_flight = e * plan.threads;
      break;
  }
  c.bytes = e * (in + out);
  finish_cost(c, in_flight, true, device, rates);
  return c;
}

}  // namespace

std::vector<Cost> cost_depthwise(const DepthwiseForward& p, const Device& device, const Rates& rates) { return {cost_of(p, plan_depthwise(p, device), device, rates)}; }

std::vector<Cost> cost_depthwise_backward(const DepthwiseBackward& p, bool wants_dw, const Device& device, const Rates& rates) {
  const ConvGeometry& g = p.g;
  const DepthwiseBackwardPlan plan = plan_depthwise_backward(p, wants_dw, device);
  const double e = double(element_bytes(p.dtype)), out = elements(g), in = double(g.n) * double(g.c) * double(g.h) * double(g.w), taps = double(g.taps());
  const bool wants_dx = p.dx.data != nullptr;
  const int k = static_cast<int>(g.kh);
  std::vector<Cost> steps;
  if (wants_dx && (plan.form == DepthwiseBackwardForm::forward || plan.form == DepthwiseBackwardForm::pixels_twice))
    steps.push_back(cost_of(turned(p), plan.turned, device, rates));
  const double partials = double(plan.partial_bytes);
  Cost c;
  switch (plan.form) {
    case DepthwiseBackwardForm::forward: return steps;
    case DepthwiseBackwardForm::pixels:
    case DepthwiseBackwardForm::pixels_twice: {
      const bool both = plan.form == DepthwiseBackwardForm::pixels;
      const double columns = depthwise_backward_columns(k), rows = plan.strips.rows;
      c = launch_of("depthwise_backward_pixels", k, plan.blocks, plan.threads, plan.shared_bytes);
      c.tile = text("channels x ", depthwise_backward_channels(k)) + text("columns a thread, strips of ", depthwise_backward_columns(k)) + text("rows", plan.strips.rows);
      c.bytes = e * (in * (both && wants_dx ? 2 : 1) + out) + partials;
      c.second_level_bytes = c.bytes + e * out * ((columns + k - 1) / columns * (rows + k - 1) / rows - 1);
      // The pass for dw alone (K = 7) does a product for each tap, and what the forward kernel does around them.
      c.instructions = in * (both ? compiled("depthwise_backward_pixels", k).instructions : taps + 20);
      finish_cost(c, double(kDepthwiseStages - 1) * 2 * columns * depthwise_backward_channels(k) * e * plan.threads, true, device, rates);
      break;
    }
    case DepthwiseBackwardForm::bands: {
      const BandPlan& b = plan.band;
      c = launch_of("depthwise_backward_bands", k, plan.blocks, plan.threads, plan.shared_bytes);
      c.tile = text("bands a block, ", b.items_per_block) + text("rows of ", b.rows) + text("columns each", b.columns);
      c.bytes = e * (in * (wants_dx ? 2 : 1) + out) + partials;
      const double staged = double(b.items) * (b.input_rows * std::min<double>(b.pitch_bytes, double(g.ow) * e + 16) + b.rows * double(b.own_pitch_bytes));
      c.second_level_bytes = staged + e * in + partials;
      c.instructions = in * compiled("depthwise_backward_bands", k).instructions + staged / 16 * 20;
      finish_cost(c, double(plan.shared_bytes), true, device, rates);
      break;
    }
    case DepthwiseBackwardForm::elements: {
      if (wants_dx) {
        Cost dx = launch_of("depthwise_dx_elements", 0, plan.rows.blocks, plan.threads, 0);
        dx.tile = "one element a thread";
        dx.bytes = e * (in + out), dx.second_level_bytes = e * (std::min(in * taps, 3 * out) + in);
        dx.instructions = in * (taps * 20 + 40);
        finish_cost(dx, e * plan.threads, true, device, rates);
        steps.push_back(dx);
      }
      if (!wants_dw) return steps;
      c = launch_of("depthwise_dw_elements", 0, plan.blocks, plan.threads, plan.shared_bytes);
      c.tile = text("channels a block, ", plan.lanes) + text("taps at a time", kDepthwiseTapsAtOnce);
      const double passes = double(ceil_div(g.taps() + 1, kDepthwiseTapsAtOnce));
      c.bytes = e * (in + out) + partials, c.second_level_bytes = e * (out * passes + std::min(out * taps, 3 * in * passes)) + partials;
      c.instructions = out * (taps * 12 + passes * 20);
      finish_cost(c, 4 * e * plan.threads, true, device, rates);
      break;
    }
  }
  steps.push_back(c);
  Cost sum = launch_of("sum_partials", 0, ceil_div(g.out_channels() * (g.taps() + 1), 32), 256, 256 * sizeof(float));
  sum.tile = "32 sums a block";
  // What has just been written is still in the cache.
  sum.second_level_bytes = partials, sum.instructions = partials / 4 * 4;
  finish_cost(sum, 32.0 * 256, true, device, rates);
  steps.push_back(sum);
  return steps;
}

double total_seconds(const std::vector<Cost>& steps) {
  double total = 0;
  for (const Cost& c : steps) total += c.seconds;
  return total;
}

}  // namespace fastconv::cuda
