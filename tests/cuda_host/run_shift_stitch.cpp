// Cases of shift and stitch: op=shift|stitch n c h w sh sw dtype layout [offset] [seed].
#include "cuda/launch.h"
#include "driver.h"

namespace {

using namespace driver;
using namespace fastconv;

void run(const Case& c) {
  const int64_t n = c.number("n"), ch = c.number("c"), h = c.number("h"), w = c.number("w"), sh = c.number("sh"), sw = c.number("sw");
  const DType t = c.dtype();
  const Layout layout = c.layout();
  const int64_t fh = ceil_div(h, sh), fw = ceil_div(w, sw), offset = c.number("offset", 0);
  const bool to_fragments = c.word("op", "shift") == "shift";
  Random random(static_cast<uint64_t>(c.number("seed", 1)));
  Map dense(t, layout, n, ch, h, w, offset), fragments(t, layout, n * sh * sw, ch, fh, fw, offset);
  (to_fragments ? dense : fragments).fill(random);
  const double fill_value = -7.5;
  uint64_t fill = 0;
  double_to_element(t, fill_value, &fill);
  const Map& from = to_fragments ? dense : fragments;
  const Map& to = to_fragments ? fragments : dense;
  const ShiftStitch p{{ch, fh, fw, sh, sw, layout}, n, h, w, static_cast<int>(element_bytes(t)), from.data(), to.data(), fill};
  const cuda::CopyPlan plan = cuda::plan_copy(p);
  to_fragments ? cuda::launch_shift(p, plan, nullptr) : cuda::launch_stitch(p, plan, nullptr);
  Comparison result;
  int64_t i = 0;
  for (int64_t b = 0; b < n; ++b)
    for (int64_t oy = 0; oy < sh; ++oy)
      for (int64_t ox = 0; ox < sw; ++ox)
        for (int64_t k = 0; k < ch; ++k)
          for (int64_t u = 0; u < fh; ++u)
            for (int64_t v = 0; v < fw; ++v, ++i) {
              const int64_t y = oy + sh * u, x = ox + sw * v;
              const bool inside = y < h && x < w;
              const double fragment = fragments.get((b * sh + oy) * sw + ox, k, u, v);
              if (to_fragments) {
                result.equal("fragments", i, fragment, inside ? dense.get(b, k, y, x) : fill_value);
              } else if (inside) {
                result.equal("dense", i, dense.get(b, k, y, x), fragment);
              }
            }
  finish(result);
}

}  // namespace

int main(int argc, char** argv) { return driver::main_loop(argc, argv, run); }
