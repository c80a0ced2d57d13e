"""The effective receptive field: how much every pixel moves the centre output."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .. import _windows as windows
from . import measures
from .theory import Field, theory

Pair = tuple[int, int]
Progress = Callable[[int, int], None]


def _sum_at(output: Tensor) -> Tensor:
    return output.sum()


@dataclass(frozen=True)
class Convention:
    """How the literature turns gradients into a map.

    objective: what of the centre output's channels (N, C) is differentiated. contribution: what of the gradient (N, C, H, W) of a batch is
    summed over the batches, as (H, W). finish: the map, from that sum and the number of images.
    """

    objective: Callable[[Tensor], Tensor]
    contribution: Callable[[Tensor], Tensor]
    finish: Callable[[Tensor, int], Tensor]


def _replknet_map(total: Tensor, images: int) -> Tensor:
    scores = torch.log10(total / images + 1)
    return scores / scores.max().clamp_min(torch.finfo(scores.dtype).tiny)


CONVENTIONS = {
    # Mean over images of the gradient's magnitude: Luo et al. 2016, section 4.
    "luo": Convention(_sum_at, lambda g: g.abs().sum((0, 1)), lambda total, images: total / images),
    # Ding et al. 2022, appendix D and the authors' script.
    "replknet": Convention(lambda out: out.relu().sum(), lambda g: g.relu().sum((0, 1)), _replknet_map),
    # Kim et al. 2023 and their OpenERF: the gradient's mean over the image's channels, what of it is positive, as shares of the whole.
    "openerf": Convention(
        lambda out: out.mean(1).sum(), lambda g: g.mean(1).relu().sum(0), lambda total, images: total / total.sum().clamp_min(1e-300)
    ),
}


@dataclass(frozen=True)
class EffectiveField:
    """A map of contributions to one output unit.

    map: (H, W), float64, as the convention defines it. unit: the output position. centre: the pixel in the middle of its theoretical
    field. window: that field's (top, left, bottom, right) inside the image, bottom and right exclusive. field: the theory of the output,
    None where the model could not be followed; then `centre` is the image's and `window` the whole of it.
    """

    map: Tensor = field(repr=False)
    convention: str
    unit: Pair
    centre: Pair
    window: tuple[int, int, int, int]
    field: Field | None
    images: int

    @property
    def pixels(self) -> int:
        """Pixels above 1 - 0.9545 of the centre's value; for the maps of "luo"."""
        return measures.pixels_above(self.map, self.centre)

    @property
    def size(self) -> float:
        """Side of a square of as many pixels."""
        return self.pixels**0.5

    @property
    def standard_deviation(self) -> tuple[float, float]:
        return measures.standard_deviation(self.map)

    @property
    def within(self) -> Tensor:
        """The map on the theoretical field."""
        top, left, bottom, right = self.window
        return self.map[top:bottom, left:right]

    def coverage(self, threshold: float = 0.0) -> float:
        """Share of the theoretical field that contributes, see :func:`fastconv.receptive_field.coverage`."""
        return measures.coverage(self.within, threshold)

    def evenness(self, period: int | Pair) -> float:
        """Gridding with this period on the theoretical field, see :func:`fastconv.receptive_field.evenness`."""
        return measures.evenness(self.within, period)

    def square_sides(self, shares: tuple[float, ...] = measures.SQUARES) -> dict[float, int | None]:
        """RepLKNet's sizes, see :func:`fastconv.receptive_field.square_sides`."""
        return measures.square_sides(self.map, shares)


