"""The one catalogue of shapes: every test file, on every backend, takes its cases from here."""

from dataclasses import dataclass, replace

import torch

ACTIVATIONS = ("identity", "relu", "relu6", "silu", "gelu", "gelu_tanh", "hardswish")
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class ConvCase:
    """A depthwise(-separable) convolution; `out_channels` counts for the separable one."""

    id: str
    size: tuple[int, int, int, int]
    kernel: tuple[int, int] = (3, 3)
    out_channels: int = 8
    multiplier: int = 1
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    depthwise_bias: bool = True
    pointwise_bias: bool = True

    @property
    def middle(self) -> int:
        return self.size[1] * self.multiplier

    @property
    def geometry(self):
        return self.stride, self.padding, self.dilation

    @property
    def padding4(self) -> tuple[int, int, int, int]:
        """Padding as the operators take it: (top, bottom, left, right)."""
        if self.padding == "valid":
            return 0, 0, 0, 0
        if self.padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
            return total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2
        return self.padding[0], self.padding[0], self.padding[1], self.padding[1]


CONV_CASES = (
    ConvCase("plain", (2, 16, 13, 17), out_channels=24),
    ConvCase("one-channel", (1, 1, 9, 9), out_channels=1),
    ConvCase("odd-everything", (3, 7, 11, 5), out_channels=5),
    ConvCase("vector-tail", (1, 33, 10, 15), out_channels=35, pointwise_bias=False),
    ConvCase("panel-tail", (1, 130, 9, 11), out_channels=150),
    ConvCase("two-panels", (2, 260, 6, 7), out_channels=264, depthwise_bias=False),
    ConvCase("many-to-one", (2, 40, 8, 9), out_channels=1),
    ConvCase("one-to-many", (1, 1, 8, 9), out_channels=70),
    ConvCase("xception-middle", (1, 728, 7, 7), out_channels=728, padding=(2, 2), dilation=(2, 2), depthwise_bias=False),
    ConvCase("tiles", (1, 8, 70, 67), out_channels=16),
    ConvCase("tiles-dilated", (1, 20, 41, 43), out_channels=17, padding=(5, 5), dilation=(5, 5)),
    ConvCase("dilation-2", (2, 12, 15, 14), padding=(2, 2), dilation=(2, 2)),
    ConvCase("dilation-6", (1, 12, 15, 14), padding=(6, 6), dilation=(6, 6)),
    ConvCase("dilation-beyond-map", (1, 4, 5, 6), padding=(12, 12), dilation=(12, 12)),
    ConvCase("dilation-axes", (1, 9, 16, 19), padding=(2, 6), dilation=(2, 6)),
    ConvCase("dilation-unpadded", (1, 5, 16, 19), padding="valid", dilation=(3, 4)),
    ConvCase("stride-2", (2, 16, 14, 15), stride=(2, 2)),
    ConvCase("stride-axes", (1, 10, 14, 13), stride=(1, 3), padding=(0, 2)),
    ConvCase("stride-dilation", (1, 6, 17, 18), stride=(2, 3), padding=(4, 3), dilation=(3, 2)),
    ConvCase("stride-beyond-kernel", (1, 6, 13, 12), kernel=(2, 2), stride=(4, 5), padding=(0, 0)),
    ConvCase("kernel-1", (2, 16, 9, 8), kernel=(1, 1), padding=(0, 0)),
    ConvCase("kernel-1x3", (1, 11, 9, 8), kernel=(1, 3), padding=(0, 1)),
    ConvCase("kernel-3x1", (1, 11, 9, 8), kernel=(3, 1), padding=(1, 0)),
    ConvCase("kernel-5", (1, 18, 12, 11), kernel=(5, 5), padding=(2, 2)),
    ConvCase("kernel-7", (1, 17, 14, 14), kernel=(7, 7), padding=(3, 3), out_channels=20),
    ConvCase("kernel-5x2", (1, 5, 12, 11), kernel=(5, 2), padding=(1, 1), dilation=(1, 3)),
    ConvCase("kernel-11", (1, 6, 13, 15), kernel=(11, 11), padding=(5, 5)),
    ConvCase("same-even-kernel", (1, 8, 9, 10), kernel=(4, 2), padding="same", dilation=(1, 3)),
    ConvCase("padding-beyond-kernel", (1, 8, 5, 6), padding=(5, 4)),
    ConvCase("kernel-beyond-map", (2, 8, 3, 2), kernel=(7, 7), padding=(3, 3)),
    ConvCase("map-1x1", (2, 16, 1, 1)),
    ConvCase("one-row", (1, 8, 1, 37)),
    ConvCase("one-column", (1, 8, 37, 1)),
    ConvCase("one-output", (2, 8, 5, 4), kernel=(5, 4), padding="valid"),
    ConvCase("multiplier-2", (2, 9, 8, 10), multiplier=2),
    ConvCase("multiplier-3-stride-2", (1, 5, 9, 10), multiplier=3, stride=(2, 2), out_channels=7, depthwise_bias=False),
    ConvCase("multiplier-dilated", (1, 32, 9, 10), multiplier=2, padding=(3, 3), dilation=(3, 3)),
    ConvCase("empty-batch", (0, 8, 7, 7)),
)


