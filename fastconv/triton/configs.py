"""Explicit tile tables, by device family. No autotuning at run time: it needs a driver even where there is none, and a table can be read.

A row comes from the measured choices of the device (`fastconv.tuning`, written by `python -m bench tune`) where they name the layer's
class, else from the tables here, which were chosen by what compiles without spills. `CANDIDATES` are the rows that the tuner tries.

A `Tile` of a strip kernel holds `elements` = columns x channels; how they divide follows the map: as many columns as one residue class has,
up to the table's `columns`, the rest channels. Under the interpreter tiles are small, so that small maps still have several of everything.
"""

from dataclasses import asdict, dataclass, replace
from itertools import product as combinations

import torch

from .. import tuning
from .launch import INTERPRETED, Conv, Pool, ceil_div, family_of, power_of_two
from .rates import LAUNCH_SECONDS, RATES

# ---- rows: what the tables hold, and what the tuner writes -------------------------------------------------------------------------


@dataclass(frozen=True)
class Strip:
    """Of kernels that march down strips."""

    columns: int
    elements: int
    warps: int
    maxnreg: int | None = None


@dataclass(frozen=True)
class FusedRow:
    """Of kernels that multiply tiles of the depthwise result: `pixels` in at most `rows` rows, bk input channels at a time, bn output
    channels. `ring`: each input row of the tile is loaded once; without, the taps of every pixel are gathered."""

    rows: int
    pixels: int
    bk: int
    bn: int
    warps: int
    stages: int = 1
    maxnreg: int | None = None
    ring: bool = True


@dataclass(frozen=True)
class Product:
    """Of the product over whole maps: bm pixels by bn output channels, bk input channels at a time."""

    bm: int
    bk: int
    bn: int
    warps: int
    stages: int

    @property
    def options(self) -> dict:
        return {"num_warps": self.warps, "num_stages": self.stages}


# ---- tables: by family ("any" stands for those not named) --------------------------------------------------------------------------

# By layout, or by layout and bytes of an element where that matters: (most taps, row), fewest taps first.
_POOL = {"channels_last": ((256, Strip(16, 1024, 4)),), "contiguous": ((256, Strip(256, 1024, 4)),)}
_STRIPS = {
    "depthwise_conv2d": {
        "any": {
            "channels_last": ((9, Strip(16, 1024, 4, 128)), (25, Strip(16, 512, 4)), (49, Strip(16, 256, 4))),
            "contiguous": ((9, Strip(256, 1024, 4, 128)), (25, Strip(256, 256, 4)), (49, Strip(256, 256, 4))),
        }
    },
    "depthwise_conv2d_backward": {
        "any": {
            "channels_last": ((9, Strip(16, 512, 4)), (25, Strip(16, 256, 4))),
            "contiguous": ((9, Strip(128, 512, 4)), (25, Strip(128, 256, 4))),
        }
    },
    # sm_100 spills where a thread holds eight channels of float32 gradients for every tap of a row; four are 128 bits there all the same.
    "pool": {"any": _POOL, "sm_100": _POOL | {("channels_last", 4): ((256, Strip(16, 512, 4)),)}},
    "permute": {"any": {"channels_last": ((1, Strip(16, 1024, 4)),), "contiguous": ((1, Strip(256, 1024, 4)),)}},
}
# Tiles of the kernels that gather taps, which no table need tell apart.
_TAPS = Strip(16, 1024, 4)
_GATHER = {"channels_last": Strip(32, 1024, 4), "contiguous": Strip(256, 1024, 4)}

# Tables of products go by what they multiply: "half" for both 16-bit dtypes, "tf32", or "ieee" for float32 in full precision.
#
# Full precision is multiply-adds of threads that hold their part of the accumulator and a chunk of both operands, so chunks are short and
# warps few. On sm_100 its rows have neither 4 nor 8 warps: with these, Triton 3.6 may multiply float32 by tcgen05, which rounds operands to
# TF32 whatever precision was asked for (triton issue 10176; 3.9 does not). A table of measured choices cannot bring them back.
_ROUNDED_WHATEVER_IS_ASKED = {"sm_100": (4, 8)}

