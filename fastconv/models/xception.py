"""Aligned Xception: Chollet 2017 (arXiv:1610.02357), as Chen et al. 2018 (arXiv:1802.02611) changed it for DeepLabv3+.

The parameter names are timm's, so its checkpoints (and TensorFlow's, converted) load; timm itself is not needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from fastconv.nn import DepthwiseSeparableConv2d
from fastconv.reference import ACTIVATIONS

from .blocks import Strides, initialise, round_channels

NORM = {"eps": 1e-3}


@dataclass(frozen=True)
class Block:
    """Three separable convolutions of these output channels, the last with the stride; `repeat` times.

    relu_first: ReLU in front of every depthwise (then a shortcut goes around), or behind every norm (then none does).
    """

    channels: tuple[int, int, int]
    stride: int = 1
    repeat: int = 1
    relu_first: bool = True


_ENTRY = (Block((128, 128, 128), 2), Block((256, 256, 256), 2))
_EXIT = (Block((728, 1024, 1024), 2), Block((1536, 1536, 2048), relu_first=False))

# Figure 4 of Chen et al. 2018.
CONFIGS = {
    "xception41": (*_ENTRY, Block((728, 728, 728), 2), Block((728, 728, 728), repeat=8), *_EXIT),
    "xception65": (*_ENTRY, Block((728, 728, 728), 2), Block((728, 728, 728), repeat=16), *_EXIT),
    "xception71": (
        Block((128, 128, 128), 2),
        Block((256, 256, 256)),
        Block((256, 256, 256), 2),
        Block((728, 728, 728)),
        Block((728, 728, 728), 2),
        Block((728, 728, 728), repeat=16),
        *_EXIT,
    ),
}


class ConvNorm(nn.Module):
    """Convolution and norm by the names conv and bn."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, **NORM)

    def forward(self, input: Tensor) -> Tensor:
        return self.bn(self.conv(input))


class SeparableConv(nn.Module):
    """[ReLU] - depthwise - norm - [ReLU] - pointwise - norm - [+ residual] - [ReLU] as one operator, its parts by the names in use."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dilation: int, relu_first: bool):
        super().__init__()
        self.conv_dw = nn.Conv2d(in_channels, in_channels, 3, stride, dilation, dilation, in_channels, bias=False)
        self.bn_dw = nn.BatchNorm2d(in_channels, **NORM)
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn_pw = nn.BatchNorm2d(out_channels, **NORM)
        self.before, self.after = ("relu", "identity") if relu_first else ("identity", "relu")
        pair = DepthwiseSeparableConv2d.from_modules(
            self.conv_dw,
            self.conv_pw,
            input_activation=self.before,
            depthwise_norm=self.bn_dw,
            depthwise_activation=self.after,
            pointwise_norm=self.bn_pw,
            pointwise_activation=self.after,
        )
        # In a tuple, so that it is no submodule: the parameters keep the names they have here.
        self._pair = (pair,)

    def plain_forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        before, after = ACTIVATIONS[self.before], ACTIVATIONS[self.after]
        out = self.bn_pw(self.conv_pw(after(self.bn_dw(self.conv_dw(before(input))))))
        return after(out if residual is None else out + residual)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._pair[0](input, residual)

    def train(self, mode: bool = True):
        self._pair[0].train(mode)
        return super().train(mode)


class XceptionBlock(nn.Module):
    """Three separable convolutions, and around them a shortcut where the ReLUs come first."""

    def __init__(self, in_channels: int, channels: tuple[int, ...], published_stride: int, stride: int, dilation: int, relu_first: bool):
        super().__init__()
        widths = (in_channels, *channels)
        self.stack = nn.Sequential()
        for i in range(3):
            conv = SeparableConv(widths[i], widths[i + 1], stride if i == 2 else 1, dilation, relu_first)
            self.stack.add_module(f"conv{i + 1}", conv)
        self.skips = relu_first
        projects = relu_first and (in_channels != channels[-1] or published_stride != 1)
        self.shortcut = ConvNorm(in_channels, channels[-1], 1, stride) if projects else None

    def middle(self, input: Tensor) -> Tensor:
        """The map behind the second convolution, still at the block's input stride: what decoders look at."""
        return self.stack.conv2(self.stack.conv1(input))

    def finish(self, middle: Tensor, input: Tensor) -> Tensor:
        skip = (input if self.shortcut is None else self.shortcut(input)) if self.skips else None
        return self.stack.conv3(middle, skip)

    def forward(self, input: Tensor) -> Tensor:
        return self.finish(self.middle(input), input)


class Xception(nn.Module):
    """Aligned Xception with a choice of output stride, every separable convolution on fastconv.

    `forward`: images (N, 3, H, W) -> class scores (N, num_classes). `features`: the last map, (N, 2048, ceil(H/s), ceil(W/s)).
    `pyramid`: the map in front of every strided convolution (behind the second separable convolution of its block, where DeepLabv3+'s
    decoder takes it), then the last map; (stride, channels) in `taps`.

    Args:
        name: one of `CONFIGS`.
        num_classes: length of the score vector.
        output_stride: 32 as published, or 16 or 8: strides beyond are given up, and what follows is dilated, exactly.
        width: multiplier of every channel count, for small networks.

    Raises:
        ValueError: for a name or an output stride not listed above.
    """

    def __init__(self, name: str = "xception65", num_classes: int = 1000, output_stride: int = 32, width: float = 1.0):
        super().__init__()
        if name not in CONFIGS:
            raise ValueError(f"name: got {name!r}, supported are {', '.join(CONFIGS)}")
        self.name, self.output_stride, self.width = name, output_stride, width
        strides = Strides(output_stride)
        stem_stride, _ = strides(2)
        first, channels = (round_channels(c * width) for c in (32, 64))
        self.stem = nn.Sequential(ConvNorm(3, first, 3, stem_stride), ConvNorm(first, channels, 3, 1))
        self.blocks, taps, self._tapped = nn.Sequential(), [], []
        for block in (block for row in CONFIGS[name] for block in [row] * row.repeat):
            widths = tuple(round_channels(c * width) for c in block.channels)
            before = strides.reached
            stride, dilation = strides(block.stride)
            if stride > 1:
                self._tapped.append(len(self.blocks))
                taps.append((before, widths[1]))
            self.blocks.append(XceptionBlock(channels, widths, block.stride, stride, dilation, block.relu_first))
            channels = widths[-1]
        self.taps = (*taps, (strides.reached, channels))
        self.head = nn.Sequential()
        self.head.add_module("fc", nn.Linear(channels, num_classes))
        initialise(self)

    def pyramid(self, input: Tensor) -> list[Tensor]:
        """The maps of `taps`, finest first."""
        for layer in self.stem:
            input = F.relu(layer(input))
        maps = []
        for position, block in enumerate(self.blocks):
            middle = block.middle(input)
            if position in self._tapped:
                maps.append(middle)
            input = block.finish(middle, input)
        return [*maps, input]

    def features(self, input: Tensor) -> Tensor:
        return self.pyramid(input)[-1]

    def forward(self, input: Tensor) -> Tensor:
        return self.head(self.features(input).mean((2, 3)))

    def extra_repr(self) -> str:
        return f"{self.name!r}, output_stride={self.output_stride}"
