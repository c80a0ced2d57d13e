"""depthwise_separable_conv2d: values and formats of every case of the catalogue."""

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
    double,
    in_layout,
    poisoned_outputs,
    reference_call,
    separable_tensors,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_depthwise import conv_cases

from fastconv.functional import depthwise_separable_conv2d

# DeepLabv3+'s order, MobileNetV2's, Xception's, Keras', ConvNeXt-like.
ORDERS = {
    "deeplab": ("identity", "relu", "relu"),
    "mobilenet-v2": ("identity", "relu6", "identity"),
    "xception": ("relu", "identity", "identity"),
    "keras": ("identity", "identity", "relu"),
    "all-smooth": ("silu", "gelu", "hardswish"),
}


def check_forward(tensors, **arguments):
    exact = reference_call("depthwise_separable_conv2d", **double(tensors), **arguments)
    unfused = reference_call("depthwise_separable_conv2d", **tensors, **arguments)
    with poisoned_outputs():
        out = depthwise_separable_conv2d(**tensors, **arguments)
    assert_no_further(out, unfused, exact)
    assert_format(out, tensors["input"])


def activations(order):
    return dict(zip(("input_activation", "depthwise_activation", "pointwise_activation"), order, strict=True))


@pytest.mark.parametrize("case", CONV_CASES, ids=ids(CONV_CASES))
def test_forward(case, dtype, memory_format, device):
    check_forward(separable_tensors(case, dtype, device, memory_format), **conv_geometry(case))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
def test_orders_of_real_networks(order, residual, dtype, memory_format, device):
    for case in by_id(CONV_CASES, "plain", "dilation-6", "stride-axes", "panel-tail"):
        tensors = separable_tensors(case, dtype, device, memory_format, residual)
        check_forward(tensors, **conv_geometry(case), **activations(ORDERS[order]))


@pytest.mark.parametrize("place", range(3), ids=["input", "depthwise", "pointwise"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, place, dtype, memory_format, device):
    (case,) = by_id(CONV_CASES, "vector-tail")
    tensors = separable_tensors(case, dtype, device, memory_format)
    tensors["input"] *= 3  # into the flat ends of every activation
    order = ["identity"] * 3
    order[place] = activation
    check_forward(tensors, **conv_geometry(case), **activations(order))


@pytest.mark.parametrize("case", by_id(CONV_CASES, "odd-everything", "stride-dilation", "multiplier-2"), ids=lambda case: case.id)
def test_float64(case, memory_format, device):
    tensors = separable_tensors(case, torch.float64, device, memory_format, residual=True)
    check_forward(tensors, **conv_geometry(case), **activations(ORDERS["all-smooth"]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(layout, dtype, device):
    for case in by_id(CONV_CASES, "plain", "stride-dilation", "map-1x1"):
        tensors = separable_tensors(case, dtype, device, torch.contiguous_format, residual=True)
        tensors["input"] = in_layout(tensors["input"], layout)
        check_forward(tensors, **conv_geometry(case))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_of_everything_else(layout, memory_format, device):
    """A residual in any layout, and weights that are views."""
    (case,) = by_id(CONV_CASES, "plain")
    tensors = separable_tensors(case, torch.float32, device, memory_format, residual=True)
    tensors["residual"] = in_layout(tensors["residual"], layout)
    tensors["depthwise_weight"] = tensors["depthwise_weight"].transpose(2, 3)
    tensors["pointwise_weight"] = tensors["pointwise_weight"].flatten(1).T.contiguous().T
    tensors["depthwise_bias"] = tensors["depthwise_bias"][:1].expand(16)
    tensors["pointwise_bias"] = tensors["pointwise_bias"].repeat_interleave(2)[::2]
    check_forward(tensors, **conv_geometry(case))


def test_pointwise_weight_may_be_a_matrix(memory_format, device):
    (case,) = by_id(CONV_CASES, "multiplier-2")
    tensors = separable_tensors(case, torch.float32, device, memory_format)
    out = depthwise_separable_conv2d(**tensors, **conv_geometry(case))
    tensors["pointwise_weight"] = tensors["pointwise_weight"].flatten(1)
    assert_bitwise(depthwise_separable_conv2d(**tensors, **conv_geometry(case)), out)


def test_outputs_larger_than_the_cache(memory_format, device):
    """From 8 MB of float32 on the CPU stores around the caches, contiguous rows by way of a buffer, since they begin at any address."""
    case = ConvCase("streaming", (2, 4, 241, 237), out_channels=19)
    check_forward(separable_tensors(case, torch.float32, device, memory_format, residual=True), **conv_geometry(case), **activations(ORDERS["deeplab"]))


@pytest.mark.parametrize("stride", [(1, 1), (2, 2)], ids=["stride-1", "stride-2"])
def test_maps_larger_than_the_cache(stride, dtype, device):
    """Rows between the first and the last tap beyond any second-level cache: the CPU takes columns in strips and rows by residue class then."""
    case = ConvCase("wide", (2, 200, 27, 205), stride=stride, padding=(12, 12), dilation=(12, 12))
    check_forward(separable_tensors(case, dtype, device, torch.channels_last), **conv_geometry(case))


def test_unbatched(memory_format, device):
    (case,) = by_id(CONV_CASES, "multiplier-2")
    tensors = separable_tensors(case, torch.float32, device, memory_format, residual=True)
    batched = depthwise_separable_conv2d(**tensors, **conv_geometry(case))
    tensors["input"], tensors["residual"] = tensors["input"][1], tensors["residual"][1]
    assert_close(depthwise_separable_conv2d(**tensors, **conv_geometry(case)), batched[1])


def test_special_values_stay_where_they_are(dtype, memory_format, device):
    """A NaN reaches the pixels whose window holds it, in all channels, and no other pixel."""
    (case,) = by_id(CONV_CASES, "dilation-2")
    tensors = separable_tensors(case, dtype, device, memory_format)
    tensors["input"][0, 3, 7, 6] = float("nan")
    out = depthwise_separable_conv2d(**tensors, **conv_geometry(case), **activations(ORDERS["deeplab"]))
    expected = reference_call("depthwise_separable_conv2d", **tensors, **conv_geometry(case), **activations(ORDERS["deeplab"]))
    assert_bitwise(out.isnan(), expected.isnan())


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    case=conv_cases(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    layout=st.sampled_from(LAYOUTS),
    order=st.tuples(*[st.sampled_from(ACTIVATIONS)] * 3),
    residual=st.booleans(),
)
def test_any_shape(device, case, dtype, layout, order, residual):
    tensors = separable_tensors(case, dtype, device, torch.contiguous_format, residual)
    tensors["input"] = in_layout(tensors["input"], layout)
    arguments = {**conv_geometry(case), **activations(order)}
    exact = reference_call("depthwise_separable_conv2d", **double(tensors), **arguments)
    with poisoned_outputs():
        out = depthwise_separable_conv2d(**tensors, **arguments)
    assert_close(out, exact)
    assert_format(out, tensors["input"])
