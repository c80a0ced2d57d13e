"""What `fuse` did, as a table."""

from __future__ import annotations

from dataclasses import dataclass, field

from .layers import Fused


@dataclass
class Row:
    """One chain. kind: "separable" (a pair), "depthwise", "scaled" (the pointwise half behind squeeze-and-excitation), "conv".
    `why`: for what was left alone, the reason; else what kept a depthwise convolution from being half of a pair. Times in seconds."""

    name: str
    kind: str
    chain: str
    replaced: bool = True
    why: str = ""
    input: tuple[int, ...] | None = None
    predicted: tuple[float, float] | None = None
    measured: tuple[float, float] | None = None


@dataclass
class FuseReport:
    """What was replaced and what was not. `print(report)` is the table.

    error: relative L2 distance from the original on the example input (the largest of several outputs), None without an example. seconds:
    of the whole model, original and fused, with measure=True. failures: the modules that torch.fx could not follow, and why; their
    children were taken one by one.
    """

    model: str
    rows: list[Row] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    error: float | None = None
    seconds: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def replaced(self) -> list[Row]:
        return [row for row in self.rows if row.replaced]

    @property
    def left(self) -> list[Row]:
        return [row for row in self.rows if not row.replaced]

    @property
    def pairs(self) -> list[Row]:
        """Depthwise-pointwise pairs found, fused or left; one that squeeze-and-excitation separates is listed by its "scaled" half."""
        return [row for row in self.rows if row.kind in ("separable", "scaled")]

    def predicted(self) -> tuple[float, float] | None:
        times = [row.predicted for row in self.replaced]
        if not times or None in times:
            return None
        return sum(t[0] for t in times), sum(t[1] for t in times)

    def __str__(self) -> str:
        counts = {kind: sum(row.kind == kind for row in self.replaced) for kind in ("separable", "scaled", "depthwise", "conv")}
        lines = [
            f"{self.model}: {counts['separable']} depthwise-pointwise pairs fused, {counts['scaled']} behind squeeze-and-excitation, "
            f"{counts['depthwise']} depthwise, {counts['conv']} other convolutions with their norms folded; {len(self.left)} left alone"
        ]
        widths = [max([len(getattr(row, name)) for row in self.rows], default=0) for name in ("name", "kind", "chain")]
        for row in self.rows:
            cells = [f"{getattr(row, name):{width}s}" for name, width in zip(("name", "kind", "chain"), widths, strict=True)]
            cells.append(f"{'x'.join(map(str, row.input)) if row.input else '':15s}")
            cells.append(f"{_times(row.predicted):18s} {_times(row.measured):18s}")
            cells.append(("" if row.replaced else "LEFT: ") + row.why)
            lines.append("  ".join(cells).rstrip())
        if any(row.predicted for row in self.rows):
            lines.insert(1, f"{'':{sum(widths) + 4}s}  {'input':15s}  {'predicted ms':18s} {'measured ms':18s}")
        lines += [f"not traced: {name or 'the model'}: {reason}; its parts were" for name, reason in self.failures.items()]
        if self.predicted():
            lines.append(f"predicted for what was replaced: {_times(self.predicted())} ms")
        if self.seconds:
            lines.append(f"measured, whole model: {_times(self.seconds)} ms, {self.seconds[0] / self.seconds[1]:.2f} times as fast")
        if self.error is not None:
            lines.append(f"relative L2 distance from the original on the example input: {self.error:.1e}")
        return "\n".join(lines + self.notes)


def _times(pair: tuple[float, float] | None) -> str:
    return f"{pair[0] * 1e3:.3f} -> {pair[1] * 1e3:.3f}" if pair else ""


def chain_of(layer: Fused, residual: bool) -> str:
    """The chain in words: relu, dw 3x3 d2, norm, relu6, pw, norm, + residual."""
    parts = [layer.input_activation] if layer.input_activation != "identity" else []
    if layer.kind == "scaled":
        parts.append("scale")
    for stage, name in ((layer.depthwise, "dw"), (layer.pointwise, "pw")):
        if stage is None:
            continue
        conv = stage.conv
        size = "x".join(map(str, conv.kernel_size))
        if name == "pw":
            name = "pw" if size == "1x1" and conv.stride == (1, 1) and conv.groups == 1 else f"conv {size}"
        else:
            name = f"dw {size}"
            if conv.out_channels > conv.in_channels:
                name += f" m{conv.out_channels // conv.in_channels}"
        name += "".join(f" {letter}{v[0]}" for letter, v in (("s", conv.stride), ("d", conv.dilation)) if v != (1, 1))
        parts.append(name)
        parts += ["norm"] if stage.norm is not None else []
        if stage is layer.pointwise and residual:
            parts.append("+ residual")
        parts += [stage.activation] if stage.activation != "identity" else []
    return ", ".join(parts)
