"""Shapes, strides and dtypes of every operator's results: the only shape logic in Python (csrc/common/shape.h is the one in C++).

The fakes serve torch.compile, torch.export and the meta device. Sizes may be symbolic, so nothing here branches on a
size where a minimum or maximum says the same.
"""

import torch
from torch._prims_common import suggest_memory_format

Ints = list[int] | tuple[int, ...]


def conv_output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """floor((size + padding - dilation*(kernel - 1) - 1) / stride) + 1; `padding` counts both sides."""
    return (size + padding - dilation * (kernel - 1) - 1) // stride + 1


def dense_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Length of the stitched map: the stride-1 pool's output, in ceil mode prolonged to the strided pool's last window."""
    dense = size + 2 * padding - dilation * (kernel - 1)
    if not ceil_mode:
        return dense
    # The last window must start inside the input or its left padding: torch drops it otherwise.
    last = torch.sym_min((dense - 1 + stride - 1) // stride, (size + padding - 1) // stride)
    return torch.sym_max(dense, last * stride + 1)


def fragment_size(dense: int, stride: int) -> int:
    """Rows of the longest fragment, the one at offset 0: ceil(dense / stride)."""
    return (dense + stride - 1) // stride


def conv_output_shape(input_shape, channels, kernel, stride, padding, dilation) -> tuple[int, ...]:
    """(N, channels, Ho, Wo); padding is (top, bottom, left, right)."""
    top, bottom, left, right = padding
    return (
        input_shape[0],
        channels,
        conv_output_size(input_shape[2], kernel[0], stride[0], top + bottom, dilation[0]),
        conv_output_size(input_shape[3], kernel[1], stride[1], left + right, dilation[1]),
    )


def fragment_shape(dense_shape, stride) -> tuple[int, ...]:
    """Shape of the fragments of a dense map."""
    n, c, h, w = dense_shape
    return n * stride[0] * stride[1], c, fragment_size(h, stride[0]), fragment_size(w, stride[1])


def pool_output_shape(input_shape, kernel_size, stride, padding, dilation, ceil_mode, fragments) -> tuple[int, ...]:
    """Shape of the stitched map or of its fragments."""
    n, c, *size = input_shape
    dense = (n, c, *(dense_size(*axis, ceil_mode) for axis in zip(size, kernel_size, stride, padding, dilation, strict=True)))
    return fragment_shape(dense, stride) if fragments else dense


def _like(tensor, shape, dtype=None):
    """An uninitialised result in the memory format of `tensor`, which every result keeps."""
    return torch.empty(shape, dtype=dtype or tensor.dtype, device=tensor.device, memory_format=suggest_memory_format(tensor))


def _gradient(wanted, tensor, shape=None):
    """A parameter's gradient is contiguous; one that is not wanted has no elements."""
    if not wanted:
        return tensor.new_empty((0,))
    return tensor.new_empty(tensor.shape if shape is None else shape)


def _depthwise_conv2d(input, weight, bias, stride, padding, dilation, activation):
    return _like(input, conv_output_shape(input.shape, weight.shape[0], weight.shape[2:], stride, padding, dilation))


def _depthwise_conv2d_backward(grad_output, input, weight, bias, output, stride, padding, dilation, activation, output_mask):
    return (
        _like(input, input.shape) if output_mask[0] else input.new_empty((0,)),
        _gradient(output_mask[1], weight),
        _gradient(output_mask[2], weight, weight.shape[:1]),
    )


def _depthwise_separable_conv2d(
    input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual, stride, padding, dilation, input_activation,
    depthwise_activation, pointwise_activation, allow_tf32=False,
):  # fmt: skip
    shape = conv_output_shape(input.shape, pointwise_weight.shape[0], depthwise_weight.shape[2:], stride, padding, dilation)
    return _like(input, shape)


def _depthwise_separable_conv2d_backward(
    grad_output, input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual, output, stride, padding, dilation,
    input_activation, depthwise_activation, pointwise_activation, output_mask, allow_tf32=False,
):  # fmt: skip
    return (
        _like(input, input.shape) if output_mask[0] else input.new_empty((0,)),
        _gradient(output_mask[1], depthwise_weight),
        _gradient(output_mask[2], pointwise_weight),
        _gradient(output_mask[3], depthwise_weight, depthwise_weight.shape[:1]),
        _gradient(output_mask[4], pointwise_weight, pointwise_weight.shape[:1]),
        _like(input, grad_output.shape) if output_mask[5] else input.new_empty((0,)),
    )


def _max_pool(input, kernel_size, stride, padding, dilation, ceil_mode, fragments, fill):
    return _like(input, pool_output_shape(input.shape, kernel_size, stride, padding, dilation, ceil_mode, fragments))


def _max_pool_argmax(*args):
    out = _max_pool(*args)
    return out, _like(args[0], out.shape, torch.uint8)


def _max_pool_indices(*args):
    out = _max_pool(*args)
    return out, _like(args[0], out.shape, torch.int64)


def _max_pool_backward(grad_output, input, argmax, input_size, kernel_size, stride, padding, dilation, ceil_mode, fragments):
    return _like(grad_output, input_size)


def _avg_pool(input, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override, fragments, fill):
    return _like(input, pool_output_shape(input.shape, kernel_size, stride, padding, dilation, ceil_mode, fragments))


def _avg_pool_backward(
    grad_output, input_size, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override, fragments
):  # fmt: skip
    return _like(grad_output, input_size)


def _shift(input, stride, fill):
    return _like(input, fragment_shape(input.shape, stride))


def _stitch(input, stride, size):
    return _like(input, (input.shape[0] // (stride[0] * stride[1]), input.shape[1], *size))


_FAKES = {
    "depthwise_conv2d": _depthwise_conv2d,
    "depthwise_conv2d_backward": _depthwise_conv2d_backward,
    "depthwise_separable_conv2d": _depthwise_separable_conv2d,
    "depthwise_separable_conv2d_backward": _depthwise_separable_conv2d_backward,
    "shift_stitch_max_pool2d": _max_pool,
    "shift_stitch_max_pool2d_argmax": _max_pool_argmax,
    "shift_stitch_max_pool2d_indices": _max_pool_indices,
    "shift_stitch_max_pool2d_backward": _max_pool_backward,
    "shift_stitch_avg_pool2d": _avg_pool,
    "shift_stitch_avg_pool2d_backward": _avg_pool_backward,
    "shift": _shift,
    "stitch": _stitch,
}


def register(namespace: str) -> None:
    """Gives every operator of a namespace that carries these schemas its fake."""
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"{namespace}::{name}", fake)
