"""Network-level shift-and-stitch: the strided network on every shifted image, the outputs interleaved."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _arguments as check
from .. import _windows as windows
from .. import functional as FF
from ..fragments import Fragments
from .progress import Progress, reporter

Pair = tuple[int, int]
BORDERS = ("dense", "pad", "crop")


def shift_and_stitch(
    model: Callable[[Tensor], Tensor], x: Tensor, stride: int | Pair, border: str = "dense", *, chunk: int = 1, progress: Progress = None
) -> Tensor:
    r"""Evaluates a strided network at every position by running it on all shifted images: s*s runs, no change to the network.

    Long et al., "Fully Convolutional Networks for Semantic Segmentation", 2015 (arXiv:1411.4038), section 3.2; Sermanet et al., "OverFeat",
    2014 (arXiv:1312.6229). Unit u of the run on the image shifted right by q is position ``stride*u - q`` of the dense map. The slow way of
    the three, but one that treats the network as a black box; `to_dense` gives the same numbers.

    Args:
        model: images (N, C, H, W) -> maps (N, K, H', W').
        x: the images.
        stride: the network's total stride, int or pair.
        border: what happens at the edge of the image.
            "dense": what `to_dense` gives, everywhere. Each layer runs at the offset of the run, so its padding stays where it is. Needs a
            model made of the torch functions that `Fragments` knows. "pad": zeros in front of the image. "crop": the image's first rows and
            columns cut off. Any callable; where the network pads inside, these two differ from "dense" in the first outputs of the map
            (within the receptive field of the edge), nowhere else; where it does not pad, "crop" is equal to "dense" everywhere, "pad"
            wherever it does not see the zeros.
        chunk: with border="dense", how many offsets run at a time. More share their first layers; memory grows with it.
        progress: True for a line on stderr, or a function of (runs done, runs in all).

    Returns:
        The dense map (N, K, D, E). ``[..., ::stride, ::stride]`` is ``model(x)``.

    Raises:
        ValueError: a stride that is not the network's, an image too small, an argument that does not fit.
        TypeError: with border="dense", an operation that `Fragments` does not know, by name.
    """
    if border not in BORDERS:
        raise ValueError(f"border: got {border!r}; supported are {', '.join(BORDERS)}")
    if not isinstance(x, Tensor) or x.dim() != 4:
        raise ValueError(f"x: must be a tensor (N, C, H, W), got {tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__}")
    stride = check.pair("shift_and_stitch", "stride", stride, 1)
    if not isinstance(chunk, int) or chunk < 1 or (chunk > 1 and border != "dense"):
        raise ValueError(f"chunk: must be 1 with border={border!r}, whose runs have different sizes, and at least 1 otherwise; got {chunk}")
    report = reporter(progress, "shift_and_stitch")
    if chunk > 1 and x.shape[0] > 0:
        return _in_chunks(model, x, stride, chunk, report)
    if border == "dense":
        return _assemble(_dense_runs(model, x, stride), stride, report)
    return _assemble(_black_box_runs(model, x, stride, border), stride, report)


# ---- border="dense"
# --------------------------------------------------------------------------------------------------------------------------


class _Run(Fragments):
    """The map of one run: one fragment, exactly as long as it is, and the offset that it is on its way to."""

    def _at(self, tensor: Tensor, strides: tuple, dense_size: Pair) -> _Run:
        new = type(self).__new__(type(self))
        new._set(tensor, strides, dense_size, 0, None, owned=False, axes=self._axes)
        new.offset = self.offset
        return new

    def _like(self, tensor, dense_size=None, owned=True, axes=None):
        new = self._at(tensor, self.strides, dense_size or self.dense_size)
        new._axes = axes or self._axes
        return new

    def fill_tail(self, value: float) -> _Run:
        return self

    def _digit(self, stride: Pair) -> Pair:
        return tuple((o // f) % s for o, f, s in zip(self.offset, self.stride, stride, strict=True))

    def shift(self, stride) -> _Run:
        stride = windows.pair(stride)
        y, x = self._digit(stride)
        return self._at(self.tensor[:, :, y :: stride[0], x :: stride[1]], (*self.strides, stride), self.dense_size)

    def _through(self, window: windows.Window, what: str, channels: int, layer: Callable[[Tensor], Tensor]) -> _Run:
        """`layer`, strided and without padding, on the input padded and cut so that its first window is this run's first, and its last the
        last."""
        size = window.dense_size(self.dense_size, self.stride, what)
        strides = (*self.strides, window.stride)
        amounts, lengths = [], []
        for axis, digit in enumerate(self._digit(window.stride)):
            stride = self.stride[axis] * window.stride[axis]
            rows = max((size[axis] - 1 - self.offset[axis] % stride) // stride + 1, 0)
            span = (rows - 1) * window.stride[axis] + window.dilation[axis] * (window.kernel[axis] - 1) + 1
            before = window.pads[2 * axis] - digit
            amounts.append((before, span - self.tensor.shape[2 + axis] - before))
            lengths.append(rows)
        if 0 in lengths:
            # A map smaller than the stride has no position at this offset; padding may give later layers some again.
            return self._at(self.tensor.new_empty(self.tensor.shape[0], channels, *lengths), strides, size)
        (top, bottom), (left, right) = amounts
        x = F.pad(self.tensor, (left, right, top, bottom), value=window.pad_value) if any((top, bottom, left, right)) else self.tensor
        return self._at(layer(x), strides, size)

    def conv2d(self, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> _Run:
        window = windows.conv(weight.shape[2:], stride, padding, dilation)
        return self._through(
            window, "conv2d", weight.shape[0], lambda x: F.conv2d(x, weight, bias, window.stride, 0, window.dilation, groups)
        )

    def pool(self, window: windows.Window, rate: Pair = (1, 1), deal: bool = True) -> _Run:
        if window.kind == "max":
            return self._through(
                window, "max_pool2d", self.tensor.shape[1], lambda x: F.max_pool2d(x, window.kernel, window.stride, 0, window.dilation)
            )
        divisor = 1 if window.varying_divisor else window.divisor
        new = self._through(
            window, "avg_pool2d", self.tensor.shape[1], lambda x: F.avg_pool2d(x, window.kernel, window.stride, 0, divisor_override=divisor)
        )
        if window.varying_divisor:
            new.tensor = new.tensor / self._divisor(window, rate, new)
        return new

    def dense_offsets(self):
        return tuple(torch.tensor([o % f]) for o, f in zip(self.offset, self.stride, strict=True))

    def crop(self, size: Pair) -> _Run:
        rows, columns = ((n - 1 - o % f) // f + 1 for n, o, f in zip(size, self.offset, self.stride, strict=True))
        return self._at(self.tensor[:, :, :rows, :columns], self.strides, size)


def _dense_runs(model, x: Tensor, stride: Pair):
    for oy in range(stride[0]):
        for ox in range(stride[1]):
            run = _Run(x)
            run.offset = (oy, ox)
            out = _checked(model(run), stride)
            yield oy, ox, out.tensor, out.dense_size


def _checked(out, stride: Pair) -> Fragments:
    if not isinstance(out, Fragments):
        raise TypeError(f"model: must return one map (N, K, H', W'), got {type(out).__name__}")
    if out.stride != stride:
        raise ValueError(f"stride: the network's total stride is {out.stride}, got {stride}")
    return out


class _Part(Fragments):
    """Fragments of which only those are kept that lead to the offsets `goal` of the finished batch."""

    def _like(self, tensor, dense_size=None, owned=True, axes=None):
        return self._of(super()._like(tensor, dense_size, owned, axes))

    def _of(self, fragments: Fragments) -> _Part:
        fragments.__class__ = _Part
        fragments.goal, fragments.final = self.goal, self.final
        return fragments

    def _dealt(self, tensor: Tensor, stride: Pair, size: Pair) -> _Part:
        new = self._of(super()._dealt(tensor, stride, size))
        if self.final % new.offsets:
            raise ValueError(f"stride: the network's strides multiply to {new.stride} or more, which is not part of the stride given")
        rest = self.final // new.offsets
        start, stop = self.goal[0] // rest, -(-self.goal[1] // rest)
        count = new.tensor.shape[0] if new._count is None else new._count
        new.tensor = new.tensor[start - new._start : stop - new._start]
        new._start, new._count = start, count
        return new


def _in_chunks(model, x: Tensor, stride: Pair, chunk: int, report) -> Tensor:
    total = x.shape[0] * stride[0] * stride[1]
    parts = []
    for start in range(0, total, chunk):
        part = _Part(x)
        part.goal, part.final = (start, min(start + chunk, total)), stride[0] * stride[1]
        first, last = start // part.final, -(-part.goal[1] // part.final)
        part.tensor, part._start, part._count = x[first:last], first, x.shape[0]
        parts.append(_checked(model(part), stride))
        report(part.goal[1], total)
    return Fragments.join(parts).stitch()


# ---- border="pad" and "crop"
# -----------------------------------------------------------------------------------------------------------------


def _check_black_box(model, x: Tensor, stride: Pair) -> None:
    """k strides less of the image must be k outputs less."""
    rows, columns = _map(model(x)).shape[2:]
    k = min(rows - 1, columns - 1, 8)
    if k > 0:
        smaller = _map(model(x[:, :, k * stride[0] :, k * stride[1] :])).shape[2:]
        if smaller != (rows - k, columns - k):
            raise ValueError(
                f"stride: with {k} times {stride} pixels less, the output shrinks from {rows}x{columns} to {smaller[0]}x{smaller[1]}; "
                "the network's total stride is another one"
            )


def _map(out) -> Tensor:
    if not isinstance(out, Tensor) or out.dim() != 4:
        raise TypeError(
            f"model: must return one map (N, K, H', W'), got {tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__}"
        )
    return out


def _black_box_runs(model, x: Tensor, stride: Pair, border: str):
    _check_black_box(model, x, stride)
    ranges: list[tuple[int, int] | None] = [None, None]
    for oy in range(stride[0]):
        for ox in range(stride[1]):
            if border == "crop":
                shift, image = (0, 0), x[:, :, oy:, ox:]
            else:
                # Shifted by q, unit u sees position stride*u - q, so offset o takes q = stride - o and starts at u = 1.
                shift = ((stride[0] - oy) % stride[0], (stride[1] - ox) % stride[1])
                image = F.pad(x, (shift[1], 0, shift[0], 0))
            if min(image.shape[2:]) < 1:
                raise ValueError(f"x: an image of {tuple(x.shape[2:])} is smaller than the stride {stride}")
            out = _map(model(image))
            out = out[:, :, 1 if shift[0] else 0 :, 1 if shift[1] else 0 :]
            for axis, offset in enumerate((oy, ox)):
                ranges[axis] = _narrowed(ranges[axis], out.shape[2 + axis], offset, stride[axis])
            yield oy, ox, out, None
    yield None, None, None, (ranges[0][0], ranges[1][0])


def _narrowed(known: tuple[int, int] | None, rows: int, offset: int, stride: int) -> tuple[int, int]:
    """The dense lengths (smallest, largest) that agree with `rows` rows at this offset, and with what the runs so far said."""
    low, high = (rows - 1) * stride + offset + 1, rows * stride + offset
    if rows == 0:
        low = 0
    if known is not None:
        low, high = max(low, known[0]), min(high, known[1])
    if low > high:
        raise ValueError(
            f"stride: the sizes of the shifted outputs do not fit a network of total stride {stride} along this axis; is it another number?"
        )
    return low, high


# ---- putting together
# ------------------------------------------------------------------------------------------------------------------------


def _assemble(runs, stride: Pair, report) -> Tensor:
    """Runs (oy, ox, map, dense size or None) -> the dense map. The size may come last."""
    total = stride[0] * stride[1]
    maps: dict[Pair, Tensor] = {}
    out, size = None, None
    done = 0
    for oy, ox, tensor, known in runs:
        size = known or size
        if oy is None:
            continue
        # Writing into slices under autograd would keep a copy of the whole for every run. Offset (0, 0) has outputs, and a gradient if any
        # has.
        if done == 0 and size is not None and not tensor.requires_grad:
            out = tensor.new_empty(*tensor.shape[:2], *size)
        if out is None:
            maps[oy, ox] = tensor
        else:
            out[:, :, oy :: stride[0], ox :: stride[1]] = tensor
        done += 1
        report(done, total)
    if out is not None:
        return out
    rows, columns = -(-size[0] // stride[0]), -(-size[1] // stride[1])
    batch = []
    for oy in range(stride[0]):
        for ox in range(stride[1]):
            tensor = maps[oy, ox]
            batch.append(F.pad(tensor, (0, columns - tensor.shape[3], 0, rows - tensor.shape[2])))
    return FF.stitch(torch.stack(batch, 1).flatten(0, 1), stride, size)
