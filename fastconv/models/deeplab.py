"""DeepLabv3+: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", 2018 (arXiv:1802.02611)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format

from fastconv.nn import DepthwiseSeparableConv2d

from .blocks import initialise, initialise_classifier


@dataclass(frozen=True)
class Config:
    """rates: of the pyramid's 3x3 convolutions at output stride 16, twice that at 8. channels: of every map in it and in the decoder.
    low_channels: what the encoder's fine map is reduced to.
    """

    rates: tuple[int, ...] = (6, 12, 18)
    channels: int = 256
    low_channels: int = 48


def conv_norm_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def conv3x3(in_channels: int, out_channels: int, dilation: int, separable: bool, norm_between: bool) -> nn.Module:
    """3x3 convolution, norm, ReLU; separable: depthwise [- norm - ReLU] - pointwise - norm - ReLU as one operator."""
    if not separable:
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))
    return DepthwiseSeparableConv2d(
        in_channels,
        out_channels,
        3,
        padding=dilation,
        dilation=dilation,
        depthwise_bias=False,
        depthwise_norm=nn.BatchNorm2d if norm_between else None,
        depthwise_activation="relu" if norm_between else "identity",
        pointwise_norm=nn.BatchNorm2d,
        pointwise_activation="relu",
    )


def resize(input: Tensor, like: Tensor) -> Tensor:
    """Bilinear, to the rows and columns of `like`."""
    return F.interpolate(input, size=like.shape[2:], mode="bilinear", align_corners=False)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1 convolution, 3x3 convolutions of several rates and the image's mean, put together by a 1x1."""

    def __init__(self, in_channels: int, channels: int, rates: tuple[int, ...], separable: bool, norm_between: bool):
        super().__init__()
        self.point = conv_norm_relu(in_channels, channels)
        self.atrous = nn.ModuleList(conv3x3(in_channels, channels, rate, separable, norm_between) for rate in rates)
        self.image = conv_norm_relu(in_channels, channels)
        self.project = conv_norm_relu((2 + len(rates)) * channels, channels)

    def forward(self, input: Tensor) -> Tensor:
        mean = self.image(input.mean((2, 3), keepdim=True)).expand(-1, -1, *input.shape[2:])
        # Written out in the format of the other maps: cat would give up channels_last for a broadcast one.
        mean = mean.contiguous(memory_format=suggest_memory_format(input))
        return self.project(torch.cat([self.point(input), *(conv(input) for conv in self.atrous), mean], 1))


class DeepLabV3Plus(nn.Module):
    """DeepLabv3+ around an encoder: images (N, 3, H, W) -> class scores (N, num_classes, H, W).

    The encoder's last map goes through the atrous pyramid and is resized to the encoder's map of stride 4, which is reduced to a few
    channels; both go through two separable convolutions to a 1x1 classifier, whose scores are resized to the image.

    Args:
        encoder: a network with `pyramid` and `taps`, a map of stride 4 and a last map of stride 8 or 16 among them: any of
            :func:`fastconv.models.create` with that ``output_stride``.
        num_classes: channels of the output.
        config: rates and widths.
        separable: False for plain 3x3 convolutions.
        norm_between: whether norm and ReLU also stand between depthwise and pointwise, as in the paper. Without, a separable convolution is
            one operator in train mode too, and keeps nothing but its input for the backward pass.
        dropout: probability in front of the classifier, in train mode.

    Raises:
        ValueError: an encoder without these maps.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int = 21,
        config: Config = Config(),  # noqa: B008 (frozen)
        separable: bool = True,
        norm_between: bool = True,
        dropout: float = 0.1,
    ):
        super().__init__()
        strides = dict(encoder.taps)
        last_stride, last_channels = encoder.taps[-1]
        if 4 not in strides or last_stride not in (8, 16):
            raise ValueError(f"encoder: needs a map of stride 4 and a last one of stride 8 or 16, got (stride, channels) {encoder.taps}")
        self.encoder = encoder
        self._low = [stride for stride, _ in encoder.taps].index(4)
        rates = tuple(rate * 16 // last_stride for rate in config.rates)
        self.aspp = ASPP(last_channels, config.channels, rates, separable, norm_between)
        self.low = conv_norm_relu(strides[4], config.low_channels)
        self.decoder = nn.Sequential(
            conv3x3(config.channels + config.low_channels, config.channels, 1, separable, norm_between),
            conv3x3(config.channels, config.channels, 1, separable, norm_between),
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(config.channels, num_classes, 1)
        for part in (self.aspp, self.low, self.decoder):
            initialise(part)
        initialise_classifier(self.classifier)

    def forward(self, input: Tensor) -> Tensor:
        maps = self.encoder.pyramid(input)
        low = self.low(maps[self._low])
        high = resize(self.aspp(maps[-1]), low)
        out = self.decoder(torch.cat([high, low], 1))
        return resize(self.classifier(self.dropout(out)), input)
