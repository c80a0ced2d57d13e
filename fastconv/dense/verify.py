"""Proof by float64: the dense network at the strided one's positions, against the strided one."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from ..spatial import Map, Network
from .layers import relative_error
from .rates import Pair, Rate

# Sums of some thousand float64 products in another order; a wrong tap is of the order of 1.
LIMIT = 1e-9


def least_size(network: Network) -> Pair:
    """The smallest input, per axis, that every window of the strided network fits into."""
    found = []
    for axis in (0, 1):
        length = 1
        while not _fits(network, length, axis):
            length += 1
            if length > 4096:
                raise ValueError("no input up to 4096 pixels gives this network an output")
        found.append(length)
    return found[0], found[1]


def _fits(network: Network, length: int, axis: int) -> bool:
    lengths: dict[fx.Node, int] = {}
    for node, step in network.steps.items():
        if step.role == "input":
            lengths[node] = length
        elif isinstance(network.values[node], Map):
            shortest = min(lengths[s] for s in step.sources)
            lengths[node] = step.window.strided_length(shortest, axis) if step.window is not None else shortest
            if lengths[node] < 1:
                return False
    return True


def map_lengths(network: Network, size: Pair) -> dict[fx.Node, Pair]:
    """Sizes of the strided network's maps for an input of that size."""
    out: dict[fx.Node, Pair] = {}
    for node, step in network.steps.items():
        if step.role == "input":
            out[node] = size
        elif isinstance(network.values[node], Map):
            source = (min(out[s][0] for s in step.sources), min(out[s][1] for s in step.sources))
            w = step.window
            out[node] = (w.strided_length(source[0], 0), w.strided_length(source[1], 1)) if w is not None else source
    return out


def example_of(network: Network, total: Pair, least: Pair, example: Tensor | None, whole: bool) -> Tensor:
    """A random float64 image that exercises every border, as small as this network allows, or as large as the example where `whole`."""
    channels = input_channels(network) if example is None else example.shape[1]
    if example is None:
        size = [max(n, 2 * t) + t // 2 + 1 for n, t in zip(least, total, strict=True)]
    elif whole:
        size = example.shape[2:]
    else:
        # The same remainder as the example's: padding and branches may follow the size.
        size = []
        for given, t, n in zip(example.shape[2:], total, least, strict=True):
            wanted = max(n, t + 1)
            size.append(min(given, wanted + (given - wanted) % t))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, channels, *size, dtype=torch.float64, generator=generator)


def input_channels(network: Network) -> int:
    for node in network.graph_module.graph.nodes:
        if node.op == "call_module":
            module = network.graph_module.get_submodule(node.target)
            if isinstance(module, nn.Conv2d):
                return module.in_channels
        if node.op == "call_function" and getattr(node.target, "__name__", "") == "conv2d":
            weight = network.values[node.all_input_nodes[1]].value
            return weight.shape[1] * node.kwargs.get("groups", node.args[6] if len(node.args) > 6 else 1)
    return 3


def in_float64(model: nn.Module) -> nn.Module:
    if any(p.is_meta for p in model.parameters()):
        raise ValueError("verify: the model's weights are on the meta device and have no values to compare with; pass verify=False")
    try:
        with torch.no_grad():
            return copy.deepcopy(model).double()
    except RuntimeError as error:
        raise ValueError(f"verify: the model cannot be copied to be run in float64 ({error}); pass verify=False") from error


def error_at_aligned(dense: nn.Module, strided: nn.Module, steps: list[Rate | None] | None, image: Tensor) -> float:
    """Largest relative L2 error, over the output maps, of the dense map at the strided network's positions; of the whole output where there
    are no steps."""
    with torch.no_grad():
        found, expected = _tensors(in_float64(dense)(image.clone())), _tensors(in_float64(strided)(image.clone()))
    worst = 0.0
    for rate, ours, theirs in zip(steps or [None] * len(found), found, expected, strict=True):
        if rate is not None:
            ours = ours[..., :: rate.ratio[0], :: rate.ratio[1]]
        if ours.shape != theirs.shape:
            raise RuntimeError(
                f"to_dense: at aligned positions the dense output is {tuple(ours.shape)}, the strided one {tuple(theirs.shape)}; please report this model"
            )
        worst = max(worst, relative_error(ours, theirs))
    return worst


def _tensors(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in _tensors(v)]
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in _tensors(v)]
    return []
