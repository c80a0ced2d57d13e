"""The Triton kernels against float64, forward and backward. test_triton.py runs this file: on a GPU as it is, elsewhere under Triton's
interpreter.

Maps are small and their sizes odd, so that every tile has a tail; under the interpreter tiles are small too (fastconv/triton/configs.py).
"""

import pytest
import test_errors
import torch
from triton_memory import guarded_addresses, one_patch_a_launch, poisoned_memory  # noqa: F401

import fastconv
import fastconv.functional as FF
from fastconv import _ops, backends, reference

triton_backend = pytest.importorskip("fastconv.triton")
ops = triton_backend.ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Relative error of a sum rounded once, with room for a product of two such. The interpreter cuts bfloat16 off instead of rounding it, which
# is twice the error, and its sign does not vary: it adds up in sums.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2 if DEVICE == "cuda" else 4 * 1.2e-2}

ON_GPU = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: the interpreter neither generates code nor captures graphs")

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")


@pytest.fixture(autouse=True)
def exact_float32():
    previous, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = previous


def tensor(*shape, dtype, channels_last=False, scale=1.0):
    t = (torch.randn(shape) * scale).to(dtype)
    if channels_last:
        # A view into a larger map: the strides are real.
        larger = torch.empty(shape[0], shape[1], shape[2], shape[3] + 1, dtype=dtype).contiguous(memory_format=torch.channels_last)
        larger[..., :-1] = t
        t = larger[..., :-1] if shape[0] == 1 else t.contiguous(memory_format=torch.channels_last)
    return t.to(DEVICE)


def strided(t):
    """The same values as a view that is not dense."""
    return torch.stack((t, torch.full_like(t, torch.nan)), -1)[..., 0]


