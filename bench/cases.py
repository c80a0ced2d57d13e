"""Every case the benchmark measures: one list, used by `python -m bench`, by `pytest bench` and by the reports.

A case is a layer, a direction and a dtype; both memory formats are measured together, because they share their rivals.
The layers are those of real networks (Xception-65 and MobileNetV2/V3 inside DeepLabv3+ at 513x513 and 1025x2049, ConvNeXt-T, common pooling stems).
"""

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

QUICK, DEFAULT, FULL = 0, 1, 2
TIERS = {"quick": QUICK, "default": DEFAULT, "full": FULL}


class Order(NamedTuple):
    """What surrounds the two convolutions, batch norms folded into the weights and biases."""

    input_activation: str
    depthwise_activation: str
    pointwise_activation: str
    depthwise_bias: bool
    pointwise_bias: bool


ORDERS = {
    "bare": Order("identity", "identity", "identity", False, False),
    "xception": Order("relu", "identity", "identity", True, True),
    "deeplab": Order("identity", "relu", "relu", True, True),
    "mobilenet": Order("identity", "relu6", "identity", True, True),
    "mobilenetv3": Order("identity", "hardswish", "identity", True, True),
    "smp": Order("identity", "identity", "relu", False, True),
    "convnext": Order("identity", "identity", "identity", True, False),
}


@dataclass(frozen=True)
class Case:
    """One thing to measure. `padding` None means the padding that keeps the size at stride 1."""

    layer: str
    channels: int
    out_channels: int
    height: int
    width: int
    kernel: int = 3
    dilation: int = 1
    stride: int = 1
    padding: int | None = None
    order: str = "bare"
    residual: bool = False
    batch: int = 1
    op: str = "separable"
    direction: str = "forward"
    dtype: str = "float32"
    grid: str = "layers"
    tier: int = FULL

    @property
    def pad(self) -> int:
        return self.dilation * (self.kernel - 1) // 2 if self.padding is None else self.padding

    @property
    def conv_stride(self) -> int:
        """The stride of the output grid: a stitched pool is dense whatever its stride."""
        return 1 if self.is_pool else self.stride

    @property
    def is_pool(self) -> bool:
        return self.op.endswith("_pool")

    def out_size(self, size: int) -> int:
        return (size + 2 * self.pad - self.dilation * (self.kernel - 1) - 1) // self.conv_stride + 1

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.out_channels, self.out_size(self.height), self.out_size(self.width))

    @property
    def in_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.channels, self.height, self.width)

    @property
    def shape(self) -> str:
        """Short form of the geometry, as tables print it."""
        batch = f"{self.batch}x" if self.batch > 1 else ""
        channels = str(self.channels) if self.channels == self.out_channels else f"{self.channels}-{self.out_channels}"
        size = str(self.height) if self.height == self.width else f"{self.height}x{self.width}"
        stride = f" s{self.stride}" if self.stride > 1 else ""
        return f"{batch}{channels} @{size} k{self.kernel} d{self.dilation}{stride}"

    @property
    def section(self) -> str:
        """The table a case belongs to."""
        return f"{self.op} {self.direction} {self.dtype}"

    @property
    def id(self) -> str:
        return f"{self.section}/{self.layer}/{self.shape}".replace(" ", "-")


def _layer(layer, channels, out_channels, size, dilation=1, tier=FULL, **more):
    height, width = size if isinstance(size, tuple) else (size, size)
    return Case(layer, channels, out_channels, height, width, dilation=dilation, tier=tier, **more)


