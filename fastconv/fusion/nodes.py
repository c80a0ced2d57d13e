"""What one node of a traced graph computes, as far as the fused operators are concerned."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from .. import _activations, folding

_ADDITIONS = frozenset({operator.add, operator.iadd, torch.add})
_PRODUCTS = frozenset({operator.mul, operator.imul, torch.mul})
_SKIPPED_IN_EVAL = frozenset({"DropPath", "StochasticDepth"})
# Results that share memory with their argument.
_VIEWS = frozenset(
    "view reshape flatten permute transpose contiguous chunk split unbind narrow squeeze unsqueeze expand swapaxes movedim detach to float "
    "getitem getattr dropout iadd imul isub itruediv".split()
)


def module_of(node, root: nn.Module) -> nn.Module | None:
    return root.get_submodule(node.target) if isinstance(node, fx.Node) and node.op == "call_module" else None


def activation(node: fx.Node, root: nn.Module) -> str | None:
    """The activation that a node computes of its first argument, or None."""
    return _activations.of_node(node, module_of(node, root))


def passes_through(node: fx.Node, root: nn.Module, training: bool) -> bool:
    """Whether a node gives back its argument: nn.Identity, and dropout of every kind in eval mode."""
    module = module_of(node, root)
    if module is not None:
        if type(module) is nn.Identity:
            return True
        return not training and is_dropout(module)
    return node.op == "call_function" and node.target in (F.dropout, F.dropout2d) and node.kwargs.get("training", True) is False


def is_dropout(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ in _SKIPPED_IN_EVAL


def norm(node: fx.Node, root: nn.Module) -> tuple[nn.Module, str | None] | None:
    """A batch norm and the activation hidden inside it (None: no activation), or None where the node is no norm that can be folded."""
    module = module_of(node, root)
    if module is None:
        return None
    if type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm) or type(module).__name__ == "FrozenBatchNorm2d":
        return (module, None) if _has_statistics(module) else None
    if type(module).__name__ in ("BatchNormAct2d", "SyncBatchNormAct", "FrozenBatchNormAct2d") and _has_statistics(module):
        hidden = [getattr(module, name, None) for name in ("drop", "act")]
        if type(hidden[0]) in (nn.Identity, type(None)) and hidden[1] is not None:
            name = _activations.of_module(hidden[1])
            return None if name is None else (module, None if name == "identity" else name)
    return None


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_mean", None), torch.Tensor) and hasattr(module, "eps")


def is_fixed(module: nn.Module | None) -> bool:
    return module is None or folding.is_fixed(module)


def is_conv(module: nn.Module | None) -> bool:
    """A convolution that computes what nn.Conv2d does, or timm's with TensorFlow's padding."""
    if not isinstance(module, nn.Conv2d) or module.padding_mode != "zeros" or nn.utils.parametrize.is_parametrized(module):
        return False
    kind = type(module)
    plain = kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward
    return plain or is_same_padded(module)


def is_same_padded(module: nn.Conv2d) -> bool:
    return type(module).__name__ == "Conv2dSame" and type(module).__module__.startswith("timm.")


def is_depthwise(module: nn.Module | None) -> bool:
    return is_conv(module) and module.groups == module.in_channels > 1


def is_pointwise(module: nn.Module | None) -> bool:
    plain = is_conv(module) and module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
    return plain and module.padding in ((0, 0), "valid", "same")


def operands(node: fx.Node, kind: frozenset, methods: tuple[str, str]) -> tuple | None:
    known = node.op == "call_function" and node.target in kind or node.op == "call_method" and node.target in methods
    return tuple(node.args) if known and len(node.args) == 2 and not node.kwargs else None


def addition(node: fx.Node) -> tuple | None:
    return operands(node, _ADDITIONS, ("add", "add_"))


def product(node: fx.Node) -> tuple | None:
    return operands(node, _PRODUCTS, ("mul", "mul_"))


def name_of(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def memory_of(node: fx.Node, root: nn.Module) -> fx.Node:
    """The node whose result a node's result may share memory with, itself where it makes its own."""
    while node.args and isinstance(node.args[0], fx.Node):
        module = module_of(node, root)
        name = name_of(node)
        if module is not None:
            shares = type(module) in (nn.Identity, nn.Flatten) or is_dropout(module) or getattr(module, "inplace", False)
        else:
            shares = name in _VIEWS or name.endswith("_") or bool(node.kwargs.get("inplace"))
        if not shares:
            break
        node = node.args[0]
    return node