def error(got, expected):
    assert got.shape == expected.shape
    return ((got.double() - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def check(name, inputs, geometry, dtype):
    """Forward and every gradient of operator `name` against the float64 reference; results keep the format of the first input."""
    leaves = [t.detach().requires_grad_() if t is not None else None for t in inputs]
    exact = [t.detach().double().requires_grad_() if t is not None else None for t in inputs]
    out = getattr(ops, name)(*leaves, *geometry)
    expected = getattr(reference, name)(*exact, *geometry)
    assert error(out, expected) < TOLERANCE[dtype]
    channels_last = triton_backend.launch.channels_last(inputs[0])
    assert out.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    grad = torch.randn(out.shape).to(DEVICE, dtype)
    if name.startswith("depthwise"):
        # Where the last activation has a kink, rounding may put a value on the other side of it: no gradient from there.
        before = getattr(reference, name)(*exact, *geometry[:-1], "identity").detach()
        for kink in (-3, 0, 3, 6):
            grad = torch.where((before - kink).abs() < 0.05, 0, grad)
    present = [i for i, t in enumerate(inputs) if t is not None]
    gradients = torch.autograd.grad(out, [leaves[i] for i in present], grad)
    wanted = torch.autograd.grad(expected, [exact[i] for i in present], grad.double())
    # One more rounded map between the gradient and the result than in the forward.
    for i, gradient, want in zip(present, gradients, wanted, strict=True):
        assert error(gradient, want) < 2 * TOLERANCE[dtype], f"gradient of argument {i}"


def layouts(cases, both=None):
    """Parameters (case, channels_last): every case in both formats; or those named in `both`, and the others in turn in one of them."""
    parameters = [(case, cl) for i, case in enumerate(cases) for cl in ((False, True) if both is None or case in both else (i % 2 == 0,))]
    names = [f"{case}-{'channels_last' if channels_last else 'contiguous'}" for case, channels_last in parameters]
    return pytest.mark.parametrize("case,channels_last", parameters, ids=names)


F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16

# (N, C, H, W), depth multiplier, kernel, stride, padding (top, bottom, left, right), dilation, activation, dtype
DEPTHWISE = {
    "plain": ((1, 5, 9, 6), 1, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), "identity", F32),
    "dilated_relu": ((1, 20, 5, 5), 1, (3, 3), (1, 1), (2, 2, 3, 3), (2, 3), "relu", BF16),
    "bias_beyond_the_input": ((1, 3, 5, 4), 1, (3, 2), (1, 1), (4, 2, 0, 3), (1, 2), "relu6", F16),
    "stride_and_multiplier": ((1, 2, 6, 5), 2, (3, 2), (2, 1), (1, 0, 1, 1), (1, 2), "silu", F16),
    "stride_divides_dilation": ((1, 3, 7, 6), 2, (2, 3), (2, 1), (2, 2, 2, 2), (2, 2), "gelu", F32),
    "one_tap": ((1, 3, 4, 5), 1, (1, 1), (1, 2), (0, 0, 1, 1), (1, 1), "gelu_tanh", F32),
    "dilation_beyond_the_input": ((2, 4, 2, 3), 1, (3, 3), (1, 1), (3, 3, 3, 3), (3, 3), "hardswish", F32),
    "strips_and_short_classes": ((1, 3, 17, 4), 1, (3, 2), (1, 1), (1, 1, 1, 2), (1, 3), "relu", F32),
}


@layouts(DEPTHWISE)
def test_depthwise(case, channels_last):
    (n, c, h, w), m, kernel, stride, padding, dilation, activation, dtype = DEPTHWISE[case]
    inputs = (
        tensor(n, c, h, w, dtype=dtype, channels_last=channels_last),
        # Results on both sides of every kink, that of relu6 at 6 too.
        strided(tensor(c * m, 1, *kernel, dtype=dtype, scale=2.0)),
        strided(tensor(c * m, dtype=dtype)) if case != "plain" else None,
    )
    check("depthwise_conv2d", inputs, (stride, padding, dilation, activation), dtype)


@pytest.mark.parametrize("activation", ["relu", "relu6", "hardswish"])
def test_derivative_on_a_kink(activation):
    x = torch.tensor([-3.0, -0.0, 0.0, 3.0, 6.0], device=DEVICE).view(1, 1, 1, 5).requires_grad_()
    out = ops.depthwise_conv2d(x, torch.ones(1, 1, 1, 1, device=DEVICE), None, (1, 1), (0, 0, 0, 0), (1, 1), activation)
    got, expected = (torch.autograd.grad(result.sum(), x)[0] for result in (out, reference.ACTIVATIONS[activation](x)))
    torch.testing.assert_close(got, expected)


def test_depthwise_of_more_taps_than_unroll():
    x, weight = tensor(1, 2, 4, 5, dtype=F32), tensor(2, 1, 8, 7, dtype=F32)
    geometry = ((1, 1), (4, 3, 3, 3), (1, 1), "relu")
    expected = reference.depthwise_conv2d(x.double(), weight.double(), None, *geometry)
    assert error(ops.depthwise_conv2d(x, weight, None, *geometry), expected) < TOLERANCE[F32]


# (N, C, H, W), multiplier, O, kernel, stride, padding, dilation, (input, depthwise, pointwise) activation, residual, dtype
SEPARABLE = {
    "xception": ((2, 5, 3, 5), 1, 6, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), ("relu", "identity", "relu"), True, F32),
    "several_tiles": ((1, 20, 5, 5), 1, 18, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), ("identity", "relu", "identity"), False, BF16),
    "recomputed": ((1, 4, 5, 3), 2, 3, (2, 2), (1, 1), (1, 0, 0, 1), (1, 1), ("silu", "hardswish", "silu"), True, F32),
    "stride_and_multiplier": ((1, 5, 6, 4), 2, 7, (3, 2), (2, 1), (1, 0, 1, 1), (1, 2), ("identity", "gelu", "relu6"), True, F16),
    "apart": ((3, 28, 2, 4), 1, 5, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), ("identity", "relu", "silu"), True, F16),
}


@layouts(SEPARABLE)
def test_separable(case, channels_last, monkeypatch):
    (n, c, h, w), m, o, kernel, stride, padding, dilation, activations, residual, dtype = SEPARABLE[case]
    # Of three images apart, a run of two and one that is left.
    monkeypatch.setattr(triton_backend.configs, "SCRATCH_BYTES", 2 * c * h * w * dtype.itemsize)
    x = tensor(n, c, h, w, dtype=dtype, channels_last=channels_last)
    weights = [tensor(c * m, 1, *kernel, dtype=dtype, scale=0.5), tensor(o, c * m, dtype=dtype, scale=(c * m) ** -0.5)]
    biases = [tensor(c * m, dtype=dtype), tensor(o, dtype=dtype)]
    weights, biases = list(map(strided, weights)), list(map(strided, biases))
    geometry = (stride, padding, dilation, *activations)
    size = reference.depthwise_separable_conv2d(x.float(), *(t.float() for t in weights), None, None, None, *geometry).shape
    # Large enough for results beyond the upper kink of relu6.
    extra = tensor(*size, dtype=dtype, channels_last=channels_last, scale=4.0) if residual else None
    check("depthwise_separable_conv2d", (x, *weights, *biases, extra), geometry, dtype)


