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
class FusedRow:
    """A row of the tables of kernels that multiply: `pixels` of a tile in at most `rows` rows, and as in Fused."""

    rows: int
    pixels: int
    bk: int
    bn: int
    warps: int
    stages: int = 1


# By bytes of an element, narrowest first: the first row whose bn holds all output channels, else the last. They compile to 128 registers
# without spills.
_FUSED = {
    2: (FusedRow(8, 128, 64, 64, 8), FusedRow(4, 64, 64, 128, 8), FusedRow(4, 64, 64, 256, 16)),
    4: (FusedRow(4, 64, 32, 64, 8), FusedRow(4, 64, 32, 128, 8)),
}
# Up to here the depthwise part is computed once and costs less than writing and reading it; beyond, the two launches win ...
FUSED_CHANNELS = 256
# ... except on maps of so few pixels (of the whole batch) that a launch is most of the time.
SMALL_MAP = 2048

# By kind of device and bytes of an element. Operands of all stages lie in shared memory, of which AMD has 64 KB.
_INTERMEDIATE = {
    ("cuda", 2): FusedRow(4, 64, 64, 128, 8, 3),
    ("cuda", 4): FusedRow(4, 64, 32, 64, 8, 3),
    ("hip", 2): FusedRow(4, 64, 32, 128, 8, 2),
    ("hip", 4): FusedRow(4, 64, 32, 64, 8, 2),
}


def _pixel_tile(row: FusedRow, height: int, width: int, step_y: int) -> tuple[int, int]:
    """(bh, bw): rows as the residue class has them, the rest of the pixels as columns, as far as there are columns; at least the 16 pixels
    that a product takes."""
    bh = min(row.rows, power_of_two(ceil_div(height, step_y)))
    bw = max(min(row.pixels // bh, power_of_two(width)), 16 // bh)
    return min(row.rows, max(row.pixels // bw, 1), power_of_two(ceil_div(height, step_y))), bw


def separable_forward(x: torch.Tensor, conv: Conv, o: int, step_y: int) -> Fused | None:
    """The tile of the fused kernel, or None for depthwise and product apart."""
    c = conv.out_channels
    if INTERPRETED:
        return Fused(2, 8, 16, 16, {"num_warps": 4}) if c <= 24 else None
    pixels = conv.n * conv.oh * conv.ow
    if pixels > SMALL_MAP and (c > FUSED_CHANNELS or o > FUSED_CHANNELS):
        return None
    table = _FUSED[4 if x.dtype == torch.float32 else 2]
    rows = [row for row in table if row.bn < o] + [row for row in table if row.bn >= o][:1]
    row = rows.pop()
    while rows and pixels <= SMALL_MAP and ceil_div(pixels, row.pixels) * ceil_div(o, row.bn) < family_of(x.device).processors:
        # A small map: repeat the depthwise part rather than leave processors without a tile.
        row = rows.pop()
    bk = min(row.bk, max(16, power_of_two(c)))
    return Fused(*_pixel_tile(row, conv.oh, conv.ow, step_y), bk, row.bn, {"num_warps": row.warps, "maxnreg": 128})


# Scratch for the intermediate of a split launch: a part of the second-level cache, whatever the size of the maps.
SCRATCH_BYTES = 32 << 20


def image_runs(conv: Conv, element_size: int) -> list[tuple[int, int]]:
    """Runs of images (begin, end) whose intermediate fits in the scratch, at least one image each."""
    per_image = conv.out_channels * conv.oh * conv.ow * element_size
    images = max(1, SCRATCH_BYTES // per_image)
    return [(begin, min(begin + images, conv.n)) for begin in range(0, conv.n, images)]


@dataclass(frozen=True)
class Product:
    """A tile of the product over whole maps: bm pixels by bn output channels, bk input channels at a time."""

    bm: int
    bk: int
    bn: int
    warps: int
    stages: int

    @property
    def options(self) -> dict:
        return {"num_warps": self.warps, "num_stages": self.stages}


# An accumulator of 128 x 256 takes wgmma or better: with the products of Ampere it spills.
WIDE_PRODUCT = 90

# By kind of device and bytes of an element: for large maps, and for those that would leave processors without a tile.
_PRODUCT = {
    ("cuda", 2): (Product(128, 64, 256, 8, 3), Product(128, 64, 128, 8, 3), Product(64, 64, 64, 4, 4)),
    ("cuda", 4): (Product(128, 32, 128, 8, 3), Product(64, 32, 64, 4, 3)),
    ("hip", 2): (Product(128, 32, 128, 8, 2), Product(64, 32, 64, 4, 2)),
    ("hip", 4): (Product(64, 32, 64, 4, 2),),
}


def product(m: torch.Tensor, images: int, pixels: int, o: int) -> Product:
    if INTERPRETED:
        return Product(16, 32, 16, 4, 1)
    family = family_of(m.device)
    for tile in _PRODUCT[family.name, 4 if m.dtype == torch.float32 else 2]:
        if tile.bn > 128 and family.capability < WIDE_PRODUCT:
            continue
        if tile.bn <= power_of_two(o) and images * ceil_div(pixels, tile.bm) * ceil_div(o, tile.bn) >= family.processors:
            break
    return tile


def gradient_of_intermediate(x: torch.Tensor, conv: Conv, o: int, step_y: int) -> Fused:
    """bk counts output channels here, bn input channels."""
    if INTERPRETED:
        return Fused(2, 8, 16, 16, {"num_warps": 4})
    row = _INTERMEDIATE[family_of(x.device).name, 4 if x.dtype == torch.float32 else 2]
    bk, bn = min(row.bk, max(16, power_of_two(o))), min(row.bn, max(16, power_of_two(conv.out_channels)))
    return Fused(*_pixel_tile(row, conv.oh, conv.ow, step_y), bk, bn, {"num_warps": row.warps, "num_stages": row.stages})


@dataclass(frozen=True)
class PointwiseGradient:
    """A tile of the pointwise weight gradient: bo output by bc input channels, bh x bw pixels at a time; `stored`: m comes from a
    depthwise pass, because it would be computed again for every block of output channels."""

    bh: int
    bw: int
    bo: int
    bc: int
    stored: bool
    options: dict


# By bytes of an element, and smaller before wgmma, whose operands need not be in registers.
_POINTWISE_GRADIENT = {2: FusedRow(4, 64, 128, 64, 8), 4: FusedRow(4, 64, 64, 32, 8)}
_POINTWISE_GRADIENT_AMPERE = {2: FusedRow(4, 64, 64, 32, 8), 4: FusedRow(4, 64, 64, 32, 8)}


def pointwise_gradient(x: torch.Tensor, conv: Conv, o: int, step_y: int) -> PointwiseGradient:
    """Of the table's row bk counts output channels, bn input channels."""
    c = conv.out_channels
    if INTERPRETED:
        return PointwiseGradient(2, 8, 16, 16, c > 24, {"num_warps": 4})
    table = _POINTWISE_GRADIENT_AMPERE if family_of(x.device).capability == 80 else _POINTWISE_GRADIENT
    row = table[4 if x.dtype == torch.float32 else 2]
    bo, bc = min(row.bk, max(16, power_of_two(o))), min(row.bn, max(16, power_of_two(c)))
    stored = o > FUSED_CHANNELS
    bh, bw = _pixel_tile(row, conv.oh, conv.ow, 1 if stored else step_y)
    return PointwiseGradient(bh, bw, bo, bc, stored, {"num_warps": row.warps})
