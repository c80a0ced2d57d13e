// Forward kernels on the CPU as functions: the whole work of the forward operators, and what backward operators recompute with.
#pragma once
#include "common/tensor.h"

namespace fastconv {

// Plan, allocate scratch, run the parallel loops; `out` is complete on return. float32, float16, bfloat16.
void run_depthwise_forward(const DepthwiseForward& p);
void run_separable_forward(const SeparableForward& p);

}  // namespace fastconv
