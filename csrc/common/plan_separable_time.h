// How long a planned fused forward pass should take: bytes, instructions and products of the compiled kernel, blocks that a multiprocessor holds, bytes on
// their way. The planner ranks its candidates by it, and cost_separable() reports it.
//
// A block loads and marches (phase 1), then multiplies (phase 2); by itself it cannot overlap the two. Two limits follow: what all blocks together ask of a
// unit of the chip, and how long one block takes from its first instruction to its last, over the number of blocks that run side by side.
#pragma once
#include "plan_separable.h"
#include "rates.h"

namespace fastconv::cuda {

struct SeparableTime {
  int resident;   // blocks on a multiprocessor
  double waves;
  // Of DRAM; of the L2 cache for pixels, for weights; of shared memory; of all lanes; of tensor cores, what is padded included.
  double bytes, pixel_bytes, weight_bytes, shared_traffic, instructions, flops;
  double block_seconds;  // of one block by itself
  double seconds;        // without the launch
  const char* bound;
};
SeparableTime separable_time(const SeparableForward& p, const SeparablePlan& plan, const Device& device, const Rates& rates);

// Lane-instructions an element of the march, border code and activation not included; a test holds the compiled code to it.
constexpr double march_instructions(int k, int stride) { return stride == 2 ? 28 : k == 3 ? 18.3 : k == 5 ? 41 : 71; }

}  // namespace fastconv::cuda
