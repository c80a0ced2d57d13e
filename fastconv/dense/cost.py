"""What a layer costs, dilated and on fragments: FLOPs and bytes by counting, times from short probes of this machine.

A convolution is timed at its own channels, kernel and dilation, on a strip of the dense map and on a few fragments; how fast a library is
there depends on all of these. What a map too large for the caches, or for recycled memory, costs besides is added from three rates.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from .. import functional as FF
from ..spatial import Map, Network, Step
from . import fusion
from .rates import Pair, Rate

# FLOPs of one probe of a convolution at most, some milliseconds; and the rows that a strip has at least.
PROBE_FLOPS, PROBE_ROWS = 2e9, 4
# glibc gives memory of this many bytes back at once and maps it anew, page by page, at the next call.
RECYCLED = 32 << 20


@dataclass(frozen=True)
class Kind:
    """What a time depends on besides the layer: the kind of tensors, and who computes."""

    device: str
    dtype: torch.dtype
    channels_last: bool
    threads: int

    def ones(self, *shape: int) -> Tensor:
        x = torch.ones(shape, device=self.device, dtype=self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.dim() == 4 else x


@dataclass(frozen=True)
class Machine:
    """cached, memory: bytes per second of an elementwise layer on maps in the caches, and on larger ones. fresh: seconds per byte of a
    new map too large for recycled memory. call: seconds a layer costs besides."""

    cached: float
    memory: float
    fresh: float
    call: float


@dataclass(frozen=True)
class Convolution:
    """One convolution, or (pointwise: output channels of the second) a depthwise and a pointwise one as one operator, on maps of a size."""

    channels: int
    out: int
    kernel: Pair
    dilation: Pair
    groups: int
    size: Pair
    pointwise: int | None = None

    @property
    def depthwise(self) -> bool:
        return self.groups == self.channels > 1

    def flops(self) -> float:
        """For each position of the result."""
        own = 2.0 * self.out * self.channels // self.groups * self.kernel[0] * self.kernel[1]
        return own + (2.0 * self.out * self.pointwise if self.pointwise else 0.0)


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
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            Recorder(network.graph_module).run(torch.empty(batch, channels, *size, dtype=dtype))
    except RuntimeError as error:
        raise ValueError(
            f"example_input: the network does not run on {channels} channels of {size[0]}x{size[1]} pixels ({str(error).splitlines()[0]}); "
            "pass an image that it takes"
        ) from error
    return out


def dense_elements(shape: tuple[int, ...], rate: Rate, axes: Pair) -> float:
    """Elements of the dense map where the strided one has `shape`."""
    count = 1.0
    for axis, length in enumerate(shape):
        count *= length
        if axis - len(shape) in axes:
            count *= rate.ratio[axes.index(axis - len(shape))]
    return count


def dense_sizes(network: Network, rate: dict[fx.Node, Rate], size: Pair) -> dict[fx.Node, Pair]:
    """Rows and columns of the dense maps: a window without padding leaves fewer than the fragments' tails fill up."""
    out: dict[fx.Node, Pair] = {}
    for node, step in network.steps.items():
        if step.role == "input":
            out[node] = size
            continue
        if not isinstance(network.values[node], Map):
            continue
        source = tuple(min(out[s][axis] for s in step.sources) for axis in (0, 1))
        before, window = rate[step.sources[0]], step.window
        if window is not None:
            kept = [after // was for after, was in zip(rate[node].kept, before.kept, strict=True)]
            strided = [-(-source[axis] // before.ratio[axis]) for axis in (0, 1)]
            window = window.resolved(strided) if window.same else window
            source = tuple(-(-window.dense_length(source[axis], axis, before.ratio[axis]) // kept[axis]) for axis in (0, 1))
        out[node] = source
    return out


def predict(network: Network, rate: dict[fx.Node, Rate], sizes: dict, kind: Kind, cache: float) -> dict[fx.Node, Cost]:
    """Costs of every step that works on a changed map; layers that run as one are one step, under the last one's node."""
    elements = {n: dense_elements(sizes[n], rate[n], network.values[n].axes) for n in sizes}
    chains = {c.last: c for c in fusion.find(network.graph_module.graph, network.graph_module.get_submodule)}
    inner = {n for c in chains.values() for part in (c, c.depthwise) if part for n in part.nodes if n is not c.last}
    image = sizes[network.input]
    spans = dense_sizes(network, rate, image[2:])
    dense = {n: elements[n] * _share(spans[n], sizes[n], rate[n], network.values[n].axes) for n in elements}
    model = _Model(network, rate, sizes, elements, dense, spans, machine(kind), kind, cache)
    out: dict[fx.Node, Cost] = {}
    for node, step in network.steps.items():
        if node in elements and step.role != "input" and node not in inner and not rate[node].untouched:
            out[node] = model.chain(chains[node]) if node in chains else model.step(step)
    return out


def _share(span: Pair, shape: tuple[int, ...], rate: Rate, axes: Pair) -> float:
    """Of what the fragments hold, tails included, the part that is the dense map."""
    rows, columns = (shape[axis] * ratio for axis, ratio in zip(axes, rate.ratio, strict=True))
    return span[0] * span[1] / (rows * columns)


@dataclass
class _Model:
    """elements: of every map as fragments, tails included; dense: without; spans: rows and columns of the dense maps."""

    network: Network
    rate: dict
    sizes: dict
    elements: dict
    dense: dict
    spans: dict
    machine: Machine
    kind: Kind
    cache: float

    def step(self, step: Step) -> Cost:
        if step.window is not None and step.window.kind == "conv":
            return self.convolution(step, step.node, None, None)
        held, moved = (self.moved([*set(step.sources), step.node], of) for of in (self.elements, self.dense))
        flops, kind = self.dense[step.node], "elementwise"
        if step.window is not None and step.window.kind != "pad":
            kind, flops = f"{step.window.kind} pool", flops * step.window.kernel[0] * step.window.kernel[1]
        dilated = self.traffic(moved) + self.allocation(self.dense[step.node]) + self.machine.call
        return Cost(step.name, kind, flops, moved, dilated, held / self.machine.cached + self.calls(held))

    def moved(self, nodes: list[fx.Node], of: dict) -> float:
        return sum(of[n] for n in nodes) * self.itemsize

    def chain(self, chain: fusion.Chain) -> Cost:
        front = chain.depthwise or chain
        return self.convolution(self.network.steps[front.conv], chain.last, chain, chain.conv if chain.depthwise else None)

    def convolution(self, step: Step, last: fx.Node, chain: fusion.Chain | None, pointwise: fx.Node | None) -> Cost:
        """A convolution at every position: on the dense map, and on its fragments with their dealing out behind."""
        source, window = step.sources[0], step.window
        _, channels, *fragment = self.sizes[source]
        ratio = self.rate[source].ratio
        weight = _weight_shape(self.network, step.node)
        layer = Convolution(
            channels, weight[0], window.kernel, window.dilation, channels // weight[1], tuple(fragment),
            _weight_shape(self.network, pointwise)[0] if pointwise is not None else None,
        )  # fmt: skip
        spread = replace(layer, dilation=(window.dilation[0] * ratio[0], window.dilation[1] * ratio[1]), size=self.spans[source])
        maps = [source, last, *([last] if chain and chain.residual else [])]
        held, moved = (self.moved(maps, of) for of in (self.elements, self.dense))
        passes = 0
        if chain is not None and not layer.pointwise:
            passes = 2 * (bool(chain.residual) + (chain.activation != "identity" and not layer.depthwise))
        each = layer.pointwise or layer.out
        dilated = self.dense[last] / each * seconds_per_position(spread, self.kind)
        dilated += self.traffic(passes * self.dense[last] * self.itemsize) + self.allocation(self.dense[last])
        dilated += max(0.0, self.traffic(moved) - moved / self.machine.cached)
        fragments = self.elements[last] / each * seconds_per_position(layer, self.kind, fragments=True)
        dealt = 2 if window.stride != (1, 1) else 0
        fragments += (passes + dealt) * self.elements[last] * self.itemsize / self.machine.cached
        kind = "separable" if layer.pointwise else "depthwise" if layer.depthwise else "1x1" if layer.kernel == (1, 1) else "conv"
        flops = self.dense[last] / each * layer.flops()
        return Cost(step.name, kind, flops, moved, dilated + self.machine.call, fragments + self.calls(held))

    @property
    def itemsize(self) -> int:
        return self.kind.dtype.itemsize

    def calls(self, moved: float) -> float:
        """Of a layer on fragments: they are taken through it as many at a time as the caches hold."""
        return self.machine.call * max(1.0, moved / self.cache)

    def traffic(self, moved: float) -> float:
        return moved / (self.machine.cached if moved < self.cache else self.machine.memory)

    def allocation(self, elements: float) -> float:
        size = elements * self.itemsize
        return size * self.machine.fresh if size > RECYCLED else 0.0


def _weight_shape(network: Network, node: fx.Node) -> tuple[int, ...]:
    if node.op == "call_module":
        return tuple(network.graph_module.get_submodule(node.target).weight.shape)
    return tuple(network.values[node.args[1] if len(node.args) > 1 else node.kwargs["weight"]].value.shape)


def cache_bytes() -> int:
    """What the maps of one run may take to stay in the processor's caches: the size of the last level, or 16 MiB where that is not told."""
    try:
        with open("/sys/devices/system/cpu/cpu0/cache/index3/size", encoding="ascii") as file:
            return int(file.read().strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 16 << 20


@lru_cache(maxsize=8)
def machine(kind: Kind) -> Machine:
    """Probes this machine once for each kind of tensor: some tens of milliseconds."""
    with torch.inference_mode():
        small, large = kind.ones(1, 64, 64, 64), kind.ones(1, 64, 512, 512)
        in_place = _seconds(lambda: F.relu_(large), kind.device)
        return Machine(
            cached=2 * small.nbytes / _seconds(lambda: F.relu_(small), kind.device),
            memory=2 * large.nbytes / in_place,
            fresh=max(0.0, _seconds(lambda: F.relu(large), kind.device, 2) - in_place) / large.nbytes,
            call=_seconds(lambda: F.relu(small[:, :1, :1, :1]), kind.device),
        )


@lru_cache(maxsize=4096)
def seconds_per_position(layer: Convolution, kind: Kind, fragments: bool = False) -> float:
    """Time of a convolution over the positions of its result: a strip of the map, or a few whole fragments."""
    (height, width), (reach_y, reach_x) = layer.size, (d * (k - 1) for d, k in zip(layer.dilation, layer.kernel, strict=True))
    pads = (reach_y // 2, reach_x // 2)
    # As many positions as one run through the fragments has, whose maps come from the last cache and not from the first.
    ends = (layer.channels + (layer.pointwise or layer.out)) * kind.dtype.itemsize
    wanted = min(PROBE_FLOPS / layer.flops(), cache_bytes() / 2 / ends)
    if fragments:
        batch, rows = max(4, round(wanted / (height * width))), height
    else:
        batch, rows = 1, min(height, max(PROBE_ROWS, round(wanted / width)))
    # A strip has rows of its own above and below; only what lies beside the map is padding.
    strip, padding = (height, pads) if fragments or rows == height else (rows + reach_y, (0, pads[1]))
    with torch.inference_mode():
        x = kind.ones(batch, layer.channels, strip, width)
        weight, bias = kind.ones(layer.out, layer.channels // layer.groups, *layer.kernel), kind.ones(layer.out)
        if layer.pointwise:
            second, shift = kind.ones(layer.pointwise, layer.out, 1, 1), kind.ones(layer.pointwise)

            def run() -> Tensor:
                return FF.depthwise_separable_conv2d(x, weight, second, bias, shift, 1, padding, layer.dilation)
        elif layer.depthwise:

            def run() -> Tensor:
                return FF.depthwise_conv2d(x, weight, bias, 1, padding, layer.dilation)
        else:

            def run() -> Tensor:
                return F.conv2d(x, weight, bias, 1, padding, layer.dilation, layer.groups)

        # A network writes its next map elsewhere; over the last one, still in the first cache, would be flattering.
        kept = deque((run(), run()), maxlen=3)
        return _seconds(lambda: kept.append(run()), kind.device, 3, warm=False) / (kept[0].shape[0] * kept[0].shape[2] * kept[0].shape[3])


def _seconds(run: Callable[[], object], device: str, rounds: int = 5, warm: bool = True) -> float:
    """The quickest of a few runs, after one that warms up."""
    best = float("inf")
    for index in range(rounds + warm):
        _synchronize(device)
        start = time.perf_counter()
        run()
        _synchronize(device)
        if index or not warm:
            best = min(best, time.perf_counter() - start)
    return best


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def measure(models: dict[str, Callable[[Tensor], object]], x: Tensor, rounds: int = 3) -> dict[str, float]:
    """Seconds for a run of each model, the quickest of a few; they take turns, so that what else the machine does meets all alike."""
    best = dict.fromkeys(models, float("inf"))
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name, model in models.items():
                seconds = _seconds(lambda model=model: model(x), x.device.type, 1, warm=False)
                if turn:
                    best[name] = min(best[name], seconds)
    return best
