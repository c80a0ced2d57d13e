// The fused backward kernels for any kernel size, stride and depth multiplier, in either layout.
#include "separable_backward_arguments.cuh"

namespace fastconv::cuda {

void launch_separable_backward_taps(const SeparableBackward& p, const SeparableBackwardPlan& plan, const SeparableBackwardWork& work, Stream stream) {
  with_math(p.f.dtype, plan.f.products, [&](auto math) {
    using M = decltype(math);
    if (p.f.layout == Layout::channels_last) {
      launch_pointwise_half<M, Layout::channels_last, AnyTaps<Layout::channels_last>::template Of>(p, plan, work, stream);
    } else {
      launch_pointwise_half<M, Layout::contiguous, AnyTaps<Layout::contiguous>::template Of>(p, plan, work, stream);
    }
  });
}

}  // namespace fastconv::cuda
