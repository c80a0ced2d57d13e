"""What runs in place of a chain: one object for each, around the model's own modules.

Each looks at its norms when it is called. With stored statistics they are folded (in float64, kept between calls) and the fused operator
runs; with batch statistics the operator is cut at the norm, which runs as it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional as FF
from .._activations import over
from ..folding import FoldedWeights, convolved
from ..reference import ACTIVATIONS
from . import nodes as N
from .patterns import Match, Stage


def output_dtype(x: Tensor) -> torch.dtype:
    """Of a convolution of x: what autocast says, where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if x.dtype != torch.float64 and torch.is_autocast_enabled(device) else x.dtype


def placed(conv: nn.Conv2d, x: Tensor):
    """The input and the padding that make fastconv's convolution equal to `conv`: TensorFlow's padding depends on the size."""
    if not N.is_same_padded(conv):
        return x, conv.padding
    total = []
    for size, k, s, d in zip(x.shape[-2:], conv.kernel_size, conv.stride, conv.dilation, strict=True):
        total.append(max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0))
    if total[0] % 2 == 0 and total[1] % 2 == 0:
        return x, (total[0] // 2, total[1] // 2)
    return F.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2)), (0, 0)


def output_length(length: int, k: int, s: int, p: int, d: int) -> int:
    return (length + 2 * p - d * (k - 1) - 1) // s + 1


