"""Which CUDA kernel serves a layer: the cost model's prediction, what a table of measured choices says instead, what `explain` shows. No
GPU is needed: the planner of `fastconv._C` is the one that the CUDA library is built with."""

import random
import sys
from pathlib import Path

import pytest

from fastconv import _C, tuning
from fastconv.__main__ import main
from fastconv.cli.predict_cuda import CHIPS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import tune  # noqa: E402
from bench.cases import select  # noqa: E402

ASKED = {
    "multiplier": 1,
    "kernel": (3, 3),
    "stride": (1, 1),
    "padding": (1,) * 4,
    "dilation": (1, 1),
    "dtype": "bfloat16",
    "layout": "channels_last",
}


def cuda_kernels(cost, size=(16, 64, 56, 56), **asked):
    return cost(**{"input": size, "chip": CHIPS["sm_90"]} | ASKED | asked)


def cuda_table(op, tile, size=(16, 64, 56, 56), out_channels=64, layout="channels_last", kernel=(3, 3)):
    key = tuning.Key(op, "bfloat16", layout, tuning.shape_class(size, out_channels, kernel))
    return tuning.Table("sm_90", {key: tuning.Entry(None, {"cuda": {"tile": tile}})})


LAYERS = [
    (n, c, o, size)
    for n in (1, 16)
    for c, o in ((32, 64), (128, 128), (256, 728), (728, 728), (1536, 2048), (2048, 256))
    for size in (14, 33, 129)
]


@pytest.mark.parametrize("layout", ("channels_last", "contiguous"))
def test_the_library_is_taken_where_it_should_be_faster(layout):
    chosen = set()
    for n, c, o, size in LAYERS:
        cost = cuda_kernels(_C.cost_cuda_separable, (n, c, size, size), out_channels=o, layout=layout)
        fused, library, best = (sum(step["seconds"] for step in cost[name]) for name in ("fused", "library", "unfused"))
        assert library >= best > 0
        assert cost["chosen"] == ("library" if library < 0.9 * fused else "fused")
        assert f"fused {1e6 * fused:.1f} us, through memory {1e6 * library:.1f} us" in cost["why"] and "as predicted" in cost["why"]
        chosen.add(cost["chosen"])
    assert "fused" in chosen


def test_a_slow_fused_kernel_goes_to_the_library():
    """A chip whose own products crawl while the library's do not."""
    chip = CHIPS["sm_90"] | {"product": 1e12}
    layer = {"out_channels": 728, "size": (8, 728, 33, 33)}
    assert cuda_kernels(_C.cost_cuda_separable, **layer, chip=chip)["chosen"] == "library"
    # Full float32 products are a promise that a library call, which reads torch's flags, cannot give.
    allowed = cuda_kernels(_C.cost_cuda_separable, **layer, chip=chip, dtype="float32", tf32=True)
    assert allowed["chosen"] == "library" and "float32 multiplied in TF32" in allowed["why"]
    assert cuda_kernels(_C.cost_cuda_separable, **layer, chip=chip, dtype="float32", tf32=False)["chosen"] == "fused"


def test_elementwise_passes_of_the_library_cost():
    plain, added = (cuda_kernels(_C.cost_cuda_separable, out_channels=64, residual=residual)["library"] for residual in (False, True))
    assert plain[-1]["kernel"] == added[-1]["kernel"] == "elementwise passes of the library"
    assert added[-1]["seconds"] > plain[-1]["seconds"]


def test_planner_and_table_tell_the_same_classes_apart():
    generator = random.Random(0)
    for _ in range(200):
        size = [generator.randint(1, 300) for _ in range(4)]
        kernel, stride, dilation = (tuple(generator.randint(1, most) for _ in range(2)) for most in (9, 3, 20))
        out = generator.randint(1, 3000)
        expected = tuning.shape_class(size, out, kernel, stride, dilation)
        assert _C.cuda_shape_class(size, out, kernel, stride, dilation) == expected


