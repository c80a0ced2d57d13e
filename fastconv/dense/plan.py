"""Which layers run dilated and which on fragments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from ..spatial import Map, Network
from . import cost
from .rates import Pair, Rate

METHODS = ("dilated", "fragments", "auto")
ONE: Pair = (1, 1)
NOMINAL = 224
CLEARLY = 0.96
# What is predicted to take up to this much longer than the quickest may be the quickest.
UNSURE = 1.3


@dataclass
class Plan:
    """layout: for every map, the total stride of the fragments it is held as. elements: of every dense map, for a planned size.

    Where `costs` is filled, what was predicted for each step, and in `measured` the seconds of each candidate that was timed.
    """

    layout: dict[fx.Node, Pair]
    elements: dict[fx.Node, float] = field(default_factory=dict)
    chunk_bytes: int | None = None
    size: Pair | None = None
    costs: dict[fx.Node, cost.Cost] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    choice: str = ""

    def table(self) -> str:
        """Every choice with its FLOPs, bytes and predicted time."""
        width = max((len(c.name) for c in self.costs.values()), default=4)
        lines = [f"cost model, input {self.size[0]}x{self.size[1]} (times in ms)"]
        lines.append(f"{'step':{width}s}  {'kind':11s} {'GFLOP':>8s} {'MB':>8s} {'dilated':>8s} {'fragments':>9s}  chosen")
        for node, c in self.costs.items():
            chosen = "fragments" if self.layout[node] != ONE else "dilated"
            lines.append(
                f"{c.name:{width}s}  {c.kind:11s} {c.flops / 1e9:8.3f} {c.bytes / 1e6:8.2f} "
                f"{1e3 * c.dilated:8.2f} {1e3 * c.fragments:9.2f}  {chosen}"
            )
        for title, times in (("predicted", self.predicted), ("measured", self.measured)):
            if times:
                lines.append(f"{title}: " + ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in times.items()))
        return "\n".join([*lines, f"chosen: {self.choice}"])


Build = Callable[[Plan], torch.nn.Module]


def make_plan(
    network: Network,
    rate: dict[fx.Node, Rate],
    method: str,
    least: Pair,
    example: Tensor | None,
    channels: int,
    build: Build | None = None,
    in_parts: bool = True,
    tune: bool = False,
) -> Plan:
    """The layout of every map. `build`, with an example, makes a network of a plan, to be timed where predictions do not decide, and with
    `tune` always. in_parts: whether fragments may be taken
    through the network a few at a time, for which the sizes of the maps must be known."""
    maps = [n for n in network.steps if isinstance(network.values[n], Map)]
    dilated = Plan({n: ONE for n in maps})
    if method == "dilated":
        return dilated
    if method == "fragments" and not in_parts:
        return Plan({n: rate[n].ratio for n in maps})
    size = tuple(example.shape[2:]) if example is not None else (max(NOMINAL, least[0]), max(NOMINAL, least[1]))
    batch = example.shape[0] if example is not None else 1
    sizes = cost.shapes(network, size, batch, channels)
    elements = {n: cost.dense_elements(sizes[n], rate[n], network.values[n].axes) for n in maps}
    common = {"elements": elements, "chunk_bytes": cost.cache_bytes(), "size": size}
    fragments = Plan({n: rate[n].ratio for n in maps}, **common)
    if method == "fragments":
        return fragments

    parameter = next(network.graph_module.parameters(), torch.zeros(1))
    like = example if example is not None else parameter
    channels_last = example is not None and example.is_contiguous(memory_format=torch.channels_last) and not example.is_contiguous()
    kind = cost.Kind(like.device.type, parameter.dtype, channels_last, torch.get_num_threads())
    costs = cost.predict(network, rate, sizes, kind, cost.cache_bytes())
    candidates = _candidates(network, rate, replace(dilated, **common), fragments, costs, kind)
    if build is None or example is None:
        return _choose(candidates, costs)
    return _choose(candidates, costs, tune, build, example.to(parameter))


def _candidates(network, rate, dilated: Plan, fragments: Plan, costs: dict, kind: cost.Kind) -> dict[str, tuple[float, Plan]]:
    """Dilated up to some step, on fragments from there: rates only grow, so one change-over per path is all there is to choose."""
    machine, itemsize = cost.machine(kind), kind.dtype.itemsize
    ends = sum(fragments.elements[n] for n in network.output_maps() if not rate[n].untouched) * itemsize
    stitch = 3 * ends / machine.memory
    candidates = {"dilated": (sum(c.dilated for c in costs.values()), dilated)}
    everything = sum(c.fragments for c in costs.values()) + stitch
    candidates["fragments"] = (everything, fragments)
    for node in _meeting_points(network):
        if node not in costs or rate[node].untouched:
            continue
        before = _before(network, node)
        layout = {n: ONE if n in before else rate[n].ratio for n in fragments.layout}
        shift = 2 * fragments.elements[node] * itemsize / machine.memory
        seconds = sum(c.dilated if n in before else c.fragments for n, c in costs.items()) + shift + stitch
        candidates[f"fragments behind {network.steps[node].name}"] = (seconds, replace(fragments, layout=layout))
    return candidates


def _choose(
    candidates: dict[str, tuple[float, Plan]], costs: dict, tune: bool = False, build: Build | None = None, example: Tensor | None = None
) -> Plan:
    """The quickest as predicted; as measured on the example, where there is one, among those that the prediction cannot tell apart, or with
    `tune`."""
    ranked = sorted(candidates, key=lambda name: candidates[name][0])
    shown = dict.fromkeys([*ranked[: 2 if tune else 1], "dilated", "fragments"])
    predicted = {name: candidates[name][0] for name in shown}
    close = [name for name in shown if tune or predicted[name] < UNSURE * predicted[ranked[0]]]
    measured = {}
    if build is not None and len(close) > 1:
        measured = cost.measure({name: build(candidates[name][1]) for name in close}, example)
    times = measured or predicted
    # A mixture that is not clearly ahead may be behind: two runs of the same network differ by some percent.
    simple = min((name for name in ("dilated", "fragments") if name in times), key=times.get)
    best = min(times, key=times.get)
    choice = best if times[best] < CLEARLY * times[simple] else simple
    return replace(candidates[choice][1], costs=costs, predicted=predicted, measured=measured, choice=choice)


def _meeting_points(network: Network) -> list[fx.Node]:
    """Maps that everything behind them depends on alone: a change of layout there is one shift."""
    nodes = [n for n in network.graph_module.graph.nodes if isinstance(network.values.get(n), Map) or n.op == "output"]
    order = {n: i for i, n in enumerate(nodes)}
    users: dict[fx.Node, int] = {}
    for node in nodes:
        sources = network.steps[node].sources if node in network.steps else node.all_input_nodes
        for source in sources:
            users[source] = max(users.get(source, 0), order[node])
    reach, found = 0, []
    for i, node in enumerate(nodes[:-1]):
        if reach <= i and network.values[node].count is None:
            found.append(node)
        reach = max(reach, users.get(node, 0))
    return found


def _before(network: Network, node: fx.Node) -> set[fx.Node]:
    """The maps up to this one, itself included."""
    out: set[fx.Node] = set()
    for step in network.steps:
        out.add(step)
        if step is node:
            return out
    return out
