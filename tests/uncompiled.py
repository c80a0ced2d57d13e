"""What an installation without compiled kernels does on a CPU. test_without_compiler.py makes one and runs this file there."""

import io
import json
import logging
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastconv
import fastconv.functional as FF
from fastconv import _ops, backends, reference
from fastconv.__main__ import main

REASON = "installed without compiled kernels (FASTCONV_COMPILE=0)"


def arguments():
    return tuple(torch.randn(shape, requires_grad=True) for shape in ((2, 4, 9, 7), (4, 1, 3, 3), (5, 4)))


def test_nothing_compiled_is_there():
    assert not list(Path(fastconv.__file__).parent.rglob("*.so"))
    assert _ops.compiled_refusal == _ops.cuda_refusal == REASON


def test_functions_are_those_of_torch():
    x, weight, pointwise = arguments()
    m = F.relu(F.conv2d(x, weight, None, 1, 2, 2, groups=4))
    pairs = [
        (FF.depthwise_conv2d(x, weight, padding=2, dilation=2, activation="relu"), m),
        (
            FF.depthwise_separable_conv2d(x, weight, pointwise, padding=2, dilation=2, depthwise_activation="relu"),
            F.conv2d(m, pointwise[..., None, None]),
        ),
        (FF.shift_stitch_max_pool2d(x, 3, 2, 1), F.max_pool2d(x, 3, 1, 1)),
        (FF.shift_stitch_avg_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 3, 1, 1)),
        (FF.stitch(FF.shift(x, (2, 3)), (2, 3), (9, 7)), x),
    ]
    for out, expected in pairs:
        torch.testing.assert_close(out, expected)
        grad, leaves = torch.randn_like(out), (x, weight, pointwise)
        gradients = (torch.autograd.grad(result, leaves, grad, allow_unused=True, retain_graph=True) for result in (out, expected))
        for gradient, wanted in zip(*gradients, strict=True):
            torch.testing.assert_close(gradient, wanted)
    values, indices = FF.shift_stitch_max_pool2d(x, 2, return_indices=True)
    expected = F.max_pool2d(x, 2, 1, return_indices=True)
    assert torch.equal(values, expected[0]) and torch.equal(indices, expected[1])


def test_every_choice_tells_why_and_is_logged_once(caplog):
    for op in _ops.FORWARD_OPS:
        choice = backends.explain_choice(op, "cpu", torch.float32)
        assert choice.backend == "reference" and choice.refused["cpu"] == REASON
        choice = backends.explain_choice(op, "cuda", torch.float32)
        assert choice.backend == "triton" and choice.refused == {"cuda": REASON}
    backends._logged.clear()
    with caplog.at_level(logging.WARNING, logger="fastconv.backends"):
        for _ in range(2):
            assert backends.select("shift", torch.ones(1)) is reference
    (record,) = caplog.records
    assert f"cpu: {REASON}" in record.getMessage()


def test_what_cannot_be_had_is_refused_with_the_reason():
    x, weight, _ = arguments()
    with backends.use("cpu"), pytest.raises(RuntimeError, match="the backend 'cpu' cannot run on cpu torch.float32: installed without"):
        FF.depthwise_conv2d(x, weight)
    for t in (x, x.detach()):
        with pytest.raises(NotImplementedError, match="fastconv::shift has no kernel: fastconv is installed without .*fastconv.functional"):
            torch.ops.fastconv.shift(t, [2, 2], 0.0)


def network(x, weight, pointwise):
    x = FF.depthwise_separable_conv2d(x, weight, pointwise[:4], padding="same", pointwise_activation="silu", residual=x)
    x = FF.shift_stitch_max_pool2d(x, 2, padding=1) + FF.shift_stitch_avg_pool2d(x, 2, padding=1)
    return FF.stitch(FF.shift(x, 2), 2, x.shape[2:])


def test_compiles_and_exports():
    inputs = arguments()
    expected = network(*inputs)
    torch.testing.assert_close(torch.compile(network, fullgraph=True, backend="aot_eager")(*inputs), expected)

    class Network(nn.Module):
        def forward(self, *inputs):
            return network(*inputs)

    inputs = tuple(t.detach() for t in inputs)
    torch.testing.assert_close(torch.export.export(Network(), inputs).module()(*inputs), expected.detach())


def test_modules_and_model_surgery():
    def pair(channels, stride):
        depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        return [depthwise, nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]

    model, x = nn.Sequential(*pair(8, 1), *pair(8, 2)).eval(), torch.randn(1, 8, 12, 12)
    module = fastconv.nn.DepthwiseSeparableConv2d(
        8, 8, 3, padding=1,
        depthwise_norm=nn.BatchNorm2d, depthwise_activation="relu", pointwise_norm=nn.BatchNorm2d, pointwise_activation="relu",
    )  # fmt: skip
    module.load_state_dict(model[:6].state_dict())
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(module.eval()(x), model[:6](x))
        fused, report = fastconv.fuse(model)
        torch.testing.assert_close(fused(x), expected)
        dense = fastconv.to_dense(model, example_input=x)
        torch.testing.assert_close(dense(x)[..., ::2, ::2], expected)
    assert len(report.rows) == 2


def told(*words):
    out = io.StringIO()
    with redirect_stdout(out):
        assert main(list(words)) == 0
    return out.getvalue()


def test_commands():
    facts = json.loads(told("env", "--json"))
    assert facts["fastconv"] == fastconv.__version__
    assert facts["libraries"] == {name: {"in_use": False, "refused": REASON} for name in ("cpu", "cuda", "introspection")}
    assert "no compiled kernels" in told("env")
    text = told("explain", "--shape", "1,8,9,9", "--device", "cpu")
    assert "PyTorch's own operators" in text and f"not cpu: {REASON}" in text and "floor" in text


@pytest.mark.parametrize("op", ["separable", "depthwise", "max-pool", "avg-pool"])
def test_triton_is_predicted_for_a_gpu_that_is_not_there(op):
    words = ["explain", "--op", op, "--shape", "1,64,33,33", "--device", "sm_90", "--dtype", "bfloat16", "--no-compile"]
    cuda, triton, by_library = json.loads(told(*words, "--json"))["candidates"]
    assert cuda["refused"] == REASON and cuda["seconds"] is None and "planner" in cuda["why"]
    assert triton["chosen"] and triton["seconds"] > 0 and triton["launches"] and by_library["seconds"] > 0
    assert cuda["why"] in told(*words)
