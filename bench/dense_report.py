"""Tables and the plot of `python -m bench dense`, computed from its dense.json."""

import os
from pathlib import Path

from . import pages
from .dense import AUTO, DILATED, FRAGMENTS, SHIFTED, TUNED
from .plots import FLOOR_STYLE, _frame, _legend, _plain_numbers, _pyplot, _ticks
from .report import Table, megabytes, milliseconds, ratio, short_setting

COLORS = {SHIFTED: "#4c72b0", FRAGMENTS: "#e88a1a", DILATED: "#55a868", AUTO: "#c1272d"}
NAMES = (SHIFTED, DILATED, FRAGMENTS, AUTO, TUNED)
NOISE = 1.05
PAGE = Path(__file__).parent.parent / "docs" / "dense.md"


def _times(case: dict) -> dict[str, float]:
    return {entry["name"]: entry["median"] for entry in case["contestants"]}


def news(case: dict) -> str:
    """One line about a case that has just been measured."""
    times = ", ".join(f"{entry['name']} {milliseconds(entry['median'])} ms" for entry in case["contestants"])
    return f"{case['id']}: {times}"


def speeds(result: dict) -> Table:
    """Every case: milliseconds of each way, how much faster than shifted runs, how far from the better of the two methods."""
    lines = []
    for case in result["cases"]:
        times = _times(case)
        better = min(times[DILATED], times[FRAGMENTS])
        best = times.get(TUNED, times[AUTO])
        chosen = next(entry["chosen"] for entry in reversed(case["contestants"]) if entry["name"] in (TUNED, AUTO))
        lines.append(
            (f"{case['network']}, {case['layout']}", str(case["size"]), milliseconds(case["strided_seconds"]))
            + tuple(milliseconds(times.get(name)) for name in NAMES)
            + (ratio(times[SHIFTED] / best), ratio(best / better), chosen)
        )
    columns = ("network", "size", "strided once", *NAMES, "shifted / chosen", "chosen / better", "chosen")
    note = (
        "Milliseconds for one image, medians; the strided network once for comparison. Chosen: what `auto` chose, tuned where it was. "
        "Better: of dilated and fragments."
    )
    return Table("Time", note, columns, lines)


def memories(result: dict) -> Table:
    lines = []
    for case in result["cases"]:
        peaks = {entry["name"]: entry["peak_bytes"] for entry in case["contestants"]}
        lines.append((f"{case['network']}, {case['layout']}", str(case["size"]), *(megabytes(peaks.get(name)) for name in NAMES)))
    return Table("Peak memory", "Megabytes above what was there before the call, the map itself included.", ("network", "size", *NAMES), lines)


def noise(result: dict) -> float | None:
    """Largest ratio of two medians of one program: where the choice is a pure method, that method was timed twice."""
    ratios = []
    for case in result["cases"]:
        times = _times(case)
        for entry in case["contestants"]:
            if entry["name"] in (AUTO, TUNED) and entry["chosen"] in (DILATED, FRAGMENTS):
                ratios.append(times[entry["name"]] / times[entry["chosen"]])
    return max((max(r, 1 / r) for r in ratios), default=None)


def goals(result: dict) -> Table:
    """The two promises about speed: the first at the size that it names, the second everywhere."""
    lines = []
    for case in result["cases"]:
        times = _times(case)
        best = times.get(TUNED, times[AUTO])
        gain, over = times[SHIFTED] / best, best / min(times[DILATED], times[FRAGMENTS])
        name = f"{case['network']}, {case['layout']}, {case['size']}"
        if case["size"] == result["goal_size"]:
            verdict = "reached" if gain >= 10 else "missed"
            lines.append((f"{name}: times faster than {result['stride'] ** 2} shifted runs", "10", ratio(gain), verdict))
        lines.append((f"{name}: over the better of dilated and fragments", ratio(NOISE), ratio(over), "reached" if over <= NOISE else "missed"))
    same, load = noise(result), result["machine"].get("load_after")
    told = f"Two medians of one program, where the choice is a pure method, differ here by up to {100 * (same - 1):.0f} %: " if same else ""
    note = told + "a verdict closer to its goal than that may be chance."
    if load is not None:
        note += f" The machine's load average was {result['machine']['load_before']:.1f} before and {load:.1f} after."
    return Table("Goals", note, ("figure", "goal", "measured", "verdict"), lines)


