// Arguments of the separable operators -> the checked problem, and its operands as kernels take them. As in check.h: nothing after these may fail.
#pragma once
#include "library_path.h"

namespace fastconv {

struct SeparableProblem {
  ConvGeometry g;
  int64_t o;
  std::vector<int64_t> size;  // of the result
  library::ConvArgs conv;
  library::Activations act;
};

inline SeparableProblem check_separable(
    const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight, const OptTensor& depthwise_bias, const OptTensor& pointwise_bias,
    const OptTensor& residual, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
    const std::string& input_activation, const std::string& depthwise_activation, const std::string& pointwise_activation) {
  const ConvGeometry g = check_conv(input, depthwise_weight, "depthwise_weight", depthwise_bias, "depthwise_bias", stride, padding, dilation);
  const int64_t o = check_pointwise(pointwise_weight, g.out_channels(), input);
  check_vector(pointwise_bias, "pointwise_bias", o, input);
  const std::vector<int64_t> size{g.n, o, g.oh, g.ow};
  check_map(residual, "residual", size, input);
  return {
      g, o, size, {stride, padding, dilation},
      {parse_activation(input_activation, "input_activation"), parse_activation(depthwise_activation, "depthwise_activation"),
       parse_activation(pointwise_activation, "pointwise_activation")}};
}

// What the backward operator has beside.
inline void check_separable_backward(
    const SeparableProblem& problem, const Tensor& grad_output, const Tensor& input, const OptTensor& output, const std::vector<bool>& output_mask) {
  check_map(grad_output, "grad_output", problem.size, input);
  check_map(output, "output", problem.size, input);
  check_mask(output_mask, 6);
}

// Dense operands, copied where the caller's are not; `forward` points into them and has no `out` yet.
struct SeparableOperands {
  Layout layout;
  Tensor x, depthwise_weight, pointwise_weight;
  OptTensor depthwise_bias, pointwise_bias, residual;
  SeparableForward forward;

  SeparableOperands(
      const SeparableProblem& problem, const Tensor& input, const Tensor& dw, const Tensor& pw, const OptTensor& db, const OptTensor& pb, const OptTensor& res)
      : layout(suggested_layout(input)),
        x(to_dense(input, layout)),
        depthwise_weight(to_dense(dw)),
        pointwise_weight(to_dense(pw)),
        depthwise_bias(to_dense(db)),
        pointwise_bias(to_dense(pb)),
        residual(to_dense(res, layout)),
        forward{
            problem.g, problem.o, parse_dtype(input, "input"), layout, problem.act.input, problem.act.depthwise, problem.act.pointwise, view(x, layout),
            depthwise_weight.const_data_ptr(), data_or_null(depthwise_bias), pointwise_weight.const_data_ptr(), data_or_null(pointwise_bias),
            view(residual, layout), {}} {}
};

}  // namespace fastconv
