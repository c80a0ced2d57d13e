// Cases of the fused backward pass's pointwise half: dz, dweight and dbias against float64.
#include <cmath>
#include <vector>

#include "cuda/separable_backward_launch.h"
#include "separable_case.h"

namespace {

using namespace driver;
using namespace fastconv;

void run(const Case& c) {
  SeparableCase s(c);
  const ConvGeometry& g = s.g;
  const int64_t middle = g.out_channels();
  Map grad(s.t, s.layout, g.n, s.o, g.oh, g.ow, c.number("offset", 0)), z2(s.t, s.layout, s.pointwise == Activation::identity ? 0 : g.n, s.o, g.oh, g.ow);
  Map dz(s.t, s.layout, g.n, middle, g.oh, g.ow, c.number("offset", 0));
  grad.fill(s.random);
  z2.fill(s.random, 4.0);
  const bool want_dz = c.number("dz", 1), want_weight = c.number("dweight", 1), want_bias = c.number("dbias", 1);
  Vector dweight(s.t, want_weight ? s.o * middle : 0), dbias(s.t, want_bias ? s.o : 0);

  SeparableBackward p{};
  p.f = s.forward(Map(s.t, s.layout, 0, s.o, g.oh, g.ow));
  p.grad = grad.view();
  if (z2.n) p.pointwise_z = z2.view();
  if (want_dz) p.dz1 = dz.mutable_view();
  const cuda::SeparableBackwardPlan plan = cuda::plan_separable_backward(p, want_weight, want_bias, cuda::float_products(s.tf32), device_of(c));
  Memory workspace(plan.weight_bytes + plan.partial_bytes, 0);
  cuda::launch_separable_backward(p, plan, dweight.data(), dbias.data(), workspace.data(), nullptr);

  // Both factors of a product are rounded, so is its result; what follows is a sum of `terms` such products.
  const std::vector<double> z1 = s.depthwise_sums();
  const double step = s.product_roundoff() * 2 + 0x1p-18;
  std::vector<double> sum(s.o * middle), size(s.o * middle), bias(s.o), bias_size(s.o);
  Comparison result;
  for (int64_t n = 0; n < g.n; ++n)
    for (int64_t y = 0; y < g.oh; ++y)
      for (int64_t x = 0; x < g.ow; ++x) {
        std::vector<double> g2(s.o);
        for (int64_t k = 0; k < s.o; ++k) {
          g2[k] = grad.get(n, k, y, x) * (z2.n ? derivative(s.pointwise, z2.get(n, k, y, x)) : 1.0);
          bias[k] += g2[k], bias_size[k] += std::fabs(g2[k]);
        }
        for (int64_t m = 0; m < middle; ++m) {
          const int64_t at = s.at(n, m, y, x);
          const double value = activate(s.depthwise, z1[at]);
          double back = 0, magnitude = 0;
          for (int64_t k = 0; k < s.o; ++k) {
            const double term = g2[k] * s.pointwise_weight.get(k * middle + m);
            back += term, magnitude += term * term;
            sum[k * middle + m] += g2[k] * value, size[k * middle + m] += g2[k] * g2[k] * (value * value + 0.1);
          }
          // The kernel takes the derivative at z rounded to the dtype; a kink may lie between.
          const bool kink = (derivative_from_output(s.depthwise) && (std::fabs(z1[at]) < 1e-3 || std::fabs(z1[at] - 6) < 0.05)) ||
                            (s.depthwise == Activation::hardswish && std::fabs(std::fabs(z1[at]) - 3) < 0.02);
          if (want_dz && !kink)
            result.near("dz", at, dz.get(n, m, y, x), back * derivative(s.depthwise, z1[at]), (std::sqrt(magnitude) * 4 + std::fabs(back)) * step * 2 + 1e-6, step);
        }
      }
  for (int64_t i = 0; want_weight && i < s.o * middle; ++i)
    result.near("dweight", i, dweight.get(i), sum[i], std::sqrt(size[i]) * 4 * step + 1e-6, step);
  for (int64_t k = 0; want_bias && k < s.o; ++k) result.near("dbias", k, dbias.get(k), bias[k], bias_size[k] * step + 1e-6, step);
  finish(result);
  s.require_rounding(result);
}

}  // namespace

int main(int argc, char** argv) { return driver::main_loop(argc, argv, run); }
