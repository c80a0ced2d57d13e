"""The demo's second half: the same network at every position, and where on a photograph its classes are.

The network gives one class map of stride 32; `to_dense` gives the map of stride 8 and of stride 1 from the same weights. Boxes follow
Yu et al., "Dilated Residual Networks", 2017 (arXiv:1705.09914): the smallest box around the positions that a class wins above a threshold.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

SHORTER_SIDE = 256
STRIDES = (8, 1)
THRESHOLD = 0.5
# Of a map's classes as many as can be told apart by colour.
SHOWN = 4
COLORS = ("#e4572e", "#17bebb", "#ffc914", "#b07be0")


@dataclass
class ClassMap:
    """The winning class and its probability at every position; the best class's own probability; where positions lie in the image."""

    stride: int
    winner: Tensor
    probability: Tensor
    heat: Tensor
    start: float
    seconds: float


@dataclass
class Located:
    """A photograph, its class maps (the strided network's first) and the box of its best class."""

    name: str
    image: object
    label: int
    maps: list[ClassMap]
    box: object
    error: float


def resized(image):
    """The whole photograph with its shorter side at SHORTER_SIDE."""
    from PIL import Image

    width, height = image.size
    scale = SHORTER_SIDE / min(width, height)
    return image.convert("RGB").resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)


def locate(name: str, image, model: nn.Module, device: str) -> Located:
    """Class maps of one photograph at stride 32, 8 and 1."""
    from fastconv.dense import to_dense
    from fastconv.localization import heat_maps, localize
    from fastconv.models import imagenet

    x = imagenet.to_input(image).to(device).contiguous(memory_format=torch.channels_last)
    maps, strided, error, label = [], None, 0.0, None
    for stride in (32, *STRIDES):
        dense = to_dense(model, stride, "dilated" if stride == 32 else "auto", x, verify=False, fully_convolutional=True)
        with torch.inference_mode():
            dense(x)
            start = time.perf_counter()
            logits = dense(x)
            seconds = time.perf_counter() - start
            if strided is None:
                strided = logits
            else:
                error = max(error, float((logits[..., :: 32 // stride, :: 32 // stride] - strided).norm() / strided.norm()))
            if label is None:
                label = int(strided.softmax(1).mean((2, 3)).argmax())
            field = dense.report.field
            boxes = localize(logits[0], THRESHOLD, jump=field.jump, start=field.start, image_size=tuple(x.shape[2:]))
            heat = heat_maps(logits)[0]
            probability, winner = heat.max(0)
            maps.append(ClassMap(stride, winner.cpu(), probability.cpu(), heat[label].cpu(), field.start[0], seconds))
    own = [box for box in boxes if box.label == label]
    return Located(name, image, label, maps, (own or boxes or [None])[0], error)


def describe(found: Located, names: tuple[str, ...]) -> str:
    times = ", ".join(f"stride {m.stride}: {m.winner.shape[0]}x{m.winner.shape[1]} in {1e3 * m.seconds:.0f} ms" for m in found.maps)
    box = found.box
    place = f"rows {box.top:.0f}-{box.bottom:.0f}, columns {box.left:.0f}-{box.right:.0f}" if box else "nowhere above the threshold"
    return f"{found.name}: {names[found.label]}, {place}; {times}; relative error at the strided positions {found.error:.1e}"


def draw(path: Path, located: list[Located], names: tuple[str, ...], caption: str) -> None:
    """A row per photograph: itself, the strided network's top classes, the dense ones, the heat of the best class with its box."""
    from matplotlib.figure import Figure

    titles = ["photograph", *(_title(m) for m in located[0].maps), "heat of its best class, and the box"]
    heights = [f.image.size[1] / f.image.size[0] for f in located]
    width = 2.75
    # Photographs differ in shape: each row is as high as its own needs, at the same width.
    figure = Figure(figsize=(width * len(titles), sum(width * h + 0.34 for h in heights) + 0.55), dpi=80)
    grid = figure.add_gridspec(
        len(located), len(titles), height_ratios=heights, left=0.005, right=0.995, bottom=0.035, top=1 - 0.55 / figure.get_figheight(),
        wspace=0.02, hspace=0.34 / width / (sum(heights) / len(heights)),
    )  # fmt: skip
    figure.text(0.005, 1 - 0.06 / figure.get_figheight(), caption, fontsize=11.5, va="top", weight="bold")
    for row, found in enumerate(located):
        shown = _shown_classes(found)
        for column, title in enumerate(titles):
            axes = figure.add_subplot(grid[row, column])
            axes.axis("off")
            if row == 0:
                axes.set_title(title, fontsize=9.5)
            _panel(axes, found, column, shown)
        _legend(figure, grid[row, 0], grid[row, len(titles) - 1], shown, names)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, pil_kwargs={"optimize": True})


def _title(m: ClassMap) -> str:
    return "strided network: stride 32" if m.stride == 32 else f"dense, output stride {m.stride}"


def _shown_classes(found: Located) -> list[int]:
    """The best class, then the others by how much of the dense map they win."""
    dense = found.maps[-1]
    winners = dense.winner[dense.probability > THRESHOLD]
    classes, counts = winners.unique(return_counts=True)
    ranked = [c for c in classes[counts.argsort(descending=True)].tolist() if c != found.label]
    return [found.label, *ranked][:SHOWN]


def _panel(axes, found: Located, column: int, shown: list[int]) -> None:
    import numpy as np
    from matplotlib.colors import to_rgb

    width, height = found.image.size
    photograph = np.asarray(found.image)
    if column == 0:
        axes.imshow(photograph, extent=(0, width, height, 0))
        return
    last = column > len(found.maps)
    m = found.maps[-1] if last else found.maps[column - 1]
    grey = photograph.mean(2)
    axes.imshow(0.25 * 255 + 0.75 * grey if not last else grey, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    rows, columns = m.winner.shape
    top = m.start - m.stride / 2
    extent = (top, top + columns * m.stride, top + rows * m.stride, top)
    if last:
        heat = m.heat.numpy()
        axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.1 + 0.5 * heat, extent=extent, interpolation="nearest")
        if found.box:
            from matplotlib.patches import Rectangle

            box = found.box
            axes.add_patch(
                Rectangle((box.left, box.top), box.right - box.left, box.bottom - box.top, fill=False, edgecolor=COLORS[0], linewidth=2)
            )
    else:
        overlay = np.zeros((rows, columns, 4))
        for label, color in zip(shown, COLORS, strict=False):
            won = (m.winner == label) & (m.probability > THRESHOLD)
            overlay[won.numpy(), :3] = to_rgb(color)
            overlay[..., 3] += (won * m.probability).numpy() * 0.72
        axes.imshow(overlay, extent=extent, interpolation="nearest")
    axes.set(xlim=(0, width), ylim=(height, 0))


def _legend(figure, first, last, shown: list[int], names: tuple[str, ...]) -> None:
    """The classes' names in their colours, under the row."""
    place = first.get_position(figure)
    x, y = place.x0 + (last.get_position(figure).x1 - place.x0) / 5, place.y0 - 0.05 / figure.get_figheight()
    for label, color in zip(shown, COLORS, strict=False):
        figure.text(x, y, "■", color=color, fontsize=10, va="top")
        text = figure.text(x + 0.012, y - 0.01 / figure.get_figheight(), names[label], fontsize=9, va="top", color="#333333")
        x += 0.03 + 0.0068 * len(text.get_text())
