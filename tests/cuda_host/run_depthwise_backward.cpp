// Cases of the depthwise backward: the geometry of conv_case.h, dtype layout input_act want (all, dx, dw) [offset] [far] [form], and the gate of an
// activation (op=gate elements act).
#include <cmath>
#include <cstring>
#include <vector>

#include "conv_case.h"
#include "cuda/launch.h"
#include "device_case.h"

namespace {

using namespace driver;
using namespace fastconv;

void run_gate(const Case& c) {
  const DType t = c.dtype();
  const int64_t elements = c.number("elements"), offset = c.number("offset", 0);
  const Activation act = c.activation("act");
  Random random(static_cast<uint64_t>(c.number("seed", 1)));
  Vector grad(t, elements, offset), z(t, elements), dz(t, elements);
  grad.fill(random), z.fill(random, 3);
  cuda::launch_activation_gate(grad.data(), z.data(), dz.data(), elements, t, act, cuda::Device{}, nullptr);
  Comparison result;
  for (int64_t i = 0; i < elements; ++i) {
    const double expected = grad.get(i) * derivative(act, z.get(i));
    result.near("dz", i, dz.get(i), expected, std::fabs(grad.get(i)) * 0x1p-20 + least_step(t), unit_roundoff(t) * 1.01);
  }
  finish(result);
}

void run(const Case& c) {
  if (c.word("op", "") == "gate") return run_gate(c);
  const ConvGeometry g = conv_geometry(c);
  const DType t = c.dtype();
  const Layout layout = c.layout();
  const int64_t offset = c.number("offset", 0), far = image_stride(c), channels = g.out_channels();
  const Activation input_act = c.activation("input_act");
  const std::string want = c.word("want", "all");
  const bool want_dx = want != "dw", want_dw = want != "dx";
  Random random(static_cast<uint64_t>(c.number("seed", 1)));
  Map x(t, layout, g.n, g.c, g.h, g.w, offset, far), dx(t, layout, g.n, g.c, g.h, g.w, offset, far);
  Map grad(t, layout, g.n, channels, g.oh, g.ow, offset, far);
  Vector weight(t, channels * g.taps()), dw(t, want_dw ? channels * g.taps() : 0), db(t, want_dw ? channels : 0);
  x.fill(random), grad.fill(random), weight.fill(random);

  DepthwiseBackward p{g, t, layout, input_act, x.view(), grad.view(), weight.data(), dx.mutable_view(), nullptr, nullptr};
  if (!want_dx) p.dx.data = nullptr;
  const cuda::DepthwiseBackwardPlan plan = cuda::plan_depthwise_backward(p, want_dw, device_of(c));
  static const char* const forms[] = {"pixels", "pixels_twice", "bands", "forward", "elements"};
  const std::string form = forms[static_cast<int>(plan.form)];
  require(c.word("form", form) == form, "the plan chose " + form);
  Memory partials(plan.partial_bytes, 0);
  const cuda::WeightGradients gradients{dw.data(), db.data(), reinterpret_cast<float*>(partials.data())};
  cuda::launch_depthwise_backward(p, gradients, plan, nullptr);

  std::vector<double> exact_dx(x.size()), size_dx(x.size()), exact_dw(channels * g.taps()), size_dw(exact_dw.size()), exact_db(channels), size_db(channels);
  for (int64_t n = 0; n < g.n; ++n)
    for (int64_t k = 0; k < channels; ++k)
      for (int64_t oy = 0; oy < g.oh; ++oy)
        for (int64_t ox = 0; ox < g.ow; ++ox) {
          const double v = grad.get(n, k, oy, ox);
          exact_db[k] += v, size_db[k] += std::fabs(v);
          for (int64_t ky = 0; ky < g.kh; ++ky)
            for (int64_t kx = 0; kx < g.kw; ++kx) {
              const int64_t iy = oy * g.sh - g.pt + ky * g.dh, ix = ox * g.sw - g.pl + kx * g.dw, tap = (k * g.kh + ky) * g.kw + kx;
              if (iy < 0 || iy >= g.h || ix < 0 || ix >= g.w) continue;
              const double before = x.get(n, k / g.multiplier, iy, ix), to_w = v * activate(input_act, before);
              exact_dw[tap] += to_w, size_dw[tap] += std::fabs(to_w);
              const double to_x = v * weight.get(tap) * derivative(input_act, before);
              const int64_t at = ((n * g.c + k / g.multiplier) * g.h + iy) * g.w + ix;
              exact_dx[at] += to_x, size_dx[at] += std::fabs(v * weight.get(tap));
            }
        }
  // One rounding of each result, fp32 sums.
  Comparison result;
  const double once = unit_roundoff(t) * 1.01;
  int64_t i = 0;
  for (int64_t n = 0; want_dx && n < g.n; ++n)
    for (int64_t k = 0; k < g.c; ++k)
      for (int64_t y = 0; y < g.h; ++y)
        for (int64_t px = 0; px < g.w; ++px, ++i) result.near("dx", i, dx.get(n, k, y, px), exact_dx[i], size_dx[i] * 0x1p-19 + least_step(t), once);
  for (int64_t j = 0; j < dw.length; ++j) result.near("dw", j, dw.get(j), exact_dw[j], size_dw[j] * 0x1p-19 + least_step(t), once);
  for (int64_t j = 0; j < db.length; ++j) result.near("db", j, db.get(j), exact_db[j], size_db[j] * 0x1p-19 + least_step(t), once);
  finish(result);

  // The same bits whatever the order in which threads ran.
  if (!want_dw || far) return;
  Vector again(t, dw.length), again_db(t, db.length);
  std::memset(partials.data(), 0xff, plan.partial_bytes);
  cuda::launch_depthwise_backward(p, {again.data(), again_db.data(), gradients.partials}, plan, nullptr);
  const size_t bytes = static_cast<size_t>(dw.length * element_bytes(t));
  require(!std::memcmp(again.data(), dw.data(), bytes), "dw differs from run to run");
  require(!std::memcmp(again_db.data(), db.data(), static_cast<size_t>(db.length * element_bytes(t))), "db differs from run to run");
}

}  // namespace

int main(int argc, char** argv) { return driver::main_loop(argc, argv, run); }
