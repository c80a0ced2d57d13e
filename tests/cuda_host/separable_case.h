// What the programs of the fused kernels share: operands of a case, its reference in float64, the plan.
#pragma once
#include <cmath>
#include <string>
#include <vector>

#include "common/plan_separable.h"
#include "conv_case.h"
#include "cuda/separable_launch.h"
#include "device_case.h"
#include "driver.h"

namespace driver {

constexpr const char* kProducers[] = {"pixels", "planes", "taps"};

inline std::string form_name(const fastconv::cuda::SeparablePlan& p) {
  return std::string(kProducers[static_cast<int>(p.producer)]) + "_" + fastconv::cuda::tile_form_name(p.form);
}

// The planner's own choice, or what the case asks for by `form`, `columns`, `unit_rows`, `splits`.
inline fastconv::cuda::SeparablePlan plan_of(const Case& c, const fastconv::SeparableForward& p, fastconv::cuda::FloatProducts products) {
  using namespace fastconv::cuda;
  const std::string form = c.word("form", "");
  if (form.empty()) return plan_separable(p, products, device_of(c));
  for (const TileForm f : kTileForms) {
    const TileChoice choice{choose_producer(p), f, static_cast<int>(c.number("columns", 0)), static_cast<int>(c.number("unit_rows", 0)), c.number("splits", 1)};
    const SeparablePlan plan = plan_separable_as(p, products, device_of(c), choice);
    if (plan.blocks && form_name(plan) == form) return plan;
  }
  require(false, "no plan of the form " + form);
  return {};
}

struct SeparableCase {
  fastconv::ConvGeometry g;
  int64_t o;
  DType t;
  Layout layout;
  Activation input, depthwise, pointwise;
  bool tf32;
  Random random;
  Map x, residual;
  Vector depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias;

  explicit SeparableCase(const Case& c)
      : g(conv_geometry(c)),
        o(c.number("o")),
        t(c.dtype()),
        layout(c.layout()),
        input(c.activation("input")),
        depthwise(c.activation("depthwise")),
        pointwise(c.activation("pointwise")),
        tf32(c.number("tf32", 0)),
        random(static_cast<uint64_t>(c.number("seed", 1))),
        x(t, layout, g.n, g.c, g.h, g.w, c.number("offset", 0), image_stride(c)),
        residual(t, layout, c.number("residual", 0) ? g.n : 0, o, g.oh, g.ow, c.number("offset", 0)),
        depthwise_weight(t, g.out_channels() * g.taps()),
        depthwise_bias(t, c.number("bias", 1) ? g.out_channels() : 0),
        pointwise_weight(t, o * g.out_channels(), c.number("weight_offset", 0)),
        pointwise_bias(t, c.number("bias", 1) ? o : 0) {
    x.fill(random);
    residual.fill(random);
    depthwise_weight.fill(random, 1.0 / std::sqrt(static_cast<double>(g.taps())));
    depthwise_bias.fill(random);
    pointwise_weight.fill(random, 1.0 / std::sqrt(static_cast<double>(g.out_channels())));
    pointwise_bias.fill(random);
  }

  fastconv::SeparableForward forward(const Map& out) const {
    return {g, o, t, layout, input, depthwise, pointwise, x.view(), depthwise_weight.data(), depthwise_bias.data(), pointwise_weight.data(), pointwise_bias.data(),
            residual.n ? residual.view() : fastconv::MapView{nullptr, 0, 0, 0, 0}, out.mutable_view()};
  }

  // Half a unit in the last place of the products' operands.
  double product_roundoff() const { return tf32 && t == DType::f32 ? 0x1p-11 : unit_roundoff(t); }

  // TF32 that was asked for and not taken would pass every comparison.
  void require_rounding(const Comparison& result) const {
    if (tf32 && t == DType::f32 && result.count > 0) require(result.relative_l2() > 0x1p-16, "products were not rounded to TF32");
  }

  int64_t at(int64_t n, int64_t c, int64_t y, int64_t x) const { return ((n * g.out_channels() + c) * g.oh + y) * g.ow + x; }

  // The depthwise sums, before their activation.
  std::vector<double> depthwise_sums() const {
    std::vector<double> z(g.n * g.out_channels() * g.oh * g.ow);
    for (int64_t n = 0; n < g.n; ++n)
      for (int64_t c = 0; c < g.out_channels(); ++c)
        for (int64_t y = 0; y < g.oh; ++y)
          for (int64_t v = 0; v < g.ow; ++v) {
            double sum = depthwise_bias.get_or_zero(depthwise_bias.length ? c : 0);
            for (int64_t ky = 0; ky < g.kh; ++ky)
              for (int64_t kx = 0; kx < g.kw; ++kx)
                sum += depthwise_weight.get(c * g.taps() + ky * g.kw + kx) *
                       activate(input, x.get_or_zero(n, c / g.multiplier, y * g.sh - g.pt + ky * g.dh, v * g.sw - g.pl + kx * g.dw));
            z[at(n, c, y, v)] = sum;
          }
    return z;
  }
  std::vector<double> middle() const {
    std::vector<double> m = depthwise_sums();
    for (double& v : m) v = activate(depthwise, v);
    return m;
  }
  double pre_activation(const std::vector<double>& m, int64_t n, int64_t k, int64_t y, int64_t v, double* magnitude) const {
    double sum = pointwise_bias.get_or_zero(pointwise_bias.length ? k : 0) + (residual.n ? residual.get(n, k, y, v) : 0.0);
    for (int64_t c = 0; c < g.out_channels(); ++c) {
      const double term = pointwise_weight.get(k * g.out_channels() + c) * m[at(n, c, y, v)];
      sum += term, *magnitude += term * term;
    }
    *magnitude = std::sqrt(*magnitude) * 4 + std::fabs(sum);
    return sum;
  }
};

}  // namespace driver
