// What a plan should cost on a GPU: bytes, instructions, occupancy, waves and the time that follows from them. A prediction from counts, which ranks
// plans and shows what binds them; no measurement. Plain C++ for introspection; no kernel depends on it.
#pragma once
#include <string>
#include <vector>

#include "plan_depthwise.h"
#include "rates.h"

namespace fastconv::cuda {

// What the compiled code of a kernel needs at most; a test holds the code to it.
struct Compiled {
  const char* kernel;
  int64_t size;         // K; 0 where the kernel has no instances by size
  double instructions;  // an element of the result, border code and activation included
  int registers;
};
const std::vector<Compiled>& compiled_kernels();

struct Cost {
  std::string kernel, tile;
  int64_t blocks = 0;
  int threads = 0, registers = 0, resident = 0;  // resident: blocks on a multiprocessor
  double waves = 0;
  size_t shared_bytes = 0;
  // Of DRAM, of the L2 cache, of shared memory; of all lanes; of tensor cores.
  double bytes = 0, second_level_bytes = 0, shared_traffic = 0, instructions = 0, flops = 0;
  double product_bytes = 0;  // of the L2 cache, while multiplying; not in second_level_bytes
  double seconds = 0;
  std::string bound;
};

// What the parts of a launch would take by themselves, what binds them, and how few blocks or warps stretch it. `in_flight`: bytes that a block has on
// their way from memory at a time; `overlapped`: whether loading and multiplying go on side by side on a multiprocessor.
void finish_cost(Cost& c, double in_flight, bool overlapped, const Device& device, const Rates& rates);

std::vector<Cost> cost_depthwise(const DepthwiseForward& p, const Device& device, const Rates& rates);
std::vector<Cost> cost_depthwise_backward(const DepthwiseBackward& p, bool wants_dw, const Device& device, const Rates& rates);
double total_seconds(const std::vector<Cost>& steps);

}  // namespace fastconv::cuda