def plot(result: dict):
    """A column per network; above time, below peak memory, against the size of the image, channels_last."""
    plt = _pyplot()
    cases = [case for case in result["cases"] if case["layout"] == "channels_last"]
    networks = list(dict.fromkeys(case["network"] for case in cases))
    figure, axes = plt.subplots(2, len(networks), figsize=(3.4 * len(networks), 6.4), sharex=True, squeeze=False, gridspec_kw={"hspace": 0.08})
    for column, network in enumerate(networks):
        own = sorted((case for case in cases if case["network"] == network), key=lambda case: case["size"])
        sizes = [case["size"] for case in own]
        for row, figure_of in enumerate((lambda e: e["median"] * 1e3, lambda e: (e["peak_bytes"] or 0) / 1e6)):
            panel = axes[row][column]
            for name in (SHIFTED, DILATED, FRAGMENTS, AUTO):
                values = [figure_of(next(e for e in case["contestants"] if e["name"] == name)) for case in own]
                if any(values):
                    look = {"linewidth": 2.2 if name == AUTO else 1.4, "linestyle": "--" if name == AUTO else "-", "marker": "o", "markersize": 3}
                    panel.plot(sizes, values, color=COLORS[name], label="chosen by auto" if name == AUTO else name, **look)
            if row == 0:
                panel.plot(sizes, [case["strided_seconds"] * 1e3 for case in own], label="strided network, once", **FLOOR_STYLE)
                panel.set_title(network, fontsize=10)
            panel.set(xscale="log", yscale="log")
            _plain_numbers(panel.yaxis, (1,) if row == 0 else (1, 2, 5))
            _ticks(panel.xaxis, sizes)
            panel.grid(color="#eeeeee")
            panel.set_axisbelow(True)
        axes[1][column].set_xlabel("height = width of the image")
    axes[0][0].set_ylabel("time, ms")
    axes[1][0].set_ylabel("peak memory, MB")
    _legend(axes[0][-1])
    _frame(axes[0][0], "a prediction for every pixel from a network of stride 32", result, 36)
    return figure


def inject(result: dict, folder: Path, page: Path = PAGE) -> None:
    """Put the goals, the times and the plot between the markers of the documentation's page."""
    place = os.path.relpath(folder, page.parent)
    picture = f"![time and memory against resolution]({place}/dense.png)\n"
    more = f"Memory, and every figure: [dense.md]({place}/dense.md), [dense.json]({place}/dense.json).\n"
    text = "\n".join([short_setting(result) + "\n", goals(result).markdown(), speeds(result).markdown(), picture, more])
    pages.fill(page, "dense", text)


def publish(result: dict, folder: Path, screen=None) -> None:
    """Print the tables, write dense.md and dense.png."""
    from .run import console, show

    screen = screen or console()
    tables = [goals(result), speeds(result), memories(result)]
    for table in tables:
        show(screen, table)
    texts = [f"# Dense prediction: {result['machine']['name']}\n", short_setting(result) + "\n", "![time and memory against resolution](dense.png)\n"]
    (folder / "dense.md").write_text("\n".join([*texts, *(table.markdown(2) for table in tables)]))
    try:
        plot(result).savefig(folder / "dense.png")
    except ImportError:
        screen.print("no plot: matplotlib is not installed (pip install 'fastconv[plot]')")
    screen.print(f"dense.json, dense.md and dense.png are in {folder}")
