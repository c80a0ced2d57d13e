"""What each step of a traced network does to space: the one reading of a model that `to_dense`, `tiled` and the receptive field share.

Every value of the graph is one of: a map (rows and columns somewhere among its axes), something pooled (it depends on the image, but has no
positions left), a constant (parameters and what is computed from them), or a size. Every step that makes a map gets a `Step`.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from . import _obstacles as obstacles
from . import _pointwise as pointwise
from . import _windows as windows
from ._trace import NotConvertible, is_same_padded, module_name, same_window, trace
from ._windows import Window

MAP_AXES = (-2, -1)


@dataclass(frozen=True)
class Map:
    """axes: where rows and columns are, counted from the last. count: how many maps, where the value is a tuple of them."""

    axes: tuple[int, int] = MAP_AXES
    rank: int = 4
    count: int | None = None
    flat: bool = False  # behind the head's pool, where the network itself has vectors


@dataclass(frozen=True)
class Pooled:
    """No positions left; `by` are the steps that pooled, by name."""

    by: frozenset[str]


@dataclass(frozen=True)
class Constant:
    value: object


@dataclass(frozen=True)
class Size:
    """A number read off a shape. axis: of the map, counted from the last, where it is one axis as it stands; "shape" for the whole
    shape."""

    axis: object = None


@dataclass
class Step:
    """One step that makes a map, or would.

    role: "input", "window", "pointwise" (positions apart, constants allowed), "merge" (several maps, position by position), "global" (an
    average over all positions), "obstacle" (mixes positions in a way that is not followed; `reason` says how).
    keeps_grid: whether an obstacle still gives a map on the grid of the one it takes, so that it may stay where nothing was changed before
    it.
    head: how a step behind the head's pool runs on a map: "drop" (as nothing), "linear" (as a 1x1 convolution), "batch_norm", or "" (as it
    stands).
    """

    node: fx.Node
    name: str
    role: str
    sources: list[fx.Node]
    window: Window | None = None
    reason: str = ""
    keeps_grid: bool = False
    head: str = ""


@dataclass
class Network:
    """A traced model, its values and its steps in order."""

    graph_module: fx.GraphModule
    values: dict[fx.Node, object]
    steps: dict[fx.Node, Step] = field(default_factory=dict)

    @property
    def input(self) -> fx.Node:
        return next(node for node in self.graph_module.graph.nodes if node.op == "placeholder")

    @property
    def output(self) -> fx.Node:
        return next(reversed(self.graph_module.graph.nodes))

    def output_maps(self) -> list[fx.Node]:
        found: list[fx.Node] = []
        fx.map_arg(self.output.args, lambda node: found.append(node) if isinstance(self.values.get(node), Map) else None)
        return found


class _Obstacle(Exception):
    """Raised by the readers below; what is caught becomes an obstacle step. keeps_grid: as in Step."""

    def __init__(self, reason: str, keeps_grid: bool = False):
        super().__init__(reason)
        self.keeps_grid = keeps_grid


def read(model: nn.Module, example: Tensor | None = None, heads: frozenset[str] = frozenset()) -> Network:
    """Traces `model` and reads every step. Raises NotConvertible where the model cannot be traced; steps it does not follow become
    obstacles.

    heads: names of global average pools to read as if they were not there, and what follows them as working on a map.
    """
    network = Network(trace(model, example), {})
    reader = _Reader(network, heads)
    for node in network.graph_module.graph.nodes:
        reader.visit(node)
    for node in network.output_maps():
        if network.values[node].count is not None:
            raise NotConvertible(module_name(node), "is returned as a tuple of parts; take them out of it in forward")
    return network


class _Reader:
    def __init__(self, network: Network, heads: frozenset[str]):
        self.network, self.values, self.heads = network, network.values, heads
        self.root = network.graph_module

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if node is self.network.input:
                self.step(node, "input", [])
                self.values[node] = Map()
            else:
                self.values[node] = Constant(node.args[0] if node.args else None)
        elif node.op == "get_attr":
            self.values[node] = Constant(operator.attrgetter(node.target)(self.root))
        elif node.op != "output":
            self.operation(node)

    def step(self, node: fx.Node, role: str, sources: list[fx.Node], **extra) -> None:
        if "head" not in extra and any(self.values[s].flat for s in sources):
            extra["head"] = "keep"
        self.network.steps[node] = Step(node, module_name(node), role, sources, **extra)

    def operation(self, node: fx.Node) -> None:
        inputs = [self.values[source] for source in node.all_input_nodes]
        if not any(isinstance(v, (Map, Pooled)) for v in inputs):
            sizes = any(isinstance(v, Size) for v in inputs)
            self.values[node] = Size() if sizes else Constant(self.evaluate(node))
            return
        maps = [n for n in node.all_input_nodes if isinstance(self.values[n], Map)]
        if not maps:
            by = frozenset().union(*(v.by for v in inputs if isinstance(v, Pooled)))
            self.values[node] = Size() if _reads_size(node) else Pooled(by)
            return
        if _reads_size(node):
            self.values[node] = self.read_size(node)
            return
        try:
            if any(self.values[m].flat for m in maps) and self.head(node, maps):
                return
            reader = {"call_module": self.call_module, "call_function": self.call_function, "call_method": self.call_method}[node.op]
            reader(node, maps)
        except _Obstacle as obstacle:
            self.step(node, "obstacle", maps, reason=str(obstacle), keeps_grid=obstacle.keeps_grid)
            self.values[node] = self.values[maps[0]] if obstacle.keeps_grid else Map()

    def evaluate(self, node: fx.Node):
        args = fx.map_arg(node.args, lambda n: self.values[n].value)
        kwargs = fx.map_arg(node.kwargs, lambda n: self.values[n].value)
        with torch.no_grad():
            if node.op == "call_module":
                return self.root.get_submodule(node.target)(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], node.target)(*args[1:], **kwargs)
            return node.target(*args, **kwargs)

    def read_size(self, node: fx.Node) -> Size:
        source = self.values[node.all_input_nodes[0]]
        if node.op == "call_method" and node.target == "size" and len(node.args) > 1:
            return Size(node.args[1] if node.args[1] < 0 else node.args[1] - source.rank)
        return Size("shape" if node.op == "call_method" and node.target == "size" or node.args[-1] == "shape" else None)

    # ---- modules
    # ---------------------------------------------------------------------------------------------------------------------------

    def call_module(self, node: fx.Node, maps: list[fx.Node]) -> None:
        module = self.root.get_submodule(node.target)
        source = self.values[maps[0]]
        if is_same_padded(module):
            self.window(node, maps, same_window(module))
        elif isinstance(module, nn.Conv2d):
            self.window(node, maps, conv_window(module))
        elif isinstance(module, nn.MaxPool2d):
            if module.return_indices:
                raise _Obstacle("returns indices, which point into the strided map")
            self.window(node, maps, windows.max_pool(module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode))
        elif isinstance(module, nn.AvgPool2d):
            m = module
            self.window(
                node, maps, windows.avg_pool(m.kernel_size, m.stride, m.padding, 1, m.ceil_mode, m.count_include_pad, m.divisor_override)
            )
        elif isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
            kind = "average" if isinstance(module, nn.AdaptiveAvgPool2d) else "maximum"
            self.adaptive(node, maps, module.output_size, kind)
        elif isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            batch_norm_may_stay(module.training, module.running_mean)
            self.pointwise(node, maps)
        elif isinstance(module, nn.InstanceNorm2d) and module.track_running_stats and not module.training:
            self.pointwise(node, maps)
        elif isinstance(module, nn.LayerNorm):
            self.channel_last(node, maps, len(module.normalized_shape) == 1, "normalises over positions")
        elif isinstance(module, nn.Linear):
            self.channel_last(node, maps, True, "mixes positions")
        elif isinstance(module, pointwise.MODULES):
            self.pointwise(node, maps)
        elif isinstance(module, pointwise.DROPOUT_MODULES):
            self.dropout(node, maps, module.training)
        elif isinstance(module, (nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.GLU)):
            self.channel_axis(getattr(module, "dim", 1), source)
            self.pointwise(node, maps)
        elif isinstance(module, (nn.ZeroPad2d, nn.ConstantPad2d)):
            self.padding(node, maps, module.padding, value=float(module.value))
        elif isinstance(module, (nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)):
            mode = {nn.ReflectionPad2d: "reflect", nn.ReplicationPad2d: "replicate"}.get(type(module), "circular")
            self.padding(node, maps, module.padding, mirrored=mode)
        else:
            name = type(module).__name__
            raise _Obstacle(
                obstacles.WHOLE_MAP_MODULES.get(name, f"is a {name}, not known to keep positions apart"), name in obstacles.KEEP_GRID
            )

    # ---- functions and methods
    # -------------------------------------------------------------------------------------------------------------

    def call_function(self, node: fx.Node, maps: list[fx.Node]) -> None:
        target, source = node.target, self.values[maps[0]]
        if target is operator.getitem:
            self.getitem(node, maps)
        elif target in pointwise.ELEMENTWISE:
            self.elementwise(node, maps)
        elif target in pointwise.UNARY or target is F.local_response_norm:
            self.pointwise(node, maps)
        elif target in pointwise.CONCATENATION:
            a = _bound(node, tensors=None, dim=0)
            self.channel_axis(a["dim"], source)
            parts = [a["tensors"]] if isinstance(a["tensors"], fx.Node) else a["tensors"]
            if not all(isinstance(self.values.get(part), Map) for part in parts):
                raise _Obstacle("concatenates a map with something that has no positions")
            self.merge(node, maps)
        elif target in (F.conv2d, torch.conv2d):
            a = _bound(node, input=None, weight=None, bias=None, stride=1, padding=0, dilation=1, groups=1)
            weight = self.values.get(a["weight"])
            if not isinstance(weight, Constant):
                raise _Obstacle("convolves with weights that depend on the image")
            self.window(node, maps, windows.conv(tuple(weight.value.shape[2:]), a["stride"], a["padding"], a["dilation"]))
        elif target in (F.max_pool2d, torch.max_pool2d, F.max_pool2d_with_indices):
            a = _bound(node, input=None, kernel_size=None, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False)
            if a["return_indices"] or target is F.max_pool2d_with_indices:
                raise _Obstacle("returns indices, which point into the strided map")
            self.window(node, maps, windows.max_pool(a["kernel_size"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"]))
        elif target is F.avg_pool2d:
            a = _bound(
                node, input=None, kernel_size=None, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
            )
            self.window(node, maps, windows.avg_pool(a["kernel_size"], a["stride"], a["padding"], 1, a["ceil_mode"], a["count_include_pad"], a["divisor_override"]))  # fmt: skip
        elif target in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d):
            a = _bound(node, input=None, output_size=None)
            self.adaptive(node, maps, a["output_size"], "average" if target is F.adaptive_avg_pool2d else "maximum")
        elif target in (F.batch_norm, torch.batch_norm):
            a = _bound(node, input=None, running_mean=None, running_var=None, weight=None, bias=None, training=False)
            mean = a["running_mean"]
            batch_norm_may_stay(a["training"], self.values[mean].value if isinstance(mean, fx.Node) else mean)
            self.pointwise(node, maps)
        elif target is F.layer_norm:
            a = _bound(node, input=None, normalized_shape=None)
            self.channel_last(node, maps, len(a["normalized_shape"]) == 1, "normalises over positions")
        elif target is F.linear:
            self.channel_last(node, maps, True, "mixes positions")
        elif target in pointwise.DROPOUT:
            self.dropout(node, maps, _bound(node, input=None, p=0.5, training=True)["training"])
        elif target in pointwise.ALONG_AXIS:
            a = (
                _bound(node, input=None, dim=1 if target is F.normalize else None)
                if target is not F.normalize
                else _bound(node, input=None, p=2.0, dim=1)
            )
            self.channel_axis(a["dim"] if a["dim"] is not None else -1, source)
            self.pointwise(node, maps)
        elif target is F.pad:
            self.pad(node, maps)
        elif target in (torch.mean, torch.sum, torch.amax, torch.amin):
            self.reduce(node, maps, target.__name__)
        elif target in (torch.permute, torch.transpose):
            self.permute(node, maps, target.__name__)
        elif target in (torch.chunk, torch.split):
            self.split(node, maps)
        else:
            name = getattr(target, "__name__", str(target))
            raise _Obstacle(
                obstacles.WHOLE_MAP_FUNCTIONS.get(name, f"calls {name}, not known to keep positions apart"), name in obstacles.KEEP_GRID
            )

    def call_method(self, node: fx.Node, maps: list[fx.Node]) -> None:
        name = node.target
        if name in pointwise.UNARY_METHODS:
            self.pointwise(node, maps)
        elif name in pointwise.ELEMENTWISE_METHODS:
            self.elementwise(node, maps)
        elif name in ("mean", "sum", "amax", "amin"):
            self.reduce(node, maps, name)
        elif name in ("permute", "transpose"):
            self.permute(node, maps, name)
        elif name in ("chunk", "split"):
            self.split(node, maps)
        elif name in pointwise.ALONG_AXIS_METHODS:
            self.channel_axis(_bound(node, self=None, dim=None)["dim"], self.values[maps[0]])
            self.pointwise(node, maps)
        else:
            raise _Obstacle(obstacles.WHOLE_MAP_FUNCTIONS.get(name, f"calls Tensor.{name}, not known to keep positions apart"))

    # ---- what they come to
    # -----------------------------------------------------------------------------------------------------------------

    def pointwise(self, node: fx.Node, maps: list[fx.Node], value: Map | None = None) -> None:
        self.step(node, "pointwise", maps)
        self.values[node] = value or self.values[maps[0]]

    def merge(self, node: fx.Node, maps: list[fx.Node]) -> None:
        first = self.values[maps[0]]
        if any(self.values[m] != first for m in maps):
            raise _Obstacle("joins maps whose axes are in different orders")
        self.step(node, "merge" if len(maps) > 1 else "pointwise", maps)
        self.values[node] = replace(first, count=None)

    def window(self, node: fx.Node, maps: list[fx.Node], window: Window) -> None:
        if replace(self.values[maps[0]], flat=False) != Map() or len(maps) != 1:
            raise _Obstacle("slides over a map whose axes were permuted")
        self.step(node, "window", maps, window=window)
        self.values[node] = self.values[maps[0]]

    def elementwise(self, node: fx.Node, maps: list[fx.Node]) -> None:
        first = self.values[maps[0]]
        for source in node.all_input_nodes:
            value = self.values[source]
            if isinstance(value, Size):
                raise _Obstacle("computes with the size of the map")
            if isinstance(value, Constant) and isinstance(value.value, Tensor):
                sizes = [value.value.shape[a] if value.value.dim() >= -a else 1 for a in (*first.axes, -first.rank)]
                if any(size != 1 for size in sizes):
                    raise _Obstacle(
                        f"combines the map with a constant of shape {tuple(value.value.shape)} that differs from position to position"
                    )
        self.merge(node, maps)

    def channel_axis(self, dim: int, value: Map) -> None:
        axis = dim if dim < 0 else dim - value.rank
        if axis in value.axes or axis == -value.rank:
            raise _Obstacle(f"works along axis {dim}, over positions or images")

    def channel_last(self, node: fx.Node, maps: list[fx.Node], one_axis: bool, otherwise: str) -> None:
        if not one_axis or -1 in self.values[maps[0]].axes:
            raise _Obstacle(otherwise)
        self.pointwise(node, maps)

    def dropout(self, node: fx.Node, maps: list[fx.Node], training: bool) -> None:
        if training:
            raise _Obstacle("is stochastic in train mode; call model.eval() first")
        self.pointwise(node, maps)

    def adaptive(self, node: fx.Node, maps: list[fx.Node], output_size, kind: str) -> None:
        sizes = output_size if isinstance(output_size, (tuple, list)) else (output_size,)
        if any(size != 1 for size in sizes):
            raise _Obstacle(f"pools adaptively to {output_size}: its windows depend on the size of the map and are not evenly spaced")
        self.whole_map(node, maps, kind)

    def whole_map(self, node: fx.Node, maps: list[fx.Node], kind: str) -> None:
        name = module_name(node)
        if name in self.heads:
            self.step(node, "pointwise", maps, head="drop")
            self.values[node] = replace(self.values[maps[0]], flat=True)
            return
        role, reason = ("global", "") if kind == "average" else ("obstacle", f"takes the {kind} over the whole map")
        self.step(node, role, maps, reason=reason, keeps_grid=True)
        self.values[node] = Pooled(frozenset({name}))

    def head(self, node: fx.Node, maps: list[fx.Node]) -> bool:
        """Reads a step behind the head's pool whose form on a map is another one."""
        module = self.root.get_submodule(node.target) if node.op == "call_module" else None
        name = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
        form = {
            "Flatten": "drop", "flatten": "drop", "view": "drop", "reshape": "drop", "squeeze": "drop", "Linear": "linear", "BatchNorm1d": "batch_norm",
        }.get(name)  # fmt: skip
        if form is None:
            return False
        self.step(node, "pointwise", maps[:1], head=form)
        self.values[node] = self.values[maps[0]]
        return True

    def reduce(self, node: fx.Node, maps: list[fx.Node], name: str) -> None:
        value = self.values[maps[0]]
        a = _bound(node, input=None, dim=None, keepdim=False)
        dims = list(range(value.rank)) if a["dim"] is None else list(a["dim"]) if isinstance(a["dim"], (tuple, list)) else [a["dim"]]
        axes = {d if d < 0 else d - value.rank for d in dims}
        if axes == set(value.axes):
            self.whole_map(node, maps, "average" if name == "mean" else name)
        elif not axes & {*value.axes, -value.rank} and a["keepdim"]:
            self.pointwise(node, maps)
        else:
            raise _Obstacle(f"takes the {name} over axes {dims}")

    def permute(self, node: fx.Node, maps: list[fx.Node], name: str) -> None:
        value = self.values[maps[0]]
        arguments = node.args[1:] or tuple(node.kwargs.values())
        if name == "permute":
            dims = arguments[0] if len(arguments) == 1 else arguments
            order = [d % value.rank for d in dims]
        else:
            order = list(range(value.rank))
            order[arguments[0]], order[arguments[1]] = order[arguments[1]], order[arguments[0]]
        if order[0] != 0:
            raise _Obstacle("moves the batch axis")
        axes = tuple(order.index(axis % value.rank) - value.rank for axis in value.axes)
        self.pointwise(node, maps, replace(value, axes=axes))

    def split(self, node: fx.Node, maps: list[fx.Node]) -> None:
        value = self.values[maps[0]]
        a = _bound(node, input=None, sections=None, dim=0)
        self.channel_axis(node.kwargs.get("dim", a["dim"]), value)
        self.pointwise(node, maps, replace(value, count=2))

    def getitem(self, node: fx.Node, maps: list[fx.Node]) -> None:
        value, index = self.values[maps[0]], node.args[1]
        if value.count is not None:
            self.pointwise(node, maps, value if isinstance(index, slice) else replace(value, count=None))
            return
        items = index if isinstance(index, tuple) else (index,)
        full = slice(None)
        if len(items) > value.rank or not all(isinstance(i, slice) for i in items):
            raise _Obstacle(f"takes the entries {index} of a map")
        if items[0] != full or any(item != full and i - value.rank in value.axes for i, item in enumerate(items)):
            raise _Obstacle(f"slices rows, columns or images: {index}")
        self.pointwise(node, maps)

    def pad(self, node: fx.Node, maps: list[fx.Node]) -> None:
        a = _bound(node, input=None, pad=None, mode="constant", value=None)
        amounts = tuple(a["pad"])
        if len(amounts) > 4:
            raise _Obstacle("pads more than rows and columns")
        self.padding(node, maps, amounts, value=float(a["value"] or 0.0), mirrored="" if a["mode"] == "constant" else a["mode"])

    def padding(self, node: fx.Node, maps: list[fx.Node], amounts: tuple[int, ...], value: float = 0.0, mirrored: str = "") -> None:
        left, right, top, bottom = (*amounts, 0, 0)[:4]
        self.window(node, maps, Window("pad", (1, 1), pads=(top, bottom, left, right), value=value, mirrored=mirrored))


