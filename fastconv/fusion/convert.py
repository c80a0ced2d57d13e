"""`fuse`: the depthwise-separable convolutions of somebody's trained model, run by the fused operators."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import cost
from . import nodes as N
from .blocks import PLANS, FusedModule, Plan, install, remove
from .layers import Fused
from .patterns import Finder, Match
from .report import FuseReport, Row, chain_of
from .tracing import CannotTrace, Region, _in_mode, frames, is_watched, regions, trace

_WRAPPERS = {
    "DistributedDataParallel": "wrap the fused model",
    "DataParallel": "wrap the fused model",
    "FullyShardedDataParallel": "shard the fused model",
    "FSDPModule": "shard the fused model",
    "OptimizedModule": "compile the fused model",
    "ScriptModule": "fuse the model it was made from",
}
# Relative L2 distance from the original beyond which a difference cannot be rounding.
_LIMITS = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.3}

# By how much the fused chain must be slower to be left: what repeated measurements differ by, and what the probes are good for.
_MEASURED_SLACK, _PREDICTED_SLACK = 0.02, 0.15


@dataclass
class _Draft:
    """A module of the model with the chains found in its own forward, in one mode."""

    name: str
    region: Region
    training: bool
    matches: list[Match]
    notes: dict[int, str]

    def conv_of(self, match: Match) -> nn.Conv2d:
        return self.region.module.get_submodule(match.conv.target)


def fuse(
    model: nn.Module, example_input: Tensor | tuple | None = None, inplace: bool = False, measure: bool = False
) -> tuple[nn.Module, FuseReport]:
    r"""Runs the depthwise-separable convolutions of a trained model as fused operators, without a change to its results beyond rounding.

    Each chain of the form

    .. math::
        \mathrm{act}_2(\mathrm{norm}_2(w_p * \mathrm{act}_1(\mathrm{norm}_1(w_d * \mathrm{act}_0(x) + b_d)) + b_p) + \mathrm{residual})

    whose norms, activations, biases and residual may be absent, becomes one :func:`fastconv.functional.depthwise_separable_conv2d`: the
    orders of Xception (Chollet 2017, arXiv:1610.02357), MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381), DeepLabv3+ (Chen et al. 2018,
    arXiv:1802.02611), timm, torchvision, mmcv and segmentation_models_pytorch. With squeeze-and-excitation in the middle (Hu et al. 2018,
    arXiv:1709.01507) the depthwise half and the product with the pointwise half become an operator each; a depthwise convolution with
    something else behind it (ConvNeXt, large-kernel attention) runs by fastconv's own; other convolutions have their norms folded.

    The model keeps its class, its modules and their names, so a `state_dict` loads from and into the original. A module that holds a chain
    gets a forward of its own, which is used only while it is known to be right; hooks, replaced modules, parametrizations or an unusual
    call bring the original forward back. In eval mode batch norms are folded (in float64, once, and again when their tensors change). In
    train mode they use exact batch statistics, and the operator is cut there. Shared weights stay shared. Call it again after changing
    options of the model that decide about its control flow.

    Args:
        model: any nn.Module; convolutions in torch.nn.Conv2d (or timm's Conv2dSame), in a forward that torch.fx can follow, at least in the
            blocks that hold the chains. Under DistributedDataParallel, FullyShardedDataParallel or torch.compile: fuse first, then wrap.
        example_input: an input, or a tuple of inputs, as in use: size, dtype, memory format and device. Times are predicted for it, and the
            results compared.
        inplace: change `model` itself; by default a deep copy.
        measure: decide by measured times of every chain on inputs like the example's (which it needs), not by the predicted ones.

    Returns:
        (model, report). A chain whose library version is faster, as predicted, or as measured, is left as it was; `print(report)` is a
        table of what was replaced, what was left and why, with times and the distance from the original on the example.

    Raises:
        ValueError: a wrapped, compiled or scripted model; measure=True without example_input.
        TypeError: no nn.Module, or an example that holds no tensor.
        RuntimeError: the results differ by more than rounding, and the model is given back as it was; please report such a model.
    """
    example = _check(model, example_input, measure)
    work = model if inplace else _copied(model)
    remove(work)
    report = FuseReport(type(work).__name__)
    expected = _run(work, example) if example is not None else None
    drafts = _drafts(work, report)
    plans = _install(drafts, frozenset())
    names = {id(module): name for name, module in work.named_modules()}
    rows = _rows(work, drafts, plans, names)
    if example is not None:
        slower = _decide(work, example, plans, rows, measure)
        if slower:
            remove(work)
            plans = _install(drafts, frozenset(slower))
        found = _run(work, example)
        report.error = max((_distance(a, b) for a, b in zip(_tensors(found), _tensors(expected), strict=True)), default=0.0)
        limit = max((_LIMITS.get(t.dtype, 1e-3) for t in _tensors(expected)), default=1e-3)
        if not report.error <= limit:
            remove(work)
            raise RuntimeError(
                f"fuse: the fused {report.model} differs from the original by {report.error:.1e} (relative L2) on example_input; "
                "the model was left as it was; please report it"
            )
        if measure and plans:
            _settle_whole(work, example, drafts, slower, rows, report)
    report.rows = list(rows.values())
    return work, report


# ---- arguments -------------------------------------------------------------------------------------------------------------------


def _check(model: nn.Module, example, measure: bool) -> tuple | None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        for base in type(module).__mro__:
            if base.__name__ in _WRAPPERS and base.__module__.startswith("torch"):
                where = f"its part {name!r}" if name else "it"
                raise ValueError(
                    f"model: {where} is wrapped in {base.__name__}, which keeps hold of the modules inside and of how they are called; "
                    f"fuse the plain model first, then {_WRAPPERS[base.__name__]}"
                )
    if measure and example is None:
        raise ValueError("measure: times every chain on inputs like example_input's; give one")
    if example is None:
        return None
    example = example if isinstance(example, tuple) else (example,)
    if not any(isinstance(item, Tensor) for item in example):
        got = type(example[0]).__name__ if example else "an empty tuple"
        raise TypeError(f"example_input: must be a tensor, or a tuple with one, got {got}")
    return example


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ValueError(f"model: cannot be copied ({error}); pass inplace=True") from error


# ---- finding ---------------------------------------------------------------------------------------------------------------------


def _drafts(model: nn.Module, report: FuseReport) -> list[_Draft]:
    drafts = []
    for training in (False, True):
        failures: dict[str, str] = {}
        homes: dict[str, None] = {}
        for region in regions(model, training, failures):
            for match in _found(region, training)[0]:
                home = _home(match)
                homes[".".join(part for part in (region.name, home) if part)] = None
        for home in homes:
            try:
                region = trace(model.get_submodule(home), training, home)
            except CannotTrace as error:
                failures[home] = str(error)
                continue
            matches, notes = _found(region, training)
            if matches:
                drafts.append(_Draft(home, region, training, matches, notes))
        if not training:
            report.failures = {name: reason for name, reason in failures.items() if _holds_depthwise(model.get_submodule(name))}
    return drafts


def _found(region: Region, training: bool) -> tuple[list[Match], dict[int, str]]:
    finder = Finder(region.graph, region.module, training)
    matches = finder.run()
    if training:
        # Nothing is gained by the others there.
        matches = [match for match in matches if match.depthwise is not None]
    return matches, {id(region.module.get_submodule(node.target)): note for node, note in finder.notes.items()}


def _home(match: Match) -> str:
    """The innermost module whose forward runs the whole chain."""
    stacks = [frames(node) for node in match.nodes]
    common = stacks[0]
    for stack in stacks[1:]:
        shared = 0
        while shared < min(len(common), len(stack)) and common[shared] == stack[shared]:
            shared += 1
        common = common[:shared]
    return common[-1] if common else ""


def _holds_depthwise(module: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in module.modules())


def _install(drafts: list[_Draft], slower: frozenset[int]) -> list[Plan]:
    plans = []
    for draft in drafts:
        kept = [match for match in draft.matches if id(draft.conv_of(match)) not in slower]
        if kept:
            plans.append(Plan(draft.region, draft.training, kept))
    install(plans)
    return plans


# ---- rows ------------------------------------------------------------------------------------------------------------------------


def _rows(model: nn.Module, drafts: list[_Draft], plans: list[Plan], names: dict[int, str]) -> dict[int, Row]:
    """By the id of the chain's first convolution; of the outermost module where several hold it."""
    rows: dict[int, Row] = {}
    layers: dict[int, tuple[Match, Fused, str]] = {}
    for draft, plan in sorted(zip(drafts, plans, strict=True), key=lambda pair: len(pair[0].name)):
        if not draft.training:
            for match, layer in zip(draft.matches, plan.layers, strict=True):
                key = id(draft.conv_of(match))
                layers.setdefault(key, (match, layer, draft.notes.get(key, "")))
    for module in model.modules():
        key = id(module)
        if key in layers:
            match, layer, note = layers[key]
            rows[key] = Row(names[key], layer.kind, chain_of(layer, match.residual is not None), why=note)
        elif isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            rows[key] = Row(names[key], "depthwise", str(module), replaced=False, why=_why_left(model, module, names[key]))
    return rows


def _why_left(model: nn.Module, conv: nn.Conv2d, name: str) -> str:
    if is_watched(conv):
        return "watched by hooks, which would no longer run"
    if nn.utils.parametrize.is_parametrized(conv):
        return "parametrized: its weight is computed anew in every call"
    if not N.is_conv(conv):
        kind = f"padding_mode={conv.padding_mode!r}" if conv.padding_mode != "zeros" else f"{type(conv).__name__} computes something else"
        return f"{kind}, which no operator here does"
    parts = name.split(".")
    for end in range(len(parts) - 1, -1, -1):
        owner = model.get_submodule(".".join(parts[:end]))
        if not isinstance(owner, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            try:
                trace(owner, False)
            except CannotTrace as error:
                return str(error)
            return "not called as a module in a forward that could be followed"
    return "not called in a forward that could be followed"


# ---- deciding --------------------------------------------------------------------------------------------------------------------


@contextmanager
def _evaluating(model: nn.Module):
    with _in_mode(model, False), torch.no_grad():
        yield


def _run(model: nn.Module, example: tuple):
    with _evaluating(model):
        return model(*copy.deepcopy(example))


class _Recorder:
    """Takes a layer's place for one run, and notes what comes in and goes out."""

    def __init__(self, layer: Fused):
        self.layer, self.calls = layer, []

    def __call__(self, *inputs: Tensor) -> Tensor:
        specs = [cost.Spec.of(tensor) for tensor in inputs]
        out = self.layer(*inputs)
        self.calls.append((specs, cost.Spec.of(out)))
        return out


def _record(model: nn.Module, example: tuple, plans: list[Plan]) -> list[_Recorder]:
    recorders = []
    for plan in plans:
        for index, layer in enumerate(plan.layers):
            recorder = _Recorder(layer)
            recorders.append(recorder)
            setattr(plan, f"layer_{index}", recorder)
    try:
        _run(model, example)
    finally:
        for plan in plans:
            for index, layer in enumerate(plan.layers):
                setattr(plan, f"layer_{index}", layer)
    return [recorder for recorder in recorders if recorder.calls]


def _decide(model: nn.Module, example: tuple, plans: list[Plan], rows: dict[int, Row], measure: bool) -> set[int]:
    """Fills the rows' times in; the convolutions whose chains are faster as they were."""
    slower: set[int] = set()
    known: dict[tuple, tuple[float, float]] = {}
    with _evaluating(model):
        for recorder in _record(model, example, plans):
            layer = recorder.layer
            key = id(layer.stages()[0].conv)
            row = rows[key]
            row.input = recorder.calls[0][0][0].shape
            row.predicted = _total(cost.predict(layer, specs, out) for specs, out in recorder.calls)
            if measure:
                times = []
                for specs, _ in recorder.calls:
                    same = (row.chain, tuple(specs), layer.stages()[-1].conv.out_channels)
                    if same not in known:
                        known[same] = cost.measure(layer, specs)
                    times.append(known[same])
                row.measured = _total(times)
            before, after = row.measured or row.predicted
            if after > before * (1 + (_MEASURED_SLACK if measure else _PREDICTED_SLACK)):
                slower.add(key)
                row.replaced = False
                row.why = f"the library's own is faster here, as {'measured' if measure else 'predicted'}"
    return slower


def _total(times) -> tuple[float, float]:
    times = list(times)
    return sum(t[0] for t in times), sum(t[1] for t in times)


def _settle_whole(
    model: nn.Module, example: tuple, drafts: list[_Draft], slower: set[int], rows: dict[int, Row], report: FuseReport
) -> None:
    """Times the whole model. Where the sum of the parts does not hold for the whole, chains that save the fewest passes go back first."""
    for kinds in ((), ("depthwise",), ("separable", "scaled", "conv")):
        leave = {key for key, row in rows.items() if row.replaced and row.kind in kinds}
        if kinds and leave:
            remove(model)
            slower |= leave
            for key in leave:
                rows[key].replaced, rows[key].why = False, "the whole model was not faster with it"
            _install(drafts, frozenset(slower))
        if not any(row.replaced for row in rows.values()):
            report.notes.append("the whole model is not faster on this input, so everything was left as it was")
            return
        if leave or not kinds:
            report.seconds = _time_whole(model, example)
        if report.seconds[1] <= report.seconds[0]:
            return


def _time_whole(model: nn.Module, example: tuple) -> tuple[float, float]:
    """Seconds of a call with the original forwards and with the fused ones."""
    blocks = [module for module in model.modules() if isinstance(module, FusedModule)]
    kept = [{name: block.__dict__[name] for name in PLANS.values() if name in block.__dict__} for block in blocks]

    def original():
        for block, plans in zip(blocks, kept, strict=True):
            for name in plans:
                block.__dict__.pop(name, None)
        model(*example)

    def fused():
        for block, plans in zip(blocks, kept, strict=True):
            block.__dict__.update(plans)
        model(*example)

    device = next(item.device for item in example if isinstance(item, Tensor))
    with _evaluating(model):
        return cost.alternate(original, fused, device, 1.0)


def _tensors(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def _distance(found: Tensor, expected: Tensor) -> float:
    if not expected.is_floating_point():
        return 0.0
    norm = expected.double().norm()
    return ((found.double() - expected.double()).norm() / (norm if norm > 0 else 1.0)).item()