# By layout and operands, narrowest first: the first row whose bn holds all output channels, else the last.
_FUSED_TF32 = (FusedRow(4, 64, 32, 64, 8, 1, 128), FusedRow(4, 64, 32, 128, 8, 1, 128))
_FUSED_IEEE = (FusedRow(4, 64, 32, 64, 8, 1, 128), FusedRow(4, 64, 16, 128, 4, 1, 255))
_FUSED = {
    "any": {
        ("channels_last", "half"): (FusedRow(8, 128, 64, 64, 8), FusedRow(4, 64, 64, 128, 8, 1, 128), FusedRow(4, 64, 64, 256, 16, 1, 128)),
        ("contiguous", "half"): (
            FusedRow(8, 128, 32, 64, 8, 1, 128),
            FusedRow(4, 64, 64, 128, 8, 1, 128),
            FusedRow(4, 64, 64, 256, 16, 1, 128),
        ),
        ("channels_last", "tf32"): _FUSED_TF32,
        ("contiguous", "tf32"): _FUSED_TF32,
        ("channels_last", "ieee"): _FUSED_IEEE,
        ("contiguous", "ieee"): _FUSED_IEEE,
    },
}
# wgmma leaves operands in shared memory. One block of eight warps with the registers of two issues a quarter less than sixteen warps with
# half of them each; two of four warps a seventh less than two of eight.
_WIDEST_SM_90 = {"half": FusedRow(4, 64, 64, 256, 8), "tf32": FusedRow(4, 64, 32, 128, 4, 1, 255), "ieee": _FUSED_IEEE[-1]}
_FUSED["sm_90"] = {key: (*rows[:-1], _WIDEST_SM_90[key[1]]) for key, rows in _FUSED["any"].items()}
# Tiles of eight rows have more masks than the scalar registers of gfx942 hold.
_FUSED["gfx942"] = _FUSED["any"] | {
    ("channels_last", "half"): (FusedRow(4, 64, 64, 64, 8, 1, 128), *_FUSED["any"]["channels_last", "half"][1:]),
    ("contiguous", "half"): (*_FUSED["any"]["contiguous", "half"][:2], FusedRow(4, 64, 32, 256, 16, 1, 128)),
}
# Nearer to their registers' end: shorter chunks where pixels are contiguous.
_FUSED["sm_80"] = _FUSED["any"] | {
    ("contiguous", "half"): (FusedRow(8, 128, 32, 64, 8, 1, 128), FusedRow(4, 64, 32, 128, 8, 1, 128), FusedRow(4, 64, 32, 256, 16, 1, 128))
}
_FUSED["sm_100"] = _FUSED["sm_80"] | {
    (layout, "ieee"): (FusedRow(4, 32, 16, 64, 2, 1, 255), FusedRow(4, 32, 16, 128, 2, 1, 255))
    for layout in ("channels_last", "contiguous")
}
# Up to here the depthwise part is computed once and costs less than writing and reading it; beyond, the two launches win ...
FUSED_CHANNELS = 256
# ... except where computing it again for each block of output channels takes less than a launch. Instructions an element and tap, as
# counted for nine taps.
FUSED_INSTRUCTIONS = 4
# Pixels of the whole batch up to which narrower tiles are taken while processors go without.
SMALL_MAP = 2048

# bk counts output channels, bn input channels. Operands of all stages lie in shared memory, of which AMD has 64 KB.
_INTERMEDIATE = {
    "any": {"half": FusedRow(4, 64, 64, 128, 8, 3), "tf32": FusedRow(4, 64, 32, 64, 8, 3), "ieee": FusedRow(4, 64, 32, 64, 8, 3)},
    "gfx942": {"half": FusedRow(4, 64, 32, 64, 8, 2), "tf32": FusedRow(4, 32, 32, 64, 8, 2), "ieee": FusedRow(4, 32, 32, 64, 8, 2)},
}
_INTERMEDIATE["sm_100"] = _INTERMEDIATE["any"] | {"half": FusedRow(4, 64, 64, 64, 8, 3), "ieee": FusedRow(4, 64, 32, 64, 16, 3, 128)}

# bk counts output channels, bn input channels; smaller before wgmma, whose operands need not be in registers.
_POINTWISE_GRADIENT = {
    "any": {"half": FusedRow(4, 64, 128, 64, 8), "tf32": FusedRow(4, 64, 64, 32, 8), "ieee": FusedRow(4, 32, 128, 64, 8, 1, 255)},
    # Masks of 64 pixels are more than the scalar registers of gfx942 hold.
    "gfx942": {"half": FusedRow(2, 32, 128, 64, 8), "tf32": FusedRow(2, 32, 64, 32, 8), "ieee": FusedRow(2, 32, 64, 32, 8)},
}
_POINTWISE_GRADIENT["sm_80"] = _POINTWISE_GRADIENT["any"] | {"half": FusedRow(4, 64, 64, 32, 8), "tf32": FusedRow(2, 32, 64, 32, 8, 1, 255)}
_POINTWISE_GRADIENT["sm_100"] = _POINTWISE_GRADIENT["any"] | {"ieee": FusedRow(4, 32, 128, 64, 16)}

