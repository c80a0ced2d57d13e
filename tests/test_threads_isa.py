"""Results do not depend on the number of threads, bit for bit, and every instruction set of this machine passes the same checks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastconv.functional as FF
from cases import CONV_CASES, POOL_CASES, by_id
from fastconv import _C
from helpers import assert_bitwise, conv_geometry, feature_map, pool_geometry, separable_tensors
from test_separable import ORDERS, activations

TESTS = Path(__file__).resolve().parent


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def results(function, tensors, **arguments):
    """The output and every gradient, from fixed inputs."""
    inputs = {name: None if value is None else value.detach().clone().requires_grad_() for name, value in tensors.items()}
    out = function(**inputs, **arguments)
    grad = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape).to(out)
    out.backward(grad)
    return [out.detach(), *(value.grad for value in inputs.values() if value is not None)]


def same_on_any_number(threads, function, tensors, **arguments):
    threads(1)
    expected = results(function, tensors, **arguments)
    for count in (2, 3):
        threads(count)
        for out, first in zip(results(function, tensors, **arguments), expected, strict=True):
            assert_bitwise(out, first, f"{count} threads")


@pytest.mark.parametrize(
    "case",
    by_id(CONV_CASES, "plain", "panel-tail", "tiles", "tiles-dilated", "stride-2", "multiplier-2", "one-row"),
    ids=lambda case: case.id,
)
def test_convolutions(threads, case, dtype, memory_format):
    tensors = separable_tensors(case, dtype, "cpu", memory_format, residual=True)
    same_on_any_number(threads, FF.depthwise_separable_conv2d, tensors, **conv_geometry(case), **activations(ORDERS["deeplab"]))
    depthwise = {"input": tensors["input"], "weight": tensors["depthwise_weight"], "bias": tensors["depthwise_bias"]}
    same_on_any_number(threads, FF.depthwise_conv2d, depthwise, **conv_geometry(case), activation="silu")


@pytest.mark.parametrize("case", by_id(POOL_CASES, "resnet", "tiles", "kernel-5-ceil", "one-column"), ids=lambda case: case.id)
@pytest.mark.parametrize("layout", ["stitched", "fragments"])
def test_pools(threads, case, layout, dtype, memory_format):
    tensors = {"input": feature_map(case.size, dtype, "cpu", memory_format)}
    for function in (FF.shift_stitch_max_pool2d, FF.shift_stitch_avg_pool2d):
        same_on_any_number(threads, function, tensors, **pool_geometry(case), layout=layout)


def python(isa, *command, **environment):
    """Runs python in a process of its own, since the instruction set is chosen once at load."""
    environment = {**os.environ, "FASTCONV_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run([sys.executable, *command], env=environment, cwd=TESTS.parent, capture_output=True, text=True)


PROBE = "import torch; from fastconv import _C; isa = _C.isa(); print(isa['active'], isa['refused'])"


@pytest.mark.slow
@pytest.mark.parametrize("isa", [isa for isa in _C.isa()["available"] if isa != _C.isa()["active"]])
def test_every_instruction_set(isa):
    """A third of the tests that run kernels, a different third each time; the active instruction set runs them all anyway."""
    assert python(isa, "-c", PROBE).stdout.split() == [isa]
    files = [str(TESTS / f"test_{name}.py") for name in ("depthwise", "separable", "pooling", "autograd")]
    run = python(isa, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, FASTCONV_TEST_SHARE="0.33")
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


def test_unknown_instruction_set_is_refused_not_fatal():
    assert python("mmx", "-c", PROBE).stdout.split() == [_C.isa()["available"][0], "mmx"]
