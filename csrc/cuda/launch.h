// The seam between entries (torch, no device code) and kernels (device code, no torch): one launch function per kernel family. They enqueue on
// `stream` and return; cudaGetLastError tells afterwards.
#pragma once
#include "common/plan_depthwise.h"

struct CUstream_st;

namespace fastconv::cuda {

using Stream = CUstream_st*;

void launch_depthwise(const DepthwiseForward& p, const DepthwisePlan& plan, Stream stream);
void launch_shift(const ShiftStitch& p, const CopyPlan& plan, Stream stream);
void launch_stitch(const ShiftStitch& p, const CopyPlan& plan, Stream stream);
void launch_max_pool(const MaxPool& p, const PoolPlan& plan, Stream stream);
void launch_max_pool_backward(const MaxPoolBackward& p, const int64_t* indices, const PoolPlan& plan, Stream stream);
void launch_avg_pool(const AvgPool& p, const PoolPlan& plan, Stream stream);

}  // namespace fastconv::cuda
