#include "cost_choice.h"

#include <cstdio>

#include "names.h"
#include "plan_measured.h"
#include "remembered.h"
#include "widest_vector.h"

namespace fastconv::cuda {
namespace {

// A prediction this much better pays for the memory that the intermediate takes and for the model's error.
constexpr double kWorthwhile = 0.9;

}  // namespace

Rates rates_of(const Device& device) {
  struct Kind {
    int capability, multiprocessors;
    Rates rates;
  };
  static const Kind kinds[] = {
      {80, 108, {1.8e12, 3.5e12, 108 * 128 * 1.41e9, 270e12, 240e12}},
      {90, 132, {4.3e12, 5.5e12, 29.6e12, 790e12, 600e12}},
  };
  const Kind& kind = kinds[device.capability >= 90];
  Rates r = kind.rates;
  for (double* rate : {&r.copy, &r.second_level, &r.issue, &r.library_product, &r.product}) *rate *= double(device.multiprocessors) / kind.multiprocessors;
  return r;
}

std::vector<Cost> cost_library(const SeparableForward& p, FloatProducts products, const Device& device, const Rates& rates) {
  std::vector<Cost> steps = cost_unfused(p, products, device, rates);
  const int passes = (p.pointwise_bias && !library_rows(p)) + (p.residual.data != nullptr) + (p.pointwise_activation != Activation::identity);
  if (passes == 0) return steps;
  Cost c;
  c.kernel = "elementwise passes of the library", c.tile = "its own", c.bound = "memory bandwidth";
  c.blocks = passes, c.threads = 128, c.registers = 32, c.resident = 1, c.waves = 1;
  c.bytes = passes * 2.0 * double(element_bytes(p.dtype)) * double(p.g.n * p.g.oh * p.g.ow) * double(p.o), c.second_level_bytes = c.bytes;
  c.seconds = c.bytes / rates.copy + passes * rates.launch;
  steps.push_back(c);
  return steps;
}

SeparableChoice weigh_separable(const SeparableForward& p, FloatProducts products, const Device& device, const Rates& rates) {
  SeparableChoice choice{};
  choice.fused_seconds = total_seconds(cost_separable(p, products, device, rates));
  choice.library_seconds = total_seconds(cost_library(p, products, device, rates));
  const std::string tile = measured_tile(device.table, p);
  choice.measured = !tile.empty();
  // The library reads torch's flags when it runs, and no operator argument: full products are promised by the fused kernel alone.
  const bool keeps_promise = p.dtype != DType::f32 || products == FloatProducts::tf32;
  choice.library = keeps_promise && (choice.measured ? tile == "library" : choice.library_seconds < kWorthwhile * choice.fused_seconds);
  return choice;
}

SeparableChoice choose_separable(const SeparableForward& p, FloatProducts products, const Device& device) {
  static Remembered<SeparableChoice, 14> chosen;
  const int64_t rest[] = {
      p.o, static_cast<int64_t>(p.dtype), static_cast<int64_t>(p.layout), static_cast<int64_t>(products), static_cast<int64_t>(choose_producer(p)),
      smooth_activation(p.input_activation), smooth_activation(p.depthwise_activation), static_cast<int64_t>(p.pointwise_activation), p.residual.data != nullptr,
      p.pointwise_bias != nullptr, device.multiprocessors, device.capability, device.table, measured_version()};
  return chosen.of(p.g, rest, [&] { return weigh_separable(p, products, device, rates_of(device)); });
}

std::string describe_choice(const SeparableForward& p, FloatProducts products, const SeparableChoice& choice) {
  const char* how = p.dtype != DType::f32 ? "" : products == FloatProducts::tf32 ? " multiplied in TF32" : " multiplied in full";
  char line[320];
  std::snprintf(
      line, sizeof line, "depthwise_separable_conv2d (%lld, %lld, %lld, %lld) -> %lld channels, %s%s, %s: %s, %s (predicted: fused %.1f us, through memory %.1f us)",
      static_cast<long long>(p.g.n), static_cast<long long>(p.g.c), static_cast<long long>(p.g.h), static_cast<long long>(p.g.w), static_cast<long long>(p.o),
      dtype_name(p.dtype), how, layout_name(p.layout),
      choice.library ? "the depthwise kernel and the library's product" : "the fused kernel", choice.measured ? "as measured" : "as predicted", 1e6 * choice.fused_seconds,
      1e6 * choice.library_seconds);
  return line;
}

}  // namespace fastconv::cuda
