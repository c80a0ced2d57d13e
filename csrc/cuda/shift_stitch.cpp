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
  check_4d(input, "input");
  check_list(stride, "stride", 2, 1);
  const uint64_t bits = fill_bits(parse_dtype(input, "input"), fill);
  const int64_t n = input.size(0), c = input.size(1), h = input.size(2), w = input.size(3), sy = stride[0], sx = stride[1];
  const Scope scope(input);
  const Layout layout = suggested_layout(input);
  const Tensor x = to_dense(input, layout);
  Tensor out = empty_map(input, {n * sy * sx, c, ceil_div(h, sy), ceil_div(w, sx)}, layout);
  if (out.numel() == 0) return out;
  const ShiftStitch p{{c, out.size(2), out.size(3), sy, sx, layout}, n, h, w, static_cast<int>(input.element_size()), x.const_data_ptr(), out.mutable_data_ptr(), bits};
  launch_shift(p, plan_copy(p), scope.stream);
  scope.check();
  return out;
}

Tensor stitch(const Tensor& input, std::vector<int64_t> stride, std::vector<int64_t> size) {
  check_4d(input, "input");
  parse_dtype(input, "input");
  check_list(stride, "stride", 2, 1);
  check_list(size, "size", 2, 0);
  const int64_t sy = stride[0], sx = stride[1], c = input.size(1), u = input.size(2), v = input.size(3);
  STD_TORCH_CHECK(input.size(0) % (sy * sx) == 0, "input: expected a batch that is a multiple of ", sy, "*", sx, " fragments, got shape ", shape_string(input));
  STD_TORCH_CHECK(
      size[0] <= u * sy && size[1] <= v * sx, "size: expected at most (", u * sy, ", ", v * sx, "), which the fragments cover, got ", shape_string(size));
  const int64_t n = input.size(0) / (sy * sx);
  const Scope scope(input);
  const Layout layout = suggested_layout(input);
  const Tensor x = to_dense(input, layout);
  Tensor out = empty_map(input, {n, c, size[0], size[1]}, layout);
  if (out.numel() == 0) return out;
  const ShiftStitch p{{c, u, v, sy, sx, layout}, n, size[0], size[1], static_cast<int>(input.element_size()), x.const_data_ptr(), out.mutable_data_ptr(), 0};
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