# For large maps, and for those that would leave processors without a tile. An accumulator of 128 x 256 takes wgmma or better: with the
# products of Ampere it spills.
_PRODUCT = {
    "any": {
        "half": (Product(128, 64, 256, 8, 3), Product(128, 64, 128, 8, 3), Product(64, 64, 64, 4, 4)),
        "tf32": (Product(128, 32, 128, 8, 3), Product(64, 32, 64, 4, 3)),
        "ieee": (Product(64, 16, 128, 4, 3), Product(64, 32, 64, 4, 3)),
    },
    "gfx942": {
        "half": (Product(128, 32, 128, 8, 2), Product(64, 32, 64, 4, 2)),
        "tf32": (Product(64, 32, 64, 4, 2),),
        "ieee": (Product(64, 32, 64, 4, 2),),
    },
}
_PRODUCT["sm_80"] = _PRODUCT["any"] | {"half": _PRODUCT["any"]["half"][1:]}
_PRODUCT["sm_100"] = _PRODUCT["any"] | {"ieee": (Product(128, 16, 128, 16, 3), Product(32, 16, 64, 2, 3))}

# ---- what the tuner tries ----------------------------------------------------------------------------------------------------------


def _strip_candidates(columns: tuple[int, ...]) -> list[Strip]:
    sizes = combinations(columns, (256, 512, 1024, 2048), ((4, None), (4, 128), (8, None), (8, 128)))
    return [Strip(c, e, *threads) for c, e, threads in sizes if e >= c]


def _fused_candidates() -> list[FusedRow]:
    sizes = combinations(((4, 64), (8, 128)), (32, 64), (64, 128, 256), (8, 16), (True, False))
    return [FusedRow(*shape, bk, bn, warps, 1, 128, ring) for shape, bk, bn, warps, ring in sizes]


def _operand_candidates(stages: tuple[int, ...]) -> list[FusedRow]:
    return [FusedRow(4, 64, bk, bn, 8, s) for bk, bn, s in combinations((32, 64, 128), (32, 64, 128), stages)]


POOL_STAGES = tuple(f"shift_stitch_{pool}" for pool in ("max_pool2d", "max_pool2d_argmax", "max_pool2d_indices", "max_pool2d_backward"))
POOL_STAGES += ("shift_stitch_avg_pool2d", "shift_stitch_avg_pool2d_backward")
_BY_LAYOUT = {"channels_last": _strip_candidates((8, 16, 32)), "contiguous": _strip_candidates((64, 128, 256))}
CANDIDATES = {
    **{stage: _BY_LAYOUT for stage in ("depthwise_conv2d", "depthwise_conv2d_backward", *POOL_STAGES, "permute")},
    "depthwise_separable_conv2d": [None, *_fused_candidates()],
    "gradient_of_intermediate": _operand_candidates((1, 2, 3)),
    "pointwise_gradient": _operand_candidates((1,)),
    "pointwise_product": [Product(*s) for s in combinations((64, 128), (32, 64), (64, 128, 256), (4, 8), (2, 3, 4))],
}
"""Rows a stage may take, by layout where it matters; None for depthwise and product apart."""

_ROWS = {
    "depthwise_separable_conv2d": FusedRow,
    "gradient_of_intermediate": FusedRow,
    "pointwise_gradient": FusedRow,
    "pointwise_product": Product,
}


def candidates(stage: str, is_channels_last: bool) -> list:
    rows = CANDIDATES[stage]
    return rows[layout_name(is_channels_last)] if isinstance(rows, dict) else rows


def as_tile(row) -> dict:
    """A row as a table of measured choices holds it."""
    return {"apart": True} if row is None else asdict(row)


def layout_name(is_channels_last: bool) -> str:
    return "channels_last" if is_channels_last else "contiguous"


# ---- looking up --------------------------------------------------------------------------------------------------------------------


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
        row = _ROWS.get(stage, Strip)(**tile)
    except TypeError as error:
        raise ValueError(f"the table of measured choices has a tile for {stage} that is none: {tile} ({error})") from error
    rounded = operands == "ieee" and row.warps in _ROUNDED_WHATEVER_IS_ASKED.get(family_of(x.device).key, ())
    return _NOT_MEASURED if rounded else row


