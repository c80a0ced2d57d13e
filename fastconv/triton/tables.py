"""The tile tables, by device family, and the rows that the tuner tries; `configs.py` looks them up.

They were chosen by what compiles without spills, with the fewest instructions, in every layer of the benchmark's grid and in those of
`bench/triton_grid.py`: python -m bench.triton_grid --family sm_90.
"""

from dataclasses import asdict, dataclass
from itertools import product as combinations

# ---- rows: what the tables hold, and what the tuner writes -------------------------------------------------------------------------


@dataclass(frozen=True)
class Strip:
    """Of kernels that march down strips; `maxnreg`: registers of a thread, None for all there are. `narrow`: elements on maps that have
    fewer columns, and rows that start anywhere: a thread would hold more channels, and the taps of each."""

    columns: int
    elements: int
    warps: int
    maxnreg: int | None = None
    narrow: int | None = None


@dataclass(frozen=True)
class FusedRow:
    """Of kernels that multiply tiles of the depthwise result: `pixels` in at most `rows` rows, bk input channels at a time, bn output
    channels; `maxnreg` as above. `ring`: each input row of the tile is loaded once; without, the taps of every pixel are gathered."""

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
_POOL = {
    "channels_last": ((9, Strip(16, 1024, 4)), (256, Strip(16, 512, 4))),
    "contiguous": ((9, Strip(256, 1024, 4)), (25, Strip(256, 512, 4)), (256, Strip(256, 256, 4))),
}
STRIPS = {
    "depthwise_conv2d": {
        "any": {
            "channels_last": ((9, Strip(16, 1024, 4, 128)), (25, Strip(16, 512, 4)), (49, Strip(16, 256, 4))),
            "contiguous": ((9, Strip(256, 1024, 4, narrow=512)), (25, Strip(256, 256, 4)), (49, Strip(256, 256, 4))),
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
TAPS = Strip(16, 512, 4)
GATHER = {"channels_last": Strip(32, 1024, 4), "contiguous": Strip(256, 1024, 4)}

# Tables of products go by what they multiply: "half" for both 16-bit dtypes, "tf32", or "ieee" for float32 in full precision.
#
# Full precision is multiply-adds of threads that hold their part of the accumulator and a chunk of both operands, so chunks are short and
# warps few. On sm_100 its rows have neither 4 nor 8 warps: with these, Triton 3.6 may multiply float32 by tcgen05, which rounds operands to
# TF32 whatever precision was asked for (triton issue 10176; 3.9 does not). A table of measured choices cannot bring them back.
ROUNDED_WHATEVER_IS_ASKED = {"sm_100": (4, 8)}

# By layout and operands, narrowest first: the first row whose bn holds all output channels, else the last. Windows of up to nine taps; the
# rows hold for every activation, with a residual, and for odd widths. Few warps with all registers issue a tenth to a quarter less than
# twice as many with half of them each.
FUSED = {
    "any": {
        ("channels_last", "half"): (FusedRow(4, 64, 64, 64, 4), FusedRow(8, 128, 32, 128, 8), FusedRow(4, 64, 32, 256, 16)),
        ("contiguous", "half"): (FusedRow(4, 64, 64, 64, 4), FusedRow(8, 128, 32, 128, 8), FusedRow(4, 64, 16, 256, 16)),
        ("channels_last", "tf32"): (FusedRow(4, 64, 32, 64, 4), FusedRow(4, 64, 32, 128, 8)),
        ("contiguous", "tf32"): (FusedRow(4, 64, 32, 64, 4), FusedRow(4, 64, 32, 128, 8)),
        ("channels_last", "ieee"): (FusedRow(4, 64, 32, 64, 4), FusedRow(4, 64, 16, 128, 4)),
        ("contiguous", "ieee"): (FusedRow(4, 64, 32, 64, 4), FusedRow(4, 64, 16, 128, 8)),
    },
}
# wgmma leaves operands in shared memory.
FUSED["sm_90"] = FUSED["any"] | {
    ("channels_last", "half"): (FusedRow(4, 64, 64, 64, 4), FusedRow(4, 64, 32, 128, 4), FusedRow(4, 64, 64, 256, 8)),
    ("contiguous", "half"): (FusedRow(4, 64, 64, 64, 4), FusedRow(8, 128, 32, 128, 8), FusedRow(4, 64, 32, 256, 8)),
}
FUSED["sm_100"] = FUSED["any"] | {
    ("channels_last", "half"): (FusedRow(4, 64, 64, 64, 4), FusedRow(8, 128, 32, 128, 8), FusedRow(4, 64, 64, 256, 8)),
    ("contiguous", "half"): (FusedRow(4, 64, 64, 64, 4), FusedRow(4, 64, 64, 128, 8), FusedRow(4, 64, 64, 256, 8)),
    ("channels_last", "tf32"): (FusedRow(4, 64, 32, 64, 8), FusedRow(4, 64, 32, 128, 8)),
    ("channels_last", "ieee"): (FusedRow(4, 32, 32, 64, 2), FusedRow(4, 32, 16, 128, 2)),
    ("contiguous", "ieee"): (FusedRow(4, 32, 16, 64, 2), FusedRow(4, 32, 16, 128, 2)),
}
# Masks of more rows are more than the scalar registers of gfx942 hold.
FUSED["gfx942"] = FUSED["any"] | {
    ("channels_last", "half"): (FusedRow(2, 64, 32, 64, 4), FusedRow(2, 64, 64, 128, 8), FusedRow(2, 32, 32, 256, 4)),
    ("contiguous", "half"): (FusedRow(4, 64, 32, 64, 4), FusedRow(4, 64, 64, 128, 8), FusedRow(4, 64, 32, 256, 16)),
}
# The same for windows of more taps, whatever the layout.
FUSED_WINDOWS = {
    "any": {
        "half": (FusedRow(4, 64, 32, 64, 8), FusedRow(4, 64, 32, 128, 8), FusedRow(4, 64, 16, 256, 8)),
        "tf32": (FusedRow(4, 64, 16, 64, 8), FusedRow(4, 64, 16, 128, 8)),
        "ieee": (FusedRow(4, 64, 16, 64, 8), FusedRow(4, 64, 16, 128, 8)),
    },
}
# An accumulator of 256 channels leaves too few registers where it takes the products of Ampere.
FUSED_WINDOWS["sm_80"] = FUSED_WINDOWS["any"] | {"half": FUSED_WINDOWS["any"]["half"][:2]}
FUSED_WINDOWS["gfx942"] = FUSED_WINDOWS["any"] | {
    "half": (FusedRow(2, 32, 32, 64, 8), FusedRow(2, 32, 32, 128, 8), FusedRow(2, 32, 32, 256, 8)),
    **dict.fromkeys(("tf32", "ieee"), (FusedRow(2, 32, 16, 64, 8), FusedRow(2, 32, 16, 128, 8))),
}
FUSED_WINDOWS["sm_100"] = FUSED_WINDOWS["any"] | {"ieee": (FusedRow(4, 32, 16, 64, 2),)}
NINE = 9  # taps of a 3 x 3 window
# Up to here the depthwise part is computed once and costs less than writing and reading it; beyond, the two launches win ...
FUSED_CHANNELS = 256
# ... except where computing it again for each block of output channels takes less than a launch. Instructions an element and tap, as
# counted for nine taps.
FUSED_INSTRUCTIONS = 4
# Pixels of the whole batch up to which narrower tiles are taken while processors go without.
SMALL_MAP = 2048

# By operands, and by layout where that matters. bk counts output channels, bn input channels. Operands of all stages lie in shared memory,
# of which AMD has 64 KB.
INTERMEDIATE = {
    "any": {
        "half": FusedRow(4, 64, 64, 128, 8, 3),
        ("contiguous", "half"): FusedRow(4, 64, 64, 64, 8, 3),
        "tf32": FusedRow(4, 64, 32, 64, 8, 3),
        "ieee": FusedRow(4, 64, 32, 64, 8, 3),
    },
    "gfx942": {"half": FusedRow(4, 32, 32, 64, 8, 2), "tf32": FusedRow(4, 32, 32, 64, 8, 2), "ieee": FusedRow(4, 32, 32, 64, 8, 2)},
}
INTERMEDIATE["sm_100"] = INTERMEDIATE["any"] | {"half": FusedRow(4, 64, 64, 64, 8, 3), "ieee": FusedRow(4, 64, 32, 64, 16, 3)}

# The same; smaller before wgmma, whose operands need not be in registers.
POINTWISE_GRADIENT = {
    "any": {"half": FusedRow(4, 64, 128, 64, 8), "tf32": FusedRow(4, 64, 64, 32, 8), "ieee": FusedRow(4, 32, 128, 64, 8)},
    # Rings of more rows are more than the registers of gfx942 hold where the activations are smooth.
    "gfx942": dict.fromkeys(("half", "tf32", "ieee"), FusedRow(1, 16, 128, 32, 8)),
}
POINTWISE_GRADIENT["sm_90"] = POINTWISE_GRADIENT["any"] | {("contiguous", "half"): FusedRow(2, 32, 128, 64, 8)}
POINTWISE_GRADIENT["sm_80"] = POINTWISE_GRADIENT["any"] | {"half": FusedRow(4, 64, 64, 32, 8), "tf32": FusedRow(2, 32, 64, 32, 8)}
POINTWISE_GRADIENT["sm_100"] = POINTWISE_GRADIENT["any"] | {"ieee": FusedRow(4, 32, 64, 64, 16)}

# For large maps, and for those that would leave processors without a tile. An accumulator of 128 x 256 takes wgmma or better: with the
# products of Ampere it spills.
PRODUCT = {
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
# Rows of pixels that start anywhere are loaded one by one, through registers.
PRODUCT["sm_90"] = PRODUCT["any"] | {("contiguous", "half"): PRODUCT["any"]["half"][1:]}
PRODUCT["sm_80"] = PRODUCT["any"] | {"half": PRODUCT["any"]["half"][1:]}
PRODUCT["sm_100"] = PRODUCT["any"] | {"ieee": (Product(128, 16, 128, 16, 3), Product(32, 16, 64, 2, 3))}

# ---- what the tuner tries ----------------------------------------------------------------------------------------------------------


def _strip_candidates(columns: tuple[int, ...]) -> list[Strip]:
    sizes = combinations(columns, (256, 512, 1024, 2048), ((4, None), (4, 128), (8, None), (8, 128)))
    return [Strip(c, e, *threads) for c, e, threads in sizes if e >= c]


def _fused_candidates() -> list[FusedRow]:
    threads = ((4, None), (8, None), (8, 128), (16, None))
    sizes = combinations(((4, 64), (8, 128)), (16, 32, 64), (64, 128, 256), threads, (True, False))
    return [FusedRow(*shape, bk, bn, warps, 1, most, ring) for shape, bk, bn, (warps, most), ring in sizes]


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

ROWS = {
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
