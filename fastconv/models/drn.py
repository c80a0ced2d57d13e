"""Dilated Residual Networks: Yu, Koltun, Funkhouser 2017 (arXiv:1705.09914). Classifiers that keep a map of an eighth of the image.

The parameter names are those of the authors' public checkpoints, so that these load.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from fastconv.localization import Box, heat_maps, localize
from fastconv.nn import DepthwiseSeparableConv2d

from .blocks import initialise


@dataclass(frozen=True)
class Config:
    """arch: "A" is ResNet with the strides of its last two stages given up. "B" has more layers instead of the max pool, and two levels of
    falling dilation at its end. "C" takes the shortcuts of those two levels away, "D" makes them and the first two plain convolutions.
    blocks: per level, four for A, eight otherwise. bottleneck: the block of A, and of levels 3 to 6.
    """

    arch: str
    blocks: tuple[int, ...]
    bottleneck: bool = False


CONFIGS = {
    "drn_a_18": Config("A", (2, 2, 2, 2)),
    "drn_a_34": Config("A", (3, 4, 6, 3)),
    "drn_a_50": Config("A", (3, 4, 6, 3), True),
    "drn_b_26": Config("B", (1, 1, 2, 2, 2, 2, 1, 1)),
    "drn_b_42": Config("B", (1, 1, 3, 4, 6, 3, 1, 1)),
    "drn_b_58": Config("B", (1, 1, 3, 4, 6, 3, 1, 1), True),
    "drn_c_26": Config("C", (1, 1, 2, 2, 2, 2, 1, 1)),
    "drn_c_42": Config("C", (1, 1, 3, 4, 6, 3, 1, 1)),
    "drn_c_58": Config("C", (1, 1, 3, 4, 6, 3, 1, 1), True),
    "drn_d_22": Config("D", (1, 1, 2, 2, 2, 2, 1, 1)),
    "drn_d_24": Config("D", (1, 1, 2, 2, 2, 2, 2, 2)),
    "drn_d_38": Config("D", (1, 1, 3, 4, 6, 3, 1, 1)),
    "drn_d_40": Config("D", (1, 1, 3, 4, 6, 3, 2, 2)),
    "drn_d_54": Config("D", (1, 1, 3, 4, 6, 3, 1, 1), True),
    "drn_d_56": Config("D", (1, 1, 3, 4, 6, 3, 2, 2), True),
    "drn_d_105": Config("D", (1, 1, 3, 4, 23, 3, 1, 1), True),
    "drn_d_107": Config("D", (1, 1, 3, 4, 23, 3, 2, 2), True),
}

CHANNELS = (16, 32, 64, 128, 256, 512, 512, 512)
STRIDES = (1, 2, 2, 2, 1, 1, 1, 1)
DILATIONS = (1, 1, 1, 1, 2, 4, 2, 1)

# Of the class map on the image: every layer is centred, so position u looks at pixel 8u.
JUMP, START = 8, 0.5


def separable3x3(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> DepthwiseSeparableConv2d:
    """Stands for a 3x3 convolution, its norm and the ReLU behind them: depthwise, pointwise, norm, [+ shortcut], ReLU, as one operator."""
    return DepthwiseSeparableConv2d(
        in_channels,
        out_channels,
        3,
        stride,
        dilation,
        dilation,
        depthwise_bias=False,
        pointwise_norm=nn.BatchNorm2d,
        pointwise_activation="relu",
    )


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, dilation, dilation, bias=False)


class Basic(nn.Module):
    """Two 3x3 convolutions, with or without a shortcut around them."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, dilations: tuple[int, int], residual: bool, separable: bool):
        super().__init__()
        self.residual, self.separable = residual, separable
        if separable:
            self.conv1 = separable3x3(in_channels, channels, stride, dilations[0])
            self.conv2 = separable3x3(channels, channels, 1, dilations[1])
        else:
            self.conv1 = conv3x3(in_channels, channels, stride, dilations[0])
            self.bn1 = nn.BatchNorm2d(channels)
            self.conv2 = conv3x3(channels, channels, 1, dilations[1])
            self.bn2 = nn.BatchNorm2d(channels)
        # Blocks without shortcut carry its projection too where the channels change: it is in the published checkpoints.
        self.downsample = _projection(in_channels, channels, stride)

    def forward(self, input: Tensor) -> Tensor:
        shortcut = None
        if self.residual:
            shortcut = input if self.downsample is None else self.downsample(input)
        if self.separable:
            return self.conv2(self.conv1(input), shortcut)
        out = F.relu(self.bn1(self.conv1(input)))
        out = self.bn2(self.conv2(out))
        return F.relu(out if shortcut is None else out + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut around them."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, dilations: tuple[int, int], residual: bool, separable: bool):
        super().__init__()
        self.separable = separable
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        if separable:
            self.conv2 = separable3x3(channels, channels, stride, dilations[0])
        else:
            self.conv2 = conv3x3(channels, channels, stride, dilations[0])
            self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.downsample = _projection(in_channels, channels * self.expansion, stride)

    def forward(self, input: Tensor) -> Tensor:
        shortcut = input if self.downsample is None else self.downsample(input)
        out = F.relu(self.bn1(self.conv1(input)))
        out = self.conv2(out) if self.separable else F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + shortcut)


