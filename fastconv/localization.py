"""Boxes from a dense class map, without any training for it.

Yu et al., "Dilated Residual Networks", 2017 (arXiv:1705.09914): a classifier whose global pool is taken away gives class scores at every
position of its last map; the positions where a class wins are where its object is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """The smallest box that covers every position which `label` wins above the threshold.

    top, left, bottom, right: edges, bottom and right exclusive, in pixels of the image (in positions of the map where `localize` was given
    no jump). score: the largest probability of the label in it. positions: how many positions it won.
    """

    label: int
    score: float
    positions: int
    top: float
    left: float
    bottom: float
    right: float


def localize(
    logits: Tensor,
    threshold: float = 0.5,
    *,
    jump: float | Pair = 1,
    start: float | Pair = 0.5,
    image_size: tuple[int, int] | None = None,
) -> list[Box] | list[list[Box]]:
    r"""One box for every class that wins somewhere.

    With :math:`f = \mathrm{softmax}_c(\mathrm{logits})` and :math:`g(w, h) = \arg\max_c f(c, w, h)`, the box of class c is the smallest one
    that holds every position with :math:`g(w, h) = c` and :math:`f(c, w, h) > t`.

    Args:
        logits: class map (N, C, H, W) or (C, H, W), any floating dtype: scores in front of the softmax.
        threshold: t, between 0 and 1.
        jump, start: pixels between neighbouring positions, and the centre of position 0, each a number or (vertical, horizontal), as
            :class:`fastconv.receptive_field.Field` has them; position u then stands for the pixels from ``start + jump*(u - 1/2)`` to
            ``start + jump*(u + 1/2)``. By default boxes are in positions of the map.
        image_size: (rows, columns) that boxes are clipped to.

    Returns:
        For each image its boxes, the one of most positions first (of equals the one of the higher score); for (C, H, W) just the boxes.

    Raises:
        ValueError: a map of other dimensions, no classes, or a threshold outside [0, 1).

    Source: Yu et al. 2017 (arXiv:1705.09914), the section on object localization.
    """
    if logits.dim() not in (3, 4) or not logits.is_floating_point() or not logits.shape[-3]:
        raise ValueError(f"logits: must be a floating (N, C, H, W) or (C, H, W) with classes, got {tuple(logits.shape)} of {logits.dtype}")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold: a probability in [0, 1) is supported, got {threshold}")
    with torch.no_grad():
        best, winner = heat_maps(logits if logits.dim() == 4 else logits[None]).max(1)
        found = [
            _boxes(*maps, threshold, _per_axis(jump), _per_axis(start), image_size) for maps in zip(best.cpu(), winner.cpu(), strict=True)
        ]
    return found if logits.dim() == 4 else found[0]


def heat_maps(logits: Tensor) -> Tensor:
    """f: the softmax over classes at every position, at least in float32; shape of `logits`."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.softmax(-3, dtype=dtype)


def _per_axis(value: float | Pair) -> Pair:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _boxes(best: Tensor, winner: Tensor, threshold: float, jump: Pair, start: Pair, image_size: tuple[int, int] | None) -> list[Box]:
    above = best > threshold
    boxes = []
    for label in winner[above].unique().tolist():
        won = above & (winner == label)
        edges = []
        for axis in (0, 1):
            along = won.any(1 - axis).nonzero().flatten()
            low, high = (start[axis] + jump[axis] * (u + half) for u, half in ((along[0].item(), -0.5), (along[-1].item(), 0.5)))
            if image_size is not None:
                low, high = max(low, 0), min(high, image_size[axis])
            edges.append((low, high))
        (top, bottom), (left, right) = edges
        boxes.append(Box(label, best[won].max().item(), int(won.sum()), top, left, bottom, right))
    return sorted(boxes, key=lambda box: (-box.positions, -box.score))
