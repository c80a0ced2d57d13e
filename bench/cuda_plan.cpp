// Prints plan and predicted time of the fused CUDA forward pass for shapes on standard input, "n c o h w k d layout" a line: what
// bench/cuda_separable_static.py asks.
#include <cstdint>
#include <iostream>
#include <string>

#include "common/cost_separable.h"

using namespace fastconv;

int main() {
  // Addresses decide about vectors: as torch allocates, aligned.
  void* const aligned = reinterpret_cast<void*>(uint64_t(1) << 20);
  int64_t n, c, o, h, w, k, d;
  std::string layout;
  while (std::cin >> n >> c >> o >> h >> w >> k >> d >> layout) {
    const bool contiguous = layout == "contiguous";
    const int64_t pad = d * (k - 1) / 2;
    SeparableForward p{};
    p.g = {n, c, h, w, 1, k, k, 1, 1, d, d, pad, pad, pad, pad, h, w};
    p.o = o, p.dtype = DType::bf16, p.layout = contiguous ? Layout::contiguous : Layout::channels_last;
    p.x = contiguous ? MapView{aligned, c * h * w, h * w, w, 1} : MapView{aligned, c * h * w, 1, w * c, c};
    p.depthwise_weight = p.pointwise_weight = aligned, p.out.data = aligned;
    const cuda::Device device;
    const cuda::Rates rates;
    const cuda::SeparablePlan plan = cuda::plan_separable(p, cuda::FloatProducts::full, device);
    const cuda::SeparableTime t = cuda::separable_time(p, plan, device, rates);
    const char separator = '|';
    std::cout << cuda::tile_form_name(plan.form);
    for (const int64_t i : {int64_t(plan.rows), int64_t(plan.columns), int64_t(plan.unit_rows), int64_t(plan.chunk), plan.splits, int64_t(plan.shared_bytes), int64_t(t.resident)})
      std::cout << separator << i;
    for (const double f : {t.waves, t.bytes, t.pixel_bytes + t.weight_bytes, t.instructions, t.flops, t.shared_traffic, t.block_seconds, t.seconds, cuda::floor_seconds(p, cuda::FloatProducts::full, rates)})
      std::cout << separator << f;
    std::cout << separator << t.bound << '\n';
  }
}
