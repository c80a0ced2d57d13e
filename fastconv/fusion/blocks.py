"""How a module comes to run the graph with fused operators: it stays where and what it is, with another forward.

A fused module is of a subclass of its own class, made here; children, parameters, buffers and their names are untouched, and so is the
`state_dict`. Its forward runs the graph that was found for its mode, and the original forward whenever that graph might not hold: another
call signature, hooks or replaced modules somewhere inside, modules of different modes.
"""

from __future__ import annotations

import copyreg
import importlib
import linecache
import types
from functools import cache, wraps

from torch import fx, nn
from torch.nn.modules import module as torch_module

from . import nodes as N
from .layers import LAYERS, Fused
from .patterns import Match
from .tracing import HOOKS, Region

PLANS = {True: "_fastconv_train", False: "_fastconv_eval"}
_GLOBAL_HOOKS = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)


class FusedModule:
    """Comes before the original class among the bases."""

    def train(self, mode: bool = True):
        for name in PLANS.values():
            if name in self.__dict__:
                self.__dict__[name].forget()
        return super().train(mode)

    def __reduce_ex__(self, protocol):
        state = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__
        return _restored, (type(self).__mro__[2],), state


@cache
def fused_class(base: type) -> type:
    @wraps(base.forward)
    def forward(self, *args, **kwargs):
        plan = self.__dict__.get(PLANS[self.training])
        if plan is None or kwargs or not plan.holds(self, args):
            return base.forward(self, *args, **kwargs)
        return plan.run(self, *args)

    return type(f"Fused{base.__name__}", (FusedModule, base), {"__module__": base.__module__, "__doc__": base.__doc__, "forward": forward})


def _restored(base: type) -> nn.Module:
    return copyreg.__newobj__(fused_class(base))


class Plan:
    """The code that stands for one module's forward in one mode, and what must be so for it to hold."""

    def __init__(self, region: Region, training: bool, matches: list[Match]):
        self.block, self.inputs, self.training = region.module, region.inputs, training
        self.layers: list[Fused] = []
        graph, copied = _copy(region.graph)
        absorbed: list[fx.Node] = []
        for index, match in enumerate(matches):
            layer = LAYERS[match.kind](match)
            self.layers.append(layer)
            setattr(self, f"layer_{index}", layer)
            inputs = [node for node in (match.source, match.scale, match.residual) if node is not None]
            last = copied[match.last]
            with graph.inserting_before(last):
                node = graph.call_module(f"{PLANS[training]}.layer_{index}", tuple(copied[i] for i in inputs))
            last.replace_all_uses_with(node)
            for old in reversed(match.nodes):
                graph.erase_node(copied[old])
            # What reads the chain's end by the original node's name reads the layer now.
            copied[match.last] = node
            absorbed += match.nodes
        code = graph.python_code(root_module="self")
        self.source, self.globals = code.src, dict(code.globals)
        # Not at the first call: torch.compile, which may make it, cannot see through exec.
        self._function = _compiled(self.source, self.globals)
        self._conditions(region, matches, absorbed)

    def _conditions(self, region: Region, matches: list[Match], absorbed: list[fx.Node]) -> None:
        root = region.module
        called = {n.target for n in region.graph.nodes if n.op == "call_module"}
        inlined = {""} | {frame for n in region.graph.nodes for frame in _all_frames(n)} - called
        absorbed_names = {n.target for n in absorbed if n.op == "call_module"}
        self.links = _links(root, called | inlined)
        # Calls of these do not happen any more: nobody may be watching them.
        silent = {id(m): m for m in (root.get_submodule(name) for name in inlined | absorbed_names)}
        self.silent = tuple(silent.values())
        self.modes = tuple({id(m): m for m in (root.get_submodule(name) for name in inlined)}.values())
        skipped = [N.module_of(node, root) for match in matches for node in match.skipped]
        self.inactive = tuple(m for m in skipped if m is not None and N.is_dropout(m))

    def settle(self) -> None:
        """Remembers what every call compares: once every module is fused, and again in a copy."""
        self.classes = [type(module) for module in self.silent]
        self.states = [module.__dict__ for module in self.silent]
        self.hooks = [state[name] for state in self.states for name in HOOKS]
        self.children = [(parent._modules, name, child) for parent, name, child in self.links]

    def holds(self, block: nn.Module, args: tuple) -> bool:
        if block is not self.block or len(args) != self.inputs or any(isinstance(arg, fx.Proxy) for arg in args):
            return False
        if self.classes is None:
            self.settle()
        return not any(_GLOBAL_HOOKS) and self._structure_holds()

    def _structure_holds(self) -> bool:
        # In every call and over every module inside: hence the loops that Python runs without a frame each.
        if any(self.hooks) or list(map(type, self.silent)) != self.classes or any("forward" in state for state in self.states):
            return False
        for children, name, child in self.children:
            if children.get(name) is not child:
                return False
        for module in self.modes:
            if module.training is not self.training:
                return False
        return not any(module.training for module in self.inactive)

    def run(self, block: nn.Module, *args):
        return self._function(block, *args)

    def forget(self) -> None:
        for layer in self.layers:
            layer.folded.forget()

    def __getstate__(self):
        named = {k: v.__name__ if isinstance(v, types.ModuleType) else v for k, v in self.globals.items()}
        modules = [k for k, v in self.globals.items() if isinstance(v, types.ModuleType)]
        # A copy looks for itself, when all of it is there. (No pickle finds the classes that are made here by name, either.)
        derived = {"classes": None, "states": None, "hooks": None, "children": None, "_function": None}
        return {**self.__dict__, "globals": named, "_modules_of_globals": modules, **derived}

    def __setstate__(self, state):
        names = state.pop("_modules_of_globals")
        self.__dict__.update(state)
        self.globals = {k: importlib.import_module(v) if k in names else v for k, v in state["globals"].items()}
        self._function = _compiled(self.source, self.globals)


def _all_frames(node: fx.Node) -> list[str]:
    return [entry[0] for entry in node.meta.get("nn_module_stack", {}).values()]


def _links(root: nn.Module, names: set[str]) -> tuple[tuple[nn.Module, str, nn.Module], ...]:
    links = {}
    for name in names:
        parent, path = root, []
        for part in name.split(".") if name else []:
            path.append(part)
            child = parent._modules[part]
            links[".".join(path)] = (parent, part, child)
            parent = child
    return tuple(links.values())


def _copy(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    copied: dict[fx.Node, fx.Node] = {}
    new = fx.Graph()
    new.output(new.graph_copy(graph, copied))
    return new, copied


def _compiled(source: str, names: dict):
    name = f"<fastconv {hash(source) & 0xFFFFFFFFFFFF:012x}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    namespace = dict(names)
    exec(compile(source, name, "exec"), namespace)
    return namespace["forward"]


def install(plans: list[Plan]) -> None:
    for plan in plans:
        if not isinstance(plan.block, FusedModule):
            plan.block.__class__ = fused_class(type(plan.block))
        plan.block.__dict__[PLANS[plan.training]] = plan
    for plan in plans:
        plan.settle()


def remove(model: nn.Module) -> None:
    """Every module as it was."""
    for module in model.modules():
        if isinstance(module, FusedModule):
            for name in PLANS.values():
                module.__dict__.pop(name, None)
            module.__class__ = type(module).__mro__[2]