@pytest.mark.skipif(DEVICE == "cuda", reason="changes the interpreter's tiles; on a GPU small maps take these")
@layouts(("gathered",))
def test_dilated_tiles_without_a_ring(case, channels_last, monkeypatch):
    """What maps and residue classes smaller than a tile take: more columns than there are, and gathered taps of rows a dilation apart."""
    tile = triton_backend.configs.Fused(4, 8, 16, 16, False, {"num_warps": 4})
    monkeypatch.setattr(triton_backend.configs, "_interpreted", lambda: tile)
    inputs = (tensor(1, 5, 7, 5, dtype=F32, channels_last=channels_last), tensor(5, 1, 3, 3, dtype=F32), tensor(6, 5, dtype=F32))
    geometry = ((1, 1), (3, 3, 2, 2), (3, 2), "identity", "relu", "identity")
    check("depthwise_separable_conv2d", (*inputs, tensor(5, dtype=F32), tensor(6, dtype=F32), None), geometry, F32)


# (N, C, H, W), kernel, stride, padding, dilation, ceil_mode, fragments, dtype
POOLS = {
    "plain": ((2, 5, 5, 6), (3, 3), (2, 2), (1, 1), (1, 1), False, False, F32),
    "dilated_fragments": ((1, 5, 8, 9), (3, 3), (2, 3), (1, 1), (2, 2), False, True, BF16),
    "ceil": ((1, 3, 7, 6), (2, 3), (3, 2), (1, 0), (1, 2), True, False, F16),
    "ceil_fragments": ((2, 5, 7, 5), (2, 2), (3, 2), (0, 1), (1, 1), True, True, F32),
    "large_window": ((1, 2, 3, 3), (17, 1), (1, 1), (8, 0), (1, 1), False, False, F32),
}


def pool_input(shape, dtype, channels_last, special):
    """Halves, so that windows hold equal values; with `special` also NaN, minus infinity and signed zeros."""
    x = (torch.randn(shape) * 3).round() / 2
    if special:
        x[0, 0] = -torch.inf
        x[0, 1, 1:3, 1:3] = torch.nan
        x[0, -1] = torch.where(torch.rand(shape[2:]) < 0.5, 0.0, -0.0)
    return x.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@layouts(POOLS)
def test_max_pool(case, channels_last):
    shape, *geometry, dtype = POOLS[case]
    x = pool_input(shape, dtype, channels_last, special=True)
    expected, expected_indices = reference.shift_stitch_max_pool2d_indices(x, *geometry, -2.0)
    expected_argmax = reference.shift_stitch_max_pool2d_argmax(x, *geometry, -2.0)[1]
    argmax_out, argmax = ops.shift_stitch_max_pool2d_argmax(x, *geometry, -2.0)
    indices_out, indices = ops.shift_stitch_max_pool2d_indices(x, *geometry, -2.0)
    for out in (argmax_out, indices_out):
        torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(torch.signbit(out.nan_to_num()), torch.signbit(expected.nan_to_num()))
    assert argmax.dtype == torch.uint8 and torch.equal(argmax, expected_argmax)
    assert torch.equal(indices, expected_indices)

    x = pool_input(shape, dtype, channels_last, special=False).requires_grad_()
    out, argmax = ops.shift_stitch_max_pool2d_argmax(x, *geometry, 0.0)
    grad = torch.randn(out.shape).to(DEVICE, dtype)
    (gradient,) = torch.autograd.grad(out, x, grad)
    exact = x.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(reference.shift_stitch_max_pool2d(exact, *geometry, 0.0), exact, grad.double())
    assert error(gradient, wanted) < TOLERANCE[dtype]
    recomputed = ops_backward("shift_stitch_max_pool2d_backward", grad, x.detach(), None, x.shape, *geometry)
    assert torch.equal(recomputed, gradient)