def fits(residual: Tensor | None, x: Tensor, conv: nn.Conv2d, padding, channels: int) -> bool:
    """Whether a residual can be added inside the operator: no broadcasting, no promotion."""
    if residual is None:
        return True
    if isinstance(padding, str):
        padding = (0, 0) if padding == "valid" else tuple(d * (k - 1) / 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    if not isinstance(padding[0], int):
        size = tuple(x.shape[-2:])
    else:
        size = tuple(map(output_length, x.shape[-2:], conv.kernel_size, conv.stride, padding, conv.dilation))
    same = residual.shape == (*x.shape[:-3], channels, *size)
    return same and residual.dtype == output_dtype(x) and residual.device == x.device


def finish(out: Tensor, stage: Stage, residual: Tensor | None, normed: bool) -> Tensor:
    """The norm, the residual and the activation behind an unfused convolution."""
    if not normed and stage.norm is not None:
        out = stage.norm(out)
        if stage.norm_acts:
            return out
    out = out if residual is None else out + residual
    # It is a result of our own: without autograd nobody can tell that it is overwritten.
    differentiable = torch.is_grad_enabled() and out.requires_grad
    return ACTIVATIONS[stage.activation](out) if differentiable else over(out, stage.activation)


class Fused:
    """Common to all: `unfused(*arguments)` is the chain as the model wrote it, for comparison and measurement."""

    kind = ""

    def __init__(self, match: Match):
        self.input_activation = match.input_activation
        self.depthwise, self.pointwise = match.depthwise, match.pointwise
        self.folded = FoldedWeights(match.depthwise.activation if match.kind == "separable" else None)

    def _fold(self, *stages: Stage):
        return self.folded(*((stage.conv, stage.norm) for stage in stages))

    def unfused(self, x: Tensor, *others: Tensor) -> Tensor:
        if self.input_activation != "identity":
            x = ACTIVATIONS[self.input_activation](x)
        if self.depthwise is not None:
            x = finish(self.depthwise.conv(x), self.depthwise, None, False)
        if self.pointwise is not None:
            x = finish(self.pointwise.conv(x), self.pointwise, others[0] if others else None, False)
        return x

    def stages(self) -> list[Stage]:
        return [stage for stage in (self.depthwise, self.pointwise) if stage is not None]


class Depthwise(Fused):
    """activation(norm(depthwise(x)))."""

    kind = "depthwise"

    def __call__(self, x: Tensor) -> Tensor:
        stage, conv = self.depthwise, self.depthwise.conv
        if self.input_activation != "identity":
            x = ACTIVATIONS[self.input_activation](x)
        x, padding = placed(conv, x)
        if not N.is_fixed(stage.norm):
            return finish(FF.depthwise_conv2d(x, conv.weight, conv.bias, conv.stride, padding, conv.dilation), stage, None, False)
        weight, bias = self._fold(stage)
        return FF.depthwise_conv2d(x, weight, bias, conv.stride, padding, conv.dilation, stage.activation)


class Separable(Depthwise):
    """The whole chain; with batch statistics between the two convolutions, one after the other."""

    kind = "separable"

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        depthwise, pointwise = self.depthwise, self.pointwise
        if not N.is_fixed(depthwise.norm):
            return finish(pointwise.conv(super().__call__(x)), pointwise, residual, False)
        conv, normed = depthwise.conv, N.is_fixed(pointwise.norm)
        folded = self._fold(depthwise, pointwise if normed else Stage(pointwise.conv))
        x, padding = placed(conv, x)
        inside = normed and fits(residual, x, conv, padding, pointwise.conv.out_channels)
        depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias = folded
        out = FF.depthwise_separable_conv2d(
            x,
            depthwise_weight,
            pointwise_weight,
            depthwise_bias,
            pointwise_bias,
            conv.stride,
            padding,
            conv.dilation,
            self.input_activation,
            depthwise.activation,
            pointwise.activation if inside else "identity",
            residual if inside else None,
        )
        return out if inside else finish(out, pointwise, residual, normed)


class Convolution(Fused):
    """activation(norm(conv(x)) + residual) of any convolution. A pointwise one without gradients runs as the separable operator behind a
    depthwise 1x1 of ones, which leaves its values as they are and brings bias, residual and activation into one pass."""

    kind = "conv"

    def __init__(self, match: Match):
        super().__init__(match)
        self.is_pointwise = N.is_pointwise(self.pointwise.conv)
        self._ones: Tensor | None = None

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        stage, conv = self.pointwise, self.pointwise.conv
        if not N.is_fixed(stage.norm):
            return finish(conv(x), stage, residual, False)
        weight, bias = self._fold(stage)
        differentiable = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        if self.is_pointwise and not differentiable and fits(residual, x, conv, (0, 0), conv.out_channels):
            ones = self._ones_like(x, weight)
            return FF.depthwise_separable_conv2d(x, ones, weight, None, bias, pointwise_activation=stage.activation, residual=residual)
        x, padding = placed(conv, x)
        return finish(convolved(x, conv, weight, bias, padding), stage, residual, True)

    def _ones_like(self, x: Tensor, weight: Tensor) -> Tensor:
        ones = self._ones
        if ones is None or ones.dtype != weight.dtype or ones.device != weight.device or torch.compiler.is_compiling():
            with torch.inference_mode(False):
                ones = torch.ones(weight.shape[1], 1, 1, 1, dtype=weight.dtype, device=weight.device)
            if not torch.compiler.is_compiling():
                self._ones = ones
        return ones


class Scaled(Fused):
    """activation(norm(pointwise(x * scale)) + residual). The factors of one image are the weights of a depthwise 1x1, so that the product
    is never written to memory."""

    kind = "scaled"

    def __call__(self, x: Tensor, scale: Tensor, residual: Tensor | None = None) -> Tensor:
        stage, conv = self.pointwise, self.pointwise.conv
        one_image = x.dim() == 4 and x.shape[0] == 1 and scale.shape == (1, x.shape[1], 1, 1) and scale.dtype == x.dtype
        if not (one_image and N.is_fixed(stage.norm) and fits(residual, x, conv, (0, 0), conv.out_channels)):
            return finish(conv(x * scale), stage, residual, False)
        weight, bias = self._fold(stage)
        factors = scale.reshape(-1, 1, 1, 1)
        return FF.depthwise_separable_conv2d(x, factors, weight, None, bias, pointwise_activation=stage.activation, residual=residual)

    def unfused(self, x: Tensor, scale: Tensor, *others: Tensor) -> Tensor:
        return super().unfused(x * scale, *others)


LAYERS = {layer.kind: layer for layer in (Depthwise, Separable, Convolution, Scaled)}
