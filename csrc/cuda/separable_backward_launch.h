// Launch functions of the fused backward pass's pointwise half.
#pragma once
#include "common/plan_separable_backward.h"

struct CUstream_st;

namespace fastconv::cuda {

using Stream = CUstream_st*;

// p.dz1, and the sums over pixels into `dweight` (O, C*M) and `dbias` (O), of the problem's dtype; null where not wanted. `workspace` has
// plan.weight_bytes + plan.partial_bytes. p's own dpointwise, dbias and dresidual are not used.
void launch_separable_backward(const SeparableBackward& p, const SeparableBackwardPlan& plan, void* dweight, void* dbias, void* workspace, Stream stream);

// What the files of instances are handed.
struct SeparableBackwardWork {
  const void* weight;  // transposed
  float *dweight, *dbias;  // partial sums
};
void launch_separable_backward_pixels(const SeparableBackward& p, const SeparableBackwardPlan& plan, const SeparableBackwardWork& work, Stream stream);
void launch_separable_backward_planes(const SeparableBackward& p, const SeparableBackwardPlan& plan, const SeparableBackwardWork& work, Stream stream);
void launch_separable_backward_taps(const SeparableBackward& p, const SeparableBackwardPlan& plan, const SeparableBackwardWork& work, Stream stream);

}  // namespace fastconv::cuda
