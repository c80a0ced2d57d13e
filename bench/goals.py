"""The goals of the project as data, and how far a run is from them."""

from collections.abc import Callable
from dataclasses import dataclass

from .report import PYTORCH, Row, Table, geometric_mean, grouped, ratio, rows

# Below this size a dilation of 12 leaves so few taps inside the map that it isn't the same work.
TAX_SIZES = 112

Metric = Callable[[list[Row]], float | None]


@dataclass(frozen=True)
class Goal:
    """Rows of a section and memory format, a figure over them, and what it should be (None: told for comparison); `more` where larger is better."""

    text: str
    section: str
    layout: str | None
    metric: Metric
    goal: float | None
    stretch: float | None = None
    more: bool = False
    grid: str = "layers"
    device: str = "cpu"

    def choose(self, all_rows: list[Row]) -> list[Row]:
        return [
            row
            for row in all_rows
            if row.case["section"] == self.section and row.case["grid"] == self.grid and self.layout in (None, row.layout)
        ]

    def verdict(self, value: float | None) -> str:
        if value is None:
            return "not measured"
        if self.goal is None:
            return "for comparison"
        reached = lambda bound: bound is not None and (value >= bound if self.more else value <= bound)  # noqa: E731
        return "stretch" if reached(self.stretch) else "goal" if reached(self.goal) else "missed"


def over_best(group: list[Row]) -> float | None:
    return geometric_mean(row.over_best for row in group)


def worst(group: list[Row]) -> float | None:
    return max((row.over_best for row in group if row.over_best), default=None)


def over_floor(group: list[Row]) -> float | None:
    return geometric_mean(row.over_floor for row in group)


def over_pytorch(group: list[Row]) -> float | None:
    return geometric_mean(row.over(row.best(PYTORCH)) for row in group)


def over_eager(group: list[Row]) -> float | None:
    """Against plain PyTorch in the same memory format."""
    return geometric_mean(row.over(row.best(("eager",), row.layout)) for row in group)


def faster_than(*prefixes: str) -> Metric:
    """How many times as fast as the best of the named rivals in channels_last."""

    def metric(group: list[Row]) -> float | None:
        over = geometric_mean(row.over(row.best(prefixes, "channels_last")) for row in group)
        return 1 / over if over else None

    return metric


def copy_share(group: list[Row]) -> float | None:
    return geometric_mean(row.floor["memory"] / row.time for row in group if row.time)


def saved_share(group: list[Row]) -> float | None:
    """Bytes kept for the backward pass, of what eager keeps."""
    shares = []
    for row in group:
        eager = row.best(("eager",), row.layout)
        if row.time and eager:
            shares.append(row.subject["saved_bytes"] / eager["saved_bytes"])
    return geometric_mean(shares)


def dilation_tax(dilation: int) -> Metric:
    """t(dilation) / t(1) of the same layer, over the sizes of the sweep where that is the same work."""

    def metric(group: list[Row]) -> float | None:
        taxes = []
        for same in grouped(group, lambda row: (row.case["height"], row.layout)).values():
            times = {row.case["dilation"]: row.time for row in same}
            if times.get(1) and times.get(dilation) and same[0].case["height"] >= TAX_SIZES:
                taxes.append(times[dilation] / times[1])
        return geometric_mean(taxes)

    return metric


FORWARD, BF16, TRAINING = "separable forward float32", "separable forward bfloat16", "separable forward_backward float32"
HALF_TRAINING = "separable forward_backward bfloat16"

