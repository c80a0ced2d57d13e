"""Trains a small DeepLabv3+ twice from the same weights on the same batches: with fastconv, and with torch's own modules alone.

  python -m bench.train                        two minutes or so; results go to bench/results/<device>/train.json and train.png
  python -m bench.train --seconds 600 --size 160

The task needs no download: discs, boxes and triangles, cut out of the tinted negative of one photograph of scikit-image and laid on
another, are to be found and told apart pixel by pixel. Both networks take their steps in turn, in channels_last, so that whatever else the
machine does touches both.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastconv.cli.demo import photographs
from fastconv.models import DRN, DeepLabV3Plus
from fastconv.models.deeplab import Config
from fastconv.models.imagenet import MEAN, STD
from fastconv.nn import plain

from . import machine
from .memory import Memory, saved_bytes

CLASSES = ("photograph", "disc", "box", "triangle")
TINTS = ((255, 60, 60), (60, 220, 60), (60, 60, 255))
FASTCONV, TORCH = "fastconv", "PyTorch"


def pictures() -> list[np.ndarray]:
    from PIL import Image

    found = photographs([])
    if not found:
        raise SystemExit("no photographs found: python -m pip install scikit-image pillow")
    # Half size: shapes then lie on scenes, not on textures.
    images = [Image.open(path).convert("RGB") for path in found]
    return [np.asarray(image.resize((image.width // 2, image.height // 2))) for image in images]


class Shapes:
    """Batches of photographs with one to three shapes on each; drawn anew every time, the same ones for the same seed."""

    def __init__(self, photos: list[np.ndarray], size: int, seed: int):
        self.photos = [p for p in photos if min(p.shape[:2]) >= size]
        if len(self.photos) < 2:
            raise SystemExit(f"size: {size} is larger than the photographs, give less")
        self.size, self.random = size, np.random.default_rng(seed)
        self.rows, self.columns = np.mgrid[:size, :size].astype(np.float32)

    def crop(self, photo: np.ndarray) -> np.ndarray:
        top, left = (self.random.integers(0, length - self.size + 1) for length in photo.shape[:2])
        return photo[top : top + self.size, left : left + self.size]

    def inside(self, kind: int) -> np.ndarray:
        y, x = self.random.uniform(0.2, 0.8, 2) * self.size
        reach = self.random.uniform(0.12, 0.3) * self.size
        turn = self.random.uniform(0, 2 * math.pi)
        u = (self.columns - x) * math.cos(turn) + (self.rows - y) * math.sin(turn)
        v = (self.rows - y) * math.cos(turn) - (self.columns - x) * math.sin(turn)
        if kind == 1:
            return u**2 + v**2 < reach**2
        if kind == 2:
            return np.maximum(abs(u), abs(v)) < 0.85 * reach
        sides = [u * math.cos(a) + v * math.sin(a) for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
        return np.maximum.reduce(sides) < 0.65 * reach

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        images = np.empty((count, self.size, self.size, 3), np.float32)
        labels = np.zeros((count, self.size, self.size), np.int64)
        for image, label in zip(images, labels, strict=True):
            under, over = self.random.choice(len(self.photos), 2, replace=False)
            image[:] = self.crop(self.photos[under])
            for _ in range(self.random.integers(1, 4)):
                kind = self.random.integers(1, 4)
                mask = self.inside(kind)
                # The other photograph's textures as a tinted negative: a few minutes are too short to learn shapes by their outlines alone.
                image[mask] = 0.6 * (255 - self.crop(self.photos[over])[mask]) + 0.4 * np.float32(TINTS[kind - 1])
                label[mask] = kind
        normal = (images / 255 - np.float32(MEAN)) / np.float32(STD)
        # Channels innermost already: channels_last without a copy.
        return torch.from_numpy(normal).permute(0, 3, 1, 2), torch.from_numpy(labels)


def network(seed: int) -> DeepLabV3Plus:
    """A separable DRN-D-22 as encoder of stride 8, and a narrow pyramid and decoder."""
    torch.manual_seed(seed)
    encoder = DRN("drn_d_22", separable=True)
    config = Config(rates=(2, 4, 6), channels=64, low_channels=24)
    return DeepLabV3Plus(encoder, len(CLASSES), config, norm_between=False, dropout=0.0).to(memory_format=torch.channels_last)


class Trainee:
    def __init__(self, name: str, model: nn.Module, rate: float, steps_to_warm: int):
        self.name, self.model = name, model.train()
        self.parameters = [p for p in model.parameters()]
        self.optimiser = torch.optim.AdamW(self.parameters, rate)
        self.rate, self.steps_to_warm = rate, steps_to_warm
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self, image: Tensor, label: Tensor, share: float) -> None:
        """One step; `share` of the training is over, and the rate falls from its warm-up along a half cosine."""
        rate = self.rate * min(1.0, (len(self.losses) + 1) / self.steps_to_warm) * (0.5 + 0.5 * math.cos(math.pi * min(share, 1.0)))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        start = time.perf_counter()
        loss = F.cross_entropy(self.model(image), label)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(loss.item())

    def forward_backward(self, image: Tensor, label: Tensor) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(self.model(image), label).backward()

    @torch.no_grad()
    def scores(self, batches: list[tuple[Tensor, Tensor]]) -> tuple[float, list[float]]:
        """Share of pixels that are right, and intersection over union of each class, in eval mode."""
        self.model.eval()
        matrix = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.float64)
        for image, label in batches:
            found = self.model(image).argmax(1)
            matrix += torch.bincount((label * len(CLASSES) + found).flatten(), minlength=len(CLASSES) ** 2).view_as(matrix)
        self.model.train()
        both = matrix.diagonal()
        return (both.sum() / matrix.sum()).item(), (both / (matrix.sum(0) + matrix.sum(1) - both)).tolist()


def first_gradients(trainees: list[Trainee], image: Tensor, label: Tensor) -> dict[str, float]:
    """Relative distance of each trainee's first gradient from that of float64 autograd."""
    exact = plain(trainees[0].model).double()
    F.cross_entropy(exact(image.double()), label).backward()
    used = [name for name, p in exact.named_parameters() if p.grad is not None]
    reference = torch.cat([exact.get_parameter(name).grad.flatten() for name in used])
    distances = {}
    for trainee in trainees:
        twin = copy.deepcopy(trainee.model)
        F.cross_entropy(twin(image), label).backward()
        ours = torch.cat([twin.get_parameter(name).grad.double().flatten() for name in used])
        distances[trainee.name] = ((ours - reference).norm() / reference.norm()).item()
    return distances


