"""Inputs that betray a kernel which reads or writes where it should not, and the measures by which results are judged."""

import math
from contextlib import contextmanager

import torch

from fastconv import backends, functional

# Norm-wise relative error of one rounding to the dtype, times what a sum of a few thousand products may add to it.
BOUNDS = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def rand(*shape, dtype=torch.float32, device="cpu", scale=1.0):
    return (torch.randn(shape, dtype=torch.float64) * scale).to(device=device, dtype=dtype)


def surrounded(tensor):
    """The same values and strides in the middle of a buffer of NaN (of the largest value, for integers): a read outside shows."""
    margin = 256
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else 0
    poison = float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max
    buffer = torch.full((span + 2 * margin,), poison, dtype=tensor.dtype, device=tensor.device)
    out = buffer.as_strided(tensor.shape, tensor.stride(), margin)
    return out.copy_(tensor)


def in_layout(tensor, layout):
    """The same values under other strides. "sliced" lies in a larger map of NaN, "permuted" is dense in neither memory format."""
    if layout == "contiguous":
        return surrounded(tensor.contiguous())
    if layout == "channels_last":
        return surrounded(tensor.contiguous(memory_format=torch.channels_last))
    if layout == "permuted":
        return surrounded(tensor.permute(3, 1, 0, 2).contiguous()).permute(2, 1, 3, 0)
    if layout == "sliced":
        n, c, h, w = tensor.shape
        larger = torch.full((n, c + 1, h + 3, 2 * w + 2), float("nan"), dtype=tensor.dtype, device=tensor.device)
        view = larger[:, 1:, 2 : h + 2, 1 : 2 * w + 1 : 2]
        return view.copy_(tensor)
    if layout == "sliced_channels_last":
        return in_layout(tensor.permute(0, 2, 3, 1), "sliced").permute(0, 3, 1, 2)
    raise ValueError(layout)


LAYOUTS = ("contiguous", "channels_last", "permuted", "sliced", "sliced_channels_last")


def feature_map(size, dtype, device, memory_format, scale=1.0):
    layout = "channels_last" if memory_format == torch.channels_last else "contiguous"
    return in_layout(rand(*size, dtype=dtype, device=device, scale=scale), layout)


@contextmanager
def poisoned_outputs():
    """torch.empty returns NaN inside, so that an element which a kernel leaves out shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(4).isnan().all()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def relative_error(out, exact):
    """||out - exact|| / ||exact|| in float64."""
    exact = exact.double()
    norm = exact.norm()
    return ((out.double() - exact).norm() / (norm if norm > 0 else 1.0)).item()


def assert_close(out, exact, label=""):
    """Within the bound of the dtype of `out`, and of the shape it should have."""
    assert out.shape == exact.shape, (label, out.shape, exact.shape)
    error = relative_error(out, exact)
    assert error <= BOUNDS[out.dtype], f"{label}: relative error {error:.3g} against float64, bound {BOUNDS[out.dtype]:.3g} for {out.dtype}"


def assert_no_further(out, unfused, exact, label=""):
    """The fused 16-bit result is no further from float64 than PyTorch's own in that dtype.

    Where both round as often, each error is a sum of independent rounding errors, of as many as carry the norm: n = (sum x^2)^2 / sum x^4, which is
    `numel` where all are of one size. Their ratio strays from 1 by about 1/sqrt(n): that, three times, is the slack, and also what few elements
    may stray from one correct rounding of the result, which is never too far.
    """
    assert_close(out, exact, label)
    if out.dtype in (torch.bfloat16, torch.float16) and out.numel():
        fused, plain = relative_error(out, exact), relative_error(unfused, exact)
        squares = exact.double().square()
        slack = 1.02 + 3 * (squares.square().sum() / squares.sum().square().clamp_min(1e-300)).sqrt().item()
        assert fused <= slack * max(plain, torch.finfo(out.dtype).eps / 2), f"{label}: {fused:.4g} from float64, PyTorch in {out.dtype} {plain:.4g}"


def assert_no_further_on_average(draw, roundings=1.0, draws=64, label=""):
    """`draw()` gives (fused, original, exact) of fresh weights and a fresh input: over many, the fused error is not the larger one.

    For whole models in 16 bits. A folded weight or a map that is rounded differently moves both errors at random: in one draw one is half
    as large again as the other although neither rounds more often. What holds is that squared errors are proportional to the number of
    roundings, on average. `roundings` is that number of the fused model over the original's; the geometric mean of the ratios of errors
    may exceed its square root by five standard errors, which their spread over the draws gives.
    """
    ratios = []
    for _ in range(draws):
        out, unfused, exact = draw()
        assert out.dtype == unfused.dtype and out.shape == unfused.shape
        ratios.append(relative_error(out, exact) / relative_error(unfused, exact))
    logs = torch.tensor(ratios, dtype=torch.float64).log()
    mean, error = logs.mean().exp().item(), (logs.std() / draws**0.5).item()
    assert mean <= roundings**0.5 * math.exp(5 * error), f"{label}: {mean:.3f} times as far from float64 as the original (+- {error:.3f})"


def bits(tensor):
    """The bit patterns, with every NaN made the same one: torch does not promise payloads."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return torch.where(tensor.isnan(), torch.full_like(tensor, float("nan")), tensor).contiguous().view(integer)


