"""Random weights that let a network see further: small at a kernel's centre, large at its rim."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

Pair = tuple[int, int]


def tap_scales(kernel_size: Pair, centre: float) -> Tensor:
    r"""Standard deviation of each tap over that of a plain initialisation, (Kh, Kw), float64.

    .. math::  s(r) \propto c + (1 - c)\, r / r_{\max}, \qquad \mathrm{mean}(s^2) = 1

    with r a tap's distance from the kernel's centre and c = `centre`; the mean square keeps the signal's variance through the layer.
    """
    if not 0 <= centre <= 1:
        raise ValueError(f"centre: must be between 0 and 1, got {centre}")
    axes = [torch.arange(k, dtype=torch.float64) - (k - 1) / 2 for k in kernel_size]
    distance = torch.hypot(axes[0][:, None], axes[1][None, :])
    if not distance.max() > 0:
        return torch.ones(*kernel_size, dtype=torch.float64)
    scales = centre + (1 - centre) * distance / distance.max()
    return scales / scales.square().mean().sqrt()


def taps_variance(kernel_size: Pair, centre: float = 1.0) -> Pair:
    r"""What a layer with such taps adds to the effective field's variance, (vertical, horizontal), in its own pixels:
    :math:`\sum s^2 m^2 / \sum s^2` with m a tap's distance along the axis; :math:`(k^2 - 1)/12` at ``centre=1``.
    """
    energy = tap_scales(kernel_size, centre).square()
    variances = []
    for axis, k in enumerate(kernel_size):
        along = energy.sum(1 - axis) / energy.sum()
        variances.append((along * (torch.arange(k, dtype=torch.float64) - (k - 1) / 2).square()).sum().item())
    return variances[0], variances[1]


def widen_(model: nn.Module, centre: float = 0.25, nonlinearity: str = "relu", generator: torch.Generator | None = None) -> nn.Module:
    r"""Draws the weights of every convolution anew, normal, with small centres and large rims; returns the model.

    A random network's effective field is a Gaussian whose variance is the sum of its layers' tap variances,
    :math:`\sum_l d_l^2 R_l^2 \sum_m p_l(m) m^2`, where :math:`p_l` are the taps' shares of the weights' energy. Moving energy from the
    centre to the rim widens it from the first step of training on, at no cost.

    Args:
        model: biases become zero, 1x1 kernels get the plain Kaiming normal initialisation; nothing else is touched.
        centre: standard deviation of the centre tap over that of the outermost; 1 is the plain initialisation, 0 the widest.
        nonlinearity: as in ``torch.nn.init.calculate_gain``.

    Raises:
        ValueError: `centre` outside [0, 1].

    Source: Luo et al. 2016 (arXiv:1701.04128), section 4.3.
    """
    gain = nn.init.calculate_gain(nonlinearity)
    with torch.no_grad():
        for conv in (module for module in model.modules() if isinstance(module, nn.Conv2d)):
            deviation = gain / math.sqrt(conv.weight[0].numel())
            conv.weight.normal_(0, deviation, generator=generator)
            conv.weight *= tap_scales(conv.kernel_size, centre).to(conv.weight)
            if conv.bias is not None:
                conv.bias.zero_()
    return model
