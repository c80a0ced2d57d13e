"""Triton as a candidate of the planner: what it would launch on a GPU that is not here, what that costs, and how `explain` tells it."""

import itertools
import json

import pytest
import torch

from fastconv import _ops, backends, tuning
from fastconv.__main__ import main

triton_backend = pytest.importorskip("fastconv.triton", reason="the Triton backend needs triton")
if triton_backend.INTERPRETED:
    pytest.skip("tiles under the interpreter are its own", allow_module_level=True)

from bench import triton_static as static  # noqa: E402
from bench.triton_static import meta  # noqa: E402
from fastconv.cli import predict  # noqa: E402
from fastconv.triton import access  # noqa: E402
from fastconv.triton import plan as planner  # noqa: E402
from fastconv.triton.launch import FAMILIES  # noqa: E402

BF16 = torch.bfloat16


def explained(capsys, *arguments: str):
    formats = () if "--format" in arguments else ("--format", "channels_last")
    assert main(["explain", "--dtype", "bfloat16", *formats, *arguments]) == 0
    return capsys.readouterr().out


def test_triton_alone_serves_every_operator(monkeypatch):
    """With no CUDA library built the ladder ends at Triton for every operator on a CUDA tensor; each has a kernel there, backward too."""
    monkeypatch.setattr(_ops, "cuda_refusal", "fastconv was built without CUDA")
    for op in _ops.FORWARD_OPS:
        for dtype in (torch.float32, torch.float16, BF16):
            choice = backends.explain_choice(op, "cuda", dtype)
            assert choice.backend == "triton" and choice.refused == {"cuda": "fastconv was built without CUDA"}
    for op in _ops.FORWARD_OPS + _ops.BACKWARD_OPS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastconv_triton::{op}", "CUDA")


