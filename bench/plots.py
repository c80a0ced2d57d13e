"""PNG plots of a result: ratio to the best rival and to the floor per layer, time and memory against resolution, what dilation costs."""

from pathlib import Path

from .measure import best_time
from .report import Row, geometric_mean, grouped, ratio, rows

COLORS = {
    "fastconv": "#c1272d",
    "fastconv cuda": "#c1272d",
    "fastconv triton": "#e88a1a",
    "eager": "#4c72b0",
    "torch.compile": "#55a868",
    "torch.compile max-autotune": "#2e7d5b",
    "torch.compile shifted": "#9acd62",
    "onnxruntime": "#8172b3",
    "openvino": "#64b5cd",
}
STYLES = {"channels_last": "-", "contiguous": "--"}
MARKERS = {"channels_last": "o", "contiguous": "s"}
FLOOR_STYLE = {"color": "#333333", "linestyle": ":", "linewidth": 1.4}


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 130, "savefig.bbox": "tight"})
    return plt


def _frame(axes, title: str, result: dict, above: int) -> None:
    """Title `above` points over the leftmost axes, and under it where and when it was measured."""
    machine = result["machine"]
    threads = f", {machine['threads']} threads" if machine["device"] == "cpu" else ""
    where = f"{machine['name']}{threads}, {machine['isa']}, commit {machine['commit']}, {machine['date'][:10]}"
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(title, (0, 1), (0, above), fontsize=12, fontweight="bold", **place)
    axes.annotate(where, (0, 1), (0, above - 12), fontsize=7, color="#777777", **place)


def _legend(axes) -> None:
    """One legend for all panels, right of the last."""
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles, labels, loc="center left", bbox_to_anchor=(1.04, 0.5), frameon=False, fontsize=8)


def _plain_numbers(axis, steps=(1, 2, 5)) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)


def _ticks(axis, values: list[int]) -> None:
    """Exactly these ticks on a log axis."""
    _plain_numbers(axis)
    axis.set_ticks(values, [str(value) for value in values])


def _label(row: Row) -> str:
    return f"{row.case['layer']}  {row.case['shape']}"


def _bars(plt, section: str, group: list[Row], result: dict):
    """Time over the best rival's, a bar per memory format, the rival's name at the bar; and beside it everybody's time over the floor."""
    layers = list(dict.fromkeys(_label(row) for row in group))
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 1.5 + 0.42 * len(layers)), sharey=True, gridspec_kw={"width_ratios": (1, 1.1), "wspace": 0.06})
    series = sorted({(row.subject["rival"], row.layout) for row in group})
    height = 0.8 / len(series)
    edge = max(1.3, 1.25 * max(row.over_best for row in group))
    for number, (name, layout) in enumerate(series):
        own = [row for row in group if (row.subject["rival"], row.layout) == (name, layout)]
        places = [layers.index(_label(row)) + (number - (len(series) - 1) / 2) * height for row in own]
        mean = geometric_mean(row.over_best for row in own)
        shade = {"alpha": 1.0 if layout == "channels_last" else 0.55, "color": COLORS[name]}
        left.barh(places, [row.over_best for row in own], height * 0.92, label=f"{name} {layout}: geometric mean {ratio(mean)}", **shade)
        for place, row in zip(places, own, strict=True):
            text = f"{row.over_best:.2f}  {row.best()['rival']}" if row.over_best >= 0.095 else f"{row.over_best:.3f}  {row.best()['rival']}"
            left.text(row.over_best + 0.01 * edge, place, text, va="center", fontsize=6.5, color="#444444")
    left.axvline(1, color="#333333", linewidth=1)
    left.set(xlim=(0, edge * 1.15), xlabel="time over the best rival's (lower is better)", yticks=range(len(layers)), yticklabels=layers)
    left.invert_yaxis()
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=8)
    _over_floor(right, layers, group)
    _frame(left, section, result, 66)
    return figure


