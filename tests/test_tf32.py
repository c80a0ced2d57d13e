"""allow_tf32: read from torch's flags, carried by the operators from the forward to the backward, ignored by the CPU kernels."""

from types import SimpleNamespace

import pytest
import torch
from cases import CONV_CASES, by_id
from helpers import assert_bitwise, conv_geometry, rand, separable_tensors
from torch.utils._python_dispatch import TorchDispatchMode

import fastconv.functional as FF
from fastconv import _arguments, _ops, backends

(CASE,) = by_id(CONV_CASES, "plain")
GEOMETRY = ((1, 1), (1, 1, 1, 1), (1, 1), "identity", "relu", "silu")


@pytest.fixture(autouse=True)
def _flags():
    precision = torch.backends.cudnn.conv.fp32_precision
    yield
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.conv.fp32_precision = precision


def set_legacy(allowed):
    torch.backends.cudnn.allow_tf32 = allowed


def set_precision(allowed):
    torch.backends.cudnn.conv.fp32_precision = "tf32" if allowed else "ieee"


@pytest.fixture
def flag_of_a_call(monkeypatch):
    """What a call on tensors of a device and dtype hands to the operator as its last argument."""

    def ask(device, dtype):
        asked = []
        recorder = SimpleNamespace(depthwise_separable_conv2d=lambda *arguments: asked.append(arguments[-1]) or arguments[0])
        monkeypatch.setattr(backends, "select", lambda *_: recorder)
        x, weight, pointwise = (torch.empty(shape, device=device, dtype=dtype) for shape in ((1, 4, 5, 5), (4, 1, 3, 3), (4, 4)))
        FF.depthwise_separable_conv2d(x, weight, pointwise)
        return asked == [True]

    return ask


@pytest.mark.parametrize("set_flag", (set_legacy, set_precision))
def test_follows_both_of_torchs_interfaces(set_flag, flag_of_a_call):
    for allowed in (False, True):
        set_flag(allowed)
        # Any device but the CPU; "meta" needs no GPU.
        assert flag_of_a_call("meta", torch.float32) is allowed
        assert not flag_of_a_call("meta", torch.bfloat16)
        assert not flag_of_a_call("cpu", torch.float32)


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.flags = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastconv":
            arguments = dict(zip((a.name for a in func._schema.arguments), args, strict=False))
            self.flags[func._schema.name] = arguments.get("allow_tf32", False)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("allowed", (False, True))
def test_backward_uses_what_the_forward_was_told(allowed):
    x, weight, pointwise = (rand(*shape).requires_grad_() for shape in ((1, 4, 6, 7), (4, 1, 3, 3), (8, 4)))
    with Recorder() as recorder:
        out = _ops.native.depthwise_separable_conv2d(x, weight, pointwise, None, None, None, *GEOMETRY, allowed)
        out.sum().backward()
    assert recorder.flags == {"fastconv::depthwise_separable_conv2d": allowed, "fastconv::depthwise_separable_conv2d_backward": allowed}


def test_left_out_it_is_false():
    arguments = (rand(1, 4, 6, 7), rand(4, 1, 3, 3), rand(8, 4), None, None, None, *GEOMETRY)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            without, given = (torch.ops.fastconv.depthwise_separable_conv2d(*arguments, *flag) for flag in ((), (True,)))
        assert_bitwise(without, given)
    for name in ("depthwise_separable_conv2d", "depthwise_separable_conv2d_backward"):
        last = getattr(torch.ops.fastconv, name).default._schema.arguments[-1]
        assert (last.name, last.default_value) == ("allow_tf32", False)


@pytest.mark.parametrize("allowed", (False, True))
def test_compiled_graphs_carry_the_flag(allowed):
    """The read itself must not break a graph; what it gave while tracing is a constant of the graph."""
    seen = []

    def backend(graph, inputs):
        seen.extend(node.args[-1] for node in graph.graph.nodes if node.target == torch.ops.fastconv.depthwise_separable_conv2d.default)
        return graph

    def call(x, weight, pointwise):
        arguments = (x, weight, pointwise, None, None, None, *GEOMETRY)
        return torch.ops.fastconv.depthwise_separable_conv2d.default(*arguments, _arguments.convolutions_take_tf32())

    set_precision(allowed)
    torch._dynamo.reset()
    torch.compile(call, fullgraph=True, backend=backend)(rand(1, 4, 6, 7), rand(4, 1, 3, 3), rand(8, 4))
    assert seen == [allowed]


def test_on_a_gpu_it_changes_rounding_only(memory_format, device):
    if device.type != "cuda":
        pytest.skip("float32 products of a CPU know no TF32")
    tensors = separable_tensors(CASE, torch.float32, device, memory_format)
    exact = FF.depthwise_separable_conv2d(**{name: t if t is None else t.double() for name, t in tensors.items()}, **conv_geometry(CASE))
    errors = {}
    for allowed in (False, True):
        set_precision(allowed)
        out = FF.depthwise_separable_conv2d(**tensors, **conv_geometry(CASE))
        errors[allowed] = ((out.double() - exact).norm() / exact.norm()).item()
    assert errors[False] < 2e-6 < errors[True] < 2e-3
