"""depthwise_conv2d: values, formats and gradients of every case of the catalogue."""

import pytest
import torch
from cases import ACTIVATIONS, CONV_CASES, ConvCase, by_id, ids
from helpers import (
    LAYOUTS,
    assert_bitwise,
    assert_close,
    assert_format,
    assert_no_further,
    conv_geometry,
    depthwise_tensors,
    double,
    in_layout,
    poisoned_outputs,
    reference_call,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fastconv.functional import depthwise_conv2d


def check_forward(tensors, **arguments):
    exact = reference_call("depthwise_conv2d", **double(tensors), **arguments)
    unfused = reference_call("depthwise_conv2d", **tensors, **arguments)
    with poisoned_outputs():
        out = depthwise_conv2d(**tensors, **arguments)
    assert_no_further(out, unfused, exact)
    assert_format(out, tensors["input"])
    return out


@pytest.mark.parametrize("case", CONV_CASES, ids=ids(CONV_CASES))
def test_forward(case, dtype, memory_format, device):
    check_forward(depthwise_tensors(case, dtype, device, memory_format), **conv_geometry(case))


@pytest.mark.parametrize("case", by_id(CONV_CASES, "odd-everything", "stride-dilation", "multiplier-2"), ids=lambda case: case.id)
def test_float64(case, memory_format, device):
    check_forward(depthwise_tensors(case, torch.float64, device, memory_format), **conv_geometry(case), activation="silu")


def test_maps_larger_than_the_cache(dtype, device):
    """Rows between the first and the last tap beyond any second-level cache: the CPU takes columns in strips and rows by residue class then."""
    case = ConvCase("wide", (2, 200, 27, 205), padding=(12, 12), dilation=(12, 12))
    check_forward(depthwise_tensors(case, dtype, device, torch.channels_last), **conv_geometry(case))


@pytest.mark.parametrize("dilation", (1, 2, 3))
@pytest.mark.parametrize("kernel", (3, 5, 7))
def test_every_width(kernel, dilation, memory_format, device):
    """Rows are dealt into blocks of pixels, pairs of rows, residue classes: every remainder once, with a map lower than the dilated kernel too."""
    for width in range(1, 38):
        height, padding = 1 + width % 8, dilation * (kernel // 2)
        case = ConvCase("width", (1, 19, height, width), kernel=(kernel, kernel), padding=(padding, padding), dilation=(dilation, dilation))
        check_forward(depthwise_tensors(case, torch.float32, device, memory_format), **conv_geometry(case))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, dtype, memory_format, device):
    (case,) = by_id(CONV_CASES, "vector-tail")
    tensors = depthwise_tensors(case, dtype, device, memory_format)
    tensors["input"] *= 3  # into the flat ends of every activation
    check_forward(tensors, **conv_geometry(case), activation=activation)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(layout, dtype, device):
    for case in by_id(CONV_CASES, "plain", "stride-dilation", "map-1x1"):
        tensors = depthwise_tensors(case, dtype, device, torch.contiguous_format)
        tensors["input"] = in_layout(tensors["input"], layout)
        check_forward(tensors, **conv_geometry(case))


def test_expanded_and_strided_weights(device):
    (case,) = by_id(CONV_CASES, "plain")
    tensors = depthwise_tensors(case, torch.float32, device, torch.contiguous_format)
    tensors["input"] = tensors["input"][:1].expand(3, -1, -1, -1)
    tensors["weight"] = tensors["weight"].transpose(2, 3)
    tensors["bias"] = tensors["bias"][:1].expand(16)
    check_forward(tensors, **conv_geometry(case))


def test_unbatched(memory_format, device):
    (case,) = by_id(CONV_CASES, "multiplier-2")
    tensors = depthwise_tensors(case, torch.float32, device, memory_format)
    batched = depthwise_conv2d(**tensors, **conv_geometry(case))
    tensors["input"] = tensors["input"][1]
    assert_close(depthwise_conv2d(**tensors, **conv_geometry(case)), batched[1])


def test_special_values_stay_where_they_are(dtype, memory_format, device):
    """A NaN or an infinity reaches the outputs whose window holds it, and no other."""
    (case,) = by_id(CONV_CASES, "dilation-2")
    tensors = depthwise_tensors(case, dtype, device, memory_format)
    tensors["input"][0, 3, 7, 6] = float("nan")
    tensors["input"][1, 5, 2, 2] = float("inf")
    out = depthwise_conv2d(**tensors, **conv_geometry(case))
    expected = reference_call("depthwise_conv2d", **tensors, **conv_geometry(case))
    assert_bitwise(out.isnan(), expected.isnan())
    assert_bitwise(out.isinf(), expected.isinf())


@st.composite
def conv_cases(draw):
    """Any convolution small enough to be quick, valid or turned away by `assume`."""

    def pair(low, high):
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    case = ConvCase(
        "random",
        (draw(st.integers(0, 3)), draw(st.integers(1, 40)), *pair(1, 24)),
        kernel=pair(1, 6),
        out_channels=draw(st.integers(1, 70)),
        multiplier=draw(st.integers(1, 3)),
        stride=pair(1, 4),
        padding=pair(0, 7),
        dilation=pair(1, 7),
        depthwise_bias=draw(st.booleans()),
        pointwise_bias=draw(st.booleans()),
    )
    spans = [d * (k - 1) + 1 for d, k in zip(case.dilation, case.kernel, strict=True)]
    assume(all(size + 2 * p >= span for size, p, span in zip(case.size[2:], case.padding, spans, strict=True)))
    return case


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    case=conv_cases(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    layout=st.sampled_from(LAYOUTS),
    activation=st.sampled_from(ACTIVATIONS),
)
def test_any_shape(device, case, dtype, layout, activation):
    tensors = depthwise_tensors(case, dtype, device, torch.contiguous_format)
    tensors["input"] = in_layout(tensors["input"], layout)
    exact = reference_call("depthwise_conv2d", **double(tensors), **conv_geometry(case), activation=activation)
    with poisoned_outputs():
        out = depthwise_conv2d(**tensors, **conv_geometry(case), activation=activation)
    assert_close(out, exact)
    assert_format(out, tensors["input"])
