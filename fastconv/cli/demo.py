"""A trained MobileNetV2 on real photographs, as plain PyTorch and with every depthwise + pointwise pair on fastconv.

The photographs are the ones that scikit-image ships; the weights are the published ImageNet ones. For each photograph the five best
classes of both executions are printed, then the largest difference of any class score, and, once these agree, the times.

Then the same network is made dense (`fastconv.dense.to_dense`): a class at every eighth pixel and at every pixel, and the box of the best
class, in a second picture.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from . import dense_maps

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PLAIN, FOLDED, FUSED = "PyTorch", "PyTorch, norms folded", "fastconv"
PHOTOGRAPHS = ("chelsea.png", "coffee.png", "camera.png", "motorcycle_left.png", "rocket.jpg", "astronaut.png")
PACKAGES = "python -m pip install pillow scikit-image matplotlib"


@dataclass
class Contender:
    """One way to run the network, and the times seen."""

    way: str
    format_name: str
    model: nn.Module
    seconds: list[float] = field(default_factory=list)

    def __call__(self, image: Tensor) -> Tensor:
        return self.model(image.contiguous(memory_format=FORMATS[self.format_name]))

    @property
    def name(self) -> str:
        return f"{self.way}, {self.format_name}"

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", type=Path, help="your own photographs instead of scikit-image's")
    parser.add_argument("--out", type=Path, default=Path("fastconv-demo.png"), help="where the picture goes (default: %(default)s)")
    parser.add_argument("--dense", type=int, default=4, help="how many photographs get dense class maps (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15, help="how long to measure times (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")


def photographs(chosen: list[Path]) -> list[Path]:
    """The photographs to classify: the chosen ones, or those of PHOTOGRAPHS that the installed scikit-image ships."""
    if chosen:
        return chosen
    # Found as files, not through skimage.data: that may try to download what a release does not ship.
    spec = importlib.util.find_spec("skimage")
    folders = [Path(folder) / "data" for folder in spec.submodule_search_locations] if spec else []
    return [folder / name for name in PHOTOGRAPHS for folder in folders if (folder / name).is_file()]


def contenders(device: str) -> list[Contender]:
    """Plain PyTorch first, then with its norms folded, so that folding is not mistaken for fusion, then fastconv."""
    from fastconv.models import load_pretrained

    ways = {
        PLAIN: lambda: load_pretrained(backend="torch"),
        FOLDED: lambda: fold_norms(load_pretrained(backend="torch")),
        FUSED: lambda: load_pretrained(backend="fastconv"),
    }
    return [
        Contender(way, name, build().to(device, memory_format=memory_format))
        for way, build in ways.items()
        for name, memory_format in FORMATS.items()
    ]


def fold_norms(model: nn.Module) -> nn.Module:
    for block in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        for position in range(len(block) - 1):
            conv, norm = block[position], block[position + 1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                block[position], block[position + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return model


def compare(runs: list[Contender], inputs: dict[str, Tensor], names: tuple[str, ...]) -> tuple[bool, float, dict[str, Tensor]]:
    """Print the five best classes of every photograph; returns (all agree, fastconv's largest score difference, probabilities)."""
    agree, largest, probabilities = True, 0.0, {}
    for photograph, image in inputs.items():
        plain, *others = [run(image)[0] for run in runs]
        fused = [scores for run, scores in zip(runs[1:], others, strict=True) if run.way == FUSED]
        same = all(torch.equal(scores.topk(5).indices, plain.topk(5).indices) for scores in others)
        difference = max((scores - plain).abs().max().item() for scores in fused)
        print(f"\n{photograph}: {'same five' if same else 'DIFFERENT'}, largest score difference {difference:.1e}")
        print(f"  PyTorch   {describe(plain, names)}")
        print(f"  fastconv  {describe(fused[-1], names)}")
        agree, largest = agree and same, max(largest, difference)
        probabilities[photograph] = plain.softmax(0)
    return agree, largest, probabilities


def describe(scores: Tensor, names: tuple[str, ...]) -> str:
    probabilities, classes = scores.softmax(0).topk(5)
    return ", ".join(f"{names[c]} {100 * p:.1f} %" for p, c in zip(probabilities.tolist(), classes.tolist(), strict=True))


def measure(runs: list[Contender], inputs: list[Tensor], budget: float, device: str) -> None:
    """Time one photograph at a time, all contenders in turn, so that whatever else the machine does touches them alike."""
    for image in inputs:  # warms caches, allocators and library plans up
        for run in runs:
            run(image)
    start_of_all, shown = time.perf_counter(), sys.stderr.isatty()
    while not runs[-1].seconds or time.perf_counter() - start_of_all < budget:
        for image in inputs:
            for run in runs:
                synchronize(device)
                start = time.perf_counter()
                run(image)
                synchronize(device)
                run.seconds.append(time.perf_counter() - start)
        if shown:
            print(f"\rtiming: {time.perf_counter() - start_of_all:.0f} of {budget:.0f} s ", end="", file=sys.stderr, flush=True)
    if shown:
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr)


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def picture(path: Path, photos: dict, probabilities: dict[str, Tensor], names: tuple[str, ...], caption: str) -> None:
    """Every photograph as the network saw it, with its best class, and the five best below."""
    from matplotlib.figure import Figure

    columns = min(3, len(photos))
    rows = -(-len(photos) // columns)
    figure = Figure(figsize=(3.6 * columns, 5.0 * rows + 0.4), dpi=110, layout="constrained")
    figure.suptitle(caption, fontsize=10)
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[3.2, 1.3] * rows)
    for index, (photograph, image) in enumerate(photos.items()):
        row, column = divmod(index, columns)
        values, classes = probabilities[photograph].topk(5)
        values, labels = [100 * v for v in values.tolist()], [names[c] for c in classes.tolist()]
        top = figure.add_subplot(grid[2 * row, column])
        top.imshow(image)
        top.set_title(f"{labels[0]}  {values[0]:.0f} %", fontsize=12)
        top.axis("off")
        bars = figure.add_subplot(grid[2 * row + 1, column])
        bars.barh(range(5), values, color=["#1b6ca8"] + ["#a9c6dc"] * 4)
        for position, (value, label) in enumerate(zip(values, labels, strict=True)):
            x, side, color = (value - 2, "right", "white") if value > 50 else (value + 2, "left", "#222222")
            bars.text(x, position, label, va="center", ha=side, fontsize=8, color=color)
        bars.set(xlim=(0, 100), ylim=(4.6, -0.6), yticks=[])
        bars.tick_params(labelsize=7)
        bars.xaxis.set_major_formatter("{x:.0f} %")
        bars.spines[["top", "right", "left"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def run(options: argparse.Namespace) -> int:
    try:
        from PIL import Image
    except ImportError:
        print(f"the demo reads photographs with Pillow: {PACKAGES}", file=sys.stderr)
        return 2
    from fastconv.models import InvertedResidual, imagenet

    paths = photographs(options.images)
    if not paths:
        print(f"no photographs found: {PACKAGES}, or name your own image files", file=sys.stderr)
        return 2
    try:
        runs = contenders(options.device)
    except FileNotFoundError as missing:
        print(missing, file=sys.stderr)
        return 2
    photos = {path.stem: imagenet.resize_and_crop(Image.open(path)) for path in paths}
    inputs = {name: imagenet.to_input(image).to(options.device) for name, image in photos.items()}
    names = imagenet.class_names()
    pairs = sum(isinstance(module, InvertedResidual) for module in runs[0].model.modules())
    print(f"MobileNetV2, published ImageNet weights, {len(inputs)} photographs, {options.device}, {torch.get_num_threads()} threads")
    print(f"fastconv runs the {pairs} depthwise + pointwise pairs; everything else, and every parameter, is the same")

    with torch.inference_mode():
        agree, largest, probabilities = compare(runs, inputs, names)
        print(f"\nlargest score difference anywhere: {largest:.1e}")
        if not agree:
            print("the five best classes differ: no times are reported", file=sys.stderr)
            return 1
        measure(runs, list(inputs.values()), options.seconds, options.device)

    print(f"\ntime per photograph, batch 1, median of {len(runs[0].seconds)} (all run in turn)")
    for contender in runs:
        print(f"  {contender.name:37s} {1e3 * contender.median:8.2f} ms")
    best = {way: min((run for run in runs if run.way == way), key=lambda run: run.median) for way in (PLAIN, FOLDED, FUSED)}
    for way in (PLAIN, FOLDED):
        print(f"{best[FUSED].name}: {best[FUSED].median / best[way].median:.2f} of the time of {best[way].name}")

    caption = f"MobileNetV2 with fastconv's fused kernels: same top five as plain PyTorch, scores within {largest:.0e}"
    located = dense(paths[: options.dense], options.device, names) if options.dense > 0 else []
    try:
        picture(options.out, photos, probabilities, names, caption)
        print(f"picture: {options.out}")
        if located:
            path = options.out.with_stem(options.out.stem + "-dense")
            dense_maps.draw(path, located, names, "The same weights, a class at every pixel: MobileNetV2 through fastconv.dense.to_dense")
            print(f"picture: {path}")
    except ImportError:
        print(f"no picture: drawing it needs matplotlib ({PACKAGES})", file=sys.stderr)
    return 0


def dense(paths: list[Path], device: str, names: tuple[str, ...]) -> list[dense_maps.Located]:
    """Class maps and boxes of the first photographs, each told in a line."""
    from PIL import Image

    from fastconv.models import load_pretrained

    model = load_pretrained(backend="torch").to(device, memory_format=torch.channels_last)
    print(f"\nthe same network at every position (strides {', '.join(map(str, dense_maps.STRIDES))} instead of 32)")
    located = []
    for path in paths:
        located.append(dense_maps.locate(path.stem, dense_maps.resized(Image.open(path)), model, device))
        print(dense_maps.describe(located[-1], names))
    return located
