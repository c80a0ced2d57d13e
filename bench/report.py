"""From a result file to rows and tables. Everything said about a run is computed here from its JSON; nothing is typed by hand."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .cases import Case
from .cost import floor
from .measure import best_time

SHORT = {"contiguous": "nchw", "channels_last": "nhwc"}
PYTORCH = ("eager", "torch.compile")


@dataclass(frozen=True)
class Row:
    """fastconv in one case and memory format, beside everybody who ran the same case in the same run."""

    record: dict
    subject: dict
    floor: dict

    @property
    def case(self) -> dict:
        return self.record["case"]

    @property
    def layout(self) -> str:
        return self.subject["layout"]

    @property
    def time(self) -> float | None:
        return best_time(self.subject)

    def rivals(self, prefixes: Iterable[str] = ("",), layout: str | None = None) -> list[dict]:
        """Rivals that gave a right result, by the beginning of their names; in any memory format unless one is named."""
        return [
            result
            for result in self.record["results"]
            if not result["rival"].startswith("fastconv")
            and best_time(result) is not None
            and result["rival"].startswith(tuple(prefixes))
            and layout in (None, result["layout"])
        ]

    def best(self, prefixes: Iterable[str] = ("",), layout: str | None = None) -> dict | None:
        """The fastest of them. Where the formats are not fixed a rival may use the one it likes, without paying for a conversion."""
        return min(self.rivals(prefixes, layout), key=best_time, default=None)

    def over(self, rival: dict | None) -> float | None:
        return self.time / best_time(rival) if rival and self.time else None

    @property
    def over_best(self) -> float | None:
        return self.over(self.best())

    @property
    def over_floor(self) -> float | None:
        return self.time / self.floor["seconds"] if self.time else None

    @property
    def error(self) -> float | None:
        return max((one["error"] for one in self.subject.get("checks", {}).values()), default=None)


def load(path: Path) -> dict:
    return json.loads(Path(path).read_text())


def case_of(record: dict) -> Case:
    return Case(**{name: value for name, value in record["case"].items() if name in Case.__dataclass_fields__})


def rows(result: dict) -> list[Row]:
    """One row per case and fastconv entry, wrong and missing ones included."""
    device = result["machine"]["device"]
    return [
        Row(record, subject, floor(case_of(record), result["ceilings"], record["footprint"], device))
        for record in result["cases"]
        for subject in record["results"]
        if subject["rival"].startswith("fastconv")
    ]


def geometric_mean(values: Iterable[float | None]) -> float | None:
    logs = [math.log(value) for value in values if value]
    return math.exp(sum(logs) / len(logs)) if logs else None


@dataclass(frozen=True)
class Table:
    """A title, a sentence under it, column names and cells that are already text."""

    title: str
    note: str
    columns: tuple[str, ...]
    cells: list[tuple[str, ...]]

    def markdown(self, level: int = 3) -> str:
        lines = [f"{'#' * level} {self.title}", "", self.note, ""] if self.note else [f"{'#' * level} {self.title}", ""]
        aligned = ["---"] + ["---:" if _numeric(column, self.cells, index + 1) else "---" for index, column in enumerate(self.columns[1:])]
        lines += ["| " + " | ".join(line) + " |" for line in (self.columns, aligned, *self.cells)]
        return "\n".join(lines) + "\n"


def _numeric(column: str, cells: list[tuple[str, ...]], index: int) -> bool:
    texts = [line[index] for line in cells if line[index] not in ("-", "")]
    return bool(texts) and all(text[0].isdigit() for text in texts)


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.3f}" if seconds < 1e-3 else f"{seconds * 1e3:.2f}"


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def megabytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.1f}"


def _state(row: Row) -> str:
    """The time, or why there is none."""
    if row.time is not None:
        return milliseconds(row.time)
    if row.subject["status"] == "wrong":
        return f"WRONG ({row.error:.0e})"
    return f"{row.subject['status']}: {row.subject.get('reason', '')}"[:60]


def _line(row: Row) -> tuple[str, ...]:
    best, eager = row.best(), row.best(("eager",), row.layout)
    return (
        row.case["layer"],
        row.case["shape"],
        milliseconds(row.floor["seconds"]),
        row.floor["bound"],
        _state(row),
        ratio(row.over_floor),
        f"{best['rival']} {SHORT[best['layout']]}" if best else "-",
        milliseconds(best_time(best)) if best else "-",
        ratio(row.over_best),
        ratio(row.over(eager)),
        megabytes(row.subject.get("peak_bytes")),
        megabytes(eager.get("peak_bytes")) if eager else "-",
        "-" if row.error is None else f"{row.error:.0e}",
    )


COLUMNS = ("layer", "shape", "floor ms", "bound", "ms", "/ floor", "best rival", "its ms", "/ best", "/ eager", "peak MB", "eager MB", "error")


def grouped(all_rows: list[Row], key: Callable[[Row], object]) -> dict:
    groups: dict = {}
    for row in all_rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _group(row: Row) -> tuple[str, str, str, str]:
    return (row.subject["rival"], row.case["section"], row.layout, row.case["grid"])


def tables(result: dict) -> list[Table]:
    """One table per contestant of ours, operator, direction, dtype, memory format and grid."""
    found = []
    for (name, section, layout, grid), group in grouped(rows(result), _group).items():
        title = f"{name}: {section}, {layout}" + (" (resolution sweep)" if grid == "sweep" else "")
        means = {what: geometric_mean(getattr(row, what) for row in group) for what in ("over_floor", "over_best")}
        note = f"Geometric means: {ratio(means['over_floor'])} of the floor, {ratio(means['over_best'])} of the best rival."
        found.append(Table(title, note, COLUMNS, [_line(row) for row in group]))
    return found


def summary(result: dict) -> Table:
    """One line per table: geometric means and worst rows."""
    lines = []
    for (name, section, layout, grid), group in grouped(rows(result), _group).items():
        overs = [row.over_best for row in group if row.over_best]
        cells = (geometric_mean(overs), max(overs, default=None), geometric_mean(row.over_floor for row in group))
        eager = geometric_mean(row.over(row.best(("eager",), row.layout)) for row in group)
        label = f"{section} {layout}" + (" sweep" if grid == "sweep" else "") + (f" [{name}]" if name != "fastconv" else "")
        lines.append((label, f"{len(overs)}/{len(group)}", *map(ratio, (*cells, eager))))
    columns = ("what", "rows", "/ best rival", "worst row", "/ floor", "/ eager, same format")
    return Table("Summary", "Time ratios, geometric means; lower is better, below 1 is faster.", columns, lines)


def absences(result: dict) -> list[str]:
    """Who did not take part where and why: each reason once, wrong results with their errors; last who is for another device."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for record in result["cases"]:
        for entry in record["results"]:
            if entry["status"] == "ok":
                continue
            if entry["status"] == "wrong":
                errors = ", ".join(f"{name} {one['error']:.1e} (allowed {one['tolerance']:.0e})" for name, one in entry["checks"].items() if not one["right"])
                reason = f"WRONG, not timed: {errors}"
            else:
                reason = f"{entry['status']}: {entry['reason']}"
            reasons.setdefault((entry["rival"], reason), []).append(record["id"])
    told = [f"{rival}, {len(set(ids))} case(s), {reason} [{ids[0]}{', ...' if len(set(ids)) > 1 else ''}]" for (rival, reason), ids in reasons.items()]
    return told + [f"{name}, all cases, {reason}" for name, reason in result.get("elsewhere", {}).items()]


