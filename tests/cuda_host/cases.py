"""Small shapes for the host-run kernels, one line each: odd sizes, tails in every dimension, both layouts, every dtype.

The programs read them as `key=value` words; the seed fixes the operands and the order in which threads run.
"""

from collections.abc import Callable
from functools import wraps

LAYOUTS = ("contiguous", "channels_last")
# A GPU whose plans give a thread all the rows of a map: for an H200, maps as small as these are cut into single rows.
TINY = dict(multiprocessors=1, threads=1)


def lines(rows: list[dict], seed: int = 0) -> list[str]:
    return [" ".join(f"{key}={value}" for key, value in {**row, "seed": seed + i}.items()) for i, row in enumerate(rows)]


def on_both_devices(cases: Callable[[], list[dict]]) -> Callable[[], list[dict]]:
    """Every other case on the tiny device."""

    @wraps(cases)
    def turns() -> list[dict]:
        return [row | TINY if i % 2 else row for i, row in enumerate(cases())]

    return turns


def shift_stitch() -> list[dict]:
    shapes = [  # n, c, h, w, sh, sw, offset of the base in elements
        (2, 3, 7, 5, 2, 3, 0),
        (1, 8, 8, 16, 2, 2, 0),
        (2, 5, 9, 33, 3, 2, 0),
        (1, 16, 4, 24, 1, 3, 0),
        (1, 2, 5, 64, 4, 4, 0),
        (1, 4, 6, 16, 1, 1, 0),
        (3, 7, 1, 1, 2, 2, 0),
        (1, 6, 13, 40, 3, 5, 0),
        (1, 8, 6, 32, 2, 2, 1),
        (1, 24, 12, 17, 2, 2, 0),
        (2, 1, 3, 8, 5, 2, 0),
        (1, 3, 40, 48, 2, 3, 0),
    ]
    return [
        dict(op=op, n=n, c=c, h=h, w=w, sh=sh, sw=sw, dtype=dtype, layout=layout, offset=offset)
        for op in ("shift", "stitch")
        for layout in LAYOUTS
        for dtype in ("f32", "bf16", "f64")
        for n, c, h, w, sh, sw, offset in shapes
    ]


def _pools() -> list[dict]:
    """Shapes of the pooling cases. c = 8 and 16 take the vector kernels of 16-bit types, 4 and 12 those of float32, the others neither."""
    return [
        dict(n=2, c=8, h=7, w=9, k=3, s=2, p=1, d=1),
        dict(n=1, c=16, h=9, w=13, k=2, s=2, p=0, d=1),
        dict(n=1, c=8, h=5, w=5, k=3, s=1, p=1, d=2),
        dict(n=1, c=8, h=17, w=11, k=3, s=2, p=1, d=3),
        dict(n=1, c=8, h=12, w=10, k=5, s=2, p=2, d=2),
        dict(n=1, c=8, h=1, w=1, k=3, s=1, p=1, d=1),
        dict(n=2, c=8, h=3, w=40, k=2, s=3, p=1, d=1),
        dict(n=1, c=8, h=6, w=7, k=3, s=3, p=0, d=1, ceil=1),
        dict(n=1, c=8, h=7, w=8, k=3, s=2, p=1, d=1, ceil=1),
        dict(n=1, c=8, h=8, w=6, k=2, s=2, p=1, d=7),
        dict(n=1, c=24, h=70, w=3, k=3, s=1, p=1, d=1),
        dict(n=1, c=5, h=6, w=33, k=3, s=2, p=1, d=2),
        dict(n=3, c=3, h=9, w=7, kh=3, kw=2, sh=2, sw=3, ph=1, pw=0, dh=1, dw=2),
        dict(n=1, c=8, h=9, w=7, kh=2, kw=3, sh=1, sw=2, ph=0, pw=1, dh=2, dw=1),
        dict(n=1, c=8, h=9, w=7, k=4, s=2, p=2, d=1),
        dict(n=1, c=1, h=10, w=64, k=3, s=2, p=1, d=1),
        dict(n=1, c=2, h=12, w=130, k=2, s=2, p=0, d=1),
    ]


