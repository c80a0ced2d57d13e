"""Random strided networks: chains of convolutions and pools, seeded, for the tests of dense evaluation."""

import random

import torch
from torch import nn


def random_chain(rng: random.Random, channels: int, layers: int, largest_stride: int = 6) -> nn.Sequential:
    """A float64 chain in eval mode: convolutions (grouped, depthwise, dilated), max and average pools (ceil mode, padding, uncounted
    padding), batch norms and activations; strides, kernels and paddings drawn per axis."""
    steps: list[nn.Module] = []
    total = [1, 1]

    def pair(low: int, high: int) -> tuple[int, int]:
        return (rng.randint(low, high), rng.randint(low, high)) if rng.random() < 0.5 else (rng.randint(low, high),) * 2

    for _ in range(layers):
        kernel = pair(1, 4)
        stride = [rng.choice((1, 1, 2, 3)) for _ in range(2)] if rng.random() < 0.3 else [rng.choice((1, 2, 2, 3))] * 2
        for axis in (0, 1):
            if total[axis] * stride[axis] > largest_stride:
                stride[axis] = 1
            total[axis] *= stride[axis]
        padding = tuple(rng.randint(0, k // 2) for k in kernel)
        kind = rng.choice(("conv", "conv", "max", "avg"))
        if kind == "conv":
            groups = channels if rng.random() < 0.3 else 1
            out = channels if groups > 1 else rng.randint(1, 4)
            steps.append(nn.Conv2d(channels, out, kernel, tuple(stride), padding, pair(1, 2), groups, bias=rng.random() < 0.7))
            channels = out
            if rng.random() < 0.4:
                steps.append(random_norm(nn.BatchNorm2d(channels)))
            steps.append(rng.choice((nn.Tanh(), nn.SiLU(), nn.Identity())))
        elif kind == "max":
            steps.append(nn.MaxPool2d(kernel, tuple(stride), padding, pair(1, 2), ceil_mode=rng.random() < 0.3))
        else:
            steps.append(nn.AvgPool2d(kernel, tuple(stride), padding, ceil_mode=rng.random() < 0.3, count_include_pad=rng.random() < 0.5))
    chain = nn.Sequential(*steps).double().eval()
    for parameter in chain.parameters():
        # Of unit size, so that a wrong tap cannot hide behind a large neighbour; biases too, so that padded zeros differ from what is
        # computed.
        nn.init.normal_(parameter, std=0.7)
    return chain


def random_norm(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm


def randomise_norms(model: nn.Module) -> nn.Module:
    """Statistics as a trained network has them, not the zeros and ones of a new one."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            random_norm(module)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return model


def image(rng: random.Random, channels: int, low: int = 6, high: int = 26) -> torch.Tensor:
    return torch.randn(rng.randint(1, 3), channels, rng.randint(low, high), rng.randint(low, high), dtype=torch.float64)


def strided_output(chain: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """None where the image is too small for the chain."""
    try:
        return chain(x)
    except RuntimeError as error:
        if not any(words in str(error) for words in ("too small", "greater than actual input size", "should be at least", "Output size")):
            raise
        return None


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2. A max pool whose window lies in the padding alone gives -inf; those must be at the same places."""
    found, expected = found.detach(), expected.detach()
    assert found.shape == expected.shape, (found.shape, expected.shape)
    if not expected.isfinite().all():
        assert torch.equal(found.isfinite(), expected.isfinite())
        found, expected = found.nan_to_num(0, 0, 0), expected.nan_to_num(0, 0, 0)
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))
