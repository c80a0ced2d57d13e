// Launches the fused forward pass; its kernels for channels_last maps of 16-bit types that a ring of running sums serves are instances here.
#include "separable_pixels.cuh"

namespace fastconv::cuda {
namespace {

template <class T>
FASTCONV_KERNEL(256, 1) pack_rows(PackArgs a, FastDivision by_pitch) {
  uint32_t column;
  const uint32_t index = blockIdx.x * 256 + threadIdx.x, row = by_pitch.divide(index, &column);
  if (row >= a.rows) return;
  const T zero = {};
  static_cast<T*>(a.to)[int64_t(row) * a.pitch + column] =
      column < a.columns ? static_cast<const T*>(a.from)[row * a.row_step + column * a.column_step] : zero;
}

}  // namespace

void launch_pack(const PackArgs& p, DType dtype, Stream stream) {
  with_dtype(dtype, [&](auto tag) {
    launch(pack_rows<decltype(tag)>, Dim3(static_cast<unsigned>(ceil_div(p.rows * p.pitch, 256))), Dim3(256), 0, stream, p, FastDivision(p.pitch));
  });
}

void launch_separable_pixels(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream) {
  if (persistent(plan.form)) return launch_separable_persistent(p, plan, weight, stream);
  if (p.dtype == DType::f32) return launch_separable_pixels_float(p, plan, weight, stream);
  if (p.dtype == DType::bf16) return launch_pixels<MathBf16>(p, plan, weight, stream);
  launch_pixels<MathF16>(p, plan, weight, stream);
}

void launch_separable(const SeparableForward& p, const SeparablePlan& plan, void* workspace, Stream stream) {
  const void* weight = p.pointwise_weight;
  if (plan.pack) {
    launch_pack({weight, workspace, p.g.out_channels(), 1, p.o, p.g.out_channels(), plan.weight_pitch}, p.dtype, stream);
    weight = workspace;
  }
  switch (plan.producer) {
    case Producer::ring_pixels: return launch_separable_pixels(p, plan, weight, stream);
    case Producer::ring_planes: return launch_separable_planes(p, plan, weight, stream);
    case Producer::taps: return launch_separable_taps(p, plan, weight, stream);
  }
}

}  // namespace fastconv::cuda
