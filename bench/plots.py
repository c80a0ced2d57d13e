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


def _caption(figure, result: dict) -> None:
    machine = result["machine"]
    threads = f", {machine['threads']} threads" if machine["device"] == "cpu" else ""
    figure.text(0.01, -0.01, f"{machine['name']}{threads}, {machine['isa']}, commit {machine['commit']}, {machine['date'][:10]}", fontsize=7, color="#777777", va="top")


def _plain_numbers(axis) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


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
    figure.suptitle(section, x=0.01, y=1.0, ha="left", va="bottom", fontsize=12, fontweight="bold")
    _caption(figure, result)
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


def _sweep_panel(axes, group: list[Row], value, floor) -> None:
    for (name, layout), points in _lines(group, value).items():
        own = name.startswith("fastconv")
        sizes, values = zip(*sorted(points), strict=True)
        look = {"color": COLORS[name], "linestyle": STYLES[layout], "linewidth": 2.4 if own else 1.2, "marker": MARKERS[layout], "markersize": 4 if own else 2.5}
        axes.plot(sizes, values, label=f"{name} {layout}", zorder=3 if own else 2, **look)
    low = sorted({(row.case["height"], floor(row)) for row in group})
    axes.plot(*zip(*low, strict=True), label="floor", **FLOOR_STYLE)
    sizes = [size for size, _ in low]
    axes.set(xscale="log", yscale="log", xlabel="height = width")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
    _plain_numbers(axes.yaxis)


def _sweep(plt, section: str, group: list[Row], result: dict, value, floor, unit: str):
    """A panel per dilation, size against a figure, a line per contestant, the floor dotted."""
    panels = grouped(group, lambda row: row.case["dilation"])
    figure, axes = plt.subplots(1, len(panels), figsize=(3.5 * len(panels) + 0.6, 3.9), sharey=True, squeeze=False)
    for panel, (dilation, own) in zip(axes[0], sorted(panels.items()), strict=True):
        _sweep_panel(panel, own, value, floor)
        panel.set_title(f"dilation {dilation}", fontsize=9)
    axes[0][0].set_ylabel(unit)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(0.91, 0.5), frameon=False, fontsize=8)
    channels = group[0].case["channels"]
    figure.suptitle(f"{section}, {channels} channels: {unit.split(',')[0]} against resolution", x=0.06, ha="left", fontsize=12, fontweight="bold")
    _caption(figure, result)
    return figure


def _needed_megabytes(row: Row) -> float:
    """The result alone: what a call can't do without (inputs and weights are there before it); in training also the input's gradient."""
    batch, height, width = row.case["batch"], row.case["height"], row.case["width"]
    itemsize = 4 if row.case["dtype"] == "float32" else 2
    maps = row.case["out_channels"] + (row.case["channels"] if row.case["direction"] == "forward_backward" else 0)
    return batch * maps * height * width * itemsize / 1e6


def _tax(plt, section: str, group: list[Row], result: dict):
    """t(dilation) / t(1) against dilation, the larger sizes' geometric mean, a line per contestant."""
    times: dict = {}
    for record in {row.record["id"]: row.record for row in group}.values():
        for entry in record["results"]:
            if best_time(entry) is not None:
                key = (entry["rival"], entry["layout"])
                times.setdefault(key, {})[record["case"]["height"], record["case"]["dilation"]] = best_time(entry)
    sizes = sorted({size for line in times.values() for size, _ in line})
    figure, axes = plt.subplots(1, len(sizes), figsize=(2.3 * len(sizes) + 0.6, 3.2), sharey=True, squeeze=False)
    for panel, size in zip(axes[0], sizes, strict=True):
        for (name, layout), line in times.items():
            base = line.get((size, 1))
            points = sorted((dilation, seconds / base) for (own, dilation), seconds in line.items() if own == size and base)
            if points:
                width = 2.4 if name.startswith("fastconv") else 1.1
                panel.plot(*zip(*points, strict=True), color=COLORS[name], linestyle=STYLES[layout], linewidth=width, marker=MARKERS[layout], markersize=3, label=f"{name} {layout}")
        panel.axhline(1, **FLOOR_STYLE)
        panel.set(xscale="log", yscale="log", xlabel="dilation", title=f"{size} x {size}")
        panel.set_xticks(sorted({dilation for line in times.values() for _, dilation in line}))
        panel.minorticks_off()
        _plain_numbers(panel.xaxis)
        _plain_numbers(panel.yaxis)
    axes[0][0].set_ylabel("time over time at dilation 1")
    handles, labels = axes[0][-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(0.91, 0.5), frameon=False, fontsize=8)
    figure.suptitle(f"{section}: what dilation costs", x=0.06, y=1.02, ha="left", fontsize=12, fontweight="bold")
    _caption(figure, result)
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
        yield f"resolution_time_{stem}", _sweep(plt, section, group, result, *milliseconds, "time, ms")
        if any(entry.get("peak_bytes") for row in group for entry in row.record["results"]):
            memory = (lambda entry: (entry.get("peak_bytes") or 0) / 1e6), _needed_megabytes
            yield f"resolution_memory_{stem}", _sweep(plt, section, group, result, *memory, "peak memory, MB")
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
