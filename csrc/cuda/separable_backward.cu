// Launches the pointwise half of the fused backward pass; its kernels for channels_last maps that a ring of running sums serves are instances of
// separable_backward_kernel.cuh here.
#include "separable_backward_arguments.cuh"

namespace fastconv::cuda {

void launch_separable_backward_pixels(const SeparableBackward& p, const SeparableBackwardPlan& plan, const SeparableBackwardWork& work, Stream stream) {
  with_math(p.f.dtype, plan.f.products, [&](auto math) {
    using M = decltype(math);
    if (p.f.g.kh == 5) return launch_pointwise_half<M, Layout::channels_last, PixelRing<5>::Of>(p, plan, work, stream);
    if (p.f.g.kh == 7) return launch_pointwise_half<M, Layout::channels_last, PixelRing<7>::Of>(p, plan, work, stream);
    if (p.f.g.sh == 2) return launch_pointwise_half<M, Layout::channels_last, PixelRing<3, 2>::Of>(p, plan, work, stream);
    launch_pointwise_half<M, Layout::channels_last, PixelRing<3>::Of>(p, plan, work, stream);
  });
}

void launch_separable_backward(const SeparableBackward& p, const SeparableBackwardPlan& plan, void* dweight, void* dbias, void* workspace, Stream stream) {
  const int64_t middle = p.f.g.out_channels();
  float* partials = reinterpret_cast<float*>(static_cast<char*>(workspace) + plan.weight_bytes);
  const SeparableBackwardWork work{workspace, dweight ? partials : nullptr, dbias ? partials + (dweight ? plan.splits * p.f.o * middle : 0) : nullptr};
  if (p.dz1.data) launch_pack({p.f.pointwise_weight, workspace, 1, middle, middle, p.f.o, plan.weight_pitch}, p.f.dtype, stream);
  switch (plan.f.producer) {
    case Producer::ring_pixels: launch_separable_backward_pixels(p, plan, work, stream); break;
    case Producer::ring_planes: launch_separable_backward_planes(p, plan, work, stream); break;
    case Producer::taps: launch_separable_backward_taps(p, plan, work, stream); break;
  }
  with_dtype(p.f.dtype, [&](auto tag) {
    const auto reduce = [&](const float* from, void* to, int64_t count) {
      if (to) launch(reduce_partials<decltype(tag)>, Dim3(static_cast<unsigned>(ceil_div(count, 256))), Dim3(256), 0, stream, from, to, count, static_cast<int>(plan.splits));
    };
    reduce(work.dweight, dweight, p.f.o * middle);
    reduce(work.dbias, dbias, p.f.o);
  });
}

}  // namespace fastconv::cuda
