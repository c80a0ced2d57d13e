// shift and stitch on CUDA: check -> plan -> launch (shift_stitch.cu).
#include "common/check_pool.h"
#include "entry.h"

#include <cstring>

namespace fastconv::cuda {
namespace {

template <class T>
uint64_t bits_of(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

uint64_t fill_bits(DType t, double fill) {
  switch (t) {
    case DType::f32: return bits_of(static_cast<float>(fill));
    case DType::f64: return bits_of(fill);
    case DType::f16: return bits_of(torch::headeronly::Half(static_cast<float>(fill)));
    case DType::bf16: return bits_of(torch::headeronly::BFloat16(static_cast<float>(fill)));
  }
  return 0;
}

Tensor shift(const Tensor& input, std::vector<int64_t> stride, double fill) {
  ShiftStitch p = check_shift(input, stride);
  p.fill = fill_bits(parse_dtype(input, "input"), fill);
  const Scope scope(input);
  const Tensor x = to_dense(input, p.fragments.layout);
  Tensor out = empty_map(input, {p.n * p.fragments.sy * p.fragments.sx, p.fragments.channels, p.fragments.h, p.fragments.w}, p.fragments.layout);
  if (out.numel() == 0) return out;
  p.in = x.const_data_ptr(), p.out = out.mutable_data_ptr();
  launch_shift(p, plan_copy(p), scope.stream);
  scope.check();
  return out;
}

Tensor stitch(const Tensor& input, std::vector<int64_t> stride, std::vector<int64_t> size) {
  ShiftStitch p = check_stitch(input, stride, size);
  parse_dtype(input, "input");
  const Scope scope(input);
  const Tensor x = to_dense(input, p.fragments.layout);
  Tensor out = empty_map(input, {p.n, p.fragments.channels, p.h, p.w}, p.fragments.layout);
  if (out.numel() == 0) return out;
  p.in = x.const_data_ptr(), p.out = out.mutable_data_ptr();
  launch_stitch(p, plan_copy(p), scope.stream);
  scope.check();
  return out;
}

}  // namespace
}  // namespace fastconv::cuda

STABLE_TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  m.impl("shift", TORCH_BOX(&fastconv::cuda::shift));
  m.impl("stitch", TORCH_BOX(&fastconv::cuda::stitch));
}