def ops_backward(name, *arguments):
    return getattr(torch.ops.fastconv_triton, name)(*arguments)


@layouts(POOLS)
def test_avg_pool(case, channels_last):
    shape, *geometry, fragments, dtype = POOLS[case]
    x = pool_input(shape, dtype, channels_last, special=False)
    divisor = {"plain": (True, None), "ceil": (True, None), "large_window": (True, 7)}.get(case, (False, None))
    check("shift_stitch_avg_pool2d", (x,), (*geometry, *divisor, fragments, 3.0), dtype)


def test_max_pool_of_more_taps_than_a_byte_holds():
    x = torch.randn(1, 2, 17, 16, device=DEVICE)
    geometry = ((17, 16), (1, 1), (0, 0), (1, 1), False, False)
    expected = reference.shift_stitch_max_pool2d(x.double(), *geometry, 0.0)
    assert torch.equal(ops.shift_stitch_max_pool2d(x, *geometry, 0.0).double(), expected)
    pool = triton_backend.launch.Pool.of(x.shape, *geometry)
    taps = triton_backend.pooling.run_max_pool(x, pool, False, 0.0, "tap", torch.int32)[1]
    assert torch.equal(taps.flatten(), x.flatten(2).argmax(2).flatten().int())


def test_windows_without_a_tap_inside():
    """The taps of a dilated window may lie on both sides of a small map; it has no index then."""
    x = torch.randn(1, 2, 3, 3, device=DEVICE)
    geometry = ((2, 2), (1, 1), (3, 3), (5, 5), False, False)
    out, indices = ops.shift_stitch_max_pool2d_indices(x, *geometry, 0.0)
    expected, expected_indices = reference.shift_stitch_max_pool2d_indices(x, *geometry, 0.0)
    assert expected_indices.min() == -1 and expected_indices.max() >= 0
    assert torch.equal(out, expected) and torch.equal(indices, expected_indices)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_shift_and_stitch(dtype, channels_last):
    x = tensor(2, 5, 5, 7, dtype=dtype, channels_last=channels_last).requires_grad_()
    stride = (2, 3)
    fragments = ops.shift(x, stride, -1.0)
    assert torch.equal(fragments, reference.shift(x, stride, -1.0))
    dense = ops.stitch(fragments, stride, (5, 7))
    assert torch.equal(dense, x)
    grad = torch.randn(x.shape).to(DEVICE, dtype)
    assert torch.equal(torch.autograd.grad(dense, x, grad)[0], grad)


@pytest.mark.parametrize("residual", [False, True])
def test_contiguous_maps_through_copies(residual, monkeypatch):
    """A layer whose copies into channels_last are predicted to pay: the same results, contiguous as its input is."""
    monkeypatch.setattr(triton_backend.access, "through_copies", lambda *_: True)
    x, weight, pointwise = (tensor(*shape, dtype=F16) for shape in ((2, 5, 4, 6), (5, 1, 3, 3), (3, 5)))
    geometry = (1, 1), (1, 1, 1, 1), (1, 1)
    check("depthwise_conv2d", (x, weight, None), (*geometry, "relu"), F16)
    extra = tensor(2, 3, 4, 6, dtype=F16) if residual else None
    check("depthwise_separable_conv2d", (x, weight, pointwise, None, None, extra), (*geometry, "identity", "relu", "identity"), F16)


def test_backward_is_bitwise_repeatable():
    x, weight = tensor(2, 9, 6, 7, dtype=F32, channels_last=True), tensor(9, 1, 3, 3, dtype=F32)
    pointwise, grad = tensor(8, 9, dtype=F32), tensor(2, 8, 6, 7, dtype=F32)
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1), "identity", "relu", "identity")
    arguments = (grad, x, weight, pointwise, None, None, None, None, *geometry, [True] * 3 + [False] * 3)
    first, second = (ops_backward("depthwise_separable_conv2d_backward", *arguments) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["ring", "gather", "separable"])
