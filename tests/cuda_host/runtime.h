// Inside the host runtime: what its parts share. Kernels and drivers see cuda_host.h only.
#pragma once
#include <vector>

#include "cuda_host.h"

namespace cuda_host {

struct Options {
  uint64_t seed = 1;
  unsigned preempt_shared = 0;  // in 1 of this many shared accesses the thread gives way (race build)
  unsigned preempt_call = 8;    // the same at calls of the runtime
  size_t shared_limit = 227 * 1024;
};
extern Options options;

unsigned random_below(unsigned n);
// Index of the running thread within its block; -1 between launches.
int running_thread();
void maybe_preempt(unsigned one_in);

struct Statistics {
  int64_t launches = 0, blocks = 0, threads = 0;
};
extern Statistics statistics;

// ---- memory.cpp: the shared arena, its shadow, and happens-before between the threads of a block --------------------------------
namespace memory {
unsigned char* arena();
bool in_arena(const void* p);
void begin_block(int threads);
void* take(size_t physical, size_t bytes);
// All threads of the block have met: everything before is ordered before everything after.
void join_block();
// The given threads have met.
void join(const int* threads, int count);
// What is ordered before a meeting: threads bring what they know and go on in a time of their own; those that wait for it learn what all brought.
struct Meeting {
  uint64_t generation = 0;
  std::vector<uint16_t> known;
};
void bring(Meeting& meeting, int thread);
void learn(const Meeting& meeting, int thread);
void access(const void* p, int bytes, bool write);
void begin_flight(void* p, int bytes);
void end_flight(void* p, int bytes);
}  // namespace memory

}  // namespace cuda_host
