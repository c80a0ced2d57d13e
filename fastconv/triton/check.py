"""Arguments of an operator -> checked geometry, for callers of torch.ops.fastconv_triton: `fastconv.functional` checks before, in Python's
names. The refusals are those of csrc/common/check.h and check_pool.h, word for word; a test holds both against the same mistakes."""

import torch

from ..reference import ACTIVATIONS
from .launch import Conv, Pool

_FLOATS = frozenset((torch.float32, torch.float16, torch.bfloat16))


def _shape(sizes) -> str:
    return f"({', '.join(map(str, sizes))})"


def _refuse(argument: str, message: str):
    raise RuntimeError(f"{argument}: {message}")


def floating(tensor: torch.Tensor, argument: str) -> None:
    if tensor.dtype not in _FLOATS:
        _refuse(argument, f"expected float32, float16 or bfloat16, got {tensor.dtype}")


def four_dimensions(tensor: torch.Tensor, argument: str) -> None:
    if tensor.dim() != 4:
        _refuse(argument, f"expected 4 dimensions (N, C, H, W), got shape {_shape(tensor.shape)}")


def integers(values, argument: str, length: int, least: int) -> None:
    if len(values) != length:
        _refuse(argument, f"expected {length} integers, got {len(values)}")
    for value in values:
        if value < least:
            _refuse(argument, f"expected values >= {least}, got {value}")


def strides_fit(sizes, argument: str) -> None:
    """Offsets take 64 bits where a map needs them, strides of planes and rows stay at 32 (`language.strides`)."""
    _, c, h, w = sizes
    if (c > 1 and h * w >= 2**31) or (h > 1 and c * w >= 2**31):
        _refuse(argument, f"the Triton kernels take several planes or rows of fewer than 2^31 elements each, got {_shape(sizes)}")


def _same_kind(tensor: torch.Tensor, argument: str, input: torch.Tensor) -> None:
    if tensor.dtype != input.dtype:
        _refuse(argument, "its dtype differs from the dtype of input")
    if tensor.device != input.device:
        _refuse(argument, "its device differs from the device of input")


def vector(tensor: torch.Tensor | None, argument: str, length: int, input: torch.Tensor) -> None:
    if tensor is None:
        return
    _same_kind(tensor, argument, input)
    if tensor.dim() != 1 or tensor.shape[0] != length:
        _refuse(argument, f"expected shape ({length}), got {_shape(tensor.shape)}")


def size(tensor: torch.Tensor, argument: str, expected) -> None:
    if tuple(tensor.shape) != tuple(expected):
        _refuse(argument, f"expected shape {_shape(expected)}, got {_shape(tensor.shape)}")


def tensor_map(tensor: torch.Tensor | None, argument: str, expected, input: torch.Tensor) -> None:
    if tensor is not None:
        _same_kind(tensor, argument, input)
        size(tensor, argument, expected)


def activation(name: str, argument: str) -> None:
    if name not in ACTIVATIONS:
        _refuse(argument, f"expected one of {', '.join(ACTIVATIONS)}, got '{name}'")


def mask(output_mask, length: int) -> None:
    if len(output_mask) != length:
        _refuse("output_mask", f"expected {length} booleans, got {len(output_mask)}")


def conv(input, weight, weight_name: str, bias, bias_name: str, stride, padding, dilation) -> Conv:
    """The geometry of a depthwise convolution whose arguments fit together."""
    four_dimensions(input, "input")
    floating(input, "input")
    _same_kind(weight, weight_name, input)
    integers(stride, "stride", 2, 1)
    integers(padding, "padding", 4, 0)
    integers(dilation, "dilation", 2, 1)
    channels, shape = input.shape[1], weight.shape
    if len(shape) != 4 or shape[1] != 1 or min(channels, shape[0], shape[2], shape[3]) < 1 or shape[0] % channels:
        expected = f"expected shape (C*M, 1, Kh, Kw) with C = {channels} channels of input and M >= 1"
        _refuse(weight_name, f"{expected}, got {_shape(shape)}")
    vector(bias, bias_name, shape[0], input)
    result = Conv.of(input, weight, stride, padding, dilation)
    if result.oh < 1 or result.ow < 1:
        spans = (dilation[0] * (shape[2] - 1) + 1, dilation[1] * (shape[3] - 1) + 1)
        _refuse("input", f"{_shape(input.shape)} with its padding is smaller than the dilated kernel {_shape(spans)}")
    strides_fit(input.shape, "input")
    strides_fit(result.out_shape, "output")
    return result