def _over_floor(axes, layers: list[str], group: list[Row]) -> None:
    """Everybody as a mark at time over floor, log scale."""
    seen = set()
    for row in group:
        place = layers.index(_label(row))
        for entry in row.record["results"]:
            seconds, key = best_time(entry), (entry["rival"], entry["layout"])
            if seconds is None:
                continue
            own = entry["rival"].startswith("fastconv")
            look = {"color": COLORS[key[0]], "marker": MARKERS[key[1]], "s": 46 if own else 22, "zorder": 3 if own else 2, "alpha": 1 if own else 0.8}
            hollow = {"facecolors": "none"} if key[1] == "contiguous" else {}
            axes.scatter(seconds / row.floor["seconds"], place, label=None if key in seen else f"{key[0]} {key[1]}", **look, **hollow)
            seen.add(key)
    axes.axvline(1, **FLOOR_STYLE)
    axes.set(xscale="log", xlabel="time over the floor (dotted line)")
    axes.grid(axis="x", color="#eeeeee", which="both")
    axes.set_axisbelow(True)
    _plain_numbers(axes.xaxis)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=7, ncols=3)


def _lines(group: list[Row], value) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(name, layout) -> [(size, value)] over the records of one dilation."""
    lines: dict = {}
    for record in {row.record["id"]: row.record for row in group}.values():
        for entry in record["results"]:
            if best_time(entry) is not None and value(entry):
                lines.setdefault((entry["rival"], entry["layout"]), []).append((record["case"]["height"], value(entry)))
    return lines


def _sweep_panel(axes, group: list[Row], value, scale, steps=(1, 2, 5)) -> None:
    """Values, each divided by the scale of its size, over the size; a line per contestant."""
    scales = {row.case["height"]: scale(row) for row in group}
    for (name, layout), points in _lines(group, value).items():
        own = name.startswith("fastconv")
        sizes, values = zip(*sorted((size, figure / scales[size]) for size, figure in points), strict=True)
        look = {"color": COLORS[name], "linestyle": STYLES[layout], "linewidth": 2.2 if own else 1.2, "marker": MARKERS[layout], "markersize": 4 if own else 2.5}
        axes.plot(sizes, values, label=f"{name} {layout}", zorder=3 if own else 2, **look)
    axes.set(xscale="log", yscale="log")
    _plain_numbers(axes.yaxis, steps)
    _ticks(axes.xaxis, sorted(scales))
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)


def _sweep(plt, section: str, group: list[Row], result: dict, value, least, words: tuple[str, str, str]):
    """A column per dilation. Above: size against a figure, what is needed at least dotted; below: the figure over that least."""
    what, unit, floor_name = words
    panels = sorted(grouped(group, lambda row: row.case["dilation"]).items())
    figure, axes = plt.subplots(2, len(panels), figsize=(3.4 * len(panels), 7), sharex=True, sharey="row", squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.07})
    for above, below, (dilation, own) in zip(*axes, panels, strict=True):
        _sweep_panel(above, own, value, lambda row: 1)
        low = sorted({(row.case["height"], least(row)) for row in own})
        above.plot(*zip(*low, strict=True), label=floor_name, **FLOOR_STYLE)
        _sweep_panel(below, own, value, least, (1, 1.5, 2, 3, 5, 7))
        below.axhline(1, **FLOOR_STYLE)
        above.set_title(f"dilation {dilation}", fontsize=9)
        below.set_xlabel("height = width")
    axes[0][0].set_ylabel(f"{what}, {unit}")
    axes[1][0].set_ylabel(f"{what} over {floor_name}")
    _legend(axes[0][-1])
    _frame(axes[0][0], f"{section}, {group[0].case['channels']} channels: {what} against resolution", result, 36)
    return figure


def _needed_megabytes(row: Row) -> float:
    """The result alone: what a call can't do without (inputs and weights are there before it); in training also the input's gradient."""
    batch, height, width = row.case["batch"], row.case["height"], row.case["width"]
    itemsize = 4 if row.case["dtype"] == "float32" else 2
    maps = row.case["out_channels"] + (row.case["channels"] if row.case["direction"] == "forward_backward" else 0)
    return batch * maps * height * width * itemsize / 1e6


def _tax_lines(group: list[Row]) -> dict[int, dict[tuple[str, str], list[tuple[int, float]]]]:
    """size -> (name, layout) -> [(dilation, t(dilation) / t(1))]."""
    panels: dict = {}
    for (size, name, layout), entries in grouped_entries(group).items():
        base = entries.get(1)
        if base:
            panels.setdefault(size, {})[name, layout] = sorted((dilation, seconds / base) for dilation, seconds in entries.items())
    return panels


def grouped_entries(group: list[Row]) -> dict[tuple[int, str, str], dict[int, float]]:
    """(size, name, layout) -> dilation -> seconds."""
    times: dict = {}
    for record in {row.record["id"]: row.record for row in group}.values():
        for entry in record["results"]:
            if best_time(entry) is not None:
                times.setdefault((record["case"]["height"], entry["rival"], entry["layout"]), {})[record["case"]["dilation"]] = best_time(entry)
    return times


def _tax(plt, section: str, group: list[Row], result: dict):
    """t(dilation) / t(1) against dilation, a panel per size, a line per contestant."""
    panels = _tax_lines(group)
    figure, axes = plt.subplots(1, len(panels), figsize=(2.2 * len(panels), 3.4), sharey=True, squeeze=False, gridspec_kw={"wspace": 0.08})
    for panel, (size, lines) in zip(axes[0], sorted(panels.items()), strict=True):
        for (name, layout), points in lines.items():
            look = {"color": COLORS[name], "linestyle": STYLES[layout], "linewidth": 2.2 if name.startswith("fastconv") else 1.1}
            panel.plot(*zip(*points, strict=True), marker=MARKERS[layout], markersize=3, label=f"{name} {layout}", **look)
        panel.axhline(1, **FLOOR_STYLE)
        panel.set(xscale="log", xlabel="dilation")
        panel.set_title(f"{size} x {size}", fontsize=9)
        _ticks(panel.xaxis, sorted({dilation for points in lines.values() for dilation, _ in points}))
        panel.grid(axis="y", color="#eeeeee")
    axes[0][0].set(ylim=(0, None), ylabel="time over time at dilation 1")
    _legend(axes[0][-1])
    _frame(axes[0][0], f"{section}: what dilation costs", result, 36)
    return figure


def _figures(plt, result: dict):
    """(file stem, figure) of every plot the result has rows for."""
    timed = [row for row in rows(result) if row.over_best]
    for (section, grid), group in grouped(timed, lambda row: (row.case["section"], row.case["grid"])).items():
        stem = section.replace(" ", "_")
        if grid == "layers":
            yield f"layers_{stem}", _bars(plt, section, group, result)
            continue
        milliseconds = (lambda entry: best_time(entry) * 1e3), (lambda row: row.floor["seconds"] * 1e3)
        yield f"resolution_time_{stem}", _sweep(plt, section, group, result, *milliseconds, ("time", "ms", "the floor"))
        if any(entry.get("peak_bytes") for row in group for entry in row.record["results"]):
            memory = (lambda entry: (entry.get("peak_bytes") or 0) / 1e6), _needed_megabytes
            yield f"resolution_memory_{stem}", _sweep(plt, section, group, result, *memory, ("peak memory", "MB", "the results alone"))
        if len({row.case["dilation"] for row in group}) > 1:
            yield f"dilation_{stem}", _tax(plt, section, group, result)


def draw(result: dict, folder: Path) -> list[Path]:
    """Write every plot; an empty list, with a line saying so, where matplotlib is missing."""
    try:
        plt = _pyplot()
    except ImportError:
        print("no plots: matplotlib is not installed (pip install 'fastconv[plot]')")
        return []
    paths = []
    for stem, figure in _figures(plt, result):
        paths.append(folder / f"{stem}.png")
        figure.savefig(paths[-1])
        plt.close(figure)
    return paths
