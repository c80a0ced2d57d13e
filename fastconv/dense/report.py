"""What `to_dense` did, as a table."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from ..receptive_field import Field
from ..spatial import Network
from .plan import Plan
from .rates import Pair, Rate
from .rewrite import executed_as, quotient


@dataclass(frozen=True)
class Row:
    """One window of the network: as it was, and as it is."""

    name: str
    kind: str
    kernel: Pair
    stride: Pair
    kept: Pair
    dilation: Pair
    rate: Pair
    held_as: Pair

    @property
    def now(self) -> str:
        if self.rate == (1, 1) and self.stride == self.kept:
            return "unchanged"
        where = f"on {self.held_as[0] * self.held_as[1]} fragments" if self.held_as != (1, 1) else "dense"
        left = (self.rate[0] // self.held_as[0] * self.dilation[0], self.rate[1] // self.held_as[1] * self.dilation[1])
        stride = f", stride {_short(self.kept)}" if self.kept != (1, 1) else ""
        return f"{where}, dilation {_short(left)}{stride}"


@dataclass
class DenseReport:
    """What was converted and how. `print(report)` is the table.

    field: receptive field of one output, with the dense output's jump; None for several outputs. error: relative L2 distance in float64
    from the strided network at its positions, None where not verified. head_error: the same for the slid head, at one position, against the
    classifier. plan.costs: the cost of every choice.
    """

    model: str
    output_stride: Pair
    total_stride: Pair
    method: str
    head: list[str]
    rows: list[Row]
    plan: Plan
    field: Field | None
    error: float | None = None
    head_error: float | None = None
    verified_on: tuple[int, ...] | None = None
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.model}: output stride {_short(self.total_stride)} -> {_short(self.output_stride)}, method {self.method}"]
        width = max((len(r.name) for r in self.rows), default=4)
        lines.append(f"{'layer':{width}s}  {'kind':4s} {'kernel':>7s} {'stride':>6s} {'dilation':>8s} {'rate':>5s}  now")
        for r in self.rows:
            lines.append(
                f"{r.name:{width}s}  {r.kind:4s} {_short(r.kernel):>7s} {_short(r.stride):>6s} {_short(r.dilation):>8s} {_short(r.rate):>5s}  {r.now}"
            )
        if self.head:
            lines.append(
                f"slid over the map: what follows {', '.join(self.head)}; differs from the classifier at one position by {_error(self.head_error)}"
            )
        lines.append(f"float64, aligned positions, input {self.verified_on}: relative L2 error {_error(self.error)}")
        if self.plan.costs:
            lines.append(self.plan.table())
        return "\n".join(lines + self.notes)


def _short(value: Pair) -> str:
    return str(value[0]) if value[0] == value[1] else f"{value[0]}x{value[1]}"


def _error(value: float | None) -> str:
    return "not verified" if value is None else f"{value:.1e}"


def rows(network: Network, rate: dict[fx.Node, Rate], plan: Plan) -> list[Row]:
    out = []
    for node, step in network.steps.items():
        if step.window is not None:
            w, source = step.window, step.sources[0]
            kept = quotient(rate[node].kept, rate[source].kept)
            held = executed_as(w, kept, plan.layout[source], plan.layout[node])
            out.append(Row(step.name, w.kind, w.kernel, w.stride, kept, w.dilation, rate[source].ratio, held))
    return out
