// Launches the fused forward pass; its kernels for channels_last maps that a ring of running sums serves are instances of separable_kernel.cuh here.
#include "separable_arguments.cuh"

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

template <class M, int K, class Tile, int Stride = 1>
void launch_ring(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream) {
  launch_forward<M, Layout::channels_last, PixelRing<K, Stride>::template Of, Tile>(p, plan, weight, stream);
}

template <class M, TileForm Form>
void launch_strided(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream) {
  launch_ring<M, 3, SeparableTile<Form>, 2>(p, plan, weight, stream);
}

template <class M>
void launch_16bit(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream) {
  if (p.g.kh == 5) return launch_ring<M, 5, SlimTile<5>>(p, plan, weight, stream);
  if (p.g.kh == 7) return launch_ring<M, 7, SlimTile<7>>(p, plan, weight, stream);
  if (p.g.sh == 2) {
    switch (plan.form) {
      case TileForm::pair: return launch_strided<M, TileForm::pair>(p, plan, weight, stream);
      case TileForm::tall: return launch_strided<M, TileForm::tall>(p, plan, weight, stream);
      default: return launch_strided<M, TileForm::small>(p, plan, weight, stream);
    }
  }
  switch (plan.form) {
    case TileForm::pair: return launch_ring<M, 3, SeparableTile<TileForm::pair>>(p, plan, weight, stream);
    case TileForm::tall: return launch_ring<M, 3, SeparableTile<TileForm::tall>>(p, plan, weight, stream);
    case TileForm::small: return launch_ring<M, 3, SeparableTile<TileForm::small>>(p, plan, weight, stream);
    default: return launch_ring<M, 3, SeparableTile<TileForm::wide>>(p, plan, weight, stream);
  }
}

}  // namespace

void launch_pack(const PackArgs& p, DType dtype, Stream stream) {
  with_dtype(dtype, [&](auto tag) {
    launch(pack_rows<decltype(tag)>, Dim3(static_cast<unsigned>(ceil_div(p.rows * p.pitch, 256))), Dim3(256), 0, stream, p, FastDivision(p.pitch));
  });
}

void launch_separable_pixels(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream) {
  if (persistent(plan.form)) return launch_separable_persistent(p, plan, weight, stream);
  if (p.dtype == DType::bf16) return launch_16bit<MathBf16>(p, plan, weight, stream);
  if (p.dtype == DType::f16) return launch_16bit<MathF16>(p, plan, weight, stream);
  if (plan.products == FloatProducts::tf32) return launch_ring<MathTf32, 3, SlimTile<3>>(p, plan, weight, stream);
  return launch_ring<MathFloat, 3, SlimTile<3>>(p, plan, weight, stream);
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
