"""What a converted graph calls besides the network's own modules. Each takes a dense map (a tensor) or its `Fragments`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _windows as windows
from ..fragments import Fragments
from ..nn import DepthwiseConv2d
from ..spatial import NotConvertible

Pair = tuple[int, int]


def enter(x: Tensor, stride: Pair) -> Fragments:
    """A dense map, dealt out into the fragments of one layer of that stride."""
    return Fragments(x).shift(stride)


def dense_size(x: Tensor | Fragments) -> Pair:
    return x.dense_size if isinstance(x, Fragments) else (x.shape[-2], x.shape[-1])


def strided_size(x: Tensor | Fragments, rate: Pair) -> Pair:
    """Size of the strided network's map, given the distance `rate` of its positions in the dense map."""
    height, width = dense_size(x)
    return -(-height // rate[0]), -(-width // rate[1])


def crop_to_common(maps: list, rate: Pair) -> list:
    """Maps of equal strided size, cropped to their common dense size: two branches may reach a few rows further or less far between the
    positions that the strided network has."""
    sizes = [dense_size(x) for x in maps]
    strided = [strided_size(x, rate) for x in maps]
    if any(s != strided[0] for s in strided):
        raise ValueError(
            f"the strided network cannot join these maps either: their sizes are {' and '.join(map(str, strided))}; choose another input size"
        )
    common = (min(s[0] for s in sizes), min(s[1] for s in sizes))
    return [x.crop(common) if isinstance(x, Fragments) else x[..., : common[0], : common[1]] for x in maps]


def check_size(x: Tensor, least: Pair) -> Tensor:
    """The input as it is, or the sentence for one that a window does not fit into."""
    if x.dim() != 4:
        hint = "; one image is a batch of one, x[None]" if x.dim() == 3 else ""
        raise ValueError(f"input: must be (N, C, H, W), got {tuple(x.shape)}{hint}")
    if x.shape[2] < least[0] or x.shape[3] < least[1]:
        raise ValueError(
            f"input: must be (N, C, H, W) with at least {least[0]}x{least[1]} pixels for this network's strides and windows, got {tuple(x.shape)}; "
            "enlarge or pad the image"
        )
    return x


def linear_as_conv(x: Tensor | Fragments, weight: Tensor, bias: Tensor | None):
    """A linear layer at every position: a 1x1 convolution."""
    return F.conv2d(x, weight[:, :, None, None], bias)


def batch_norm(x, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
    """An evaluation-mode batch norm of vectors, at every position."""
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)


class Pool(nn.Module):
    """A max or average pool at every offset.

    rate: distance of the strided network's neighbours, in rows of the map (or of a fragment). deal: fragments are dealt out by the window's
    stride. keep: stride that stays, on a dense map.
    """

    def __init__(self, name: str, window: windows.Window, rate: Pair, deal: bool, keep: Pair = (1, 1)):
        super().__init__()
        self.name, self.window, self.rate, self.deal, self.keep = name, window, rate, deal, keep

    def forward(self, x):
        if not isinstance(x, Fragments):
            out = Fragments(x).pool(self.resolved(x, (1, 1)), self.rate, deal=False).tensor
            return out[..., :: self.keep[0], :: self.keep[1]] if self.keep != (1, 1) else out
        return x.pool(self.resolved(x, x.stride), self.rate, self.deal)

    def resolved(self, x, stride: Pair) -> windows.Window:
        try:
            return self.window.resolved(strided_size(x, (stride[0] * self.rate[0], stride[1] * self.rate[1])))
        except ValueError as error:
            raise NotConvertible(self.name, str(error)) from None

    def extra_repr(self) -> str:
        w = self.window
        rest = f", stride kept {self.keep}" if self.keep != (1, 1) else f", dealt out by {w.stride}" if self.deal else ""
        pads = ", padding SAME" if w.same else f", padding {windows.scaled(w.pads, self.rate)}" if w.padded else ""
        dilation = (w.dilation[0] * self.rate[0], w.dilation[1] * self.rate[1])
        return f"{w.kind}, kernel {w.kernel}, dilation {dilation}{pads}{', ceil_mode' if w.ceil_mode else ''}{rest}"


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding, at every offset; the padding follows from the strided network's map."""

    def forward(self, x):
        stride = x.stride if isinstance(x, Fragments) else (1, 1)
        try:
            window = self.window.resolved(strided_size(x, (stride[0] * self.rate[0], stride[1] * self.rate[1])))
        except ValueError as error:
            raise NotConvertible(self.name, str(error)) from None
        top, bottom, left, right = windows.scaled(window.pads, self.rate)
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def on_same_parameters(module: nn.Module, cls: type[nn.Module] | None = None, **changes) -> nn.Module:
    """A module of `cls` (by default its own class) that shares every parameter and buffer with `module` and differs in the attributes
    given."""
    # Not copy.copy, which asks the module how it is saved: parametrised ones refuse.
    out = type(module).__new__(type(module))
    out.__dict__ = dict(module.__dict__)
    for table in ("_parameters", "_buffers", "_modules"):
        out.__dict__[table] = dict(module.__dict__[table])
    if cls is not None:
        out.__class__ = cls
    for name, value in changes.items():
        setattr(out, name, value)
    return out


def depthwise(module: nn.Conv2d, **changes) -> DepthwiseConv2d:
    return on_same_parameters(module, DepthwiseConv2d, activation="identity", **changes)


def is_depthwise(module: nn.Conv2d) -> bool:
    return type(module) is nn.Conv2d and module.groups > 1 and module.groups == module.in_channels


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Relative L2 distance, in float64."""
    difference = (found.double() - expected.double()).norm()
    return float(difference / torch.clamp(expected.double().norm(), min=torch.finfo(torch.float64).tiny))
