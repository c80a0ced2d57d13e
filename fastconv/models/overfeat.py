"""OverFeat (Sermanet et al. 2014, arXiv:1312.6229): a classifier slid over the image as finely as its features are, not its last pool."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from fastconv.fragments import Fragments

from .blocks import initialise


@dataclass(frozen=True)
class Config:
    """layers: (channels, kernel, stride, padding, pool) of the feature extractor, in order; pool is kernel and stride of the max pool
    behind, 0 for none; the last layer's is the one run at every offset. window: rows and columns that the classifier takes. hidden: its
    channels. size: of the training images.
    """

    layers: tuple[tuple[int, int, int, int, int], ...]
    window: int
    hidden: tuple[int, int]
    size: int


# Tables 1 ("fast") and 3 ("accurate") of the paper. Its table of multi-scale sizes belongs to "accurate".
CONFIGS = {
    "fast": Config(
        ((96, 11, 4, 0, 2), (256, 5, 1, 0, 2), (512, 3, 1, 1, 0), (1024, 3, 1, 1, 0), (1024, 3, 1, 1, 2)),
        window=6,
        hidden=(3072, 4096),
        size=231,
    ),
    "accurate": Config(
        ((96, 7, 2, 0, 3), (256, 7, 1, 0, 2), (512, 3, 1, 1, 0), (512, 3, 1, 1, 0), (1024, 3, 1, 1, 0), (1024, 3, 1, 1, 3)),
        window=5,
        hidden=(4096, 4096),
        size=221,
    ),
}


class OverFeat(nn.Module):
    r"""OverFeat with offset pooling.

    `features`: images (N, 3, H, W) -> the last convolution's map, in front of its pool (the paper's "layer 5 pre-pool").
    `forward`: class scores at every offset of that pool, interleaved: (N, num_classes, rows, columns).
    `strided`: the same with the pool at offset 0 only, as the network is trained: every p-th row and column of `forward`, p the pool's
    stride.

    With p = 3 an image of 281 x 317 gives a 20 x 23 map, the pool 6 x 7 windows at each of 3 x 3 offsets, the 5 x 5 classifier 2 x 3
    outputs for each, and interleaved they are 6 x 9.

    Args:
        name: "fast" or "accurate".
        num_classes: channels of the output.
        width: multiplier of every channel count, for small networks.
        dropout: probability in front of the two last layers, in train mode. A network with dropout trains with `strided`: on fragments,
            each of which is a part of one map, dropout is refused.

    Raises:
        ValueError: an unknown name; an image that leaves the classifier no window.
    """

    def __init__(self, name: str = "fast", num_classes: int = 1000, width: float = 1.0, dropout: float = 0.5):
        super().__init__()
        if name not in CONFIGS:
            raise ValueError(f"name: got {name!r}, supported are {', '.join(CONFIGS)}")
        self.name, self.config = name, CONFIGS[name]
        channels, layers = 3, []
        for out_channels, kernel, stride, padding, pool in self.config.layers:
            out_channels = max(1, round(out_channels * width))
            layers += [nn.Conv2d(channels, out_channels, kernel, stride, padding), nn.ReLU(inplace=True)]
            layers += [nn.MaxPool2d(pool)] if pool else []
            channels = out_channels
        *layers, self.pool = layers
        self.features = nn.Sequential(*layers)
        first, second = (max(1, round(c * width)) for c in self.config.hidden)
        self.classifier = nn.Sequential(
            nn.Conv2d(channels, first, self.config.window),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout) if dropout else nn.Identity(),
            nn.Conv2d(first, second, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout) if dropout else nn.Identity(),
            nn.Conv2d(second, num_classes, 1),
        )
        initialise(self)

    def offset_pool(self, features: Tensor) -> Fragments:
        """The last pool at every offset: fragments (N * p * p, C, rows, columns), the windows of one offset after the other."""
        return Fragments(features).max_pool2d(self.pool.kernel_size)

    def forward(self, input: Tensor) -> Tensor:
        pooled = self.offset_pool(self._checked(self.features(input)))
        return self.classifier(pooled).stitch()

    def strided(self, input: Tensor) -> Tensor:
        return self.classifier(F.max_pool2d(self._checked(self.features(input)), self.pool.kernel_size))

    def _checked(self, features: Tensor) -> Tensor:
        least = self.pool.kernel_size * self.config.window
        if min(features.shape[2:]) < least:
            raise ValueError(
                f"input: the last map is {features.shape[2]}x{features.shape[3]}, the classifier needs {least}x{least}; "
                f"give at least {self.config.size}x{self.config.size} pixels"
            )
        return features

    def extra_repr(self) -> str:
        return repr(self.name)
