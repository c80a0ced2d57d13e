"""The CUDA kernels' part of `explain`: what the planner in csrc/common decides for a layer and predicts for it, on a GPU that need not be there."""

import torch

from fastconv import _ops

# What the planner must know of a GPU, and under which name it looks for a table of measured choices; rates are those of
# csrc/common/cost_choice.cpp.
CHIPS = {
    "sm_80": {
        "name": "sm_80", "multiprocessors": 108, "capability": 80, "shared_per_block": 163 * 1024, "shared_per_multiprocessor": 164 * 1024,
    },
    "sm_90": {
        "name": "sm_90", "multiprocessors": 132, "capability": 90, "shared_per_block": 227 * 1024, "shared_per_multiprocessor": 228 * 1024,
    },
}  # fmt: skip
if _ops.compiled_refusal is None:
    from fastconv import _C

    for _chip in CHIPS.values():
        _chip |= _C.cuda_rates(_chip)


def chip(device: str) -> dict | None:
    """By kind, or the nearest kind with the multiprocessors of a GPU that is there; None for other makers'."""
    if device in CHIPS:
        return CHIPS[device]
    if not device.startswith("cuda") or not torch.cuda.is_available() or torch.version.cuda is None:
        return None
    properties = torch.cuda.get_device_properties(device)
    known = CHIPS["sm_90" if properties.major >= 9 else "sm_80"]
    shared = {name: known[name] for name in ("shared_per_block", "shared_per_multiprocessor")}
    capability = properties.major * 10 + properties.minor
    return shared | {"name": properties.name, "multiprocessors": properties.multi_processor_count, "capability": capability}


def prediction(layer, device: str) -> dict:
    """`launches`, one dict each, and `why` where there was a choice; without launches where there is nothing to predict with: pools,
    float64, other GPUs, no planner."""
    if _ops.compiled_refusal is not None:
        return {"why": "no prediction: the planner of the CUDA kernels is one of the compiled parts"}
    known, x, asked = chip(device), layer.inputs[0], layer.plan_arguments
    if known is None or x.dtype == torch.float64 or not layer.output.numel():
        return {}
    channels_last = torch._prims_common.suggest_memory_format(x) == torch.channels_last
    common = {name: tuple(asked[name]) for name in ("kernel", "stride", "padding", "dilation") if layer.plan != "plan_pool"}
    common |= {"input": tuple(x.shape), "dtype": str(x.dtype).removeprefix("torch."), "layout": "channels_last" if channels_last else "contiguous", "chip": known}
    if layer.plan == "plan_depthwise":
        return {"launches": _C.cost_cuda_depthwise(multiplier=asked["multiplier"], **common)}
    if layer.plan == "plan_separable":
        common |= {"multiplier": asked["multiplier"], "out_channels": asked["out_channels"], "tf32": layer.arguments[-1]}
        cost = _C.cost_cuda_separable(**common)
        return {"launches": cost[cost["chosen"]], "why": cost["why"]}
    return {}
