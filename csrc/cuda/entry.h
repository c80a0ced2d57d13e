// What every CUDA entry does around its launches: the input's device made current, its current stream, the device's properties, and the error
// that a launch left behind. Workspaces are tensors, so they come from torch's caching allocator and a CUDA graph may capture every call.
#pragma once
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <array>
#include <mutex>

#include "common/plan_measured.h"
#include "common/tensor.h"
#include "launch.h"

namespace fastconv::cuda {

inline Device query_device(int index) {
  Device d;
  int major = 0, minor = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&d.multiprocessors, cudaDevAttrMultiProcessorCount, index));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&d.threads_per_multiprocessor, cudaDevAttrMaxThreadsPerMultiProcessor, index));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&d.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&d.shared_per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, index));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
  d.capability = major * 10 + minor;
  cudaDeviceProp properties;
  STD_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  d.table = measured_device(properties.name);
  return d;
}

inline const Device& device_of(int index) {
  constexpr int kMost = 64;
  static std::array<Device, kMost> devices;
  static std::array<std::once_flag, kMost> asked;
  STD_TORCH_CHECK(index >= 0 && index < kMost, "input: its device index ", index, " is beyond the ", kMost, " that are supported");
  std::call_once(asked[index], [index] { devices[index] = query_device(index); });
  return devices[index];
}

class Scope {
 public:
  explicit Scope(const Tensor& t) : index_(t.get_device_index()), guard_(index_), device(device_of(index_)), stream(current(index_)) {}
  // An error of the launches since, as an exception with CUDA's message.
  void check() const { STD_CUDA_KERNEL_LAUNCH_CHECK(); }

 private:
  static Stream current(int index) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
    return static_cast<Stream>(stream);
  }
  int index_;
  torch::stable::accelerator::DeviceGuard guard_;

 public:
  const Device& device;
  Stream stream;
};

}  // namespace fastconv::cuda
