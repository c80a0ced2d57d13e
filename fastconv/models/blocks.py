"""Layers and rules that several networks share."""

from __future__ import annotations

from torch import Tensor, nn

import fastconv.functional as FF
from fastconv.folding import FoldedWeights, convolved, folds

OUTPUT_STRIDES = (8, 16, 32)
ACTIVATIONS = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "hardswish": lambda: nn.Hardswish(inplace=True),
}


def initialise(model: nn.Module) -> None:
    """He et al.'s normal initialisation by a convolution's outputs (arXiv:1502.01852); small linear layers, biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)


def initialise_classifier(conv: nn.Conv2d) -> None:
    """Small, so that training starts from even probabilities whatever the number of classes."""
    nn.init.normal_(conv.weight, 0, 0.01)
    nn.init.zeros_(conv.bias)


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor` that loses no more than a tenth of the channels."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


class Strides:
    """Walks through a network's strides and gives up those beyond an output stride.

    A stride given up dilates what comes after it; the convolution that had it samples its input as published. So the map at every
    ``32 / output_stride``-th position equals the published network's.
    """

    def __init__(self, output_stride: int):
        if output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output_stride: got {output_stride}, supported are 8, 16 and 32")
        self.output_stride, self.reached, self.dilation = output_stride, 1, 1

    def __call__(self, published: int) -> tuple[int, int]:
        """(stride, dilation) of the next convolution, published with this stride."""
        dilation = self.dilation
        if self.reached * published > self.output_stride:
            self.dilation *= published
            return 1, dilation
        self.reached *= published
        return published, dilation


class ConvNormActivation(nn.Sequential):
    """Convolution, batch norm, activation (None: none), as a Sequential of these.

    With `backend="fastconv"` a norm that uses its running statistics is folded into the convolution, and a depthwise convolution runs on
    fastconv.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        activation: str | None = "relu6",
        **norm_options,
    ):
        padding = dilation * (kernel_size - 1) // 2
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False),
            nn.BatchNorm2d(out_channels, **norm_options),
            *([] if activation is None else [ACTIVATIONS[activation]()]),
        )
        self.activation = activation
        self.backend = "torch"
        self._folded = FoldedWeights()

    def plain_forward(self, input: Tensor) -> Tensor:
        return super().forward(input)

    def forward(self, input: Tensor) -> Tensor:
        if self.backend == "torch":
            return self.plain_forward(input)
        conv, norm, *activation = self
        depthwise = conv.groups == conv.in_channels > 1
        if not folds(norm):
            if not depthwise:
                return self.plain_forward(input)
            out = norm(FF.depthwise_conv2d(input, conv.weight, None, conv.stride, conv.padding, conv.dilation))
            return activation[0](out) if activation else out
        weight, bias = self._folded((conv, norm))
        if depthwise:
            return FF.depthwise_conv2d(input, weight, bias, conv.stride, conv.padding, conv.dilation, self.activation or "identity")
        out = convolved(input, conv, weight, bias)
        return activation[0](out) if activation else out

    def train(self, mode: bool = True):
        self._folded.forget()
        return super().train(mode)


def pyramid(features: nn.Sequential, ends: list[int], input: Tensor) -> list[Tensor]:
    """The maps behind the layers `ends` of a Sequential, which stops at the last."""
    maps = []
    for position, layer in enumerate(features[: ends[-1] + 1]):
        input = layer(input)
        if position in ends:
            maps.append(input)
    return maps


def stride_ends(strides: list[int]) -> list[int]:
    """Positions of the last layer of each stride, from the strides reached behind every layer."""
    return [i for i, s in enumerate(strides) if i + 1 == len(strides) or strides[i + 1] != s]
