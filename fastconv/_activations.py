"""Which of the operators' activations a module, a function or a node of a traced graph computes: the one place where `fuse` and `to_dense`
look, and activations written over a map that nobody else reads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .reference import ACTIVATIONS

_MODULES = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu", nn.Hardswish: "hardswish"}
_FUNCTIONS = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_), "relu"),
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hardswish",
}
# Torch's own have a form that needs no second map.
_IN_PLACE = frozenset(_MODULES.values())


def over(x: Tensor, name: str) -> Tensor:
    """The activation of a map that nobody else reads, in its memory where torch can."""
    return getattr(F, name)(x, inplace=True) if name in _IN_PLACE else ACTIVATIONS[name](x)


def of_module(module: nn.Module) -> str | None:
    """The name of the activation that a module computes, "identity" for nn.Identity, None for anything else."""
    kind = type(module)
    if kind is nn.Identity:
        return "identity"
    if kind is nn.GELU:
        return _gelu(module.approximate)
    if kind is nn.Hardtanh and (module.min_val, module.max_val) == (0.0, 6.0):
        return "relu6"
    return _MODULES.get(kind)


def of_node(node: fx.Node, module: nn.Module | None) -> str | None:
    """The activation that a node computes of its first argument, or None; `module` is the one that it calls, if it calls one."""
    if module is not None:
        name = of_module(module)
        return None if name == "identity" else name
    if node.op == "call_method":
        if node.target in ("relu", "relu_"):
            return "relu"
        return "relu6" if node.target in ("clamp", "clamp_") and _bounds(node) == (0, 6) else None
    if node.op != "call_function":
        return None
    if node.target is F.gelu:
        return _gelu(node.kwargs.get("approximate", "none"))
    if node.target in (F.hardtanh, torch.clamp):
        return "relu6" if _bounds(node) == (0, 6) else None
    return _FUNCTIONS.get(node.target)


def _gelu(approximate: str) -> str | None:
    return {"none": "gelu", "tanh": "gelu_tanh"}.get(approximate)


def _bounds(node: fx.Node) -> tuple:
    names = ("min", "max") if node.target != F.hardtanh else ("min_val", "max_val")
    values = [node.kwargs.get(name) for name in names]
    given = node.args[1:3]
    return (*given, *values[len(given) :])
