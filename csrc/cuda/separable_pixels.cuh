// Which instance of the fused forward kernel runs for channels_last maps that a ring of running sums serves.
#pragma once
#include <type_traits>

#include "separable_arguments.cuh"

namespace fastconv::cuda {

template <class M, int K, int Stride, class Tile>
void launch_ring(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream) {
  launch_forward<M, Layout::channels_last, PixelRing<K, Stride>::template Of, Tile>(p, plan, weight, stream);
}

// K = 3. Products in full precision need the registers that larger tiles have not.
template <class M, int Stride>
void launch_ring_of_three(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream) {
  if (plan.form == TileForm::small) return launch_ring<M, 3, Stride, SeparableTile<TileForm::small>>(p, plan, weight, stream);
  if constexpr (std::is_same_v<M, MathFloat>) {
    launch_ring<M, 3, Stride, SlimTile<3>>(p, plan, weight, stream);
  } else {
    if (plan.form == TileForm::pair) return launch_ring<M, 3, Stride, SeparableTile<TileForm::pair>>(p, plan, weight, stream);
    if (plan.form == TileForm::tall) return launch_ring<M, 3, Stride, SeparableTile<TileForm::tall>>(p, plan, weight, stream);
    if constexpr (Stride == 1) launch_ring<M, 3, 1, SeparableTile<TileForm::wide>>(p, plan, weight, stream);
  }
}

template <class M>
void launch_pixels(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream) {
  if (p.g.kh == 5) return launch_ring<M, 5, 1, SlimTile<5>>(p, plan, weight, stream);
  if (p.g.kh == 7) return launch_ring<M, 7, 1, SlimTile<7>>(p, plan, weight, stream);
  if (p.g.sh == 2) return launch_ring_of_three<M, 2>(p, plan, weight, stream);
  launch_ring_of_three<M, 1>(p, plan, weight, stream);
}

}  // namespace fastconv::cuda
