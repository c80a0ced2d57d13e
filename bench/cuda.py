"""Timing and memory on a GPU: device events around replays of a captured graph, inputs rotated so that L2 is cold, and a second figure warm."""

import time
from collections.abc import Callable, Iterator

import torch

from .problem import Problem
from .runtimes import Runner
from .sampling import Budget, summary

PAUSE = 0.05
WARM_CALLS = 8


def stream() -> torch.cuda.Stream:
    """The one stream everything of a run happens on: a backward pass runs on its forward's stream, and a capture must see both on its own."""
    if not hasattr(stream, "only"):
        stream.only = torch.cuda.Stream()
    return stream.only


def _captured(call: Callable, indices: list[int]) -> Callable[[], None]:
    """A replay of one call per index. Results are dropped during the capture, so that the graph's pool hands the same memory to the next call."""
    for index in dict.fromkeys(indices):
        call(index)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream()):
        for index in indices:
            call(index)
    return graph.replay


def _replayable(call: Callable, indices: list[int]) -> tuple[Callable[[], None], str | None]:
    """A graph replay, or plain calls and the reason where a contestant can't be captured."""
    try:
        return _captured(call, indices), None
    except RuntimeError as error:
        torch.cuda.synchronize()
        return lambda: [call(index) for index in indices], (str(error).strip().splitlines() or ["capture failed"])[0][:200]


def _samples(replay: Callable[[], None], calls: int, budget: float, least: int) -> list[float]:
    """Device seconds of one call in each replay; replays are queued in groups so that launching never shows."""
    for _ in range(3):
        replay()
    torch.cuda.synchronize()
    samples, end = [], time.perf_counter() + budget
    while len(samples) < least or (time.perf_counter() < end and len(samples) < 1000):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(11)]
        marks[0].record()
        for mark in marks[1:]:
            replay()
            mark.record()
        marks[-1].synchronize()
        samples += [before.elapsed_time(after) / 1e3 / calls for before, after in zip(marks, marks[1:], strict=False)]
    return samples


def time_on_cuda(problem: Problem, entries: list, budget: Budget) -> Iterator[str]:
    """Fill in "cold" (every call reads inputs that have left L2) and "warm" (the same input again and again) of each entry."""
    rounds = {"cold": list(range(problem.copies)), "warm": [0] * WARM_CALLS}
    for entry in entries:
        for name, indices in rounds.items():
            yield f"timing {entry.rival.name} {name}"
            replay, reason = _replayable(entry.runner.call, indices)
            entry.record[name] = summary(_samples(replay, len(indices), budget.turns, 20))
            if reason:
                entry.record["no_graph"] = reason
            del replay
            time.sleep(PAUSE)


def seconds_of(call: Callable[[], object], calls: int = 16) -> float:
    """Median device seconds of a call, over replays of a graph of several."""
    with torch.cuda.stream(stream()):
        replay, _ = _replayable(lambda index: call(), list(range(calls)))
        return summary(_samples(replay, calls, 0.05, 20))["median"]


def peak_bytes(runner: Runner) -> int:
    """Most memory allocated during a call beyond what was allocated before it (inputs and weights); results included."""
    runner.call(0)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    runner.call(0)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
