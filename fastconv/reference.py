"""Every operator as a readable composition of torch.nn.functional calls, in the order of csrc/ops.cpp.

The functions take the operators' own arguments (padding as (top, bottom, left, right), pairs everywhere; see
csrc/ops.cpp), so that this module can stand in for torch.ops.fastconv. It runs on any device and in any
floating-point dtype, is differentiable any number of times, and is what the tests call true and what the benchmark
calls a rival.
"""

import torch
import torch.nn.functional as F
from torch._prims_common import suggest_memory_format

from ._meta import pool_output_shape

ACTIVATIONS = {
    "identity": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish,
}


def _keep_format(out, input):
    return out.contiguous(memory_format=suggest_memory_format(input))


def _conv2d(input, weight, bias, stride, padding, dilation, groups):
    top, bottom, left, right = padding
    if top == bottom and left == right:
        return F.conv2d(input, weight, bias, stride, (top, left), dilation, groups)
    return F.conv2d(F.pad(input, (left, right, top, bottom)), weight, bias, stride, 0, dilation, groups)


def depthwise_conv2d(input, weight, bias, stride, padding, dilation, activation):
    out = _conv2d(input, weight, bias, stride, padding, dilation, groups=input.shape[1])
    return _keep_format(ACTIVATIONS[activation](out), input)


def depthwise_separable_conv2d(
    input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual, stride, padding, dilation, input_activation,
    depthwise_activation, pointwise_activation, allow_tf32=False,
):  # fmt: skip
    # allow_tf32 is not looked at: torch's convolutions read torch's own flags.
    m = _conv2d(ACTIVATIONS[input_activation](input), depthwise_weight, depthwise_bias, stride, padding, dilation, groups=input.shape[1])
    m = ACTIVATIONS[depthwise_activation](m)
    out = F.conv2d(m, pointwise_weight.reshape(*pointwise_weight.shape[:2], 1, 1), pointwise_bias)
    if residual is not None:
        out = out + residual.to(out.dtype)
    return _keep_format(ACTIVATIONS[pointwise_activation](out), input)


def _dense_max_pool(input, kernel_size, stride, padding, dilation, ceil_mode):
    """The stride-1 pool with indices into the input; ceil mode asks for windows beyond the symmetric padding, on the right only."""
    height, width = input.shape[2:]
    _, _, *dense = pool_output_shape(input.shape, kernel_size, stride, padding, dilation, ceil_mode, False)
    _, _, *floor = pool_output_shape(input.shape, kernel_size, stride, padding, dilation, False, False)
    below, beside = dense[0] - floor[0], dense[1] - floor[1]
    torch_pads = padding[0] <= kernel_size[0] // 2 and padding[1] <= kernel_size[1] // 2
    top, left = (0, 0) if torch_pads else padding
    padded = F.pad(input, (left, left + beside, top, top + below), value=-torch.inf)
    out, indices = F.max_pool2d(padded, kernel_size, 1, padding if torch_pads else 0, dilation, return_indices=True)
    indices = (indices // padded.shape[3] - top) * width + indices % padded.shape[3] - left

    axes = list(zip((height, width), dense, kernel_size, padding, dilation, strict=True))
    rows, columns = (_taps_inside(*axis, 0).to(input.device) for axis in axes)
    some = rows[:, None] * columns > 0
    if not torch_pads:
        # Padding that is part of the map may win where all is -inf; the first tap inside should, and should have the gradient.
        first_y, first_x = (_first_tap_inside(*axis).to(input.device) for axis in axes)
        indices = torch.where(some & (out == -torch.inf), first_y[:, None] * width + first_x, indices)
        out = input.flatten(2).gather(2, indices.where(some, 0).flatten(2)).view_as(indices).where(some, -torch.inf)
    # torch's index of a window without a tap inside the map points outside the plane.
    indices = indices.where(some, -1)
    return _keep_format(out, input), _keep_format(indices, input)


def _first_tap_inside(size, dense, kernel, padding, dilation):
    """For each window of one axis, the position of its first tap that is not left of the input."""
    start = torch.arange(dense) - padding
    return torch.where(start < 0, start % dilation, start)


def _taps_inside(size, dense, kernel, padding, dilation, edge):
    """For each window of one axis, how many of its taps lie in the input prolonged by `edge` on both sides."""
    taps = torch.arange(dense)[:, None] - padding + dilation * torch.arange(kernel)
    return ((taps >= -edge) & (taps < size + edge)).sum(1)


def shift_stitch_max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, fragments, fill):
    out, _ = _dense_max_pool(input, kernel_size, stride, padding, dilation, ceil_mode)
    return shift(out, stride, fill) if fragments else out


