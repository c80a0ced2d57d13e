"""Which implementation a layer gets, what it costs at least, and why not another one.

  python -m fastconv explain --op separable --shape 1,728,33,33 --out-channels 728 --kernel 3 --dilation 2 --format channels_last
  python -m fastconv explain --op max-pool --shape 1,64,256,256 --kernel 3 --stride 2 --padding 1
  python -m fastconv explain --shape 8,128,64,64 --dtype bfloat16 --format channels_last --device sm_90

The floor is the larger of operations over the machine's arithmetic rate and bytes over its copy bandwidth, each tensor moved once;
both rates are measured on the spot, the copy on as many bytes as the layer moves. With a kind of GPU as --device none has to be there:
rates are those of its data sheet, and the kernels that would be launched are compiled for it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

import fastconv.functional as FF
from fastconv import _arguments as check
from fastconv import _ops, backends
from fastconv.cli import predict
from fastconv.reference import ACTIVATIONS

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def pair(text: str) -> tuple[int, int]:
    values = numbers(text)
    if len(values) not in (1, 2):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or two numbers with a comma between")
    return values[0], values[-1]


def shape(text: str) -> tuple[int, ...]:
    values = numbers(text)
    if len(values) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not N,C,H,W")
    return values


def padding(text: str) -> str | tuple[int, int]:
    return text if text in ("same", "valid") else pair(text)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", choices=LAYERS, default="separable", help="default: %(default)s")
    parser.add_argument("--shape", type=shape, required=True, help="N,C,H,W of the input")
    parser.add_argument("--out-channels", type=int, help="of the pointwise part (default: C)")
    parser.add_argument("--depth-multiplier", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--kernel", type=pair, default=(3, 3), help="K or Kh,Kw (default: 3)")
    parser.add_argument("--stride", type=pair, help="S or Sh,Sw (default: 1 for convolutions, the kernel for pools)")
    parser.add_argument("--dilation", type=pair, default=(1, 1), help="D or Dh,Dw (default: 1)")
    parser.add_argument("--padding", type=padding, help="P, Ph,Pw, same or valid (default: what keeps the size; pools: 0)")
    for name in ("input", "depthwise", "pointwise"):
        parser.add_argument(f"--{name}-activation", choices=ACTIVATIONS, default="identity", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--residual", action="store_true", help="a tensor of the output's shape is added")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    parser.add_argument("--format", choices=FORMATS, default="contiguous", help="memory format (default: %(default)s)")
    kinds = ", ".join(predict.KINDS)
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help=f"cpu, cuda, cuda:1, or {kinds} (default: %(default)s)"
    )
    parser.add_argument("--no-compile", action="store_true", help="do not compile GPU kernels for their registers and instructions")
    parser.add_argument("--no-floor", action="store_true", help="do not measure the machine")
    parser.add_argument("--json", action="store_true", help="one JSON object")


@dataclass
class Layer:
    """A call of an operator on meta tensors: its name, arguments and results, and what any implementation of it must do."""

    op: str
    arguments: tuple  # as the operator takes them
    inputs: list[Tensor]
    output: Tensor
    flops: int
    unfused: list[Tensor]  # maps that PyTorch writes to memory and reads back
    plan: str  # the function of fastconv._C that tells what the CPU kernel decides for such a layer,
    plan_arguments: dict  # and what that function is asked

    @property
    def geometry(self) -> tuple:
        """What the class of a layer in a table of measured choices goes by."""
        return self.output.shape[1], self.plan_arguments["kernel"], self.plan_arguments["stride"], self.plan_arguments["dilation"]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.inputs, self.output))

    @property
    def unfused_bytes(self) -> int:
        return self.bytes + 2 * sum(tensor.nbytes for tensor in self.unfused)


def conv_options(options: argparse.Namespace) -> dict:
    # "same" is defined at stride 1 only; the usual padding of a strided layer is the same number.
    keep = tuple(d * (k - 1) // 2 for k, d in zip(options.kernel, options.dilation, strict=True))
    return {
        "stride": options.stride or (1, 1),
        "padding": keep if options.padding is None else options.padding,
        "dilation": options.dilation,
    }


def depthwise_weight(options: argparse.Namespace, x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1] * options.depth_multiplier, 1, *options.kernel)


def conv_plan(options: argparse.Namespace, x: Tensor, weight: Tensor) -> dict:
    stride, pads, dilation, _ = check.conv("explain", x, weight, **conv_options(options))
    return {"multiplier": options.depth_multiplier, "kernel": options.kernel, "stride": stride, "padding": pads, "dilation": dilation}


def geometry(plan: dict) -> tuple:
    return plan["stride"], plan["padding"], plan["dilation"]


def depthwise(options: argparse.Namespace, x: Tensor) -> Layer:
    weight = depthwise_weight(options, x)
    out = FF.depthwise_conv2d(x, weight, activation=options.depthwise_activation, **conv_options(options))
    flops = 2 * out.numel() * math.prod(options.kernel)
    asked = conv_plan(options, x, weight)
    arguments = (x, weight, None, *geometry(asked), options.depthwise_activation)
    return Layer("depthwise_conv2d", arguments, [x, weight], out, flops, [], "plan_depthwise", asked)


def separable(options: argparse.Namespace, x: Tensor) -> Layer:
    weight = depthwise_weight(options, x)
    out_channels = options.out_channels or x.shape[1]
    pointwise = x.new_empty(out_channels, weight.shape[0])

    activations = {name: getattr(options, name) for name in ("input_activation", "depthwise_activation", "pointwise_activation")}

    def call(residual: Tensor | None) -> Tensor:
        return FF.depthwise_separable_conv2d(x, weight, pointwise, residual=residual, **activations, **conv_options(options))

    out = call(None)
    residual = [torch.empty_like(out)] if options.residual else []
    middle = x.new_empty(out.shape[0], weight.shape[0], *out.shape[2:])
    flops = 2 * middle.numel() * math.prod(options.kernel) + 2 * out.numel() * weight.shape[0]
    asked = conv_plan(options, x, weight)
    asked |= {"out_channels": out_channels, "input_activation": options.input_activation}
    out = call(*residual or [None])
    allow_tf32 = x.dtype == torch.float32 and check.convolutions_take_tf32()
    arguments = (x, weight, pointwise, None, None, *(residual or [None]), *geometry(asked), *activations.values(), allow_tf32)
    return Layer("depthwise_separable_conv2d", arguments, [x, weight, pointwise, *residual], out, flops, [middle], "plan_separable", asked)


def pool(function) -> Layer:
    def build(options: argparse.Namespace, x: Tensor) -> Layer:
        stride, pads = options.stride or options.kernel, (0, 0) if options.padding is None else options.padding
        out = function(x, options.kernel, stride, pads, options.dilation)
        # One pass along each axis is the least that is known; a comparison or an addition counts as one operation.
        flops = out.numel() * (sum(options.kernel) - 2)
        asked = {"kernel": options.kernel, "stride": stride, "padding": pads, "dilation": options.dilation}
        asked["max"] = function is FF.shift_stitch_max_pool2d
        checked = check.pool("explain", x, options.kernel, stride, pads, options.dilation, False)
        arguments = (x, *checked, False, *(() if asked["max"] else (True, None)), False, 0.0)
        return Layer(function.__name__, arguments, [x], out, flops, [], "plan_pool", asked)

    return build


LAYERS = {
    "separable": separable,
    "depthwise": depthwise,
    "max-pool": pool(FF.shift_stitch_max_pool2d),
    "avg-pool": pool(FF.shift_stitch_avg_pool2d),
}


def kernel(layer: Layer, options: argparse.Namespace, backend: str) -> tuple[str, dict | None]:
    """A word on what serves the layer, and what the CPU kernel decides for it: as for a call made now, with this process's threads."""
    if backend == "reference" or (backend == "cpu" and options.dtype == "float64" and layer.plan != "plan_pool"):
        return "PyTorch's own operators, one after the other", None
    if backend != "cpu":
        return f"fastconv's {backend} kernels", None
    if not layer.output.numel():
        return "none: the output is empty", None
    try:
        plan_of = getattr(introspection(), layer.plan)
    except ImportError as error:
        return f"fastconv's CPU kernels; the plan is not known ({error})", None
    plan = plan_of(input=options.shape, dtype=options.dtype, layout=options.format, threads=torch.get_num_threads(), **layer.plan_arguments)
    return plan.pop("kernel"), plan


