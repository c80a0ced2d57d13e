// The fused forward kernels for any kernel size, stride and depth multiplier, in either layout.
#include "separable_arguments.cuh"

namespace fastconv::cuda {

void launch_separable_taps(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream) {
  with_math(p.dtype, plan.products, [&](auto math) {
    using M = decltype(math);
    if (p.layout == Layout::channels_last) {
      launch_forward<M, Layout::channels_last, AnyTaps<Layout::channels_last>::template Of, PlainTile>(p, plan, weight, stream);
    } else {
      launch_forward<M, Layout::contiguous, AnyTaps<Layout::contiguous>::template Of, PlainTile>(p, plan, weight, stream);
    }
  });
}

}  // namespace fastconv::cuda
