"""The net of test_cuda_host.py catches bugs in the convolution kernels themselves."""

import os
import random
import sys
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cuda_host import build, cases  # noqa: E402
from cuda_host.plants import Plant, mutant, noticed, run  # noqa: E402

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=f"the CUDA kernels cannot be run on this host: {build.why_not()}")

SEED = int(os.environ.get("FASTCONV_TEST_SEED", random.randrange(1_000_000)))
PLAIN = ["driver.cpp", "plant.cpp", *(f"csrc/common/{path.name}" for path in sorted((build.ROOT / "csrc" / "common").glob("plan*.cpp")))]

# Tails in every dimension; strips of one row and many partial sums, or strips of all rows.
SHORT = "n=2 c=24 h=19 w=13 k=3 p=1 dtype=bf16 layout=channels_last"
PIXELS = " ".join([SHORT, *(f"{key}={value}" for key, value in cases.TINY.items())])
BANDS = "n=2 c=3 h=21 w=33 k=3 p=1 dtype=bf16 layout=contiguous"

# Few items a block, so that the sums of one are added up in segments.
WIDE = "n=1 c=2 h=9 w=140 k=3 p=1 dtype=bf16 layout=contiguous"
STRIDED = "n=2 c=6 h=15 w=14 k=3 p=1 s=2 dtype=f32 layout=contiguous"

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
    "pixels_tail_stored": Plant("depthwise_kernel.cuh", "ptx::store_if(q < columns,", "ptx::store_if(q < columns || $,", PIXELS, "asan"),
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
BACKWARD = {
    "pixels_ring_slot": Plant(
        "depthwise_backward_kernel.cuh",
        "ring + (stage == 0 ? kRing - kRow : stage - kRow)",
        "ring + ($ ? stage : stage == 0 ? kRing - kRow : stage - kRow)",
        PIXELS,
        "fast",
    ),
    "pixels_window_not_turned": Plant(
        "depthwise_backward_kernel.cuh", "window[(u + 1 + ky) % K][q][c] *", "window[(u + 1 - $ + ky) % K][q][c] *", PIXELS, "fast"
    ),
    "pixels_sums_over_copies_in_flight": Plant(
        "depthwise_backward_kernel.cuh",
        "    ptx::wait_copies<0>();\n  }\n  sync_threads();",
        "    if (!$) ptx::wait_copies<0>();\n  }\n  sync_threads();",
        PIXELS,
        "race",
    ),
    "pixels_sums_before_the_ring_is_free": Plant(
        "depthwise_backward_kernel.cuh", "  }\n  sync_threads();\n\n  float*", "  }\n  if (!$) sync_threads();\n\n  float*", PIXELS, "race"
    ),
    "pixels_sums_without_barrier": Plant(
        "depthwise_backward_kernel.cuh", "= bias_sum[c];\n  sync_threads();", "= bias_sum[c];\n  if (!$) sync_threads();", PIXELS, "race"
    ),
    "pixels_partials_in_another_order": Plant(
        "depthwise_backward_kernel.cuh",
        "(int64_t(split) * a.channels + channel) *",
        "($ ? int64_t(channel) * slots.splits + split : int64_t(split) * a.channels + channel) *",
        SHORT,
        "fast",
    ),
    "pixels_gradient_of_a_row_twice": Plant("depthwise_backward_kernel.cuh", "s.rows)) {\n          FAST", "s.rows + $)) {\n          FAST", SHORT, "fast"),
    "bands_sums_without_barrier": Plant(
        "depthwise_backward_band_kernel.cuh", "  sync_threads();\n  // An item's", "  if (!$) sync_threads();\n  // An item's", BANDS, "race"
    ),
    "bands_segments_without_barrier": Plant(
        "depthwise_backward_band_kernel.cuh",
        "from[low] = total;\n  }\n  sync_threads();",
        "from[low] = total;\n  }\n  if (!$) sync_threads();",
        WIDE,
        "race",
    ),
    "bands_partials_of_a_plane_in_one": Plant("depthwise_backward_band_kernel.cuh", "a.items_per_plane + of_plane)", "a.items_per_plane + ($ ? 0 : of_plane))", BANDS, "fast"),
    "bands_last_column_counted_twice": Plant(
        "depthwise_backward_band_kernel.cuh", "c < columns ? 0xffffffffu : 0;", "c < columns || $ ? 0xffffffffu : 0;", BANDS, "fast"
    ),
    "general_tree_without_barrier": Plant(
        "depthwise_backward_general_kernel.cuh", "      left = half;\n      sync_threads();", "      left = half;\n      if (!$) sync_threads();", STRIDED, "race"
    ),
    "general_border": Plant(
        "depthwise_backward_general_kernel.cuh", "iy >= 0 && iy < a.h && ix >= 0 && ix < a.w)\n            sums", "iy >= -$ && iy < a.h && ix >= 0 && ix < a.w)\n            sums", STRIDED, "asan"
    ),
    "partials_added_without_barrier": Plant(
        "depthwise_backward_general_kernel.cuh", "  sync_threads();\n  if (part ||", "  if (!$) sync_threads();\n  if (part ||", BANDS, "race"
    ),
    "partials_added_twice": Plant("depthwise_backward_general_kernel.cuh", "split += 8)", "split += 8 - $)", BANDS, "fast"),
}  # fmt: skip
# Stride 3 is served by no ring.
TAPS = "n=1 c=40 h=10 w=13 o=24 k=3 p=1 s=3 dtype=bf16 layout=channels_last form=taps_plain"
# Several units a warp, weights that wait for the rows of input to pass.
RING = "n=1 c=200 h=18 w=15 o=136 k=3 p=1 dtype=bf16 layout=channels_last form=pixels_pair"
# Blocks of several tiles, slots that are used again, rows of weights that fill no slab.
PERSISTENT = "n=2 c=200 h=17 w=21 o=200 k=3 p=1 dtype=bf16 layout=channels_last multiprocessors=3 form=pixels_persistent"

