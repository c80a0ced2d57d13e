// The fused forward kernels whose blocks stay.
#include "separable_arguments.cuh"
#include "separable_persistent_kernel.cuh"

namespace fastconv::cuda {

PersistentArgs::PersistentArgs(const SeparableForward& p, const SeparablePlan& plan, const void* packed_weight)
    : SeparableArgs(p, plan, packed_weight),
      tiles(static_cast<int>(plan.tiles)),
      slots(plan.slots),
      steps(static_cast<int>(weight_steps(p))),
      marchers(plan.marchers),
      by_slots(plan.slots),
      by_tile_units(plan.units),
      by_slab_units(plan.units / plan.unit_vectors) {}

namespace {

template <class M, TileForm Form>
void launch_form(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream) {
  launch(
      separable_persistent<M, Form>, Dim3(static_cast<unsigned>(plan.blocks)), Dim3(tile_shape(Form).threads), plan.shared_bytes, stream,
      PersistentArgs(p, plan, weight));
}

template <class M>
void launch_math(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream) {
  if (plan.form == TileForm::persistent) return launch_form<M, TileForm::persistent>(p, plan, weight, stream);
  launch_form<M, TileForm::persistent_narrow>(p, plan, weight, stream);
}

}  // namespace

void launch_separable_persistent(const SeparableForward& p, const SeparablePlan& plan, const void* weight, Stream stream) {
  if (p.dtype == DType::bf16) return launch_math<MathBf16>(p, plan, weight, stream);
  launch_math<MathF16>(p, plan, weight, stream);
}

}  // namespace fastconv::cuda
