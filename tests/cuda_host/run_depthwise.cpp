// Cases of the depthwise forward: the geometry of conv_case.h, dtype layout bias act input_act [offset] [far] [form: the plan that must be chosen].
#include <cmath>
#include <vector>

#include "conv_case.h"
#include "cuda/launch.h"
#include "device_case.h"

namespace {

using namespace driver;
using namespace fastconv;

void run(const Case& c) {
  const ConvGeometry g = conv_geometry(c);
  const DType t = c.dtype();
  const Layout layout = c.layout();
  const int64_t offset = c.number("offset", 0), far = image_stride(c);
  const Activation act = c.activation("act"), input_act = c.activation("input_act");
  Random random(static_cast<uint64_t>(c.number("seed", 1)));
  Map x(t, layout, g.n, g.c, g.h, g.w, offset, far), out(t, layout, g.n, g.out_channels(), g.oh, g.ow, offset, far);
  Vector weight(t, g.out_channels() * g.taps()), bias(t, c.number("bias", 1) ? g.out_channels() : 0);
  x.fill(random), weight.fill(random), bias.fill(random);

  const DepthwiseForward p{g, t, layout, input_act, act, x.view(), weight.data(), bias.data(), out.mutable_view()};
  const cuda::DepthwisePlan plan = cuda::plan_depthwise(p, device_of(c));
  const std::string form = cuda::depthwise_form_name(plan.form);
  require(c.word("form", form) == form, "the plan chose " + form);
  cuda::launch_depthwise(p, plan, nullptr);

  Comparison result;
  int64_t i = 0;
  for (int64_t n = 0; n < g.n; ++n)
    for (int64_t k = 0; k < g.out_channels(); ++k)
      for (int64_t y = 0; y < g.oh; ++y)
        for (int64_t px = 0; px < g.ow; ++px, ++i) {
          double sum = bias.get_or_zero(k), magnitude = std::fabs(sum);
          for (int64_t ky = 0; ky < g.kh; ++ky)
            for (int64_t kx = 0; kx < g.kw; ++kx) {
              const double v = activate(input_act, x.get_or_zero(n, k / g.multiplier, y * g.sh - g.pt + ky * g.dh, px * g.sw - g.pl + kx * g.dw));
              const double term = v * weight.get((k * g.kh + ky) * g.kw + kx);
              sum += term, magnitude += std::fabs(term);
            }
          // One rounding of the result; fp32 sums, and an activation whose slope stays below 1.13.
          result.near("out", i, out.get(n, k, y, px), activate(act, sum), magnitude * 0x1p-20 + least_step(t), unit_roundoff(t) * 1.01 + 0x1p-21);
        }
  finish(result);
}

}  // namespace

int main(int argc, char** argv) { return driver::main_loop(argc, argv, run); }
