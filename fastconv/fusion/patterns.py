"""Finds the chains in a traced graph: which nodes one fused operator stands for, in every order that networks use.

A chain ends where its value has a second reader, where the next node is none that the operator computes, or where a module on the way is
watched by hooks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx, nn

from .._trace import _in_place
from . import nodes as N
from .tracing import is_watched


@dataclass
class Stage:
    """A convolution with the norm and the activation behind it; `norm_acts`: the norm's module applies the activation itself."""

    conv: nn.Conv2d
    norm: nn.Module | None = None
    activation: str = "identity"
    norm_acts: bool = False


@dataclass
class Match:
    """Nodes that one operator replaces. kind: "separable"; "depthwise" alone; "scaled": squeeze-and-excitation's product and the pointwise
    convolution behind it; "conv": any other convolution with its norm."""

    kind: str
    conv: fx.Node
    nodes: list[fx.Node]
    source: fx.Node
    input_activation: str = "identity"
    depthwise: Stage | None = None
    pointwise: Stage | None = None
    residual: fx.Node | None = None
    scale: fx.Node | None = None
    skipped: list[fx.Node] = field(default_factory=list)

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]


class Finder:
    def __init__(self, graph: fx.Graph, root: nn.Module, training: bool):
        self.graph, self.root, self.training = graph, root, training
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.taken: set[fx.Node] = set()
        self.notes: dict[fx.Node, str] = {}

    def run(self) -> list[Match]:
        found = []
        convs = [node for node in self.graph.nodes if N.is_conv(self._module(node))]
        for node in convs:
            if N.is_depthwise(self._module(node)) and node not in self.taken:
                found += self._from_depthwise(node)
        for node in self.graph.nodes:
            found += self._scaled(node)
        if not self.training:  # batch statistics leave nothing to fold
            for node in convs:
                if node not in self.taken and not N.is_depthwise(self._module(node)):
                    found += self._convolution(node)
        # Last, because an activation is cheaper behind the convolution that it follows.
        for match in found:
            if match.depthwise is not None:
                self._prologue(match)
        return sorted(found, key=lambda match: self.order[match.last])

    # ---- walking -----------------------------------------------------------------------------------------------------------------

    def _module(self, node) -> nn.Module | None:
        module = N.module_of(node, self.root)
        return None if module is None or is_watched(module) else module

    def _next(self, node: fx.Node, walked: list[fx.Node]) -> fx.Node | None:
        """The only reader of a node, behind identities, which are added to `walked`; None where it has none or more than one."""
        while len(node.users) == 1:
            reader = next(iter(node.users))
            if not N.passes_through(reader, self.root, self.training) or self._is_watched(reader):
                return None if self._is_watched(reader) or reader in self.taken else reader
            walked.append(reader)
            node = reader
        return None

    def _is_watched(self, node: fx.Node) -> bool:
        return node.op == "call_module" and self._module(node) is None

    def _stage(self, match: Match, conv: fx.Node) -> Stage:
        """The convolution and what follows it; match.nodes grows by what the stage takes."""
        stage = Stage(self._module(conv))
        match.nodes.append(conv)
        walked: list[fx.Node] = []
        reader = self._next(conv, walked)
        found = N.norm(reader, self.root) if reader is not None else None
        if found is not None:
            stage.norm, hidden = found
            stage.activation, stage.norm_acts = hidden or "identity", hidden is not None
            match.nodes += [*walked, reader]
        return stage

    def _activation(self, match: Match, stage: Stage) -> None:
        if stage.norm_acts:
            return
        walked: list[fx.Node] = []
        reader = self._next(match.last, walked)
        name = N.activation(reader, self.root) if reader is not None else None
        if name is not None:
            stage.activation = name
            match.nodes += [*walked, reader]

    def _residual(self, match: Match, stage: Stage) -> None:
        if stage.norm_acts:
            return
        walked: list[fx.Node] = []
        reader = self._next(match.last, walked)
        terms = N.addition(reader) if reader is not None else None
        if terms is None or not all(isinstance(term, fx.Node) for term in terms) or terms[0] is terms[1]:
            return
        chain = walked[-1] if walked else match.last
        other = terms[1] if terms[0] is chain else terms[0]
        if _in_place(reader, self.root) and terms[0] is not chain:
            self.notes[match.conv] = "the sum is written into its other operand"
            return
        match.residual = other
        match.nodes += [*walked, reader]

    # ---- patterns ----------------------------------------------------------------------------------------------------------------

    def _from_depthwise(self, conv: fx.Node) -> list[Match]:
        match = Match("depthwise", conv, [], conv.args[0])
        if not isinstance(match.source, fx.Node):
            return []
        match.depthwise = self._stage(match, conv)
        self._activation(match, match.depthwise)
        alone = list(match.nodes)
        walked: list[fx.Node] = []
        reader = self._next(match.last, walked)
        if reader is not None and N.is_pointwise(self._module(reader)):
            match.kind = "separable"
            match.nodes += walked
            self._finish(match, reader)
        else:
            self.notes[conv] = self._what_follows((match.nodes + walked)[-1])
        if not self._moves(match):
            match.kind, match.pointwise, match.residual, match.nodes = "depthwise", None, None, alone
        return self._take([match] if self._moves(match) else [])

    def _what_follows(self, node: fx.Node) -> str:
        readers = list(node.users)
        if len(readers) != 1:
            return f"no pair: its result has {len(readers)} readers"
        module = N.module_of(readers[0], self.root)
        what = type(module).__name__ if module is not None else N.name_of(readers[0])
        return f"no pair: followed by {what}" + (", watched by hooks" if self._is_watched(readers[0]) else "")

    def _prologue(self, match: Match) -> None:
        node, walked = match.source, []
        while N.passes_through(node, self.root, self.training) and len(node.users) == 1 and not self._is_watched(node):
            walked.insert(0, node)
            node = node.args[0]
        name = N.activation(node, self.root)
        if name is None or len(node.users) != 1 or node in self.taken or self._is_watched(node):
            return
        source = node.args[0]
        own = N.memory_of(source, self.root) is source and source.op in ("call_module", "call_function")
        if _in_place(node, self.root) and not own:
            # Whoever holds the map that is overwritten may be outside of this graph.
            self.notes[match.conv] = "the activation in front is in place on a map from outside, and stays"
            return
        before = match.source, match.nodes
        match.input_activation, match.source, match.nodes = name, source, [node, *walked, *match.nodes]
        if self._moves(match):
            self._take([match])
        else:
            match.input_activation, (match.source, match.nodes) = "identity", before

    def _scaled(self, product: fx.Node) -> list[Match]:
        """Squeeze-and-excitation: the factors come from the map's other reader, its pool."""
        terms = N.product(product)
        if terms is None or not all(isinstance(term, fx.Node) for term in terms) or terms[0] is terms[1]:
            return []
        walked: list[fx.Node] = []
        conv = self._next(product, walked)
        if conv is None or conv in self.taken or not N.is_pointwise(self._module(conv)):
            return []
        maps = [term for term in terms if self._is_pooled(term, product)]
        if len(maps) != 1 or (_in_place(product, self.root) and terms[0] is not maps[0]):
            return []
        match = Match("scaled", conv, [product, *walked], maps[0])
        match.scale = terms[1] if terms[0] is maps[0] else terms[0]
        self._finish(match, conv)
        return self._take([match] if self._moves(match) else [])

    def _is_pooled(self, node: fx.Node, product: fx.Node) -> bool:
        readers = [reader for reader in node.users if reader is not product]
        if len(readers) != 1:
            return False
        module = N.module_of(readers[0], self.root)
        return isinstance(module, nn.AdaptiveAvgPool2d) or N.name_of(readers[0]) in ("mean", "adaptive_avg_pool2d")

    def _finish(self, match: Match, conv: fx.Node) -> None:
        match.pointwise = self._stage(match, conv)
        self._residual(match, match.pointwise)
        self._activation(match, match.pointwise)

    def _convolution(self, conv: fx.Node) -> list[Match]:
        match = Match("conv", conv, [], conv.args[0])
        if not isinstance(match.source, fx.Node):
            return []
        match.pointwise = self._stage(match, conv)
        if match.pointwise.norm is None:
            return []
        self._residual(match, match.pointwise)
        self._activation(match, match.pointwise)
        return self._take([match] if self._moves(match) else [])

    def _take(self, found: list[Match]) -> list[Match]:
        for match in found:
            match.skipped = [node for node in match.nodes if N.passes_through(node, self.root, self.training)]
            self.taken.update(match.nodes)
        return found

    def _moves(self, match: Match) -> bool:
        """Whether the first node may be computed where the last one is: nothing in between overwrites what it reads."""
        first, last = min(self.order[node] for node in match.nodes), self.order[match.last]
        memory = N.memory_of(match.source, self.root)
        own = set(match.nodes)
        for node in self.graph.nodes:
            inside = first < self.order[node] < last and node not in own
            if inside and node.args and isinstance(node.args[0], fx.Node) and node.op not in ("placeholder", "output", "get_attr"):
                if _in_place(node, self.root) and N.memory_of(node.args[0], self.root) is memory:
                    self.notes[match.conv] = f"{node.name} overwrites its input before the chain ends"
                    return False
        return True
