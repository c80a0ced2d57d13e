"""What the small maps of triton_kernels.py do not come to under the interpreter: tiles of other numbers of rows, several blocks of channels
and of partial sums, offsets beyond 32 bits. test_triton.py runs this file too."""

import math
import mmap

import pytest
import torch
from triton_kernels import (  # noqa: F401
    BF16,
    DEVICE,
    F32,
    TOLERANCE,
    check,
    error,
    exact_float32,
    guarded_addresses,
    layouts,
    one_patch_a_launch,
    ops,
    ops_backward,
    poisoned_memory,
    tensor,
    triton_backend,
)

from fastconv import reference

ONLY_INTERPRETED = pytest.mark.skipif(DEVICE == "cuda", reason="changes the interpreter's tiles, or runs the last program alone")

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")


@ONLY_INTERPRETED
@pytest.mark.parametrize("rows", [1, 4, 8])
def test_fused_ring_of_rows(rows, monkeypatch):
    tile = triton_backend.configs.Fused(rows, max(16 // rows, 2), 16, 16, True, {"num_warps": 4})
    monkeypatch.setattr(triton_backend.configs, "_interpreted", lambda: tile)
    x, weight, pointwise = tensor(1, 3, 9, 3, dtype=F32), tensor(3, 1, 2, 1, dtype=F32), tensor(2, 3, dtype=F32)
    arguments = x, weight, pointwise, tensor(3, dtype=F32), None, None, (1, 1), (1, 0, 0, 0), (1, 1), "identity", "relu", "identity"
    expected = reference.depthwise_separable_conv2d(*(t.double() if isinstance(t, torch.Tensor) else t for t in arguments))
    assert error(ops.depthwise_separable_conv2d(*arguments), expected) < TOLERANCE[F32]


@ONLY_INTERPRETED
@pytest.mark.parametrize("name", ["ring", "gather", "max_pool", "permute"])
def test_several_blocks_of_channels(name, monkeypatch):
    monkeypatch.setattr(triton_backend.configs, "INTERPRETER", triton_backend.configs.Strip(4, 16, 4))
    x = tensor(2, 6, 2, 3, dtype=F32)
    if name in ("ring", "gather"):
        m = 1 + (name == "gather")
        inputs = x, tensor(6 * m, 1, 1, 2, dtype=F32), tensor(6 * m, dtype=F32)
        check("depthwise_conv2d", inputs, ((1, 1), (0, 0, 1, 0), (1, 1), "relu"), F32)
    elif name == "max_pool":
        geometry = (2, 2), (1, 1), (0, 1), (1, 1), False, False
        out, argmax = ops.shift_stitch_max_pool2d_argmax(x, *geometry, 0.0)
        assert torch.equal(out, reference.shift_stitch_max_pool2d(x, *geometry, 0.0))
        grad, exact = torch.randn_like(out), x.double().requires_grad_()
        (wanted,) = torch.autograd.grad(reference.shift_stitch_max_pool2d(exact, *geometry, 0.0), exact, grad.double())
        assert error(ops_backward("shift_stitch_max_pool2d_backward", grad, None, argmax, x.shape, *geometry), wanted) < TOLERANCE[F32]
    else:
        assert torch.equal(ops.shift(x, (2, 2), 5.0), reference.shift(x, (2, 2), 5.0))


def test_partial_sums_of_several_blocks():
    """More slots than a block of the second stage holds, and not a whole number of blocks."""
    partial = torch.randn(70, 3, 5, device=DEVICE)
    dw, db = torch.empty(5, 2, device=DEVICE), torch.empty(5, device=DEVICE)
    triton_backend.depthwise_backward.ordered_sum(partial, 70, dw, db, 5, 2)
    total = partial.double().sum(0)
    assert error(dw, total[:2].t()) < TOLERANCE[F32] and error(db, total[2]) < TOLERANCE[F32]


@pytest.mark.parametrize("window", [(16, 16), (257, 1)])
def test_taps_found_again_fit_their_dtype(window):
    """Without an argmax the backward pass finds the taps again, more than 256 of them in more than a byte."""
    size, geometry = (1, 1, *window), (window, (1, 1), (0, 0), (1, 1), False, False)
    x, grad = torch.randn(size, device=DEVICE), torch.ones(1, 1, 1, 1, device=DEVICE)
    with triton_backend.launch.record(triton_backend.launch.FAMILIES["sm_90"]) as recorder:
        ops_backward("shift_stitch_max_pool2d_backward", grad, x, None, size, *geometry)
    forward, backward = recorder.launches
    taps = forward.arguments["index_ptr"]
    assert taps is backward.arguments["argmax_ptr"] and torch.iinfo(taps.dtype).max >= math.prod(window) - 1


@pytest.fixture
def last_programs_alone(monkeypatch):
    """Of a launch its last program runs alone: a map of 2^31 elements has millions. Memory is of zeros, and taken when it is touched."""
    from triton.runtime import interpreter

    run = interpreter.InterpretedFunction.run
    last = 0

    def run_last(self, *arguments, grid, **options):
        nonlocal last
        last = grid[0] - 1
        return run(self, *arguments, grid=(1,), **options)

    def set_index(self, *_):
        self.grid_idx = (last, 0, 0)

    def zeros(like, shape, is_channels_last, dtype=None):
        dtype = dtype or like.dtype
        flat = torch.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE), dtype=dtype)
        n, c, h, w = shape
        return flat.view(n, h, w, c).permute(0, 3, 1, 2) if is_channels_last else flat.view(shape)

    monkeypatch.setattr(interpreter.InterpretedFunction, "run", run_last)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "set_grid_idx", set_index)
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
    for module in ("depthwise", "depthwise_backward", "separable", "separable_backward", "pooling", "pooling_backward", "shift_stitch"):
        monkeypatch.setattr(getattr(triton_backend, module), "empty_map", zeros)
    return zeros


