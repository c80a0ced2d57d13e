"""torch.fx tracing of somebody's model, with sentences for what cannot be traced."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from . import _windows as windows


class NotConvertible(ValueError):
    """A model, or a part of it, that cannot be made dense exactly. `module` is its name in the model, `reason` says why."""

    def __init__(self, module: str, reason: str):
        super().__init__(f"{module}: {reason}" if module else reason)
        self.module, self.reason = module, reason


# TensorFlow-style padding, by class name: timm, the efficientnet ports and others all call them so.
SAME_CLASSES = frozenset({"Conv2dSame", "Conv2dStaticSamePadding", "Conv2dDynamicSamePadding", "MaxPool2dSame", "AvgPool2dSame"})


def is_same_padded(module: nn.Module) -> bool:
    return type(module).__name__ in SAME_CLASSES


class _Undecided(Exception):
    """A branch was met whose condition is not known yet."""

    def __init__(self, node: fx.Node, where: str):
        super().__init__(where)
        self.node, self.where = node, where


def _written(function):
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


class _Proxy(fx.Proxy):
    """torch.fx records `x += y` as `x + y`, which is another thing where views of x are read later."""

    __iadd__, __isub__ = _written(operator.iadd), _written(operator.isub)
    __imul__, __itruediv__ = _written(operator.imul), _written(operator.itruediv)


class _Tracer(fx.Tracer):
    """Leaves are torch's modules, subclasses of theirs that keep their forward, and the TensorFlow-style windows.

    decisions: the outcomes of the branches met so far; at the next one the trace stops. Conditions cannot be evaluated during the trace,
    which turns every module call into a node.
    """

    def __init__(self, decisions: list[bool]):
        super().__init__()
        self.undecided = iter(decisions)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            return False
        kept = (base for base in type(module).__mro__ if base.__module__.startswith("torch.nn") and base is not nn.Module)
        return is_same_padded(module) or any(type(module).forward is base.forward for base in kept)

    def call_module(self, module: nn.Module, forward, args, kwargs):
        # fastconv's own modules check real shapes; what they stand for is in `plain_forward`, see fastconv.nn.
        return super().call_module(module, getattr(module, "plain_forward", forward), args, kwargs)

    def where(self) -> str:
        return next(reversed(self.module_stack.values()))[0] if self.module_stack else ""

    def to_bool(self, obj: fx.Proxy) -> bool:
        for outcome in self.undecided:
            return outcome
        raise _Undecided(obj.node, self.where())


class _ImageTracer(_Tracer):
    """Traces forward as it runs when it is given one image and nothing else."""

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        function, arguments = super().create_args_for_root(root_fn, is_module, concrete_args)
        return function, [_default(a) if isinstance(a, fx.Proxy) else a for a in arguments]


def _default(argument: fx.Proxy):
    """What an argument is where the call leaves it out; required ones stay as they are."""
    node = argument.node
    if node.target.startswith("**"):
        default = {}
    elif node.target.startswith("*"):
        default = ()
    elif node.args:
        default = node.args[0]
    else:
        return argument
    argument.tracer.graph.erase_node(node)
    return default


def _evaluate(node: fx.Node, model: nn.Module, example: torch.Tensor):
    """The value of a traced node on fake tensors: shapes are real, values do not exist."""
    values: dict[fx.Node, object] = {}

    def value(n: fx.Node):
        return values[n]

    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        for n in node.graph.nodes:
            if n.op == "placeholder":
                values[n] = mode.from_tensor(example)
                continue
            if n.op == "get_attr":
                values[n] = operator.attrgetter(n.target)(model)
                continue
            args, kwargs = fx.map_arg(n.args, value), fx.map_arg(n.kwargs, value)
            if n.op == "call_module":
                values[n] = model.get_submodule(n.target)(*args, **kwargs)
            elif n.op == "call_method":
                values[n] = getattr(args[0], n.target)(*args[1:], **kwargs)
            else:
                values[n] = n.target(*args, **kwargs)
            if n is node:
                break
    return values[node]


def _settle(undecided: _Undecided, model: nn.Module, example: torch.Tensor | None) -> bool:
    if example is None:
        raise NotConvertible(
            undecided.where, "branches on its input; if it is only the shape it looks at, pass example_input to settle the branch"
        ) from None
    try:
        return bool(_evaluate(undecided.node, model, example))
    except Exception as error:
        raise NotConvertible(
            undecided.where, "branches on the values of its input (data-dependent control flow), which a graph cannot follow"
        ) from error


_WRAPPERS = {
    "OptimizedModule": "the module that was given to torch.compile, model._orig_mod",
    "DataParallel": "model.module",
    "DistributedDataParallel": "model.module",
    "RecursiveScriptModule": "the module that was given to torch.jit",
    "TopLevelTracedModule": "the module that was given to torch.jit",
}


def trace(model: nn.Module, example: torch.Tensor | None = None) -> fx.GraphModule:
    """The model as a graph of one image tensor, other arguments at their defaults. Raises NotConvertible where that is impossible.

    A branch on a shape goes the way it goes for `example`; a branch on values is refused.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: must be a torch.nn.Module, got {type(model).__name__}; wrap a function in a Module whose forward calls it")
    inside = _WRAPPERS.get(type(model).__name__)
    if inside is not None:
        raise NotConvertible("", f"{type(model).__name__} wraps the model so that it cannot be traced; pass {inside}")
    for name, module in model.named_modules():
        if "forward" in module.__dict__:
            raise NotConvertible(
                name, "has a forward of its own, assigned to the object, which torch.fx does not trace; write it into its class"
            )
    decisions: list[bool] = []
    while True:
        tracer = _ImageTracer(decisions)
        try:
            graph = tracer.trace(model)
            break
        except _Undecided as undecided:
            decisions.append(_settle(undecided, model, example))
        except Exception as error:
            hint = "" if example is not None else "; pass example_input so that branches on shapes can be settled"
            raise NotConvertible(
                tracer.where(),
                f"torch.fx cannot trace {type(model).__name__} ({type(error).__name__}: {(str(error).splitlines() or [''])[0]}){hint}, or move what "
                "depends on values out of forward",
            ) from error
    inputs = [node.target for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise NotConvertible(
            "",
            f"{type(model).__name__}.forward must have one input, the image, besides those with defaults; it has {', '.join(inputs) or 'none'}",
        )
    _resolve_in_place(graph, model)
    _refuse_written_views(graph, model)
    _drop_asserts(graph)
    traced = fx.GraphModule(model, graph)
    # How many branches went the way they go for the example: other sizes might take others.
    traced.meta["branches"] = len(decisions)
    graph.eliminate_dead_code()
    traced.recompile()
    return traced


_IN_PLACE_OPERATORS = frozenset({operator.iadd, operator.isub, operator.imul, operator.itruediv})


def _in_place(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(node.target), "inplace", False))
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        return node.target in _IN_PLACE_OPERATORS or bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))
    return node.op == "call_method" and node.target.endswith("_") and not node.target.endswith("__")