def pointwise(weight: torch.Tensor, in_channels: int, input: torch.Tensor) -> int:
    """Its output channels."""
    _same_kind(weight, "pointwise_weight", input)
    shape = weight.shape
    if (len(shape) != 2 and (len(shape) != 4 or shape[2] != 1 or shape[3] != 1)) or shape[1] != in_channels or shape[0] < 1:
        expected = f"expected shape (O, C*M) or (O, C*M, 1, 1) with C*M = {in_channels}"
        _refuse("pointwise_weight", f"{expected}, got {_shape(shape)}")
    return shape[0]


def separable(input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, stride, padding, dilation) -> tuple[Conv, int]:
    """The geometry of the depthwise part, and the output channels."""
    result = conv(input, depthwise_weight, "depthwise_weight", depthwise_bias, "depthwise_bias", stride, padding, dilation)
    out_channels = pointwise(pointwise_weight, result.out_channels, input)
    vector(pointwise_bias, "pointwise_bias", out_channels, input)
    strides_fit((result.n, out_channels, result.oh, result.ow), "output")
    return result, out_channels


def activations(input_activation: str, depthwise_activation: str, pointwise_activation: str) -> tuple[str, str, str]:
    activation(input_activation, "input_activation")
    activation(depthwise_activation, "depthwise_activation")
    activation(pointwise_activation, "pointwise_activation")
    return input_activation, depthwise_activation, pointwise_activation


def pool(sizes, argument: str, kernel_size, stride, padding, dilation, ceil_mode: bool, fragments: bool) -> Pool:
    """The geometry of a pool of a map of `sizes`, which messages call `argument`."""
    integers(kernel_size, "kernel_size", 2, 1)
    integers(stride, "stride", 2, 1)
    integers(padding, "padding", 2, 0)
    integers(dilation, "dilation", 2, 1)
    if len(sizes) != 4 or sizes[0] < 0 or min(sizes[1:]) < 1:
        _refuse(argument, f"expected (N, C, H, W) with C, H and W of at least 1, got {_shape(sizes)}")
    if kernel_size[0] * kernel_size[1] >= 2**31:
        _refuse("kernel_size", f"expected at most 2^31 - 1 taps, got {_shape(kernel_size)}")
    result = Pool.of(sizes, kernel_size, stride, padding, dilation, ceil_mode, fragments)
    if result.dense_h < 1 or result.dense_w < 1:
        spans = (dilation[0] * (kernel_size[0] - 1) + 1, dilation[1] * (kernel_size[1] - 1) + 1)
        _refuse(argument, f"{_shape(sizes)} with padding {_shape(padding)} is smaller than the dilated kernel {_shape(spans)}")
    strides_fit(sizes, argument)
    strides_fit((result.n, result.c, result.dense_h, result.dense_w), "output")
    return result


def pool_of_map(input, kernel_size, stride, padding, dilation, ceil_mode: bool, fragments: bool) -> Pool:
    four_dimensions(input, "input")
    floating(input, "input")
    return pool(input.shape, "input", kernel_size, stride, padding, dilation, ceil_mode, fragments)


def argmax_taps(pool: Pool) -> None:
    if pool.kh * pool.kw > 256:
        taps = f"{pool.kh * pool.kw} of {_shape((pool.kh, pool.kw))}"
        _refuse("kernel_size", f"the argmax holds one of at most 256 taps, got {taps}")


def max_pool_backward(grad_output, input, argmax, pool: Pool) -> None:
    size(grad_output, "grad_output", pool.shape)
    if argmax is None and input is None:
        _refuse("argmax", "expected the argmax of the forward pass, or else its input to recompute it from; got neither")
    if argmax is None:
        _same_kind(input, "input", grad_output)
        size(input, "input", (pool.n, pool.c, pool.h, pool.w))
        return
    argmax_taps(pool)
    size(argmax, "argmax", pool.shape)
    if argmax.dtype != torch.uint8:
        _refuse("argmax", "expected dtype uint8")


def divisor(divisor_override: int | None) -> None:
    if divisor_override == 0:
        _refuse("divisor_override", "expected a divisor other than 0, got 0")


def shift(input: torch.Tensor, stride) -> None:
    four_dimensions(input, "input")
    integers(stride, "stride", 2, 1)
    floating(input, "input")
    strides_fit(input.shape, "input")


def stitch(input: torch.Tensor, stride, size) -> None:
    shift(input, stride)
    integers(size, "size", 2, 0)
    (n, _, u, v), (sy, sx) = input.shape, stride
    if n % (sy * sx):
        _refuse("input", f"expected a batch that is a multiple of {sy}*{sx} fragments, got shape {_shape(input.shape)}")
    if size[0] > u * sy or size[1] > v * sx:
        _refuse("size", f"expected at most {_shape((u * sy, v * sx))}, which the fragments cover, got {_shape(size)}")
    strides_fit((n, input.shape[1], *size), "size")