def effective(
    model: nn.Module,
    input_size: int | Pair = 224,
    *,
    convention: str = "luo",
    images: int = 8,
    inputs: Iterable[Tensor] | None = None,
    reinitialise: Callable[[nn.Module], object] | None = None,
    unit: Pair | None = None,
    channel: int | None = None,
    layer: str | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> EffectiveField:
    r"""Gradient of the centre output unit with respect to the image, gathered over images.

    With :math:`y_{c,u}` the output at unit u, "luo" is

    .. math::  E[i, j] = \frac{1}{N} \sum_n \sum_k \Big| \frac{\partial \sum_c y_{c,u}(x_n)}{\partial x_n[k, i, j]} \Big|

    "replknet" differentiates :math:`\sum_c \mathrm{relu}(y_{c,u})`, keeps positive gradients, and gives
    :math:`\log_{10}(E + 1)` over its maximum; "openerf" differentiates the mean over c, averages the gradient over the image's channels,
    keeps what is positive, and gives shares of the whole.

    Args:
        model: an nn.Module of one image; used in the mode it is in, never changed.
        input_size: rows and columns of the random images (standard normal), int or pair; not used with `inputs`.
        convention: a name in `CONVENTIONS`.
        images: how many random images.
        inputs: batches (N, C, H, W) of one size to use instead.
        reinitialise: called with a copy of the model before each image, to average over weights too.
        unit: output position (row, column); by default the centre (H // 2, W // 2).
        channel: one output channel; by default all together.
        layer: name of a submodule whose output counts instead of the model's.
        generator: of the random images.
        progress: called with (images done, images).

    Raises:
        ValueError: an unknown convention, layer, unit or channel; an output that is no map.

    Sources: Luo et al. 2016 (arXiv:1701.04128), Ding et al. 2022 (arXiv:2203.06717), Kim et al. 2023.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention: got {convention!r}, supported are {', '.join(CONVENTIONS)}")
    rule = CONVENTIONS[convention]
    if reinitialise is not None:
        model = copy.deepcopy(model)
    batches = list(inputs) if inputs is not None else None
    source = iter(batches) if batches is not None else _random_images(model, windows.pair(input_size), images, generator)
    images = sum(len(batch) for batch in batches) if batches is not None else images
    total, done, chosen, image = None, 0, None, None
    for batch in source:
        if reinitialise is not None:
            reinitialise(model)
        gradient, chosen = _gradient(model, batch, rule, unit, channel, layer)
        contribution = rule.contribution(gradient.double()).cpu()
        if total is not None and total.shape != contribution.shape:
            raise ValueError(f"inputs: all images must have one size, got {tuple(total.shape)} and {tuple(contribution.shape)}")
        total = contribution if total is None else total + contribution
        done, image = done + len(batch), batch
        if progress is not None:
            progress(done, images)
    if total is None:
        raise ValueError("inputs: no images")
    known = _theory(model, layer, image)
    centre, window = _place(known, chosen, tuple(total.shape))
    return EffectiveField(rule.finish(total, done), convention, chosen, centre, window, known, done)


def _random_images(model: nn.Module, size: Pair, images: int, generator: torch.Generator | None):
    conv = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if conv is None:
        raise ValueError("inputs: the model has no nn.Conv2d that would tell its image's channels; give inputs")
    for _ in range(images):
        yield torch.randn(1, conv.in_channels, *size, generator=generator, dtype=conv.weight.dtype).to(conv.weight.device)


def _gradient(model, batch, rule: Convention, unit: Pair | None, channel: int | None, layer: str | None) -> tuple[Tensor, Pair]:
    batch = batch.detach().clone().requires_grad_()
    with torch.enable_grad():
        output = model(batch) if layer is None else _output_of(model, layer, batch)
        if not isinstance(output, Tensor) or output.dim() != 4:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"layer: the output must be a map (N, C, H, W), got {got}; name a layer that gives one")
        rows, columns = output.shape[2:]
        unit = (rows // 2, columns // 2) if unit is None else unit
        if not (0 <= unit[0] < rows and 0 <= unit[1] < columns):
            raise ValueError(f"unit: {unit} is outside the {rows}x{columns} output")
        if channel is not None and not 0 <= channel < output.shape[1]:
            raise ValueError(f"channel: {channel} is outside the {output.shape[1]} of the output")
        at = output[:, :, unit[0], unit[1]]
        objective = rule.objective(at if channel is None else at[:, channel : channel + 1])
        return torch.autograd.grad(objective, batch)[0], unit


class _Reached(Exception):
    """The layer has run; what follows it in the model is of no interest."""


def _output_of(model: nn.Module, layer: str, batch: Tensor) -> Tensor:
    modules = dict(model.named_modules())
    if layer not in modules:
        raise ValueError(f"layer: the model has no {layer!r}; its own are {', '.join(name for name, _ in model.named_children())}")
    seen: list[Tensor] = []

    def keep(module, arguments, output):
        seen.append(output)
        raise _Reached

    handle = modules[layer].register_forward_hook(keep)
    try:
        model(batch)
    except _Reached:
        return seen[0]
    finally:
        handle.remove()
    raise ValueError(f"layer: {layer!r} does not run in the model's forward")


def _theory(model: nn.Module, layer: str | None, image: Tensor) -> Field | None:
    from ..spatial import NotConvertible

    try:
        found = theory(model, example_input=image)
    except NotConvertible:
        return None
    if layer is None:
        return found[-1]
    return next((f for f in reversed(found) if f.name == layer or f.name.startswith(f"{layer}.")), None)


def _place(known: Field | None, unit: Pair, size: Pair) -> tuple[Pair, tuple[int, int, int, int]]:
    """The pixel in the middle of the unit's theoretical field, and that field inside the image."""
    if known is None or any(extent == float("inf") for extent in known.extent):
        return (size[0] // 2, size[1] // 2), (0, 0, *size)
    first = [known.first[a] + known.jump[a] * unit[a] for a in (0, 1)]
    last = [first[a] + known.extent[a] for a in (0, 1)]
    # A field of even extent has its middle between two pixels; the lower is taken.
    centre = tuple(min(max((first[a] + last[a] - 1) // 2, 0), size[a] - 1) for a in (0, 1))
    return centre, (max(first[0], 0), max(first[1], 0), min(last[0], size[0]), min(last[1], size[1]))
