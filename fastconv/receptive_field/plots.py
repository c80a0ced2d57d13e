"""Pictures of effective fields, as PNG; they need matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from .effective import EffectiveField
from .growth import Growth
from .measures import TWO_SIGMA

# Below a ten-thousandth of the largest contribution everything is drawn alike.
DECADES = 4
GREY = "#555555"
COLORS = ("#c1272d", "#1b6ca8", "#55a868", "#e88a1a", "#8172b3", "#64b5cd", "#8c613c", "#d279b0")


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _save(figure, path: Path) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _heat_map(axes, field: EffectiveField):
    shown = field.map / field.map.max().clamp_min(1e-300)
    if field.convention == "luo":
        shown = shown.clamp_min(10.0**-DECADES).log10()
    image = axes.imshow(shown.numpy(), cmap="magma", vmin=-DECADES if field.convention == "luo" else 0, vmax=None)
    top, left, bottom, right = field.window
    if (bottom - top, right - left) != tuple(field.map.shape):
        from matplotlib.patches import Rectangle

        axes.add_patch(
            Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, color="white", linewidth=0.9, linestyle=":")
        )
    axes.set(xticks=[], yticks=[])
    return image


def draw_field(field: EffectiveField, path: Path | str, title: str = "") -> None:
    """The map, with the theoretical field dotted and what lies above 1 - 0.9545 of the centre outlined, and its middle row beside."""
    figure = _figure(9.2, 4.6)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.05])
    image = _heat_map(left, field)
    level = ((1 - TWO_SIGMA) * field.map[field.centre]).item()
    if field.convention == "luo" and 0 < level < field.map.max():
        left.contour(field.map.numpy(), [level], colors="#7fd1ff", linewidths=1)
    bar = figure.colorbar(image, ax=left, shrink=0.85)
    bar.set_label("log10 of contribution / largest" if field.convention == "luo" else f"contribution ({field.convention})", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    left.set_title(title or f"{field.convention}, {field.images} images", fontsize=11, loc="left")

    row = field.map[field.centre[0]]
    right.plot((torch.arange(len(row)) - field.centre[1]).numpy(), (row / field.map.max()).numpy(), color=COLORS[0], linewidth=1.2)
    right.fill_between((torch.arange(len(row)) - field.centre[1]).numpy(), 0, (row / field.map.max()).numpy(), color=COLORS[0], alpha=0.15)
    top, first, bottom, last = field.window
    for edge in (first - field.centre[1], last - 1 - field.centre[1]):
        right.axvline(edge, color=GREY, linewidth=0.9, linestyle=":")
    right.set(xlabel="pixels from the centre", ylabel="share of the largest contribution", ylim=(0, None))
    right.spines[["top", "right"]].set_visible(False)
    right.tick_params(labelsize=8)
    extent = "" if field.field is None else f"in theory {field.field.extent[1]:g} pixels wide\n(dotted: what of it lies in the image)\n"
    numbers = f"{field.size:.1f} pixels wide in effect (blue)\n" if field.convention == "luo" else ""
    spread = f"standard deviation {field.standard_deviation[1]:.1f}\ncoverage {field.coverage():.2f}"
    # Above the curve, whatever it looks like.
    right.text(0.03, 1.0, extent + numbers + spread, transform=right.transAxes, va="bottom", fontsize=8.5, color="#222222")
    _save(figure, path)


def draw_fields(fields: dict[str, EffectiveField], path: Path | str, columns: int = 4, crop: bool = True) -> None:
    """Maps side by side under their titles; `crop` shows the theoretical field only."""
    rows = -(-len(fields) // columns)
    figure = _figure(2.9 * min(columns, len(fields)), 3.3 * rows)
    grid = figure.subplots(rows, min(columns, len(fields)), squeeze=False)
    for axes, (title, field) in zip(grid.flat, fields.items(), strict=False):
        _heat_map(axes, field)
        if crop:
            top, left, bottom, right = field.window
            axes.set(xlim=(left - 0.5, right - 0.5), ylim=(bottom - 0.5, top - 0.5))
        axes.set_title(title, fontsize=9)
    for axes in list(grid.flat)[len(fields) :]:
        axes.axis("off")
    _save(figure, path)


def draw_growth(grown: dict[str, Growth], path: Path | str) -> None:
    """Effective size, and its share of the theoretical extent, over depth; each line's slope in the legend."""
    figure = _figure(10.4, 5.6)
    left, right = figure.subplots(1, 2)
    for (name, growth), color in zip(grown.items(), COLORS, strict=False):
        dashes = "-" if name == "uniform" else "--"
        style = {"color": color, "linestyle": dashes, "marker": "o", "markersize": 4, "linewidth": 1.8 if name == "uniform" else 1.2}
        left.plot(growth.depths, growth.sizes, label=f"{name}: {growth.size_slope:+.2f}", **style)
        right.plot(growth.depths, growth.shares, label=f"{name}: {growth.share_slope:+.2f}", **style)
    depths = torch.tensor(next(iter(grown.values())).depths, dtype=torch.float64)
    first = next(iter(grown.values()))
    for axes, power, start in ((left, 0.5, first.sizes[0]), (right, -0.5, first.shares[0])):
        guide = start * (depths / depths[0]) ** power
        axes.plot(depths.numpy(), guide.numpy(), color=GREY, linestyle=":", linewidth=1.2, label=f"slope {power:+.1f}", zorder=0)
    _log_axes(left, first.depths, "effective size, pixels")
    _log_axes(right, first.depths, "effective size / theoretical extent")
    _save(figure, path)


def _log_axes(axes, depths: Sequence[int], label: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.set(xscale="log", yscale="log", xlabel="3x3 convolutions", ylabel=label)
    axes.xaxis.set_major_locator(FixedLocator(depths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(plain)
    axes.spines[["top", "right"]].set_visible(False)
    # Under the axes: the lines leave no corner free.
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "ncols": 2}
    axes.legend(frameon=False, fontsize=7.5, title="slope in log-log", title_fontsize=7.5, **place)
