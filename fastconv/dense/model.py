"""The converted network: a GraphModule that carries its report and can take fragments through its tail a few at a time."""

from __future__ import annotations

import copy
import operator

import torch
from torch import Tensor, fx, nn

from ..fragments import Fragments

Pair = tuple[int, int]


class DenseModel(fx.GraphModule):
    """What `to_dense` returns: the network's own modules under their own names (so its `state_dict` is the original's), in a new graph.

    Attributes:
        report: what was converted and how, the cost of each choice, and the verified error.
        chunk_bytes: how much memory the maps of one run through the fragmented tail may take; fewer fragments at a time keep them in the
            processor's caches, and bound the memory. None: all at once.
    """

    def __init__(
        self, root: nn.Module, graph: fx.Graph, report=None, cuts: tuple[tuple[str, float], ...] = (), chunk_bytes: int | None = None
    ):
        # (name of a node that gives Fragments and that all behind it depends on alone, bytes that what follows needs for each of its bytes)
        self.__dict__.update(cuts=tuple(cuts), chunk_bytes=chunk_bytes, report=report)
        super().__init__(root, graph, class_name="DenseModel")
        # GraphModule takes over what the graph reads; a checkpoint also holds what it does not, such as batch counters.
        for name in root.state_dict(keep_vars=True):
            put_attribute(self, name, root)

    def recompile(self):
        code = super().recompile()
        cls = type(self)
        cls.all_at_once = cls.forward
        self.__dict__["_segments"] = (
            [_function(graph) for graph in _segments(self.graph, [name for name, _ in self.cuts])] if self.cuts else []
        )

        def forward(self, x):
            if not self._segments or self.chunk_bytes is None:
                return self.all_at_once(x)
            leaves = list(self._leaves(0, x))
            maps = [_stitched([leaf[i] for leaf in leaves]) for i in range(len(leaves[0]))]
            return self._segments[-1](self, maps)

        cls.forward = forward
        return code

    def _leaves(self, index: int, x):
        """The results of the segments from `index` on, part by part: where the maps to come would not fit into `chunk_bytes`, the batch is
        split."""
        x = self._segments[index](self, x)
        if index == len(self._segments) - 2:
            yield x
            return
        entry = x.tensor[:1].numel() * x.tensor.element_size() * self.cuts[index][1]
        entries = x.tensor.shape[0]
        if entries == 0:
            yield from self._leaves(index + 1, x)
            return
        parts = -(-entries // max(1, int(self.chunk_bytes / entry)))
        for part in x.parts(-(-entries // parts)):
            yield from self._leaves(index + 1, part)

    def __deepcopy__(self, memo) -> DenseModel:
        holder = nn.Module()
        holder.__dict__.update(
            copy.deepcopy({k: v for k, v in self.__dict__.items() if k in ("_modules", "_parameters", "_buffers")}, memo)
        )
        out = DenseModel(holder, copy.deepcopy(self.graph, memo), self.report, self.cuts, self.chunk_bytes)
        out.training = self.training
        return out

    def __reduce__(self):
        raise TypeError("DenseModel: save the state_dict(), which is the original network's, and convert again after loading it")


def put_module(holder: nn.Module, name: str, module: nn.Module) -> None:
    """Registers `module` under a dotted name, making the folders on the way."""
    *path, last = name.split(".")
    for part in path:
        if part not in holder._modules:
            holder.add_module(part, nn.Module())
        holder = holder._modules[part]
    holder.add_module(last, module)


def put_attribute(holder: nn.Module, name: str, source: nn.Module) -> None:
    """Registers the parameter, buffer or attribute `name` of `source` under the same dotted name, unless it is there already."""
    *path, last = name.split(".")
    for part in path:
        source = getattr(source, part)
        if part not in holder._modules:
            holder.add_module(part, nn.Module())
        holder = holder._modules[part]
    if last in holder._parameters or last in holder._buffers or hasattr(holder, last):
        return
    if last in source._parameters:
        holder.register_parameter(last, source._parameters[last])
    elif last in source._buffers:
        holder.register_buffer(last, source._buffers[last], persistent=last not in source._non_persistent_buffers_set)
    else:
        setattr(holder, last, getattr(source, last))


def _stitched(parts: list[Fragments]) -> Tensor:
    """The dense map of consecutive parts."""
    if torch.is_grad_enabled() and any(p.requires_grad for p in parts):
        return Fragments.join(parts).stitch()
    out = None
    for part in parts:
        if out is None:
            format = torch.channels_last if part.tensor.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
            shape = (part.batch, part.tensor.shape[1], *part.dense_size)
            out = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=format)
        part.write_to(out)
    return out


def _function(graph: fx.Graph):
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, "<fastconv DenseModel>", "exec"), namespace)  # noqa: S102  (generated by torch.fx from the graph above)
    return namespace["forward"]


