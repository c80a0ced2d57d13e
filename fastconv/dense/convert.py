"""`to_dense`: a trained strided network, turned into one that gives its map at every position."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from .. import _arguments as check
from ..receptive_field import Field, fields
from ..spatial import Map, Network, NotConvertible, read
from . import fusion
from . import verify as proof
from .model import DenseModel, find_cuts, put_attribute
from .plan import METHODS, Plan, make_plan
from .rates import KEEP_ALL, Pair, Rate, heads, rates, total_stride
from .report import DenseReport, rows
from .rewrite import Rewriter


def to_dense(
    model: nn.Module,
    output_stride: int | Pair = 1,
    method: str = "dilated",
    example_input: Tensor | None = None,
    verify: bool = True,
    *,
    fully_convolutional: bool = False,
    tune: bool = False,
    chunk_bytes: int | str | None = "auto",
) -> DenseModel:
    r"""Turns a trained strided network into one that gives a dense map, exactly, with the same parameters.

    With k = (total stride) / output_stride, ``dense(x)[..., ::k, ::k]`` equals ``model(x)``. With :math:`R_l` the product of the strides in
    front of layer l that were given up, layer l gets stride 1 (or what of its stride the output stride keeps), dilation :math:`d_l R_l` and
    padding :math:`p_l R_l`; a max pool pads with minus infinity. The same numbers come from fragments: the layer as it was, on
    :math:`R_l^2` images.

    Sources: Giusti et al. 2013 (arXiv:1302.1700) for fragments, Li et al. 2014 (arXiv:1412.4526) and Yu et al., "Dilated Residual
    Networks", 2017 (arXiv:1705.09914) for dilation, Long et al. 2015 (arXiv:1411.4038) and Sermanet et al. 2014 (arXiv:1312.6229) for both
    questions.

    Args:
        model: an nn.Module of one image (N, C, H, W), in eval mode, that torch.fx can trace: convolutions (grouped, dilated, depthwise,
            1x1), max and
            average pools (ceil mode too), constant padding, norms with stored statistics, anything pointwise, sums, products, cat. It is
            not changed; the result shares its parameters.
        output_stride: stride of the dense output, int or pair, a divisor of the network's.
        method: "dilated", "fragments", or "auto": the cheaper of the two, layer by layer, by the cost model that the report prints.
        example_input: an image batch, for branches on its shape, for "auto" (which plans for its size), and to see whether "SAME" padding
            is symmetric.
        verify: compare with `model` in float64 at the aligned positions, on a small random image, and keep the error in the report.
        fully_convolutional: drop the global average pool of a classifier and slide what follows it, linear layers as 1x1 convolutions.
        tune: with "auto", measure the choices on `example_input` in any case, not only where the predictions are close.
        chunk_bytes: memory for the maps of one run through the fragmented part; fewer fragments at a time stay in the caches. "auto" asks
            the cost
            model, None takes all at once.

    Returns:
        A torch.fx.GraphModule with a `report`, and the original's state_dict.

    Raises:
        NotConvertible (a ValueError): a part has no exact dense form, or cannot be traced; the message names the module and the reason.
        ValueError: an argument that does not fit; an output stride that does not divide the network's.
        RuntimeError: the float64 comparison failed.
    """
    if isinstance(model, DenseModel):
        raise ValueError("model: this is a DenseModel already; convert the network that it was made from")
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}; supported are {', '.join(METHODS)}")
    if tune and (method != "auto" or example_input is None):
        raise ValueError('tune: measures the choices of method="auto" on example_input; give both')
    if example_input is not None and (not isinstance(example_input, Tensor) or example_input.dim() != 4):
        got = tuple(example_input.shape) if isinstance(example_input, Tensor) else type(example_input).__name__
        raise ValueError(f"example_input: must be a tensor (N, C, H, W), got {got}")
    if not (chunk_bytes in ("auto", None) or (isinstance(chunk_bytes, int) and chunk_bytes > 0)):
        raise ValueError(f'chunk_bytes: must be a number of bytes, "auto" or None, got {chunk_bytes!r}')
    wanted = check.pair("to_dense", "output_stride", output_stride, 1)

    network = read(model, example_input)
    rate = rates(network, wanted)
    head = heads(network, rate)
    if head and not fully_convolutional:
        raise NotConvertible(
            head[0],
            "averages over the whole map in front of the head; pass fully_convolutional=True to slide the head over the dense map instead",
        )
    if fully_convolutional:
        head = [s.name for s in network.steps.values() if s.role == "global" and _ends_the_maps(network, s.node)]
        if not head:
            raise ValueError("fully_convolutional: the network has no global average pool in front of its output")
        network = read(model, example_input, frozenset(head))
        rate = rates(network, wanted)
    _check_stride(network, wanted)
    _check_same_padding(network, rate, example_input)

    least = proof.least_size(network)
    if example_input is not None and (example_input.shape[2] < least[0] or example_input.shape[3] < least[1]):
        raise ValueError(
            f"example_input: must have at least {least[0]}x{least[1]} pixels for this network, got {tuple(example_input.shape)}"
        )
    channels = proof.input_channels(network) if example_input is None else example_input.shape[1]

    def candidate(plan: Plan) -> DenseModel:
        return build(model, network, rate, plan, least, chunk_bytes)

    plan = make_plan(network, rate, method, least, example_input, channels, candidate, chunk_bytes is not None, tune)
    dense = build(model, network, rate, plan, least, chunk_bytes)
    dense.report = DenseReport(
        type(model).__name__,
        wanted,
        total_stride(network),
        method,
        head,
        rows(network, rate, plan),
        plan,
        _output_field(network, rate, least),
    )
    if verify:
        prove(dense, model, network, rate, head, least, example_input)
    return dense


def _output_field(network: Network, rate: dict[fx.Node, Rate], least: Pair) -> Field | None:
    """An output of the dense network sees what the strided network's sees; only the jump is another."""
    maps = network.output_maps()
    if len(maps) != 1:
        return None
    return replace(fields(network, least)[maps[0]], jump=rate[maps[0]].kept)


