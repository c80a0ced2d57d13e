"""The CUDA kernels, executed on the CPU: csrc/cuda/*.cu compiled by the host's compiler against tests/cuda_host, which runs every CUDA thread
of a block as a fiber in a random order.

Three builds: `asan` finds accesses out of bounds and misaligned ones, `race` finds missing barriers, unwaited copies and reads of shared memory
that nobody wrote, `fast` carries no instrumentation. Every result is held against float64. The first test is of the net itself: bugs planted on
purpose must be caught by the builds that claim to.
"""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cuda_host import build  # noqa: E402

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
    "misaligned_load": {"fast": RUNTIME, "asan": RUNTIME, "race": RUNTIME},
    "misaligned_matrix_row": {"fast": RUNTIME, "asan": RUNTIME, "race": RUNTIME},
    "output_left_unwritten": {"fast": WRONG_RESULT, "asan": WRONG_RESULT, "race": WRONG_RESULT},
}


@cache
def planted() -> dict[str, Path]:
    return build.binaries("planted", ["planted.cpp"], [])


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
