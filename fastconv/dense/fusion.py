"""Layers of a converted network that run as one where no gradient is asked for: a convolution, its norm, a sum and an activation, and a
depthwise convolution with the pointwise one behind it.

A dense map is large and an elementwise layer costs as much memory traffic as the convolution before it: on the dense MobileNetV2 the
norms alone took two fifths of the time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .. import _windows as windows
from .. import functional as FF
from .._activations import of_node, over
from ..folding import FoldedWeights, convolved, folds
from ..fragments import Fragments
from ..nn import DepthwiseConv2d
from ..reference import ACTIVATIONS

_SUMS = (operator.add, operator.iadd, torch.add)
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class StoredNorm(NamedTuple):
    """A call of F.batch_norm with stored statistics, to be folded as the module is: norms that hide an activation, timm's, are traced so."""

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    @property
    def _parameters(self) -> dict[str, Tensor | None]:
        return {"weight": self.weight, "bias": self.bias}

    @property
    def _buffers(self) -> dict[str, Tensor]:
        return {"running_mean": self.running_mean, "running_var": self.running_var}

    def __call__(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


@dataclass
class Chain:
    """A convolution and what follows it and nothing else: norm, sum with another map, activation; before it, perhaps, a depthwise chain."""

    nodes: list[fx.Node]
    norm: fx.Node | None = None
    residual: fx.Node | None = None
    activation: str = "identity"
    depthwise: Chain | None = None

    @property
    def conv(self) -> fx.Node:
        return self.nodes[0]

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]


def find(graph: fx.Graph, module_of: Callable[[str], nn.Module]) -> list[Chain]:
    """The chains of a graph, none overlapping. What is read in between by somebody else, or is an output, ends a chain."""
    chains: dict[fx.Node, Chain] = {}
    taken: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_module" or not _is_plain(module_of(node.target)):
            continue
        chain = _follow(node, module_of, taken)
        before = chains.get(node.args[0])
        if before is not None and _is_pointwise(module_of(node.target)) and _may_lead(before, module_of):
            chain.depthwise = before
            del chains[before.last]
        chains[chain.last] = chain
        taken.update(chain.nodes)
    return [c for c in chains.values() if len(c.nodes) > 1 or c.depthwise]


def _follow(conv: fx.Node, module_of, taken: set[fx.Node]) -> Chain:
    chain = Chain([conv])
    node = _next(chain, module_of, taken)
    if node is not None and (_stored_norm(node) if node.op == "call_function" else _is(node, module_of, _NORMS)):
        chain.norm = node
        chain.nodes.append(node)
        node = _next(chain, module_of, taken)
    if node is not None and node.op == "call_function" and node.target in _SUMS and len(node.args) == 2 and not node.kwargs:
        other = node.args[1] if node.args[0] is chain.last else node.args[0]
        # x += y where y is the convolution's writes to x, which somebody else may read.
        overwritten = node.target is operator.iadd and node.args[0] is other
        if isinstance(other, fx.Node) and other is not chain.last and not overwritten:
            chain.residual = other
            chain.nodes.append(node)
            node = _next(chain, module_of, taken)
    name = _activation(node, module_of) if node is not None else None
    if name is not None:
        chain.activation = name
        chain.nodes.append(node)
        _next(chain, module_of, taken)
    return chain


def _next(chain: Chain, module_of, taken: set[fx.Node]) -> fx.Node | None:
    """The only reader of what the chain gives; modules that do nothing join the chain."""
    node = _only_user(chain.last, taken)
    while node is not None and _is(node, module_of, (nn.Identity,)):
        chain.nodes.append(node)
        node = _only_user(node, taken)
    return node


def _is(node: fx.Node, module_of, kinds: tuple[type, ...]) -> bool:
    """Whether a node calls a module of just one of these classes, with nobody listening."""
    if node.op != "call_module":
        return False
    module = module_of(node.target)
    return type(module) in kinds and not _has_hooks(module)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _stored_norm(node: fx.Node) -> StoredNorm | None:
    """The norm as nodes, where it is one by stored statistics and constants."""
    if node.target not in (F.batch_norm, torch.batch_norm):
        return None
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    tensors = [given.get(name) for name in names[1:5]]
    known = all(t is None or (isinstance(t, fx.Node) and t.op == "get_attr") for t in tensors)
    if not known or tensors[0] is None or given.get("training", False) is not False or node.args[:1] != (given["input"],):
        return None
    return StoredNorm(*tensors, given.get("eps", 1e-5))


def _only_user(node: fx.Node, taken: set[fx.Node]) -> fx.Node | None:
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return user if user is not None and user.op != "output" and user not in taken else None


def _activation(node: fx.Node, module_of) -> str | None:
    module = module_of(node.target) if node.op == "call_module" else None
    return None if module is not None and _has_hooks(module) else of_node(node, module)


def _is_plain(conv: nn.Module) -> bool:
    known = type(conv) is nn.Conv2d or (type(conv) is DepthwiseConv2d and conv.activation == "identity")
    return known and conv.padding_mode == "zeros" and not _has_hooks(conv)


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return (conv.kernel_size, conv.stride, conv.groups) == ((1, 1), (1, 1), 1) and conv.padding in ((0, 0), "same", "valid")


def _may_lead(chain: Chain, module_of) -> bool:
    conv = module_of(chain.conv.target)
    return conv.groups == conv.in_channels > 1 and chain.residual is None and chain.depthwise is None and len(chain.last.users) == 1


