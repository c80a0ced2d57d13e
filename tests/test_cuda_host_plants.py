"""The net of test_cuda_host.py catches bugs in the depthwise kernels themselves."""

import os
import random
import sys
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cuda_host import build  # noqa: E402
from cuda_host.plants import Plant, mutant, run  # noqa: E402

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=f"the CUDA kernels cannot be run on this host: {build.why_not()}")

SEED = int(os.environ.get("FASTCONV_TEST_SEED", random.randrange(1_000_000)))
PLAIN = ["driver.cpp", "plant.cpp", *(f"csrc/common/{path.name}" for path in sorted((build.ROOT / "csrc" / "common").glob("plan*.cpp")))]

# Two strips of a thread and more, tails in every dimension.
PIXELS = "n=2 c=24 h=19 w=13 k=3 p=1 dtype=bf16 layout=channels_last"
BANDS = "n=2 c=3 h=21 w=33 k=3 p=1 dtype=bf16 layout=contiguous"

FORWARD = {
    "pixels_row_not_awaited": Plant(
        "depthwise_kernel.cuh", "ptx::wait_copies<kStages - 2>();", "if (!$) ptx::wait_copies<kStages - 2>();", PIXELS, "fast"
    ),
    "pixels_row_awaited_one_too_late": Plant(
        "depthwise_kernel.cuh",
        "ptx::wait_copies<kStages - 2>();",
        "{ if ($) ptx::wait_copies<kStages - 1>(); else ptx::wait_copies<kStages - 2>(); }",
        PIXELS,
        "race",
    ),
    "pixels_ring_slot": Plant(
        "depthwise_kernel.cuh",
        "ring + (stage == 0 ? (kStages - 1) * (kColumns * kSlot) : stage - kColumns * kSlot)",
        "ring + ($ ? stage : stage == 0 ? (kStages - 1) * (kColumns * kSlot) : stage - kColumns * kSlot)",
        PIXELS,
        "fast",
    ),
    "pixels_border_one_column_too_far": Plant(
        "depthwise_kernel.cuh", "left + j * a.dw < a.w)", "left + j * a.dw < a.w + $)", PIXELS, "fast"
    ),
    "pixels_border_one_row_too_far": Plant(
        "depthwise_kernel.cuh", "needed < a.h ? needed : a.h;", "needed < a.h + $ ? needed : a.h + $;", PIXELS, "asan"
    ),
    "pixels_tail_stored": Plant("depthwise_kernel.cuh", "ptx::store_if(q < columns,", "ptx::store_if(q < columns || $,", PIXELS, "fast"),
    "bands_not_awaited": Plant(
        "depthwise_band_kernel.cuh", "  ptx::wait_copies<0>();\n  sync", "  if (!$) ptx::wait_copies<0>();\n  sync", BANDS, "fast"
    ),
    "bands_without_barrier": Plant(
        "depthwise_band_kernel.cuh", "  sync_threads();\n  if (!active)", "  if (!$) sync_threads();\n  if (!active)", BANDS, "race"
    ),
    "bands_border_copied_whole": Plant("band.cuh", "x + kPer <= b.input_w", "x + ($ ? 1 : kPer) <= b.input_w", BANDS, "fast"),
    "bands_row_beyond_the_plane": Plant("band.cuh", "y >= 0 && y < b.input_h;", "y >= 0 && y < b.input_h + $;", BANDS, "asan"),
    "bands_offset_of_the_first_row": Plant(
        "depthwise_band_kernel.cuh", "offset += offset_step;", "offset += $ ? 0 : offset_step;", BANDS, "fast"
    ),
}
SUITES = {
    "depthwise": (FORWARD, ("depthwise.cu",), "run_depthwise.cpp"),
}


@cache
def program(suite: str, mode: str) -> Path:
    plants, sources, driver = SUITES[suite]
    folder = mutant(suite, plants)
    return build.binaries(f"plants_{suite}", [str(folder / source) for source in sources], [driver, *PLAIN], (mode,))[mode]


@pytest.mark.parametrize(("suite", "name"), [(suite, name) for suite, (plants, *_) in SUITES.items() for name in plants])
def test_net_catches_bug_in_depthwise_kernel(suite: str, name: str):
    plants = SUITES[suite][0]
    plant, number = plants[name], list(plants).index(name) + 1
    case = f"{plant.case} seed={SEED}"
    right = run(program(suite, plant.mode), case, 0)
    assert right.returncode == 0 and "done: 0 failed" in right.stdout, (
        f"the kernel without its bug was refused:\n{right.stdout}{right.stderr[-2000:]}"
    )
    wrong = run(program(suite, plant.mode), case, number)
    assert wrong.returncode != 0, f"the {plant.mode} build accepts it"
