// What kernel code may take from the machine: the qualifiers, dynamic shared memory, launches, barriers. Instructions are in ptx.cuh.
// The same kernels are compiled for the host, where tests/cuda_host executes them; nothing outside these two headers knows which it is.
//
// Rules that make this possible: shared memory only through SharedCarver, launches only through launch(), no mutable device globals, all
// lanes of a warp reach the same collective, and no waiting on memory.
#pragma once

#ifdef FASTCONV_CUDA_HOST
#include "cuda_host.h"
#else
#include <cuda_runtime.h>

#include <cstdint>

#define FASTCONV_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define FASTCONV_DEVICE __device__ __forceinline__
#define FASTCONV_HOST_DEVICE __host__ __device__ __forceinline__
#define FASTCONV_UNROLL _Pragma("unroll")
#define FASTCONV_NO_UNROLL _Pragma("unroll 1")

namespace fastconv {

using Dim3 = dim3;

// Carves dynamic shared memory into arrays: every thread of a block takes the same sizes in the same order.
class SharedCarver {
  unsigned char* cursor_;

 public:
  FASTCONV_DEVICE SharedCarver() {
    extern __shared__ __align__(1024) unsigned char dynamic_shared[];
    cursor_ = dynamic_shared;
  }
  template <class T>
  FASTCONV_DEVICE T* take(int count) {
    T* array = reinterpret_cast<T*>(cursor_);
    cursor_ += (sizeof(T) * count + 15) / 16 * 16;
    return array;
  }
};

template <class... P, class... A>
void launch(void (*kernel)(P...), Dim3 grid, Dim3 block, size_t shared_bytes, CUstream_st* stream, A... args) {
  // What is granted without asking; a failure here surfaces as the launch's own error.
  constexpr size_t kGranted = 48 * 1024;
  if (shared_bytes > kGranted) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  kernel<<<grid, block, shared_bytes, stream>>>(P(args)...);
}

FASTCONV_DEVICE void sync_threads() { __syncthreads(); }
FASTCONV_DEVICE void sync_warp() { __syncwarp(); }

}  // namespace fastconv
#endif

namespace fastconv {

// Bytes that arrays of these sizes take from a SharedCarver.
template <class... Sizes>
constexpr size_t shared_bytes(Sizes... bytes) {
  return (((static_cast<size_t>(bytes) + 15) / 16 * 16) + ... + size_t(0));
}

// N bytes moved by one instruction.
template <int N>
struct alignas(N) Bytes {
  static_assert(N % 4 == 0);
  uint32_t word[N / 4];
};
template <>
struct Bytes<2> {
  uint16_t word[1];
};
template <>
struct Bytes<1> {
  uint8_t word[1];
};

}  // namespace fastconv
