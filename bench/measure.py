"""How a case is measured: build every contestant, compare its results with the float64 answer, and only then time it.

On a CPU contestants take turns in one process with one thread count, in bursts; because the idle thread pools of some slow down whoever runs next
to them, each is timed alone as well. Results of many megabytes are fresh pages at every call for whoever allocates them, and no pages at all for a
rival that writes into memory bound beforehand; allocating contestants are therefore also timed while the allocator keeps its pages. A contestant's
time is the best of these medians; all of them are in the JSON.
"""

import ctypes
import gc
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from . import cost, cuda
from .cases import Case
from .memory import Memory, saved_bytes
from .problem import Problem
from .rivals import Rival, contestants
from .runtimes import Runner, Unavailable
from .sampling import GROWN, RECYCLED, Budget, alone, in_turns, malloc

# Outputs from this size on are mapped anew, page by page, at every call of an op that allocates its result.
FRESH_PAGES = 16 * 2**20


@dataclass
class Entry:
    """A contestant in a case: its runner while it lives, and its record in the result file."""

    rival: Rival
    layout: str
    record: dict
    runner: Runner | None = None


def tolerance(problem: Problem, name: str) -> float:
    """Relative error, ||result - float64|| / ||float64||, up to which a result counts as right.

    float32: 64 rounding steps, or half the square root of the number of pixels that a weight's gradient sums over. 16-bit results: one step, which is two roundings to nearest at worst (an
    unfused chain rounds its intermediate too). TF32 keeps 10 bits of each factor. A maximum does not round at all. A gradient behind an activation
    whose kink some values lie closer to than rounding can tell may differ in just that share of them.
    """
    if problem.case.op == "max_pool" and name == "output":
        return 0.0
    epsilon = torch.finfo(problem.dtype).eps
    steps = epsilon
    if problem.dtype is torch.float32:
        tf32 = problem.device == "cuda" and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
        pixels = problem.case.batch * problem.case.out_shape[2] * problem.case.out_shape[3]
        steps = 2.0**-10 if tf32 else max(64, pixels**0.5 / 2 if name in problem.parameters else 0) * epsilon
    return steps if name == "output" else (steps**2 + 4 * problem.ambiguous) ** 0.5


def compare(problem: Problem, name: str, result: torch.Tensor) -> dict:
    """Error of one result, and whether it is right: overall, and in its worst element (a wrong corner must not hide in a large map's norm)."""
    expected, limit = problem.expected[name], tolerance(problem, name)
    if result.shape != expected.shape or result.dtype != problem.dtype:
        return {"error": float("inf"), "tolerance": limit, "right": False, "found": f"{result.dtype} {tuple(result.shape)}"}
    difference = result.detach().cpu().double().sub_(expected)
    scale = expected.norm().item()
    error = difference.norm().item() / max(scale, 1e-30)
    worst = difference.abs().max().item() / max(scale / expected.numel() ** 0.5, 1e-30)
    allowed_worst = float("inf") if problem.ambiguous and name != "output" else 32 * limit
    return {"error": error, "worst": worst, "tolerance": limit, "right": error <= limit and worst <= allowed_worst}


def check(problem: Problem, runner: Runner) -> dict[str, dict]:
    """Compare the results on the first and on the last copy of the inputs; keep the worse."""
    found: dict[str, dict] = {}
    for index in (0, problem.copies - 1):
        results = runner.call(index)
        for name, result in zip(problem.expected, results, strict=True):
            now = compare(problem, name, result)
            if name not in found or (now["right"], -now["error"]) < (found[name]["right"], -found[name]["error"]):
                found[name] = now
    return found


def _enter(problem: Problem, entry: Entry) -> None:
    """Build and check one contestant; whatever stops it is written down in plain words."""
    start = time.perf_counter()
    try:
        runner = entry.rival.build(problem, entry.layout)
        entry.record["build_seconds"] = time.perf_counter() - start
        found = check(problem, runner)
    except Unavailable as reason:
        entry.record |= {"status": "skipped", "reason": str(reason)}
        return
    except Exception as error:  # a rival's own failure is a result of the benchmark, not of ours
        lines = str(error).strip().splitlines() or [""]
        entry.record |= {"status": "failed", "reason": f"{type(error).__name__}: {lines[0][:300]}"}
        return
    right = all(one["right"] for one in found.values())
    entry.record |= {"status": "ok" if right else "wrong", "checks": found, "bound": runner.bound}
    entry.runner = runner if right else None