def assert_bitwise(out, expected, label=""):
    assert out.dtype == expected.dtype and out.shape == expected.shape, (label, out.dtype, out.shape, expected.dtype, expected.shape)
    if out.is_floating_point():
        out, expected = bits(out), bits(expected)
    differing = (out != expected).nonzero()
    assert len(differing) == 0, f"{label}: {len(differing)} of {out.numel()} elements differ, first at {differing[0].tolist()}"


def assert_format(out, input):
    """Results are dense in the memory format of their input."""
    expected = torch._prims_common.suggest_memory_format(input)
    assert out.is_contiguous(memory_format=expected), (out.shape, out.stride(), expected)


def double(tensors):
    return {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in tensors.items()}


def reference_call(name, *args, **kwargs):
    """fastconv.functional through torch.nn.functional alone."""
    with backends.use("reference"):
        return getattr(functional, name)(*args, **kwargs)


def depthwise_tensors(case, dtype, device, memory_format):
    """Arguments of depthwise_conv2d for a case of the catalogue; the weight scaled so that outputs stay near 1."""
    taps = case.kernel[0] * case.kernel[1]
    return {
        "input": feature_map(case.size, dtype, device, memory_format),
        "weight": surrounded(rand(case.middle, 1, *case.kernel, dtype=dtype, device=device, scale=taps**-0.5)),
        "bias": surrounded(rand(case.middle, dtype=dtype, device=device)) if case.depthwise_bias else None,
    }


def separable_tensors(case, dtype, device, memory_format, residual=False):
    """Arguments of depthwise_separable_conv2d for a case of the catalogue; weights scaled so that outputs stay near 1."""
    taps = case.kernel[0] * case.kernel[1]
    tensors = {
        "input": feature_map(case.size, dtype, device, memory_format),
        "depthwise_weight": surrounded(rand(case.middle, 1, *case.kernel, dtype=dtype, device=device, scale=taps**-0.5)),
        "pointwise_weight": surrounded(rand(case.out_channels, case.middle, 1, 1, dtype=dtype, device=device, scale=case.middle**-0.5)),
        "depthwise_bias": surrounded(rand(case.middle, dtype=dtype, device=device)) if case.depthwise_bias else None,
        "pointwise_bias": surrounded(rand(case.out_channels, dtype=dtype, device=device)) if case.pointwise_bias else None,
    }
    if residual:
        height, width = output_size(case)
        tensors["residual"] = feature_map((case.size[0], case.out_channels, height, width), dtype, device, memory_format)
    return tensors


def output_size(case):
    """From torch's own convolution on the meta device, so that the tests do not lean on the shape logic under test."""
    weight = torch.empty(case.middle, 1, *case.kernel, device="meta")
    input = torch.empty(max(case.size[0], 1), *case.size[1:], device="meta")
    return torch.nn.functional.conv2d(input, weight, None, *case.geometry, groups=case.size[1]).shape[2:]


def conv_geometry(case):
    return {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}


def pool_geometry(case):
    return {
        "kernel_size": case.kernel,
        "stride": case.stride,
        "padding": case.padding,
        "dilation": case.dilation,
        "ceil_mode": case.ceil_mode,
    }


def lattice(*shape, step, odd=False, dtype=torch.float32, device="cpu"):
    """Random multiples of `step`, a power of two, between -2 and 2 steps (odd ones up to 3): sums of their products are exact.

    Activations with a kink need them in gradient tests: where two roundings fall on different sides of the kink, the gradients differ
    by all they are, and neither is wrong.
    """
    values = torch.randint(-2, 2, shape) * 2 + 1 if odd else torch.randint(-2, 3, shape)
    return (values * step).to(device=device, dtype=dtype)


def exact_separable_tensors(case, dtype, device, memory_format, residual=False):
    """Arguments on lattices such that no pre-activation is rounded and none lies on a kink, through piecewise linear activations."""
    tensors = separable_tensors(case, dtype, device, memory_format, residual)
    tensors["input"].copy_(lattice(*case.size, step=1 / 8, odd=True))
    tensors["depthwise_weight"].copy_(lattice(case.middle, 1, *case.kernel, step=1 / 4))
    tensors["pointwise_weight"].copy_(lattice(case.out_channels, case.middle, 1, 1, step=1 / 4))
    tensors["depthwise_bias"] = lattice(case.middle, step=1 / 64, odd=True, dtype=dtype, device=device)
    tensors["pointwise_bias"] = lattice(case.out_channels, step=1 / 512, odd=True, dtype=dtype, device=device)
    if residual:
        tensors["residual"].copy_(lattice(*tensors["residual"].shape, step=1 / 16))
    return tensors
