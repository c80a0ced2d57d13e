"""Folded weights in 16 bits, rounded so that the means of maps stay where they were.

A map's rounding errors differ from position to position, and later sums and pools average them out. A weight's is the same everywhere, and
does what it does to the mean of a channel at full size: that, more than their number, is what takes a folded network away from float64.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

from .reference import ACTIVATIONS


@cache
def _normal_distribution() -> tuple[Tensor, Tensor]:
    """Points and their masses by Gauss-Hermite: exact for polynomials, and for activations with their kinks as near as the normal
    distribution is."""
    from numpy.polynomial.hermite_e import hermegauss  # not with fastconv: torch alone is enough to run the operators

    points, masses = hermegauss(24)
    return torch.from_numpy(points), torch.from_numpy(masses / math.sqrt(2 * math.pi))


def moments(norm: nn.Module, activation: str, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel behind activation(norm(x) + shift), in float64: a batch norm says itself what its result is like,
    normally distributed around its bias with its weight as deviation (Nagel et al. 2019, arXiv:1906.04721)."""
    like = norm.running_mean.double()
    deviation = torch.ones_like(like) if norm.weight is None else norm.weight.double().abs()
    centre = torch.zeros_like(like) if norm.bias is None else norm.bias.double()
    if shift is not None:
        centre = centre + shift
    points, masses = (part.to(like) for part in _normal_distribution())
    values = ACTIVATIONS[activation](centre[:, None] + deviation[:, None] * points)
    mean = values @ masses
    return mean, (values.square() @ masses - mean.square()).clamp_min(0)


def keeping_means(weight: Tensor, dtype: torch.dtype, mean: Tensor | None = None, variance: Tensor | None = None, offset=None) -> Tensor:
    """A float64 weight in `dtype`, each element at one of its two neighbours there.

    From the nearest ones, elements change sides one at a time as long as that lowers a row's expected square of
    sum_i e_i x_i + offset, where e are the errors of rounding and x inputs of that mean and variance, by default those of equal inputs with
    as much of both; `offset` is an error of each row that the weights may make good.
    """
    rows = weight.flatten(1)
    nearest = rows.to(dtype)
    bits = nearest.view(torch.int16)
    other = (bits + torch.where(nearest.double().abs() < rows.abs(), 1, -1).to(torch.int16)).view(dtype).double()
    error = nearest.double() - rows
    # What is exact stays so: zeros of pruned weights too.
    step = torch.where((error == 0) | ~other.isfinite(), 0.0, other - nearest.double())
    spread = step * (2 * error + step)
    if mean is not None:
        spread, error, step = spread * variance, error * mean, step * mean
    cost = spread + step.square()
    total = error.sum(1) if offset is None else error.sum(1) + offset
    moved = torch.zeros_like(rows, dtype=torch.bool)
    open_rows = torch.arange(len(rows), device=rows.device)
    while len(open_rows):
        gain, column = torch.addcmul(cost[open_rows], total[open_rows, None], step[open_rows], value=2).min(1)
        better = gain < 0
        open_rows, column = open_rows[better], column[better]
        at = (open_rows, column)
        total[open_rows] += step[at]
        moved[at] = ~moved[at]
        step[at] = -step[at]
        spread[at] = -spread[at]
        cost[at] = spread[at] + step[at].square()
    return torch.where(moved, other, nearest.double()).to(dtype).reshape(weight.shape)
