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

int64_t planes(const ShiftStitch& p) { return p.fragments.layout == Layout::contiguous ? p.n * p.fragments.channels : p.n; }

Tensor shift(const Tensor& input, std::vector<int64_t> stride, double fill) {
  ShiftStitch p = check_shift(input, stride);
  p.fill = fill_bits(input, fill);
  const Tensor x = to_dense(input, p.fragments.layout);
  Tensor out = empty_map(input, {p.n * p.fragments.sy * p.fragments.sx, p.fragments.channels, p.fragments.h, p.fragments.w}, p.fragments.layout);
  if (out.numel() == 0) return out;
  p.in = x.const_data_ptr(), p.out = out.mutable_data_ptr();
  for_each_row(planes(p) * p.fragments.h * p.fragments.sy, out.numel(), [&](int64_t begin, int64_t end, void*) { kernels().shift(p, begin, end); });
  return out;
}

Tensor stitch(const Tensor& input, std::vector<int64_t> stride, std::vector<int64_t> size) {
  ShiftStitch p = check_stitch(input, stride, size);
  fill_bits(input, 0);
  const Tensor x = to_dense(input, p.fragments.layout);
  Tensor out = empty_map(input, {p.n, p.fragments.channels, p.h, p.w}, p.fragments.layout);
  if (out.numel() == 0) return out;
  p.in = x.const_data_ptr(), p.out = out.mutable_data_ptr();
  for_each_row(planes(p) * p.h, out.numel(), [&](int64_t begin, int64_t end, void*) { kernels().stitch(p, begin, end); });
  return out;
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("shift", TORCH_BOX(&fastconv::shift));
  m.impl("stitch", TORCH_BOX(&fastconv::stitch));
}
