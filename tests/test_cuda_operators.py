"""What only a GPU can show of the operators: capture into a CUDA graph, no synchronisation, the same bits every time, compiled whole graphs,
maps whose offsets need 64 bits. Their values are held against float64 by the files of each operator, on every device that is there."""

import pytest
import torch
from cases import CONV_CASES, POOL_CASES, by_id
from helpers import assert_bitwise, assert_close, conv_geometry, double, pool_geometry, rand, reference_call, separable_tensors
from test_compile import network

import fastconv.functional as FF

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]

CONVOLUTIONS = by_id(CONV_CASES, "plain", "vector-tail", "dilation-6", "stride-2", "kernel-5", "kernel-7", "kernel-5x2", "multiplier-2")
POOLS = by_id(POOL_CASES, "resnet", "axes", "vector-tail")
CUDA = torch.device("cuda")


def depthwise(tensors, case):
    return FF.depthwise_conv2d(tensors["input"], tensors["depthwise_weight"], tensors["depthwise_bias"], activation="relu6", **conv_geometry(case))


def separable(tensors, case):
    return FF.depthwise_separable_conv2d(**tensors, depthwise_activation="relu", pointwise_activation="silu", **conv_geometry(case))


def max_pool(tensors, case):
    return FF.shift_stitch_max_pool2d(tensors["input"], **pool_geometry(case))


def avg_pool(tensors, case):
    return FF.shift_stitch_avg_pool2d(tensors["input"], **pool_geometry(case), layout="fragments")


def dealt(tensors, case):
    return FF.stitch(FF.shift(tensors["input"], (2, 3)), (2, 3), tensors["input"].shape[2:])


CALLS = [(call, case) for call in (depthwise, separable) for case in CONVOLUTIONS] + [(call, case) for call in (max_pool, avg_pool, dealt) for case in POOLS]
NAMED = pytest.mark.parametrize(("call", "case"), CALLS, ids=[f"{call.__name__}-{case.id}" for call, case in CALLS])


def operands(case, dtype, memory_format, call, grad):
    if call in (depthwise, separable):
        tensors = separable_tensors(case, dtype, CUDA, memory_format)
    else:
        tensors = {"input": rand(*case.size, dtype=dtype, device=CUDA).contiguous(memory_format=memory_format)}
    # Leaves that own their memory, so that a captured graph reads what is copied into them.
    return {name: t if t is None else t.detach().clone().requires_grad_(grad) for name, t in tensors.items()}


def leaves(tensors):
    return [t for t in tensors.values() if t is not None]


def forward_and_backward(tensors, call, case, grad_output):
    out = call(tensors, case)
    return [out, *(g for g in torch.autograd.grad(out, leaves(tensors), grad_output, allow_unused=True) if g is not None)]


def gradient(tensors, call, case):
    with torch.no_grad():
        return torch.randn_like(call(tensors, case))


@NAMED
def test_graph_capture(call, case, dtype, memory_format):
    """A captured forward and backward pass, replayed on other values, gives what an ordinary call gives."""
    tensors = operands(case, dtype, memory_format, call, grad=True)
    grad_output = gradient(tensors, call, case)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        forward_and_backward(tensors, call, case, grad_output)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = forward_and_backward(tensors, call, case, grad_output)
    with torch.no_grad():
        for tensor in leaves(tensors):
            tensor.copy_(torch.randn_like(tensor))
    graph.replay()
    torch.cuda.synchronize()
    for got, expected in zip(captured, forward_and_backward(tensors, call, case, grad_output), strict=True):
        assert_bitwise(got, expected)


@NAMED
def test_no_synchronisation(call, case):
    tensors = operands(case, torch.bfloat16, torch.channels_last, call, grad=True)
    grad_output = gradient(tensors, call, case)
    forward_and_backward(tensors, call, case, grad_output)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward_and_backward(tensors, call, case, grad_output)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@NAMED
def test_same_bits_every_time(call, case, dtype, memory_format):
    tensors = operands(case, dtype, memory_format, call, grad=True)
    grad_output = gradient(tensors, call, case)
    first = forward_and_backward(tensors, call, case, grad_output)
    for _ in range(3):
        for got, expected in zip(forward_and_backward(tensors, call, case, grad_output), first, strict=True):
            assert_bitwise(got, expected)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_whole_graph(backend, memory_format):
    torch._dynamo.reset()
    x = rand(2, 4, 19, 16, device=CUDA).contiguous(memory_format=memory_format).requires_grad_()
    weights = rand(4, 1, 3, 3, device=CUDA).requires_grad_(), rand(4, 4, device=CUDA).requires_grad_()
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    outs, expected = compiled(x, *weights), network(x, *weights)
    for got, wanted in zip(outs, expected, strict=True):
        assert_close(got.double(), wanted.double()) if backend == "aot_eager" else torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad(outs[0].square().sum(), (x, *weights))
    for got, wanted in zip(gradients, torch.autograd.grad(expected[0].square().sum(), (x, *weights)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("call", [depthwise, separable], ids=lambda call: call.__name__)
def test_other_stream_and_default_device(call):
    """A call on a stream of its own is ordered with that stream."""
    (case,) = by_id(CONV_CASES, "plain")
    tensors = operands(case, torch.float16, torch.channels_last, call, grad=False)
    expected = call(tensors, case)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        delayed = {name: t if t is None else t * 1 for name, t in tensors.items()}
        got = call(delayed, case)
    stream.synchronize()
    assert_bitwise(got, expected)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 40 * 2**30, reason="takes 20 GB of device memory")
def test_offsets_beyond_32_bits(memory_format):
    """A map of more than 2^31 elements: its last image is right."""
    x = torch.empty(3, 64, 4096, 4096, dtype=torch.bfloat16, device=CUDA, memory_format=memory_format)
    x[-1].normal_()
    weight, bias = rand(64, 1, 3, 3, dtype=torch.bfloat16, device=CUDA), rand(64, dtype=torch.bfloat16, device=CUDA)
    out = FF.depthwise_conv2d(x, weight, bias, padding=1)[-1, :, -70:]
    tensors = {"input": x[-1:, :, -72:].contiguous(), "weight": weight, "bias": bias}
    exact = reference_call("depthwise_conv2d", **double(tensors), padding=1)[0, :, -70:]
    assert_close(out, exact)
