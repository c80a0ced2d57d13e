"""Under torch.autocast each function does what its neighbour in torch.nn.functional does."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, rand

import fastconv.functional as FF

LOW = [torch.bfloat16, torch.float16]


def dtype_of(function):
    """The result's dtype, or the kind of error."""
    try:
        return function().dtype
    except (RuntimeError, TypeError):
        return "error"


@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("low", LOW, ids=str)
def test_convolutions_cast_as_conv2d(low, input_dtype, weight_dtype, device):
    x, weight = rand(1, 4, 6, 6, dtype=input_dtype, device=device), rand(4, 1, 3, 3, dtype=weight_dtype, device=device)
    pointwise, bias = rand(2, 4, dtype=weight_dtype, device=device), rand(4, dtype=weight_dtype, device=device)
    with torch.autocast(device.type, low):
        expected = dtype_of(lambda: F.conv2d(x, weight, bias, groups=4))
        assert dtype_of(lambda: FF.depthwise_conv2d(x, weight, bias)) == expected
        assert dtype_of(lambda: FF.depthwise_separable_conv2d(x, weight, pointwise, bias)) == expected


@pytest.mark.parametrize("low", LOW, ids=str)
def test_autocast_is_a_cast(low, device):
    x, weight = rand(2, 4, 8, 8, device=device).requires_grad_(), rand(4, 1, 3, 3, device=device).requires_grad_()
    pointwise, residual = rand(3, 4, device=device).requires_grad_(), rand(2, 3, 8, 8, device=device).requires_grad_()

    def separable(x, weight, pointwise, residual):
        return FF.depthwise_separable_conv2d(x, weight, pointwise, padding=1, pointwise_activation="silu", residual=residual)

    with torch.autocast(device.type, low):
        out = separable(x, weight, pointwise, residual)
    expected = separable(*(t.to(low) for t in (x, weight, pointwise, residual)))
    assert torch.equal(out, expected)
    out.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in (x, weight, pointwise, residual))
    assert_close(x.grad.to(low), torch.autograd.grad(expected.float().sum(), x)[0].double())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_pools_keep_their_dtype(kind, device):
    x = rand(1, 2, 6, 6, dtype=kind, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        assert FF.shift_stitch_max_pool2d(x, 2).dtype == F.max_pool2d(x, 2).dtype == kind
        assert FF.shift_stitch_avg_pool2d(x, 2).dtype == F.avg_pool2d(x, 2).dtype == kind
        assert FF.shift(x, 2).dtype == FF.stitch(x, 1).dtype == kind


def test_disabled_autocast_refuses_mixed_dtypes(device):
    x, weight = rand(1, 4, 6, 6, device=device), rand(4, 1, 3, 3, dtype=torch.bfloat16, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=False), pytest.raises(TypeError, match="weight must have the input's dtype"):
        FF.depthwise_conv2d(x, weight)


def test_dtype_follows_the_context(device):
    """One call, two contexts: nothing of the first remains."""
    x, weight = rand(1, 4, 6, 6, device=device), rand(4, 1, 3, 3, device=device)
    for low in LOW:
        with torch.autocast(device.type, low):
            assert FF.depthwise_conv2d(x, weight).dtype == low
    assert FF.depthwise_conv2d(x, weight).dtype == torch.float32
