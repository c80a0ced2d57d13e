"""Pools at every offset: bit for bit what torch computes, at stride 1 and at every offset."""

import pytest
import torch
import torch.nn.functional as F
from cases import EMPTY_WINDOW_CASE, POOL_CASES, PoolCase, by_id, ids
from helpers import (
    LAYOUTS,
    assert_bitwise,
    assert_close,
    assert_format,
    assert_no_further,
    feature_map,
    in_layout,
    poisoned_outputs,
    pool_geometry,
    rand,
    reference_call,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fastconv.functional import shift, shift_stitch_avg_pool2d, shift_stitch_max_pool2d


def max_pool(x, case, **options):
    with poisoned_outputs():
        return shift_stitch_max_pool2d(x, **pool_geometry(case), **options)


def check_max_pool(x, case):
    """Values and indices of both layouts, against torch where it has the pool (the reference is held to it in test_reference.py)."""
    expected, expected_indices = reference_call("shift_stitch_max_pool2d", x, **pool_geometry(case), return_indices=True)
    if case.torch_has_it and not case.ceil_mode:
        assert_bitwise(expected, F.max_pool2d(x, case.kernel, 1, case.padding, case.dilation), "reference")
    out, indices = max_pool(x, case, return_indices=True)
    assert_bitwise(max_pool(x, case), expected, "values alone")
    assert_bitwise(out, expected, "values beside indices")
    assert_bitwise(indices, expected_indices, "indices")
    assert_format(out, x)
    assert_format(indices, x)
    fragments, fragment_indices = max_pool(x, case, layout="fragments", return_indices=True, fill=-7.0)
    assert_bitwise(fragments, reference_call("shift", expected, case.stride, -7.0), "fragments beside indices")
    assert_bitwise(fragment_indices, reference_call("shift", expected_indices, case.stride, -1), "fragment indices")
    fragments = max_pool(x, case, layout="fragments", fill=-torch.inf)
    assert_bitwise(fragments, reference_call("shift", expected, case.stride, -torch.inf), "fragments alone")
    assert_format(fragments, x)
    # The one-byte argmax, through the operator that autograd takes.
    if case.kernel[0] * case.kernel[1] <= 256:
        with poisoned_outputs():
            out, argmax = torch.ops.fastconv.shift_stitch_max_pool2d_argmax(x, *case.geometry, False, 0.0)
        assert_bitwise(out, expected, "values beside argmax")
        assert_bitwise(indices_of(argmax, case), expected_indices, "argmax")


def indices_of(argmax, case):
    """Flat indices into the input plane, from the taps that won."""
    tap_y, tap_x = argmax.long() // case.kernel[1], argmax.long() % case.kernel[1]
    y = torch.arange(argmax.shape[2], device=argmax.device)[:, None] - case.padding[0] + tap_y * case.dilation[0]
    x = torch.arange(argmax.shape[3], device=argmax.device) - case.padding[1] + tap_x * case.dilation[1]
    return y * case.size[3] + x


@pytest.mark.parametrize("case", POOL_CASES, ids=ids(POOL_CASES))
def test_max_pool(case, dtype, memory_format, device):
    check_max_pool(feature_map(case.size, dtype, device, memory_format), case)


@pytest.mark.parametrize("case", by_id(POOL_CASES, "axes", "resnet-ceil"), ids=lambda case: case.id)
def test_max_pool_float64(case, memory_format, device):
    check_max_pool(feature_map(case.size, torch.float64, device, memory_format), case)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_max_pool_strides(layout, dtype, device):
    for case in by_id(POOL_CASES, "resnet", "axes", "map-1x1"):
        check_max_pool(in_layout(rand(*case.size, dtype=dtype, device=device), layout), case)


@pytest.mark.parametrize(
    "case",
    by_id(POOL_CASES, "resnet", "axes", "kernel-5-ceil", "dilation-2", "padding-in-dilations", "argmax-beyond-a-byte"),
    ids=lambda case: case.id,
)
@pytest.mark.parametrize("values", ["ties", "signed-zeros", "nan", "minus-infinity", "everything"])
def test_max_pool_special_values(values, case, dtype, memory_format, device):
    """The first maximum wins, -0.0 before +0.0 stays, NaN wins and the last one gives the index, -inf is a value like others."""
    pool = {
        "ties": [0.0, 1.0],
        "signed-zeros": [-0.0, 0.0],
        "nan": [float("nan"), 1.0, 2.0, 3.0],
        "minus-infinity": [-torch.inf, -torch.inf, -torch.inf, -1.0],
        "everything": [float("nan"), -torch.inf, torch.inf, -0.0, 0.0, 1.0, -1.0],
    }[values]
    x = feature_map(case.size, dtype, device, memory_format)
    x.copy_(torch.tensor(pool)[torch.randint(len(pool), case.size)])
    check_max_pool(x, case)


def test_all_minus_infinity(dtype, memory_format, device):
    for case in by_id(POOL_CASES, "resnet", "axes-ceil", "padding-in-dilations-even"):
        x = feature_map(case.size, dtype, device, memory_format)
        check_max_pool(x.fill_(-torch.inf), case)


def test_windows_without_a_tap(dtype, memory_format, device):
    """-inf and 0, as torch; the index, which torch leaves pointing outside the plane, is -1, and no gradient arrives anywhere."""
    case = EMPTY_WINDOW_CASE
    x = feature_map(case.size, dtype, device, memory_format)
    out, indices = max_pool(x, case, return_indices=True)
    expected = F.max_pool2d(x, case.kernel, 1, case.padding, case.dilation)
    assert_bitwise(out, expected)
    assert_bitwise(max_pool(x, case), expected)
    empty = expected == -torch.inf
    assert empty.any() and (indices[empty] == -1).all()
    average = shift_stitch_avg_pool2d(x, **pool_geometry(case))
    assert (average[empty] == 0).all()
    leaf = x.clone().requires_grad_()
    max_pool(leaf, case).sum().backward()
    assert leaf.grad.sum() == (~empty).sum()


@pytest.mark.parametrize("case", POOL_CASES, ids=ids(POOL_CASES))
@pytest.mark.parametrize("options", [{}, {"count_include_pad": False}, {"divisor_override": 5}], ids=["", "exclude-pad", "divisor"])
def test_avg_pool(case, options, dtype, memory_format, device):
    x = feature_map(case.size, dtype, device, memory_format)
    exact = reference_call("shift_stitch_avg_pool2d", x.double(), **pool_geometry(case), **options)
    with poisoned_outputs():
        out = shift_stitch_avg_pool2d(x, **pool_geometry(case), **options)
        fragments = shift_stitch_avg_pool2d(x, **pool_geometry(case), **options, layout="fragments", fill=-3.0)
    unfused = reference_call("shift_stitch_avg_pool2d", x, **pool_geometry(case), **options)
    if case.dilation == (1, 1) and not case.ceil_mode:
        unfused = F.avg_pool2d(x, case.kernel, 1, case.padding, **options)
    assert_no_further(out, unfused, exact)
    assert_format(out, x)
    assert_bitwise(fragments, reference_call("shift", out, case.stride, -3.0), "fragments")
    assert_format(fragments, x)


def test_avg_pool_infinities(dtype, memory_format, device):
    (case,) = by_id(POOL_CASES, "resnet")
    x = feature_map(case.size, dtype, device, memory_format)
    x[0, 3, 5, 5], x[1, 2, 9, 9], x[1, 2, 9, 10], x[0, 0, 0, 0] = torch.inf, torch.inf, -torch.inf, float("nan")
    out, expected = shift_stitch_avg_pool2d(x, **pool_geometry(case)), F.avg_pool2d(x, case.kernel, 1, case.padding)
    assert_bitwise(out.isnan(), expected.isnan())
    assert_bitwise(out.isinf(), expected.isinf())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_avg_pool_strides(layout, dtype, device):
    for case in by_id(POOL_CASES, "resnet", "axes", "map-1x1"):
        x = in_layout(rand(*case.size, dtype=dtype, device=device), layout)
        with poisoned_outputs():
            out = shift_stitch_avg_pool2d(x, **pool_geometry(case))
        assert_close(out, reference_call("shift_stitch_avg_pool2d", x.double(), **pool_geometry(case)))
        assert_format(out, x)


def test_unbatched(memory_format, device):
    (case,) = by_id(POOL_CASES, "axes")
    x = feature_map(case.size, torch.float32, device, memory_format)
    for batched, single in zip(max_pool(x, case, return_indices=True), max_pool(x[1], case, return_indices=True), strict=True):
        assert_bitwise(single, batched[1])
    assert_bitwise(max_pool(x[1], case, layout="fragments"), max_pool(x[1:], case, layout="fragments"))
    assert_bitwise(shift_stitch_avg_pool2d(x[1], **pool_geometry(case)), shift_stitch_avg_pool2d(x, **pool_geometry(case))[1])


@st.composite
def pool_cases(draw):
    def pair(low, high):
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, dilation = pair(1, 6), pair(1, 4)
    case = PoolCase(
        "random",
        (draw(st.integers(0, 2)), draw(st.integers(1, 40)), *pair(1, 20)),
        kernel=kernel,
        stride=pair(1, 5),
        padding=tuple(draw(st.integers(0, d * (k // 2))) for k, d in zip(kernel, dilation, strict=True)),
        dilation=dilation,
        ceil_mode=draw(st.booleans()),
    )
    # Without padding every window has a tap inside the map; with it, and dilation, some may not: see test_windows_without_a_tap.
    spans = [d * (k - 1) + 1 for d, k in zip(case.dilation, case.kernel, strict=True)]
    assume(all(size + 2 * p >= span for size, p, span in zip(case.size[2:], case.padding, spans, strict=True)))
    assume(case.dilation == (1, 1) or all(size >= d for size, d in zip(case.size[2:], case.dilation, strict=True)))
    return case


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    case=pool_cases(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    layout=st.sampled_from(LAYOUTS),
    few=st.booleans(),
)
def test_any_shape(device, case, dtype, layout, few):
    x = rand(*case.size, dtype=dtype, device=device)
    if few:
        x = x.clamp(-0.5, 0.5).round(decimals=0)  # many ties and signed zeros
    x = in_layout(x, layout)
    check_max_pool(x, case)
    with poisoned_outputs():
        out = shift_stitch_avg_pool2d(x, **pool_geometry(case))
    assert_close(out, reference_call("shift_stitch_avg_pool2d", x.double(), **pool_geometry(case)))


def test_every_offset_is_a_strided_pool(memory_format, device):
    """What offset pooling means: fragment (oy, ox) is the strided pool of the padded input cropped by (oy, ox)."""
    (case,) = by_id(POOL_CASES, "kernel-5")
    x = feature_map(case.size, torch.float32, device, memory_format)
    fragments = max_pool(x, case, layout="fragments", fill=0.0)
    padded = F.pad(x, (case.padding[1], case.padding[1], case.padding[0], case.padding[0]), value=-torch.inf)
    for oy in range(case.stride[0]):
        for ox in range(case.stride[1]):
            pooled = F.max_pool2d(padded[..., oy:, ox:], case.kernel, case.stride)
            tail = fragments.shape[3] - pooled.shape[3], fragments.shape[2] - pooled.shape[2]
            assert_bitwise(fragments[oy * case.stride[1] + ox], F.pad(pooled, (0, tail[0], 0, tail[1]))[0])
    assert_bitwise(shift(max_pool(x, case), case.stride), fragments)
