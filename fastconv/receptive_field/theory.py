"""The theoretical receptive field of every layer of a traced model.

Araujo et al., "Computing Receptive Fields of Convolutional Neural Networks", 2019 (Distill), generalised to directed graphs as they do:
where branches meet, the field is the smallest interval that holds those of all branches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from .. import _windows as windows
from ..spatial import Map, Network, NotConvertible, Step, read

Pair = tuple[int, int]


@dataclass(frozen=True)
class Field:
    """One layer's output in terms of the input image; every entry is (vertical, horizontal).

    size: the output's rows and columns (n). jump: pixels between neighbouring outputs (j). extent: pixels that one output sees (r),
    infinite behind a global pool. first: index of the first pixel that output 0 sees, negative in the padding.
    """

    name: str
    kind: str
    size: Pair
    jump: Pair
    extent: tuple[float, float]
    first: tuple[float, float]

    @property
    def start(self) -> tuple[float, float]:
        """Centre of output 0's field, where pixel 0 spans 0 to 1."""
        return self.first[0] + self.extent[0] / 2, self.first[1] + self.extent[1] / 2


def theory(model: nn.Module, input_size: int | Pair = 224, example_input: Tensor | None = None) -> list[Field]:
    r"""Size, jump, receptive field and start of every convolution, pool and join of `model`, in order; the last entry is its output.

    With kernel k, dilation d, stride s, padding p and the numbers of the layer before,

    .. math::
        j' = s j, \qquad r' = r + d (k - 1) j, \qquad \mathrm{first}' = \mathrm{first} - p j

    so that in a chain :math:`r = 1 + \sum_l d_l (k_l - 1) R_l`, R being the product of the strides before.

    Args:
        model: an nn.Module of one image that torch.fx can trace.
        input_size: rows and columns of the image, int or pair.
        example_input: an image, where the model branches on its shape; its size then counts.

    Returns:
        One `Field` a layer, starting with the input's own.

    Raises:
        NotConvertible (a ValueError): the model cannot be traced, or a layer's windows are not known; the message names it.
    """
    size = tuple(example_input.shape[2:]) if example_input is not None else windows.pair(input_size)
    network = read(model, example_input)
    return list(fields(network, size).values())


def fields(network: Network, size: Pair) -> dict:
    """The fields by node, for the steps that change them (and the input)."""
    known: dict = {}
    shown: dict = {}
    for node, step in network.steps.items():
        if not isinstance(network.values[node], Map):
            continue
        known[node] = field = _field(step, [known[s] for s in step.sources], size, _sees_everything(network, step))
        if step.role != "pointwise" or field.extent != known[step.sources[0]].extent:
            shown[node] = field
    for node in network.output_maps():
        shown.pop(node, None)
        shown[node] = known[node]
    return shown


def _sees_everything(network: Network, step: Step) -> bool:
    """Whether something pooled over the whole image comes in."""
    return any(not isinstance(network.values[n], Map) and hasattr(network.values[n], "by") for n in step.node.all_input_nodes)


def _field(step: Step, sources: list[Field], size: Pair, unbounded: bool) -> Field:
    if step.role == "input":
        return Field("input", "input", size, (1, 1), (1, 1), (0, 0))
    if step.role == "obstacle" and not step.keeps_grid:
        raise NotConvertible(step.name, step.reason)
    if any(s.jump != sources[0].jump for s in sources):
        raise NotConvertible(step.name, f"joins maps of different strides, {' and '.join(str(s.jump) for s in sources)}")
    jump = sources[0].jump
    first = tuple(min(s.first[a] for s in sources) for a in (0, 1))
    last = tuple(max(s.first[a] + s.extent[a] for s in sources) for a in (0, 1))
    length = tuple(min(s.size[a] for s in sources) for a in (0, 1))
    if step.window is not None:
        w = step.window.resolved(length) if step.window.same else step.window
        reach = tuple(w.dilation[a] * (w.kernel[a] - 1) for a in (0, 1))
        out = tuple(w.strided_length(length[a], a) for a in (0, 1))
        if min(out) < 1:
            raise ValueError(f"{step.name}: nothing is left of its {length[0]}x{length[1]} input; give a larger input_size")
        first = tuple(first[a] - w.pads[2 * a] * jump[a] for a in (0, 1))
        last = tuple(last[a] + (reach[a] - w.pads[2 * a]) * jump[a] for a in (0, 1))
        jump = tuple(jump[a] * w.stride[a] for a in (0, 1))
        length = out
    around = step.window is not None and step.window.mirrored == "circular"
    if unbounded or around or step.role == "obstacle":
        first, last = (-math.inf, -math.inf), (math.inf, math.inf)
    kind = step.window.kind if step.window is not None else step.role
    extent = tuple(math.inf if math.isinf(last[a]) else last[a] - first[a] for a in (0, 1))
    return Field(step.name, kind, length, jump, extent, first)
