"""A segmentation decoder on separable convolutions: U-Net's and FCN's in one.

Ronneberger et al., "U-Net", 2015 (arXiv:1505.04597); Long et al., "Fully Convolutional Networks for Semantic Segmentation", 2015
(arXiv:1411.4038).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastconv.nn import DepthwiseSeparableConv2d

from .blocks import initialise, initialise_classifier
from .deeplab import resize

MERGES = ("concatenate", "add")


def separable(in_channels: int, out_channels: int) -> DepthwiseSeparableConv2d:
    """Depthwise 3x3, pointwise, norm, [+ residual], ReLU."""
    return DepthwiseSeparableConv2d(
        in_channels, out_channels, 3, padding=1, depthwise_bias=False, pointwise_norm=nn.BatchNorm2d, pointwise_activation="relu"
    )


class _Concatenate(nn.Module):
    """U-Net's step: the coarse map, resized, beside the fine one, and two convolutions over both."""

    def __init__(self, coarse: int, fine: int, channels: int):
        super().__init__()
        self.first, self.second = separable(coarse + fine, channels), separable(channels, channels)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        return self.second(self.first(torch.cat([resize(coarse, fine), fine], 1)))


class _Add(nn.Module):
    """FCN's step: the coarse map, brought to as many channels and resized, is added to a convolution of the fine one, in its epilogue."""

    def __init__(self, coarse: int, fine: int, channels: int):
        super().__init__()
        self.coarse, self.fine = nn.Conv2d(coarse, channels, 1), separable(fine, channels)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        return self.fine(fine, resize(self.coarse(coarse), fine))


class Decoder(nn.Module):
    """From an encoder's maps to one map of the finest stride asked for; odd sizes included, as maps are resized to each other.

    Args:
        taps: (stride, channels) of the maps, finest first, as an encoder's `taps`.
        channels: of the decoder at every step, coarsest first; as many steps as there are, one less than maps at most.
        merge: "concatenate" (U-Net) or "add" (FCN).

    Raises:
        ValueError: more steps than maps to merge, or an unknown merge.
    """

    def __init__(self, taps: tuple[tuple[int, int], ...], channels: tuple[int, ...], merge: str = "concatenate"):
        super().__init__()
        if merge not in MERGES:
            raise ValueError(f"merge: got {merge!r}, supported are {', '.join(MERGES)}")
        if not 1 <= len(channels) < len(taps):
            raise ValueError(f"channels: between 1 and {len(taps) - 1} steps are possible with the maps {taps}, got {channels}")
        step = _Concatenate if merge == "concatenate" else _Add
        coarse = [taps[-1][1], *channels]
        fine = [taps[-2 - i][1] for i in range(len(channels))]
        self.steps = nn.ModuleList(step(*shape) for shape in zip(coarse, fine, channels, strict=False))
        self.channels = channels[-1]
        initialise(self)

    def forward(self, maps: list[Tensor]) -> Tensor:
        out = maps[-1]
        for position, step in enumerate(self.steps):
            out = step(out, maps[-2 - position])
        return out


class Segmenter(nn.Module):
    """Encoder, decoder, 1x1 classifier: images (N, 3, H, W) -> class scores (N, num_classes, H, W).

    Args:
        encoder: a network with `pyramid` and `taps`, such as any of :func:`fastconv.models.create`.
        num_classes: channels of the output.
        channels, merge: of the :class:`Decoder`.

    Raises:
        ValueError: as `Decoder`.
    """

    def __init__(self, encoder: nn.Module, num_classes: int = 21, channels: tuple[int, ...] = (128, 64, 32), merge: str = "concatenate"):
        super().__init__()
        self.encoder = encoder
        self.decoder = Decoder(encoder.taps, channels, merge)
        self.classifier = nn.Conv2d(self.decoder.channels, num_classes, 1)
        initialise_classifier(self.classifier)

    def forward(self, input: Tensor) -> Tensor:
        return resize(self.classifier(self.decoder(self.encoder.pyramid(input))), input)
