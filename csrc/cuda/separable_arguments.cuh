// Problem and plan as the fused kernels take them.
#pragma once
#include "common/widest_vector.h"
#include "separable_kernel.cuh"
#include "separable_launch.h"

namespace fastconv::cuda {

inline SeparableArgs::SeparableArgs(const SeparableForward& p, const SeparablePlan& plan, const void* packed_weight)
    : x(p.x.data),
      depthwise_weight(p.depthwise_weight),
      depthwise_bias(p.depthwise_bias),
      bias(p.pointwise_bias),
      residual(p.residual.data),
      out(p.out.data),
      weight{packed_weight, plan.weight_pitch, static_cast<int>(p.o), static_cast<int>(plan.weight_pitch * element_bytes(p.dtype))},
      xn(p.x.sn), xc(p.x.sc), xh(p.x.sh), xw(p.x.sw),
      on(p.out.sn), oc(p.out.sc), oh(p.out.sh), ow(p.out.sw),
      h(static_cast<int>(p.g.h)), w(static_cast<int>(p.g.w)), out_h(static_cast<int>(p.g.oh)), out_w(static_cast<int>(p.g.ow)),
      middle(static_cast<int>(p.g.out_channels())), o(static_cast<int>(p.o)),
      kh(static_cast<int>(p.g.kh)), kw(static_cast<int>(p.g.kw)), stride_h(static_cast<int>(p.g.sh)), stride_w(static_cast<int>(p.g.sw)),
      dh(static_cast<int>(p.g.dh)), dw(static_cast<int>(p.g.dw)), pt(static_cast<int>(p.g.pt)), pl(static_cast<int>(p.g.pl)),
      by_multiplier(p.g.multiplier),
      input_activation(p.input_activation), depthwise_activation(p.depthwise_activation), activation(p.pointwise_activation),
      smooth(plan.smooth), vectors(plan.vectors),
      rows(plan.rows), columns(plan.columns), step_h(static_cast<int>(plan.step_h)), step_w(static_cast<int>(plan.step_w)),
      group(plan.group), by_splits(plan.splits), by_tiles_x(plan.tiles_x), by_classes_x(plan.classes_x), by_tiles_y(plan.tiles_y), by_classes_y(plan.classes_y),
      by_columns(plan.columns), by_class_columns(plan.columns / plan.group),
      split(plan.split), chunk(plan.chunk), unit_rows(plan.unit_rows), units(plan.units),
      by_vectors(plan.unit_vectors),
      by_units_x(
          plan.producer == Producer::ring_pixels ? plan.columns / 4
          : plan.producer == Producer::ring_planes ? ceil_div(plan.rows, plan.unit_rows)
                                                   : plan.rows * plan.columns) {}

template <class M, Layout L, template <class, class> class ProducerOf, class Tile>
void launch_forward(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream) {
  launch(
      separable_forward<M, L, ProducerOf, Tile>, Dim3(static_cast<unsigned>(plan.blocks)), Dim3(Tile::kThreads), plan.shared_bytes, stream,
      SeparableArgs(p, plan, weight));
}

// Calls f with the arithmetic of the problem as a tag.
template <class F>
void with_math(DType dtype, FloatProducts products, F&& f) {
  if (dtype == DType::bf16) return f(MathBf16{});
  if (dtype == DType::f16) return f(MathF16{});
  if (products == FloatProducts::tf32) return f(MathTf32{});
  return f(MathFloat{});
}

using PlainTile = SeparableTile<TileForm::plain>;
template <int K>
using SlimTile = SeparableTile<TileForm::slim, K>;

template <int K, int Stride = 1>
struct PixelRing {
  template <class T, class Tile>
  using Of = RingPixels<T, K, Stride, Tile>;
};
template <int K>
struct PlaneRing {
  template <class T, class Tile>
  using Of = RingPlanes<T, K, Tile>;
};
template <Layout L>
struct AnyTaps {
  template <class T, class Tile>
  using Of = Taps<T, L, Tile>;
};

}  // namespace fastconv::cuda
