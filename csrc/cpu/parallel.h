// Parallel loops over independent items, on torch's own thread pool. Items are handed out in contiguous runs, a few per thread, first come
// first served; which thread runs an item never changes its result.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

namespace fastconv {

// Grows and stays: fresh pages at every call would cost more than small operators do.
class Scratch {
 public:
  void* get(size_t bytes) {
    if (bytes > capacity_) {
      memory_.reset();
      memory_.reset(static_cast<char*>(::operator new(bytes, std::align_val_t(kAlign))));
      capacity_ = bytes;
    }
    return memory_.get();
  }

 private:
  static constexpr size_t kAlign = 4096;
  struct Free {
    void operator()(char* p) const { ::operator delete(p, std::align_val_t(kAlign)); }
  };
  std::unique_ptr<char, Free> memory_;
  size_t capacity_ = 0;
};

// One for work inside parallel loops, one for what the calling thread prepares before them.
inline Scratch& thread_scratch() {
  static thread_local Scratch s;
  return s;
}
inline Scratch& call_scratch() {
  static thread_local Scratch s;
  return s;
}

inline int num_threads() { return std::max<int>(1, static_cast<int>(torch::stable::get_num_threads())); }

// f(begin, end, scratch) over [0, items).
template <class F>
void for_each_run(int64_t items, int64_t scratch_bytes, const F& f) {
  if (items <= 0) return;
  const int64_t threads = std::min<int64_t>(num_threads(), items);
  if (threads == 1) {
    f(int64_t(0), items, thread_scratch().get(scratch_bytes));
    return;
  }
  const int64_t run = std::max<int64_t>(1, items / (threads * 4));
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    void* scratch = thread_scratch().get(scratch_bytes);
    for (;;) {
      const int64_t begin = next.fetch_add(run, std::memory_order_relaxed);
      if (begin >= items) return;
      f(begin, std::min(items, begin + run), scratch);
    }
  });
}

}  // namespace fastconv
