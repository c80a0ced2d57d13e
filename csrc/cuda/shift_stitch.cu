// Launches shift and stitch; the kernels are in shift_stitch_kernel.cuh.
#include "launch.h"
#include "shift_stitch_kernel.cuh"

namespace fastconv::cuda {
namespace {

uint64_t repeated(uint64_t bits, int bytes) {
  for (int b = bytes; b < 8; b *= 2) bits |= bits << 8 * b;
  return bits;
}

template <bool ToFragments>
void launch_copy(const ShiftStitch& p, const CopyPlan& plan, Stream stream) {
  const DealtMap& f = p.fragments;
  const bool pixels = f.layout == Layout::channels_last;
  const int64_t unit = plan.form == CopyForm::rows ? 1 : plan.rows.pixel;
  CopyArgs a;
  a.from = p.in, a.to = p.out, a.fill = repeated(p.fill, p.bytes);
  a.h = static_cast<int>(p.h), a.w = static_cast<int>(p.w);
  a.sh = static_cast<int>(f.sy), a.sw = static_cast<int>(f.sx);
  a.row_units = static_cast<int>(p.w * unit), a.fragment_row_units = static_cast<int>(f.w * unit), a.pixel = static_cast<int>(unit);
  a.image = p.h * p.w * unit, a.fragment = f.h * f.w * unit, a.planes = pixels ? 1 : f.channels;
  a.by_sh = FastDivision(f.sy), a.by_sw = FastDivision(f.sx);
  auto go = [&](auto kernel) { launch(kernel, Dim3(static_cast<unsigned>(plan.rows.blocks)), Dim3(kCopyThreads), 0, stream, a, Rows(plan.rows)); };
  if (plan.form == CopyForm::rows) {
    switch (p.bytes * 10 + f.sx) {
      case 21: return go(copy_rows<uint16_t, 1, ToFragments>);
      case 22: return go(copy_rows<uint16_t, 2, ToFragments>);
      case 23: return go(copy_rows<uint16_t, 3, ToFragments>);
      case 24: return go(copy_rows<uint16_t, 4, ToFragments>);
      case 41: return go(copy_rows<uint32_t, 1, ToFragments>);
      case 42: return go(copy_rows<uint32_t, 2, ToFragments>);
      case 43: return go(copy_rows<uint32_t, 3, ToFragments>);
      case 44: return go(copy_rows<uint32_t, 4, ToFragments>);
    }
  }
  switch (plan.vector_bytes) {
    case 1: return go(copy_vectors<1, ToFragments>);
    case 2: return go(copy_vectors<2, ToFragments>);
    case 4: return go(copy_vectors<4, ToFragments>);
    case 8: return go(copy_vectors<8, ToFragments>);
    default: return go(copy_vectors<16, ToFragments>);
  }
}

}  // namespace

void launch_shift(const ShiftStitch& p, const CopyPlan& plan, Stream stream) { launch_copy<true>(p, plan, stream); }
void launch_stitch(const ShiftStitch& p, const CopyPlan& plan, Stream stream) { launch_copy<false>(p, plan, stream); }

}  // namespace fastconv::cuda
