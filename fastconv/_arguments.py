"""Checks and normalises the arguments of fastconv.functional: pairs, padding, shapes, dtypes, and the errors people read.

The checks run on every call and under torch.compile, so each is a plain comparison, and words are only put together
once one has failed.
"""

from operator import index

import torch

from ._meta import conv_output_size, dense_size
from .reference import ACTIVATIONS

_FLOATS = frozenset((torch.float32, torch.float16, torch.bfloat16, torch.float64))


def pair(op: str, name: str, value, least: int) -> tuple[int, int]:
    """An int, or a sequence of one or two ints, as (vertical, horizontal), none below `least`."""
    if type(value) is int:
        if value >= least:
            return value, value
    elif isinstance(value, (tuple, list)) and 1 <= len(value) <= 2:
        try:
            first, second = index(value[0]), index(value[-1])
        except TypeError:
            raise TypeError(f"{op}: {name} must hold ints, got {value!r}") from None
        if first >= least and second >= least:
            return first, second
    else:
        try:
            return pair(op, name, int(index(value)), least)
        except TypeError:
            raise TypeError(f"{op}: {name} must be an int or a pair of ints, got {value!r}") from None
    raise ValueError(f"{op}: {name} must be at least {least}, got {value!r}")


def activation(op: str, name: str, value: str) -> None:
    if value not in ACTIVATIONS:
        raise ValueError(f"{op}: {name} must be one of {', '.join(ACTIVATIONS)}, got {value!r}")


def batched(op: str, input: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) as it is, (C, H, W) with a batch of one; only the batch may be empty, as in torch."""
    if input.dim() == 3:
        input = input.unsqueeze(0)
    elif input.dim() != 4:
        raise ValueError(f"{op}: input must be (N, C, H, W) or (C, H, W), got {_shape(input)}")
    _, c, h, w = input.shape
    if c == 0 or h == 0 or w == 0:
        raise ValueError(f"{op}: input may be empty in its batch only, got {_shape(input)}")
    return input


def floating(op: str, input: torch.Tensor) -> None:
    if input.dtype not in _FLOATS:
        raise TypeError(f"{op}: input must be float32, float16, bfloat16 or float64, got {input.dtype}")


def conv(op: str, input, weight, stride, padding, dilation, name: str = "weight"):
    """Normalises (stride, padding, dilation), padding to (top, bottom, left, right), and checks `weight` and the output's size."""
    floating(op, input)
    if weight.dim() != 4 or weight.shape[1] != 1:
        raise ValueError(f"{op}: {name} must be (C*M, 1, Kh, Kw), got {_shape(weight)}")
    channels, (out_channels, _, kh, kw) = input.shape[1], weight.shape
    if out_channels == 0 or out_channels % channels != 0:
        raise ValueError(f"{op}: {name} must have a multiple of the input's {channels} channels in dimension 0, got {_shape(weight)}")
    if kh == 0 or kw == 0:
        raise ValueError(f"{op}: {name} must have a kernel of at least 1x1, got {_shape(weight)}")
    stride, dilation = pair(op, "stride", stride, 1), pair(op, "dilation", dilation, 1)
    padding = _conv_padding(op, padding, (kh, kw), stride, dilation)
    height = conv_output_size(input.shape[2], kh, stride[0], padding[0] + padding[1], dilation[0])
    width = conv_output_size(input.shape[3], kw, stride[1], padding[2] + padding[3], dilation[1])
    if height <= 0 or width <= 0:
        span = (dilation[0] * (kh - 1) + 1, dilation[1] * (kw - 1) + 1)
        padded = (input.shape[2] + padding[0] + padding[1], input.shape[3] + padding[2] + padding[3])
        raise ValueError(
            f"{op}: the kernel spans {span[0]}x{span[1]} pixels (kernel {kh}x{kw}, dilation {dilation}), more than the padded input's "
            f"{padded[0]}x{padded[1]}"
        )
    return stride, padding, dilation, (input.shape[0], out_channels, height, width)


def _conv_padding(op, padding, kernel, stride, dilation):
    if isinstance(padding, str):
        if padding == "valid":
            return 0, 0, 0, 0
        if padding != "same":
            raise ValueError(f'{op}: padding must be an int, a pair, "same" or "valid", got {padding!r}')
        if stride != (1, 1):
            raise ValueError(f'{op}: padding="same" needs stride 1, got stride {stride}')
        vertical, horizontal = dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1)
        # An odd total puts the extra row below and the extra column to the right, as torch does.
        return vertical // 2, vertical - vertical // 2, horizontal // 2, horizontal - horizontal // 2
    vertical, horizontal = pair(op, "padding", padding, 0)
    return vertical, vertical, horizontal, horizontal


def pointwise(op: str, weight: torch.Tensor, channels: int) -> None:
    if not (weight.dim() == 2 or (weight.dim() == 4 and weight.shape[2] == 1 and weight.shape[3] == 1)):
        raise ValueError(f"{op}: pointwise_weight must be (O, C*M) or (O, C*M, 1, 1), got {_shape(weight)}")
    if weight.shape[1] != channels or weight.shape[0] == 0:
        raise ValueError(f"{op}: pointwise_weight must be (O, {channels}), C*M being the depthwise output's channels, got {_shape(weight)}")


