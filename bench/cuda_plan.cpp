// Prints the plan of the fused CUDA forward pass for shapes on standard input, "n c o h w k d layout" a line: what bench/cuda_separable_static.py asks.
// bf16, aligned, stride 1, padding that keeps the size, an H200.
#include <iostream>
#include <string>

#include "common/plan_separable.h"

int main() {
  using namespace fastconv;
  int64_t n, c, o, h, w, k, d;
  std::string layout;
  while (std::cin >> n >> c >> o >> h >> w >> k >> d >> layout) {
    SeparableForward p{};
    const int64_t pad = d * (k - 1) / 2;
    p.g = {n, c, h, w, 1, k, k, 1, 1, d, d, pad, pad, pad, pad, h, w};
    p.o = o, p.dtype = DType::bf16, p.layout = layout == "contiguous" ? Layout::contiguous : Layout::channels_last;
    const cuda::SeparablePlan plan = cuda::plan_separable(p, cuda::FloatProducts::full, cuda::Device{});
    const cuda::TileShape tile = cuda::tile_shape(plan.form);
    static const char* const forms[] = {"pair", "wide", "small", "plain", "slim"};
    std::cout << forms[static_cast<int>(plan.form)] << ' ' << tile.pixels << ' ' << tile.channels << ' ' << tile.threads << ' ' << plan.rows << ' ' << plan.columns
              << ' ' << plan.unit_rows << ' ' << plan.chunk << ' ' << plan.split << ' ' << plan.splits << ' ' << plan.blocks << ' ' << plan.shared_bytes << '\n';
  }
}