@dataclass(frozen=True)
class PoolCase:
    """A pool at every offset."""

    id: str
    size: tuple[int, int, int, int]
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (2, 2)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    @property
    def geometry(self):
        return self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode

    @property
    def torch_has_it(self) -> bool:
        """torch's max pool pads by half of the kernel at most, whatever the dilation."""
        return all(p <= k // 2 for p, k in zip(self.padding, self.kernel, strict=True))


_FLOOR_POOL_CASES = (
    PoolCase("resnet", (2, 16, 14, 15), padding=(1, 1)),
    PoolCase("overfeat", (2, 5, 15, 16), stride=(3, 3)),
    PoolCase("vgg", (2, 33, 10, 12), (2, 2)),
    PoolCase("vector-tail", (1, 71, 9, 11), padding=(1, 1)),
    PoolCase("tiles", (1, 8, 70, 67), padding=(1, 1)),
    PoolCase("kernel-5", (1, 9, 13, 12), (5, 5), (3, 3), (2, 2)),
    PoolCase("kernel-1", (1, 4, 7, 5), (1, 1), (2, 3)),
    PoolCase("axes", (2, 6, 13, 17), (2, 3), (3, 1), (1, 0), (1, 2)),
    PoolCase("dilation-2", (1, 8, 14, 13), padding=(1, 1), dilation=(2, 2)),
    PoolCase("dilation-3-even-kernel", (1, 8, 14, 13), (2, 4), (2, 3), (1, 2), (3, 3)),
    PoolCase("padding-in-dilations", (2, 7, 14, 13), padding=(4, 2), dilation=(4, 2)),
    PoolCase("padding-in-dilations-even", (1, 5, 11, 12), (4, 2), (1, 2), (5, 3), (3, 4)),
    PoolCase("stride-beyond-kernel", (1, 7, 13, 11), (2, 2), (5, 4)),
    PoolCase("stride-beyond-map", (1, 3, 4, 5), (2, 2), (7, 9)),
    PoolCase("one-window", (2, 8, 5, 4), (5, 4)),
    PoolCase("map-1x1", (2, 8, 1, 1), padding=(1, 1)),
    PoolCase("one-row", (1, 8, 1, 21), (1, 3), padding=(0, 1)),
    PoolCase("one-column", (1, 8, 21, 1), (3, 1), padding=(1, 0)),
    PoolCase("one-channel", (3, 1, 9, 8)),
    PoolCase("argmax-in-a-byte", (1, 2, 19, 20), (16, 16), padding=(3, 2)),
    PoolCase("argmax-beyond-a-byte", (1, 2, 20, 21), (16, 17), padding=(8, 1)),
    PoolCase("empty-batch", (0, 4, 7, 7)),
)
POOL_CASES = (
    *_FLOOR_POOL_CASES,
    *(replace(case, id=f"{case.id}-ceil", ceil_mode=True) for case in _FLOOR_POOL_CASES if case.stride != (1, 1)),
    # Larger than the map, but ceil mode keeps the one window that starts inside it.
    PoolCase("beyond-map-ceil", (1, 3, 2, 2), (3, 3), (2, 2), ceil_mode=True),
    PoolCase("beyond-map-dilated-ceil", (1, 3, 2, 3), (3, 3), (3, 3), (1, 1), (2, 2), ceil_mode=True),
    PoolCase("last-window-dropped-ceil", (1, 3, 5, 9), (2, 2), (3, 4), (1, 1), ceil_mode=True),
)

# Both taps of some windows fall on padding: torch has no answer of its own there (its index points outside the plane).
EMPTY_WINDOW_CASE = PoolCase("empty-window", (1, 2, 2, 4), (2, 2), (1, 1), (1, 1), (3, 3))


def ids(cases):
    return [case.id for case in cases]


def by_id(cases, *names):
    """The named cases of a catalogue, for tests that need few of them."""
    found = {case.id: case for case in cases}
    return [found[name] for name in names]
