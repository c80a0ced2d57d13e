// Problem and plan as the fused backward kernels take them.
#pragma once
#include "separable_arguments.cuh"
#include "separable_backward_kernel.cuh"
#include "separable_backward_launch.h"

namespace fastconv::cuda {

inline SeparableBackwardArgs backward_arguments(const SeparableBackward& p, const SeparableBackwardPlan& plan, const SeparableBackwardWork& work) {
  const int64_t e = element_bytes(p.f.dtype), middle = p.f.g.out_channels();
  return {
      SeparableArgs(p.f, plan.f, nullptr), p.grad.data, p.pointwise_z.data, p.grad.sn, p.grad.sc, p.grad.sh, p.grad.sw, plan.grad_vectors,
      ActivationArgs(p.f.depthwise_activation),
      {work.weight, plan.weight_pitch, static_cast<int>(middle), static_cast<int>(plan.weight_pitch * e)},
      p.dz1.data, p.dz1.sn, p.dz1.sc, p.dz1.sh, p.dz1.sw, plan.grad_chunk, work.dweight, work.dbias,
      static_cast<uint32_t>(plan.f.tiles), static_cast<uint32_t>(plan.split_tiles), FastDivision(plan.channel_tiles), FastDivision(plan.row_tiles)};
}

template <class M, Layout L, template <class, class> class ProducerOf>
void launch_pointwise_half(const SeparableBackward& p, const SeparableBackwardPlan& plan, const SeparableBackwardWork& work, Stream stream) {
  const SeparableBackwardArgs args = backward_arguments(p, plan, work);
  if (p.dz1.data) {
    SeparableBackwardArgs dz = args;
    dz.f.depthwise_activation = ActivationArgs(Activation::identity);  // what is produced is its input
    launch(separable_dz<M, L, ProducerOf>, Dim3(static_cast<unsigned>(plan.dz_blocks)), Dim3(kBackwardThreads), plan.dz_shared, stream, dz);
  }
  if (work.dweight || work.dbias) {
    SeparableBackwardArgs sums = args;
    sums.f.by_splits = FastDivision(1);
    launch(separable_dweight<M, L, ProducerOf>, Dim3(static_cast<unsigned>(plan.dweight_blocks)), Dim3(kBackwardThreads), plan.dweight_shared, stream, sums);
  }
}

}  // namespace fastconv::cuda