def _projection(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


@dataclass(frozen=True)
class Localization:
    """boxes: for each image its boxes in pixels, the one of most positions first. heat_maps: (N, classes, H/8, W/8), probabilities."""

    boxes: list[list[Box]]
    heat_maps: Tensor


class DRN(nn.Module):
    """A Dilated Residual Network.

    `forward`: images (N, 3, H, W) -> class scores (N, num_classes). `features`: the last map, (N, C, ceil(H/8), ceil(W/8)). `class_map`:
    the classifier at every position of it. `localize`: boxes and heat maps, without any training for them. At 224 x 224 the average pool is
    the paper's 28 x 28; at other sizes it is over the whole map.

    Where a stride was given up ("A"), the first convolution of the stage keeps the dilation that comes in, so that A computes at every
    position what the strided ResNet computes at every fourth; in "B", "C" and "D" all convolutions of levels 5 and 6 are dilated alike.

    Args:
        name: one of `CONFIGS`, such as "drn_c_26".
        num_classes: length of the score vector.
        separable: 3x3 convolutions as depthwise-separable ones (depthwise, pointwise, norm, activation, with the shortcut added in
            between), each one fused operator; other parameters, other names.

    Raises:
        ValueError: a name that is not in `CONFIGS`.
    """

    def __init__(self, name: str, num_classes: int = 1000, separable: bool = False):
        super().__init__()
        if name not in CONFIGS:
            raise ValueError(f"name: got {name!r}, supported are {', '.join(CONFIGS)}")
        self.name, self.config, self.separable = name, CONFIGS[name], separable
        self._channels = 64 if self.config.arch == "A" else CHANNELS[0]
        build = {"A": self._build_a, "B": self._build_bc, "C": self._build_bc, "D": self._build_d}
        build[self.config.arch]()
        self.fc = nn.Linear(self._channels, num_classes) if self.config.arch == "A" else nn.Conv2d(self._channels, num_classes, 1)
        initialise(self)

    # ---- the four architectures --------------------------------------------------------------------------------------------------------

    def _build_a(self) -> None:
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        block = Bottleneck if self.config.bottleneck else Basic
        for stage, (channels, stride, first, dilation) in enumerate(((64, 1, 1, 1), (128, 2, 1, 1), (256, 1, 1, 2), (512, 1, 2, 4)), 1):
            # The convolution that lost its stride reads its input as the strided one did; what comes after it sees a map twice as dense.
            dilations = (first, first) if block is Bottleneck else (first, dilation)
            self.add_module(f"layer{stage}", self._level(block, channels, self.config.blocks[stage - 1], stride, dilation, dilations))

    def _build_bc(self) -> None:
        self.conv1 = nn.Conv2d(3, CHANNELS[0], 7, 1, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS[0])
        for level, blocks in enumerate(self.config.blocks, 1):
            block = Bottleneck if self.config.bottleneck and 3 <= level <= 6 else Basic
            residual = level <= 6 or self.config.arch == "B"
            stride, dilation = STRIDES[level - 1], DILATIONS[level - 1]
            self.add_module(f"layer{level}", self._level(block, CHANNELS[level - 1], blocks, stride, dilation, None, residual))

    def _build_d(self) -> None:
        self.layer0 = nn.Sequential(nn.Conv2d(3, CHANNELS[0], 7, 1, 3, bias=False), nn.BatchNorm2d(CHANNELS[0]), nn.ReLU())
        for level, blocks in enumerate(self.config.blocks, 1):
            stride, dilation = STRIDES[level - 1], DILATIONS[level - 1]
            if 3 <= level <= 6:
                made = self._level(Bottleneck if self.config.bottleneck else Basic, CHANNELS[level - 1], blocks, stride, dilation)
            else:
                made = self._plain_level(CHANNELS[level - 1], blocks, stride, dilation)
            self.add_module(f"layer{level}", made)

    def _level(self, block, channels, blocks, stride, dilation, first_dilations=None, residual=True) -> nn.Sequential:
        layers = []
        for position in range(blocks):
            dilations = first_dilations if position == 0 and first_dilations is not None else (dilation, dilation)
            layers.append(block(self._channels, channels, stride if position == 0 else 1, dilations, residual, self.separable))
            self._channels = channels * block.expansion
        return nn.Sequential(*layers)

    def _plain_level(self, channels: int, convs: int, stride: int, dilation: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for position in range(convs):
            shape = (self._channels, channels, stride if position == 0 else 1, dilation)
            layers += [separable3x3(*shape)] if self.separable else [conv3x3(*shape), nn.BatchNorm2d(channels), nn.ReLU()]
            self._channels = channels
        return nn.Sequential(*layers)

    # ---- running it --------------------------------------------------------------------------------------------------------------------

    @property
    def taps(self) -> tuple[tuple[int, int], ...]:
        """(stride, channels) of the maps that `pyramid` gives."""
        if self.config.arch == "A":
            wide = Bottleneck.expansion if self.config.bottleneck else 1
            return (2, 64), (4, 64 * wide), (JUMP, self._channels)
        wide = Bottleneck.expansion if self.config.bottleneck else 1
        return (1, CHANNELS[0]), (2, CHANNELS[1]), (4, CHANNELS[2] * wide), (JUMP, self._channels)

    def pyramid(self, input: Tensor) -> list[Tensor]:
        """The last map of every stride, finest first."""
        if self.config.arch == "A":
            stem = F.relu(self.bn1(self.conv1(input)))
            first = self.layer1(self.maxpool(stem))
            return [stem, first, self.layer4(self.layer3(self.layer2(first)))]
        stem = self.layer0(input) if self.config.arch == "D" else F.relu(self.bn1(self.conv1(input)))
        first = self.layer1(stem)
        second = self.layer2(first)
        third = self.layer3(second)
        last = self.layer8(self.layer7(self.layer6(self.layer5(self.layer4(third)))))
        return [first, second, third, last]

    def features(self, input: Tensor) -> Tensor:
        return self.pyramid(input)[-1]

    def forward(self, input: Tensor) -> Tensor:
        pooled = self.features(input).mean((2, 3))
        if self.config.arch == "A":
            return self.fc(pooled)
        return self.fc(pooled[:, :, None, None]).flatten(1)

    def class_map(self, input: Tensor) -> Tensor:
        """Class scores at every position: (N, num_classes, ceil(H/8), ceil(W/8)). Their mean over positions is `forward`."""
        return F.conv2d(self.features(input), self.fc.weight.reshape(*self.fc.weight.shape[:2], 1, 1), self.fc.bias)

    def localize(self, image: Tensor, threshold: float = 0.5) -> Localization:
        """Boxes and heat maps from the class map, see :func:`fastconv.localization.localize`.

        image: (N, 3, H, W). threshold: least probability of a position's winner. The model should be in eval mode.

        Source: Yu et al. 2017 (arXiv:1705.09914), the section on object localization.
        """
        logits = self.class_map(image)
        boxes = localize(logits, threshold, jump=JUMP, start=START, image_size=tuple(image.shape[2:]))
        return Localization(boxes, heat_maps(logits))

    def extra_repr(self) -> str:
        return f"{self.name!r}, separable={self.separable}"