def _separable_layers() -> list[Case]:
    """SPEC section 5; P is 513x513, C is 1025x2049 (Cityscapes), the number behind it the output stride."""
    x, d, m = {"order": "xception"}, {"order": "deeplab"}, {"order": "mobilenet"}
    layers = [
        _layer("xception.entry P", 64, 128, 257, tier=DEFAULT, **x),
        _layer("xception.entry P", 128, 128, 257, **x),
        _layer("xception.entry P", 128, 128, 257, stride=2, tier=DEFAULT, **x),
        _layer("xception.entry P", 128, 256, 129, tier=QUICK, **x),
        _layer("xception.entry P", 256, 256, 129, **x),
        _layer("xception.entry P", 256, 256, 129, stride=2, **x),
        _layer("xception.entry P", 256, 728, 65, **x),
        _layer("xception.middle P16", 728, 728, 33, tier=QUICK, residual=True, **x),
        _layer("xception.middle P8", 728, 728, 65, 2, tier=DEFAULT, **x),
        _layer("xception.exit P16", 1024, 1024, 33, **x),
        _layer("xception.exit P8", 1024, 1024, 65, 2, **x),
        _layer("xception.exit2 P16", 1024, 1536, 33, 2, tier=DEFAULT, **d),
        _layer("xception.exit2 P16", 1536, 1536, 33, 2, **d),
        _layer("xception.exit2 P16", 1536, 2048, 33, 2, **d),
        _layer("xception.exit2 P8", 1024, 1536, 65, 4, **d),
        _layer("xception.exit2 P8", 1536, 1536, 65, 4, **d),
        _layer("xception.exit2 P8", 1536, 2048, 65, 4, **d),
        _layer("decoder P", 304, 256, 129, tier=QUICK, **d),
        _layer("decoder P", 256, 256, 129, tier=DEFAULT, **d),
        _layer("mobilenetv2.4 P16", 384, 64, 33, tier=DEFAULT, **m),
        _layer("mobilenetv2.5 P16", 576, 96, 33, residual=True, **m),
        _layer("mobilenetv2.last P16", 960, 160, 33, 2, residual=True, **m),
        _layer("mobilenetv2.last P16", 960, 320, 33, 2, tier=DEFAULT, **m),
        _layer("mobilenetv2.4 P8", 384, 64, 65, 2, **m),
        _layer("mobilenetv2.5 P8", 576, 96, 65, 2, **m),
        _layer("mobilenetv2.last P8", 960, 320, 65, 4, **m),
        _layer("mobilenetv3.last P16", 960, 160, 33, 2, tier=DEFAULT, kernel=5, order="mobilenetv3"),
        _layer("mobilenetv3.last P8", 960, 160, 65, 4, kernel=5, order="mobilenetv3"),
        _layer("xception.entry C", 64, 128, (513, 1025), **x),
        _layer("xception.entry C", 128, 256, (257, 513), **x),
        _layer("xception.middle C16", 728, 728, (65, 129), **x),
        _layer("xception.middle C8", 728, 728, (129, 257), 2, **x),
        _layer("xception.exit2 C16", 1024, 1536, (65, 129), 2, **d),
        _layer("decoder C", 304, 256, (257, 513), **d),
    ]
    for rate, tier in ((6, FULL), (12, QUICK), (18, DEFAULT)):
        layers.append(_layer("aspp P16", 2048, 256, 33, rate, tier=tier, **d))
        layers.append(_layer("aspp P16", 320, 256, 33, rate, **d))
        layers.append(_layer("aspp P8", 2048, 256, 65, 2 * rate, **d))
        layers.append(_layer("aspp C16", 2048, 256, (65, 129), rate, **d))
    return layers


def _depthwise_layers() -> list[Case]:
    more = {"op": "depthwise"}
    convnext = [
        _layer("convnext-t.dw", channels, channels, size, kernel=7, order="convnext", tier=tier, **more)
        for channels, size, tier in ((96, 56, QUICK), (192, 28, FULL), (384, 14, DEFAULT), (768, 7, FULL))
    ]
    return convnext + [
        _layer("xception.entry P", 128, 128, 257, tier=QUICK, **more),
        _layer("xception.middle P16", 728, 728, 33, tier=DEFAULT, **more),
        _layer("xception.middle P8", 728, 728, 65, 2, tier=DEFAULT, **more),
        _layer("xception.exit2 P8", 1536, 1536, 65, 4, **more),
        _layer("aspp P16", 2048, 2048, 33, 12, tier=DEFAULT, **more),
        _layer("decoder P", 304, 304, 129, **more),
        _layer("xception.entry P", 128, 128, 257, stride=2, **more),
        _layer("mobilenetv3.last P16", 960, 960, 33, 2, kernel=5, tier=DEFAULT, **more),
    ]