# Height and width: whole tiles, so that the last one ends in the corner.
LARGE = {"tall": (2**31 // 3 // 1024 // 8 * 8 + 12, 1024), "wide": (4, 2**31 // 12 // 16 * 16 + 16)}


def corner(t):
    """What the last program of every kernel covers."""
    return t[..., -2:, -8:]


@ONLY_INTERPRETED
@pytest.mark.parametrize("name", ["depthwise", "gather", "separable", "backward", "separable_backward", "max_pool", "shift"])
@layouts(LARGE, both=tuple(LARGE))
def test_offsets_beyond_32_bits_of_the_last_program(name, case, channels_last, last_programs_alone):
    h, w = LARGE[case]
    x = last_programs_alone(torch.empty(0, dtype=BF16), (1, 3, h, w), channels_last)
    x[..., -6:, -20:] = torch.randn(3, min(h, 6), 20)
    crop = torch.zeros(1, 3, 8, 32)
    crop[..., -min(h, 8) :, :] = x[..., -8:, -32:]
    weights = torch.randn(3, 1, 3, 3).to(BF16), torch.randn(3, 3).to(BF16)
    same = (1, 1), (1, 1, 1, 1), (1, 1)
    exact = [t.double() for t in (crop, *weights)]
    nothing = None, None
    if name == "depthwise":
        out = ops.depthwise_conv2d(x, weights[0], None, *same, "relu")
        expected = reference.depthwise_conv2d(*exact[:2], None, *same, "relu")
    elif name == "gather":
        # A ring holds no window of 51 taps.
        weight = torch.randn(3, 1, 3, 17).to(BF16)
        out = ops.depthwise_conv2d(x, weight, None, (1, 1), (1, 1, 8, 8), (1, 1), "relu")
        expected = reference.depthwise_conv2d(exact[0], weight.double(), None, (1, 1), (1, 1, 8, 8), (1, 1), "relu")
    elif name == "separable":
        out = ops.depthwise_separable_conv2d(x, *weights, *nothing, None, *same, "identity", "relu", "identity")
        expected = reference.depthwise_separable_conv2d(*exact, *nothing, None, *same, "identity", "relu", "identity")
    elif name in ("backward", "separable_backward"):
        grad = last_programs_alone(x, x.shape, channels_last)
        corner(grad)[:] = torch.randn(3, 2, 8)
        exact[0].requires_grad_()
        if name == "backward":
            out = ops_backward("depthwise_conv2d_backward", grad, x, weights[0], None, None, *same, "identity", [True, False, False])[0]
            forward = reference.depthwise_conv2d(*exact[:2], None, *same, "identity")
        else:
            activations = "identity", "relu", "identity"
            mask = [True] + [False] * 5
            out = ops_backward("depthwise_separable_conv2d_backward", grad, x, *weights, *nothing, None, None, *same, *activations, mask)[0]
            forward = reference.depthwise_separable_conv2d(*exact, *nothing, None, *same, *activations)
        (expected,) = torch.autograd.grad(corner(forward), exact[0], corner(grad).double())
    elif name == "max_pool":
        geometry = (3, 3), (1, 1), (1, 1), (1, 1), False, False
        out, indices = ops.shift_stitch_max_pool2d_indices(x, *geometry, 0.0)
        expected, wanted = reference.shift_stitch_max_pool2d_indices(exact[0], *geometry, 0.0)
        row, column = corner(wanted) // 32, corner(wanted) % 32
        assert torch.equal(corner(indices), (row + h - 8) * w + column + w - 32)
    else:
        out = ops.shift(x, (1, 1), 0.0)
        expected = exact[0]
    assert error(corner(out), corner(expected)) < TOLERANCE[BF16]
