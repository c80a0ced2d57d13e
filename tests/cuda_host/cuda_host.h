// What a CUDA kernel finds when it is compiled for the host: the language's own words, shared memory, launches and collectives, executed by
// runtime.cpp with every CUDA thread of a block as a fiber. Kernels include it through csrc/cuda/device.cuh and never by name.
//
// The header is shared by instrumented and plain translation units: no standard containers here.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define FASTCONV_KERNEL(threads, blocks) __attribute__((noinline)) void
#define FASTCONV_DEVICE inline __attribute__((always_inline))
#define FASTCONV_HOST_DEVICE inline __attribute__((always_inline))
#define FASTCONV_UNROLL
#define FASTCONV_NO_UNROLL

struct CUstream_st;

namespace cuda_host {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  Dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Where the running fiber is; read by the kernel through threadIdx and friends.
struct Position {
  Dim3 thread, block, block_dim, grid_dim;
};
extern Position* position;

void run(const char* name, Dim3 grid, Dim3 block, size_t shared_bytes, void (*entry)(void*), void* closure);
// Prints the message with the state of the running thread, then ends the process with exit code 70.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Block-wide and partial barriers; sync_warp joins the lanes of `mask`.
void sync_threads();
void named_barrier(int id, int threads);
// Counts as arrived there without waiting.
void arrive_at_barrier(int id, int threads);
void sync_warp(uint32_t mask = 0xffffffffu);

// Every lane of `mask` brings `operands`; the last to come computes for all of them. `what` names the operation: lanes that meet under
// different names have diverged.
using Compute = void (*)(void** operands, uint32_t mask);
void collective(const char* what, uint32_t mask, void* operands, Compute compute);

// Asynchronous copies: performed when waited for, and not before.
void copy_async(void* shared, const void* global, int bytes, int source_bytes);
void commit_copies();
void wait_copies(int groups_left);

// Dynamic shared memory. `take` hands out the next array, behind a gap that no access may touch.
void* take_shared(size_t* cursor, size_t bytes);
// Shared memory touched by an emulated instruction rather than by plain code.
void note_shared_read(const void* p, int bytes);
// A global access by an emulated instruction: natural alignment is what the hardware demands.
void check_alignment(const void* p, int bytes, const char* what);

}  // namespace cuda_host

#define threadIdx (::cuda_host::position->thread)
#define blockIdx (::cuda_host::position->block)
#define blockDim (::cuda_host::position->block_dim)
#define gridDim (::cuda_host::position->grid_dim)

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};

namespace fastconv {

using Dim3 = cuda_host::Dim3;

// Carves dynamic shared memory into arrays: every thread of a block takes the same sizes in the same order.
class SharedCarver {
  size_t cursor_ = 0;

 public:
  template <class T>
  T* take(int count) {
    return static_cast<T*>(cuda_host::take_shared(&cursor_, sizeof(T) * static_cast<size_t>(count)));
  }
};

template <class... P, class... A>
void launch(void (*kernel)(P...), Dim3 grid, Dim3 block, size_t shared_bytes, CUstream_st*, A... args) {
  auto body = [&] { kernel(args...); };
  using Body = decltype(body);
  cuda_host::run(__PRETTY_FUNCTION__, grid, block, shared_bytes, [](void* f) { (*static_cast<Body*>(f))(); }, &body);
}

inline void sync_threads() { cuda_host::sync_threads(); }
inline void sync_warp() { cuda_host::sync_warp(); }

}  // namespace fastconv
