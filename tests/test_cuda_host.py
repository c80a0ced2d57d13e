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

from cuda_host import build, cases, cases_separable  # noqa: E402

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
    binary = program(name)[mode]
    lines = cases.lines(PROGRAMS[name][2](), SEED)
    parts = [lines[i::JOBS] for i in range(min(JOBS, len(lines)))]
    with ThreadPoolExecutor(JOBS) as pool:
        reports = [r for r in pool.map(lambda part: execute(binary, part), parts) if r]
    assert not reports, "\n".join(reports)


# Stride 3 is served by no ring.
TAPS_CASE = "n=1 c=40 h=10 w=13 o=24 k=3 p=1 s=3 dtype=bf16 layout=channels_last form=taps_plain"
# Several units a warp, weights that wait for the rows of input to pass.
RING_CASE = "n=1 c=200 h=18 w=15 o=136 k=3 p=1 dtype=bf16 layout=channels_last form=pixels_pair"
# Blocks of several tiles, slots that are used again, rows of weights that fill no slab.
PERSISTENT_CASE = "n=2 c=200 h=17 w=21 o=200 k=3 p=1 dtype=bf16 layout=channels_last multiprocessors=3 form=pixels_persistent"
CHANGED = {TAPS_CASE: "separable_taps.cu", RING_CASE: "separable.cu", PERSISTENT_CASE: "separable_persistent.cu"}
# Bugs planted in the fused kernels themselves: header, what stands there, what is put in its place, the case and the build that must notice.
FUSED_PLANTS = {
    "no_barrier_before_product": ("separable_kernel.cuh", "        sync_threads();\n        copy_next();", "        copy_next();", TAPS_CASE, "race"),
    "weights_not_awaited": ("separable_kernel.cuh", "ptx::wait_copies<kWeightStages - 2>();", "", TAPS_CASE, "race"),
    "no_swizzle_on_one_side": (
        "product.cuh", "copy_async<16>(stage + slab_offset(row, unit)", "copy_async<16>(stage + row * kSlabBytes + unit * 16", TAPS_CASE, "fast"
    ),
    "halo_one_row_too_far": ("separable_producers.cuh", "if (y < 0 || y >= a.h) continue;", "if (y < 0 || y > a.h) continue;", TAPS_CASE, "asan"),
    "weights_past_the_end": ("product.cuh", "from < m.rows && byte < m.depth", "byte < m.depth", TAPS_CASE, "asan"),
    "row_not_awaited": ("separable_producers.cuh", "ptx::wait_copies<kStages - 2>();", "", RING_CASE, "fast"),
    "row_awaited_one_too_late": ("separable_producers.cuh", "ptx::wait_copies<kStages - 2>();", "ptx::wait_copies<kStages - 1>();", RING_CASE, "race"),
    "row_into_the_slot_being_read": ("separable_producers.cuh", "feed.fetch(slots.before);", "feed.fetch(slots.next);", RING_CASE, "race"),
    "rows_not_shared_by_the_warp": ("separable_producers.cuh", "      sync_warp();\n      feed.fetch", "      feed.fetch", RING_CASE, "race"),
    "weights_over_rows": ("separable_kernel.cuh", "kWeightStages - 1) {\n      sync_threads();", "kWeightStages - 1) {", RING_CASE, "race"),
    "slot_taken_before_it_is_free": (
        "separable_persistent_kernel.cuh", "if (round > 0) ptx::named_barrier(free(static_cast<int>(slot)), meeting());", "", PERSISTENT_CASE, "fast"
    ),
    "slot_free_while_it_is_multiplied": (
        "separable_persistent_kernel.cuh",
        "        multiply_slab<M, Weights>(",
        "        if (left-- > 0) ptx::arrive_at_barrier(free(slot), meeting());\n        multiply_slab<M, Weights>(",
        PERSISTENT_CASE,
        "fast",
    ),
    "slab_full_before_it_is_marched": (
        "separable_persistent_kernel.cuh",
        "      Producer::march(a, chunk, u, feed, ring, place);\n      ptx::arrive_at_barrier(full(static_cast<int>(slot)), meeting());",
        "      ptx::arrive_at_barrier(full(static_cast<int>(slot)), meeting());\n      Producer::march(a, chunk, u, feed, ring, place);",
        PERSISTENT_CASE,
        "race",
    ),
    "offsets_of_the_next_tile": ("separable_persistent_kernel.cuh", "offsets + index % 2 * kPixels;", "offsets;", PERSISTENT_CASE, "race"),
    "weights_of_a_step_exchanged": (
        "separable_persistent_kernel.cuh", "unit / 2 * kStep + Weights::offset(row, unit % 2)", "unit / 2 * kStep + row * kStepBytes + unit % 2 * 16", PERSISTENT_CASE, "fast"
    ),
    "last_tiles_left_out": (
        "separable_persistent_kernel.cuh", " + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x)", ") / static_cast<int>(gridDim.x)", PERSISTENT_CASE, "fast"
    ),
    "weights_not_awaited_by_blocks_that_stay": (
        "separable_persistent_kernel.cuh", "    ptx::wait_copies<0>();\n    float acc", "    float acc", PERSISTENT_CASE, "fast"
    ),
}  # fmt: skip


@pytest.mark.parametrize("plant", FUSED_PLANTS)
def test_net_catches_bug_in_fused_kernel(plant: str):
    header, right, wrong, case, mode = FUSED_PLANTS[plant]
    folder = build.mutant(plant, header, right, wrong)
    kernels, plain, _ = PROGRAMS["separable"]
    changed = CHANGED[case]
    mutated = [str(folder / changed) if k.endswith(f"/{changed}") else k for k in kernels]
    program = build.binaries(f"plant_{plant}", mutated, [*plain, *PLAIN], (mode,))[mode]
    assert execute(program, [f"{case} seed={SEED}"]) is not None
