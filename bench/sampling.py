"""Taking samples on a CPU: budgets, turns, bursts, and the allocator's two moods."""

import ctypes
import random
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from .runtimes import Runner

# glibc's mallopt parameters; its own values once its thresholds have grown as far as they grow, and values that never give memory back.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
GROWN = {M_TRIM_THRESHOLD: 64 * 2**20, M_MMAP_THRESHOLD: 32 * 2**20, M_MMAP_MAX: 65536}
RECYCLED = {M_TRIM_THRESHOLD: 2**31 - 1, M_MMAP_MAX: 0}


# Seconds: how long another's threads may go on spinning after its call, about, and the pause in which they surely stop.
SHORT_CALL, PAUSE = 0.01, 0.01
# Page faults of a call below which its memory counts as settled, and the seconds and calls that settling may take.
FEW_FAULTS, SETTLING, SETTLING_CALLS = 16, 0.1, 40
# A contestant that takes this many times as long as the fastest is sampled less.
FAR_BEHIND = 4


@dataclass(frozen=True)
class Budget:
    """Seconds per contestant in turns and alone, and samples below which no median is believed."""

    turns: float
    alone: float
    samples: int = 5


BUDGETS = {"quick": Budget(0.06, 0.05), "default": Budget(0.06, 0.05), "full": Budget(0.3, 0.25, 9)}


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


def _needed(seconds: list[float], budget: Budget) -> list[int]:
    """Samples each contestant must give: two are enough for one that is far behind."""
    return [budget.samples if one < FAR_BEHIND * min(seconds) else 2 for one in seconds]


def in_turns(runners: list[Runner], copies: int, budget: Budget) -> list[dict]:
    """Round-robin in a fresh random order each round, until each has had its seconds and its samples. A turn is a short burst; its first call is not
    timed where the call is so short that another's spinning threads would matter."""
    shuffle = random.Random(0).shuffle
    samples: list[list[float]] = [[] for _ in runners]
    guess = [min(_burst(runner.call, copies, 2)) for runner in runners]
    needed = _needed(guess, budget)
    waiting = list(range(len(runners)))
    while waiting:
        shuffle(waiting)
        for index in waiting:
            warm = int(guess[index] < SHORT_CALL)
            count = warm + max(1, min(8, int(SHORT_CALL / guess[index])))
            samples[index] += _burst(runners[index].call, copies, count)[warm:]
        waiting = [index for index in waiting if sum(samples[index]) < budget.turns or len(samples[index]) < needed[index]]
    return [summary(values) for values in samples]


def _settle(call: Callable, copies: int) -> None:
    """Call until the allocator hands out memory it has handed out before: a new result moves through the heap for a dozen calls, on fresh pages, a
    microsecond each. Contestants that write into bound memory are settled at once."""
    start = time.perf_counter()
    for index in range(SETTLING_CALLS):
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        call(index % copies)
        if resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < FEW_FAULTS and index > 0:
            return
        if time.perf_counter() - start > SETTLING:
            return


def alone(call: Callable, copies: int, budget: Budget, seconds: float, best: float) -> dict:
    """After a pause in which spinning thread pools fall asleep: calls in a row. `seconds` is about what a call takes, `best` what the fastest takes."""
    time.sleep(PAUSE)
    _settle(call, copies)
    least = _needed([seconds, best], budget)[0]
    return summary(_burst(call, copies, max(least, min(400, int(budget.alone / seconds)))))


def malloc(settings: dict[int, int]) -> bool:
    """Set glibc's allocator; False where there is no glibc."""
    try:
        return all(ctypes.CDLL(None).mallopt(name, value) == 1 for name, value in settings.items())
    except (OSError, AttributeError):
        return False
