// Every operator schema of fastconv, one comment each; nothing else.
//
// Conventions shared by all schemas
//   * Tensors are (N, C, H, W), contiguous or channels_last; results keep the format of the input.
//   * stride, dilation and kernel_size are (vertical, horizontal).
//   * Convolution padding is (top, bottom, left, right), so that "same" padding with an even kernel is expressible.
//   * Activations are one of identity, relu, relu6, silu, gelu, gelu_tanh, hardswish.
//   * allow_tf32: float32 products of the pointwise convolution may be taken in TF32 on CUDA devices; other devices ignore it.
//   * Backward operators return one tensor per gradient in a fixed order; where output_mask is false that tensor is empty (0 elements).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastconv, m) {
  // out = activation(conv2d(input, weight, bias, groups=C)); weight is (C*M, 1, Kh, Kw).
  m.def("depthwise_conv2d(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, str activation) -> Tensor");

  // Gradients of (input, weight, bias). `output` is the saved forward result for relu and relu6; for the other activations the
  // pre-activation is recomputed from `input`, `weight` and `bias`.
  m.def(
      "depthwise_conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? bias, Tensor? output, int[] stride, int[] padding, "
      "int[] dilation, str activation, bool[] output_mask) -> (Tensor, Tensor, Tensor)");

  // m = depthwise_activation(conv2d(input_activation(input), depthwise_weight, depthwise_bias, groups=C));
  // out = pointwise_activation(conv2d(m, pointwise_weight, pointwise_bias) + residual); m never reaches main memory.
  // pointwise_weight is (O, C*M) or (O, C*M, 1, 1).
  m.def(
      "depthwise_separable_conv2d(Tensor input, Tensor depthwise_weight, Tensor pointwise_weight, Tensor? depthwise_bias, Tensor? pointwise_bias, "
      "Tensor? residual, int[] stride, int[] padding, int[] dilation, str input_activation, str depthwise_activation, str pointwise_activation, "
      "bool allow_tf32=False) -> Tensor");

  // Gradients of (input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual); m is recomputed.
  m.def(
      "depthwise_separable_conv2d_backward(Tensor grad_output, Tensor input, Tensor depthwise_weight, Tensor pointwise_weight, Tensor? depthwise_bias, "
      "Tensor? pointwise_bias, Tensor? residual, Tensor? output, int[] stride, int[] padding, int[] dilation, str input_activation, "
      "str depthwise_activation, str pointwise_activation, bool[] output_mask, bool allow_tf32=False) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");

  // Max pool at every offset. fragments=False: the stitched dense map (N, C, Dh, Dw); fragments=True: (N*sy*sx, C, ceil(Dh/sy), ceil(Dw/sx)),
  // batch index (n*sy + oy)*sx + ox, short fragments filled up with `fill`.
  m.def(
      "shift_stitch_max_pool2d(Tensor input, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode, bool fragments, "
      "float fill) -> Tensor");

  // The same, and the argmax of every window as one byte, ky*Kw + kx (Kh*Kw <= 256): what autograd keeps.
  m.def(
      "shift_stitch_max_pool2d_argmax(Tensor input, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode, bool fragments, "
      "float fill) -> (Tensor, Tensor)");

  // The same, and int64 flat indices into the input plane, as torch.nn.functional.max_pool2d(return_indices=True) gives them (-1 in a fragment's tail).
  m.def(
      "shift_stitch_max_pool2d_indices(Tensor input, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode, bool fragments, "
      "float fill) -> (Tensor, Tensor)");

  // Gradient of input from `argmax` (one byte an element), or, when that is None, with the argmax recomputed from `input`.
  m.def(
      "shift_stitch_max_pool2d_backward(Tensor grad_output, Tensor? input, Tensor? argmax, SymInt[] input_size, int[] kernel_size, int[] stride, "
      "int[] padding, int[] dilation, bool ceil_mode, bool fragments) -> Tensor");

  // Average pool at every offset; count_include_pad and divisor_override as torch.nn.functional.avg_pool2d, and dilation.
  m.def(
      "shift_stitch_avg_pool2d(Tensor input, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode, bool count_include_pad, "
      "int? divisor_override, bool fragments, float fill) -> Tensor");

  // Gradient of input of the average pool.
  m.def(
      "shift_stitch_avg_pool2d_backward(Tensor grad_output, SymInt[] input_size, int[] kernel_size, int[] stride, int[] padding, int[] dilation, "
      "bool ceil_mode, bool count_include_pad, int? divisor_override, bool fragments) -> Tensor");

  // Replaces the measured choices that the CUDA kernels' planner goes by; lines of device, operator, dtype, layout, class and tile, with tabs between
  // (fastconv/tuning). Present where the CUDA library is.
  m.def("set_measured_tiles(str rows) -> ()");

  // (N, C, H, W) -> its sy*sx fragments (N*sy*sx, C, ceil(H/sy), ceil(W/sx)), position (oy + sy*u, ox + sx*v); tails filled with `fill`.
  m.def("shift(Tensor input, int[] stride, float fill) -> Tensor");

  // Inverse of shift: fragments -> the dense map (N, C, size[0], size[1]); tails are dropped.
  m.def("stitch(Tensor input, int[] stride, SymInt[] size) -> Tensor");
}
