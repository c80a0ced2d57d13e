"""Small shapes for the fused depthwise-separable kernels, forward and backward; cases.py says how they are read."""

from .cases import ACTIVATIONS, LAYOUTS


def separable() -> list[dict]:
    """Cases that are there for the sake of a form of the plan ask for it: producer_tile, and how its tiles are divided."""
    small = dict(n=1, h=7, w=9, k=3, p=1, o=24)
    rows = []
    # 16-bit, channels_last: every tile of the ring; those of the planner's choice are left to the shapes below.
    for dtype in ("bf16", "f16"):
        ring = dict(dtype=dtype, layout="channels_last")
        rows += [
            dict(small, **ring, c=64, form="pixels_small"),
            dict(small, **ring, c=40, o=72, residual=1, input="relu", pointwise="relu6", splits=2, form="pixels_small"),
            dict(ring, n=2, c=72, o=136, h=13, w=11, k=3, p=1, d=1, depthwise="relu", splits=2, form="pixels_pair"),
            dict(ring, n=1, c=16, o=24, h=17, w=19, k=3, p=2, d=2, form="pixels_pair"),
            dict(ring, n=1, c=72, o=72, h=17, w=19, k=3, p=1, columns=8, unit_rows=5, form="pixels_tall"),
            dict(ring, n=2, c=24, o=40, h=11, w=13, k=3, p=2, d=2, residual=1, pointwise="silu", form="pixels_tall"),
            dict(ring, n=1, c=136, o=20, h=9, w=12, k=3, p=1, shared=100_000, residual=1, form="pixels_wide"),
            dict(ring, n=1, c=200, o=136, h=9, w=7, k=3, p=1, shared=118_000, form="pixels_wide"),
            # Several residue classes in a tile, the last group of them incomplete.
            dict(ring, n=2, c=16, o=24, h=11, w=13, k=3, p=5, d=5, form="pixels_small"),
            dict(ring, n=1, c=16, o=16, h=14, w=29, k=3, p=7, d=7, residual=1, form="pixels_pair"),
            dict(small, **ring, c=64, k=5, p=4, d=2, form="pixels_slim"),
            dict(small, **ring, c=40, k=7, p=3, depthwise="hardswish", form="pixels_slim"),
            dict(small, **ring, c=200, k=5, p=2, shared=70_000, form="pixels_slim"),
            # Blocks that stay: several tiles each, slots that are used again, weights in steps that fill no slab, one block with no tile to spare.
            dict(ring, n=2, c=72, o=200, h=17, w=21, k=3, p=1, multiprocessors=3, residual=1, form="pixels_persistent"),
            dict(ring, n=1, c=304, o=256, h=9, w=13, k=3, p=2, d=2, multiprocessors=2, depthwise="relu", pointwise="relu", columns=8, unit_rows=8, form="pixels_persistent"),
            dict(ring, n=1, c=40, o=24, h=5, w=6, k=3, p=0, input="relu6", columns=4, unit_rows=2, form="pixels_persistent"),
            dict(ring, n=2, c=296, o=103, h=16, w=27, k=3, p=2, d=2, multiprocessors=3, columns=4, unit_rows=8, form="pixels_persistent_narrow"),
            dict(ring, n=1, c=72, o=48, h=2, w=67, k=3, p=1, multiprocessors=2, columns=32, unit_rows=2, form="pixels_persistent_narrow"),
            dict(ring, n=2, c=200, o=96, h=17, w=18, k=3, p=1, multiprocessors=5, columns=4, unit_rows=8, form="pixels_persistent_narrow"),
            dict(ring, n=1, c=64, o=37, h=23, w=29, k=3, p=5, d=5, multiprocessors=2, pointwise="silu", form="pixels_persistent_narrow"),
            # More units than warps: rows of the next are on their way while one is marched. And pixels that are no whole 16 bytes.
            dict(ring, n=1, c=200, o=16, h=18, w=15, k=3, p=1, form="pixels_pair"),
            dict(small, **ring, c=36, form="taps_plain"),
            # Every other pixel.
            dict(ring, n=2, c=72, o=40, h=11, w=18, k=3, p=1, s=2, depthwise="relu", form="pixels_small"),
            dict(ring, n=1, c=136, o=24, h=33, w=17, k=3, p=0, s=2, residual=1, columns=4, unit_rows=5, form="pixels_pair"),
            dict(ring, n=1, c=16, o=72, h=34, w=35, k=3, p=2, s=2, input="relu", form="pixels_tall"),
        ]
        planes = dict(dtype=dtype, layout="contiguous")
        rows += [
            dict(small, **planes, c=64, form="planes_plain"),
            dict(planes, n=2, c=20, o=37, h=13, w=37, k=3, p=2, d=2, residual=1, pointwise="relu", form="planes_plain"),
            dict(planes, n=1, c=12, o=140, h=6, w=33, k=3, p=6, d=6, depthwise="gelu", form="planes_plain"),
            dict(planes, n=1, c=136, o=16, h=5, w=6, k=3, p=1, shared=90000, input="silu", form="planes_plain"),
            dict(small, **planes, c=24, k=5, p=2, form="planes_slim"),
            dict(small, **planes, c=20, k=7, p=9, d=3, form="planes_slim"),
        ]
    # Activations, one each at every place.
    for i, activation in enumerate(ACTIVATIONS):
        for j, dtype in enumerate(("bf16", "f16", "f32")):
            place = ("input", "depthwise", "pointwise")[(i + j) % 3]
            rows.append(dict(n=1, c=8, o=16, h=5, w=6, k=3, p=1, dtype=dtype, layout=LAYOUTS[(i + j) % 2], residual=i % 2, **{place: activation}))
    # float32, by TF32 and in full.
    for tf32 in (0, 1):
        f32 = dict(dtype="f32", tf32=tf32)
        rows += [
            dict(small, **f32, c=36, layout="channels_last", residual=1, form="pixels_small"),
            dict(small, **f32, c=36, k=5, p=4, d=2, layout="channels_last", form="pixels_slim"),
            dict(small, **f32, c=72, k=7, p=3, layout="channels_last", depthwise="hardswish", shared=90_000, form="pixels_slim"),
            dict(f32, n=2, c=36, o=40, h=11, w=18, k=3, p=1, s=2, layout="channels_last", input="relu", form="pixels_small"),
            dict(small, **f32, c=20, k=5, p=2, layout="contiguous", form="planes_slim"),
            dict(small, **f32, c=12, k=7, p=9, d=3, layout="contiguous", form="planes_slim"),
            dict(small, **f32, c=36, layout="contiguous", residual=1, form="planes_slim" if tf32 else "planes_plain"),
            dict(small, **f32, c=7, o=9, layout="contiguous", form="taps_plain"),
            dict(small, **f32, c=5, o=11, s=2, layout="channels_last", form="taps_plain"),
        ]
    full = dict(dtype="f32", layout="channels_last", tf32=0)
    tf32 = dict(dtype="f32", layout="channels_last", tf32=1)
    rows += [
        dict(full, n=1, c=48, o=12, h=8, w=11, k=3, p=3, d=3, shared=75_000, form="pixels_slim"),
        dict(full, n=1, c=100, o=72, h=9, w=12, k=3, p=1, shared=75_000, residual=1, form="pixels_slim"),
        dict(tf32, n=2, c=40, o=136, h=13, w=11, k=3, p=1, depthwise="relu", splits=2, form="pixels_pair"),
        dict(tf32, n=1, c=100, o=16, h=18, w=15, k=3, p=2, d=2, form="pixels_pair"),
        dict(tf32, n=1, c=36, o=72, h=17, w=19, k=3, p=1, columns=8, unit_rows=5, residual=1, pointwise="silu", form="pixels_tall"),
        dict(tf32, n=1, c=100, o=136, h=9, w=7, k=3, p=1, shared=150_000, form="pixels_wide"),
        dict(tf32, n=1, c=68, o=24, h=33, w=17, k=3, p=0, s=2, residual=1, columns=4, unit_rows=5, form="pixels_pair"),
        dict(tf32, n=1, c=16, o=72, h=34, w=35, k=3, p=2, s=2, input="relu6", form="pixels_tall"),
    ]
    # What no ring serves: strides, multipliers, kernels, odd channels.
    general = [
        dict(c=7, h=11, w=5, o=5),
        dict(c=33, h=6, w=7, o=35, bias=0),
        dict(c=1, h=8, w=9, o=70, residual=1),
        dict(c=40, h=4, w=5, o=1),
        dict(c=16, h=9, w=10, s=2, o=24),
        dict(c=6, h=17, w=18, sh=2, sw=3, k=3, p=4, dh=3, dw=2, o=8),
        dict(c=6, h=13, w=12, k=2, sh=4, sw=5, p=0, o=8),
        dict(c=10, h=5, w=6, m=3, o=16),
        dict(c=5, h=9, w=8, kh=5, kw=2, pt=2, pb=1, pl=0, pr=1, dw=3, o=12),
        dict(c=16, h=9, w=8, k=1, p=0, o=16),
        dict(c=6, h=13, w=8, k=11, p=5, o=8),
        dict(c=4, h=5, w=6, d=12, p=12, o=8),
        dict(c=3, h=1, w=1, o=3),
        dict(c=8, h=1, w=37, o=8),
        dict(c=8, h=37, w=1, o=8),
        dict(c=8, h=3, w=2, k=7, p=3, o=8),
        dict(c=8, h=5, w=6, p=5, o=8),
    ]
    for i, shape in enumerate(general):
        for j, layout in enumerate(LAYOUTS):
            rows.append(dict(dict(k=3, p=1, n=1 + i % 2), **shape, dtype=("bf16", "f16", "f32")[(i + j) % 3], layout=layout))
    # Off the alignment of vectors, and images far apart: offsets beyond 2^31 elements.
    for layout in LAYOUTS:
        rows.append(dict(n=1, c=16, h=6, w=8, k=3, p=1, o=16, dtype="bf16", layout=layout, offset=1, weight_offset=1, residual=1))
        rows.append(dict(n=2, c=16, h=4, w=5, k=3, p=1, o=8, dtype="bf16", layout=layout, far=1))
    return rows


def separable_backward() -> list[dict]:
    """The forward pass's cases of few pixels, with its activations, and some that ask for a part of the gradients only."""
    rows = []
    for i, row in enumerate(separable()):
        if row.get("far"):
            continue
        row = {key: value for key, value in row.items() if key not in ("form", "columns", "unit_rows", "splits", "residual", "weight_offset")}
        row.setdefault("pointwise", ACTIVATIONS[i % 7])
        row.setdefault("depthwise", ACTIVATIONS[(i + 2) % 7])
        rows.append(row)
    part = dict(n=2, c=72, o=70, h=9, w=10, k=3, p=1, dtype="bf16")
    for layout in LAYOUTS:
        rows.append(dict(part, layout=layout, dz=0))
        rows.append(dict(part, layout=layout, dweight=0, depthwise="relu"))
        rows.append(dict(part, layout=layout, dz=0, dweight=0, pointwise="relu"))
        rows.append(dict(part, layout=layout, dweight=0, dbias=0, shared=90000, o=300))
        rows.append(dict(n=2, c=16, h=4, w=5, k=3, p=1, o=8, dtype="bf16", layout=layout, far=1))
    return rows
