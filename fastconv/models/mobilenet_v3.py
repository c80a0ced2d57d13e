"""MobileNetV3 (Howard et al. 2019, arXiv:1905.02244) on fastconv's operators.

The parameter names are torchvision's, so published checkpoints load; torchvision itself is not needed.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastconv.nn import DepthwiseSeparableConv2d

from .blocks import ConvNormActivation, Strides, initialise, pyramid, round_channels, stride_ends

# Kernel, expanded and output channels, squeeze-and-excitation, activation, stride: tables 1 and 2 of the paper. Then the last width.
CONFIGS = {
    "large": (
        (
            (3, 16, 16, False, "relu", 1),
            (3, 64, 24, False, "relu", 2),
            (3, 72, 24, False, "relu", 1),
            (5, 72, 40, True, "relu", 2),
            (5, 120, 40, True, "relu", 1),
            (5, 120, 40, True, "relu", 1),
            (3, 240, 80, False, "hardswish", 2),
            (3, 200, 80, False, "hardswish", 1),
            (3, 184, 80, False, "hardswish", 1),
            (3, 184, 80, False, "hardswish", 1),
            (3, 480, 112, True, "hardswish", 1),
            (3, 672, 112, True, "hardswish", 1),
            (5, 672, 160, True, "hardswish", 2),
            (5, 960, 160, True, "hardswish", 1),
            (5, 960, 160, True, "hardswish", 1),
        ),
        1280,
    ),
    "small": (
        (
            (3, 16, 16, True, "relu", 2),
            (3, 72, 24, False, "relu", 2),
            (3, 88, 24, False, "relu", 1),
            (5, 96, 40, True, "hardswish", 2),
            (5, 240, 40, True, "hardswish", 1),
            (5, 240, 40, True, "hardswish", 1),
            (5, 120, 48, True, "hardswish", 1),
            (5, 144, 48, True, "hardswish", 1),
            (5, 288, 96, True, "hardswish", 2),
            (5, 576, 96, True, "hardswish", 1),
            (5, 576, 96, True, "hardswish", 1),
        ),
        1024,
    ),
}
STEM_CHANNELS = 16
NORM = {"eps": 1e-3, "momentum": 1e-2}


class SqueezeExcitation(nn.Module):
    """Every channel times a factor that follows from all channels' means (Hu et al. 2018, arXiv:1709.01507)."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        return input * F.hardsigmoid(self.fc2(F.relu(self.fc1(input.mean((2, 3), keepdim=True)))))


class InvertedResidual(nn.Module):
    """Expansion, depthwise, [squeeze-and-excitation], projection; the input is added where the shape is unchanged.

    Without squeeze-and-excitation, the depthwise, its norm and activation, the projection, its norm and the addition are one fused operator
    in eval mode; with it the depthwise, its norm and activation are.
    """

    def __init__(self, in_channels: int, row: tuple, channels: int, hidden: int, stride: int, dilation: int):
        super().__init__()
        kernel, _, _, squeeze, activation, published_stride = row
        self.residual = published_stride == 1 and in_channels == channels
        layers: list[nn.Module] = []
        if hidden != in_channels:
            layers.append(ConvNormActivation(in_channels, hidden, 1, activation=activation, **NORM))
        depthwise = ConvNormActivation(hidden, hidden, kernel, stride, dilation, hidden, activation, **NORM)
        layers.append(depthwise)
        if squeeze:
            layers.append(SqueezeExcitation(hidden, round_channels(hidden // 4)))
        projection = ConvNormActivation(hidden, channels, 1, activation=None, **NORM)
        self.block = nn.Sequential(*layers, projection)
        pair = DepthwiseSeparableConv2d.from_modules(
            depthwise[0],
            projection[0],
            depthwise_norm=depthwise[1],
            depthwise_activation=activation,
            pointwise_norm=projection[1],
        )
        # In a tuple, so that it is no submodule: the parameters keep the names they have in `block`.
        self._pair = None if squeeze else (pair,)
        self._expansion = len(layers) - (2 if squeeze else 1)

    def plain_forward(self, input: Tensor) -> Tensor:
        out = self.block(input)
        return out + input if self.residual else out

    def forward(self, input: Tensor) -> Tensor:
        if self._pair is None:
            return self.plain_forward(input)
        hidden = self.block[0](input) if self._expansion else input
        return self._pair[0](hidden, input if self.residual else None)

    def train(self, mode: bool = True):
        if self._pair is not None:
            self._pair[0].train(mode)
        return super().train(mode)


class MobileNetV3(nn.Module):
    """MobileNetV3, large or small, on fastconv; `fastconv.nn.plain` gives the same network on torch alone.

    `forward`: images (N, 3, H, W) -> class scores (N, num_classes).
    `features`: images -> map (N, 6 * last, ceil(H/s), ceil(W/s)) at output stride s.
    `pyramid`: images -> the last map of every stride, (stride, channels) in `taps`.

    Args:
        name: "large" or "small".
        num_classes: length of the score vector.
        width: multiplier of every channel count.
        output_stride: 32 as published, or 16 or 8, as in :class:`fastconv.models.MobileNetV2`. Squeeze-and-excitation then averages over
            the denser map, so that the numbers differ from the published network's a little.
        dropout: probability before the classifier, in train mode.

    Raises:
        ValueError: for a name or an output stride not listed above.
    """

    def __init__(self, name: str = "large", num_classes: int = 1000, width: float = 1.0, output_stride: int = 32, dropout: float = 0.2):
        super().__init__()
        if name not in CONFIGS:
            raise ValueError(f"name: got {name!r}, supported are {', '.join(CONFIGS)}")
        self.name, self.width, self.output_stride = name, width, output_stride
        rows, last_channels = CONFIGS[name]
        strides = Strides(output_stride)
        channels = round_channels(STEM_CHANNELS * width)
        stem_stride, _ = strides(2)
        layers: list[nn.Module] = [ConvNormActivation(3, channels, 3, stem_stride, activation="hardswish", **NORM)]
        reached = [(stem_stride, channels)]
        for row in rows:
            hidden, out_channels = round_channels(row[1] * width), round_channels(row[2] * width)
            layers.append(InvertedResidual(channels, row, out_channels, hidden, *strides(row[5])))
            channels = out_channels
            reached.append((strides.reached, channels))
        layers.append(ConvNormActivation(channels, 6 * channels, 1, activation="hardswish", **NORM))
        self.features = nn.Sequential(*layers)
        last_channels = round_channels(last_channels * width)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, last_channels), nn.Hardswish(), nn.Dropout(dropout), nn.Linear(last_channels, num_classes)
        )
        self._ends = stride_ends([stride for stride, _ in reached])
        self.taps = tuple(reached[end] for end in self._ends)
        for module in self.modules():
            if isinstance(module, ConvNormActivation):
                module.backend = "fastconv"
        initialise(self)

    def forward(self, input: Tensor) -> Tensor:
        return self.classifier(self.features(input).mean((2, 3)))

    def pyramid(self, input: Tensor) -> list[Tensor]:
        """The last map of every stride, finest first; the layer in front of the classifier is not among them."""
        return pyramid(self.features, self._ends, input)

    def extra_repr(self) -> str:
        return f"{self.name!r}, width={self.width}, output_stride={self.output_stride}"
