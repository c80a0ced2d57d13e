"""What can be known of the Triton kernels without a GPU: python -m bench.triton_static [--family sm_90] > table.md

Compiles one launch of every kernel ahead of time and reads registers, spills, shared memory, the widest global load, and, for the kernels
that march over rows, the instructions an element (one pixel of one channel) of their loop. The tests hold the same figures under ceilings.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math

import torch

from fastconv import triton as backend
from fastconv.triton import access
from fastconv.triton.ahead import Report, compile_launch
from fastconv.triton.launch import FAMILIES, Launch, record

POOL = ((3, 3), (2, 2), (1, 1), (1, 1), False, False)
SIZE = (8, 128, 64, 64)


def meta(*shape, dtype, channels_last=False):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)


def _run(name, *arguments):
    backend.LAUNCHERS[name](*arguments)


def _depthwise(dtype, channels_last, k=3, d=2, activation="identity"):
    x = meta(*SIZE, dtype=dtype, channels_last=channels_last)
    return x, meta(SIZE[1], 1, k, k, dtype=dtype), meta(SIZE[1], dtype=dtype), (1, 1), (d * (k // 2),) * 4, (d, d), activation


def _separable(dtype, channels_last, c=128, o=128, size=64, k=3, d=1, n=8, allow_tf32=True):
    x = meta(n, c, size, size, dtype=dtype, channels_last=channels_last)
    weights = meta(c, 1, k, k, dtype=dtype), meta(o, c, dtype=dtype)
    return x, *weights, None, meta(o, dtype=dtype), None, (1, 1), (d * (k // 2),) * 4, (d, d), "identity", "relu", "relu", allow_tf32


def depthwise_forward(dtype, channels_last, **options):
    _run("depthwise_conv2d", *_depthwise(dtype, channels_last, **options))


def depthwise_strided(dtype, channels_last):
    x, weight, bias, *_ = _depthwise(dtype, channels_last)
    _run("depthwise_conv2d", x, weight, bias, (2, 2), (1,) * 4, (1, 1), "identity")


def depthwise_backward(dtype, channels_last, **options):
    x, weight, bias, *geometry = _depthwise(dtype, channels_last, **options)
    with torch.device("meta"):
        out = torch.ops.fastconv.depthwise_conv2d(x, weight, bias, *geometry)
    _run("depthwise_conv2d_backward", out, x, weight, bias, out, *geometry, [True, True, False])


def separable_forward(dtype, channels_last, **options):
    _run("depthwise_separable_conv2d", *_separable(dtype, channels_last, **options))


def separable_backward(dtype, channels_last, **options):
    x, *rest, allow_tf32 = _separable(dtype, channels_last, **options)
    out = meta(x.shape[0], rest[1].shape[0], *x.shape[2:], dtype=dtype, channels_last=channels_last)
    mask = [True, True, True, False, True, False]
    _run("depthwise_separable_conv2d_backward", out, x, *rest[:5], out, *rest[5:], mask, allow_tf32)


def max_pool(dtype, channels_last):
    _run("shift_stitch_max_pool2d_argmax", meta(*SIZE, dtype=dtype, channels_last=channels_last), *POOL, 0.0)


def max_pool_backward(dtype, channels_last):
    grad, argmax = (meta(*SIZE, dtype=t, channels_last=channels_last) for t in (dtype, torch.uint8))
    _run("shift_stitch_max_pool2d_backward", grad, None, argmax, grad.shape, *POOL)


def avg_pool(dtype, channels_last):
    _run("shift_stitch_avg_pool2d", meta(*SIZE, dtype=dtype, channels_last=channels_last), *POOL[:5], False, None, False, 0.0)


def avg_pool_backward(dtype, channels_last):
    grad = meta(*SIZE, dtype=dtype, channels_last=channels_last)
    _run("shift_stitch_avg_pool2d_backward", grad, grad.shape, *POOL[:5], False, None, False)


def shift(dtype, channels_last):
    _run("shift", meta(*SIZE, dtype=dtype, channels_last=channels_last), (2, 2), 0.0)


LAYERS = (
    depthwise_forward, depthwise_strided, depthwise_backward, separable_forward, separable_backward, max_pool, max_pool_backward, avg_pool,
    avg_pool_backward, shift,
)  # fmt: skip


NVIDIA = tuple(name for name in FAMILIES if name.startswith("sm_"))
# The kernels that take contiguous maps as they come or through copies, and the windows for which both forms are counted.
COUNTED = (("depthwise_ring", 3), ("depthwise_ring", 5), ("depthwise_ring", 7), ("separable_fused", 3), ("separable_fused", 5))


def launches(family: str, layer, dtype: torch.dtype, channels_last: bool, **options) -> list[Launch]:
    with record(FAMILIES[family]) as recorder:
        layer(dtype, channels_last, **options)
    return recorder.launches


HEADINGS = ("format", "warps", "registers", "spills", "shared memory", "widest load", "instructions an element")


def row(layer, launch: Launch, report: Report, channels_last: bool) -> str:
    name = launch.kernel.__name__
    widest = next((f"{bits} bits" for bits in (128, 64) if report.count(rf"LDG\.E\.{bits}")), "up to 32 bits")
    cells = (
        f"{layer.__name__}: `{name}`",
        "channels_last" if channels_last else "contiguous",
        launch.options["num_warps"],
        report.registers,
        report.spills,
        f"{math.ceil(report.shared_memory / 1024)} KB",
        widest,
        "" if report.instructions_an_element(launch) is None else f"{report.instructions_an_element(launch):.1f}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def table(family: str) -> str:
    """Markdown."""
    lines = [f"| kernel ({family}, bfloat16, K = 3, {SIZE[1]} channels) | {' | '.join(HEADINGS)} |", "|---" * (1 + len(HEADINGS)) + "|"]
    for layer in LAYERS:
        for channels_last in (True, False):
            for launch in launches(family, layer, torch.bfloat16, channels_last):
                lines.append(row(layer, launch, compile_launch(launch, FAMILIES[family]), channels_last))
    return "\n".join(lines)


def _counted(kernel: str, k: int, layout: str, family: str) -> Launch:
    """128 channels, bfloat16, without biases."""
    n = 8 if kernel == "depthwise_ring" else 64
    x = meta(n, *SIZE[1:], dtype=torch.bfloat16, channels_last=layout == "channels_last")
    weight, pointwise = (meta(SIZE[1], *rest, dtype=torch.bfloat16) for rest in ((1, k, k), (SIZE[1],)))
    geometry = (1, 1), (k // 2,) * 4, (1, 1)
    with record(FAMILIES[family]) as recorder:
        if kernel == "depthwise_ring":
            _run("depthwise_conv2d", x, weight, None, *geometry, "identity")
        else:
            _run("depthwise_separable_conv2d", x, weight, pointwise, None, None, None, *geometry, "identity", "relu", "relu")
    (launch,) = recorder.launches
    return launch


def counts(family: str) -> dict[str, float]:
    """Instructions an element, as instructions.json keeps them."""
    found = {}
    for (kernel, k), layout in itertools.product(COUNTED, ("contiguous", "channels_last")):
        launch = _counted(kernel, k, layout, family)
        report = compile_launch(launch, FAMILIES[family])
        found[access.key(FAMILIES[family], kernel, k * k, layout)] = round(report.instructions_an_element(launch), 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=NVIDIA, default="sm_90")
    parser.add_argument("--write", action="store_true", help=f"count again what {access.COUNTS.name} holds of the family")
    options = parser.parse_args()
    if options.write:
        kept = json.loads(access.COUNTS.read_text()) if access.COUNTS.exists() else {}
        access.COUNTS.write_text(json.dumps(kept | counts(options.family), indent=1, sort_keys=True) + "\n")
    else:
        print(table(options.family))


if __name__ == "__main__":
    main()
