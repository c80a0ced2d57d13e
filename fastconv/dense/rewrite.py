"""Writes the dense network's graph: the strided one's, with strides taken out and what follows them dilated or run on fragments."""

from __future__ import annotations

import torch.nn.functional as F
from torch import fx, nn

from .. import _windows as windows
from .._windows import Window
from ..spatial import Map, Network, NotConvertible, Step
from . import layers
from .model import put_attribute, put_module
from .rates import Pair, Rate

ONE: Pair = (1, 1)


def quotient(a: Pair, b: Pair) -> Pair:
    return a[0] // b[0], a[1] // b[1]


def executed_as(window: Window, kept: Pair, before: Pair, after: Pair) -> Pair:
    """The layout that a window runs on, between maps held as `before` and `after`."""
    if kept != ONE or window.mirrored:
        # What a kept stride leaves out is every other row of the dense map, not of each fragment; what mirrored padding copies is its edge.
        return ONE
    if window.stride == ONE:
        return after
    # The fragments that the stride makes those behind it of, where it does.
    divides = after[0] % window.stride[0] == 0 == after[1] % window.stride[1]
    return quotient(after, window.stride) if divides and after != ONE else before


class Rewriter:
    """One pass over the steps. layout: for every map, the total stride of the fragments it is held as; (1, 1) is a plain tensor."""

    def __init__(self, network: Network, rates: dict[fx.Node, Rate], layout: dict[fx.Node, Pair], least: Pair):
        self.network, self.rates, self.layout, self.least = network, rates, layout, least
        self.root = network.graph_module
        self.modules: dict[str, nn.Module] = {}
        self.graph = fx.Graph()
        self.held: dict[tuple[fx.Node, Pair | None], fx.Node] = {}
        # The new graph's nodes that give Fragments: of which map, and their total stride.
        self.fragments: dict[fx.Node, tuple[fx.Node, Pair]] = {}
        self.sizes: dict[fx.Node, tuple] = {}
        self.calls = _call_counts(self.root.graph)

    def run(self) -> tuple[nn.Module, fx.Graph]:
        """The modules that the new graph calls, and the graph."""
        for node in self.root.graph.nodes:
            if node.op == "output":
                self.graph.output(fx.map_arg(node.args[0], lambda n: self.get(n, ONE)))
            elif node in self.network.steps and not isinstance(self.network.values[node], Map):
                self.held[node, None] = self.copy(node, ONE)
            elif node in self.network.steps:
                self.step(node, self.network.steps[node])
            else:
                self.held[node, None] = self.copy(node, ONE)
        holder = nn.Module()
        for name, module in self.modules.items():
            put_module(holder, name, module)
        for node in self.graph.nodes:
            if node.op == "get_attr":
                put_attribute(holder, node.target, self.root)
        return holder, self.graph

    # ---- values --------------------------------------------------------------------------------------------------------------------------

    def get(self, node: fx.Node, layout: Pair) -> fx.Node:
        """The value of `node`, held as `layout`; stitched or dealt out where it is not."""
        if not isinstance(self.network.values[node], Map):
            return self.held[node, None]
        if (node, layout) not in self.held:
            self.held[node, layout] = other = self.relayout(self.held[node, self.layout[node]], self.layout[node], layout)
            if layout != ONE:
                self.fragments[other] = (node, layout)
        return self.held[node, layout]

    def relayout(self, value: fx.Node, now: Pair, wanted: Pair) -> fx.Node:
        if now == wanted:
            return value
        if now == ONE:
            return self.graph.call_function(layers.enter, (value, wanted))
        if wanted[0] % now[0] == 0 and wanted[1] % now[1] == 0:
            return self.graph.call_method("shift", (value, quotient(wanted, now)))
        return self.relayout(self.graph.call_method("stitch", (value,)), ONE, wanted)

    def put(self, node: fx.Node, value: fx.Node, now: Pair) -> None:
        self.held[node, now] = value
        if now != ONE and self.network.values[node].count is None:
            self.fragments[value] = (node, now)
        if now != self.layout[node]:
            self.held[node, self.layout[node]] = other = self.relayout(value, now, self.layout[node])
            if self.layout[node] != ONE:
                self.fragments[other] = (node, self.layout[node])

    def copy(self, node: fx.Node, layout: Pair) -> fx.Node:
        """The node as it is, its maps held as `layout`."""
        new = self.graph.node_copy(node, lambda n: self.get(n, layout))
        if node.op == "call_module":
            self.modules.setdefault(node.target, self.root.get_submodule(node.target))
        return new

    # ---- steps ---------------------------------------------------------------------------------------------------------------------------

    def step(self, node: fx.Node, step: Step) -> None:
        if step.role == "input":
            image = self.graph.node_copy(node, lambda n: n)
            self.put(node, self.graph.call_function(layers.check_size, (image, self.least)), ONE)
            self.sizes[node] = ("input", 0, 0)
            return
        source = step.sources[0]
        self.sizes[node] = self.sizes[source]
        if step.window is not None:
            self.window(node, step)
        elif step.head == "drop":
            self.put(node, self.get(source, self.layout[node]), self.layout[node])
        elif step.head in ("linear", "batch_norm"):
            self.put(node, self.head(node, step), self.layout[node])
        elif step.role == "merge":
            self.merge(node, step)
        else:
            self.put(node, self.copy(node, self.layout[node]), self.layout[node])

    def head(self, node: fx.Node, step: Step) -> fx.Node:
        x = self.get(step.sources[0], self.layout[node])
        if node.op == "call_function":
            weight, bias = (*node.args[1:], *node.kwargs.values(), None)[:2]
            return self.graph.call_function(
                layers.linear_as_conv, (x, self.get(weight, ONE), self.get(bias, ONE) if bias is not None else None)
            )
        module = self.root.get_submodule(node.target)

        def attribute(name: str):
            return self.graph.get_attr(f"{node.target}.{name}") if getattr(module, name) is not None else None

        self.modules.setdefault(node.target, module)
        if step.head == "linear":
            return self.graph.call_function(layers.linear_as_conv, (x, attribute("weight"), attribute("bias")))
        stored = [attribute(name) for name in ("running_mean", "running_var", "weight", "bias")]
        return self.graph.call_function(layers.batch_norm, (x, *stored, module.eps))

    def merge(self, node: fx.Node, step: Step) -> None:
        layout = self.layout[node]
        rate = self.rates[node]
        sizes = {self.sizes[s] for s in step.sources}
        if rate.untouched or len(sizes) == 1:
            self.put(node, self.copy(node, layout), layout)
            return
        sources = list(dict.fromkeys(step.sources))
        cropped = self.graph.call_function(layers.crop_to_common, ([self.get(s, layout) for s in sources], rate.ratio))
        parts = {s: self.graph.call_function(_getitem, (cropped, i)) for i, s in enumerate(sources)}
        new = self.graph.node_copy(node, lambda n: parts[n] if n in parts else self.get(n, layout))
        if node.op == "call_module":
            self.modules.setdefault(node.target, self.root.get_submodule(node.target))
        self.put(node, new, layout)
        self.sizes[node] = (("common", node), 0, 0)

    def window(self, node: fx.Node, step: Step) -> None:
        source, window = step.sources[0], step.window
        before, after = self.rates[source], self.rates[node]
        kept = quotient(after.kept, before.kept)
        self.sizes[node] = self.size_after(node, source, window, before.ratio, kept)
        if before.untouched and after.untouched:
            self.put(node, self.copy(node, ONE), ONE)
            return
        layout = executed_as(window, kept, self.layout[source], self.layout[node])
        dealt_to = (layout[0] * window.stride[0], layout[1] * window.stride[1])
        deal = window.stride != ONE and kept == ONE and not window.mirrored and self.layout[node] == dealt_to
        rate = quotient(before.ratio, layout)
        x = self.get(source, layout)
        if deal and layout == ONE:
            x = self.graph.call_function(layers.Fragments, (x,))
        stride = window.stride if deal else kept
        if window.kind == "pad":
            new = self.pad(x, windows.scaled(window.pads, rate), window.value)
        elif window.kind == "conv":
            new = self.conv(node, x, window, rate, stride, on_fragments=deal or layout != ONE)
        else:
            new = self.call(node, x, layers.Pool(step.name, window, rate, deal, kept))
        self.put(node, new, dealt_to if deal else layout)

    def size_after(self, node: fx.Node, source: fx.Node, window: Window, rate: Pair, kept: Pair) -> tuple:
        """Dense sizes as (something, + rows, + columns), to see where two maps are equally large whatever the input's size."""
        base, rows, columns = self.sizes[source]
        if kept != ONE or window.ceil_mode or window.same:
            key = (base, rows, columns, kept, window, rate)
            return (key, 0, 0)
        growth = [sum(window.pads[2 * a : 2 * a + 2]) * rate[a] - window.dilation[a] * rate[a] * (window.kernel[a] - 1) for a in (0, 1)]
        return (base, rows + growth[0], columns + growth[1])

    def pad(self, x: fx.Node, pads: windows.Pads, value: float = 0.0) -> fx.Node:
        return self.graph.call_function(F.pad, (x, (pads[2], pads[3], pads[0], pads[1])), {"value": value})

    def call(self, node: fx.Node, x: fx.Node, module: nn.Module) -> fx.Node:
        name = str(node.target) if node.op == "call_module" and self.calls[node.target] == 1 else f"dense_{node.name}"
        self.modules[name] = module
        return self.graph.call_module(name, (x,))

    def conv(self, node: fx.Node, x: fx.Node, window: Window, rate: Pair, stride: Pair, on_fragments: bool) -> fx.Node:
        dilation = (window.dilation[0] * rate[0], window.dilation[1] * rate[1])
        pads = windows.scaled(window.pads, rate)
        symmetric = pads[0] == pads[1] and pads[2] == pads[3]
        changes = {"stride": stride, "dilation": dilation, "padding": (pads[0], pads[2])}
        single = node.op == "call_module" and self.calls[node.target] == 1
        module = self.root.get_submodule(node.target) if node.op == "call_module" else None
        if window.same:
            if not single:
                raise NotConvertible(
                    str(node.target), 'has TensorFlow "SAME" padding and is called more than once; give each call its own module'
                )
            same = layers.on_same_parameters(
                module, layers.SameConv2d, window=window, rate=rate, name=node.target, stride=stride, dilation=dilation
            )
            return self.call(node, x, same)
        if window.mirrored:
            return self.call(node, x, layers.on_same_parameters(module, stride=stride))
        if not symmetric:
            x = self.pad(x, pads)
            changes["padding"] = (0, 0)
        if single and type(module).forward is nn.Conv2d.forward:
            if layers.is_depthwise(module) and not on_fragments:
                return self.call(node, x, layers.depthwise(module, **changes))
            return self.call(node, x, layers.on_same_parameters(module, **changes))
        if module is not None:
            weight, bias, groups = self.parameters(node, module)
        else:
            weight, bias, groups = self.arguments(node)
        return self.graph.call_function(F.conv2d, (x, weight, bias, stride, changes["padding"], dilation, groups))

    def parameters(self, node: fx.Node, module: nn.Conv2d):
        bias = self.graph.get_attr(f"{node.target}.bias") if module.bias is not None else None
        return self.graph.get_attr(f"{node.target}.weight"), bias, module.groups

    def arguments(self, node: fx.Node):
        given = dict(zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), node.args, strict=False)) | dict(
            node.kwargs
        )
        bias = given.get("bias")
        return self.get(given["weight"], ONE), self.get(bias, ONE) if isinstance(bias, fx.Node) else bias, given.get("groups", 1)


def _getitem(values: list, index: int):
    return values[index]


def _call_counts(graph: fx.Graph) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            counts[node.target] = counts.get(node.target, 0) + 1
    return counts