def test_kinds_are_the_families():
    assert tuple(FAMILIES) == predict.KINDS == tuple(planner.RATES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", static.LAYERS, ids=lambda layer: layer.__name__)
def test_every_launch_has_a_cost(layer, family, monkeypatch):
    launches = static.launches(family, layer, BF16, True)
    for launch, moved in zip(launches, planner._bytes(launches), strict=True):
        assert launch.kernel.__name__ in planner._TURNS
        step = planner._step(launch, FAMILIES[family], moved, None)
        assert step.bytes > 0 and step.seconds > planner.LAUNCH_SECONDS and step.waves > 0


def separable(c, size):
    x, depthwise, pointwise = meta(8, c, size, size, dtype=BF16, channels_last=True), meta(c, 1, 3, 3, dtype=BF16), meta(c, c, dtype=BF16)
    return x, depthwise, pointwise, None, None, None, (1, 1), (1,) * 4, (1, 1), "identity", "relu", "relu"


def test_bytes_and_operations_of_the_fused_kernel():
    (step,) = planner.plan("depthwise_separable_conv2d", separable(128, 64), FAMILIES["sm_90"], compiled=False)
    pixels = 8 * 64 * 64
    assert step.kernel == "separable_fused"
    assert step.bytes == 2 * (2 * 128 * pixels + 128 * 9 + 128 * 128)
    assert step.flops == 2 * 128 * pixels * (9 + 128)
    assert step.registers is None and step.bound == "memory"


@pytest.mark.parametrize("family", FAMILIES)
def test_full_precision_has_tiles_and_rates_of_its_own(family):
    """Products bind sooner there, and tiles that were measured under TF32 are not taken."""
    x, pointwise = meta(8, 256, 64, 64, dtype=torch.float32, channels_last=True), meta(256, 256, dtype=torch.float32)
    arguments = (x, meta(256, 1, 3, 3, dtype=torch.float32), pointwise, *separable(256, 64)[3:])
    (rounded,), (full,) = (
        planner.plan("depthwise_separable_conv2d", (*arguments, tf32), FAMILIES[family], compiled=False) for tf32 in (True, False)
    )
    assert full.bound == "multiply-adds" and full.seconds > rounded.seconds
    with tuning.use(tuning.Table("")), tuning.asked() as keys:
        planner.plan("depthwise_separable_conv2d", (*arguments, False), FAMILIES[family], compiled=False)
    assert [key.dtype for key in keys] == ["float32 ieee"]


def test_a_measured_tile_cannot_round_full_precision():
    """On sm_100 some releases of Triton multiply by tcgen05 with four or eight warps, whatever precision is asked for."""
    x, pointwise = meta(8, 256, 64, 64, dtype=torch.float32, channels_last=True), meta(256, 256, dtype=torch.float32)
    arguments = (x, meta(256, 1, 3, 3, dtype=torch.float32), pointwise, *separable(256, 64)[3:], False)

    def warps(family, tile=None):
        with tuning.use(tuning.Table("")), tuning.asked() as keys:
            planner.plan("depthwise_separable_conv2d", arguments, FAMILIES[family], compiled=False)
        entries = {} if tile is None else {key: tuning.Entry(None, {"triton": tile}) for key in keys}
        with tuning.use(tuning.Table("", entries)):
            return {step.warps for step in planner.plan("depthwise_separable_conv2d", arguments, FAMILIES[family], compiled=False)}

    measured = {"rows": 4, "pixels": 32, "bk": 16, "bn": 256, "warps": 8}
    assert warps("sm_90", measured) == {8}
    assert warps("sm_100", measured) == warps("sm_100")
    assert warps("sm_100", measured | {"warps": 16}) == {16}


def test_the_intermediate_stays_on_the_chip():
    steps = planner.plan("depthwise_separable_conv2d", separable(512, 64), FAMILIES["sm_90"], compiled=False)
    assert [step.kernel for step in steps] == ["depthwise_ring", "pointwise_product"] * (len(steps) // 2)
    maps = 2 * 8 * 64 * 64 * 512
    assert sum(step.bytes for step in steps if step.kernel == "depthwise_ring") - maps < 10**5
    assert sum(step.bytes for step in steps) - 2 * maps < 10**7


def test_the_compiled_kernel_says_what_binds_it():
    (step,) = planner.plan("depthwise_conv2d", static._depthwise(BF16, True), FAMILIES["sm_90"])
    assert step.spills == 0 and 16 < step.registers <= 255 and step.shared_memory == 0
    assert 9 < step.instructions < 40
    assert step.resident * step.warps <= 64


def test_explain_of_a_gpu_that_is_not_here(capsys):
    layer = "--shape 8,128,64,64 --pointwise-activation relu --device sm_90".split()
    facts = json.loads(explained(capsys, *layer, "--json"))
    cuda, triton, reference = facts["candidates"]
    assert facts["backend"] == "triton" and triton["chosen"] and not cuda["chosen"]
    assert cuda["refused"] == facts["refused"]["cuda"] and "triton" in reference["refused"]
    (launch,) = triton["launches"]
    assert launch["kernel"] == "separable_fused" and launch["spills"] == 0 and launch["registers"] <= 255
    assert launch["tile"]["BN"] == 128 and launch["bytes"] == facts["bytes"] and launch["flops"] == facts["flops"]
    assert facts["floor"]["seconds"] < triton["seconds"] < reference["seconds"]
    text = explained(capsys, *layer)
    for line in ("triton    predicted", "separable_fused", "BN 128", "registers", "not cuda", "as separate layers", "H200"):
        assert line in text


def test_explain_weighs_copies_of_contiguous_maps(capsys):
    layer = "--shape 8,64,64,64 --format contiguous --device sm_90 --no-compile".split()
    facts = json.loads(explained(capsys, *layer, "--json"))
    triton = facts["candidates"][1]
    strided, copied = triton["ways"]
    assert (strided["name"], copied["name"], triton["taken"]) == ("strided", "copied", "strided")
    assert strided["seconds"] == pytest.approx(triton["seconds"]) and strided["bytes"] == facts["bytes"]
    assert copied["bytes"] == 3 * facts["bytes"] - 2 * sum(2 * count for count in (64 * 9, 64 * 64))
    assert copied["seconds"] == pytest.approx(triton["seconds"] + 2 * facts["bytes"] / 4.3e12 + 2 * planner.LAUNCH_SECONDS, rel=0.1)
    text = explained(capsys, *layer)
    assert "contiguous maps as they come: " in text and "microseconds; taken" in text
    assert "through copies in channels_last: " in text and "microseconds; not taken" in text
    last = json.loads(explained(capsys, "--shape", "8,64,64,64", "--device", "sm_90", "--no-compile", "--json"))
    assert "ways" not in last["candidates"][1]


def test_the_way_of_contiguous_maps_follows_the_counts(monkeypatch, caplog):
    """Where a device copies faster than it issues, copies win; the choice is logged once for a class of layers."""
    x = meta(64, 128, 64, 64, dtype=BF16)
    arguments = x, meta(128, 1, 3, 3, dtype=BF16), None, (1, 1), (1,) * 4, (1, 1), "identity"
    assert planner.taken("depthwise_conv2d", arguments, FAMILIES["sm_90"]) == "strided"
    access.weigh.cache_clear()
    per_element = {"contiguous": 400, "channels_last": 20}
    counts = {access.key(FAMILIES["sm_90"], "depthwise_ring", 9, layout): count for layout, count in per_element.items()}
    monkeypatch.setattr(access, "counted", lambda: counts)
    with caplog.at_level("INFO", logger="fastconv.triton"):
        for _ in range(2):
            assert planner.taken("depthwise_conv2d", arguments, FAMILIES["sm_90"]) == "copied"
    access.weigh.cache_clear()
    (line,) = caplog.messages
    assert line.startswith("contiguous maps of depthwise_ring, 9 taps, on sm_90: strided 134.22 MB") and line.endswith("; copied taken")


@pytest.mark.parametrize("sizes", [(1, 2, 46341, 46341), (1, 65536, 2, 32768)], ids=["plane", "row"])
def test_strides_that_do_not_fit_are_refused(sizes):
    x = meta(*sizes, dtype=BF16)
    for op, arguments in (
        ("depthwise_conv2d", (x, meta(sizes[1], 1, 1, 1, dtype=BF16), None, (1, 1), (0,) * 4, (1, 1), "identity")),
        ("shift_stitch_max_pool2d", (x, (1, 1), (2, 2), (0, 0), (1, 1), False, False, 0.0)),
        ("shift", (x, (2, 2), 0.0)),
        ("stitch", (x, (1, 1), sizes[2:])),
    ):
        with pytest.raises(RuntimeError, match="input: the Triton kernels take several planes or rows of fewer than"):
            planner.launches_of(op, arguments, FAMILIES["sm_90"])


def test_counts_are_complete_for_the_kinds_that_have_them():
    kinds = {key.split()[0] for key in access.counted()}
    assert "sm_90" in kinds
    for family, (kernel, k), layout in itertools.product(kinds, static.COUNTED, ("contiguous", "channels_last")):
        assert access.key(FAMILIES[family], kernel, k * k, layout) in access.counted()


@pytest.mark.parametrize("device", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("op", ["separable", "depthwise", "max-pool", "avg-pool"])
def test_cuda_has_a_predicted_time_beside_triton(capsys, device, op):
    layer = "--shape", "8,64,64,64", "--padding", "1", "--op", op, "--device", device, "--no-compile", "--json"
    cuda, triton, _ = json.loads(explained(capsys, *layer))["candidates"]
    assert cuda["seconds"] >= 2 * 8 * 64 * 64 * 64 * 2 / planner.RATES[device].copy and triton["seconds"]


def test_explain_does_not_compile_unless_it_may(capsys):
    text = explained(capsys, "--shape", "2,64,17,17", "--op", "max-pool", "--device", "gfx942", "--no-compile", "--no-floor")
    assert "max_pool_ring" in text and "registers" not in text


def test_explain_shows_what_was_measured(monkeypatch):
    x = torch.empty(8, 128, 64, 64, dtype=BF16, device="meta")
    key = backends.key_of("depthwise_conv2d", x, 128, (3, 3), (1, 1), (1, 1))
    with tuning.use(tuning.Table("", {key: tuning.Entry("triton", {}, {"triton": 1.5e-5, "cuda": 2e-5})})):
        choice = backends.explain_choice("depthwise_conv2d", "cuda", BF16, key)
    assert choice.backend == "triton"
    line = {"backend": "cuda", "chosen": False, "refused": "triton was measured faster here", "seconds": None, "measured": 2e-5}
    assert predict.lines(line) == ["cuda      measured 20.0 microseconds; not chosen: triton was measured faster here"]
