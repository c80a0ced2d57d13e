// The same operators as compositions of ATen calls, through the dispatcher: the path of float64, and what the planner takes where a
// library call wins. Runs on any device.
#pragma once
#include <array>
#include <tuple>

#include "check.h"

namespace fastconv::library {

struct ConvArgs {
  std::vector<int64_t> stride, padding, dilation;
};
struct Activations {
  Activation input = Activation::identity, depthwise = Activation::identity, pointwise = Activation::identity;
};

Tensor activate(const Tensor& x, Activation a);
// grad * d activation at pre-activation x.
Tensor activate_backward(const Tensor& grad, const Tensor& x, Activation a);

Tensor depthwise(const Tensor& input, const Tensor& weight, const OptTensor& bias, const ConvArgs& args, Activation activation);
std::tuple<Tensor, Tensor, Tensor> depthwise_backward(
    const Tensor& grad, const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& output, const ConvArgs& args, Activation activation,
    const std::vector<bool>& mask);

Tensor separable(
    const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight, const OptTensor& depthwise_bias, const OptTensor& pointwise_bias,
    const OptTensor& residual, const ConvArgs& args, const Activations& act);
// activation(conv2d(m, weight, bias) + residual); `rows`: m is channels_last and its pixels are the rows of a matrix product, with the bias fused.
Tensor pointwise(const Tensor& m, const Tensor& weight, const OptTensor& bias, const OptTensor& residual, Activation activation, bool rows);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> separable_backward(
    const Tensor& grad, const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight, const OptTensor& depthwise_bias,
    const OptTensor& pointwise_bias, const OptTensor& residual, const OptTensor& output, const ConvArgs& args, const Activations& act,
    const std::vector<bool>& mask);

}  // namespace fastconv::library
