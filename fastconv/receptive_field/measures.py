"""Numbers read off a map of contributions (H, W): how large, how wide, how full of holes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Pair = tuple[int, int]

# What a Gaussian holds within two standard deviations: Luo et al. call a pixel part of the field above 1 - 0.9545 of the centre's value.
TWO_SIGMA = 0.9545
SQUARES = (0.2, 0.3, 0.5, 0.99)


def pixels_above(contributions: Tensor, centre: Pair, mass: float = TWO_SIGMA) -> int:
    """How many pixels contribute more than ``1 - mass`` of what the centre does (Luo et al. 2016, section 4.1)."""
    return int((contributions > (1 - mass) * contributions[centre]).sum())


def standard_deviation(contributions: Tensor) -> tuple[float, float]:
    """Second moment of the map as a distribution, (vertical, horizontal), in pixels; nan where it is all zero."""
    total = contributions.sum()
    result = []
    for axis in (0, 1):
        weight = contributions.sum(1 - axis) / total
        position = torch.arange(len(weight), dtype=weight.dtype)
        mean = (weight * position).sum()
        result.append(math.sqrt((weight * (position - mean) ** 2).sum()) if total > 0 else math.nan)
    return result[0], result[1]


def coverage(contributions: Tensor, threshold: float = 0.0) -> float:
    """Share of pixels that contribute more than `threshold` times the largest contribution.

    On the theoretical field it is 1 where nothing in reach is left out. Dilated layers behind each other leave a grid of holes (gridding),
    which a count of pixels above a threshold cannot tell from a smaller field.
    """
    return (contributions > threshold * contributions.max()).double().mean().item()


def evenness(contributions: Tensor, period: int | Pair) -> float:
    """The smallest share of the total that any of the grids of `period` gets, times their number: 1 is even, 0 leaves a grid out.

    Gridding repeats with the dilation. The pixels (y, x) are told apart by (y mod period, x mod period).
    """
    rows, columns = (period, period) if isinstance(period, int) else period
    if rows < 1 or columns < 1 or rows > contributions.shape[0] or columns > contributions.shape[1]:
        raise ValueError(f"period: must be between 1 and the map's size {tuple(contributions.shape)}, got {period}")
    means = torch.stack([contributions[y::rows, x::columns].mean() for y in range(rows) for x in range(columns)])
    return (means.min() / means.mean()).item() if means.mean() > 0 else math.nan


def square_sides(contributions: Tensor, shares: tuple[float, ...] = SQUARES) -> dict[float, int | None]:
    """Side of the smallest square around the map's centre that holds each share of its total; None where no square inside the map does.

    Ding et al. 2022, table 2 and its script: the centre is (H // 2, W // 2), sides are odd.
    """
    centre = [length // 2 for length in contributions.shape]
    sums = torch.zeros(contributions.shape[0] + 1, contributions.shape[1] + 1, dtype=contributions.dtype)
    sums[1:, 1:] = contributions.cumsum(0).cumsum(1)
    sides: dict[float, int | None] = dict.fromkeys(shares)
    for reach in range(min(min(c, n - 1 - c) for c, n in zip(centre, contributions.shape, strict=True)) + 1):
        (top, left), (bottom, right) = [c - reach for c in centre], [c + reach + 1 for c in centre]
        inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        for share in shares:
            if sides[share] is None and inside >= share * sums[-1, -1]:
                sides[share] = 2 * reach + 1
    return sides
