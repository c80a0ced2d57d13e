"""shift and stitch, and what they are for: a convolution on fragments is a dilated convolution on the map."""

import pytest
import torch
import torch.nn.functional as F
from helpers import LAYOUTS, assert_bitwise, assert_close, assert_format, in_layout, poisoned_outputs, rand, reference_call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastconv.functional import shift, shift_stitch_max_pool2d, stitch

SHAPES = [
    ((2, 5, 9, 10), (2, 3)),
    ((1, 33, 8, 8), (2, 2)),
    ((3, 1, 7, 4), (3, 1)),
    ((2, 4, 1, 1), (2, 2)),
    ((1, 2, 3, 5), (7, 6)),
    ((0, 3, 6, 5), (2, 2)),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("kind", DTYPES, ids=str)
@pytest.mark.parametrize("size, stride", SHAPES, ids=str)
def test_round_trip(size, stride, kind, memory_format, device):
    x = rand(*size, scale=50).to(device=device, dtype=kind).contiguous(memory_format=memory_format)
    with poisoned_outputs():
        fragments = shift(x, stride, fill=1.0)
    assert_bitwise(fragments, reference_call("shift", x, stride, fill=1.0))
    assert_format(fragments, x)
    with poisoned_outputs():
        dense = stitch(fragments, stride, size[2:])
    assert_bitwise(dense, x)
    assert_bitwise(stitch(fragments, stride), reference_call("stitch", fragments, stride))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20)),
    stride=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    layout=st.sampled_from(LAYOUTS),
    kind=st.sampled_from(DTYPES[:4]),
    fill=st.sampled_from([0.0, -0.0, 1.5, -torch.inf, float("nan")]),
)
def test_any_shape(device, size, stride, layout, kind, fill):
    x = in_layout(rand(*size, dtype=kind, device=device), layout)
    with poisoned_outputs():
        fragments = shift(x, stride, fill)
    assert_bitwise(fragments, reference_call("shift", x, stride, fill))
    assert_format(fragments, x)
    with poisoned_outputs():
        assert_bitwise(stitch(in_layout(fragments, layout), stride, size[2:]), x.clone())


def test_a_smaller_map_may_be_stitched(device):
    fragments = rand(8, 3, 4, 5, device=device)
    assert_bitwise(stitch(fragments, 2, (5, 3)), reference_call("stitch", fragments, 2)[:, :, :5, :3].contiguous())


def test_convolution_on_fragments_is_a_dilated_convolution(memory_format, device):
    """Dilation d and padding p on fragments of stride s are dilation d*s and padding p*s on the map, once the tails hold the padding."""
    x, weight = rand(2, 4, 11, 13, dtype=torch.float64, device=device), rand(6, 4, 3, 3, dtype=torch.float64, device=device)
    x = x.contiguous(memory_format=memory_format)
    on_fragments = F.conv2d(shift(x, (2, 3), fill=0.0), weight, padding=(2, 1), dilation=(2, 1))
    on_map = F.conv2d(x, weight, padding=(4, 3), dilation=(4, 3))
    assert_close(stitch(on_fragments, (2, 3), (11, 13)), on_map)


def test_pool_of_fragments_is_a_dilated_pool(device):
    """Two layers of pooling in fragments, newest offset fastest, against the dilated pools on the whole map."""
    x = rand(1, 3, 21, 19, device=device)
    first = shift_stitch_max_pool2d(x, 3, 2, 1, layout="fragments", fill=-torch.inf)
    second = shift_stitch_max_pool2d(first, 3, 2, 1)
    dense = stitch(second, 2, (21, 19))
    padded = F.pad(F.max_pool2d(x, 3, 1, 1), (2, 2, 2, 2), value=-torch.inf)
    expected = F.max_pool2d(padded, 3, 1, 0, dilation=2)
    assert_bitwise(dense, expected)
