"""What each backend's kernels should take on a GPU, there or not: the candidates that `explain` compares.

Predictions come from counts (fastconv/triton/plan.py says which); they rank candidates and show what binds them, and are no measurement.
Where the device has a table of measured choices (`python -m bench tune`), its times stand beside them, and the choice goes by them.
"""

from dataclasses import asdict

import torch

from fastconv import backends, tuning
from fastconv._arguments import convolutions_take_tf32
from fastconv.cli import predict_cuda

# Kinds of GPU that Triton's tile tables know; a copy of the names, so that help needs no Triton.
KINDS = ("sm_80", "sm_90", "sm_100", "gfx942")


def rates(kind: str, dtype: torch.dtype, products: bool) -> tuple[float, float]:
    """(FLOP/s of what binds a layer, bytes/s) by the data sheet; float32 arithmetic issues a multiply-add a lane."""
    from fastconv.triton.plan import RATES

    known = RATES[kind]
    operands = "half" if dtype != torch.float32 else "tf32" if convolutions_take_tf32() else "ieee"
    return known.products[operands] if products else 2 * known.issue, known.copy


def source(kind: str) -> str:
    from fastconv.triton.plan import RATES

    return RATES[kind].source


def _triton(layer, device: str, compiled: bool) -> dict:
    from fastconv.triton.launch import FAMILIES, family_of
    from fastconv.triton.plan import plan, taken, ways

    there = None if device in KINDS else torch.device(device)
    family = FAMILIES[device] if there is None else family_of(there)
    with tuning.use(None if there is None else tuning.table_of(there)):
        steps = plan(layer.op, layer.arguments, family, compiled)
        found = {"seconds": sum(step.seconds for step in steps), "launches": [asdict(step) for step in steps]}
        if layer.inputs[0].is_contiguous():
            found["ways"] = [asdict(way) for way in ways(layer.op, layer.arguments, layer.output, family, compiled)]
            found["taken"] = taken(layer.op, layer.arguments, family)
    return found


def _cuda(layer, device: str) -> dict:
    """The cost model's launches, or where it knows the layer or the GPU too little (pools, sm_100) no more than what it cannot fall below:
    its bytes at the copy rate, and a launch."""
    found = predict_cuda.prediction(layer, device)
    if "launches" in found:
        return found | {"seconds": sum(step["seconds"] for step in found["launches"])}
    if "why" in found:
        return found
    kind = device if device in KINDS else _kind_of(device)
    if backends.triton_refusal() is not None or not kind.startswith("sm_"):
        return {}
    from fastconv.triton.plan import LAUNCH_SECONDS

    return {"seconds": layer.bytes / rates(kind, layer.inputs[0].dtype, False)[1] + LAUNCH_SECONDS, "at_least": True}


def _reference(layer, kind: str) -> dict:
    """Separate layers at best: all their bytes at the copy rate or all operations at the rate of what binds them, and a launch each."""
    from fastconv.triton.plan import LAUNCH_SECONDS

    arithmetic, copy = rates(kind, layer.inputs[0].dtype, bool(layer.unfused))
    seconds = max(layer.unfused_bytes / copy, layer.flops / arithmetic) + (1 + len(layer.unfused)) * LAUNCH_SECONDS
    return {"seconds": seconds, "bytes": layer.unfused_bytes}


def candidates(layer, choice: backends.Choice, device: str, compiled: bool) -> list[dict]:
    """One dict a backend of a GPU: `refused`, why it is not the choice; `seconds`, predicted, where a plan is known; `measured`, from the
    table."""
    found = []
    for name in ("cuda", "triton", "reference"):
        refused = choice.refused.get(name)
        if refused is None and name != choice.backend:
            refused = f"{choice.backend} comes before it"
        candidate = {"backend": name, "chosen": name == choice.backend, "refused": refused, "seconds": None, "measured": None}
        if name == "cuda":
            candidate |= _cuda(layer, device)
        elif name == "triton" and backends.triton_refusal() is None:
            candidate |= _triton(layer, device, compiled)
        elif name == "reference" and backends.triton_refusal() is None:
            candidate |= _reference(layer, device if device in KINDS else _kind_of(device))
        candidate["measured"] = _measured(layer, device, name)
        found.append(candidate)
    return found


def _kind_of(device: str) -> str:
    from fastconv.triton.launch import family_of

    return family_of(torch.device(device)).key


def _measured(layer, device: str, backend: str) -> float | None:
    table = None if device in KINDS else tuning.table_of(torch.device(device))
    entry = table.entries.get(backends.key_of(layer.op, layer.inputs[0], *layer.geometry)) if table else None
    return entry.seconds.get(backend) if entry else None


def lines(candidate: dict) -> list[str]:
    """As `explain` prints it."""
    what = "chosen" if candidate["chosen"] else f"not chosen: {candidate['refused']}"
    if candidate["seconds"] is not None:
        least = "at least " if candidate.get("at_least") else ""
        what = f"predicted {least}{1e6 * candidate['seconds']:,.1f} microseconds; {what}"
    if candidate["measured"] is not None:
        what = f"measured {1e6 * candidate['measured']:,.1f} microseconds; {what}"
    text = [f"{candidate['backend']:<9} {what}"]
    if "bytes" in candidate:
        text.append(f"          as separate layers at least {candidate['bytes'] / 1e6:,.2f} MB")
    if "why" in candidate:
        text.append(f"          {candidate['why']}")
    for step in candidate.get("launches", ()):
        text += [f"          {line}" for line in _step_lines(step)]
    for way in candidate.get("ways", ()):
        told = {"strided": "contiguous maps as they come", "copied": "through copies in channels_last"}[way["name"]]
        mark = "taken" if way["name"] == candidate["taken"] else "not taken"
        text.append(f"          {told}: {way['bytes'] / 1e6:,.2f} MB, {1e6 * way['seconds']:,.1f} microseconds; {mark}")
    return text


def _step_lines(step: dict) -> list[str]:
    tile = step["tile"] if isinstance(step["tile"], str) else ", ".join(f"{name} {value}" for name, value in step["tile"].items())
    yield f"{step['kernel']}: {1e6 * step['seconds']:,.1f} microseconds, bound by {step['bound']}"
    yield f"  tile {tile}"
    yield f"  {step['programs']:,} programs of {step['warps']} warps, {step['resident']} to a processor: {step['waves']:.2f} waves"
    yield f"  {step['bytes'] / 1e6:,.2f} MB, {step['flops'] / 1e6:,.1f} MFLOP"
    if step["registers"] is not None:
        line = f"  {step['registers']} registers, {step['spills']} spilled, {step['shared_memory'] / 1024:.0f} KB of shared memory"
        yield line + (f", {step['instructions']:.1f} instructions an element" if step.get("instructions") else "")
