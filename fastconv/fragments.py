"""Fragments: the maps of a strided network at every offset, held as one batch, so that nothing is computed twice.

A layer of stride s keeps one of its s*s possible grids. Giusti et al., "Fast Image Scanning with Deep Max-Pooling Convolutional Neural
Networks", 2013 (arXiv:1302.1700), keep them all: the dense result is dealt out into s*s fragments, which go on through the network as s*s
images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _arguments as check
from . import _fragment_functions
from . import _windows as windows
from . import functional as FF

Pair = tuple[int, int]

MAP: Pair = (-2, -1)


class Fragments:
    r"""A dense map, dealt out into the fragments that the strides of a network make of it.

    With total stride S (per axis the product of the strides so far, ``S = s1*s2*...``), row u of the fragment with digits
    (o1, o2, ...) is row

    .. math::  y = o_1 + s_1 o_2 + s_1 s_2 o_3 + \dots + S u

    of the dense map. The fragments lie in the batch, image slowest and newest digit fastest: after two layers the batch index is
    ``((((n*s1y + o1y)*s1x + o1x)*s2y + o2y)*s2x + o2x``. A convolution of dilation d and padding p on the fragments is, stitched, the dense
    convolution of dilation ``d*S`` and padding ``p*S``; a layer of stride s runs at every offset and multiplies S by s.

        >>> dense = model(Fragments(image)).stitch()      # a strided model of convolutions, pools, norms, activations, additions, cat

    torch's functions and modules take `Fragments` where they take a map, as long as what they do is one of: conv2d, max_pool2d, avg_pool2d,
    constant padding, evaluation-mode batch norm, anything pointwise, arithmetic among fragments of the same strides, cat over channels.
    Others raise a TypeError that names them. Autograd runs through all of it.

    Fragments whose offset lies beyond the remainder of the dense size are one row or column shorter than the tensor that holds them; their
    last row is a *tail*. Dealing out leaves zeros there, other layers leave arbitrary numbers, and a padded layer fills it again with what
    it pads with (zero, or -inf for a max pool), since to that fragment the tail is padding. `stitch` drops it.

    Args:
        tensor: (N, C, H, W), the dense map itself (one fragment), any floating dtype; or with `strides`, fragments in the order above,
            (N*S*S, C, ceil(H/Sy), ceil(W/Sx)).
        strides: the stride of every layer so far, first layer first; ints or pairs.
        dense_size: (H, W) of the dense map; by default all that the tensor covers.

    Attributes:
        tensor, strides, dense_size: as above. stride: the total stride S, a pair. batch: N.

    Raises:
        ValueError: a shape that does not fit strides and dense_size.
        TypeError: an operation that does not keep positions apart.
    """

    def __init__(self, tensor: Tensor, strides: tuple = (), dense_size: Pair | None = None):
        if not isinstance(tensor, Tensor) or tensor.dim() != 4:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"Fragments: tensor must be (N, C, H, W), got {got}")
        if not isinstance(strides, (tuple, list)):
            raise ValueError(f"Fragments: strides must be a tuple with one entry for every layer, got {strides!r}")
        strides = tuple(check.pair("Fragments", "strides", s, 1) for s in strides)
        total = (math.prod(s[0] for s in strides), math.prod(s[1] for s in strides))
        if tensor.shape[0] % (total[0] * total[1]):
            raise ValueError(
                f"Fragments: a batch of {tensor.shape[0]} is no multiple of the {total[0] * total[1]} offsets of strides {strides}"
            )
        covered = (tensor.shape[2] * total[0], tensor.shape[3] * total[1])
        dense_size = covered if dense_size is None else windows.pair(dense_size)
        rows = tuple(-(-length // s) for length, s in zip(dense_size, total, strict=True))
        if rows != tuple(tensor.shape[2:]):
            raise ValueError(
                f"Fragments: a dense map of {dense_size[0]}x{dense_size[1]} has fragments of {rows[0]}x{rows[1]} at total stride {total}, "
                f"got {tensor.shape[2]}x{tensor.shape[3]}"
            )
        self._set(tensor, strides, dense_size, 0, None, owned=False)

    def _set(
        self, tensor: Tensor, strides: tuple[Pair, ...], dense_size: Pair, start: int, count: int | None, owned: bool, axes: Pair = MAP
    ) -> Fragments:
        self.tensor, self.strides, self.dense_size = tensor, strides, dense_size
        self.stride = (math.prod(s[0] for s in strides), math.prod(s[1] for s in strides))
        # Which part of the whole batch this is: `start`, and the length of the whole (None: this is all of it).
        self._start, self._count = start, count
        # Whether the tail may be written in place: nobody else reads it as anything but a tail.
        self._owned = owned
        # Where rows and columns are among the tensor's axes, counted from the last.
        self._axes = axes
        return self

    def _like(self, tensor: Tensor, dense_size: Pair | None = None, owned: bool = True, axes: Pair | None = None) -> Fragments:
        return Fragments.__new__(Fragments)._set(
            tensor, self.strides, dense_size or self.dense_size, self._start, self._count, owned, axes or self._axes
        )

    def _require_map(self, what: str) -> None:
        if self._axes != MAP or self.tensor.dim() != 4:
            raise TypeError(f"{what}: needs fragments as (batch, C, H, W); these were permuted")

    # ---- what there is -------------------------------------------------------------------------------------------------------------------

    @property
    def offsets(self) -> int:
        """How many fragments one image has."""
        return self.stride[0] * self.stride[1]

    @property
    def batch(self) -> int:
        return (self._count if self._count is not None else self.tensor.shape[0]) // self.offsets

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor that holds the fragments."""
        return self.tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @property
    def requires_grad(self) -> bool:
        return self.tensor.requires_grad

    def dim(self) -> int:
        return self.tensor.dim()

    def size(self, dim: int | None = None) -> torch.Size | int:
        """Size of the tensor that holds the fragments; `dense_size` is that of the dense map."""
        return self.tensor.size() if dim is None else self.tensor.size(dim)

    def __repr__(self) -> str:
        height, width = self.dense_size
        deals = " * ".join(f"{y}x{x}" for y, x in self.strides) or "1x1"
        ragged = [
            f"{s - n % s} of {s} {axis}"
            for axis, n, s in zip(("row offsets", "column offsets"), self.dense_size, self.stride, strict=True)
            if n % s
        ]
        tails = f"; one shorter at {' and '.join(ragged)}" if ragged else ""
        part = "" if self._count is None else f", part {self._start}..{self._start + self.tensor.shape[0]} of {self._count}"
        return (
            f"Fragments({self.batch} x {self.tensor.shape[1]} x {height} x {width} dense map as {self.offsets} fragments an image (strides {deals}), "
            f"each {self.tensor.shape[2]} x {self.tensor.shape[3]}{tails}{part}, {str(self.dtype).removeprefix('torch.')}, {self.device})"
        )

    def dense_offsets(self) -> tuple[Tensor, Tensor]:
        """(oy, ox) of every entry of the batch: where its row 0 and column 0 lie in the dense map."""
        index = torch.arange(self._start, self._start + self.tensor.shape[0])
        return windows.digits(index, self.strides)

    # ---- dealing out and stitching -------------------------------------------------------------------------------------------------------

    def shift(self, stride: int | Pair) -> Fragments:
        """Deals every fragment out into sy*sx of its own; their tails are zero."""
        stride = check.pair("shift", "stride", stride, 1)
        if stride == (1, 1):
            return self
        self._require_map("shift")
        # Rows beyond this fragment's own end are dealt out with it; they are tails of the new fragments.
        return self._dealt(FF.shift(self.tensor, stride), stride, self.dense_size)

    def _dealt(self, tensor: Tensor, stride: Pair, dense_size: Pair) -> Fragments:
        each = stride[0] * stride[1]
        count = None if self._count is None else self._count * each
        return Fragments.__new__(Fragments)._set(tensor, (*self.strides, stride), dense_size, self._start * each, count, owned=True)

    def stitch(self) -> Tensor:
        """The dense map (N, C, H, W)."""
        if self._count is not None:
            raise ValueError(f"stitch: this is only a part of the fragments ({self!r}); join the parts first")
        self._require_map("stitch")
        if not self.strides:
            return self.tensor
        out = windows.offsets_row_major(self.tensor, self.strides) if len(self.strides) > 1 else self.tensor
        return FF.stitch(out, self.stride, self.dense_size)

    def write_to(self, dense: Tensor) -> None:
        """Writes these fragments, all or a part, to their places in the dense map `dense`; the tails stay behind."""
        self._require_map("write_to")
        # Newer digits that are here for all their values are put together first; what is left is one strided write an entry.
        levels, each, entries = len(self.strides), 1, self.tensor.shape[0]
        while levels and not (self._start % (more := each * math.prod(self.strides[levels - 1])) or entries % more):
            levels, each = levels - 1, more
        older, newer = self.strides[:levels], self.strides[levels:]
        (oldy, oldx), (newy, newx) = ((math.prod(s[0] for s in part), math.prod(s[1] for s in part)) for part in (older, newer))
        height, width = self.dense_size
        maps = windows.offsets_row_major(self.tensor, newer) if len(newer) > 1 else self.tensor
        maps = FF.stitch(maps, (newy, newx), (-(-height // oldy), -(-width // oldx)))
        for i in range(maps.shape[0]):
            index = self._start // each + i
            oy, ox = windows.digits(index, older)
            place = dense[index // (oldy * oldx), :, oy:height:oldy, ox:width:oldx]
            place.copy_(maps[i, :, : place.shape[1], : place.shape[2]])

    def parts(self, length: int) -> Iterator[Fragments]:
        """The same fragments, `length` entries of the batch at a time; `join` puts results together again."""
        count = self.tensor.shape[0] if self._count is None else self._count
        for start in range(0, self.tensor.shape[0], length):
            part = self.tensor[start : start + length]
            yield Fragments.__new__(Fragments)._set(
                part, self.strides, self.dense_size, self._start + start, count, self._owned, self._axes
            )

    @staticmethod
    def join(parts: list[Fragments]) -> Fragments:
        """Inverse of `parts`, also after layers that dealt the parts out further."""
        first, last = parts[0], parts[-1]
        if any(a._start + a.tensor.shape[0] != b._start for a, b in zip(parts, parts[1:], strict=False)):
            raise ValueError("join: these are not consecutive parts, in order")
        whole = first._start == 0 and last._start + last.tensor.shape[0] == first._count
        tensor = parts[0].tensor if len(parts) == 1 else torch.cat([p.tensor for p in parts])
        return Fragments.__new__(Fragments)._set(
            tensor, first.strides, first.dense_size, first._start, None if whole else first._count, owned=True
        )

    # ---- layers --------------------------------------------------------------------------------------------------------------------------

    def fill_tail(self, value: float) -> Fragments:
        """The same fragments with `value` in every tail."""
        ragged = [length % s for length, s in zip(self.dense_size, self.stride, strict=True)]
        if not any(ragged):
            return self
        x = self.tensor
        short = [(o >= r).to(x.device) if r else None for o, r in zip(self.dense_offsets(), ragged, strict=True)]
        if self._owned and not (torch.is_grad_enabled() and x.requires_grad):
            # Nobody reads a tail but the layer that fills it, so it may be written where it lies.
            if short[0] is not None:
                x[:, :, -1, :].masked_fill_(short[0][:, None, None], value)
            if short[1] is not None:
                x[:, :, :, -1].masked_fill_(short[1][:, None, None], value)
            return self
        tail = torch.zeros(x.shape[0], 1, *x.shape[2:], dtype=torch.bool, device=x.device)
        if short[0] is not None:
            tail[:, 0, -1, :] |= short[0][:, None]
        if short[1] is not None:
            tail[:, 0, :, -1] |= short[1][:, None]
        return self._like(x.masked_fill(tail, value))

    def conv2d(self, weight: Tensor, bias: Tensor | None = None, stride=1, padding=0, dilation=1, groups: int = 1) -> Fragments:
        """torch.nn.functional.conv2d on every fragment; a stride is run at every offset and deals the result out."""
        window = windows.conv(weight.shape[2:], stride, padding, dilation)
        return self.layer(window, lambda x: windows.run_conv(x, weight, bias, window.pads, window.dilation, groups))

    def layer(self, window: windows.Window, run: Callable[[Tensor], Tensor]) -> Fragments:
        """`run`, a convolution with this window at stride 1, on every fragment; the window's stride deals the result out."""
        self._require_map("conv2d")
        size = window.dense_size(self.dense_size, self.stride, "conv2d")
        x = self.fill_tail(0.0) if window.padded else self
        return self._like(run(x.tensor), size).shift(window.stride)

    def max_pool2d(self, kernel_size, stride=None, padding=0, dilation=1, ceil_mode: bool = False) -> Fragments:
        """torch.nn.functional.max_pool2d at every offset; the result is dealt out by its stride."""
        return self.pool(windows.max_pool(kernel_size, stride, padding, dilation, ceil_mode))

    def avg_pool2d(
        self,
        kernel_size,
        stride=None,
        padding=0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        dilation=1,
    ) -> Fragments:
        """torch.nn.functional.avg_pool2d, and dilation, at every offset; the result is dealt out by its stride."""
        return self.pool(windows.avg_pool(kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override))

    def pool(self, window: windows.Window, rate: Pair = (1, 1), deal: bool = True) -> Fragments:
        """Runs `window` with its dilation and padding times `rate`, on the fragments, at every offset.

        rate: how far apart, in rows of a fragment, neighbours of the strided network's map lie. deal: whether the result is dealt out by
            the window's stride.
        """
        self._require_map("pool")
        f = self.stride
        size = window.dense_size(self.dense_size, (f[0] * rate[0], f[1] * rate[1]), f"{window.kind}_pool2d")
        x = self.fill_tail(window.pad_value) if window.padded or window.ceil_mode else self
        rows = tuple(-(-n // s) for n, s in zip(size, f, strict=True))
        stride = window.stride if deal else (1, 1)
        dealt = stride != (1, 1)
        total = windows.run_pool(x.tensor, window, rate, rows, stride, dealt)
        out = self._dealt(total, stride, size) if dealt else self._like(total, size)
        if window.varying_divisor:
            out.tensor = out.tensor / self._divisor(window, rate, out)
        # A window all in a tail is -inf, and 0 * inf would reach the gradients of weights to come.
        return out.fill_tail(0.0) if window.kind == "max" and torch.is_grad_enabled() and out.requires_grad else out

    def _divisor(self, window: windows.Window, rate: Pair, out: Fragments) -> Tensor:
        """How many taps count, for every position of the average pool `out` of this map: (batch, 1, U, V)."""
        per_axis = []
        for axis, offset in enumerate(out.dense_offsets()):
            step = self.stride[axis] * rate[axis]
            taps = window.taps_that_count(axis, self.dense_size[axis], step)
            rows = torch.arange(out.tensor.shape[2 + axis])
            dense = offset[:, None] + out.stride[axis] * rows
            per_axis.append(taps(dense).clamp_(min=1))
        divisor = per_axis[0][:, None, :, None] * per_axis[1][:, None, None, :]
        return divisor.to(out.tensor)

    def pad(self, pads: tuple[int, int, int, int], value: float = 0.0) -> Fragments:
        """Constant padding (top, bottom, left, right) of the strided network's map, S times that of the dense one; negative crops."""
        self._require_map("pad")
        size = (self.dense_size[0] + (pads[0] + pads[1]) * self.stride[0], self.dense_size[1] + (pads[2] + pads[3]) * self.stride[1])
        windows.require_positive("pad", size, self.dense_size)
        x = self.fill_tail(value).tensor
        return self._like(F.pad(x, (pads[2], pads[3], pads[0], pads[1]), value=value), size)

    def crop(self, size: Pair) -> Fragments:
        """The dense map's first size[0] rows and size[1] columns."""
        if size == self.dense_size:
            return self
        rows, columns = (-(-n // s) for n, s in zip(size, self.stride, strict=True))
        # What becomes a tail here may still be read as a map by whoever holds the uncropped fragments.
        return self._like(self.tensor[:, :, :rows, :columns], size, owned=False)

    def map(self, function: Callable[[Tensor], Tensor]) -> Fragments:
        """`function`, which must treat every position alike, on the tensor that holds the fragments."""
        out = function(self.tensor)
        return self._like(out, owned=out is not self.tensor or self._owned)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return _fragment_functions.call(function, args, kwargs or {})


_fragment_functions.install(Fragments)
