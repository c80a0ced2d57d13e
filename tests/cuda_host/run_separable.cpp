// Cases of the fused forward pass: geometry, dtype, layout, activations; `multiprocessors` and `shared` describe the device that is planned for.
#include <cmath>
#include <vector>

#include "separable_case.h"

namespace {

using namespace driver;
using namespace fastconv;

void run(const Case& c) {
  const SeparableCase s(c);
  Map out(s.t, s.layout, s.g.n, s.o, s.g.oh, s.g.ow, c.number("offset", 0));
  const SeparableForward p = s.forward(out);
  const cuda::SeparablePlan plan = plan_of(c, p, cuda::float_products(s.tf32));
  Memory workspace(plan.workspace_bytes, 0);
  cuda::launch_separable(p, plan, workspace.data(), nullptr);

  // The depthwise sum and the product round once each; the product's error grows with the square root of its terms.
  const std::vector<double> middle = s.middle();
  const double step = s.product_roundoff();
  Comparison result;
  int64_t i = 0;
  for (int64_t n = 0; n < s.g.n; ++n)
    for (int64_t k = 0; k < s.o; ++k)
      for (int64_t y = 0; y < s.g.oh; ++y)
        for (int64_t x = 0; x < s.g.ow; ++x, ++i) {
          double magnitude = 0;
          const double z = s.pre_activation(middle, n, k, y, x, &magnitude);
          result.near("out", i, out.get(n, k, y, x), activate(s.pointwise, z), magnitude * (step + 0x1p-20) + 1e-6, unit_roundoff(s.t) * 2);
        }
  finish(result);
  s.require_rounding(result);
}

}  // namespace

int main(int argc, char** argv) { return driver::main_loop(argc, argv, run); }
