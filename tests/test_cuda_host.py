"""The CUDA kernels, executed on the CPU: csrc/cuda/*.cu compiled by the host's compiler against tests/cuda_host, which runs every CUDA thread
of a block as a fiber in a random order.

Three builds: `asan` finds accesses out of bounds and misaligned ones, `race` finds missing barriers, unwaited copies and reads of shared memory
that nobody wrote, `fast` carries no instrumentation. Every result is held against float64. The first test is of the net itself: bugs planted on
purpose must be caught by the builds that claim to.
"""

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cuda_host import build, cases, cases_random, cases_separable  # noqa: E402

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=f"the CUDA kernels cannot be run on this host: {build.why_not()}")

WRONG_RESULT, SANITIZER, RUNTIME = 3, 1, 70

# Plant: exit codes by build, for the builds that must catch it. Races show as wrong results in the other builds only if the order of threads
# happens to bring them out, so nothing is demanded of those.
PLANTS = {
    "missing_barrier": {"race": RUNTIME},
    "missing_loop_end_barrier": {"race": RUNTIME},
    "missing_warp_barrier": {"race": RUNTIME},
    "missing_copy_wait": {"fast": WRONG_RESULT, "asan": SANITIZER, "race": RUNTIME},
    "wrong_copy_group": {"race": RUNTIME},
    "copy_never_awaited": {"fast": RUNTIME, "asan": RUNTIME, "race": RUNTIME},
    "write_over_copy_in_flight": {"race": RUNTIME},
    "halo_off_by_one": {"asan": SANITIZER},
    "copy_past_the_end": {"asan": SANITIZER},
    "shared_overrun": {"asan": SANITIZER, "race": RUNTIME},
    "shared_overcommit": {"fast": RUNTIME, "asan": RUNTIME, "race": RUNTIME},
    "uninitialised_read": {"race": RUNTIME},
    "divergent_barrier": {"fast": RUNTIME, "asan": RUNTIME, "race": RUNTIME},
    "early_exit_before_barrier": {"fast": RUNTIME, "asan": RUNTIME, "race": RUNTIME},
    "divergent_collective": {"fast": RUNTIME, "asan": RUNTIME, "race": RUNTIME},
    "wrong_named_barrier": {"fast": RUNTIME, "asan": RUNTIME, "race": RUNTIME},
    "named_barrier_too_narrow": {"race": RUNTIME},
    "handed_over_too_early": {"race": RUNTIME},
    "place_not_released": {"race": RUNTIME},
    "misaligned_load": {"fast": RUNTIME, "asan": RUNTIME, "race": RUNTIME},
    "misaligned_matrix_row": {"fast": RUNTIME, "asan": RUNTIME, "race": RUNTIME},
    "output_left_unwritten": {"fast": WRONG_RESULT, "asan": WRONG_RESULT, "race": WRONG_RESULT},
}

FORWARD = ("separable", "separable_float", "separable_persistent", "separable_planes", "separable_taps")
# Program: kernel sources (instrumented), the rest, cases.
PROGRAMS = {
    "depthwise": (["csrc/cuda/depthwise.cu"], ["run_depthwise.cpp"], cases.depthwise),
    "depthwise_backward": (["csrc/cuda/depthwise.cu", "csrc/cuda/depthwise_backward.cu"], ["run_depthwise_backward.cpp"], cases.depthwise_backward),
    "shift_stitch": (["csrc/cuda/shift_stitch.cu"], ["run_shift_stitch.cpp"], cases.shift_stitch),
    "max_pool": (["csrc/cuda/max_pool.cu"], ["run_max_pool.cpp"], cases.max_pool),
    "max_pool_backward": (["csrc/cuda/max_pool_backward.cu"], ["run_max_pool_backward.cpp"], cases.max_pool_backward),
    "avg_pool": (["csrc/cuda/avg_pool.cu"], ["run_avg_pool.cpp"], cases.avg_pool),
    "separable": (
        [f"csrc/cuda/{name}.cu" for name in FORWARD],
        ["run_separable.cpp"],
        cases_separable.separable,
    ),
    "separable_backward": (
        [f"csrc/cuda/{name}.cu" for name in FORWARD]
        + [f"csrc/cuda/{name}.cu" for name in ("separable_backward", "separable_backward_planes", "separable_backward_taps")],
        ["run_separable_backward.cpp"],
        cases_separable.separable_backward,
    ),
}
PLAIN = ["driver.cpp", *(f"csrc/common/{path.name}" for path in sorted((build.ROOT / "csrc" / "common").glob("plan*.cpp")))]

