"""`python -m bench`: measure the cases with a progress display, then print, write and draw what came out."""

import gc
import json
import os
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from . import goals, machine, plots, report
from .cases import Case, select
from .measure import Bench
from .report import Row, Table, milliseconds, ratio
from .rivals import elsewhere
from .sampling import BUDGETS

FORMAT = 1
BUSY = 0.5


def console() -> Console:
    """The terminal, or 160 columns where the output goes to a file."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=200)


def show(screen: Console, table: Table) -> None:
    if not table.cells:
        return
    drawn = RichTable(title=table.title, caption=table.note, title_justify="left", caption_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for cells in table.cells:
        drawn.add_row(*cells, style={"missed": "yellow", "WRONG": "red"}.get(cells[-1]))
    screen.print(drawn)
    screen.print()


def _news(result: dict, record: dict) -> str:
    """One line about a case that has just been measured."""
    parts = []
    for row in report.rows(result | {"cases": [record]}):
        who = f"{row.subject['rival']} {report.SHORT[row.layout]}"
        if row.time is None:
            parts.append(f"{who} {row.subject['status'].upper() if row.subject['status'] == 'wrong' else row.subject['status']}")
        else:
            parts.append(f"{who} {milliseconds(row.time)} ms, {ratio(row.over_floor)} of floor, {ratio(row.over_best)} of {_rival(row)}")
    return f"{record['id']}: " + "; ".join(parts)


def _rival(row: Row) -> str:
    best = row.best()
    return best["rival"] if best else "no rival"


def _progress(screen: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("[dim]{task.fields[step]}"), console=screen, transient=True
    )


def _measure_all(result: dict, cases: list[Case], bench: Bench, screen: Console, path: Path) -> None:
    with _progress(screen) as progress:
        task = progress.add_task("measuring", total=len(cases), step="")
        for case in cases:
            for step in bench.steps(case):
                progress.update(task, step=f"{case.layer}: {step}")
            result["cases"].append(bench.record)
            progress.advance(task)
            screen.print(_news(result, bench.record), soft_wrap=True, markup=False)
            # A run that is cut short keeps what it has measured.
            path.write_text(json.dumps(result))


def _start(device: str, threads: int, tier: str, screen: Console) -> dict:
    torch.set_num_threads(threads)
    description = machine.describe(device)
    if description["load_before"] > BUSY * description["cpus"] and device == "cpu":
        screen.print(f"[yellow]This machine is busy (load {description['load_before']:.1f}): the times below are not to be believed.")
    if device == "cuda":
        torch.backends.cudnn.benchmark = True
    screen.print(f"{description['name']}, {description['isa']}, {threads} thread(s): measuring what the machine can do")
    return {
        "format": FORMAT,
        "machine": description,
        "grid": tier,
        "budget": vars(BUDGETS[tier]),
        "ceilings": machine.ceilings(device),
        "elsewhere": elsewhere(device),
        "cases": [],
    }


def _folder(description: dict, partial: bool) -> Path:
    """Results of a whole grid may be committed; of a part of one, never."""
    here = Path(__file__).parent
    return here / "out" if partial else here / "results" / machine.slug(description)


def run(device: str, tier: str, only: str | None, threads: int, folder: Path | None) -> dict:
    """Everything; returns the result, which lies as result.json beside its tables and plots in the folder."""
    screen = console()
    cases = select(device, tier, only)
    if not cases:
        raise SystemExit(f"no case of the {tier} grid on {device} matches {only!r}")
    result = _start(device, threads, tier, screen)
    folder = folder or _folder(result["machine"], partial=only is not None or tier == "quick")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "result.json"
    gc.freeze()
    bench = Bench(device, BUDGETS[tier], result["machine"]["caches"])
    if bench.memory and bench.memory.reason:
        screen.print(bench.memory.reason)
    _measure_all(result, cases, bench, screen, path)
    result["ceilings"] = machine.best_of(result["ceilings"], machine.ceilings(device))
    result["machine"]["load_after"] = os.getloadavg()[0]
    path.write_text(json.dumps(result, indent=1))
    publish(result, folder, screen)
    return result


def publish(result: dict, folder: Path, screen: Console | None = None) -> None:
    """Print the tables, write table.md, draw the plots."""
    screen = screen or console()
    for table in report.tables(result):
        show(screen, table)
    show(screen, report.summary(result))
    reached = goals.goals_table(result)
    show(screen, reached)
    for line in report.absences(result):
        screen.print(f"not measured: {line}", soft_wrap=True, markup=False)
    drawn = plots.draw(result, folder)
    report.write_markdown(result, folder / "table.md", reached, drawn)
    screen.print(f"{len(drawn)} plots, result.json and table.md are in {folder}")
