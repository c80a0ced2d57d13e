// The net's own test: small kernels, each right as it stands and wrong when its bug is planted. `planted NAME 0` must end with exit code 0 in
// every build; `planted NAME 1` must be caught by the builds that test_cuda_host.py lists for it: exit code 70 from the runtime, 1 from the
// address sanitizer, 3 for wrong results.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "cuda/ptx.cuh"
#include "runtime.h"

namespace fastconv {
namespace {

constexpr int kThreads = 64;

// A block reverses 64 floats through shared memory.
template <bool Bug>
FASTCONV_KERNEL(64, 1) missing_barrier(const float* in, float* out) {
  SharedCarver shared;
  float* a = shared.take<float>(kThreads);
  const int t = threadIdx.x;
  a[t] = in[t];
  if (!Bug) sync_threads();
  out[t] = a[kThreads - 1 - t];
}

template <bool Bug>
FASTCONV_KERNEL(64, 1) missing_loop_end_barrier(const float* in, float* out) {
  SharedCarver shared;
  float* a = shared.take<float>(kThreads);
  const int t = threadIdx.x;
  float sum = 0;
  for (int i = 0; i < 3; ++i) {
    a[t] = in[t] * static_cast<float>(i);
    sync_threads();
    sum += a[kThreads - 1 - t];
    if (!Bug) sync_threads();
  }
  out[t] = sum / 3.f;
}

template <bool Bug>
FASTCONV_KERNEL(64, 1) missing_warp_barrier(const float* in, float* out) {
  SharedCarver shared;
  float* a = shared.take<float>(kThreads);
  const int t = threadIdx.x;
  a[t] = in[t];
  if (!Bug) sync_warp();
  const float other = a[t ^ 31];
  sync_threads();
  a[t] = other;
  sync_threads();
  out[t] = a[t ^ 32];
}

template <bool Bug>
FASTCONV_KERNEL(64, 1) missing_copy_wait(const float* in, float* out) {
  SharedCarver shared;
  float* a = shared.take<float>(kThreads);
  const int t = threadIdx.x;
  if (t < kThreads / 4) ptx::copy_async<16>(a + 4 * t, in + 4 * t, true);
  ptx::commit_copies();
  if (!Bug) ptx::wait_copies<0>();
  sync_threads();
  out[t] = a[kThreads - 1 - t];
  if (Bug) ptx::wait_copies<0>();
}

// The second stage of a ring is waited for one group too late.
template <bool Bug>
FASTCONV_KERNEL(64, 1) wrong_copy_group(const float* in, float* out) {
  SharedCarver shared;
  float* a = shared.take<float>(kThreads);
  const int t = threadIdx.x;
  ptx::copy_async<4>(a + t, in + t, true);
  ptx::commit_copies();
  ptx::commit_copies();
  ptx::wait_copies<Bug ? 2 : 1>();
  sync_threads();
  out[t] = a[kThreads - 1 - t];
  ptx::wait_copies<0>();
}

template <bool Bug>
FASTCONV_KERNEL(64, 1) copy_never_awaited(const float* in, float* out) {
  SharedCarver shared;
  float* a = shared.take<float>(kThreads);
  const int t = threadIdx.x;
  ptx::copy_async<4>(a + t, in + t, true);
  ptx::commit_copies();
  if (!Bug) ptx::wait_copies<0>();
  out[t] = in[kThreads - 1 - t];
}

template <bool Bug>
FASTCONV_KERNEL(64, 1) write_over_copy_in_flight(const float* in, float* out) {
  SharedCarver shared;
  float* a = shared.take<float>(kThreads);
  const int t = threadIdx.x;
  ptx::copy_async<4>(a + t, in + t, true);
  ptx::commit_copies();
  if (!Bug) ptx::wait_copies<0>();
  a[t] = in[t];
  ptx::wait_copies<0>();
  sync_threads();
  out[t] = a[kThreads - 1 - t];
}

// One element past the end of the input.
template <bool Bug>
FASTCONV_KERNEL(64, 1) halo_off_by_one(const float* in, float* out) {
  const int t = threadIdx.x;
  const float right = t + (Bug ? 0 : 1) < kThreads ? in[t + 1] : 0.f;
  out[kThreads - 1 - t] = in[t] + right - right;
}

template <bool Bug>
FASTCONV_KERNEL(64, 1) copy_past_the_end(const float* in, float* out) {
  SharedCarver shared;
  float* a = shared.take<float>(kThreads + 4);
  const int t = threadIdx.x;
  const int first = 4 * t;
  if (first < kThreads + 4) ptx::copy_async<16>(a + first, in + first, Bug || first < kThreads);
  ptx::commit_copies();
  ptx::wait_copies<0>();
  sync_threads();
  out[t] = a[kThreads - 1 - t];
}

template <bool Bug>
FASTCONV_KERNEL(64, 1) shared_overrun(const float* in, float* out) {
  SharedCarver shared;
  float* a = shared.take<float>(kThreads);
  float* b = shared.take<float>(kThreads);
  const int t = threadIdx.x;
  a[t + (Bug ? 1 : 0)] = in[t];
  b[t] = in[t];
  sync_threads();
  out[t] = b[kThreads - 1 - t] + a[t] - a[t];
}

// A launch that provides less shared memory than the kernel carves.
template <bool Bug>
FASTCONV_KERNEL(64, 1) shared_overcommit(const float* in, float* out) {
  SharedCarver shared;
  float* a = shared.take<float>(Bug ? 3 * kThreads : kThreads);
  const int t = threadIdx.x;
  a[t] = in[t];
  sync_threads();
  out[t] = a[kThreads - 1 - t];
}

template <bool Bug>
FASTCONV_KERNEL(64, 1) uninitialised_read(const float* in, float* out) {
  SharedCarver shared;
  float* a = shared.take<float>(kThreads);
  const int t = threadIdx.x;
  if (!Bug || t > 0) a[t] = in[t];
  sync_threads();
  const float v = a[kThreads - 1 - t];
  out[t] = in[kThreads - 1 - t] + (v > 1e30f ? 1.f : 0.f);
}

template <bool Bug>
FASTCONV_KERNEL(64, 1) divergent_barrier(const float* in, float* out) {
  const int t = threadIdx.x;
  if (!Bug || t < 40) sync_threads();
  out[t] = in[kThreads - 1 - t];
}

template <bool Bug>
FASTCONV_KERNEL(64, 1) early_exit_before_barrier(const float* in, float* out) {
  const int t = threadIdx.x;
  out[t] = in[kThreads - 1 - t];
  if (Bug && t == 5) return;
  sync_threads();
}

template <bool Bug>
FASTCONV_KERNEL(64, 1) divergent_collective(const float* in, float* out) {
  const int t = threadIdx.x;
  float v = in[kThreads - 1 - t];
  if (Bug && t % 2) {
    ptx::any_lane(v > 0);
  } else {
    v = ptx::shuffle_xor(v, 1);
  }
  out[t] = ptx::shuffle_xor(v, 1);
}

// Two warps each wait at a barrier that counts both.
template <bool Bug>
FASTCONV_KERNEL(64, 1) wrong_named_barrier(const float* in, float* out) {
  SharedCarver shared;
  float* a = shared.take<float>(kThreads);
  const int t = threadIdx.x;
  a[t] = in[t];
  ptx::named_barrier(Bug ? 1 + t / 32 : 1, kThreads);
  out[t] = a[kThreads - 1 - t];
}

template <bool Bug>
FASTCONV_KERNEL(64, 1) named_barrier_too_narrow(const float* in, float* out) {
  SharedCarver shared;
  float* a = shared.take<float>(kThreads);
  const int t = threadIdx.x;
  a[t] = in[t];
  if (Bug) {
    ptx::named_barrier(1 + t / 32, 32);
  } else {
    ptx::named_barrier(1, kThreads);
  }
  out[t] = a[kThreads - 1 - t];
}

// A warp hands values to another, which waits for it, and is told before it has written them.
template <bool Bug>
FASTCONV_KERNEL(64, 1) handed_over_too_early(const float* in, float* out) {
  SharedCarver shared;
  float* a = shared.take<float>(kThreads);
  const int t = threadIdx.x;
  if (t < 32) {
    if (Bug) ptx::arrive_at_barrier(1, kThreads);
    a[t] = in[t], a[t + 32] = in[t + 32];
    if (!Bug) ptx::arrive_at_barrier(1, kThreads);
  } else {
    ptx::named_barrier(1, kThreads);
    out[t] = a[kThreads - 1 - t], out[t - 32] = a[kThreads - 1 - t + 32];
  }
}

// The same in two halves through one place, which the second half may overwrite once the first has been read.
template <bool Bug>
FASTCONV_KERNEL(64, 1) place_not_released(const float* in, float* out) {
  SharedCarver shared;
  float* a = shared.take<float>(32);
  const int t = threadIdx.x, lane = t % 32;
  for (int half = 0; half < 2; ++half) {
    if (t < 32) {
      if (half && !Bug) ptx::named_barrier(2, kThreads);
      a[lane] = in[half * 32 + lane];
      ptx::arrive_at_barrier(1, kThreads);
    } else {
      ptx::named_barrier(1, kThreads);
      out[kThreads - 1 - half * 32 - lane] = a[lane];
      if (!half && !Bug) ptx::arrive_at_barrier(2, kThreads);
    }
  }
}

template <bool Bug>
FASTCONV_KERNEL(64, 1) misaligned_load(const float* in, float* out) {
  const int t = threadIdx.x;
  if (t < kThreads / 4 - 1) {
    const Bytes<16> v = ptx::load<16>(in + 4 * t + (Bug ? 1 : 0));
    out[t] = ptx::bits_to_float(v.word[0]);
  }
  sync_threads();
  out[t] = in[kThreads - 1 - t];
}

template <bool Bug>
FASTCONV_KERNEL(64, 1) misaligned_matrix_row(const float* in, float* out) {
  SharedCarver shared;
  float* a = shared.take<float>(4 * 32 + 4);
  const int t = threadIdx.x;
  for (int i = t; i < 4 * 32 + 4; i += kThreads) a[i] = in[i % kThreads];
  sync_threads();
  uint32_t d[4];
  ptx::load_matrices(d, a + 4 * (t % 32) + (Bug ? 2 : 0));
  out[t] = in[kThreads - 1 - t] + (d[0] == 7 ? 1.f : 0.f);
}

template <bool Bug>
FASTCONV_KERNEL(64, 1) output_left_unwritten(const float* in, float* out) {
  const int t = threadIdx.x;
  if (!Bug || t != 17) out[t] = in[kThreads - 1 - t];
}

using Kernel = void (*)(const float*, float*);
struct Plant {
  const char* name;
  Kernel right, wrong;
};
#define PLANT(name) {#name, name<false>, name<true>}
const Plant plants[] = {
    PLANT(missing_barrier),       PLANT(missing_loop_end_barrier),  PLANT(missing_warp_barrier), PLANT(missing_copy_wait),    PLANT(wrong_copy_group),
    PLANT(copy_never_awaited),    PLANT(write_over_copy_in_flight), PLANT(halo_off_by_one),      PLANT(copy_past_the_end),    PLANT(shared_overrun),
    PLANT(shared_overcommit),     PLANT(uninitialised_read),        PLANT(divergent_barrier),    PLANT(early_exit_before_barrier),
    PLANT(divergent_collective),  PLANT(wrong_named_barrier),       PLANT(named_barrier_too_narrow), PLANT(misaligned_load), PLANT(misaligned_matrix_row),
    PLANT(output_left_unwritten), PLANT(handed_over_too_early), PLANT(place_not_released)};

int run(const Plant& plant, bool bug) {
  float *in = nullptr, *out = nullptr;
  if (posix_memalign(reinterpret_cast<void**>(&in), 256, kThreads * sizeof(float)) || posix_memalign(reinterpret_cast<void**>(&out), 256, kThreads * sizeof(float))) return 2;
  for (int i = 0; i < kThreads; ++i) in[i] = static_cast<float>(i + 1), out[i] = NAN;
  launch(bug ? plant.wrong : plant.right, Dim3(3), Dim3(kThreads), 2048 * (std::string(plant.name) == "shared_overcommit" ? 0 : 1) + 256, nullptr, static_cast<const float*>(in), out);
  int wrong = 0;
  for (int i = 0; i < kThreads; ++i) wrong += out[i] != in[kThreads - 1 - i];
  std::free(in), std::free(out);
  if (wrong) std::fprintf(stderr, "%d wrong results\n", wrong);
  return wrong ? 3 : 0;
}

}  // namespace
}  // namespace fastconv

int main(int argc, char** argv) {
  if (argc == 2 && std::string(argv[1]) == "list") {
    for (const auto& p : fastconv::plants) std::puts(p.name);
    return 0;
  }
  if (argc < 3) return 2;
  cuda_host::options.preempt_shared = 4;
  if (argc > 3) cuda_host::options.seed = std::strtoull(argv[3], nullptr, 10);
  for (const auto& p : fastconv::plants)
    if (p.name == std::string(argv[1])) return fastconv::run(p, std::atoi(argv[2]) != 0);
  return 2;
}