@on_both_devices
def max_pool() -> list[dict]:
    rows = [dict(op="compare")]
    for i, shape in enumerate(_pools()):
        for j, layout in enumerate(LAYOUTS):
            for k, dtype in enumerate(("bf16", "f16", "f32", "f64")):
                # Every shape meets every dtype and layout; data, wish and form of the result take turns.
                data = ("normal", "ties", "nan", "lowest")[(i + j + k) % 4]
                want = ("argmax", "value", "argmax", "indices")[(i + k) % 4]
                rows.append(dict(shape, dtype=dtype, layout=layout, data=data, want=want, fragments=(i + j) % 2))
    for data in ("normal", "ties", "nan", "lowest"):
        for dtype in ("bf16", "f16", "f32"):
            for k, d in ((2, 1), (3, 1), (3, 2), (5, 1)):
                for layout in LAYOUTS:
                    rows.append(dict(n=1, c=8, h=11, w=14, k=k, s=2, p=k // 2, d=d, dtype=dtype, layout=layout, data=data, want="argmax", fragments=1))
    # Off the alignment of vectors.
    rows += [dict(n=1, c=8, h=6, w=8, k=3, s=2, p=1, dtype=dtype, layout=layout, want="argmax", offset=1) for dtype in ("bf16", "f32") for layout in LAYOUTS]
    return rows


@on_both_devices
def max_pool_backward() -> list[dict]:
    return [
        dict(shape, dtype=dtype, layout=layout, fragments=(i + j) % 2, by="indices" if k == 3 or shape.get("k") == 4 else "argmax")
        for i, shape in enumerate(_pools())
        for j, layout in enumerate(LAYOUTS)
        for k, dtype in enumerate(("bf16", "f16", "f32", "f64"))
    ]


@on_both_devices
def avg_pool() -> list[dict]:
    rows = [
        dict(shape, dtype=dtype, layout=layout, fragments=(i + j) % 2, backward=backward, include_pad=(i + k) % 2, divisor=7 if (i + k) % 5 == 0 else 0)
        for backward in (0, 1)
        for i, shape in enumerate(_pools())
        for j, layout in enumerate(LAYOUTS)
        for k, dtype in enumerate(("bf16", "f16", "f32", "f64"))
    ]
    return rows + [dict(n=1, c=8, h=6, w=8, k=3, s=2, p=1, dtype="bf16", layout="channels_last", backward=backward, offset=1) for backward in (0, 1)]


# ---- convolutions ----------------------------------------------------------------------------------------------------------------

ACTIVATIONS = ("identity", "relu", "relu6", "silu", "gelu", "gelu_tanh", "hardswish")


def _convolutions() -> list[dict]:
    """Shapes of the convolution cases. c = 8 and 16 take the strips of channels_last, 7 and 5 nothing wider than an element."""
    return [
        dict(n=2, c=8, h=7, w=9, k=3, p=1),
        dict(n=1, c=16, h=13, w=6, k=3, p=2, d=2),
        dict(n=1, c=8, h=5, w=5, k=3, p=3, d=3),
        dict(n=1, c=8, h=6, w=7, k=3, p=12, d=12),
        dict(n=1, c=8, h=4, w=33, k=3, p=1),
        dict(n=1, c=8, h=1, w=1, k=3, p=1),
        dict(n=1, c=8, h=9, w=8, k=3, p=0),
        dict(n=1, c=8, h=5, w=6, k=3, p=4),
        dict(n=1, c=8, h=70, w=3, k=3, p=1),
        dict(n=1, c=8, h=8, w=9, k=3, pt=0, pb=2, pl=2, pr=1, dh=1, dw=2),
        dict(n=1, c=8, h=11, w=10, k=5, p=2),
        dict(n=1, c=8, h=12, w=11, k=5, p=6, d=3),
        dict(n=1, c=8, h=9, w=14, k=7, p=3),
        dict(n=1, c=8, h=8, w=15, k=7, p=6, d=2),
        dict(n=2, c=7, h=6, w=5, k=3, p=1),
        dict(n=1, c=5, h=9, w=130, k=3, p=1),
        dict(n=1, c=8, h=9, w=11, k=3, p=1, s=2),
        dict(n=1, c=16, h=12, w=10, k=5, p=2, sh=2, sw=3),
        dict(n=1, c=8, h=7, w=8, kh=3, kw=1, pt=1, pb=1),
        dict(n=1, c=8, h=7, w=8, kh=1, kw=5, pl=2, pr=2),
        dict(n=2, c=8, h=7, w=6, k=1),
        dict(n=1, c=8, h=13, w=14, k=11, p=5),
        dict(n=1, c=4, h=7, w=8, k=3, p=1, m=2),
        dict(n=1, c=5, h=8, w=7, kh=4, kw=2, pt=1, pb=2, pr=1, m=3, s=2),
    ]


@on_both_devices
def depthwise() -> list[dict]:
    rows = [
        dict(shape, dtype=dtype, layout=layout, bias=(i + j + k) % 2, act=ACTIVATIONS[(i + 3 * j + k) % 7])
        for i, shape in enumerate(_convolutions())
        for j, layout in enumerate(LAYOUTS)
        for k, dtype in enumerate(("bf16", "f16", "f32"))
    ]
    for act in ACTIVATIONS:
        for k, dtype in ((3, "bf16"), (5, "f32"), (7, "f16")):
            rows += [dict(n=1, c=8, h=6, w=7, k=k, p=k // 2, dtype=dtype, layout=layout, act=act) for layout in LAYOUTS]
        rows += [dict(n=1, c=8, h=5, w=6, k=3, p=1, s=2, dtype="bf16", layout=layout, act="relu", input_act=act) for layout in LAYOUTS]
    # Off the alignment of vectors, and with images more than 2^31 elements apart.
    rows += [dict(n=1, c=8, h=6, w=8, k=3, p=1, s=s, dtype=dtype, layout=layout, offset=1) for s in (1, 2) for dtype in ("bf16", "f32") for layout in LAYOUTS]
    rows += [dict(n=2, c=8, h=4, w=5, k=3, p=1, s=s, dtype="bf16", layout=layout, far=1) for s in (1, 2) for layout in LAYOUTS]
    rows.append(dict(n=2, c=7, h=4, w=5, k=3, p=1, dtype="bf16", layout="channels_last", far=1))
    # Each kernel where it is meant to run.
    rows += [dict(n=1, c=8, h=6, w=6, k=k, p=1, dtype="bf16", layout="channels_last", form="pixels") for k in (3, 5, 7)]
    rows += [dict(n=1, c=3, h=6, w=6, k=k, p=1, dtype="f16", layout="contiguous", form="bands") for k in (3, 5, 7)]
    rows.append(dict(n=1, c=8, h=6, w=6, k=3, p=1, s=2, dtype="bf16", layout="channels_last", form="vectors"))
    return rows


@on_both_devices
def depthwise_backward() -> list[dict]:
    rows = [
        dict(shape, dtype=dtype, layout=layout, want=("all", "all", "dw", "dx")[(i + j + k) % 4], input_act=("identity", "relu", "relu6", "identity")[(i + 2 * j + k) % 4])
        for i, shape in enumerate(_convolutions())
        for j, layout in enumerate(LAYOUTS)
        for k, dtype in enumerate(("bf16", "f16", "f32"))
    ]
    # A row of blocks for one slice of channels and the reverse; channels that do not fill the last slice.
    rows += [dict(n=3, c=c, h=20, w=9, k=3, p=1, dtype="bf16", layout=layout) for c in (4, 36, 140) for layout in LAYOUTS]
    rows += [dict(n=1, c=8, h=6, w=6, k=3, p=1, dtype="f32", layout=layout, input_act=act) for act in ACTIVATIONS for layout in LAYOUTS]
    rows += [dict(n=1, c=8, h=6, w=8, k=3, p=1, dtype=dtype, layout=layout, offset=1) for dtype in ("bf16", "f32") for layout in LAYOUTS]
    rows += [dict(n=2, c=8, h=4, w=5, k=3, p=1, s=s, dtype="bf16", layout=layout, far=1) for s in (1, 2) for layout in LAYOUTS]
    rows += [dict(n=1, c=8, h=6, w=6, k=k, p=1, dtype="bf16", layout="channels_last", form="pixels_twice" if k == 7 else "pixels") for k in (3, 5, 7)]
    rows += [dict(n=1, c=3, h=6, w=6, k=k, p=1, dtype="f16", layout="contiguous", form="bands") for k in (3, 5, 7)]
    rows += [dict(n=1, c=8, h=6, w=6, k=3, p=1, dtype="f16", layout=layout, want="dx", form="forward") for layout in LAYOUTS]
    rows += [dict(op="gate", elements=n, act=act, dtype=dtype) for act, n in zip(ACTIVATIONS, (1, 7, 8, 33, 100, 3000, 17), strict=True) for dtype in ("bf16", "f16", "f32")]
    return rows + [dict(op="gate", elements=65, act="silu", dtype="bf16", offset=1)]
