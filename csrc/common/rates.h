// What a GPU does in a second. Plain C++.
#pragma once

namespace fastconv::cuda {

// A row of a march is a hundred instructions or more, most of them independent, and a wait for its data: a warp by itself is assumed to issue every other
// clock, so that two keep a scheduler busy.
constexpr double kWarpIssue = 0.5;
constexpr int kSchedulers = 4, kBusyThreads = 2 * kSchedulers * 32;  // of a multiprocessor

// The defaults are an H200's: copy and library product as measured, issue from its clock. The second-level cache, what mma.sync reaches, and both
// latencies are assumptions until somebody measures them.
struct Rates {
  double copy = 4.3e12;                  // bytes of DRAM, read and written
  double second_level = 5.5e12;          // bytes of the L2 cache
  double issue = 29.6e12;                // lane-instructions; as many bytes of shared memory
  double library_product = 790e12;       // FLOP of a large 16-bit matrix product by the vendor's library
  double product = 600e12;               // FLOP of one by mma.sync
  double latency = 0.75e-6;              // of a load from DRAM while the memory is busy
  double second_level_latency = 0.3e-6;  // of a load from the L2 cache
  double launch = 2e-6;                  // from one kernel of a graph to the next
};

}  // namespace fastconv::cuda
