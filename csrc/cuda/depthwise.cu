// Launches the depthwise convolution's forward kernels; they are in depthwise_kernel.cuh (channels_last), depthwise_band_kernel.cuh (contiguous)
// and depthwise_general_kernel.cuh (the rest).
#include "depthwise_band_kernel.cuh"
#include "depthwise_general_kernel.cuh"
#include "depthwise_kernel.cuh"
#include "launch.h"

namespace fastconv::cuda {
namespace {

DepthwiseArgs pixel_arguments(const DepthwiseForward& p, bool turned) {
  const ConvGeometry& g = p.g;
  return {p.x.data, p.weight, p.bias, p.out.data, p.x.sn, p.x.sh, p.x.sw, p.out.sn, p.out.sh, p.out.sw, static_cast<int>(g.h), static_cast<int>(g.w),
          static_cast<int>(g.pt), static_cast<int>(g.pl), static_cast<int>(g.dh), static_cast<int>(g.dw), ActivationArgs(p.activation), turned};
}
DepthwiseBandArgs band_arguments(const DepthwiseForward& p, bool turned) {
  return {p.x.data, p.weight, p.bias, p.out.data, p.out.sn, p.out.sc, p.out.sh, static_cast<int>(p.g.dw), ActivationArgs(p.activation), turned};
}
DepthwiseGeneralArgs general_arguments(const DepthwiseForward& p) {
  const ConvGeometry& g = p.g;
  return {p.x.data, p.weight, p.bias, p.out.data, p.x.sn, p.x.sc, p.x.sh, p.x.sw, p.out.sn, p.out.sc, p.out.sh, p.out.sw,
          static_cast<int>(g.h), static_cast<int>(g.w), static_cast<int>(g.kh), static_cast<int>(g.kw), static_cast<int>(g.sh), static_cast<int>(g.sw),
          static_cast<int>(g.dh), static_cast<int>(g.dw), static_cast<int>(g.pt), static_cast<int>(g.pl), FastDivision(g.multiplier),
          ActivationArgs(p.input_activation), ActivationArgs(p.activation)};
}

template <class T, int K, Form F>
void launch_special(const DepthwiseForward& p, const DepthwisePlan& plan, bool turned, Stream stream) {
  const Dim3 grid(static_cast<unsigned>(plan.blocks)), block(plan.threads);
  if (plan.form == DepthwiseForm::pixels) {
    launch(depthwise_pixels<T, K, F>, grid, block, plan.shared_bytes, stream, pixel_arguments(p, turned), Strips(plan.strips));
  } else {
    const int64_t strides[3] = {p.x.sn, p.x.sc, p.x.sh};
    launch(depthwise_bands<T, K, F>, grid, block, plan.shared_bytes, stream, band_arguments(p, turned), Band(plan.band, p.g.h, p.g.w, p.g.pt, p.g.pl, strides));
  }
}
template <class T, int K>
void launch_special(const DepthwiseForward& p, const DepthwisePlan& plan, bool turned, Stream stream) {
  form_of(p.activation) == Form::smooth ? launch_special<T, K, Form::smooth>(p, plan, turned, stream) : launch_special<T, K, Form::clamp>(p, plan, turned, stream);
}

}  // namespace

void launch_depthwise(const DepthwiseForward& p, const DepthwisePlan& plan, Stream stream, bool turned) {
  with_dtype(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    const Dim3 grid(static_cast<unsigned>(plan.blocks)), block(plan.threads);
    if (plan.form == DepthwiseForm::elements) {
      return launch(depthwise_elements<T>, grid, block, 0, stream, general_arguments(p), Rows(plan.rows));
    } else if (plan.form == DepthwiseForm::vectors) {
      const int vectors = static_cast<int>(p.g.c * static_cast<int64_t>(sizeof(T)) / 16);
      return launch(
          depthwise_vectors<T>, grid, block, plan.shared_bytes, stream, general_arguments(p), Rows(plan.rows), FastDivision(plan.slices),
          FastDivision(plan.slice_vectors), vectors);
    }
    switch (p.g.kh) {
      case 3: return launch_special<T, 3>(p, plan, turned, stream);
      case 5: return launch_special<T, 5>(p, plan, turned, stream);
      default: return launch_special<T, 7>(p, plan, turned, stream);
    }
  });
}

}  // namespace fastconv::cuda