def test_gradients_asked_for_one_at_a_time(name):
    """Whoever freezes some parameters gets the gradients of the others as before."""
    m = 1 + (name == "gather")
    x, weight, bias = tensor(1, 3, 3, 4, dtype=F32), tensor(3 * m, 1, 2, 2, dtype=F32), tensor(3 * m, dtype=F32)
    geometry = (1, 1), (1, 0, 0, 1), (1, 1)
    if name == "separable":
        pointwise, offsets, grad = tensor(2, 3, dtype=F32), tensor(2, dtype=F32), tensor(1, 2, 3, 4, dtype=F32)
        name, wanted = "depthwise_separable_conv2d_backward", 6
        arguments = grad, x, weight, pointwise, bias, offsets, grad, None, *geometry, "identity", "relu", "identity"
    else:
        name, wanted = "depthwise_conv2d_backward", 3
        arguments = tensor(1, 3 * m, 3, 4, dtype=F32), x, weight, bias, None, *geometry, "identity"
    together = ops_backward(name, *arguments, [True] * wanted)
    for i in range(wanted):
        alone = ops_backward(name, *arguments, [i == j for j in range(wanted)])
        # Strips, and with them the order of additions, depend on what is asked for.
        assert error(alone[i], together[i].double()) < TOLERANCE[F32]
        assert all(t.numel() == 0 for j, t in enumerate(alone) if j != i)


def test_empty_batch_and_empty_gradients():
    x = torch.empty(0, 4, 5, 5, device=DEVICE, requires_grad=True)
    weight, pointwise = (torch.randn(*shape, device=DEVICE, requires_grad=True) for shape in ((4, 1, 3, 3), (6, 4)))
    out = ops.depthwise_separable_conv2d(x, weight, pointwise, None, None, None, (1, 1), (1, 1, 1, 1), (1, 1), "identity", "relu", "relu")
    assert out.shape == (0, 6, 5, 5)
    out.sum().backward()
    assert x.grad.shape == x.shape and not weight.grad.any() and not pointwise.grad.any()
    assert ops.shift_stitch_max_pool2d(x, (2, 2), (2, 2), (0, 0), (1, 1), False, True, 0.0).shape == (0, 4, 2, 2)


def test_chosen_by_name_through_the_documented_functions():
    x, weight = tensor(1, 3, 4, 5, dtype=F32), tensor(3, 1, 3, 3, dtype=F32)
    with fastconv.backends.use("triton"):
        assert backends.explain_choice("depthwise_conv2d", DEVICE, F32).backend == "triton"
        out = FF.depthwise_conv2d(x[0], weight, padding="same")
        with pytest.raises(ValueError, match="weight must have a multiple of the input's 3 channels"):
            FF.depthwise_conv2d(x, weight[:2])
        with pytest.raises(RuntimeError, match="the kernels take float32, bfloat16 and float16"):
            FF.depthwise_conv2d(x.double(), weight.double())
    torch.testing.assert_close(out, torch.nn.functional.conv2d(x[0], weight, padding=1, groups=3))


@pytest.mark.parametrize("name", ["depthwise_conv2d", "shift_stitch_max_pool2d_argmax", "stitch"])
def test_registration(name):
    """The fake, the schema and the derivative agree with the kernel."""
    x = torch.randn(4, 2, 3, 3, device=DEVICE, requires_grad=True)
    arguments = {
        "depthwise_conv2d": (x, torch.randn(2, 1, 2, 2, device=DEVICE, requires_grad=True), None, [1, 1], [0, 0, 0, 0], [1, 1], "identity"),
        "shift_stitch_max_pool2d_argmax": (x, [2, 2], [2, 2], [0, 0], [1, 1], False, True, 0.0),
        "stitch": (x, [2, 2], [5, 6]),
    }[name]
    torch.library.opcheck(getattr(ops, name), arguments)


@pytest.mark.parametrize("name", [name for name in test_errors.REFUSALS if not name.startswith(("module", "backend", "explain"))])
def test_refuses_in_the_words_of_every_backend(name):
    call, kind, message = test_errors.REFUSALS[name]
    with fastconv.backends.use("triton"), pytest.raises(kind, match=message):
        call()


def refusal_of(call):
    with pytest.raises(RuntimeError) as caught:
        call()
    return str(caught.value)