# Fresh operands and a fresh order of threads each time; a failure prints the line of its case, seed included.
SEED = int(os.environ.get("FASTCONV_TEST_SEED", random.randrange(1_000_000)))
RANDOM_CASES = int(os.environ.get("FASTCONV_RANDOM_CASES", 24))
JOBS = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))


@cache
def planted() -> dict[str, Path]:
    return build.binaries("planted", ["planted.cpp"], [])


@cache
def program(name: str) -> dict[str, Path]:
    kernels, plain, _ = PROGRAMS[name]
    return build.binaries(name, kernels, [*plain, *PLAIN])


def execute(binary: Path, lines: list[str]) -> str | None:
    """Runs the lines through a program; the report of what went wrong, or None."""
    done = subprocess.run([binary, "--preempt-shared", "64"], input="\n".join(lines) + "\n", capture_output=True, text=True)
    if done.returncode == 0 and "done: 0 failed" in done.stdout and done.stdout.count("\nok") == len(lines):
        return None
    output = done.stdout.splitlines()
    failed = [f"{before}\n  {line}" for before, line in zip(output, output[1:], strict=False) if line.startswith("FAIL")]
    died = [] if done.returncode in (0, 1) and "done:" in done.stdout else [f"exit code {done.returncode} in: {output[-1] if output else ''}", done.stderr[-4000:]]
    return "\n".join([*failed[:10], *died]) or f"{done.stdout.count(chr(10) + 'ok')} of {len(lines)} cases ran"


def test_every_plant_is_listed():
    names = subprocess.run([planted()["fast"], "list"], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(names) == sorted(PLANTS)


@pytest.mark.parametrize("mode", build.MODES)
@pytest.mark.parametrize("plant", PLANTS)
def test_net_catches_planted_bug(plant: str, mode: str):
    right = subprocess.run([planted()[mode], plant, "0"], capture_output=True, text=True)
    assert right.returncode == 0, f"the kernel without its bug was refused:\n{right.stderr}"
    expected = PLANTS[plant].get(mode)
    if expected is not None:
        wrong = subprocess.run([planted()[mode], plant, "1"], capture_output=True, text=True)
        assert wrong.returncode == expected, f"exit code {wrong.returncode}, expected {expected}:\n{wrong.stderr}"


@pytest.mark.parametrize("mode", build.MODES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_kernels(name: str, mode: str):
    run_all(name, mode, PROGRAMS[name][2]())


@pytest.mark.parametrize("mode", ("fast", "race"))
@pytest.mark.parametrize("name", cases_random.CASES)
def test_random_cases(name: str, mode: str):
    """What the catalogue does not think of; FASTCONV_RANDOM_CASES asks for more of them."""
    run_all(name, mode, cases_random.draw(name, RANDOM_CASES, SEED))


def run_all(name: str, mode: str, rows: list[dict]) -> None:
    binary = program(name)[mode]
    lines = cases.lines(rows, SEED)
    parts = [lines[i::JOBS] for i in range(min(JOBS, len(lines)))]
    with ThreadPoolExecutor(JOBS) as pool:
        reports = [r for r in pool.map(lambda part: execute(binary, part), parts) if r]
    assert not reports, "\n".join(reports)
