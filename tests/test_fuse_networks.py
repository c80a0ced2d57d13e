"""fuse on networks that people use, by name: every pair found, results within rounding. Needs timm, torchvision and
segmentation_models_pytorch (install with --no-deps), each where it is installed."""

import copy

import pytest
import torch
from helpers import assert_no_further_on_average, relative_error
from torch import nn
from trained import randomise_norms, redrawn

import fastconv
from fastconv.cli.fuse import import_library


def library(name):
    try:
        return import_library(name)
    except ImportError as missing:
        pytest.skip(f"{name} is not installed ({missing})")


def build(name):
    source, _, rest = name.partition(":")
    model, _, stride = rest.partition("@")
    if source == "torchvision":
        made = library("torchvision").models.get_model(model)
    elif source == "timm":
        made = library("timm").create_model(model, num_classes=20, **({"output_stride": int(stride)} if stride else {}))
    else:
        library("timm")
        made = library("segmentation_models_pytorch").DeepLabV3Plus(model, encoder_weights=None)
    return randomise_norms(made).eval()


# Pairs as the papers' tables count them (for MobileNetV3 and MixNet those with squeeze-and-excitation too), depthwise convolutions alone.
NETWORKS = {
    "torchvision:mobilenet_v2": (17, 0),
    "torchvision:mobilenet_v3_small": (11, 9),
    "torchvision:mobilenet_v3_large": (15, 8),
    "torchvision:mnasnet0_5": (17, 0),
    "torchvision:shufflenet_v2_x0_5": (19, 0),
    "timm:mobilenetv2_050": (17, 0),
    "timm:efficientnet_lite0": (16, 0),
    "timm:tf_efficientnet_lite0": (16, 0),
    "timm:xception65@16": (63, 0),
    "timm:xception65@8": (63, 0),
    "timm:convnext_atto": (0, 12),
    "timm:mixnet_s": (3, 42),
    "smp:mobilenet_v2": (22, 0),
}


def pairs_by_calls(model, x):
    """By running it: depthwise convolutions whose next one, but for those on a pooled map, is pointwise, of as many channels."""
    calls, handles = [], []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(lambda m, args, _: calls.append((m, args[0].shape[2] > 1))))
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    convs = [module for module, large in calls if large]
    return sum(
        a.groups == a.in_channels > 1 and b.groups == 1 and b.kernel_size == (1, 1) and b.in_channels == a.out_channels
        for a, b in zip(convs, convs[1:], strict=False)
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_named_networks(name, monkeypatch):
    size = 65 if "xception" in name else 64
    model = build(name)
    x = torch.randn(1, 3, size, size).contiguous(memory_format=torch.channels_last)
    if name.startswith("smp"):
        x = torch.randn(1, 3, 64, 64)
    fused, report = fastconv.fuse(model)
    pairs, alone = NETWORKS[name]
    assert len(report.pairs) == pairs and not report.left, report
    assert sum(row.kind == "depthwise" for row in report.rows) == alone
    if pairs and "mixnet" not in name and "xception" not in name:
        # MixNet's kernels lie side by side, Xception's shortcuts between pairs: not to be told from the order of calls.
        # Nor is ConvNeXt's LayerNorm, which stands between what would be its pairs.
        assert pairs == pairs_by_calls(model, torch.randn(1, 3, 96, 96))
    with torch.no_grad():
        assert relative_error(fused(x), model(x)) <= 1e-5
    assert list(fused.state_dict()) == list(model.state_dict())


def calibrate(model):
    """Statistics as training leaves them: those of the maps."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
            module.train()
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))
    model.eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "torchvision:mnasnet0_5", "torchvision:shufflenet_v2_x0_5"])
def test_no_further_from_float64_in_16_bits(name, dtype):
    master = build(name)
    model = copy.deepcopy(master).to(dtype)
    fused, _ = fastconv.fuse(model)

    @torch.no_grad()
    def draw():
        redrawn(master, master)
        calibrate(master)
        for m in (model, fused):
            m.load_state_dict(master.state_dict())
        x = torch.randn(1, 3, 64, 64).to(dtype)
        return fused(x), model(x), copy.deepcopy(model).double()(x.double())

    assert_no_further_on_average(draw, draws=10, label=name)
