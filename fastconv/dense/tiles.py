"""Tiles of an image larger than memory, with margins wide enough that nobody can tell."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .. import _arguments as check
from ..receptive_field import Field, fields
from ..spatial import read
from .model import DenseModel
from .progress import Progress, reporter

Pair = tuple[int, int]


def tiled(
    model: Callable[[Tensor], Tensor],
    image,
    tile: int | Pair,
    *,
    field: Field | None = None,
    out=None,
    prepare: Callable[[Tensor], Tensor] | None = None,
    progress: Progress = None,
):
    r"""Runs `model` on overlapping tiles of `image` and keeps of each what no tile border reaches: equal to ``model(image)`` up to
    rounding.

    An output whose receptive field lies inside the tile, or leaves it only where the tile ends with the image, sees what it would see in
    the whole image, padding included. Tiles start at multiples of the network's total stride, so that every stride falls on the same rows.

    Args:
        model: an nn.Module of one image and one map: a `DenseModel`, or any network that torch.fx can trace; other callables with `field`.
        image: (N, C, H, W), a tensor or anything that has a shape and can be sliced so (a numpy.memmap).
        tile: rows and columns of a tile, margins included; int or pair. At least the receptive field plus the total stride, where the image
            is larger.
        field: the receptive field of the output, if it is not to be computed.
        out: where the result goes, anything that can be assigned to by slices; by default a new tensor.
        prepare: called with each tile as a tensor before the model sees it (uint8 to float, normalisation, a device).
        progress: True for a line on stderr, or a function of (tiles done, tiles in all).

    Returns:
        `out`, the (N, K, H', W') map.

    Raises:
        ValueError: a tile smaller than the receptive field; an unbounded one (a global pool inside).
        NotConvertible: the model's receptive field cannot be computed.
    """
    shape = tuple(image.shape)
    if len(shape) != 4:
        raise ValueError(f"image: must be (N, C, H, W), got {shape}")
    tile = check.pair("tiled", "tile", tile, 1)
    field = field or output_field(model, shape)
    if any(math.isinf(e) for e in field.extent):
        raise ValueError("model: every output sees the whole image (a global pool inside), so no tile is large enough")
    prepare = prepare or (lambda x: x)
    whole = _output_shape(model, image, shape, prepare)
    if not isinstance(whole, Tensor) or whole.dim() != 4:
        raise ValueError("model: must return one map (N, K, H', W'); wrap it in a module that returns the one you want")
    # ceil_mode pools end where the strided network's last window does: the phase of the total stride counts, not only of what is left of
    # it.
    step = model.report.total_stride if isinstance(model, DenseModel) else field.jump
    cuts = [cut(shape[2 + a], whole.shape[2 + a], field, a, step[a], tile[a]) for a in (0, 1)]
    if out is not None and tuple(out.shape) != tuple(whole.shape):
        raise ValueError(f"out: must be {tuple(whole.shape)} for this model and image, got {tuple(out.shape)}")
    if out is None:
        out = torch.empty(whole.shape, dtype=whole.dtype, device=whole.device)
    report = reporter(progress, "tiled")
    done, total = 0, len(cuts[0]) * len(cuts[1])
    with torch.no_grad():
        for u0, u1, y0, y1 in cuts[0]:
            for v0, v1, x0, x1 in cuts[1]:
                part = model(prepare(_tensor(image[:, :, y0:y1, x0:x1])))
                top, left = u0 - y0 // field.jump[0], v0 - x0 // field.jump[1]
                part = part[:, :, top : top + u1 - u0, left : left + v1 - v0]
                out[:, :, u0:u1, v0:v1] = part if isinstance(out, Tensor) else part.cpu().numpy()
                done += 1
                report(done, total)
    return out


def output_field(model, shape: tuple[int, ...]) -> Field:
    """The receptive field of the one map that the model gives."""
    if isinstance(model, DenseModel):
        found = model.report.field
    elif isinstance(model, nn.Module):
        network = read(model)
        maps = network.output_maps()
        found = fields(network, shape[2:])[maps[0]] if len(maps) == 1 and network.output.args[0] is maps[0] else None
    else:
        raise ValueError("field: the receptive field of a callable that is no nn.Module must be given")
    if found is None:
        raise ValueError(
            "model: must return one map; wrap it in a module that returns the one you want, or leaves a global pool's head out"
        )
    return found


def cut(length: int, outputs: int, field: Field, axis: int, step: int, tile: int) -> list[tuple[int, int, int, int]]:
    """(first output, past the last, first pixel, past the last) of every tile along one axis; tiles start at multiples of `step`."""
    jump, first, extent = field.jump[axis], int(field.first[axis]), int(field.extent[axis])
    cuts = []
    done = 0
    while done < outputs:
        start = max(0, (first + jump * done) // step * step)
        if start + tile >= length:
            cuts.append((done, outputs, start, length))
            break
        # Output u sees pixels up to first + jump*u + extent.
        stop = min(outputs, (start + tile - extent - first) // jump + 1)
        if stop <= done:
            name = ("rows", "columns")[axis]
            raise ValueError(
                f"tile: {tile} {name} hold no output of a network whose receptive field is {extent}; give at least {extent + step}"
            )
        cuts.append((done, stop, start, start + tile))
        done = stop
    return cuts


def _tensor(part) -> Tensor:
    return part if isinstance(part, Tensor) else torch.as_tensor(part)


def _output_shape(model, image, shape: tuple[int, ...], prepare) -> Tensor:
    """The whole output, without its numbers."""
    sample = _tensor(image[:1, :, :1, :1])
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        return model(prepare(torch.empty(shape, dtype=sample.dtype, device=sample.device)))
