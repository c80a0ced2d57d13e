"""The oracle itself, against torch.nn.functional called as a user would call it."""

import pytest
import torch
import torch.nn.functional as F
from cases import ACTIVATIONS, CONV_CASES, POOL_CASES, ids
from helpers import assert_bitwise, assert_close, depthwise_tensors, output_size, rand, separable_tensors

from fastconv import backends, functional, reference

PLAIN_ACTIVATIONS = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "relu6": lambda x: x.clamp(0, 6),
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "hardswish": lambda x: x * (x + 3).clamp(0, 6) / 6,
}


@pytest.fixture(autouse=True)
def _reference():
    with backends.use("reference"):
        yield


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_by_their_formulas(activation):
    x = rand(1000, dtype=torch.float64, scale=4)
    assert_close(reference.ACTIVATIONS[activation](x), PLAIN_ACTIVATIONS[activation](x))


@pytest.mark.parametrize("case", CONV_CASES, ids=ids(CONV_CASES))
def test_convolutions_by_definition(case, memory_format):
    t = depthwise_tensors(case, torch.float64, "cpu", memory_format)
    out = functional.depthwise_conv2d(**t, stride=case.stride, padding=case.padding, dilation=case.dilation)
    assert_close(out, F.conv2d(t["input"], t["weight"], t["bias"], *case.geometry, groups=case.size[1]))

    t = separable_tensors(case, torch.float64, "cpu", memory_format, residual=True)
    out = functional.depthwise_separable_conv2d(
        **t,
        stride=case.stride,
        padding=case.padding,
        dilation=case.dilation,
        input_activation="relu",
        depthwise_activation="silu",
        pointwise_activation="gelu",
    )
    m = F.silu(F.conv2d(F.relu(t["input"]), t["depthwise_weight"], t["depthwise_bias"], *case.geometry, groups=case.size[1]))
    assert m.shape[2:] == output_size(case)
    assert_close(out, F.gelu(F.conv2d(m, t["pointwise_weight"], t["pointwise_bias"]) + t["residual"]))


@pytest.mark.parametrize("case", POOL_CASES, ids=ids(POOL_CASES))
def test_dense_pools_hold_the_strided_ones(case):
    """dense[..., ::sy, ::sx] is torch's pool of the same arguments, in ceil mode too, and reaches exactly as far."""
    x = rand(*case.size)
    if case.torch_has_it:
        expected, expected_indices = F.max_pool2d(
            x, case.kernel, case.stride, case.padding, case.dilation, case.ceil_mode, return_indices=True
        )
        dense, indices = functional.shift_stitch_max_pool2d(x, *case.geometry, return_indices=True)
        assert_bitwise(dense[..., :: case.stride[0], :: case.stride[1]], expected)
        assert_bitwise(indices[..., :: case.stride[0], :: case.stride[1]], expected_indices)
    if case.dilation == (1, 1):
        for count_include_pad in (True, False):
            expected = F.avg_pool2d(x, case.kernel, case.stride, case.padding, case.ceil_mode, count_include_pad)
            dense = functional.shift_stitch_avg_pool2d(x, *case.geometry, count_include_pad)
            assert_close(dense[..., :: case.stride[0], :: case.stride[1]], expected)
        expected = F.avg_pool2d(x, case.kernel, case.stride, case.padding, case.ceil_mode, divisor_override=7)
        dense = functional.shift_stitch_avg_pool2d(x, *case.geometry, divisor_override=7)
        assert_close(dense[..., :: case.stride[0], :: case.stride[1]], expected)


@pytest.mark.parametrize(
    "values", [[0.0, 1.0, -torch.inf], [float("nan"), -0.0, 0.0, -torch.inf], [-torch.inf]], ids=["ties", "nan", "minus-infinity"]
)
@pytest.mark.parametrize("case", [case for case in POOL_CASES if case.size[0] and case.dilation != (1, 1)], ids=lambda case: case.id)
def test_max_pool_window_by_window(case, values):
    """The rules of SPEC: the first maximum in row-major order, the last NaN, the first tap inside where all is -inf; any padding."""
    _, _, height, width = case.size
    x = torch.tensor(values)[torch.randint(len(values), (1, 1, height, width))]
    out, indices = functional.shift_stitch_max_pool2d(x, *case.geometry, return_indices=True)
    for y in range(out.shape[2]):
        for z in range(out.shape[3]):
            best, where = -float("inf"), -1
            for i in range(case.kernel[0]):
                for k in range(case.kernel[1]):
                    r, c = y - case.padding[0] + case.dilation[0] * i, z - case.padding[1] + case.dilation[1] * k
                    if 0 <= r < height and 0 <= c < width:
                        value = x[0, 0, r, c].item()
                        if where < 0 or value > best or value != value:
                            best, where = value, r * width + c
            assert_bitwise(out[0, 0, y, z], torch.tensor(best))
            assert indices[0, 0, y, z] == where


@pytest.mark.parametrize("include_pad", [True, False])
@pytest.mark.parametrize("ceil_mode", [True, False])
def test_dilated_average_window_by_window(ceil_mode, include_pad):
    """torch has no dilated average pool: a loop over windows says what it is."""
    x, kernel, stride, padding, dilation = rand(1, 2, 9, 8, dtype=torch.float64), (3, 4), (2, 3), (1, 2), (2, 1)
    out = functional.shift_stitch_avg_pool2d(x, kernel, stride, padding, dilation, ceil_mode, include_pad)
    expected = torch.empty_like(out)
    for y in range(out.shape[2]):
        for z in range(out.shape[3]):
            rows = [y - padding[0] + dilation[0] * i for i in range(kernel[0])]
            columns = [z - padding[1] + dilation[1] * i for i in range(kernel[1])]
            inside = [(r, c) for r in rows for c in columns if 0 <= r < 9 and 0 <= c < 8]
            padded = [(r, c) for r in rows for c in columns if r < 9 + padding[0] and c < 8 + padding[1]]
            total = sum(x[:, :, r, c] for r, c in inside)
            expected[:, :, y, z] = total / len(padded if include_pad else inside)
    assert_close(out, expected)


def test_shift_and_stitch_by_definition():
    x = rand(2, 3, 7, 8)
    fragments = functional.shift(x, (2, 3), fill=-5.0)
    assert fragments.shape == (12, 3, 4, 3)
    for n in range(2):
        for oy in range(2):
            for ox in range(3):
                expected = F.pad(x[n, :, oy::2, ox::3], (0, 3 - len(range(ox, 8, 3)), 0, 4 - len(range(oy, 7, 2))), value=-5.0)
                assert_bitwise(fragments[(n * 2 + oy) * 3 + ox], expected)
    assert_bitwise(functional.stitch(fragments, (2, 3), (7, 8)), x)
