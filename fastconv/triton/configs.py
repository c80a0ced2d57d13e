"""Which tile a launch takes. No autotuning at run time: it needs a driver even where there is none, and a table can be read.

A row comes from the measured choices of the device (`fastconv.tuning`, written by `python -m bench tune`) where they name the layer's
class, else from the tables of `tables.py`.

A `Tile` of a strip kernel holds `elements` = columns x channels; how they divide follows the map: as many columns as one residue class has,
up to the table's `columns`, the rest channels. Under the interpreter tiles are small, so that small maps still have several of everything.
"""

from dataclasses import dataclass, replace

import torch

from .. import tuning
from .launch import INTERPRETED, Conv, Pool, ceil_div, family_of, power_of_two
from .rates import LAUNCH_SECONDS, RATES
from .tables import (
    FUSED,
    FUSED_CHANNELS,
    FUSED_INSTRUCTIONS,
    FUSED_WINDOWS,
    GATHER,
    INTERMEDIATE,
    NINE,
    POINTWISE_GRADIENT,
    PRODUCT,
    ROUNDED_WHATEVER_IS_ASKED,
    ROWS,
    SMALL_MAP,
    STRIPS,
    TAPS,
    FusedRow,
    Product,
    Strip,
    layout_name,
)

REGISTERS = 65536  # of a processor


