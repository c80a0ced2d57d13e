"""`python -m bench dense`: a strided network at every position, by shifted runs, on fragments, dilated, and as `to_dense` chooses.

Three networks of total stride 32. Every contestant's map is compared before anything is timed: at the strided positions with the strided
network, everywhere with the dilated network. Contestants take turns; a time is the median of its turns. Shifted runs, 1024 for one map, are
all run at the size that the speed goal names; at others a drawn sample of them stands for all, which the result says.
"""

import gc
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from . import machine, report
from .memory import Memory

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
STRIDE, CLASSES = 32, 21
# The size of the goal: all shifted runs, both memory formats, and the measured choice too.
GOAL_SIZE = 224
SIZES = {"quick": (96,), "default": (96, 160, GOAL_SIZE, 320), "full": (96, 160, GOAL_SIZE, 320, 448)}
# Turns of each contestant: as many as fit into the seconds, but at least and at most so many.
FEWEST, MOST, SECONDS = 5, 25, 12.0
SAMPLED_RUNS = 64
# Relative L2 in float32 between two orders of the same sums, through some fifty layers.
TOLERANCE = 1e-5
SHIFTED, FRAGMENTS, DILATED, AUTO, TUNED = "shifted runs", "fragments", "dilated", "auto", "auto, tuned"


@dataclass(frozen=True)
class DenseCase:
    network: str
    layout: str
    size: int

    @property
    def id(self) -> str:
        return f"{self.network}/{self.layout}/{self.size}"


@dataclass
class Contestant:
    """One way to the dense map. share: the part of the map that a call computes."""

    name: str
    call: Callable[[Tensor], Tensor]
    share: float = 1.0
    chosen: str = ""
    converted_in: float = 0.0
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    error: float | None = None

    def record(self) -> dict:
        values = asdict(self)
        del values["call"]
        return values | {"median": statistics.median(self.seconds) if self.seconds else None}


def norm_and_relu(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(channels), nn.ReLU(inplace=True)


def vgg_like(width: int = 32) -> nn.Module:
    """VGG-11's body at half its width, five max pools, and a head of convolutions."""
    layers, channels = [], 3
    for out, depth in zip((width, 2 * width, 4 * width, 8 * width, 8 * width), (1, 1, 2, 2, 2), strict=True):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, out, 3, padding=1), *norm_and_relu(out)]
            channels = out
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Conv2d(channels, CLASSES, 1))


class BasicBlock(nn.Module):
    """He et al. 2016 (arXiv:1512.03385)."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False),
            *norm_and_relu(out),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        same = stride == 1 and channels == out
        self.short = nn.Identity() if same else nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.main(x) + self.short(x))


def small_resnet(width: int = 32) -> nn.Module:
    """ResNet-10 at half its width."""
    stem = [nn.Conv2d(3, width, 7, 2, 3, bias=False), *norm_and_relu(width), nn.MaxPool2d(3, 2, 1)]
    sizes = (width, width, 2 * width, 4 * width, 8 * width)
    blocks = [BasicBlock(a, b, 1 if a == b else 2) for a, b in zip(sizes, sizes[1:], strict=False)]
    return nn.Sequential(*stem, *blocks, nn.Conv2d(sizes[-1], CLASSES, 1))


def mobilenet_v2() -> nn.Module:
    from fastconv.models import MobileNetV2

    class Segmenter(nn.Module):
        """Its features with a classifier at every position: what is slid when the head's average is taken away."""

        def __init__(self):
            super().__init__()
            self.network = MobileNetV2(num_classes=1)
            self.classifier = nn.Conv2d(1280, CLASSES, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(self.network.features(x))

    return Segmenter()


NETWORKS = {"vgg-like": vgg_like, "mobilenetv2": mobilenet_v2, "small resnet": small_resnet}


def build(name: str) -> nn.Module:
    """The network with statistics like a trained one's, so that no map dies out or blows up."""
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.2, 0.8)
    return model


def shifted_runs(model: nn.Module, x: Tensor, offsets: list[tuple[int, int]]) -> Tensor:
    """What everybody writes first: the network on the image cut off by each offset, the results written between each other."""
    with torch.inference_mode():
        first = model(x)
        out = first.new_zeros(*first.shape[:2], *(n * STRIDE for n in first.shape[2:]))
        for oy, ox in offsets:
            part = model(x[:, :, oy:, ox:])
            out[:, :, oy::STRIDE, ox::STRIDE][:, :, : part.shape[2], : part.shape[3]] = part
        return out


