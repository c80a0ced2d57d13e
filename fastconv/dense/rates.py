"""How far apart the strided network's positions lie in each map of the dense one, and what that forbids."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import fx

from ..spatial import Network, NotConvertible, Pooled, Step

Pair = tuple[int, int]


@dataclass(frozen=True)
class Rate:
    """total: product of the strides in front of a map, in the original. kept: of those that are still strides. ratio: total / kept."""

    total: Pair
    kept: Pair

    @property
    def ratio(self) -> Pair:
        return self.total[0] // self.kept[0], self.total[1] // self.kept[1]

    @property
    def untouched(self) -> bool:
        """Whether the map is the strided network's own."""
        return self.ratio == (1, 1)


# The greatest common divisor with 0 is the number itself: every stride stays.
KEEP_ALL: Pair = (0, 0)


def rate_of(total: Pair, output_stride: Pair) -> Rate:
    """A layer keeps as much of its stride as divides the output stride. Path by path that is the greatest common divisor, so branches
    agree."""
    return Rate(total, (math.gcd(total[0], output_stride[0]), math.gcd(total[1], output_stride[1])))


def rates(network: Network, output_stride: Pair) -> dict[fx.Node, Rate]:
    """The rate of every map. Raises NotConvertible, with name and reason, at the first step that has no exact dense form."""
    out: dict[fx.Node, Rate] = {}
    inexact: dict[str, str] = {}
    for node, step in network.steps.items():
        if step.role == "input":
            out[node] = rate_of((1, 1), output_stride)
            continue
        sources = [out[s] for s in step.sources]
        _refuse_pooled(network, node, step, inexact)
        if any(s.total != sources[0].total for s in sources):
            raise NotConvertible(step.name, f"joins maps of different strides, {' and '.join(str(s.total) for s in sources)}")
        source = sources[0]
        if step.role == "obstacle" and not (step.keeps_grid and source.untouched):
            raise NotConvertible(step.name, step.reason)
        if isinstance(network.values[node], Pooled):
            if not source.untouched:
                inexact[step.name] = ""
            continue
        total = source.total
        if step.window is not None:
            if step.window.mirrored and not source.untouched:
                raise NotConvertible(
                    step.name,
                    f'pads in mode "{step.window.mirrored}", from the edge of the strided map, which is not that of the dense one',
                )
            total = (total[0] * step.window.stride[0], total[1] * step.window.stride[1])
        out[node] = rate_of(total, output_stride)
    return out


def _refuse_pooled(network: Network, node: fx.Node, step: Step, inexact: dict[str, str]) -> None:
    """A map may meet what was pooled from the strided network's own maps only."""
    for source in node.all_input_nodes:
        value = network.values[source]
        names = sorted(value.by & inexact.keys()) if isinstance(value, Pooled) else []
        if names:
            raise NotConvertible(
                names[0],
                "averages over the whole map inside the body (squeeze-and-excitation): its average over the dense map is not that over the strided "
                f"one. Convert up to a larger output_stride, so that it comes before the first stride given up, or only the part before {names[0]}",
            )


def heads(network: Network, rate: dict[fx.Node, Rate]) -> list[str]:
    """Names of the global average pools on changed maps: behind `rates`, only those whose result goes to the output."""
    return [s.name for n, s in network.steps.items() if s.role == "global" and not rate[s.sources[0]].untouched]


def total_stride(network: Network) -> Pair:
    """Stride of the network's output: the largest of its output maps."""
    everything = {n: r.total for n, r in rates(network, KEEP_ALL).items()}
    ends = network.output_maps() or [s.sources[0] for s in network.steps.values() if s.role == "global"]
    if not ends:
        raise NotConvertible("", "the output does not come from a map")
    return max(everything[n][0] for n in ends), max(everything[n][1] for n in ends)