@pytest.mark.skipif(_ops.compiled_refusal is not None, reason="needs the compiled operators' words")
@pytest.mark.parametrize("name", test_errors.DIRECT)
def test_operators_refuse_in_the_words_of_the_compiled_ones(name, monkeypatch):
    """Callers of torch.ops.fastconv_triton, past fastconv.functional, read what csrc/common/check.h says."""
    compiled = refusal_of(test_errors.DIRECT[name])
    monkeypatch.setattr(test_errors, "OPS", torch.ops.fastconv_triton)
    for tensor in ("X", "DW", "PW"):
        monkeypatch.setattr(test_errors, tensor, getattr(test_errors, tensor).to(DEVICE))
    monkeypatch.setattr(test_errors, "rand", lambda *shape: torch.randn(shape, device=DEVICE))
    said = refusal_of(test_errors.DIRECT[name])
    assert ": " in said and said in compiled


def network(x, weight, pointwise):
    """Every function once."""
    x = FF.depthwise_conv2d(x, weight, padding=2, dilation=2, activation="relu")
    x = FF.depthwise_separable_conv2d(x, weight, pointwise, padding=1, depthwise_activation="relu")
    x = FF.shift_stitch_max_pool2d(x, 2, padding=1) + FF.shift_stitch_max_pool2d(x, 2, padding=1, return_indices=True)[0]
    x = FF.shift_stitch_avg_pool2d(x, 2, (2, 1))
    return FF.stitch(FF.shift(x, 2), 2, x.shape[2:])


def arguments_of_network():
    shapes = (2, 3, 6, 5), (3, 1, 3, 3), (3, 3)
    return [torch.randn(shape, device=DEVICE, requires_grad=True) for shape in shapes]


def results(function, arguments):
    """Result and gradients; the weights are the same tensors in every call."""
    out = function(*arguments)
    return out, *torch.autograd.grad(out.square().sum(), arguments)


@pytest.fixture
def alone(monkeypatch):
    """An installation with Triton only: on a GPU the ladder itself must come to it, on a CPU the interpreter has to be asked for."""
    monkeypatch.setattr(_ops, "cuda_refusal", "not built")
    if DEVICE == "cuda":
        yield
    else:
        with fastconv.backends.use("triton"):
            yield


def test_every_function_with_triton_alone(alone):
    arguments = arguments_of_network()
    assert all(backends.explain_choice(op, DEVICE, F32).backend == "triton" for op in _ops.FORWARD_OPS)
    got = results(network, arguments)
    with fastconv.backends.use("reference"):
        expected = results(network, [t.detach().double().requires_grad_() for t in arguments])
    for tensor, exact in zip(got, expected, strict=True):
        assert error(tensor, exact) < 10 * TOLERANCE[F32]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=ON_GPU)])
def test_compiles_without_graph_breaks(alone, backend):
    arguments = arguments_of_network()
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    for got, expected in zip(results(compiled, arguments), results(network, arguments), strict=True):
        torch.testing.assert_close(got, expected)


def test_exports(alone):
    class Network(torch.nn.Module):
        def forward(self, *arguments):
            return network(*arguments)

    arguments = tuple(t.detach() for t in arguments_of_network())
    program = torch.export.export(Network(), arguments)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {f"fastconv_triton.{op}.default" for op in ("depthwise_separable_conv2d", "shift", "stitch")} <= names
    torch.testing.assert_close(program.module()(*arguments), network(*arguments))


@ON_GPU
def test_captured_in_a_graph(alone):
    """Forward and backward: nothing synchronises or allocates outside of the graph's pool."""
    arguments = arguments_of_network()
    expected = results(network, arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(network, arguments)
    for tensor in captured:
        tensor.detach().zero_()
    graph.replay()
    for got, wanted in zip(captured, expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: a map of more than 2^31 elements")
def test_offsets_beyond_32_bits():
    x = torch.zeros(1, 64, 8192, 4224, dtype=BF16, device=DEVICE).contiguous(memory_format=torch.channels_last)
    x[0, :, -1, -1] = 1
    weight = torch.ones(64, 1, 1, 1, dtype=BF16, device=DEVICE)
    assert ops.depthwise_conv2d(x, weight, None, (1, 1), (0, 0, 0, 0), (1, 1), "identity")[0, :, -1, -1].eq(1).all()