def bias(op: str, name: str, value: torch.Tensor | None, channels: int) -> None:
    if value is not None and value.shape != (channels,):
        raise ValueError(f"{op}: {name} must be ({channels},), one for each output channel, got {_shape(value)}")


def like_input(op: str, input: torch.Tensor, **tensors: torch.Tensor | None) -> None:
    """All on the input's device, and, outside autocast (which makes them so), in its dtype."""
    dtype, device = input.dtype, input.device
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype != dtype and not torch.is_autocast_enabled(device.type):
            raise TypeError(f"{op}: {name} must have the input's dtype {dtype}, got {tensor.dtype}")
        if tensor.device != device:
            raise ValueError(f"{op}: {name} must be on the input's device {device}, got {tensor.device}")


@torch.compiler.assume_constant_result
def convolutions_take_tf32() -> bool:
    """What torch.nn.functional.conv2d goes by on a CUDA device.

    Both of torch's interfaces arrive here: `torch.backends.cudnn.allow_tf32`, and `torch.backends.cudnn.conv.fp32_precision`
    with what it inherits from. Dynamo can neither trace the read nor guard on it: a compiled graph keeps what held when
    it was traced.
    """
    return torch.backends.cudnn.conv.fp32_precision == "tf32"


def allow_tf32(input: torch.Tensor) -> bool:
    """Whether the float32 products of a call may be taken in TF32; no CPU kernel does, so nothing is asked there."""
    return input.dtype == torch.float32 and input.device.type != "cpu" and convolutions_take_tf32()


def residual(op: str, input: torch.Tensor, value: torch.Tensor, shape) -> torch.Tensor:
    """The residual as (N, O, Ho, Wo); unbatched with an unbatched input."""
    expected = shape if input.dim() == 4 else shape[1:]
    if value.shape != expected:
        raise ValueError(f"{op}: residual must have the output's shape {tuple(expected)}, got {_shape(value)}")
    return value if input.dim() == 4 else value.unsqueeze(0)


def pool(op: str, input, kernel_size, stride, padding, dilation, ceil_mode: bool):
    """Normalises (kernel_size, stride, padding, dilation) and checks them, as max_pool2d does where it has the pool."""
    floating(op, input)
    kernel_size = pair(op, "kernel_size", kernel_size, 1)
    # max_pool2d takes an empty list for "as the kernel".
    stride = kernel_size if stride is None or stride == [] else pair(op, "stride", stride, 1)
    padding, dilation = pair(op, "padding", padding, 0), pair(op, "dilation", dilation, 1)
    # Beyond torch's limit for dilated pools: a strided pool made dense keeps its padding in units of its dilation.
    if padding[0] > dilation[0] * (kernel_size[0] // 2) or padding[1] > dilation[1] * (kernel_size[1] // 2):
        raise ValueError(
            f"{op}: padding must be at most dilation * (kernel_size // 2), got padding {padding}, kernel_size {kernel_size} and "
            f"dilation {dilation}"
        )
    height = dense_size(input.shape[2], kernel_size[0], stride[0], padding[0], dilation[0], ceil_mode)
    width = dense_size(input.shape[3], kernel_size[1], stride[1], padding[1], dilation[1], ceil_mode)
    if height <= 0 or width <= 0:
        raise ValueError(
            f"{op}: the output would be {height}x{width}: input {input.shape[2]}x{input.shape[3]} is too small for "
            f"kernel_size {kernel_size}, padding {padding}, dilation {dilation}"
        )
    return kernel_size, stride, padding, dilation


def layout(op: str, value: str) -> bool:
    """True for fragments."""
    if value == "stitched":
        return False
    if value == "fragments":
        return True
    raise ValueError(f'{op}: layout must be "stitched" or "fragments", got {value!r}')


def fragments(op: str, input: torch.Tensor, stride: tuple[int, int], size) -> tuple[int, int]:
    """Checks a batch of fragments and returns the size of their dense map."""
    sy, sx = stride
    if input.dim() != 4 or input.shape[0] % (sy * sx) != 0:
        raise ValueError(f"{op}: input must be (N*{sy}*{sx}, C, U, V) for stride {stride}, got {_shape(input)}")
    height, width = input.shape[2] * sy, input.shape[3] * sx
    if size is None:
        return height, width
    size = (size[0], size[-1]) if isinstance(size, (tuple, list)) and 1 <= len(size) <= 2 else (size, size)
    if not all(isinstance(length, (int, torch.SymInt)) for length in size):
        raise TypeError(f"{op}: size must be an int or a pair of ints, got {size!r}")
    # A symbolic size is left to the kernel's own check: that it fits is true but beyond what the compiler can prove.
    if not torch.compiler.is_compiling() and not (0 < size[0] <= height and 0 < size[1] <= width):
        raise ValueError(f"{op}: size must be between 1x1 and the {height}x{width} that the fragments cover, got {size}")
    return size


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
