"""The CUDA kernels' part of `explain`: what the planner in csrc/common decides for a layer and predicts for it, on a GPU that need not be there."""

import torch

# What the planner must know of a GPU: data sheets, and for sm_90 the copy and the product measured on an H200. L2 bandwidth, and what mma.sync
# reaches of the vendor's product, are assumptions.
CHIPS = {
    "sm_80": {
        "multiprocessors": 108, "capability": 80, "shared_per_block": 163 * 1024, "shared_per_multiprocessor": 164 * 1024,
        "copy": 1.8e12, "second_level": 3.5e12, "issue": 108 * 128 * 1.41e9, "product": 240e12, "library_product": 270e12,
    },
    "sm_90": {
        "multiprocessors": 132, "capability": 90, "shared_per_block": 227 * 1024, "shared_per_multiprocessor": 228 * 1024,
        "copy": 4.3e12, "second_level": 5.5e12, "issue": 29.6e12, "product": 600e12, "library_product": 790e12,
    },
}  # fmt: skip


def chip(device: str) -> dict | None:
    """By kind, or the nearest kind with the multiprocessors of a GPU that is there; None for other makers'."""
    if device in CHIPS:
        return CHIPS[device]
    if not device.startswith("cuda") or not torch.cuda.is_available() or torch.version.cuda is None:
        return None
    properties = torch.cuda.get_device_properties(device)
    known = CHIPS["sm_90" if properties.major >= 9 else "sm_80"]
    share = properties.multi_processor_count / known["multiprocessors"]
    scaled = {name: value * share for name, value in known.items() if isinstance(value, float)}
    return known | scaled | {"multiprocessors": properties.multi_processor_count, "capability": properties.major * 10 + properties.minor}


def steps(layer, device: str) -> list[dict] | None:
    """One dict a launch, or None where there is nothing to tell: pools, float64, other GPUs, an extension that is not built."""
    try:
        from fastconv import _C
    except ImportError:
        return None
    known, x, asked = chip(device), layer.inputs[0], layer.plan_arguments
    if known is None or x.dtype == torch.float64 or not layer.output.numel():
        return None
    channels_last = torch._prims_common.suggest_memory_format(x) == torch.channels_last
    common = {name: tuple(asked[name]) for name in ("kernel", "stride", "padding", "dilation") if layer.plan != "plan_pool"}
    common |= {"input": tuple(x.shape), "dtype": str(x.dtype).removeprefix("torch."), "layout": "channels_last" if channels_last else "contiguous", "chip": known}
    if layer.plan == "plan_depthwise":
        return _C.cost_cuda_depthwise(multiplier=asked["multiplier"], **common)
    if layer.plan == "plan_separable":
        common |= {"multiplier": asked["multiplier"], "out_channels": asked["out_channels"], "tf32": layer.arguments[-1]}
        return _C.cost_cuda_separable(**common)["fused"]
    return None
