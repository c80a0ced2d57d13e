// The seam between entries (torch, no device code) and kernels (device code, no torch): one launch function per kernel family. They enqueue on
// `stream` and return; cudaGetLastError tells afterwards.
#pragma once
#include "common/plan_depthwise.h"

struct CUstream_st;

namespace fastconv::cuda {

using Stream = CUstream_st*;

// `turned`: with the kernel turned round, as the gradient of the input has it (forms pixels and bands).
void launch_depthwise(const DepthwiseForward& p, const DepthwisePlan& plan, Stream stream, bool turned = false);
// `p.dw` and `p.db` are not looked at: the gradients go to `gradients`, in p.dtype.
struct WeightGradients {
  void* dw;         // (C*M, Kh, Kw), or null
  void* db;         // (C*M), or null
  float* partials;  // plan.partial_bytes
};
void launch_depthwise_backward(const DepthwiseBackward& p, const WeightGradients& gradients, const DepthwiseBackwardPlan& plan, Stream stream);
// dz = grad * activation'(z) over dense maps; z is the activation's output for relu and relu6, its input for the others.
void launch_activation_gate(const void* grad, const void* z, void* dz, int64_t elements, DType dtype, Activation activation, const Device& device, Stream stream);
void launch_shift(const ShiftStitch& p, const CopyPlan& plan, Stream stream);
void launch_stitch(const ShiftStitch& p, const CopyPlan& plan, Stream stream);
void launch_max_pool(const MaxPool& p, const PoolPlan& plan, Stream stream);
void launch_max_pool_backward(const MaxPoolBackward& p, const int64_t* indices, const PoolPlan& plan, Stream stream);
void launch_avg_pool(const AvgPool& p, const PoolPlan& plan, Stream stream);

}  // namespace fastconv::cuda
