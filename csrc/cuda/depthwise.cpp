// depthwise_conv2d on CUDA: check -> plan -> launch.
#include "common/check.h"
#include "common/library_path.h"
#include "entry.h"

namespace fastconv::cuda {
namespace {

Tensor depthwise_conv2d(
    const Tensor& input, const Tensor& weight, const OptTensor& bias, std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
    std::string activation) {
  const ConvGeometry g = check_conv(input, weight, "weight", bias, "bias", stride, padding, dilation);
  const Activation act = parse_activation(activation, "activation");
  const Layout layout = suggested_layout(input);
  if (input.scalar_type() == ScalarType::Double && g.n > 0) return library::depthwise(input, weight, bias, {stride, padding, dilation}, act);

  const Scope scope(input);
  const Tensor x = to_dense(input, layout), w = to_dense(weight);
  const OptTensor b = to_dense(bias);
  Tensor out = empty_map(input, {g.n, g.out_channels(), g.oh, g.ow}, layout);
  if (out.numel() == 0) return out;
  const DepthwiseForward p{
      g, parse_dtype(input, "input"), layout, Activation::identity, act, view(x, layout), w.const_data_ptr(), data_or_null(b), mutable_view(out, layout)};
  launch_depthwise(p, plan_depthwise(p, scope.device), scope.stream);
  scope.check();
  return out;
}

}  // namespace
}  // namespace fastconv::cuda

STABLE_TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&fastconv::cuda::depthwise_conv2d));
}
