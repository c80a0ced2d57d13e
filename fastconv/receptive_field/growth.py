"""How the effective field grows with depth, and what that depends on: the experiments of Luo et al. 2016 (arXiv:1701.04128)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .effective import EffectiveField, effective
from .theory import theory

DEPTHS = (5, 10, 20, 40, 80)
ACTIVATIONS = {"identity": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


class _Residual(nn.Module):
    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, input: Tensor) -> Tensor:
        return input + self.body(input)


@dataclass(frozen=True)
class Stack:
    """A network of equal convolutions, to be built at any depth.

    kernel, dilation: of every layer. weights: "uniform" (all equal, their sum 1) or "random" (normal, with a variance that keeps the
    signal's). activation: after every layer, a name in `ACTIVATIONS`. dropout: probability after every activation. skip: every layer is
    added to its input. subsample: how many of the layers, evenly spread, have stride 2. channels: of every layer, the image's among them.
    draws: how many times weights, images and dropout are drawn where any of them is random.
    """

    kernel: int = 3
    dilation: int = 1
    weights: str = "uniform"
    activation: str = "identity"
    dropout: float = 0.0
    skip: bool = False
    subsample: int = 0
    channels: int = 1
    draws: int = 1

    def build(self, depth: int) -> nn.Sequential:
        """The network, in train mode, so that dropout drops."""
        strided = {(i + 1) * depth // (self.subsample + 1) for i in range(self.subsample)}
        layers = []
        for position in range(depth):
            stride = 2 if position in strided else 1
            padding = self.dilation * (self.kernel // 2)
            conv = nn.Conv2d(self.channels, self.channels, self.kernel, stride, padding, self.dilation, bias=False)
            layer = [conv, ACTIVATIONS[self.activation]()]
            layer += [nn.Dropout(self.dropout)] if self.dropout else []
            body = nn.Sequential(*layer)
            layers.append(_Residual(body) if self.skip and stride == 1 else body)
        net = nn.Sequential(*layers)
        self.initialise(net)
        return net.double() if self.weights == "uniform" and self.draws == 1 else net

    def initialise(self, net: nn.Module, generator: torch.Generator | None = None) -> None:
        """Weights as `weights` says."""
        for conv in (module for module in net.modules() if isinstance(module, nn.Conv2d)):
            taps = conv.weight[0].numel()
            if self.weights == "uniform":
                nn.init.constant_(conv.weight, 1 / taps)
            else:
                gain = 2 if self.activation == "relu" else 1
                nn.init.normal_(conv.weight, 0, math.sqrt(gain / taps), generator=generator)


# What Luo et al. look at, each beside the uniform linear stack.
STUDIES = {
    "uniform": Stack(),
    "random weights": Stack(weights="random", channels=4, draws=24),
    "random weights, ReLU": Stack(weights="random", activation="relu", channels=4, draws=24),
    "random weights, tanh": Stack(weights="random", activation="tanh", channels=4, draws=24),
    "dropout 1/2": Stack(dropout=0.5, draws=24),
    "skip connections": Stack(skip=True),
    "dilation 2": Stack(dilation=2),
    "two strides of 2": Stack(subsample=2),
}


@dataclass(frozen=True)
class Growth:
    """The effective field at each depth. slopes are of least-squares lines through logarithms."""

    depths: tuple[int, ...]
    extents: tuple[float, ...]
    sizes: tuple[float, ...]
    fields: tuple[EffectiveField, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Effective size over theoretical extent."""
        return tuple(size / extent for size, extent in zip(self.sizes, self.extents, strict=True))

    @property
    def size_slope(self) -> float:
        """Of log(size) over log(depth): 1/2 in theory for a linear stack, since variances add up."""
        return _slope(self.depths, self.sizes)

    @property
    def share_slope(self) -> float:
        """Of log(size / extent) over log(depth): -1/2 in theory for a linear stack."""
        return _slope(self.depths, self.shares)


def _slope(depths: tuple[int, ...], values: tuple[float, ...]) -> float:
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (depths, values))
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


def grow(
    stack: Stack,
    depths: tuple[int, ...] = DEPTHS,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Growth:
    """Measures the centre output's effective field of `stack` at each depth, on an image that holds the whole theoretical field.

    progress: called with (depths done, depths).
    """
    extents, sizes, found = [], [], []
    for done, depth in enumerate(depths, 1):
        net = stack.build(depth)
        field = theory(net.eval(), 8 * 2**stack.subsample)[-1]
        net.train()
        # Room for the field of the centre output on both sides, whatever the stride does to the centre.
        size = int(field.extent[0]) + 2 * field.jump[0] * (field.jump[0] > 1)
        redraw = None if stack.weights == "uniform" else lambda model: stack.initialise(model, generator)
        effect = effective(net, size, images=stack.draws, reinitialise=redraw, generator=generator)
        extents.append(field.extent[0])
        sizes.append(effect.size)
        found.append(effect)
        if progress is not None:
            progress(done, len(depths))
    return Growth(tuple(depths), tuple(extents), tuple(sizes), tuple(found))