def memory(trainee: Trainee, image: Tensor, label: Tensor) -> dict[str, int | None]:
    """Peak resident memory of a forward and backward pass, and what the forward keeps for the backward."""
    meter = Memory()
    step = SimpleNamespace(parameters=trainee.parameters, forward=lambda _: F.cross_entropy(trainee.model(image), label))
    peak = None if meter.reason else min(meter.peak(lambda: trainee.forward_backward(image, label)) for _ in range(3))
    trainee.optimiser.zero_grad(set_to_none=True)
    return {"peak_bytes": peak, "saved_bytes": saved_bytes(step)}


def train(options: argparse.Namespace) -> dict:
    torch.set_num_threads(options.threads)
    photos = pictures()
    data, held_out = Shapes(photos, options.size, options.seed), Shapes(photos, options.size, options.seed + 1)
    tests = [held_out.batch(options.batch) for _ in range(6)]
    ours = network(options.seed)
    trainees = [Trainee(name, model, 4e-3, 50) for name, model in ((FASTCONV, ours), (TORCH, plain(ours)))]
    description = machine.describe("cpu") | {"command": "python -m bench.train"}
    image, label = data.batch(options.batch)
    gradients = first_gradients(trainees, image, label)
    usage = {trainee.name: memory(trainee, image, label) for trainee in trainees}
    # The statistics moved while memory was measured: both start from the same again.
    trainees[1].model.load_state_dict(trainees[0].model.state_dict())
    print(
        f"{sum(p.numel() for p in ours.parameters()) / 1e6:.2f} M parameters, batches of {options.batch} at {options.size}x{options.size}"
    )
    start = time.perf_counter()
    while (share := (time.perf_counter() - start) / options.seconds) < 1:
        image, label = data.batch(options.batch)
        # Turns about, so that neither always follows the other.
        for trainee in trainees if len(trainees[0].losses) % 2 else reversed(trainees):
            trainee.step(image, label, share)
        if len(trainees[0].losses) % 20 == 0:
            recent = "   ".join(f"{t.name} {np.mean(t.losses[-20:]):.4f}, {1e3 * np.median(t.seconds[-20:]):.0f} ms" for t in trainees)
            print(f"step {len(trainees[0].losses):4d}   {recent}", flush=True)
    result = {"machine": description, "options": {k: v for k, v in vars(options).items() if k != "out"}, "runs": {}}
    for trainee in trainees:
        pixels, overlaps = trainee.scores(tests)
        result["runs"][trainee.name] = usage[trainee.name] | {
            "losses": trainee.losses,
            "seconds": trainee.seconds,
            "median_seconds": float(np.median(trainee.seconds)),
            "first_gradient_error": gradients[trainee.name],
            "right_pixels": pixels,
            "intersection_over_union": dict(zip(CLASSES, overlaps, strict=True)),
        }
    return result | {"trainees": trainees, "tests": tests}