def apply(graph: fx.Graph, holder: nn.Module, chains: list[Chain]) -> dict[fx.Node, fx.Node]:
    """Writes every chain as one call. Returns, for the last node of each, the call."""
    calls: dict[fx.Node, fx.Node] = {}
    for chain in chains:
        front = chain.depthwise or chain
        image = front.conv.args[0]
        with graph.inserting_before(chain.last):

            def module(node: fx.Node | None) -> fx.Node | StoredNorm | None:
                if node is None or node.op == "call_module":
                    return graph.get_attr(node.target) if node is not None else None
                return _stored_norm(node)

            name = f"fused_{front.conv.name}"
            holder.add_module(name, Fused(chain.activation, chain.depthwise.activation if chain.depthwise else None))
            parts = [(module(c.conv), module(c.norm)) for c in (chain.depthwise, chain) if c]
            call = graph.call_module(name, (image, parts, calls.get(chain.residual, chain.residual)))
        chain.last.replace_all_uses_with(call)
        for node in reversed((chain.depthwise.nodes if chain.depthwise else []) + chain.nodes):
            graph.erase_node(node)
        calls[chain.last] = call
    return calls


class Fused(nn.Module):
    """Runs one chain on the convolutions and norms that it is called with; they stay where the network has them.

    Where autograd looks on, or a norm uses batch statistics, the layers run one by one; so do they on subclasses of a tensor.
    """

    def __init__(self, activation: str, depthwise_activation: str | None = None):
        super().__init__()
        self.activation, self.depthwise_activation = activation, depthwise_activation
        self._folded = FoldedWeights(depthwise_activation)

    def forward(self, x, parts: list[tuple[nn.Conv2d, nn.Module | None]], residual=None):
        # Weights folded for tensors that only have a shape would be kept for those that have numbers.
        known = type(x.tensor if type(x) is Fragments else x) in (Tensor, nn.Parameter)
        if torch.is_grad_enabled() or not known or not all(isinstance(norm, StoredNorm) or folds(norm) for _, norm in parts):
            return self._one_by_one(x, parts, residual)
        weights, first = self._folded(*parts), parts[0][0]
        if self.depthwise_activation is not None:
            return self._separable(x, first, weights, residual)
        if first.groups == first.in_channels > 1:
            alone = self.activation if residual is None else "identity"
            out = _layer(x, first, lambda t, stride, padding: FF.depthwise_conv2d(t, *weights, stride, padding, first.dilation, alone))
            return out if residual is None else self._finish(out, residual)
        return self._finish(convolved(x, first, *weights), residual)

    def _separable(self, x, conv: nn.Conv2d, weights: tuple, residual):
        depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias = weights
        added = _same_place(x, conv, residual, pointwise_weight.shape[0])
        inside = added is not None or residual is None

        def run(t: Tensor, stride, padding) -> Tensor:
            return FF.depthwise_separable_conv2d(
                t, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, stride, padding, conv.dilation, "identity",
                self.depthwise_activation, self.activation if inside else "identity", added,
            )  # fmt: skip

        out = _layer(x, conv, run)
        return out if inside else self._finish(out, residual)

    def _finish(self, out, residual):
        """Sum and activation, written over the convolution's result."""
        if residual is not None:
            tensor = residual.tensor if isinstance(residual, Fragments) else residual
            if isinstance(out, Fragments) and _alike(out, residual):
                out.tensor.add_(tensor)
            elif isinstance(out, Tensor) and isinstance(tensor, Tensor) and tensor.shape == out.shape and tensor.dtype == out.dtype:
                out.add_(tensor)
            else:
                out = out + residual
        return out.map(lambda tensor: over(tensor, self.activation)) if isinstance(out, Fragments) else over(out, self.activation)

    def _one_by_one(self, x, parts, residual):
        for (conv, norm), activation in zip(parts, (self.depthwise_activation, self.activation)[-len(parts) :], strict=True):
            x = conv(x) if norm is None else norm(conv(x))
            if conv is parts[-1][0] and residual is not None:
                x = x + residual
            x = ACTIVATIONS[activation](x)
        return x

    def extra_repr(self) -> str:
        first = "" if self.depthwise_activation is None else f"depthwise {self.depthwise_activation}, pointwise "
        return first + self.activation


def _layer(x, conv: nn.Conv2d, run: Callable):
    """`run(tensor, stride, padding)` on a map, or at every offset of its fragments."""
    if isinstance(x, Tensor):
        return run(x, conv.stride, conv.padding)
    window = windows.conv(conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    return x.layer(window, lambda t: run(t, 1, (window.pads[0], window.pads[2])))


def _alike(a: Fragments, b) -> bool:
    return (
        type(b) is Fragments
        and (a.strides, a.dense_size, a._start, a._axes) == (b.strides, b.dense_size, b._start, b._axes)
        and (a.shape, a.dtype) == (b.shape, b.dtype)
    )


def _same_place(x, conv: nn.Conv2d, residual, channels: int) -> Tensor | None:
    """The residual as the fused operator takes it: a map of just the shape that it writes."""
    window = windows.conv(conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    if isinstance(x, Tensor):
        shape = (x.shape[0], channels, *(window.strided_length(x.shape[2 + axis], axis) for axis in (0, 1)))
        return residual if isinstance(residual, Tensor) and residual.shape == shape and residual.dtype == x.dtype else None
    fits = type(residual) is Fragments and window.stride == (1, 1) and residual.shape[1] == channels and residual.dtype == x.dtype
    same = fits and (residual.strides, residual._start, residual.shape[0]) == (x.strides, x._start, x.shape[0])
    size = window.dense_size(x.dense_size, x.stride, "conv2d")
    return residual.tensor if same and residual.dense_size == size else None
