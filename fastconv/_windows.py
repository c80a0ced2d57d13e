"""Sliding windows on a dense map or its fragments: sizes, padding, divisors, and the kernels that run them at stride 1 or at every offset.

The rule behind all of it: with r the distance, in rows of the dense map, of two rows that are neighbours in the strided network's map, a
layer of stride s, dilation d and padding p becomes one of stride 1, dilation d*r and padding p*r, and what follows has distance r*s. Then
rows 0, r*s, 2*r*s, ... of its output are the strided layer's output (Li et al., "Highly Efficient Forward and Backward Propagation of
Convolutional Neural Networks for Pixelwise Classification", 2014, arXiv:1412.4526).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from . import functional as FF

Pair = tuple[int, int]
Pads = tuple[int, int, int, int]


def pair(value) -> Pair:
    """An int or a sequence of one or two as (vertical, horizontal)."""
    if isinstance(value, (tuple, list)):
        return int(value[0]), int(value[-1])
    return int(value), int(value)


def scaled(pads: Pads, rate: Pair) -> Pads:
    return pads[0] * rate[0], pads[1] * rate[0], pads[2] * rate[1], pads[3] * rate[1]


def require_positive(what: str, size: Pair, source: Pair, need: str = "") -> None:
    if size[0] <= 0 or size[1] <= 0:
        raise ValueError(f"{what}: nothing is left of a {source[0]}x{source[1]} dense map{need}; give a larger input")


@dataclass(frozen=True)
class Window:
    """One convolution's or pool's geometry in the strided network. pads are (top, bottom, left, right)."""

    kind: str  # "conv", "max", "avg", or "pad" (a kernel of 1x1 with padding)
    kernel: Pair
    stride: Pair = (1, 1)
    pads: Pads = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int | None = None
    same: bool = False  # TensorFlow's "SAME": the padding follows from the input's size
    value: float = 0.0  # of kind "pad"
    mirrored: str = ""  # the mode of padding that copies from the map, such as "reflect"

    @property
    def padded(self) -> bool:
        return any(self.pads)

    @property
    def pad_value(self) -> float:
        return -torch.inf if self.kind == "max" else 0.0

    def resolved(self, lengths: Pair) -> Window:
        """This window with "SAME" padding worked out for the strided network's map of these lengths. Asymmetric padding raises a
        ValueError."""
        if not self.same:
            return self
        pads = []
        for axis, length in enumerate(lengths):
            k, s, d = self.kernel[axis], self.stride[axis], self.dilation[axis]
            total = max((-(-length // s) - 1) * s + d * (k - 1) + 1 - length, 0)
            if total % 2:
                raise ValueError(
                    f'TensorFlow "SAME" padding of a {k}-tap window of stride {s} on {length} {("rows", "columns")[axis]} is asymmetric '
                    f"({total // 2} before, {total - total // 2} after): the amount depends on the size of each shifted image, so there is no one "
                    "dense map; use an image size that is 1 more than a multiple of the total stride, such as 225 for 32"
                )
            pads += [total // 2, total // 2]
        return replace(self, pads=tuple(pads), same=False)

    @property
    def varying_divisor(self) -> bool:
        """Whether an average pool divides by different counts at different positions."""
        return self.kind == "avg" and self.divisor is None and ((self.padded and not self.count_include_pad) or self.ceil_mode)

    def strided_length(self, length: int, axis: int) -> int:
        """Output length of the strided layer along `axis`; 0 or less where the window does not fit."""
        k, s, d = self.kernel[axis], self.stride[axis], self.dilation[axis]
        if self.same:
            return -(-length // s)
        before, after = self.pads[2 * axis : 2 * axis + 2]
        room = length + before + after - d * (k - 1) - 1
        if not self.ceil_mode:
            return room // s + 1
        # In ceil mode a window may reach beyond the end, even the only one.
        last = -(-room // s)
        # torch drops a last window that would start beyond the input and its left padding.
        return last + 1 if last * s < length + before else last

    def dense_length(self, length: int, axis: int, rate: int) -> int:
        """Output length at stride 1 where the strided network's neighbours lie `rate` rows apart; 0 or less where nothing fits."""
        k, d = self.kernel[axis], self.dilation[axis]
        before, after = self.pads[2 * axis : 2 * axis + 2]
        dense = length + (before + after) * rate - d * rate * (k - 1)
        if self.ceil_mode:
            units = self.strided_length(-(-length // rate), axis)
            dense = max(dense, (units - 1) * self.stride[axis] * rate + 1) if units > 0 else 0
        return dense

    def dense_size(self, size: Pair, rate: Pair, what: str) -> Pair:
        out = (self.dense_length(size[0], 0, rate[0]), self.dense_length(size[1], 1, rate[1]))
        need = f" under a window of {self.kernel[0]}x{self.kernel[1]} whose taps lie {self.dilation[0] * rate[0]}x{self.dilation[1] * rate[1]} apart"
        require_positive(what, out, size, need)
        return out

    def taps_that_count(self, axis: int, length: int, step: int) -> Callable[[Tensor], Tensor]:
        """For an average pool: positions of the dense output -> number of taps in its divisor, `step` rows between two taps at dilation
        1."""
        before, after = (p * step for p in self.pads[2 * axis : 2 * axis + 2])
        low, high = (-before, length + after) if self.count_include_pad else (0, length)
        offsets = step * self.dilation[axis] * torch.arange(self.kernel[axis]) - before

        def count(positions: Tensor) -> Tensor:
            taps = positions[..., None] + offsets
            return ((taps >= low) & (taps < high)).sum(-1)

        return count


def conv(kernel, stride, padding, dilation) -> Window:
    kernel, stride, dilation = pair(kernel), pair(stride), pair(dilation)
    return Window("conv", kernel, stride, _conv_pads(padding, kernel, dilation), dilation)


def _conv_pads(padding, kernel: Pair, dilation: Pair) -> Pads:
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        # torch puts the odd one below and to the right.
        return totals[0] // 2, totals[0] - totals[0] // 2, totals[1] // 2, totals[1] - totals[1] // 2
    vertical, horizontal = pair(padding)
    return vertical, vertical, horizontal, horizontal


def max_pool(kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False) -> Window:
    stride = kernel_size if stride is None or stride == [] or stride == () else stride
    return Window("max", pair(kernel_size), pair(stride), _conv_pads(padding, (1, 1), (1, 1)), pair(dilation), bool(ceil_mode))


def avg_pool(kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, count_include_pad=True, divisor_override=None) -> Window:
    stride = kernel_size if stride is None or stride == [] or stride == () else stride
    pads = _conv_pads(padding, (1, 1), (1, 1))
    return Window("avg", pair(kernel_size), pair(stride), pads, pair(dilation), bool(ceil_mode), bool(count_include_pad), divisor_override)


def digits(index, strides: tuple[Pair, ...]):
    """(oy, ox) in the dense map of the fragments at these batch indices, a number or a tensor of them."""
    oy = ox = index * 0
    weights = [(1, 1)]
    for sy, sx in strides:
        weights.append((weights[-1][0] * sy, weights[-1][1] * sx))
    for (sy, sx), (wy, wx) in zip(reversed(strides), reversed(weights[:-1]), strict=True):
        ox = ox + wx * (index % sx)
        index = index // sx
        oy = oy + wy * (index % sy)
        index = index // sy
    return oy, ox


def offsets_row_major(tensor: Tensor, strides: tuple[Pair, ...]) -> Tensor:
    """Nested fragments, newest digit fastest, put in the order of one layer of the total stride: (N, oy, ox)."""
    levels = len(strides)
    channels_last = tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    x = tensor.permute(0, 2, 3, 1) if channels_last else tensor
    x = x.reshape(-1, *(s for level in strides for s in level), *x.shape[1:])
    rows, columns = range(2 * levels - 1, 0, -2), range(2 * levels, 0, -2)
    x = x.permute(0, *rows, *columns, *range(2 * levels + 1, 2 * levels + 4)).reshape(tensor.shape[0], *x.shape[-3:])
    return x.permute(0, 3, 1, 2) if channels_last else x


def run_conv(x: Tensor, weight: Tensor, bias: Tensor | None, pads: Pads, dilation: Pair, groups: int) -> Tensor:
    """A convolution at stride 1; `pads` may differ from side to side."""
    if min(pads) < 0 or pads[0] != pads[1] or pads[2] != pads[3]:
        x, pads = F.pad(x, (pads[2], pads[3], pads[0], pads[1])), (0, 0, 0, 0)
    if groups > 1 and groups == x.shape[1] and weight.shape[1] == 1:
        return FF.depthwise_conv2d(x, weight, bias, 1, (pads[0], pads[2]), dilation)
    return F.conv2d(x, weight, bias, 1, (pads[0], pads[2]), dilation, groups)


def run_pool(x: Tensor, window: Window, rate: Pair, rows: Pair, stride: Pair, fragments: bool) -> Tensor:
    """A pool at every offset, `rows` of output, dilation and padding times `rate`; dealt out by `stride` where `fragments`.

    An average pool with a varying divisor returns sums.
    """
    pads = scaled(window.pads, rate)
    dilation = (window.dilation[0] * rate[0], window.dilation[1] * rate[1])
    have = [x.shape[2 + axis] + pads[2 * axis] + pads[2 * axis + 1] - dilation[axis] * (window.kernel[axis] - 1) for axis in (0, 1)]
    extra = (rows[0] - have[0], rows[1] - have[1])
    op_takes = pads[0] == pads[1] <= window.kernel[0] // 2 and pads[2] == pads[3] <= window.kernel[1] // 2
    if extra != (0, 0) or not op_takes:
        x = F.pad(x, (pads[2], pads[3] + extra[1], pads[0], pads[1] + extra[0]), value=window.pad_value)
        pads = (0, 0, 0, 0)
    layout = "fragments" if fragments else "stitched"
    padding = (pads[0], pads[2])
    if window.kind == "max":
        return FF.shift_stitch_max_pool2d(x, window.kernel, stride, padding, dilation, layout=layout)
    divisor = 1 if window.varying_divisor else window.divisor
    return FF.shift_stitch_avg_pool2d(x, window.kernel, stride, padding, dilation, divisor_override=divisor, layout=layout)
