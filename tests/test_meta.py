"""The fakes give what the kernels give: shape, strides, dtype, for every operator, on any shape and any strides."""

import pytest
import torch
from cases import CONV_CASES, POOL_CASES, by_id
from helpers import LAYOUTS, in_layout, output_size, rand
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_depthwise import conv_cases
from test_pooling import pool_cases
from torch._subclasses.fake_tensor import FakeTensorMode

from fastconv import _meta, _ops
from fastconv.functional import shift_stitch_max_pool2d

OPS = _ops.overloads("fastconv", _ops.FORWARD_OPS + _ops.BACKWARD_OPS)
NONE = ("identity",) * 3


def described(results):
    results = results if isinstance(results, tuple) else (results,)
    return [(tuple(t.shape), t.stride(), t.dtype, t.device) for t in results]


def assert_same(op, *arguments):
    """Runs the operator on real tensors and on fake ones of the same strides."""
    real = getattr(OPS, op)(*arguments)
    with FakeTensorMode() as mode:
        fake = getattr(OPS, op)(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments))
    # Strides of dimensions of size 1, and of empty tensors, are anybody's.
    for (size, stride, *rest), (fake_size, fake_stride, *fake_rest) in zip(described(real), described(fake), strict=True):
        assert size == fake_size and rest == fake_rest, op
        if 0 not in size:
            assert [s for s, n in zip(stride, size, strict=True) if n > 1] == [
                s for s, n in zip(fake_stride, size, strict=True) if n > 1
            ], op


def check_convolutions(case, layout, grad_layout, dtype, device, mask, residual):
    x = in_layout(rand(*case.size, dtype=dtype, device=device), layout)
    weight = rand(case.middle, 1, *case.kernel, dtype=dtype, device=device)
    pointwise = rand(case.out_channels, case.middle, dtype=dtype, device=device)
    biases = [rand(n, dtype=dtype, device=device) for n in (case.middle, case.out_channels)]
    geometry = (case.stride, case.padding4, case.dilation)
    height, width = output_size(case)

    assert_same("depthwise_conv2d", x, weight, biases[0], *geometry, "relu")
    grad = in_layout(rand(case.size[0], case.middle, height, width, dtype=dtype, device=device), grad_layout)
    assert_same("depthwise_conv2d_backward", grad, x, weight, biases[0], None, *geometry, "silu", mask[:3])

    grad = in_layout(rand(case.size[0], case.out_channels, height, width, dtype=dtype, device=device), grad_layout)
    rest = (weight, pointwise, *biases, grad if residual else None)
    assert_same("depthwise_separable_conv2d", x, *rest, *geometry, *NONE)
    assert_same("depthwise_separable_conv2d_backward", grad, x, *rest, None, *geometry, *NONE, [*mask, residual])


def check_pools(case, layout, grad_layout, fragments, dtype, device):
    x = in_layout(rand(*case.size, dtype=dtype, device=device), layout)
    geometry = case.geometry
    assert_same("shift_stitch_max_pool2d", x, *geometry, fragments, 0.0)
    assert_same("shift_stitch_max_pool2d_indices", x, *geometry, fragments, 0.0)
    assert_same("shift_stitch_avg_pool2d", x, *geometry, True, None, fragments, 0.0)
    out = OPS.shift_stitch_max_pool2d(x, *geometry, fragments, 0.0)
    grad = in_layout(torch.randn_like(out), grad_layout)
    assert_same("shift_stitch_max_pool2d_backward", grad, x, None, x.shape, *geometry, fragments)
    assert_same("shift_stitch_avg_pool2d_backward", grad, x.shape, *geometry, True, None, fragments)
    if case.kernel[0] * case.kernel[1] <= 256:
        assert_same("shift_stitch_max_pool2d_argmax", x, *geometry, fragments, 0.0)
        _, argmax = OPS.shift_stitch_max_pool2d_argmax(x, *geometry, fragments, 0.0)
        assert_same("shift_stitch_max_pool2d_backward", grad, None, argmax, x.shape, *geometry, fragments)
    assert_same("shift", x, case.stride, 0.0)
    pieces = OPS.shift(x, case.stride, 0.0)
    assert_same("stitch", in_layout(pieces, grad_layout), case.stride, x.shape[2:])


ANY = {
    "layout": st.sampled_from(LAYOUTS),
    "grad_layout": st.sampled_from(LAYOUTS),
    "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=conv_cases(), mask=st.lists(st.booleans(), min_size=5, max_size=5), residual=st.booleans(), **ANY)
def test_convolutions(device, case, layout, grad_layout, dtype, mask, residual):
    check_convolutions(case, layout, grad_layout, dtype, device, mask, residual)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=pool_cases(), fragments=st.booleans(), **ANY)
def test_pools(device, case, layout, grad_layout, fragments, dtype):
    check_pools(case, layout, grad_layout, fragments, dtype, device)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ambiguous_formats(layout, device):
    """Maps of one pixel and of one channel read as either format: the fakes must settle it as the kernels do."""
    for case in by_id(CONV_CASES, "map-1x1", "one-channel", "one-row", "one-column", "one-output", "many-to-one", "empty-batch"):
        check_convolutions(case, layout, layout, torch.float32, device, [True] * 5, True)
    for case in by_id(POOL_CASES, "map-1x1", "one-channel", "one-row", "one-column", "one-window", "stride-beyond-map", "empty-batch"):
        check_pools(case, layout, layout, True, torch.float32, device)
        check_pools(case, layout, layout, False, torch.float32, device)


def test_every_operator_has_a_fake():
    """ops.cpp, the list of names and the fakes name the same operators."""
    registered = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastconv::")}
    assert registered - set(_ops.PLANNER_OPS) == set(_ops.FORWARD_OPS + _ops.BACKWARD_OPS) == set(_meta._FAKES)


def test_meta_tensors():
    out = shift_stitch_max_pool2d(torch.empty(2, 3, 9, 9, device="meta"), 3, 2, ceil_mode=True)
    assert out.is_meta and out.shape == (2, 3, 7, 7)
