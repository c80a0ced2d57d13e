// The GPU that a case is planned for: an H200, or what the case says.
#pragma once
#include "common/plan.h"
#include "driver.h"

namespace driver {

inline fastconv::cuda::Device device_of(const Case& c) {
  fastconv::cuda::Device d;
  d.multiprocessors = static_cast<int>(c.number("multiprocessors", d.multiprocessors));
  d.threads_per_multiprocessor = static_cast<int>(c.number("threads", d.threads_per_multiprocessor));
  d.shared_per_block = static_cast<int>(c.number("shared", d.shared_per_block));
  d.shared_per_multiprocessor = d.shared_per_block + 1024;
  return d;
}

}  // namespace driver