def table(result: dict) -> str:
    rows = [("", *result["runs"])]
    runs = list(result["runs"].values())

    def row(name: str, show) -> None:
        rows.append((name, *(show(run) for run in runs)))

    row("step, median ms", lambda r: f"{1e3 * r['median_seconds']:.1f}")
    row("peak memory of a step, MB", lambda r: "-" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 1e6:.1f}")
    row("activations kept, MB", lambda r: f"{r['saved_bytes'] / 1e6:.1f}")
    row("loss, mean of last 20", lambda r: f"{np.mean(r['losses'][-20:]):.4f}")
    row("held out: right pixels", lambda r: f"{100 * r['right_pixels']:.2f} %")
    row("held out: mean IoU", lambda r: f"{np.mean(list(r['intersection_over_union'].values())):.4f}")
    row("first gradient, error", lambda r: f"{r['first_gradient_error']:.1e}")
    return "\n".join(f"{name:28s}" + "".join(f"{value:>14s}" for value in values) for name, *values in rows)


def draw(result: dict, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.6), dpi=120, layout="constrained")
    grid = figure.add_gridspec(2, 6, height_ratios=[1.5, 1])
    curves, bars = figure.add_subplot(grid[0, :4]), figure.add_subplot(grid[0, 4:])
    runs = result["runs"]
    colors = {FASTCONV: "#c1272d", TORCH: "#4c72b0"}
    for (name, run), style in zip(reversed(runs.items()), ({"linewidth": 3.2, "alpha": 0.55}, {"linewidth": 1.1}), strict=True):
        smooth = np.convolve(run["losses"], np.ones(9) / 9, "valid")
        curves.plot(np.arange(len(smooth)) + 5, smooth, color=colors[name], label=f"{name}", **style)
    curves.set(yscale="log", xlabel="step", ylabel="cross-entropy, mean of 9 steps")
    curves.legend(frameon=False)
    where = result["machine"]
    curves.set_title(
        f"Separable DeepLabv3+ on a DRN-D-22, same weights, same batches\n{where['name']}, {where['threads']} threads",
        fontsize=9,
        loc="left",
    )
    figures = {"ms a step": ("median_seconds", 1e3), "MB peak": ("peak_bytes", 1e-6), "MB kept": ("saved_bytes", 1e-6)}
    for position, (key, scale) in enumerate(figures.values()):
        if any(run[key] is None for run in runs.values()):
            continue
        for shift, (name, run) in zip((-0.2, 0.2), runs.items(), strict=True):
            share = run[key] / runs[TORCH][key]
            bars.bar(position + shift, share, 0.38, color=colors[name])
            bars.text(position + shift, share + 0.02, f"{scale * run[key]:.0f}", ha="center", fontsize=8)
    bars.set(xticks=range(len(figures)), xticklabels=figures, ylim=(0, 1.15), ylabel="beside PyTorch")
    for axes in (curves, bars):
        axes.spines[["top", "right"]].set_visible(False)
    image, label = result["tests"][0]
    found = {t.name: t.model.eval()(image).argmax(1) for t in result["trainees"]}
    for column in range(2):
        pixels = (image[column].permute(1, 2, 0) * torch.tensor(STD) + torch.tensor(MEAN)).clamp(0, 1)
        shown = {"held out": pixels, FASTCONV: found[FASTCONV][column], TORCH: found[TORCH][column]}
        for place, (name, map) in enumerate(shown.items()):
            axes = figure.add_subplot(grid[1, 3 * column + place])
            axes.imshow(pixels)
            if name != "held out":
                axes.imshow(np.ma.masked_equal(map.numpy(), 0), cmap="Set1", vmin=1, vmax=9, alpha=0.75)
            axes.contour(label[column].numpy(), np.arange(len(CLASSES) - 1) + 0.5, colors="white", linewidths=0.7)
            axes.set_title(name, fontsize=9)
            axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=110, help="of training, both networks together (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="rows and columns of the images (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=machine.usable_cpus(), help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="folder of the results (default: bench/results/<device>)")
    options = parser.parse_args()
    result = train(options)
    print(table(result))
    folder = options.out or Path(__file__).parent / "results" / machine.slug(result["machine"])
    draw(result, folder / "train.png")
    kept = {key: result[key] for key in ("machine", "options", "runs")}
    (folder / "train.json").write_text(json.dumps(kept, indent=1) + "\n")
    (folder / "train.txt").write_text(table(result) + "\n")
    print(f"written: {folder / 'train.json'}, train.txt, train.png")


if __name__ == "__main__":
    main()