def test_a_table_overrides_the_cuda_planner():
    def kernel(**asked):
        (step,) = cuda_kernels(_C.cost_cuda_depthwise, **asked)
        return step["kernel"]

    assert kernel() == "depthwise_pixels"
    for tile in ("vectors", "elements"):
        with tuning.use(cuda_table("depthwise_conv2d", tile)):
            assert kernel() == f"depthwise_{tile}"
            # Another class, another layout and another device go by the model.
            assert kernel(size=(16, 64, 30, 30)) == "depthwise_pixels" and kernel(layout="contiguous") == "depthwise_bands"
            assert cuda_kernels(_C.cost_cuda_depthwise, chip=CHIPS["sm_90"] | {"name": "another"})[0]["kernel"] == "depthwise_pixels"
    with tuning.use(cuda_table("depthwise_conv2d", "bands")):
        assert kernel() == "depthwise_pixels", "a form that cannot serve the layer leaves the usual choice"
    assert kernel() == "depthwise_pixels"


def test_a_measured_forward_pass_says_nothing_of_gradients():
    """The gradient of a 7x7 layer's input is a forward kernel, and one of two."""

    def launches(**asked):
        return cuda_kernels(_C.cost_cuda_depthwise, kernel=(7, 7), padding=(3,) * 4, **asked)

    usual = launches(backward=True)
    with tuning.use(cuda_table("depthwise_conv2d", "vectors", kernel=(7, 7))):
        assert launches()[0]["kernel"] == "depthwise_vectors"
        assert launches(backward=True) == usual
    assert usual[0]["kernel"] == "depthwise_pixels"


def test_a_table_decides_between_fused_and_library_and_names_the_tile():
    usual = cuda_kernels(_C.cost_cuda_separable, out_channels=64)
    for tile in tuning.CUDA_TILES["depthwise_separable_conv2d"]:
        with tuning.use(cuda_table("depthwise_separable_conv2d", tile)):
            cost = cuda_kernels(_C.cost_cuda_separable, out_channels=64)
        assert (cost["chosen"], cost["measured"]) == ("library" if tile == "library" else "fused", True) and "as measured" in cost["why"]
        # The slim tile is none for a 3x3 layer of a 16-bit type: the model chooses. The plain one serves all layers, by taps.
        served = tile not in ("fused", "library", "slim")
        assert cost["fused"][0]["tile"].startswith(f"{tile}: ") if served else cost["fused"] == usual["fused"]
    after = cuda_kernels(_C.cost_cuda_separable, out_channels=64)
    assert after["chosen"] == usual["chosen"] and not after["measured"] and "as predicted" in after["why"]


def test_explain_shows_the_measured_choice(capsys):
    command = [
        "explain",
        "--op",
        "separable",
        "--shape",
        "16,64,56,56",
        "--dtype",
        "bfloat16",
        "--format",
        "channels_last",
        "--device",
        "sm_90",
    ]
    for tile, words in (("fused", "the fused kernel, as measured"), ("library", "the library's product, as measured")):
        with tuning.use(cuda_table("depthwise_separable_conv2d", tile)):
            main([*command, "--no-compile", "--no-floor"])
        assert words in capsys.readouterr().out


def test_rows_that_are_no_choices_are_refused():
    with pytest.raises(ValueError, match="expected device, operator, dtype, layout, class and tile, got 'one\ttwo'"):
        _C.set_measured_tiles("one\ttwo")


def test_the_tuner_tries_the_cuda_kernels(monkeypatch):
    """The clock finds "vectors" fast and everything else slow; what was handed to the planners last is what the table says."""
    case = next(case for case in select("cuda", "full") if case.op == "depthwise" and case.direction == "forward")
    key, handed = tune.key_of(case, "channels_last"), []
    monkeypatch.setattr(tuning, "hand_to_planners", lambda tables=None: handed.append(tuning.cuda_rows(tables or [])))

    def seconds(call):
        return 1.0 if handed[-1].endswith("\tvectors") else 2.0

    tuner = tune.Tuner(tuning.Table("GPU"), seconds, ("cuda",), say=lambda line: None)
    tuner._cuda_tile(tune.Layer(case.id, lambda backend: (), key))
    assert tuner.table.entries[key].tiles == {"cuda": {"tile": "vectors"}}
    assert handed[-1] == "\t".join(("GPU", *key, "vectors"))