def measured_before(path: Path, description: dict, records: str, again: set[str]) -> list[dict]:
    """The other records of a result of the same commit and machine: a long run may be made in pieces, with --only."""
    if not path.exists():
        return []
    before = load(path)
    same = all(before["machine"][name] == description[name] for name in ("commit", "name", "threads", "versions"))
    return [record for record in before[records] if record["id"] not in again] if same else []


def versions(machine: dict) -> str:
    return ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)


def short_setting(result: dict) -> str:
    """Where and with what, for a result without ceilings."""
    machine = result["machine"]
    return f"{machine['name']}, {machine['isa']}, {machine['threads']} thread(s), commit {machine['commit']}, {machine['date']}. {versions(machine)}."


def setting(result: dict) -> str:
    """Where and with what, in one paragraph."""
    machine, ceilings = result["machine"], result["ceilings"]
    peaks = ", ".join(f"{name} {peak['rate'] / 1e9:.0f} GFLOP/s ({max(peak['probes'], key=peak['probes'].get)})" for name, peak in ceilings["peak"].items())
    copies = ", ".join(f"{point['footprint'] // 2**20 or 1024} MiB {point['rate'] / 1e9:.0f} GB/s" for point in ceilings["copy"])
    return (
        f"{machine['name']}, {machine['isa']}, {machine['threads']} thread(s), {machine['system']}, commit {machine['commit']}, {machine['date']}. "
        f"Versions: {versions(machine)}. Peak measured in the run: {peaks}. Copy bandwidth by footprint: {copies}."
    )


def write_markdown(result: dict, path: Path, goals: Table, plots: list[Path]) -> None:
    parts = [f"# Benchmark: {result['machine']['name']}\n", setting(result) + "\n", goals.markdown(2), summary(result).markdown(2)]
    parts += [f"![{plot.stem}]({plot.name})\n" for plot in plots]
    parts += [table.markdown() for table in tables(result)]
    parts += ["### Who did not take part\n", *(f"- {line}" for line in absences(result)), ""]
    path.write_text("\n".join(parts))
