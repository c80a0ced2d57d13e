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


# Linux's MAP_NORESERVE, for which Python 3.11 has no name: pages that are never touched are not counted.
NORESERVE = 0x4000


def last_programs_alone(monkeypatch):
    """Of a launch its last program runs alone: maps of 2^31 elements have millions. Returns what makes such maps, of zeros, whose memory is
    taken when it is touched."""
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
        flat = torch.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | NORESERVE), dtype=dtype)
        n, c, h, w = shape
        return flat.view(n, h, w, c).permute(0, 3, 1, 2) if is_channels_last else flat.view(shape)

    monkeypatch.setattr(interpreter.InterpretedFunction, "run", run_last)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "set_grid_idx", set_index)
    # Copies every storage to the device, which here is the same memory.
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
    for module in ("depthwise", "depthwise_backward", "separable", "separable_backward", "pooling", "shift_stitch"):
        monkeypatch.setattr(getattr(triton_backend, module), "empty_map", zeros)
    return zeros


# Images, height and width of three channels. Whole tiles, so that the last one ends in the corner; past 2^31 are the last channel and the
# last row or column of the first two, and the images together of the third.
LARGE = {
    "tall": (1, 2**31 * 5 // 9 // 1024 // 8 * 8 + 4, 1024),
    "wide": (1, 1, 2**31 * 5 // 9 // 16 * 16),
    "batch": (2**31 // 192 + 2, 4, 16),
}


def corner(t):
    """What the last program of every kernel covers."""
    return t[-1:, :, -2:, -8:]


@ONLY_INTERPRETED
@pytest.mark.parametrize("name", ["depthwise", "strided", "separable", "backward", "separable_backward", "max_pool", "shift"])
@layouts(LARGE, both=("tall", "wide"))
def test_offsets_beyond_32_bits_of_the_last_program(name, case, channels_last, monkeypatch):
    n, h, w = LARGE[case]
    zeros = last_programs_alone(monkeypatch)
    x = zeros(torch.empty(0, dtype=BF16), (n, 3, h, w), channels_last)
    x[-1, :, -6:, -20:] = torch.randn(3, min(h, 6), min(w, 20))
    crop = torch.zeros(1, 3, min(h, 8), 32, dtype=torch.double)
    crop[..., -min(w, 32) :] = x[-1, :, -8:, -32:]
    weights = torch.randn(3, 1, 3, 3).to(BF16), torch.randn(3, 3).to(BF16)
    exact = [t.double() for t in weights]
    same = (1, 1), (1, 1, 1, 1), (1, 1)
    nothing = None, None, None
    activations = "identity", "relu", "identity"
    if name in ("depthwise", "strided"):
        geometry = ((1, 1) if name == "depthwise" else (2, 2), *same[1:], "relu")
        out = ops.depthwise_conv2d(x, weights[0], None, *geometry)
        expected = reference.depthwise_conv2d(crop, exact[0], None, *geometry)
    elif name == "separable":
        out = ops.depthwise_separable_conv2d(x, *weights, *nothing, *same, *activations)
        expected = reference.depthwise_separable_conv2d(crop, *exact, *nothing, *same, *activations)
    elif name.endswith("backward"):
        grad = zeros(x, x.shape, channels_last)
        corner(grad)[:] = torch.randn(3, min(h, 2), 8)
        crop.requires_grad_()
        if name == "backward":
            arguments = weights[0], None, None, *same, "identity", [True, False, False]
            out = ops_backward("depthwise_conv2d_backward", grad, x, *arguments)[0]
            forward = reference.depthwise_conv2d(crop, exact[0], None, *same, "identity")
        else:
            arguments = *weights, *nothing, None, *same, *activations, [True] + [False] * 5
            out = ops_backward("depthwise_separable_conv2d_backward", grad, x, *arguments)[0]
            forward = reference.depthwise_separable_conv2d(crop, *exact, *nothing, *same, *activations)
        (expected,) = torch.autograd.grad(corner(forward), crop, corner(grad).double())
    elif name == "max_pool":
        geometry = (3, 3), (1, 1), (1, 1), (1, 1), False, False
        out, indices = ops.shift_stitch_max_pool2d_indices(x, *geometry, 0.0)
        expected, wanted = reference.shift_stitch_max_pool2d_indices(crop, *geometry, 0.0)
        row, column = corner(wanted) // 32, corner(wanted) % 32
        assert torch.equal(corner(indices), (row + h - crop.shape[2]) * w + column + w - 32)
    else:
        out, expected = ops.shift(x, (1, 1), 0.0), crop
    assert error(corner(out), corner(expected)) < TOLERANCE[BF16]
