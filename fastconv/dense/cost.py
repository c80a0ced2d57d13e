"""What a layer costs, dilated and on fragments: FLOPs and bytes by counting, times from a few probes of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from .. import functional as FF
from ..spatial import Map, Network, Step
from .rates import Pair, Rate


@dataclass(frozen=True)
class Machine:
    """Rates in units per second: bytes of elementwise traffic on maps that fit the caches and on fresh large ones, depthwise bytes,
    FLOPs."""

    cached: float
    fresh: float
    depthwise: float
    pointwise: float
    convolution: float
    dilated: float
    small_maps: float
    call: float  # seconds a layer costs besides


@dataclass(frozen=True)
class Cost:
    """One step of the dense network. flops, bytes: of the whole dense map; dilated, fragments: predicted seconds."""

    name: str
    kind: str
    flops: float
    bytes: float
    dilated: float
    fragments: float


def shapes(network: Network, size: Pair, batch: int, channels: int) -> dict[fx.Node, tuple[int, ...]]:
    """Shapes of the strided network's maps, from a run without numbers."""
    out: dict[fx.Node, tuple[int, ...]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node):
            value = super().run_node(node)
            if isinstance(network.values.get(node), Map):
                first = value[0] if isinstance(value, (tuple, list)) else value
                out[node] = tuple(first.shape)
            return value

    dtype = next((p.dtype for p in network.graph_module.parameters()), torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        Recorder(network.graph_module).run(torch.empty(batch, channels, *size, dtype=dtype))
    return out


def dense_elements(shape: tuple[int, ...], rate: Rate, axes: Pair) -> float:
    """Elements of the dense map where the strided one has `shape`."""
    count = 1.0
    for axis, length in enumerate(shape):
        count *= length
        if axis - len(shape) in axes:
            count *= rate.ratio[axes.index(axis - len(shape))]
    return count


def predict(network: Network, rate: dict[fx.Node, Rate], sizes: dict, machine: Machine, cache: float, itemsize: int) -> dict[fx.Node, Cost]:
    """Costs of every step that works on a changed map."""
    elements = {n: dense_elements(sizes[n], rate[n], network.values[n].axes) for n in sizes}
    out: dict[fx.Node, Cost] = {}
    for node, step in network.steps.items():
        if node in elements and step.role != "input" and not (rate[node].untouched):
            out[node] = _step_cost(step, network, rate, elements, sizes, machine, cache, itemsize)
    return out


def _step_cost(step: Step, network: Network, rate: dict, elements: dict, sizes: dict, m: Machine, cache: float, itemsize: int) -> Cost:
    node, source = step.node, step.sources[0]
    # A stride given up leaves every position to be computed.
    computed = elements[node]
    moved = (sum(elements[s] for s in set(step.sources)) + computed) * itemsize
    traffic = m.cached if moved < cache else m.fresh
    kind, flops, compute, on_fragments, more = "elementwise", computed, moved / traffic, moved / m.cached, 0.0
    window = step.window
    if window is not None and window.kind != "pad":
        taps = window.kernel[0] * window.kernel[1]
        if window.stride != (1, 1):
            more = 2 * computed * itemsize / m.cached
        kind, flops = window.kind, computed * taps
        if window.kind == "conv":
            weight = _weight(network, node)
            flops = 2 * computed * weight[1] * taps
            depthwise = weight[1] == 1 and weight[0] >= sizes[source][1] > 1
            dilated = rate[source].ratio != (1, 1) and taps > 1
            speed = m.pointwise if taps == 1 else m.dilated if dilated else m.convolution
            if depthwise:
                kind = "depthwise"
                compute = moved / m.depthwise * (m.cached / traffic)
                on_fragments = moved / m.depthwise
            else:
                kind = "1x1" if taps == 1 else "conv"
                compute = max(flops / speed, moved / traffic)
                on_fragments = max(flops / (m.pointwise if taps == 1 else m.small_maps), moved / m.cached)
        else:
            compute, on_fragments = 2 * compute, 2 * on_fragments
            more = 0.0
    return Cost(step.name, kind, flops, moved, compute + m.call, on_fragments + more + m.call)


def _weight(network: Network, node: fx.Node) -> tuple[int, ...]:
    if node.op == "call_module":
        return tuple(network.graph_module.get_submodule(node.target).weight.shape)
    return tuple(network.values[node.args[1] if len(node.args) > 1 else node.kwargs["weight"]].value.shape)


def cache_bytes() -> int:
    """What the maps of one run may take to stay in the processor's caches: half of the last level, or 8 MiB where that is not told."""
    try:
        with open("/sys/devices/system/cpu/cpu0/cache/index3/size", encoding="ascii") as file:
            return int(file.read().strip().removesuffix("K")) * 1024 // 2
    except (OSError, ValueError):
        return 8 << 20


@lru_cache(maxsize=8)
def machine(device: str, dtype: torch.dtype, channels_last: bool, threads: int) -> Machine:
    """Probes this machine once for each kind of tensor: about a quarter of a second."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def tensor(*shape: int) -> Tensor:
        x = torch.randn(shape, device=device).to(dtype)
        return x.contiguous(memory_format=memory_format) if x.dim() == 4 else x

    with torch.inference_mode():
        small, large = tensor(1, 64, 64, 64), tensor(1, 64, 512, 512)
        size = small.element_size()
        x, one, three = tensor(1, 128, 56, 56), tensor(128, 128, 1, 1), tensor(128, 128, 3, 3)
        fragments, depth = tensor(64, 128, 7, 7), tensor(128, 1, 3, 3)
        macs = 2 * 128 * 128 * 56 * 56
        return Machine(
            cached=2 * small.numel() * size / _seconds(lambda: F.relu6(small), device),
            fresh=2 * large.numel() * size / _seconds(lambda: F.relu6(large), device, 2),
            depthwise=2 * x.numel() * size / _seconds(lambda: FF.depthwise_conv2d(x, depth, padding=1), device),
            pointwise=macs / _seconds(lambda: F.conv2d(x, one), device),
            convolution=9 * macs / _seconds(lambda: F.conv2d(x, three, None, 1, 1), device),
            dilated=9 * macs / _seconds(lambda: F.conv2d(x, three, None, 1, 8, 8), device),
            small_maps=9 * macs / _seconds(lambda: F.conv2d(fragments, three, None, 1, 1), device),
            call=_seconds(lambda: F.relu6(x[:, :1, :1, :1]), device),
        )


def _seconds(run: Callable[[], object], device: str, rounds: int = 5) -> float:
    """The quickest of a few runs, after one that warms up."""
    best = float("inf")
    for index in range(rounds + 1):
        _synchronize(device)
        start = time.perf_counter()
        run()
        _synchronize(device)
        if index:
            best = min(best, time.perf_counter() - start)
    return best


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def measure(model, x: Tensor, rounds: int = 3) -> float:
    """Seconds for a run of `model`, the quickest of a few."""
    with torch.inference_mode():
        return _seconds(lambda: model(x), x.device.type, rounds)
