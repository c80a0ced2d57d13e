"""Taking samples on a CPU: budgets, turns, bursts, and the allocator's two moods."""

import ctypes
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from .runtimes import Runner

# glibc's mallopt parameters; its own values once its thresholds have grown as far as they grow, and values that never give memory back.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
GROWN = {M_TRIM_THRESHOLD: 64 * 2**20, M_MMAP_THRESHOLD: 32 * 2**20, M_MMAP_MAX: 65536}
RECYCLED = {M_TRIM_THRESHOLD: 2**31 - 1, M_MMAP_MAX: 0}


@dataclass(frozen=True)
class Budget:
    """Seconds per contestant in turns and alone, and samples below which no median is believed."""

    turns: float
    alone: float
    samples: int = 5


BUDGETS = {"quick": Budget(0.06, 0.06), "default": Budget(0.1, 0.08), "full": Budget(0.35, 0.3, 9)}


def summary(samples: list[float]) -> dict:
    quartiles = statistics.quantiles(samples, n=4) if len(samples) > 1 else [samples[0]] * 3
    return {"median": statistics.median(samples), "min": min(samples), "iqr": quartiles[2] - quartiles[0], "samples": len(samples)}


def _burst(call: Callable, copies: int, count: int) -> list[float]:
    samples = []
    for index in range(count):
        start = time.perf_counter()
        call(index % copies)
        samples.append(time.perf_counter() - start)
    return samples


def in_turns(runners: list[Runner], copies: int, budget: Budget) -> list[dict]:
    """Round-robin in a fresh random order each round: a turn is one untimed call and a short burst of timed ones."""
    shuffle = random.Random(0).shuffle
    samples: list[list[float]] = [[] for _ in runners]
    guess = [min(_burst(runner.call, copies, 2)) for runner in runners]
    bursts = [max(1, min(8, int(0.01 / seconds))) for seconds in guess]
    end = time.perf_counter() + budget.turns * len(runners)
    order = list(range(len(runners)))
    while order and (time.perf_counter() < end or min(map(len, samples)) < budget.samples):
        shuffle(order)
        for index in order:
            samples[index] += _burst(runners[index].call, copies, bursts[index] + 1)[1:]
    return [summary(values) for values in samples]


def alone(call: Callable, copies: int, budget: Budget) -> dict:
    """After a pause in which spinning thread pools fall asleep: calls in a row."""
    time.sleep(0.01)
    warm = min(_burst(call, copies, 2))
    return summary(_burst(call, copies, max(budget.samples, min(400, int(budget.alone / warm)))))


def malloc(settings: dict[int, int]) -> bool:
    """Set glibc's allocator; False where there is no glibc."""
    try:
        return all(ctypes.CDLL(None).mallopt(name, value) == 1 for name, value in settings.items())
    except (OSError, AttributeError):
        return False