def _resolve_in_place(graph: fx.Graph, model: nn.Module) -> None:
    """Whoever reads a map after it was written in place reads the result: said in the graph, copies may be made of either."""
    seen: list[fx.Node] = []
    for node in graph.nodes:
        if (
            node.op not in ("placeholder", "output", "get_attr")
            and node.args
            and isinstance(node.args[0], fx.Node)
            and _in_place(node, model)
        ):
            earlier = set(seen)
            node.args[0].replace_all_uses_with(node, lambda user, e=earlier, n=node: user not in e and user is not n)
        seen.append(node)


_VIEWS = frozenset(
    "chunk split tensor_split unbind view view_as reshape flatten unflatten permute transpose movedim narrow select squeeze unsqueeze expand getitem".split()
)


def _is_view(node: fx.Node) -> bool:
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "") if node.op == "call_function" else ""
    return name in _VIEWS and bool(node.args) and isinstance(node.args[0], fx.Node)


def _refuse_written_views(graph: fx.Graph, model: nn.Module) -> None:
    """A part of a map written in place changes the map, which no edge of the graph says."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if not (node.args and isinstance(node.args[0], fx.Node) and _is_view(node.args[0]) and _in_place(node, model)):
            continue
        base = node.args[0]
        while _is_view(base):
            base = base.args[0]
            if any(order[user] > order[node] for user in base.users):
                raise NotConvertible(
                    module_name(node), "writes in place into a part of a map that is read again as a whole; write to a copy"
                )


def _drop_asserts(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and node.target in (torch._assert, torch._check):
            graph.erase_node(node)


def module_name(node: fx.Node) -> str:
    """The module of the model that a node comes from, by its name there."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack")
    name = next(reversed(stack.values()))[0] if stack else ""
    return name or str(node.name)


def same_window(module: nn.Module) -> windows.Window:
    """The geometry of a TensorFlow-style module, its padding left open."""
    kernel, stride, dilation = windows.pair(module.kernel_size), windows.pair(module.stride), windows.pair(getattr(module, "dilation", 1))
    kind = "conv" if isinstance(module, nn.Conv2d) else "max" if isinstance(module, nn.MaxPool2d) else "avg"
    include = getattr(module, "count_include_pad", True)
    if stride == (1, 1) and all(d * (k - 1) % 2 == 0 for k, d in zip(kernel, dilation, strict=True)):
        half = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
        return windows.Window(kind, kernel, stride, (half[0], half[0], half[1], half[1]), dilation, count_include_pad=include)
    return windows.Window(kind, kernel, stride, (0, 0, 0, 0), dilation, count_include_pad=include, same=True)