GOALS = (
    Goal("separable forward fp32 channels_last / best rival", FORWARD, "channels_last", over_best, 0.80, 0.65),
    Goal("separable forward fp32 contiguous / best rival", FORWARD, "contiguous", over_best, 0.90, 0.75),
    Goal("the same, worst row of both", FORWARD, None, worst, 1.05),
    Goal("separable forward fp32 channels_last / floor", FORWARD, "channels_last", over_floor, 1.30, 1.15),
    Goal("separable forward fp32 contiguous / floor", FORWARD, "contiguous", over_floor, 1.45, 1.25),
    Goal("separable forward bf16 channels_last / best rival", BF16, "channels_last", over_best, 0.65, 0.45),
    Goal("separable forward + backward fp32 / best PyTorch path", TRAINING, None, over_pytorch, 0.40, 0.30),
    Goal("depthwise forward fp32 / best rival", "depthwise forward float32", None, over_best, 0.80, 0.60),
    Goal("depthwise backward fp32 / best rival", "depthwise backward float32", None, over_best, 0.50, 0.35),
    Goal("stitched max pool forward contiguous / max_pool2d(stride=1)", "max_pool forward float32", "contiguous", over_eager, 0.05, 0.03),
    Goal("stitched max pool forward channels_last / max_pool2d(stride=1)", "max_pool forward float32", "channels_last", over_eager, 0.12, 0.08),
    Goal("stitched max pool forward, share of copy bandwidth", "max_pool forward float32", None, copy_share, 0.70, more=True),
    Goal("stitched max pool forward / best rival of all", "max_pool forward float32", None, over_best, None),
    Goal("stitched max pool forward + backward / max_pool2d(stride=1)", "max_pool forward_backward float32", None, over_eager, 0.10, 0.05),
    Goal("bytes saved for backward, separable / eager", TRAINING, None, saved_share, 0.50),
    Goal("t(dilation 12) / t(dilation 1)", FORWARD, None, dilation_tax(12), 1.15, 1.05, grid="sweep"),
    Goal("depthwise forward, share of copy bandwidth", "depthwise forward bfloat16", "channels_last", copy_share, 0.80, 0.88, more=True, device="cuda"),
    Goal("depthwise backward, share of copy bandwidth", "depthwise backward bfloat16", "channels_last", copy_share, 0.80, 0.85, more=True, device="cuda"),
    Goal("t(dilation 12) / t(dilation 1)", BF16, None, dilation_tax(12), 1.15, 1.05, grid="sweep", device="cuda"),
    Goal("separable forward / floor", BF16, "channels_last", over_floor, 1.35, 1.20, device="cuda"),
    Goal("separable forward, times as fast as eager channels_last", BF16, "channels_last", faster_than("eager"), 6.0, 7.5, more=True, device="cuda"),
    Goal("separable forward, times as fast as best Inductor", BF16, "channels_last", faster_than("torch.compile"), 1.7, 2.2, more=True, device="cuda"),
    Goal("forward + backward, times as fast as eager", HALF_TRAINING, "channels_last", faster_than("eager"), 3.0, 4.0, more=True, device="cuda"),
    Goal("forward + backward, times as fast as Inductor", HALF_TRAINING, "channels_last", faster_than("torch.compile"), 2.5, 3.0, more=True, device="cuda"),
    Goal("bytes saved for backward, separable / eager", HALF_TRAINING, "channels_last", saved_share, 0.50, 0.35, device="cuda"),
    Goal("dense max pool forward + backward / max_pool2d(stride=1)", "max_pool forward_backward bfloat16", None, over_eager, 1 / 2.2, device="cuda"),
    Goal("separable forward, worst row / best rival", BF16, None, worst, 1.0, device="cuda"),
)


def goals_table(result: dict) -> Table:
    """Every goal of the device, what was reached, over how many rows."""
    device, all_rows = result["machine"]["device"], rows(result)
    lines = []
    for name, own in grouped(all_rows, lambda row: row.subject["rival"]).items():
        for goal in (goal for goal in GOALS if goal.device == device):
            chosen = goal.choose(own)
            value = goal.metric(chosen)
            timed = sum(row.time is not None for row in chosen)
            label = goal.text + ("" if name == "fastconv" else f" [{name}]")
            lines.append((label, ratio(goal.goal), ratio(goal.stretch), ratio(value), f"{timed}/{len(chosen)}", goal.verdict(value)))
    note = "Geometric means over the rows of this run unless a line says otherwise; `rows` are those that were right and timed, of those in the run."
    return Table("Goals", note, ("figure", "goal", "stretch", "reached", "rows", "verdict"), lines)
