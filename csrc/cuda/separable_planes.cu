// The fused forward kernels for contiguous maps that a ring of running sums serves.
#include <type_traits>

#include "separable_arguments.cuh"

namespace fastconv::cuda {

void launch_separable_planes(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream) {
  with_math(p.dtype, plan.products, [&](auto math) {
    using M = decltype(math);
    if (p.g.kh == 5) return launch_forward<M, Layout::contiguous, PlaneRing<5>::Of, SlimTile<5>>(p, plan, weight, stream);
    if (p.g.kh == 7) return launch_forward<M, Layout::contiguous, PlaneRing<7>::Of, SlimTile<7>>(p, plan, weight, stream);
    using Tile = std::conditional_t<std::is_same_v<M, MathTf32>, SlimTile<3>, PlainTile>;
    launch_forward<M, Layout::contiguous, PlaneRing<3>::Of, Tile>(p, plan, weight, stream);
  });
}

}  // namespace fastconv::cuda
