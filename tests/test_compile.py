"""torch.compile without graph breaks, on sizes that change, and torch.export."""

import pytest
import torch
from cases import CONV_CASES, POOL_CASES, by_id
from helpers import assert_bitwise, assert_close, conv_geometry, feature_map, pool_geometry, rand, separable_tensors
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, export

import fastconv.functional as FF
from fastconv import backends, nn

(CASE,) = by_id(CONV_CASES, "plain")
(POOL,) = by_id(POOL_CASES, "axes-ceil")


def network(x, weight, pointwise):
    """Every function once, with a shape that depends on the input's."""
    x = FF.depthwise_conv2d(x, weight, stride=(2, 1), padding=1, dilation=2, activation="silu")
    x = FF.depthwise_separable_conv2d(x, weight, pointwise, padding="same", depthwise_activation="relu", residual=None)
    x = x + FF.shift_stitch_max_pool2d(x, 3, (2, 3), 1)
    x = x + FF.shift_stitch_avg_pool2d(x, 3, 2, 1, ceil_mode=False)
    values, indices = FF.shift_stitch_max_pool2d(x, 3, 2, ceil_mode=True, layout="fragments", return_indices=True)
    fragments = FF.shift(x, (2, 3))
    return FF.stitch(fragments, (2, 3), x.shape[2:]), values, indices


def inputs(height, width, batch=2, grad=True):
    tensors = rand(batch, 4, height, width), rand(4, 1, 3, 3), rand(4, 4)
    return tuple(tensor.requires_grad_(grad) for tensor in tensors)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compare(compiled, arguments):
    for out, expected in zip(compiled(*arguments), network(*arguments), strict=True):
        assert_bitwise(out, expected)
    gradients = torch.autograd.grad(compiled(*arguments)[0].square().sum(), arguments)
    for gradient, expected in zip(gradients, torch.autograd.grad(network(*arguments)[0].square().sum(), arguments), strict=True):
        assert_close(gradient, expected)


def test_dynamic_shapes_compile_once(memory_format):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=counter)
    compiled(*inputs(19, 16))
    graphs = counter.frame_count
    for height, width, batch in ((19, 16, 2), (23, 29, 3), (17, 14, 5)):
        x, *weights = inputs(height, width, batch)
        compare(compiled, (x.detach().contiguous(memory_format=memory_format).requires_grad_(), *weights))
    assert counter.frame_count == graphs + (memory_format == torch.channels_last)


def test_static_shapes():
    compare(torch.compile(network, fullgraph=True, dynamic=False, backend="aot_eager"), inputs(15, 14))


def test_inductor(monkeypatch, tmp_path):
    """The default backend generates code around the operators and hands them buffers of its own."""

    def pointwise_around(x, weight, pointwise):
        x = x * 2 - 1
        x = FF.depthwise_separable_conv2d(x, weight, pointwise, padding=1, pointwise_activation="relu")
        return FF.shift_stitch_max_pool2d(x.abs() + 1, 3, 2, 1) / 3

    arguments = inputs(12, 13)
    # Generated code is kept on disk under a name that does not tell which vectors it was written for: on another processor, or under
    # ATEN_CPU_CAPABILITY, what it writes with the wrong ones is garbage.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiled = torch.compile(pointwise_around, fullgraph=True)
    assert_close(compiled(*arguments), pointwise_around(*arguments).double())
    got = torch.autograd.grad(compiled(*arguments).sum(), arguments)
    expected = torch.autograd.grad(pointwise_around(*arguments).sum(), arguments)
    for gradient, exact in zip(got, expected, strict=True):
        assert_close(gradient, exact.double())


def test_forced_backend_is_seen(device):
    """A graph compiled under use("reference") is not reused outside of it."""
    x, weight, _ = inputs(9, 9, grad=False)
    traced = []

    def backend(graph, _):
        traced.append(any("fastconv" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    compiled = torch.compile(FF.depthwise_conv2d, fullgraph=True, backend=backend)
    compiled(x, weight)
    with backends.use("reference"):
        compiled(x, weight)
    compiled(x, weight)
    assert traced == [True, False]


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    class Network(torch.nn.Module):
        def forward(self, x, weight, pointwise):
            return network(x, weight, pointwise)

    dynamic = {
        "x": {0: Dim("n", min=1, max=64), 2: Dim("h", min=16, max=512), 3: Dim("w", min=16, max=512)},
        "weight": None,
        "pointwise": None,
    }
    arguments = inputs(19, 16, grad=False)
    program = export(Network(), arguments, dynamic_shapes=dynamic, strict=strict)
    for height, width, batch in ((19, 16, 2), (24, 31, 3), (16, 18, 1)):
        arguments = inputs(height, width, batch, grad=False)
        for out, expected in zip(program.module()(*arguments), network(*arguments), strict=True):
            assert_bitwise(out, expected)


def test_modules(memory_format):
    """A trained module in eval mode folds its norms inside the graph; in train mode it updates its statistics there."""
    module = nn.DepthwiseSeparableConv2d(
        16, 24, 3, padding=1, depthwise_norm=torch.nn.BatchNorm2d, depthwise_activation="relu", pointwise_norm=torch.nn.BatchNorm2d
    )
    x = feature_map(CASE.size, torch.float32, "cpu", memory_format)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    module.train()
    before = module.pointwise_norm.running_mean.clone()
    compiled(x).sum().backward()
    assert (module.pointwise_norm.running_mean != before).all()
    module.eval()
    assert_close(compiled(x), module(x).double())
    with torch.no_grad():
        assert_close(compiled(x), module(x).double())


def test_catalogue_samples(memory_format):
    tensors = separable_tensors(CASE, torch.bfloat16, "cpu", memory_format, residual=True)
    compiled = torch.compile(FF.depthwise_separable_conv2d, fullgraph=True, backend="aot_eager")
    assert_bitwise(compiled(**tensors, **conv_geometry(CASE)), FF.depthwise_separable_conv2d(**tensors, **conv_geometry(CASE)))
    x = feature_map(POOL.size, torch.float16, "cpu", memory_format)
    compiled = torch.compile(FF.shift_stitch_max_pool2d, fullgraph=True, backend="aot_eager")
    assert_bitwise(compiled(x, **pool_geometry(POOL)), FF.shift_stitch_max_pool2d(x, **pool_geometry(POOL)))
