// What the fused separable kernels should cost, and what the same layer costs as separate launches.
#pragma once
#include "cost.h"
#include "plan_separable_time.h"

namespace fastconv::cuda {

std::vector<Cost> cost_separable(const SeparableForward& p, FloatProducts products, const Device& device, const Rates& rates);
// The intermediate through memory: the depthwise kernel, then the vendor's matrix product with what follows it fused, at best.
std::vector<Cost> cost_unfused(const SeparableForward& p, FloatProducts products, const Device& device, const Rates& rates);
// Seconds below which nobody can go: each tensor moved once, or the product at the library's rate.
double floor_seconds(const SeparableForward& p, FloatProducts products, const Rates& rates);

}  // namespace fastconv::cuda