def _segments(graph: fx.Graph, cuts: list[str]) -> list[fx.Graph]:
    """The graph cut behind the named nodes; what stitches the outputs is a segment of its own, run on all of them."""
    nodes = list(graph.nodes)
    *body, output = nodes
    final = [n for n in body if n.op == "call_method" and n.target == "stitch"]
    constants = _constants(body)
    edges = [n for n in body if n.name in cuts]
    segments: list[fx.Graph] = []
    part = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in body:
        if node in final:
            continue
        values[node] = _copy(part, node, values, constants)
        if node in edges:
            part.output(values[node])
            segments.append(part)
            part = fx.Graph()
            values = {node: part.placeholder("x")}
    results = [n.args[0] for n in final]
    part.output(tuple(values[r] for r in results))
    segments.append(part)
    last = fx.Graph()
    maps = last.placeholder("maps")
    stitched = {node: last.call_function(operator.getitem, (maps, i)) for i, node in enumerate(final)}
    last.output(fx.map_arg(output.args[0], lambda n: stitched[n]))
    segments.append(last)
    return segments


def _copy(part: fx.Graph, node: fx.Node, values: dict, constants: set[fx.Node]) -> fx.Node:
    """The node in `part`; what is computed from parameters alone is computed again behind every cut."""

    def value(n: fx.Node) -> fx.Node:
        if n not in values:
            if n not in constants:
                raise RuntimeError(f"DenseModel: {n.name} crosses a cut")
            values[n] = _copy(part, n, values, constants)
        return values[n]

    return part.node_copy(node, value)


def _constants(nodes: list[fx.Node]) -> set[fx.Node]:
    """The nodes that do not depend on the image."""
    found: set[fx.Node] = set()
    for node in nodes:
        if node.op == "get_attr" or (node.op != "placeholder" and all(n in found for n in node.all_input_nodes)):
            found.add(node)
    return found


def find_cuts(graph: fx.Graph, held: dict[fx.Node, tuple[Pair, float]]) -> tuple[tuple[str, float], ...]:
    """Where the batch may be split: the first node behind each dealing out that gives Fragments and that everything behind it depends on
    alone.

    held: for the nodes that give Fragments, their total stride and the number of elements of their dense map.
    Returns (name, how many bytes the rest of the network needs for each byte of its value).
    """
    nodes = list(graph.nodes)
    *body, output = nodes
    stitches = [n for n in body if n.op == "call_method" and n.target == "stitch"]
    if not stitches or any(n not in stitches for n in output.all_input_nodes) or any(u is not output for n in stitches for u in n.users):
        return ()
    order = {n: i for i, n in enumerate(nodes)}
    reach, last = 0, None
    constants = _constants(body)
    cuts = []
    for i, node in enumerate(body):
        if node in constants:
            continue
        if reach <= i and node in held and held[node][0] != last:
            last = held[node][0]
            largest = max((held[n][1] for n in body[i:] if n in held), default=0.0)
            # The largest step reads one map and writes another.
            cuts.append((node.name, 2 * largest / held[node][1]))
        reach = max([reach, *(order[u] for u in node.users)])
    return tuple(cuts)
