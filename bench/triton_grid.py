"""The Triton kernels of the benchmark's whole GPU grid, compiled ahead of time: python -m bench.triton_grid [--family sm_90] [--tier full]

Every launch of every layer, in both memory formats and both directions, is compiled once for each specialisation it takes; what spills, or
asks for more shared memory than there is, is printed with the first layer that has it. One configuration a kernel says little: registers go
with widths, windows, strides and activations.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fastconv import triton as backend
from fastconv.triton.ahead import Report, compile_launch, specialisation
from fastconv.triton.launch import FAMILIES, Launch, record

from .cases import ORDERS, TIERS, Case, Order, select
from .triton_static import meta


@dataclass(frozen=True)
class Found:
    """One compiled kernel: where it was met first, and what the compiler says of it."""

    layer: str
    kernel: str
    tile: dict
    report: Report


# What the grid has no layer of: smooth activations, a residual at every width, larger windows and strides in every direction.
MORE_ORDERS = ORDERS | {
    "gelu": Order("identity", "gelu", "gelu", True, True),
    "silu": Order("silu", "gelu_tanh", "silu", True, True),
}


def _more(direction: str, dtype: str, widths: tuple[int, ...]) -> Iterator[Case]:
    more = {"direction": direction, "dtype": dtype, "batch": 8}
    for channels in widths:
        for order, size, dilation in (("gelu", 64, 1), ("silu", 65, 2), ("xception", 65, 1)):
            yield Case("more", channels, channels, size, size, order=order, residual=True, dilation=dilation, **more)
        for kernel, stride, size, dilation in (
            (3, 1, 129, 2),
            (3, 2, 64, 1),
            (3, 2, 65, 1),
            (5, 1, 64, 1),
            (5, 1, 65, 1),
            (5, 2, 65, 1),
            (7, 1, 65, 1),
        ):
            yield Case("more", channels, channels, size, size, kernel, dilation, stride, order="deeplab", **more)
    # Masks of channels that fill no block.
    yield Case("more", 88, 24, 56, 56, order="mobilenetv3", **more)
    for kernel in (2, 3, 5, 7):
        for op in ("max_pool", "avg_pool"):
            yield Case("more", 128, 128, 65, 65, kernel, 1, 2, kernel // 2, op=op, **more)


def more_cases() -> list[Case]:
    found = []
    for dtype, widths in (("bfloat16", (64, 128, 256)), ("float32", (128,))):
        for direction in ("forward", "forward_backward"):
            found += _more(direction, dtype, widths)
        for direction in ("forward", "backward"):
            for kernel, stride, size, dilation in (
                (3, 1, 65, 2),
                (3, 2, 65, 1),
                (5, 1, 64, 1),
                (5, 1, 65, 1),
                (5, 2, 64, 1),
                (7, 1, 65, 1),
                (9, 1, 64, 1),
            ):
                of_op = {"op": "depthwise", "direction": direction, "dtype": dtype, "batch": 8}
                found.append(Case("more", 128, 128, size, size, kernel, dilation, stride, **of_op))
    return found


TILE = ("ROWS", "BW", "BC", "BM", "BK", "BN", "BO", "RING", "POLYPHASE")


def _run(name: str, *arguments) -> None:
    backend.LAUNCHERS[name](*arguments)


def _separable(case: Case, dtype: torch.dtype, channels_last: bool) -> None:
    order = MORE_ORDERS[case.order]
    x, out = (meta(*shape, dtype=dtype, channels_last=channels_last) for shape in (case.in_shape, case.out_shape))
    weights = meta(case.channels, 1, case.kernel, case.kernel, dtype=dtype), meta(case.out_channels, case.channels, dtype=dtype)
    biases = (
        meta(case.channels, dtype=dtype) if order.depthwise_bias else None,
        meta(case.out_channels, dtype=dtype) if order.pointwise_bias else None,
    )
    residual = out if case.residual else None
    activations = order.input_activation, order.depthwise_activation, order.pointwise_activation
    geometry = (case.stride,) * 2, (case.pad,) * 4, (case.dilation,) * 2, *activations
    # Both precisions of float32: each has tiles of its own.
    for allow_tf32 in (True, False) if dtype == torch.float32 else (True,):
        if case.direction == "forward":
            _run("depthwise_separable_conv2d", x, *weights, *biases, residual, *geometry, allow_tf32)
        else:
            saved = out if order.pointwise_activation in ("relu", "relu6") else None
            mask = [True, True, True, *(bias is not None for bias in biases), case.residual]
            _run("depthwise_separable_conv2d_backward", out, x, *weights, *biases, residual, saved, *geometry, mask, allow_tf32)


def _depthwise(case: Case, dtype: torch.dtype, channels_last: bool) -> None:
    x, out = (meta(*shape, dtype=dtype, channels_last=channels_last) for shape in (case.in_shape, case.out_shape))
    weight, bias = meta(case.channels, 1, case.kernel, case.kernel, dtype=dtype), meta(case.channels, dtype=dtype)
    geometry = (case.stride,) * 2, (case.pad,) * 4, (case.dilation,) * 2, "identity"
    if case.direction == "forward":
        _run("depthwise_conv2d", x, weight, bias, *geometry)
    else:
        _run("depthwise_conv2d_backward", out, x, weight, bias, None, *geometry, [True] * 3)


def _pool(case: Case, dtype: torch.dtype, channels_last: bool) -> None:
    x, out = (meta(*shape, dtype=dtype, channels_last=channels_last) for shape in (case.in_shape, case.out_shape))
    geometry = (case.kernel,) * 2, (case.stride,) * 2, (case.pad,) * 2, (case.dilation,) * 2, False
    divisor = (True, None) if case.op == "avg_pool" else ()
    name = f"shift_stitch_{case.op}2d"
    if case.direction == "forward":
        _run(name, x, *geometry, *divisor, False, 0.0)
    elif case.op == "avg_pool":
        _run(f"{name}_backward", out, x.shape, *geometry, *divisor, False)
    else:
        _run(f"{name}_argmax", x, *geometry, False, 0.0)
        argmax = meta(*case.out_shape, dtype=torch.uint8, channels_last=channels_last)
        _run(f"{name}_backward", out, None, argmax, x.shape, *geometry, False)


def launches(case: Case, family: str) -> Iterator[tuple[str, Launch]]:
    """(name of the layer, launch) of one case in both formats."""
    of_op = {"separable": _separable, "depthwise": _depthwise}.get(case.op, _pool)
    for layout, channels_last in (("contiguous", False), ("channels_last", True)):
        with record(FAMILIES[family]) as recorder:
            of_op(case, getattr(torch, case.dtype), channels_last)
        yield from ((f"{case.id} {layout}", launch) for launch in recorder.launches)


def distinct(cases: list[Case], family: str) -> dict[str, tuple[str, Launch]]:
    """The launches that compile to different kernels, by specialisation."""
    found = {}
    for case in cases:
        for layer, launch in launches(case, family):
            found.setdefault(specialisation(launch), (layer, launch))
    return found


def compiled(cases: list[Case], family: str) -> Iterator[Found]:
    for layer, launch in distinct(cases, family).values():
        tile = {key: launch.arguments[key] for key in TILE if key in launch.arguments} | {"warps": launch.options["num_warps"]}
        yield Found(layer, launch.kernel.__name__, tile, compile_launch(launch, FAMILIES[family]))


def unfit(found: Found, family: str) -> str | None:
    """What is wrong with a compiled kernel, or None."""
    report = found.report
    if not report.spills and report.shared_memory <= FAMILIES[family].shared_memory:
        return None
    of = f"{report.registers} registers, {report.shared_memory} bytes of shared memory, {found.tile}, {found.layer}"
    return f"{found.kernel}: {report.spills} bytes spilled, {of}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="sm_90")
    parser.add_argument("--tier", choices=TIERS, default="full")
    parser.add_argument("--only", help="a regular expression over the ids of cases")
    options = parser.parse_args()
    cases = [case for case in select("cuda", options.tier) + more_cases() if options.only is None or re.search(options.only, case.id)]
    kernels = bad = 0
    for found in compiled(cases, options.family):
        kernels += 1
        if wrong := unfit(found, options.family):
            bad += 1
            print(wrong, flush=True)
    print(f"{options.family}: {kernels} kernels of {len(cases)} cases compiled, {bad} of them spill or do not fit")


if __name__ == "__main__":
    main()