def _time_on_cpu(problem: Problem, entries: list[Entry], budget: Budget) -> Iterator[str]:
    copies = problem.copies
    yield "timing in turns"
    for entry, figures in zip(entries, in_turns([entry.runner for entry in entries], copies, budget), strict=True):
        entry.record["turns"] = figures
    best = min((entry.record["turns"]["median"] for entry in entries), default=0.0)

    def by_itself(entry: Entry, name: str, call) -> None:
        entry.record[name] = alone(call, copies, budget, entry.record["turns"]["median"], best)

    for entry in entries:
        yield f"timing {entry.rival.name} alone"
        by_itself(entry, "alone", entry.runner.call)
        if entry.runner.allocating:
            by_itself(entry, "allocating", entry.runner.allocating)
    if problem.output_bytes >= FRESH_PAGES and malloc(RECYCLED):
        yield "timing with recycled memory"
        for entry in entries:
            if not entry.runner.bound:
                by_itself(entry, "recycled", entry.runner.call)
        malloc(GROWN)
        ctypes.CDLL(None).malloc_trim(0)


def best_time(record: dict) -> float | None:
    """The time a record stands for: on a CPU the best median of in turns, alone and with recycled pages, on a GPU the median with a cold L2."""
    figures = [record[name]["median"] for name in ("turns", "alone", "recycled", "cold") if name in record]
    return min(figures, default=None)


class Bench:
    """Measures cases one after the other on one device. `steps(case)` yields what it is doing, for a progress display, and leaves `record`."""

    def __init__(self, device: str, budget: Budget, caches: dict[str, int]):
        self.device, self.budget = device, budget
        self.cache_bytes = 4 * caches.get("L2", 2**20)
        self.memory = Memory() if device == "cpu" else None
        self.record: dict = {}
        malloc(GROWN)

    def steps(self, case: Case) -> Iterator[str]:
        with torch.cuda.stream(cuda.stream()) if self.device == "cuda" else nullcontext():
            yield from self._steps(case)

    def _steps(self, case: Case) -> Iterator[str]:
        yield "making the inputs and the float64 answer"
        problem = Problem(case, self.device, self.cache_bytes)
        entries = [Entry(rival, layout, {"rival": rival.name, "layout": layout}) for rival, layout in self.pairings()]
        for entry in entries:
            yield f"building {entry.rival.name} {entry.layout}"
            _enter(problem, entry)
        running = [entry for entry in entries if entry.runner is not None]
        gc.collect()
        for entry in running:
            yield f"memory of {entry.rival.name}"
            self._measure_memory(problem, entry)
        if self.device == "cuda":
            yield from cuda.time_on_cuda(problem, running, self.budget)
        else:
            yield from _time_on_cpu(problem, running, self.budget)
        self.record = self._record(case, problem, entries)

    def pairings(self) -> Iterator[tuple[Rival, str]]:
        """Who runs in which memory format."""
        return ((rival, layout) for rival in contestants(self.device) for layout in rival.layouts)

    def _measure_memory(self, problem: Problem, entry: Entry) -> None:
        if self.device == "cuda":
            entry.record["peak_bytes"] = cuda.peak_bytes(entry.runner)
        else:
            entry.record["peak_bytes"] = self.memory.of(entry.runner)
        if problem.case.direction == "forward_backward":
            entry.record["saved_bytes"] = saved_bytes(entry.runner)

    def _record(self, case: Case, problem: Problem, entries: list[Entry]) -> dict:
        work = cost.cost(case)
        return {
            "id": case.id,
            "case": vars(case) | {"pad": case.pad, "shape": case.shape, "section": case.section},
            "flops": work.flops,
            "bytes": work.bytes,
            "footprint": problem.footprint,
            "copies": problem.copies,
            "results": [entry.record for entry in entries],
        }
