"""Explicit tile tables, by device family. No autotuning at run time: it needs a driver even where there is none, and a table can be read.

A `Tile` of a strip kernel holds `elements` = columns x channels; how they divide follows the map: as many columns as one residue class
has, up
to the table's `columns`, the rest channels. Under the interpreter tiles are small, so that small maps still have several of everything.
"""

from dataclasses import dataclass

import torch

from .launch import INTERPRETED, Conv, Pool, ceil_div, family_of, power_of_two


@dataclass(frozen=True)
class Strip:
    """A row of the tables of strip kernels."""

    columns: int
    elements: int
    warps: int
    maxnreg: int | None = None
    hoist: bool = True  # weights of all taps in registers


@dataclass(frozen=True)
class Tile:
    bw: int
    bc: int
    rows: int
    hoist: bool
    options: dict


# One program holds most of a small map: the interpreter's time goes by the number of operations, not by their size.
INTERPRETER = Strip(16, 512, 4)

# Longest first; a launch takes the longest strip that still fills the machine this many times.
STRIP_ROWS = (64, 32, 16, 8, 4)
WAVES = 4


def _strip_tile(row: Strip, images: int, height: int, width: int, channels: int, step_y: int, step_x: int, processors: int) -> Tile:
    """The tile of one row of a table for maps of height x width positions, cut into residue classes step_y, step_x apart."""
    bw = min(row.columns, power_of_two(width))
    bc = min(max(row.elements // bw, 1), power_of_two(channels))
    options = {"num_warps": row.warps, "maxnreg": row.maxnreg}
    if INTERPRETED:
        return Tile(bw, bc, 8, row.hoist, options)
    class_height = ceil_div(height, step_y)
    programs = images * min(step_y, height) * ceil_div(ceil_div(width, step_x) * step_x, bw) * ceil_div(channels, bc)
    for rows in STRIP_ROWS:
        if rows <= power_of_two(class_height) and programs * ceil_div(class_height, rows) >= WAVES * processors:
            break
    return Tile(bw, bc, min(rows, power_of_two(class_height)), row.hoist, options)


def depthwise_forward(x: torch.Tensor, conv: Conv, is_channels_last: bool, step_y: int, step_x: int, ring: bool) -> Tile:
    family = family_of(x.device)
    if INTERPRETED:
        row = INTERPRETER
    elif not ring:
        row = Strip(16, 1024, 4)
    elif conv.taps <= 9:
        row = Strip(16, 1024, 4, 128) if is_channels_last else Strip(256, 1024, 4, 128)
    elif conv.taps <= 25:
        row = Strip(16, 512, 4) if is_channels_last else Strip(256, 512, 4)
    else:
        row = Strip(16, 256, 4) if is_channels_last else Strip(256, 256, 4)
    return _strip_tile(row, conv.n, conv.oh, conv.ow, conv.out_channels, step_y, step_x, family.processors)


def depthwise_backward(x: torch.Tensor, conv: Conv, is_channels_last: bool, height: int, width: int, step_y: int, step_x: int) -> Tile:
    if INTERPRETED:
        row = INTERPRETER
    elif conv.taps <= 9:
        row = Strip(16, 512, 4) if is_channels_last else Strip(128, 512, 4)
    else:
        row = Strip(16, 256, 4) if is_channels_last else Strip(128, 256, 4)
    return _strip_tile(row, conv.n, height, width, conv.c, step_y, step_x, family_of(x.device).processors)


def depthwise_gather(x, conv: Conv, is_channels_last: bool, height: int, width: int, channels: int, step_y: int, step_x: int) -> Tile:
    row = INTERPRETER if INTERPRETED else Strip(32, 1024, 4) if is_channels_last else Strip(256, 1024, 4)
    return _strip_tile(row, conv.n, height, width, channels, step_y, step_x, family_of(x.device).processors)


def strips_per_program(x: torch.Tensor, strips: int, others: int) -> int:
    """A power of two: enough strips that partial sums stay few, not so many that processors go without."""
    if INTERPRETED:
        return 2
    return max(1, power_of_two(strips * others // (WAVES * family_of(x.device).processors) + 1) // 2)


def ordered_sum(channels: int) -> tuple[int, int, int]:
    """(slots, channels, warps) of a block of the second stage."""
    return (16, 16, 4) if INTERPRETED else (32, min(32, power_of_two(channels)), 4)


def pool(x: torch.Tensor, pool: Pool, is_channels_last: bool, height: int, width: int, step_y: int, step_x: int) -> Tile:
    row = INTERPRETER if INTERPRETED else Strip(16, 1024, 4) if is_channels_last else Strip(256, 1024, 4)
    return _strip_tile(row, pool.n, height, width, pool.c, step_y, step_x, family_of(x.device).processors)


def permute(x: torch.Tensor, images: int, channels: int, is_channels_last: bool, height: int, width: int, step_y: int, step_x: int) -> Tile:
    row = INTERPRETER if INTERPRETED else Strip(16, 1024, 4) if is_channels_last else Strip(256, 1024, 4)
    return _strip_tile(row, images, height, width, channels, step_y, step_x, family_of(x.device).processors)


@dataclass(frozen=True)
class Fused:
    """A tile of the fused separable kernel: bh x bw pixels, bk input channels at a time, bn output channels."""

    bh: int
    bw: int
    bk: int
    bn: int
    options: dict


@dataclass(frozen=True)
class Product:
    bm: int
    bk: int
    bn: int
    stages: int
    options: dict


@dataclass(frozen=True)
class FusedRow:
    bh: int
    bw: int
    bk: int
    bn: int
    warps: int


# By bytes of an element, narrowest first: the first row whose bn holds all output channels, else the last. All compile to 128 registers
# without spills.
_FUSED = {
    2: (FusedRow(8, 16, 64, 64, 8), FusedRow(4, 16, 64, 128, 8), FusedRow(4, 16, 64, 256, 16)),
    4: (FusedRow(4, 16, 32, 64, 8), FusedRow(4, 16, 32, 128, 8)),
}
# Up to here the depthwise part is computed once and costs less than writing and reading it; beyond, the two launches win ...
FUSED_CHANNELS = 256
# ... except on maps of so few pixels (of the whole batch) that a launch is most of the time.
SMALL_MAP = 2048

# Scratch for the intermediate of a split launch: a part of the second-level cache, whatever the size of the maps.
SCRATCH_BYTES = 32 << 20


def image_runs(conv: Conv, element_size: int) -> list[tuple[int, int]]:
    """Runs of images (begin, end) whose intermediate fits in the scratch, at least one image each."""
    per_image = conv.out_channels * conv.oh * conv.ow * element_size
    images = max(1, SCRATCH_BYTES // per_image)
    return [(begin, min(begin + images, conv.n)) for begin in range(0, conv.n, images)]


def separable_forward(x: torch.Tensor, conv: Conv, o: int, is_channels_last: bool, ring: bool) -> Fused | None:
    """The tile of the fused kernel, or None for depthwise and product apart."""
    c = conv.out_channels
    if INTERPRETED:
        return Fused(2, 8, 16, 16, {"num_warps": 4}) if c <= 24 else None
    small = conv.n * conv.oh * conv.ow <= SMALL_MAP
    if not small and (c > FUSED_CHANNELS or o > FUSED_CHANNELS):
        return None
    for row in _FUSED[4 if x.dtype == torch.float32 else 2]:
        if o <= row.bn:
            break
    bk = min(row.bk, max(16, power_of_two(c)))
    return Fused(row.bh, row.bw, bk, row.bn, {"num_warps": row.warps, "maxnreg": 128})


def product(m: torch.Tensor, images: int, pixels: int, c: int, o: int, is_channels_last: bool) -> Product:
    if INTERPRETED:
        return Product(16, 32, 16, 1, {"num_warps": 4})
    wide_out = o > 128
    return Product(128, 64, 256 if wide_out else 128, 3, {"num_warps": 8, "num_stages": 3})


def gradient_of_intermediate(x: torch.Tensor, conv: Conv, o: int, is_channels_last: bool) -> Fused:
    """bk counts output channels here, bn input channels."""
    if INTERPRETED:
        return Fused(2, 8, 16, 16, {"num_warps": 4})
    return Fused(4, 16, 64, min(128, max(16, power_of_two(conv.out_channels))), {"num_warps": 8, "num_stages": 3})


@dataclass(frozen=True)
class PointwiseGradient:
    """A tile of the pointwise weight gradient: bo output by bc input channels, bh x bw pixels at a time; `stored`: m comes from a
    depthwise pass."""

    bh: int
    bw: int
    bo: int
    bc: int
    stored: bool
    options: dict


def pointwise_gradient(x: torch.Tensor, conv: Conv, o: int, is_channels_last: bool) -> PointwiseGradient:
    c = conv.out_channels
    if INTERPRETED:
        return PointwiseGradient(2, 8, 16, 16, c > 24, {"num_warps": 4})
    bo, bc = (min(128, max(16, power_of_two(size))) for size in (o, c))
    return PointwiseGradient(4, 16, bo, min(bc, 64), o > 256, {"num_warps": 8})