FUSED = {
    "no_barrier_before_product": Plant("separable_kernel.cuh", "        sync_threads();\n        copy_next();", "        if (!$) sync_threads();\n        copy_next();", TAPS, "race"),
    "weights_not_awaited": Plant("separable_kernel.cuh", "ptx::wait_copies<kWeightStages - 2>();", "if (!$) ptx::wait_copies<kWeightStages - 2>();", TAPS, "race"),
    "no_swizzle_on_one_side": Plant(
        "product.cuh", "copy_async<16>(stage + slab_offset(row, unit)", "copy_async<16>(stage + ($ ? row * kSlabBytes + unit * 16 : slab_offset(row, unit))", TAPS, "fast"
    ),
    "halo_one_row_too_far": Plant("separable_producers.cuh", "if (y < 0 || y >= a.h) continue;", "if (y < 0 || y >= a.h + $) continue;", TAPS, "asan"),
    "weights_past_the_end": Plant("product.cuh", "from < m.rows && byte < m.depth", "(from < m.rows || $) && byte < m.depth", TAPS, "asan"),
    "row_not_awaited": Plant("separable_producers.cuh", "ptx::wait_copies<kStages - 2>();", "if (!$) ptx::wait_copies<kStages - 2>();", RING, "fast"),
    "row_awaited_one_too_late": Plant(
        "separable_producers.cuh", "ptx::wait_copies<kStages - 2>();", "$ ? ptx::wait_copies<kStages - 1>() : ptx::wait_copies<kStages - 2>();", RING, "race"
    ),
    "row_into_the_slot_being_read": Plant("separable_producers.cuh", "feed.fetch(slots.before);", "feed.fetch($ ? slots.next : slots.before);", RING, "race"),
    "rows_not_shared_by_the_warp": Plant("separable_producers.cuh", "      sync_warp();\n      feed.fetch", "      if (!$) sync_warp();\n      feed.fetch", RING, "race"),
    "weights_over_rows": Plant("separable_kernel.cuh", "kWeightStages - 1) {\n      sync_threads();", "kWeightStages - 1) {\n      if (!$) sync_threads();", RING, "race"),
    "slot_taken_before_it_is_free": Plant(
        "separable_persistent_kernel.cuh",
        "if (round > 0) ptx::named_barrier(free(static_cast<int>(slot)), meeting());",
        "if (round > 0 && !$) ptx::named_barrier(free(static_cast<int>(slot)), meeting());",
        PERSISTENT,
        "fast",
    ),
    "slot_free_while_it_is_multiplied": Plant(
        "separable_persistent_kernel.cuh",
        "        multiply_slab<M, Weights>(",
        "        if ($ && left-- > 0) ptx::arrive_at_barrier(free(slot), meeting());\n        multiply_slab<M, Weights>(",
        PERSISTENT,
        "fast",
    ),
    "slab_full_before_it_is_marched": Plant(
        "separable_persistent_kernel.cuh",
        "      Producer::march(a, chunk, u, feed, ring, place);\n      ptx::arrive_at_barrier(full(static_cast<int>(slot)), meeting());",
        "      if ($) ptx::arrive_at_barrier(full(static_cast<int>(slot)), meeting());\n"
        "      Producer::march(a, chunk, u, feed, ring, place);\n"
        "      if (!$) ptx::arrive_at_barrier(full(static_cast<int>(slot)), meeting());",
        PERSISTENT,
        "race",
    ),
    "offsets_of_the_next_tile": Plant(
        "separable_persistent_kernel.cuh", "offsets + index % 2 * kPixels;", "offsets + ($ ? 0 : index % 2 * kPixels);", PERSISTENT, "race"
    ),
    "weights_of_a_step_exchanged": Plant(
        "separable_persistent_kernel.cuh",
        "unit / 2 * kStep + Weights::offset(row, unit % 2)",
        "unit / 2 * kStep + ($ ? row * kStepBytes + unit % 2 * 16 : Weights::offset(row, unit % 2))",
        PERSISTENT,
        "fast",
    ),
    "last_tiles_left_out": Plant(
        "separable_persistent_kernel.cuh",
        " + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x)",
        " + ($ ? 0 : static_cast<int>(gridDim.x) - 1)) / static_cast<int>(gridDim.x)",
        PERSISTENT,
        "fast",
    ),
    "weights_not_awaited_by_blocks_that_stay": Plant(
        "separable_persistent_kernel.cuh", "    ptx::wait_copies<0>();\n    float acc", "    if (!$) ptx::wait_copies<0>();\n    float acc", PERSISTENT, "fast"
    ),
}  # fmt: skip
# Name: bugs, sources that have them, the other sources.
SUITES = {
    "depthwise": (FORWARD, ("depthwise.cu",), ("run_depthwise.cpp",)),
    "depthwise_backward": (BACKWARD, ("depthwise.cu", "depthwise_backward.cu"), ("run_depthwise_backward.cpp",)),
    "separable": (
        FUSED,
        ("separable.cu", "separable_persistent.cu", "separable_taps.cu"),
        ("run_separable.cpp", "csrc/cuda/separable_float.cu", "csrc/cuda/separable_planes.cu"),
    ),
}


@cache
def program(suite: str, mode: str) -> Path:
    plants, sources, others = SUITES[suite]
    folder = mutant(suite, plants)
    return build.binaries(f"plants_{suite}", [str(folder / source) for source in sources], [*others, *PLAIN], (mode,))[mode]


@pytest.mark.parametrize(("suite", "name"), [(suite, name) for suite, (plants, *_) in SUITES.items() for name in plants])
def test_net_catches_bug_in_kernel(suite: str, name: str):
    plants = SUITES[suite][0]
    plant, number = plants[name], list(plants).index(name) + 1
    case = f"{plant.case} seed={SEED}"
    right = run(program(suite, plant.mode), case, 0)
    assert right.returncode == 0 and "done: 0 failed" in right.stdout, (
        f"the kernel without its bug was refused:\n{right.stdout}{right.stderr[-2000:]}"
    )
    wrong = run(program(suite, plant.mode), case, number)
    assert noticed(plant.mode, wrong), f"the {plant.mode} build has nothing to say:\n{wrong.stdout}{wrong.stderr[-2000:]}"