def shift_stitch_max_pool2d_argmax(input, kernel_size, stride, padding, dilation, ceil_mode, fragments, fill):
    out, indices = _dense_max_pool(input, kernel_size, stride, padding, dilation, ceil_mode)
    start_y = torch.arange(out.shape[2], device=input.device)[:, None] - padding[0]
    start_x = torch.arange(out.shape[3], device=input.device) - padding[1]
    tap_y = (indices // input.shape[3] - start_y) // dilation[0]
    tap_x = (indices % input.shape[3] - start_x) // dilation[1]
    argmax = _keep_format((tap_y * kernel_size[1] + tap_x).to(torch.uint8), input)
    return (shift(out, stride, fill), shift(argmax, stride, 0)) if fragments else (out, argmax)


def shift_stitch_max_pool2d_indices(input, kernel_size, stride, padding, dilation, ceil_mode, fragments, fill):
    out, indices = _dense_max_pool(input, kernel_size, stride, padding, dilation, ceil_mode)
    return (shift(out, stride, fill), shift(indices, stride, -1)) if fragments else (out, indices)


def shift_stitch_avg_pool2d(
    input, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override, fragments, fill
):  # fmt: skip
    size = input.shape[2:]
    dense = pool_output_shape(input.shape, kernel_size, stride, padding, dilation, ceil_mode, False)[2:]
    # Right padding up to the last tap of the last window, so that one depthwise convolution with ones sums every window.
    right = [d - 1 + dil * (k - 1) + 1 - p - s for d, dil, k, p, s in zip(dense, dilation, kernel_size, padding, size, strict=True)]
    # torch sums 16-bit windows in float32 and rounds once.
    wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    padded = F.pad(wide, (padding[1], max(right[1], 0), padding[0], max(right[0], 0)))
    ones = padded.new_ones(input.shape[1], 1, *kernel_size)
    total = F.conv2d(padded, ones, None, 1, 0, dilation, groups=input.shape[1])[:, :, : dense[0], : dense[1]]

    if divisor_override is None:
        # Taps beyond the symmetric padding, which only ceil mode reaches, never count. A window without any tap is 0.
        edge = padding if count_include_pad else (0, 0)
        rows, columns = (_taps_inside(*axis) for axis in zip(size, dense, kernel_size, padding, dilation, edge, strict=True))
        divisor = (rows[:, None] * columns).clamp(min=1).to(total)
    else:
        divisor = divisor_override
    out = (total / divisor).to(input.dtype)
    out = _keep_format(out, input)
    return shift(out, stride, fill) if fragments else out


def shift(input, stride, fill):
    n, c, h, w = input.shape
    sy, sx = stride
    padded = F.pad(input, (0, -w % sx, 0, -h % sy), value=fill)
    u, v = padded.shape[2] // sy, padded.shape[3] // sx
    out = padded.reshape(n, c, u, sy, v, sx).permute(0, 3, 5, 1, 2, 4).reshape(n * sy * sx, c, u, v)
    return _keep_format(out, input)


def stitch(input, stride, size):
    n, c, u, v = input.shape
    sy, sx = stride
    dense = input.reshape(n // (sy * sx), sy, sx, c, u, v).permute(0, 3, 4, 1, 5, 2).reshape(n // (sy * sx), c, u * sy, v * sx)
    return _keep_format(dense[:, :, : size[0], : size[1]], input)