def introspection():
    """fastconv._C; an ImportError where nothing was compiled, and not the module of another installation that may be on the path."""
    if _ops.compiled_refusal is not None:
        raise ImportError(_ops.compiled_refusal)
    from fastconv import _C

    return _C


def best_seconds(call, device: str, budget: float = 0.15) -> float:
    def once() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()
    end, best = time.perf_counter() + budget, once()
    while time.perf_counter() < end:
        best = min(best, once())
    return best


def arithmetic_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s: the best of a matrix product and, on a CPU, of multiply-adds that touch no memory."""
    size = 1024 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    rate = 2 * size**3 / best_seconds(lambda: left @ right, device)
    probe = register_probe(dtype) if device == "cpu" else None
    if probe is None:
        return rate
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        done = []
        seconds = best_seconds(lambda: done.append(sum(pool.map(probe, [200_000] * threads))), device)
    return max(rate, done[-1] / seconds)


def register_probe(dtype: torch.dtype):
    try:
        inside = introspection()
    except ImportError:
        return None
    return {torch.float32: inside.fma_flops, torch.bfloat16: inside.bf16_dot_flops}.get(dtype)


def copy_rate(device: str, footprint: int) -> float:
    """Bytes per second, read and written, of a copy that touches as much memory as the layer does."""
    source = torch.ones(max(footprint // 2, 2**16), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    # Many in a row: a small copy takes less time than looking at the clock does.
    repeats = 1 + 2**23 // source.nbytes
    return 2 * source.nbytes * repeats / best_seconds(lambda: [target.copy_(source) for _ in range(repeats)], device)


def floor(layer: Layer, device: str, dtype: torch.dtype) -> dict:
    if device in predict.KINDS:
        arithmetic, copy = predict.rates(device, dtype, bool(layer.unfused))
    else:
        # Only the pointwise product can run on units that are faster in 16 bits; everything else is float32 arithmetic.
        arithmetic = arithmetic_rate(device, dtype if layer.unfused or dtype == torch.float64 else torch.float32)
        copy = copy_rate(device, layer.bytes)
    compute, memory = layer.flops / arithmetic, layer.bytes / copy
    return {
        "flops_per_second": arithmetic,
        "bytes_per_second": copy,
        "seconds": max(compute, memory),
        "bound": "compute" if compute > memory else "memory",
    }


def explain(options: argparse.Namespace) -> dict:
    """Everything `explain` prints, as plain data."""
    dtype = DTYPES[options.dtype]
    x = torch.empty(options.shape, dtype=dtype, device="meta").to(memory_format=FORMATS[options.format])
    # On meta tensors only shapes are computed, and every argument is checked as a real call would.
    with backends.use("reference"):
        layer = LAYERS[options.op](options, x)
    device = "cuda" if options.device in predict.KINDS else options.device
    choice = backends.explain_choice(layer.op, device, dtype, backends.key_of(layer.op, x, *layer.geometry))
    name, plan = kernel(layer, options, choice.backend)
    candidates = predict.candidates(layer, choice, options.device, not options.no_compile) if device.startswith("cuda") else []
    return {
        "op": layer.op,
        "input": list(x.shape),
        "output": list(layer.output.shape),
        "dtype": options.dtype,
        "format": options.format,
        "device": options.device,
        "backend": choice.backend,
        "refused": choice.refused,
        "kernel": name,
        "plan": plan,
        "candidates": candidates,
        "flops": layer.flops,
        "bytes": layer.bytes,
        "bytes_unfused": layer.unfused_bytes,
        "floor": None if options.no_floor else floor(layer, options.device, dtype),
    }


def run(options: argparse.Namespace) -> int:
    try:
        facts = explain(options)
    except (ValueError, TypeError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    print(f"{facts['op']}, {facts['dtype']} {facts['format']}, on {facts['device']}: {facts['input']} -> {facts['output']}")
    print(f"backend   {facts['backend']}")
    for name, reason in facts["refused"].items():
        print(f"          not {name}: {reason}")
    print(f"kernel    {facts['kernel']}")
    for name, value in (facts["plan"] or {}).items():
        print(f"          {name.replace('_', ' ')}: {value}")
    for candidate in facts["candidates"]:
        print("\n".join(predict.lines(candidate)))
    print(f"work      {facts['flops'] / 1e6:,.1f} MFLOP, {facts['bytes'] / 1e6:,.2f} MB: {facts['flops'] / facts['bytes']:.1f} FLOP a byte")
    if facts["bytes_unfused"] > facts["bytes"]:
        print(f"          as separate layers {facts['bytes_unfused'] / 1e6:,.2f} MB")
    if facts["floor"]:
        bound = facts["floor"]
        print(f"floor     {1e6 * bound['seconds']:,.1f} microseconds, set by {bound['bound']}")
        rates = f"{bound['flops_per_second'] / 1e9:,.0f} GFLOP/s, {bound['bytes_per_second'] / 1e9:,.1f} GB/s copy"
        source = predict.source(facts["device"]) if facts["device"] in predict.KINDS else "measured here just now"
        print(f"          {source}: {rates}")
    return 0