def contestants(model: nn.Module, x: Tensor, case: DenseCase, sample: bool) -> Iterator[Contestant]:
    from fastconv.dense import to_dense

    offsets = [(oy, ox) for oy in range(STRIDE) for ox in range(STRIDE)]
    # Offset 0 is what is compared. The others are drawn, not every so many: multiples of a power of two leave sizes that suit the machine.
    runs = [offsets[0], *random.Random(0).sample(offsets[1:], SAMPLED_RUNS - 1)] if sample else offsets
    methods = [DILATED, FRAGMENTS, AUTO] + ([TUNED] if case.size == GOAL_SIZE and not sample else [])
    for name in methods:
        start = time.perf_counter()
        dense = to_dense(model, 1, name.split(",")[0], x, verify=False, tune=name == TUNED)
        yield Contestant(name, dense, chosen=dense.report.plan.choice, converted_in=time.perf_counter() - start)
    yield Contestant(SHIFTED, lambda image: shifted_runs(model, image, runs), share=len(runs) / len(offsets))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def check(entry: Contestant, found: Tensor, strided: Tensor, dense: Tensor | None) -> Tensor:
    """Sets the error; returns the map that later ones are compared with. Shifted runs treat the borders differently, so theirs are compared
    where they must agree."""
    error = relative_error(found[..., ::STRIDE, ::STRIDE], strided)
    if dense is not None and entry.name != SHIFTED:
        error = max(error, relative_error(found, dense))
    entry.error = error
    if not error <= TOLERANCE:
        raise SystemExit(f"{entry.name} is wrong: relative error {error:.1e}, allowed {TOLERANCE:.0e}; nothing is reported")
    return found if dense is None else dense


def seconds(call: Callable[[], object], device: str) -> float:
    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def peak(call: Callable[[], Tensor], device: str, memory: Memory | None) -> tuple[Tensor, int | None]:
    """The result, and the bytes that it took above what was there."""
    kept = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept.append(call())
        torch.cuda.synchronize()
        return kept[0], torch.cuda.max_memory_allocated() - before
    if memory is None or memory.reason:
        return call(), None
    used = memory.peak(lambda: kept.append(call()))
    return kept[0], used


def measure(case: DenseCase, device: str, memory: Memory | None) -> dict:
    model = build(case.network).to(device, memory_format=FORMATS[case.layout])
    x = torch.randn(1, 3, case.size, case.size, device=device).contiguous(memory_format=FORMATS[case.layout])
    sample = case.size != GOAL_SIZE
    with torch.inference_mode():
        strided = model(x)
        single = min(seconds(lambda: model(x), device) for _ in range(20))
    entries, dense = [], None
    for entry in contestants(model, x, case, sample):
        with torch.inference_mode():
            result, entry.peak_bytes = peak(lambda call=entry.call: call(x), device, memory)
            dense = check(entry, result, strided, dense)
        entries.append(entry)
        del result
    del dense
    with torch.inference_mode():
        start, order = time.perf_counter(), random.Random(0)
        for turn in range(MOST):
            if turn >= FEWEST and time.perf_counter() - start > SECONDS:
                break
            # Not always behind the same one, which leaves the caches and the memory as it does.
            for entry in order.sample(entries, len(entries)):
                # A thousand runs are a mean already.
                if turn == 0 or entry.name != SHIFTED or sample:
                    entry.seconds.append(seconds(lambda call=entry.call: call(x), device) / entry.share)
    return asdict(case) | {"id": case.id, "strided_seconds": single, "contestants": [entry.record() for entry in entries]}


def cases(tier: str) -> list[DenseCase]:
    found = [DenseCase(network, "channels_last", size) for network in NETWORKS for size in SIZES[tier]]
    return found + ([DenseCase(network, "contiguous", GOAL_SIZE) for network in NETWORKS] if tier != "quick" else [])


def run(device: str, tier: str, threads: int, folder: Path | None, only: str | None = None) -> dict:
    """Measures; returns the result, which lies as dense.json beside its table and plot in the folder."""
    import re

    from . import dense_report
    from .run import console

    screen = console()
    torch.set_num_threads(threads)
    description = machine.describe(device)
    chosen = [case for case in cases(tier) if re.search(only or "", case.id)]
    if not chosen:
        raise SystemExit(f"no case matches {only!r}; there are {', '.join(case.id for case in cases(tier))}")
    result = {"format": 1, "machine": description, "grid": tier, "stride": STRIDE, "goal_size": GOAL_SIZE, "cases": []}
    partial = only is not None or tier == "quick"
    folder = folder or Path(__file__).parent / ("out" if partial else f"results/{machine.slug(description)}")
    folder.mkdir(parents=True, exist_ok=True)
    result["cases"] = report.measured_before(folder / "dense.json", description, "cases", {case.id for case in chosen})
    memory = Memory() if device == "cpu" else None
    for case in chosen:
        gc.collect()
        result["cases"].append(measure(case, device, memory))
        screen.print(dense_report.news(result["cases"][-1]), soft_wrap=True, markup=False)
        (folder / "dense.json").write_text(json.dumps(result, indent=1))
    result["machine"]["load_after"] = os.getloadavg()[0]
    (folder / "dense.json").write_text(json.dumps(result, indent=1))
    dense_report.publish(result, folder, screen)
    return result
