// shift and stitch on the CPU: check -> parallel loop -> kernels/shift_stitch.cpp.
#include "common/check_pool.h"
#include "isa.h"
#include "parallel.h"

#include <cstring>

namespace fastconv {
namespace {

template <class T>
uint64_t bits_of(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

// `fill` in the dtype of t, as the bit pattern of one element.
uint64_t fill_bits(const Tensor& t, double fill) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return bits_of(static_cast<float>(fill));
    case ScalarType::Double: return bits_of(fill);
    case ScalarType::Half: return bits_of(torch::headeronly::Half(static_cast<float>(fill)));
    case ScalarType::BFloat16: return bits_of(torch::headeronly::BFloat16(static_cast<float>(fill)));
    case ScalarType::Bool: return fill != 0;
    case ScalarType::Byte: return bits_of(static_cast<uint8_t>(fill));
    case ScalarType::Char: return bits_of(static_cast<int8_t>(fill));
    case ScalarType::Short: return bits_of(static_cast<int16_t>(fill));
    case ScalarType::Int: return bits_of(static_cast<int32_t>(fill));
    case ScalarType::Long: return bits_of(static_cast<int64_t>(fill));
    default: STD_TORCH_CHECK(false, "input: expected float32, float16, bfloat16, float64, bool, uint8, int8, int16, int32 or int64"); return 0;
  }
}

// Rows a thread takes at a time are worth waking it for.
constexpr int64_t kSerialElements = 1 << 14;

template <class F>
void for_each_row(int64_t rows, int64_t elements, const F& f) {
  if (elements <= kSerialElements)
    f(int64_t(0), rows, nullptr);
  else
    for_each_run(rows, 0, f);
}

int64_t planes(Layout layout, int64_t n, int64_t c) { return layout == Layout::contiguous ? n * c : n; }

Tensor shift(const Tensor& input, std::vector<int64_t> stride, double fill) {
  check_4d(input, "input");
  check_list(stride, "stride", 2, 1);
  const uint64_t bits = fill_bits(input, fill);
  const int64_t n = input.size(0), c = input.size(1), h = input.size(2), w = input.size(3), sy = stride[0], sx = stride[1];
  const Layout layout = suggested_layout(input);
  const Tensor x = to_dense(input, layout);
  Tensor out = empty_map(input, {n * sy * sx, c, ceil_div(h, sy), ceil_div(w, sx)}, layout);
  if (out.numel() == 0) return out;
  const ShiftStitch p{{c, out.size(2), out.size(3), sy, sx, layout}, n, h, w, static_cast<int>(input.element_size()), x.const_data_ptr(), out.mutable_data_ptr(), bits};
  for_each_row(planes(layout, n, c) * p.fragments.h * sy, out.numel(), [&](int64_t begin, int64_t end, void*) { kernels().shift(p, begin, end); });
  return out;
}

Tensor stitch(const Tensor& input, std::vector<int64_t> stride, std::vector<int64_t> size) {
  check_4d(input, "input");
  check_list(stride, "stride", 2, 1);
  check_list(size, "size", 2, 0);
  fill_bits(input, 0);
  const int64_t sy = stride[0], sx = stride[1], c = input.size(1), u = input.size(2), v = input.size(3);
  STD_TORCH_CHECK(input.size(0) % (sy * sx) == 0, "input: expected a batch that is a multiple of ", sy, "*", sx, " fragments, got shape ", shape_string(input));
  STD_TORCH_CHECK(
      size[0] <= u * sy && size[1] <= v * sx, "size: expected at most (", u * sy, ", ", v * sx, "), which the fragments cover, got ", shape_string(size));
  const int64_t n = input.size(0) / (sy * sx);
  const Layout layout = suggested_layout(input);
  const Tensor x = to_dense(input, layout);
  Tensor out = empty_map(input, {n, c, size[0], size[1]}, layout);
  if (out.numel() == 0) return out;
  const ShiftStitch p{{c, u, v, sy, sx, layout}, n, size[0], size[1], static_cast<int>(input.element_size()), x.const_data_ptr(), out.mutable_data_ptr(), 0};
  for_each_row(planes(layout, n, c) * size[0], out.numel(), [&](int64_t begin, int64_t end, void*) { kernels().stitch(p, begin, end); });
  return out;
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("shift", TORCH_BOX(&fastconv::shift));
  m.impl("stitch", TORCH_BOX(&fastconv::stitch));
}