def conv_window(module: nn.Conv2d) -> Window:
    window = windows.conv(module.kernel_size, module.stride, module.padding, module.dilation)
    return replace(window, mirrored=module.padding_mode) if module.padding_mode != "zeros" and window.padded else window


def batch_norm_may_stay(training: bool, running_mean) -> None:
    if training:
        raise _Obstacle("normalises by batch statistics in train mode; call model.eval() first")
    if running_mean is None:
        raise _Obstacle("keeps no running statistics: it normalises by those of the whole map", keeps_grid=True)


def _reads_size(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel", "ndimension")
    return node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")


def _bound(node: fx.Node, **parameters) -> dict[str, object]:
    """Arguments by name; what the call leaves out takes the given default."""
    names = list(parameters)
    out = dict(parameters)
    out.update(zip(names, node.args, strict=False))
    out.update({k: v for k, v in node.kwargs.items() if k in out})
    for name, value in out.items():
        numbers = []
        if name not in _TENSORS:
            fx.map_arg(value, numbers.append)
        if numbers:
            raise _Obstacle(f"takes {name} from the graph ({numbers[0]}), so it depends on the size of the map")
    return out


_TENSORS = frozenset(("input", "self", "weight", "bias", "running_mean", "running_var", "tensors"))


__all__ = ["Constant", "Map", "Network", "NotConvertible", "Pooled", "Size", "Step", "read"]
