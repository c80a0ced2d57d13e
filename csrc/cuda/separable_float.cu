// The fused forward kernels for channels_last maps of float32 that a ring of running sums serves.
#include "separable_pixels.cuh"

namespace fastconv::cuda {

void launch_separable_pixels_float(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream) {
  if (plan.products == FloatProducts::tf32) return launch_pixels<MathTf32>(p, plan, weight, stream);
  launch_pixels<MathFloat>(p, plan, weight, stream);
}

}  // namespace fastconv::cuda
