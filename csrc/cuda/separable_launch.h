// The fused kernels' launch functions, one for each file of instances, and what they share.
#pragma once
#include "common/plan_separable.h"

struct CUstream_st;

namespace fastconv::cuda {

using Stream = CUstream_st*;

// The whole forward pass; `workspace` has plan.workspace_bytes.
void launch_separable(const SeparableForward& p, const SeparablePlan& plan, void* workspace, Stream stream);

// Rows of a matrix copied to rows of whole 16 bytes, filled up with zeros; (row, column) of `from` is at row * row_step + column * column_step.
struct PackArgs {
  const void* from;
  void* to;
  int64_t row_step, column_step, rows, columns, pitch;
};
void launch_pack(const PackArgs& p, DType dtype, Stream stream);

void launch_separable_pixels(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream);
void launch_separable_pixels_float(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream);
void launch_separable_persistent(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream);
void launch_separable_planes(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream);
void launch_separable_taps(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream);

}  // namespace fastconv::cuda