def _pool_layers(op: str) -> list[Case]:
    """Pools made dense: the ResNet and Xception stems (3, 2, 1), VGG (2, 2), OverFeat (3, 3), and a dilated one as `to_dense` makes."""
    more = {"op": op}
    return [
        _layer("pool 256", 64, 64, 256, stride=2, tier=QUICK, **more),
        _layer("resnet.stem", 64, 64, 112, stride=2, tier=DEFAULT, **more),
        _layer("vgg.1", 64, 64, 224, kernel=2, stride=2, **more),
        _layer("vgg.4", 512, 512, 28, kernel=2, stride=2, **more),
        _layer("xception.pool P", 256, 256, 129, stride=2, **more),
        _layer("overfeat.5", 1024, 1024, (20, 23), stride=3, padding=0, tier=DEFAULT, **more),
    ] + ([_layer("dense.dilated", 128, 128, 129, 2, stride=2, tier=DEFAULT, **more)] if op == "max_pool" else [])


SWEEP_SIZES = (14, 28, 56, 112, 224, 448)
SWEEP_DILATIONS = (1, 2, 4, 12)
SWEEP_CHANNELS = 128


def _sweep() -> list[Case]:
    """Resolution against time and memory: a DeepLab-order layer at fixed channels."""
    return [
        _layer("sweep", SWEEP_CHANNELS, SWEEP_CHANNELS, size, dilation, order="deeplab", grid="sweep", tier=DEFAULT if dilation in (1, 12) else FULL)
        for dilation in SWEEP_DILATIONS
        for size in SWEEP_SIZES
    ]


def _batched_layers() -> list[Case]:
    """Batches that fill a GPU: memory-bound, balanced and launch-bound ones."""
    sizes = ((32, 256, 28), (32, 128, 56), (16, 128, 128), (32, 64, 256), (8, 512, 128), (8, 512, 14))
    return [
        _layer("batch", channels, channels, size, dilation, batch=batch, order="deeplab", tier=QUICK if dilation == 1 else DEFAULT)
        for batch, channels, size in sizes
        for dilation in (1, 2, 18)
    ]


def _as(layers: list[Case], tier_shift: int = 0, **changes) -> list[Case]:
    return [replace(layer, tier=min(layer.tier + tier_shift, FULL), **changes) for layer in layers]


def _thin(layers: list[Case], names: tuple[str, ...]) -> list[Case]:
    """Outside `--full` keep only the layers whose id has one of the names: for directions that cost many times a forward."""
    return [layer if any(name in layer.id for name in names) else replace(layer, tier=FULL) for layer in layers]


def _cpu_cases() -> list[Case]:
    separable, depthwise = _separable_layers(), _depthwise_layers()
    trained = ("128-256-@129", "middle-P16", "middle-P8", "304-256", "320-@33-k3-d2", "2048-256-@33-k3-d12")
    both = {"direction": "forward_backward"}
    return (
        separable
        + _as(separable, dtype="bfloat16")
        + _thin(_as(separable, **both), trained)
        + depthwise
        + _as(depthwise, direction="backward")
        + _pool_layers("max_pool")
        + _as(_pool_layers("max_pool"), **both)
        + _as(_pool_layers("avg_pool"))
        + _as(_pool_layers("avg_pool"), tier_shift=1, **both)
        + _sweep()
        + _as(_sweep(), tier_shift=1, **both)
    )


def _cuda_cases() -> list[Case]:
    """On a GPU 16-bit is what people run; float32 is measured on the quick layers."""
    separable, batched = _separable_layers(), _batched_layers()
    half, both = {"dtype": "bfloat16"}, {"direction": "forward_backward"}
    depthwise = _depthwise_layers() + _as(batched, op="depthwise", order="bare")
    pools = _pool_layers("max_pool") + [replace(case, batch=16, layer=case.layer + " x16", tier=FULL) for case in _pool_layers("max_pool")]
    return (
        _as(batched, **half)
        + _as(separable, **half)
        + _as(batched, **half, **both)
        + _as(depthwise, **half)
        + _as(depthwise, **half, direction="backward")
        + _as(pools, **half)
        + _as(pools, **half, **both)
        + _as(_pool_layers("avg_pool"), **half)
        + _as(_sweep(), **half)
        + _as([layer for layer in separable if layer.tier <= DEFAULT], tier_shift=1)
        + _as([layer for layer in separable if layer.tier <= DEFAULT], tier_shift=1, **half, **both)
    )


def select(device: str, tier: str, only: str | None = None) -> list[Case]:
    """The cases of a device up to a tier, in running order, filtered by a regular expression over their ids."""
    cases = _cuda_cases() if device == "cuda" else _cpu_cases()
    return [case for case in cases if case.tier <= TIERS[tier] and (only is None or re.search(only, case.id))]
