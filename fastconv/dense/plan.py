"""Which layers run dilated and which on fragments."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, fx

from ..spatial import Map, Network
from .rates import Pair, Rate

METHODS = ("dilated", "fragments", "auto")
ONE: Pair = (1, 1)


@dataclass
class Plan:
    layout: dict[fx.Node, Pair]
    expansion: dict[str, float] = field(default_factory=dict)
    chunk_bytes: int | None = None
    choices: list = field(default_factory=list)

    def table(self) -> str:
        return ""


def make_plan(
    network: Network, rate: dict[fx.Node, Rate], method: str, least: Pair, size: Pair | None, example: Tensor | None, tune: bool
) -> Plan:
    maps = [n for n in network.steps if isinstance(network.values[n], Map)]
    if method == "dilated":
        return Plan({n: ONE for n in maps})
    return Plan({n: rate[n].ratio for n in maps})
