"""`pytest bench`: the benchmark's cases under pytest-benchmark, one test per case, contestant and memory format.

    pytest bench --grid quick --benchmark-json before.json
    pytest-benchmark compare before.json after.json

A group is a case; extra_info holds the error against float64, the floor, and the time over the floor and over the best rival. Results are checked
before they are timed, as everywhere. On a GPU these are wall-clock times of launch and execution; `python -m bench` has the device's own.
"""

from functools import lru_cache

import pytest
import torch

from . import cost, machine
from .cases import TIERS, select
from .measure import Bench, check
from .problem import Problem
from .rivals import contestants
from .runtimes import Unavailable
from .sampling import BUDGETS

MAX_ROUNDS = 200


def pytest_addoption(parser):
    group = parser.getgroup("fastconv benchmark")
    group.addoption("--grid", choices=TIERS, default="quick", help="how many of the cases (default: %(default)s)")
    group.addoption("--bench-device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    group.addoption("--bench-threads", type=int, default=machine.usable_cpus(), help="CPU threads (default: %(default)s)")


def pytest_collect_file(file_path, parent):
    return pytest.Module.from_parent(parent, path=file_path) if file_path.match("bench_*.py") else None


def pytest_generate_tests(metafunc):
    """Rivals before fastconv, so that its tests know the best rival's time."""
    if "contest" not in metafunc.fixturenames:
        return
    device, grid = (metafunc.config.getoption(name) for name in ("--bench-device", "--grid"))
    bench = Bench(device, BUDGETS[grid], machine.cache_sizes())
    contests = [
        (case, rival, layout)
        for case in select(device, grid)
        if case.op in metafunc.module.OPERATORS
        for rival, layout in sorted(bench.pairings(), key=lambda pair: pair[0].is_subject)
    ]
    names = [f"{case.id}-{rival.name.replace(' ', '-')}-{layout}" for case, rival, layout in contests]
    metafunc.parametrize("contest", contests, ids=names)


@pytest.fixture(scope="session")
def ceilings(pytestconfig):
    torch.set_num_threads(pytestconfig.getoption("--bench-threads"))
    return machine.ceilings(pytestconfig.getoption("--bench-device"))


@lru_cache(maxsize=1)
def problem_of(case, device: str) -> Problem:
    return Problem(case, device, Bench(device, BUDGETS["quick"], machine.cache_sizes()).cache_bytes)


@pytest.fixture(scope="session")
def best_rivals() -> dict[str, float]:
    """Case id -> median seconds of the fastest rival so far."""
    return {}


@pytest.fixture
def timed(contest, benchmark, ceilings, best_rivals, pytestconfig):
    """Build, compare, time, annotate."""
    case, rival, layout = contest
    device = pytestconfig.getoption("--bench-device")

    def measure():
        problem = problem_of(case, device)
        try:
            runner = rival.build(problem, layout)
        except Unavailable as reason:
            pytest.skip(str(reason))
        found = check(problem, runner)
        assert all(one["right"] for one in found.values()), found
        benchmark.group = case.id
        copies = iter(range(10**9))

        def call():
            runner.call(next(copies) % problem.copies)
            if device == "cuda":
                torch.cuda.synchronize()

        seconds = min(machine.timed(call) for _ in range(3))
        rounds = max(5, min(MAX_ROUNDS, int(BUDGETS["full"].alone / seconds)))
        benchmark.pedantic(call, rounds=rounds, iterations=1, warmup_rounds=2)
        if benchmark.enabled:
            _annotate(benchmark, contest, problem, ceilings, best_rivals, max(one["error"] for one in found.values()))

    return measure


def _annotate(benchmark, contest, problem, ceilings, best_rivals, error) -> None:
    case, rival, layout = contest
    median = benchmark.stats.stats.median
    floor = cost.floor(case, ceilings, problem.footprint, problem.device)
    benchmark.extra_info.update(rival=rival.name, layout=layout, error=error, bound=floor["bound"], floor_ms=floor["seconds"] * 1e3)
    benchmark.extra_info["over_floor"] = median / floor["seconds"]
    if rival.is_subject and case.id in best_rivals:
        benchmark.extra_info["over_best_rival"] = median / best_rivals[case.id]
    elif not rival.is_subject:
        best_rivals[case.id] = min(median, best_rivals.get(case.id, median))