def build(
    model: nn.Module, network: Network, rate: dict[fx.Node, Rate], plan: Plan, least: Pair, chunk_bytes: int | str | None
) -> DenseModel:
    rewriter = Rewriter(network, rate, plan.layout, least)
    holder, graph = rewriter.run()
    for name in model.state_dict(keep_vars=True):
        put_attribute(holder, name, model)
    calls = fusion.apply(graph, holder, fusion.find(graph, holder.get_submodule))
    cuts = ()
    if chunk_bytes is not None:
        held = {calls.get(new, new): (stride, plan.elements[old]) for new, (old, stride) in rewriter.fragments.items()}
        cuts = find_cuts(graph, held)
    dense = DenseModel(holder, graph, cuts=cuts, chunk_bytes=plan.chunk_bytes if chunk_bytes == "auto" else chunk_bytes)
    # Not train(): that would set the mode of the network's own modules, which are in it.
    modes = {name: module.training for name, module in model.named_modules(remove_duplicate=False)}
    own = set(model.modules())
    for name, module in dense.named_modules():
        if module not in own:
            module.training = modes.get(name, model.training)
    return dense


def prove(dense: DenseModel, model: nn.Module, network: Network, rate: dict, head: list[str], least: Pair, example: Tensor | None) -> None:
    """Fills the report's errors in; raises where they are more than rounding."""
    strided, total = model, total_stride(network)
    report = dense.report
    branches = network.graph_module.meta["branches"]
    if branches:
        report.notes.append(
            f"{branches} branches on the image's shape went as for {tuple(example.shape)}; other sizes might have gone elsewhere"
        )
    image = proof.example_of(network, total, least, example, whole=bool(branches))
    if head:
        # The same conversion with every stride kept is the reference.
        kept = rates(network, KEEP_ALL)
        strided = build(model, network, kept, make_plan(network, kept, "dilated", least, None, image.shape[1]), least, None)
    if head and not branches:
        # At one position the slid head must be the classifier itself.
        one = torch.randn(2, image.shape[1], *least, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        report.head_error = proof.error_at_aligned(strided, _AtOnePosition(model), [None], one)
    outputs = [rate[node] if isinstance(network.values[node], Map) else None for node in network.output.all_input_nodes]
    report.error = proof.error_at_aligned(dense, strided, outputs, image)
    report.verified_on = tuple(image.shape)
    if not max(report.error, report.head_error or 0.0) <= proof.LIMIT:
        if proof.error_at_aligned(model, model, None, image) > proof.LIMIT:
            raise NotConvertible("", "two runs on the same image differ (random numbers drawn in forward?), so no dense map is exact")
        raise RuntimeError(
            f"to_dense: the dense network differs from the strided one by {report.error:.1e} (head: {report.head_error}) in float64; please report this model"
        )


class _AtOnePosition(nn.Module):
    """The classifier's vector as a map of one position."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)
        return out.reshape(*out.shape[:2], 1, 1)


def _ends_the_maps(network: Network, node: fx.Node) -> bool:
    """Whether what was pooled here never meets a map again."""
    name = network.steps[node].name
    for step in network.steps.values():
        for source in step.node.all_input_nodes:
            by = getattr(network.values[source], "by", frozenset())
            if name in by:
                return False
    return True


def _check_stride(network: Network, wanted: Pair) -> None:
    total = total_stride(network)
    for axis, name in enumerate(("rows", "columns")):
        if total[axis] % wanted[axis]:
            choices = [d for d in range(1, total[axis] + 1) if total[axis] % d == 0]
            raise ValueError(
                f"output_stride: this network's total stride is {total[axis]} along {name}; got {wanted[axis]}, possible are {choices}"
            )


def _check_same_padding(network: Network, rate: dict[fx.Node, Rate], example: Tensor | None) -> None:
    """Says at once, where the example tells, what the converted layer would say when it runs."""
    if example is None:
        return
    lengths = proof.map_lengths(network, tuple(example.shape[2:]))
    for node, step in network.steps.items():
        if step.window is not None and step.window.same and not (rate[step.sources[0]].untouched and rate[node].untouched):
            try:
                step.window.resolved(lengths[step.sources[0]])
            except ValueError as error:
                raise NotConvertible(step.name, str(error)) from None