def _of_family(table: dict, device: torch.device):
    return table.get(family_of(device).key, table["any"])


def conv_class(conv: Conv, out_channels: int) -> str:
    return tuning.shape_class((conv.n, conv.c, conv.h, conv.w), out_channels, (conv.kh, conv.kw), (conv.sh, conv.sw), (conv.dh, conv.dw))


def pool_class(pool: Pool) -> str:
    return tuning.shape_class((pool.n, pool.c, pool.h, pool.w), pool.c, (pool.kh, pool.kw), (pool.sh, pool.sw), (pool.dh, pool.dw))


def _strip_row(stage: str, x: torch.Tensor, is_channels_last: bool, shape: str, taps: int, table: str | None = None) -> Strip:
    row = _measured(stage, x, is_channels_last, shape)
    if row is not _NOT_MEASURED:
        return row
    by_layout, layout = _of_family(_STRIPS[table or stage], x.device), layout_name(is_channels_last)
    rows = by_layout.get((layout, element_size(x)), by_layout[layout])
    return next(row for most, row in rows if taps <= most)


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
    bc = min(max(row.elements // bw, 1), power_of_two(channels))
    options = {"num_warps": row.warps, "maxnreg": row.maxnreg}
    class_height = ceil_div(height, step_y)
    if INTERPRETED:
        return Tile(bw, bc, min(INTERPRETER_ROWS, power_of_two(class_height)), options)
    programs = images * min(step_y, height) * ceil_div(ceil_div(width, step_x) * step_x, bw) * ceil_div(channels, bc)
    for rows in STRIP_ROWS:
        if rows <= power_of_two(class_height) and programs * ceil_div(class_height, rows) >= WAVES * processors:
            break
    return Tile(bw, bc, min(rows, power_of_two(class_height)), options)


def depthwise_forward(x: torch.Tensor, conv: Conv, is_channels_last: bool, step_y: int, step_x: int, ring: bool) -> Tile:
    if INTERPRETED:
        row = INTERPRETER
    elif not ring:
        row = _TAPS
    else:
        row = _strip_row("depthwise_conv2d", x, is_channels_last, conv_class(conv, conv.out_channels), conv.taps)
    return _strip_tile(row, conv.n, conv.oh, conv.ow, conv.out_channels, step_y, step_x, family_of(x.device).processors)


def depthwise_backward(x: torch.Tensor, conv: Conv, is_channels_last: bool, height: int, width: int, step_y: int, step_x: int) -> Tile:
    if INTERPRETED:
        row = INTERPRETER
    else:
        row = _strip_row("depthwise_conv2d_backward", x, is_channels_last, conv_class(conv, conv.out_channels), conv.taps)
    return _strip_tile(row, conv.n, height, width, conv.c, step_y, step_x, family_of(x.device).processors)


def depthwise_gather(x, conv: Conv, is_channels_last: bool, height: int, width: int, channels: int, step_y: int, step_x: int) -> Tile:
    row = INTERPRETER if INTERPRETED else _GATHER[layout_name(is_channels_last)]
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
        row = _strip_row(stage, x, is_channels_last, pool_class(pool), 1, "pool")
    return _strip_tile(row, pool.n, height, width, pool.c, step_y, step_x, family_of(x.device).processors)


def permute(x: torch.Tensor, images: int, channels: int, is_channels_last: bool, height: int, width: int, stride, step_x: int) -> Tile:
    row = INTERPRETER
    if not INTERPRETED:
        shape = tuning.shape_class((images, channels, height, width), channels, (1, 1), stride)
        row = _strip_row("permute", x, is_channels_last, shape, 1)
    return _strip_tile(row, images, height, width, channels, stride[0], step_x, family_of(x.device).processors)


# ---- products ----------------------------------------------------------------------------------------------------------------------


REGISTERS = 65536  # of a processor


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
    def of(cls, row: FusedRow, height: int, width: int, step_y: int, bk: int, bn: int) -> "Fused":
        """Rows and columns as the table has them, which is the shape that it was made for, where the map has as many. On smaller maps, and
        in smaller residue classes, as many rows as there are, and columns for the rest of the pixels, some of them beyond the map: a
        product of fewer pixels would take another instruction and other registers. Taps are gathered there, because a ring of other rows
        and columns spills."""
        class_height, bw = power_of_two(ceil_div(height, step_y)), row.pixels // row.rows
        fits = row.rows <= class_height and bw <= power_of_two(width)
        bh = row.rows if fits else min(class_height, row.pixels // min(bw, power_of_two(width)))
        # All registers there are: left to itself, ptxas spills a few bytes to have more warps resident.
        maxnreg = row.maxnreg if fits else min(255, REGISTERS // (32 * row.warps))
        options = {"num_warps": row.warps, "num_stages": row.stages, "maxnreg": maxnreg}
        return cls(bh, row.pixels // bh, bk, bn, row.ring and fits, options)


def _chunk(most: int, channels: int) -> int:
    return min(most, max(16, power_of_two(channels)))


def _interpreted() -> Fused:
    return Fused(2, 8, 16, 16, True, {"num_warps": 4})


def separable_forward(x: torch.Tensor, conv: Conv, o: int, is_channels_last: bool, step_y: int, precision: str) -> Fused | None:
    """The tile of the fused kernel, or None for depthwise and product apart."""
    if INTERPRETED:
        return _interpreted() if conv.out_channels <= 24 else None
    operands = operands_of(x, precision)
    row = _measured("depthwise_separable_conv2d", x, is_channels_last, conv_class(conv, o), operands)
    if row is _NOT_MEASURED:
        row = _fused_row(x, conv, o, is_channels_last, operands)
    return None if row is None else Fused.of(row, conv.oh, conv.ow, step_y, _chunk(row.bk, conv.out_channels), row.bn)


def _fused_row(x: torch.Tensor, conv: Conv, o: int, is_channels_last: bool, operands: str) -> FusedRow | None:
    pixels, family = conv.n * conv.oh * conv.ow, family_of(x.device)
    table = _of_family(_FUSED, x.device)[layout_name(is_channels_last), operands]
    rows = [row for row in table if row.bn < o] + [row for row in table if row.bn >= o][:1]
    row = rows.pop()
    while rows and pixels <= SMALL_MAP and ceil_div(pixels, row.pixels) * ceil_div(o, row.bn) < family.processors:
        # Repeat the depthwise part rather than leave processors without a tile.
        row = rows.pop()
    if max(conv.out_channels, o) > FUSED_CHANNELS:
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
    for row in _of_family(_PRODUCT, m.device)[operands]:
        programs = images * ceil_div(pixels, row.bm) * ceil_div(o, row.bn)
        if row.bn <= power_of_two(o) and programs >= family_of(m.device).processors:
            break
    return row


def _gathered(tile: Fused, operands: str) -> Fused:
    """Where taps are gathered, fewer channels: 16-bit tiles are the ones with so many that a tap of every pixel spills."""
    return tile if tile.ring or operands != "half" else replace(tile, bk=min(tile.bk, 64), bn=max(16, tile.bn // 2))


def gradient_of_intermediate(x: torch.Tensor, conv: Conv, o: int, is_channels_last: bool, step_y: int, precision: str) -> Fused:
    """bk counts output channels here, bn input channels."""
    if INTERPRETED:
        return _interpreted()
    operands = operands_of(x, precision)
    row = _measured("gradient_of_intermediate", x, is_channels_last, conv_class(conv, o), operands)
    if row is _NOT_MEASURED:
        row = _of_family(_INTERMEDIATE, x.device)[operands]
    return _gathered(Fused.of(row, conv.oh, conv.ow, step_y, _chunk(row.bk, o), _chunk(row.bn, conv.out_channels)), operands)


def pointwise_gradient(x: torch.Tensor, conv: Conv, o: int, is_channels_last: bool, step_y: int, precision: str) -> tuple[Fused, bool]:
    """(tile, stored): bk counts output channels, bn input channels; `stored`: m comes from a depthwise pass, because it would be computed
    again for every block of output channels."""
    if INTERPRETED:
        return _interpreted(), conv.out_channels > 24
    operands = operands_of(x, precision)
    row = _measured("pointwise_gradient", x, is_channels_last, conv_class(conv, o), operands)
    if row is _NOT_MEASURED:
        row = _of_family(_POINTWISE_GRADIENT, x.device)[operands]
    stored = o > FUSED_CHANNELS
    tile = Fused.of(row, conv.oh, conv.ow, 1 if stored else step_y, _chunk(row.bk, o), _chunk(row.bn, conv.out_channels))
    return tile if stored else _gathered(tile, operands), stored
