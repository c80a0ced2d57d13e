"""Graphs of a model's parts: of the largest modules that torch.fx can follow, for any input, in train mode and in eval mode."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import fx, nn

from .._trace import _drop_asserts, _resolve_in_place, _Tracer

# Modules that libraries write themselves and that are known whole, by class name: what they compute is said in nodes.py.
KNOWN_LEAVES = frozenset({"DropPath", "StochasticDepth", "FrozenBatchNorm2d", "FrozenBatchNormAct2d"})
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class CannotTrace(Exception):
    """Why a module has no graph that holds for every input."""


def is_watched(module: nn.Module) -> bool:
    """Whether calls of this module are seen or changed from outside: hooks, or a forward of the instance's own."""
    state = module.__dict__
    return any(state[name] for name in HOOKS) or "forward" in state


class _BlockTracer(_Tracer):
    # Buffers that forward writes to are then written by the graph, not by the trace.
    proxy_buffer_attributes = True

    def __init__(self, root: nn.Module):
        super().__init__([])
        self._root = root

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or type(module).__name__ in KNOWN_LEAVES:
            return True
        return (module is not self._root and is_watched(module)) or super().is_leaf_module(module, name)


@dataclass
class Region:
    """A module that could be traced. `graph` is of its forward with every optional argument left at its default."""

    name: str
    module: nn.Module
    graph: fx.Graph
    inputs: int


@contextmanager
def _in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    for part, _ in modes:
        part.training = training
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def trace(module: nn.Module, training: bool, name: str = "") -> Region:
    """The graph of `module` in train or in eval mode. Raises CannotTrace, and leaves the module as it was, where forward branches on its
    input, writes to its attributes, or draws random numbers by itself."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        raise CannotTrace(f"{type(module).__name__}.forward takes any number of arguments")
    if is_watched(module):
        raise CannotTrace(f"{type(module).__name__} has hooks or a forward of its own")
    required = [p for p in parameters if p.default is p.empty]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    before = _state(module)
    generators = random.getstate(), torch.get_rng_state()
    try:
        with _in_mode(module, training):
            graph = _BlockTracer(module).trace(module, concrete_args=defaults or None)
    except Exception as error:
        raise CannotTrace(_reason(module, error)) from error
    finally:
        changed = _restore(before)
    if changed:
        raise CannotTrace(f"forward changes {changed}")
    if random.getstate() != generators[0] or not torch.equal(torch.get_rng_state(), generators[1]):
        raise CannotTrace("forward draws random numbers outside of modules")
    _resolve_in_place(graph, module)
    _drop_asserts(graph)
    for node in reversed(graph.nodes):
        if node.op == "call_function" and getattr(node.target, "__name__", "") == "_assert_is_none":
            graph.erase_node(node)
    return Region(name, module, graph, len(required))


def _reason(module: nn.Module, error: Exception) -> str:
    if type(error).__name__ == "_Undecided":
        return f"{error.where or type(module).__name__} branches on its input"
    return f"torch.fx cannot trace {type(module).__name__} ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"


def _state(module: nn.Module) -> list[tuple[dict, dict]]:
    parts = list(module.modules())
    dictionaries = [d for part in parts for d in (part.__dict__, part._buffers, part._parameters, part._modules)]
    return [(d, dict(d)) for d in dictionaries]


def _restore(before: list[tuple[dict, dict]]) -> str | None:
    """Puts back every attribute that the trace changed; the name of one of them."""
    changed = None
    for now, then in before:
        for name in [n for n in {**now, **then} if n != "training" and now.get(n, before) is not then.get(n, before)]:
            changed = name
            if name in then:
                now[name] = then[name]
            else:
                del now[name]
    return changed


def regions(model: nn.Module, training: bool, failures: dict[str, str]) -> list[Region]:
    """The largest traceable modules, the model itself at best; `failures` collects the reasons of those that are not."""
    found: list[Region] = []
    seen: set[int] = set()

    def visit(name: str, module: nn.Module) -> None:
        if id(module) in seen or not any(isinstance(part, nn.Conv2d) for part in module.modules()):
            return
        seen.add(id(module))
        try:
            region = trace(module, training, name)
        except CannotTrace as error:
            if type(module).forward is not nn.Module.forward and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
                failures[name] = str(error)
            children = module.named_children()
        else:
            found.append(region)
            # Where hooks watch, the graph ends; what lies inside is a region of its own.
            leaves = {node.target for node in region.graph.nodes if node.op == "call_module"}
            children = [(leaf, module.get_submodule(leaf)) for leaf in sorted(leaves)]
            children = [(leaf, part) for leaf, part in children if next(part.children(), None) is not None]
        for child, part in children:
            visit(f"{name}.{child}" if name else child, part)

    visit("", model)
    return found


def frames(node: fx.Node) -> list[str]:
    """The modules, outermost first, whose forward was running when this node was recorded; the root is not among them."""
    stack = [entry[0] for entry in node.meta.get("nn_module_stack", {}).values()]
    stack = [name for name in stack if name]
    return stack[:-1] if node.op == "call_module" else stack
