// The fused backward kernels for contiguous maps that a ring of running sums serves.
#include "separable_backward_arguments.cuh"

namespace fastconv::cuda {

void launch_separable_backward_planes(const SeparableBackward& p, const SeparableBackwardPlan& plan, const SeparableBackwardWork& work, Stream stream) {
  with_math(p.f.dtype, plan.f.products, [&](auto math) {
    using M = decltype(math);
    if (p.f.g.kh == 5) return launch_pointwise_half<M, Layout::contiguous, PlaneRing<5>::Of>(p, plan, work, stream);
    if (p.f.g.kh == 7) return launch_pointwise_half<M, Layout::contiguous, PlaneRing<7>::Of>(p, plan, work, stream);
    launch_pointwise_half<M, Layout::contiguous, PlaneRing<3>::Of>(p, plan, work, stream);
  });
}

}  // namespace fastconv::cuda