def registers(warps: int) -> int:
    """All that a thread may have. Left to itself, ptxas spills a few bytes and issues up to a seventh more to have more warps resident."""
    return min(255, REGISTERS // (32 * warps))


_NOT_MEASURED = object()


def _measured(stage: str, x: torch.Tensor, is_channels_last: bool, shape: str, operands: str | None = None):
    """The row that was measured best, None for depthwise and product apart, or _NOT_MEASURED."""
    if tuning.table_of(x.device) is None:
        return _NOT_MEASURED
    key = tuning.key_of(stage, x.dtype, is_channels_last, shape)
    if operands == "ieee":
        key = key._replace(dtype=f"{key.dtype} ieee")
    tile = tuning.tile(x.device, "triton", key)
    if tile is None:
        return _NOT_MEASURED
    if tile.get("apart"):
        return None
    try:
        row = ROWS.get(stage, Strip)(**tile)
    except TypeError as error:
        raise ValueError(f"the table of measured choices has a tile for {stage} that is none: {tile} ({error})") from error
    rounded = operands == "ieee" and row.warps in ROUNDED_WHATEVER_IS_ASKED.get(family_of(x.device).key, ())
    return _NOT_MEASURED if rounded else row


def _of_family(table: dict, device: torch.device):
    return table.get(family_of(device).key, table["any"])


def _of_operands(table: dict, x: torch.Tensor, is_channels_last: bool, operands: str):
    """What a table of products holds for x's device and layout."""
    rows = _of_family(table, x.device)
    return rows.get((layout_name(is_channels_last), operands), rows.get(operands))


def conv_class(conv: Conv, out_channels: int) -> str:
    return tuning.shape_class((conv.n, conv.c, conv.h, conv.w), out_channels, (conv.kh, conv.kw), (conv.sh, conv.sw), (conv.dh, conv.dw))


def pool_class(pool: Pool) -> str:
    return tuning.shape_class((pool.n, pool.c, pool.h, pool.w), pool.c, (pool.kh, pool.kw), (pool.sh, pool.sw), (pool.dh, pool.dw))


def _strip_row(stage: str, x: torch.Tensor, is_channels_last: bool, shape: str, taps: int, table: str | None = None) -> Strip:
    row = _measured(stage, x, is_channels_last, shape)
    if row is not _NOT_MEASURED:
        return row
    by_layout, layout = _of_family(STRIPS[table or stage], x.device), layout_name(is_channels_last)
    rows = by_layout.get((layout, element_size(x)), by_layout[layout])
    return next((row for most, row in rows if taps <= most), rows[-1][1])


def element_size(x: torch.Tensor) -> int:
    return 4 if x.dtype == torch.float32 else 2


def operands_of(x: torch.Tensor, precision: str) -> str:
    """What a product of maps of x's dtype multiplies, as tables name it."""
    return precision if x.dtype == torch.float32 else "half"


# ---- strips ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    bw: int
    bc: int
    rows: int
    options: dict


# One program holds most of a small map: the interpreter's time goes by the number of operations, not by their size.
INTERPRETER = Strip(16, 512, 4)
INTERPRETER_ROWS = 8

# Longest first; a launch takes the longest strip that still gives each processor this many programs. A strip reads the rows of its halo
# again, which for short strips costs more than an idle processor: 3 programs of 4 warps keep one busy.
STRIP_ROWS = (64, 32, 16, 8, 4)
WAVES = 3


def _strip_tile(row: Strip, images: int, height: int, width: int, channels: int, step_y: int, step_x: int, processors: int) -> Tile:
    """The tile of one row of a table for maps of height x width positions, cut into residue classes step_y, step_x apart."""
    bw = min(row.columns, power_of_two(width))
    # Rows of an odd width start anywhere: a thread then holds one column of many channels instead of columns that follow one another.
    odd = bw < row.columns and width % 16 != 0
    elements = row.narrow if odd and row.narrow else row.elements
    bc = min(max(elements // bw, 1), power_of_two(channels))
    options = {"num_warps": row.warps, "maxnreg": row.maxnreg or registers(row.warps)}
    class_height = ceil_div(height, step_y)
    if INTERPRETED:
        return Tile(bw, bc, min(INTERPRETER_ROWS, power_of_two(class_height)), options)
    programs = images * min(step_y, height) * ceil_div(ceil_div(width, step_x) * step_x, bw) * ceil_div(channels, bc)
    for rows in STRIP_ROWS:
        if rows <= power_of_two(class_height) and programs * ceil_div(class_height, rows) >= WAVES * processors:
            break
    return Tile(bw, bc, min(rows, power_of_two(class_height)), options)


def _held(conv: Conv) -> int:
    """Taps as a table counts them: a high window holds as many sums as a square one."""
    return max(conv.taps, min(conv.kh, 7) ** 2)


def depthwise_forward(x: torch.Tensor, conv: Conv, is_channels_last: bool, step_y: int, step_x: int, ring: bool) -> Tile:
    if INTERPRETED:
        row = INTERPRETER
    elif not ring:
        row = TAPS
    else:
        row = _strip_row("depthwise_conv2d", x, is_channels_last, conv_class(conv, conv.out_channels), _held(conv))
        if conv.m > 1:
            # Channels that share an input are loaded one at a time, so a thread keeps their weights apart.
            row = replace(row, elements=row.elements // 2)
    return _strip_tile(row, conv.n, conv.oh, conv.ow, conv.out_channels, step_y, step_x, family_of(x.device).processors)


def depthwise_backward(x: torch.Tensor, conv: Conv, is_channels_last: bool, height: int, width: int, step_y: int, step_x: int) -> Tile:
    if INTERPRETED:
        row = INTERPRETER
    else:
        row = _strip_row("depthwise_conv2d_backward", x, is_channels_last, conv_class(conv, conv.out_channels), _held(conv))
    return _strip_tile(row, conv.n, height, width, conv.c, step_y, step_x, family_of(x.device).processors)


def depthwise_gather(x, conv: Conv, is_channels_last: bool, height: int, width: int, channels: int, step_y: int, step_x: int) -> Tile:
    row = INTERPRETER if INTERPRETED else GATHER[layout_name(is_channels_last)]
    if conv.taps > 49:
        row = replace(row, elements=row.elements // 2)
    return _strip_tile(row, conv.n, height, width, channels, step_y, step_x, family_of(x.device).processors)


def strips_per_program(x: torch.Tensor, strips: int, others: int) -> int:
    """A power of two: enough strips that partial sums stay few, not so many that processors go without."""
    if INTERPRETED:
        return 2
    return max(1, power_of_two(strips * others // (WAVES * family_of(x.device).processors) + 1) // 2)


def ordered_sum(channels: int) -> tuple[int, int, int]:
    """(slots, channels, warps) of a block of the second stage."""
    return (16, 16, 4) if INTERPRETED else (32, min(32, power_of_two(channels)), 4)


def pool(stage: str, x: torch.Tensor, pool: Pool, is_channels_last: bool, height: int, width: int, step_y: int, step_x: int) -> Tile:
    row = INTERPRETER
    if not INTERPRETED:
        row = _strip_row(stage, x, is_channels_last, pool_class(pool), pool.kh * pool.kw, "pool")
    return _strip_tile(row, pool.n, height, width, pool.c, step_y, step_x, family_of(x.device).processors)


def permute(x: torch.Tensor, images: int, channels: int, is_channels_last: bool, height: int, width: int, stride, step_x: int) -> Tile:
    row = INTERPRETER
    if not INTERPRETED:
        shape = tuning.shape_class((images, channels, height, width), channels, (1, 1), stride)
        row = _strip_row("permute", x, is_channels_last, shape, 1)
    return _strip_tile(row, images, height, width, channels, stride[0], step_x, family_of(x.device).processors)


# ---- products ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fused:
    """A tile of a kernel that multiplies: bh x bw pixels, bk input channels at a time, bn output channels."""

    bh: int
    bw: int
    bk: int
    bn: int
    ring: bool
    options: dict

    @classmethod
    def of(cls, row: FusedRow, height: int, width: int, step_y: int, ring: bool, bk: int, bn: int) -> "Fused":
        """Rows and columns as the table has them, which is the shape that it was made for, where the map has as many. On smaller maps, and
        in smaller residue classes, as many rows as there are, and columns for the rest of the pixels, some of them beyond the map: a
        product of fewer pixels would take another instruction and other registers. Taps are gathered there, because a ring of other rows
        and columns spills, and where the layer has no ring."""
        class_height, bw = power_of_two(ceil_div(height, step_y)), row.pixels // row.rows
        fits = row.rows <= class_height and bw <= power_of_two(width)
        bh = row.rows if fits else min(class_height, row.pixels // min(bw, power_of_two(width)))
        as_made = fits and (ring or not row.ring)
        maxnreg = (row.maxnreg if as_made else None) or registers(row.warps)
        options = {"num_warps": row.warps, "num_stages": row.stages, "maxnreg": maxnreg}
        return cls(bh, row.pixels // bh, bk, bn, row.ring and as_made, options)


def _chunk(most: int, channels: int) -> int:
    return min(most, max(16, power_of_two(channels)))


def _interpreted() -> Fused:
    return Fused(2, 8, 16, 16, True, {"num_warps": 4})


def _with_ring(tile: Fused, ring: bool) -> Fused:
    """The tile where the layer has a ring, and where it has none."""
    return replace(tile, ring=tile.ring and ring)


def separable_forward(x: torch.Tensor, conv: Conv, o: int, is_channels_last: bool, ring: bool, step_y: int, precision: str) -> Fused | None:
    """The tile of the fused kernel, or None for depthwise and product apart."""
    if INTERPRETED:
        return _with_ring(_interpreted(), ring) if conv.out_channels <= 24 else None
    operands = operands_of(x, precision)
    row = _measured("depthwise_separable_conv2d", x, is_channels_last, conv_class(conv, o), operands)
    if row is _NOT_MEASURED:
        row = _fused_row(x, conv, o, is_channels_last, ring, operands)
    return None if row is None else Fused.of(row, conv.oh, conv.ow, step_y, ring, _chunk(row.bk, conv.out_channels), row.bn)


def _fused_row(x: torch.Tensor, conv: Conv, o: int, is_channels_last: bool, ring: bool, operands: str) -> FusedRow | None:
    pixels, family = conv.n * conv.oh * conv.ow, family_of(x.device)
    table = _of_operands(FUSED if conv.taps <= NINE else FUSED_WINDOWS, x, is_channels_last, operands)
    rows = [row for row in table if row.bn < o] + [row for row in table if row.bn >= o][:1]
    row = rows.pop()
    while rows and pixels <= SMALL_MAP and ceil_div(pixels, row.pixels) * ceil_div(o, row.bn) < family.processors:
        # Repeat the depthwise part rather than leave processors without a tile.
        row = rows.pop()
    # Larger windows are not worth computing twice, and of more than 25 taps only the depthwise kernel has a ring.
    dear = conv.taps > NINE and (row.bn < o or (not ring and conv.marches))
    if max(conv.out_channels, o) > FUSED_CHANNELS or dear:
        repeated = pixels * conv.out_channels * ceil_div(o, row.bn) * conv.taps * FUSED_INSTRUCTIONS
        if repeated > LAUNCH_SECONDS * RATES[family.key].issue:
            return None
    return row


# Scratch for the intermediate of a split launch: a part of the second-level cache, whatever the size of the maps.
SCRATCH_BYTES = 32 << 20


def image_runs(conv: Conv, element_size: int) -> list[tuple[int, int]]:
    """Runs of images (begin, end) whose intermediate fits in the scratch, at least one image each."""
    per_image = conv.out_channels * conv.oh * conv.ow * element_size
    images = max(1, SCRATCH_BYTES // per_image)
    return [(begin, min(begin + images, conv.n)) for begin in range(0, conv.n, images)]


def product(m: torch.Tensor, images: int, pixels: int, is_channels_last: bool, o: int, precision: str) -> Product:
    """The tile for maps (images, C, 1, pixels)."""
    if INTERPRETED:
        return Product(16, 32, 16, 4, 1)
    shape, operands = tuning.shape_class((images, m.shape[1], 1, pixels), o), operands_of(m, precision)
    row = _measured("pointwise_product", m, is_channels_last, shape, operands)
    if row is not _NOT_MEASURED:
        return row
    for row in _of_operands(PRODUCT, m, is_channels_last, operands):
        programs = images * ceil_div(pixels, row.bm) * ceil_div(o, row.bn)
        if row.bn <= power_of_two(o) and programs >= family_of(m.device).processors:
            break
    return row


def _lighter(tile: Fused, conv: Conv, operands: str) -> Fused:
    """Fewer channels where a thread holds more of each: in windows of many taps, and in 16 bits, whose tiles have more channels, where taps
    are gathered."""
    if conv.taps <= NINE and (tile.ring or operands != "half"):
        return tile
    return replace(tile, bk=min(tile.bk, 64), bn=max(16, tile.bn // (2 if conv.taps <= 25 else 4)))


def gradient_of_intermediate(x: torch.Tensor, conv: Conv, o: int, is_channels_last: bool, ring: bool, step_y: int, precision: str) -> Fused:
    """bk counts output channels here, bn input channels."""
    if INTERPRETED:
        return _with_ring(_interpreted(), ring)
    operands = operands_of(x, precision)
    row = _measured("gradient_of_intermediate", x, is_channels_last, conv_class(conv, o), operands)
    if row is _NOT_MEASURED:
        row = _of_operands(INTERMEDIATE, x, is_channels_last, operands)
    tile = Fused.of(row, conv.oh, conv.ow, step_y, ring, _chunk(row.bk, o), _chunk(row.bn, conv.out_channels))
    return _lighter(tile, conv, operands)


def pointwise_gradient(
    x: torch.Tensor, conv: Conv, o: int, is_channels_last: bool, ring: bool, step_y: int, precision: str
) -> tuple[Fused, bool]:
    """(tile, stored): bk counts output channels, bn input channels; `stored`: m comes from a depthwise pass, because it would be computed
    again for every block of output channels, or has many taps."""
    if INTERPRETED:
        return _with_ring(_interpreted(), ring), conv.out_channels > 24
    operands = operands_of(x, precision)
    row = _measured("pointwise_gradient", x, is_channels_last, conv_class(conv, o), operands)
    if row is _NOT_MEASURED:
        row = _of_operands(POINTWISE_GRADIENT, x, is_channels_last, operands)
    stored = o > FUSED_CHANNELS or (conv.taps > NINE and conv.marches)
    tile = Fused.of(row, conv.oh, conv.ow, 1 if stored else step_y, ring or stored, _chunk(row.bk, o), _chunk(row.bn, conv.out_channels))
    return tile if stored else _lighter(tile, conv, operands), stored
