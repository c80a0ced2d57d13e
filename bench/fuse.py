"""`python -m bench fuse`: trained networks as their libraries build them, against `fastconv.fuse` and against `torch.compile`.

Every contestant's result is compared with the eager network's before anything is timed; contestants take turns in random order. What
`torch.compile` takes to compile is recorded, and is no part of its time. `fused` decides chain by chain as `fuse` predicts from its example,
`fused, measured` as it measures, `fused, everything` not at all: between them one sees what the decisions are worth.
"""

import gc
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from . import machine, report
from .runtimes import Runner
from .sampling import Budget, in_turns

EAGER, CHANNELS_LAST, COMPILED, FROZEN = "eager", "eager, channels_last", "torch.compile", "torch.compile, freezing"
FUSED, MEASURED, EVERYTHING, FUSED_COMPILED = "fused", "fused, measured", "fused, everything", "fused, torch.compile"
# Relative L2 in float32 between two orders of the same sums, through some sixty layers.
TOLERANCE = 1e-5
BUDGETS = {"quick": Budget(0.5, 0.0), "default": Budget(1.5, 0.0, 9), "full": Budget(4.0, 0.0, 25)}


@dataclass(frozen=True)
class Network:
    """`name` is LIBRARY:NAME, with @STRIDE for an output stride; the size is that of its square image."""

    name: str
    size: int

    @property
    def id(self) -> str:
        return f"{self.name}/{self.size}"


NETWORKS = [
    Network("torchvision:mobilenet_v2", 224),
    Network("torchvision:mobilenet_v3_small", 224),
    Network("torchvision:mobilenet_v3_large", 224),
    Network("torchvision:mnasnet1_0", 224),
    Network("torchvision:shufflenet_v2_x1_0", 224),
    Network("timm:mobilenetv2_100", 224),
    Network("timm:efficientnet_lite0", 224),
    Network("timm:convnext_atto", 224),
    Network("timm:mixnet_s", 224),
    Network("smp:mobilenet_v2", 256),
    Network("timm:xception65@16", 257),
    Network("timm:xception65@8", 257),
]


@dataclass
class Contestant:
    name: str
    call: Callable[[], Tensor]
    prepared_in: float = 0.0
    chains: dict[str, int] = field(default_factory=dict)


def build(name: str) -> nn.Module:
    from fastconv.cli.fuse import import_library, randomise_norms

    torch.manual_seed(0)
    library, _, rest = name.partition(":")
    model, _, stride = rest.partition("@")
    if library == "torchvision":
        made = import_library(library).models.get_model(model, weights=None)
    elif library == "timm":
        made = import_library(library).create_model(model, **({"output_stride": int(stride)} if stride else {}))
    else:
        import_library("timm")
        made = import_library("segmentation_models_pytorch").DeepLabV3Plus(model, encoder_weights=None)
    randomise_norms(made)
    return made.eval()


def _fused(name: str, model: nn.Module, x: Tensor) -> tuple[nn.Module, Contestant]:
    from fastconv import fuse

    start = time.perf_counter()
    made, report = fuse(model) if name == EVERYTHING else fuse(model, x, measure=name == MEASURED)
    took = time.perf_counter() - start
    return made, Contestant(name, lambda: made(x), took, {"replaced": len(report.replaced), "left": len(report.left), "pairs": len(report.pairs)})


def contestants(network: Network, device: str, compiled: bool) -> Iterator[Contestant]:
    model = build(network.name).to(device)
    image = torch.randn(1, 3, network.size, network.size, device=device)
    yield Contestant(EAGER, lambda: model(image))
    twin = build(network.name).to(device, memory_format=torch.channels_last)
    x = image.contiguous(memory_format=torch.channels_last)
    yield Contestant(CHANNELS_LAST, lambda: twin(x))
    made = None
    for name in (FUSED, MEASURED, EVERYTHING):
        made, contestant = _fused(name, twin, x)
        yield contestant
    if not compiled:
        return
    # Distinct options keep the compilations of one model apart.
    ways = {
        COMPILED: torch.compile(twin),
        FROZEN: torch.compile(twin, options={"freezing": True}),
        FUSED_COMPILED: torch.compile(made),
    }
    for name, module in ways.items():
        start = time.perf_counter()
        module(x)
        yield Contestant(name, lambda module=module: module(x), time.perf_counter() - start)


def checked(entry: Contestant, expected: Tensor | None) -> tuple[Tensor, float]:
    """(what later ones are compared with, relative error)."""
    found = entry.call().double()
    if expected is None:
        return found, 0.0
    error = float((found - expected).norm() / expected.norm())
    if not error <= TOLERANCE:
        raise SystemExit(f"{entry.name} is wrong: relative error {error:.1e}, allowed {TOLERANCE:.0e}; nothing is reported")
    return expected, error


def measure(network: Network, device: str, budget: Budget, compiled: bool) -> dict:
    torch.compiler.reset()
    records, calls, expected = [], [], None
    with torch.no_grad():
        for entry in contestants(network, device, compiled):
            expected, error = checked(entry, expected)
            records.append({"name": entry.name, "error": error, "prepared_in": entry.prepared_in, "chains": entry.chains})
            calls.append(entry.call)

        def runner(call: Callable[[], Tensor]) -> Runner:
            def run(_: int) -> tuple:
                out = call()
                if device == "cuda":
                    torch.cuda.synchronize()
                return (out,)

            return Runner(run)

        for record, times in zip(records, in_turns([runner(call) for call in calls], 1, budget), strict=True):
            record |= times
    return {"id": network.id, "network": network.name, "size": network.size, "contestants": records}


def run(device: str, tier: str, threads: int, folder: Path | None, only: str | None = None, compiled: bool = True) -> dict:
    """Measures; returns the result, which lies as fuse.json beside its tables in the folder."""
    from . import fuse_report
    from .run import console

    screen = console()
    torch.set_num_threads(threads)
    description = machine.describe(device)
    chosen = [network for network in NETWORKS if re.search(only or "", network.id)]
    if not chosen:
        raise SystemExit(f"no network matches {only!r}; there are {', '.join(network.id for network in NETWORKS)}")
    folder = folder or Path(__file__).parent / ("out" if tier == "quick" else f"results/{machine.slug(description)}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "fuse.json"
    measured = report.measured_before(path, description, "networks", {network.id for network in chosen})
    order = [network.id for network in NETWORKS]
    result = {"format": 1, "machine": description, "grid": tier, "networks": measured}
    for network in chosen:
        gc.collect()
        measured.append(measure(network, device, BUDGETS[tier], compiled))
        screen.print(fuse_report.news(measured[-1]), soft_wrap=True, markup=False)
        measured.sort(key=lambda record: order.index(record["id"]))
        result["machine"]["load_after"] = os.getloadavg()[0]
        path.write_text(json.dumps(result, indent=1))
    fuse_report.publish(result, folder, screen)
    return result
