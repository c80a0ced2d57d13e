"""Predicted times of the CUDA kernels on the layers of real networks: python -m bench.cuda_predicted > docs/cuda-predicted.md

Everything is computed by the planner's cost model (csrc/common/cost*.cpp) for an H200; nothing in it was measured on one, except the rates it names.
A measured table, where there is one, is bench/results/DEVICE/table.md.
"""

from __future__ import annotations

from fastconv import _C
from fastconv.cli.predict_cuda import CHIPS

# name, channels in, out, kernel, stride, {size: (dilation at output stride 16, 8)}; sizes of a 513 x 513 crop and of 1025 x 2049 (Cityscapes).
P16, P8, C16, C8 = (33, 33), (65, 65), (65, 129), (129, 257)
LAYERS = [
    *((f"Xception-65 entry, {c} at {h}", c, o, 3, s, 1, (h, h)) for c, o, h, s in ((64, 128, 257, 1), (128, 128, 257, 1), (128, 128, 257, 2), (128, 256, 129, 1), (256, 256, 129, 2), (256, 728, 65, 1), (728, 728, 65, 2))),
    *((f"Xception-65 middle flow, {name}", 728, 728, 3, 1, d, size) for name, size, d in (("P16", P16, 1), ("P8", P8, 2), ("C16", C16, 1), ("C8", C8, 2))),
    *((f"Xception-65 exit 1, {name}", 1024, 1024, 3, 1, d, size) for name, size, d in (("P16", P16, 1), ("C8", C8, 2))),
    *((f"Xception-65 exit 2, {c} -> {o}, C16", c, o, 3, 1, 2, C16) for c, o in ((1024, 1536), (1536, 1536), (1536, 2048))),
    *((f"ASPP, rate {d}, {name}", 2048, 256, 3, 1, d, size) for name, size, rates in (("P16", P16, (6, 12, 18)), ("C8", C8, (12, 24, 36))) for d in rates),
    *((f"decoder, {c} channels, {name}", c, 256, 3, 1, 1, size) for c in (304, 256) for name, size in (("P", (129, 129)), ("C", (257, 513)))),
    *((f"MobileNetV2, {c} -> {o}, C16", c, o, 3, 1, d, C16) for c, o, d in ((384, 64, 1), (576, 96, 1), (960, 320, 2))),
    ("MobileNetV3-L last, C16", 960, 160, 5, 1, 2, C16),
]
DEPTHWISE = [(f"ConvNeXt-T, {c} at {s}", c, 7, 1, (s, s)) for c, s in ((96, 56), (192, 28), (384, 14), (768, 7))] + [
    (f"128 at 257, dilation {d}", 128, 3, d, (257, 257)) for d in (1, 2, 6, 18)
]
BATCHES = (1, 16)


def arguments(batch, channels, kernel, stride, dilation, size, layout):
    pad = dilation * (kernel - 1) // 2
    return {
        "input": (batch, channels, *size), "multiplier": 1, "kernel": (kernel,) * 2, "stride": (stride,) * 2, "padding": (pad,) * 4, "dilation": (dilation,) * 2,
        "dtype": "bfloat16", "layout": layout, "chip": CHIPS["sm_90"],
    }  # fmt: skip


def microseconds(steps) -> float:
    return 1e6 * sum(step["seconds"] for step in steps)


def separable_rows():
    yield "| layer | batch | floor us | fused channels_last us | over floor | bound by | waves | fused contiguous us | two launches us |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, c, o, kernel, stride, dilation, size in LAYERS:
        for batch in BATCHES:
            last, plain = (
                _C.cost_cuda_separable(out_channels=o, **arguments(batch, c, kernel, stride, dilation, size, layout)) for layout in ("channels_last", "contiguous")
            )
            (fused,), floor = last["fused"], 1e6 * last["floor"]
            time = 1e6 * fused["seconds"]
            yield (
                f"| {name} | {batch} | {floor:.1f} | {time:.1f} | {time / floor:.2f} | {fused['bound']} | {fused['waves']:.2f} "
                f"| {microseconds(plain['fused']):.1f} | {microseconds(last['unfused']):.1f} |"
            )


def depthwise_rows():
    yield "| layer | batch | floor us | forward channels_last / contiguous us | bound by | backward channels_last / contiguous us | floor of backward us |"
    yield "|---|---|---|---|---|---|---|"
    for name, c, kernel, dilation, size in DEPTHWISE:
        for batch in BATCHES:
            elements = batch * c * size[0] * size[1]
            times = {
                (layout, backward): _C.cost_cuda_depthwise(backward=backward, **arguments(batch, c, kernel, 1, dilation, size, layout))
                for layout in ("channels_last", "contiguous")
                for backward in (False, True)
            }
            forward, backward = (" / ".join(f"{microseconds(times[layout, b]):.1f}" for layout in ("channels_last", "contiguous")) for b in (False, True))
            copy = CHIPS["sm_90"]["copy"]
            bound = " / ".join(times[layout, False][0]["bound"] for layout in ("channels_last", "contiguous"))
            yield f"| {name} | {batch} | {4e6 * elements / copy:.1f} | {forward} | {bound} | {backward} | {6e6 * elements / copy:.1f} |"


def page() -> str:
    return "\n".join([
        "# Predicted times on an H200, bfloat16",
        "",
        "Written by `python -m bench.cuda_predicted`. **Predicted, not measured**: counts of bytes, instructions and products of the compiled kernels over the rates",
        "in `csrc/common/cost_choice.cpp`, with occupancy, waves and bytes in flight (`csrc/common/cost.h`). Two microseconds of every time are the launch.",
        "",
        "## Fused depthwise-separable convolution",
        "",
        "Floor: each tensor moved once at the copy rate, or the product at the rate of the vendor's library. Two launches: the depthwise kernel, then the",
        "library's product at its best.",
        "",
        *separable_rows(),
        "",
        "## Depthwise convolution",
        "",
        *depthwise_rows(),
    ])  # fmt: skip


if __name__ == "__main__":
    print(page())
