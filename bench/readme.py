"""The measured part of README.md, put between its markers from a committed result."""

import os
from pathlib import Path

from . import goals, pages, plots, report
from .report import Row, Table, milliseconds, ratio

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
FLAGSHIP = {"cpu": "separable forward float32", "cuda": "separable forward bfloat16"}
SHOWN = ("layers_", "resolution_time_", "resolution_memory_", "dilation_")


def newest_result() -> Path:
    """The committed result with the latest date in it."""
    found = sorted(RESULTS.glob("*/result.json"), key=lambda path: report.load(path)["machine"]["date"])
    if not found:
        raise SystemExit(f"no result under {RESULTS}: run `python -m bench --full --out {RESULTS.relative_to(ROOT)}/NAME` first")
    return found[-1]


def _flagship(result: dict) -> Table:
    """A line per layer, fastconv in its best memory format beside the best rival and plain PyTorch."""
    section = FLAGSHIP[result["machine"]["device"]]
    chosen = [row for row in report.rows(result) if row.case["section"] == section and row.case["grid"] == "layers" and row.layout == "channels_last" and row.time]
    return Table(f"{section}, channels_last", "Milliseconds, batch 1.", ("layer", "shape", "fastconv", "best rival", "eager", "floor", "/ best", "/ floor"), list(map(_line, chosen)))


def _line(row: Row) -> tuple[str, ...]:
    best, eager = row.best(), row.best(("eager",), row.layout)
    name = f"{milliseconds(report.best_time(best))} ({best['rival']})" if best else "-"
    plain = milliseconds(report.best_time(eager)) if eager else "-"
    return (row.case["layer"], row.case["shape"], milliseconds(row.time), name, plain, milliseconds(row.floor["seconds"]), ratio(row.over_best), ratio(row.over_floor))


def text(result: dict, folder: Path) -> str:
    """What stands between the markers: where it was measured, the goals, one table, the plots."""
    section = FLAGSHIP[result["machine"]["device"]].replace(" ", "_")
    shown = [folder / f"{stem}{section}.png" for stem in SHOWN]
    images = [f"![{path.stem}]({os.path.relpath(path, ROOT)})\n" for path in shown if path.exists()]
    more = f"Every row, every rival, the other operators: [table.md]({os.path.relpath(folder / 'table.md', ROOT)}). Made by `python -m bench`, put here by `python -m bench readme`.\n"
    return "\n".join([report.setting(result) + "\n", _flagship(result).markdown(), report.summary(result).markdown(), goals.goals_table(result).markdown(), *images, more])


def inject(path: Path | None, readme: Path = ROOT / "README.md") -> None:
    """Replace what stands between the markers of the README; refuse where they are missing."""
    path = path or newest_result()
    result = report.load(path)
    if not list(path.parent.glob("*.png")):
        plots.draw(result, path.parent)
    pages.fill(readme, "bench", text(result, path.parent.resolve()))
