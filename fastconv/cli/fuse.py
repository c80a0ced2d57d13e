"""What fastconv.fuse does to a network: which chains are replaced, which are not and why, and the times before and after.

  python -m fastconv fuse timm:mobilenetv2_100
  python -m fastconv fuse torchvision:mobilenet_v3_large --measure --format channels_last
  python -m fastconv fuse my_package.models:build --shape 1,3,513,513

Weights are random unless --pretrained asks timm or torchvision for theirs; the norms get random statistics then, so that a norm which was
folded wrongly would show in the distance from the original.
"""

from __future__ import annotations

import argparse
import importlib
import sys

import torch
from torch import nn

from fastconv import fuse

from .explain import DTYPES, FORMATS, shape


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="timm:NAME, torchvision:NAME, or MODULE:CALLABLE of your own that returns a model")
    parser.add_argument("--shape", type=shape, default=(1, 3, 224, 224), help="N,C,H,W of the input (default: 1,3,224,224)")
    parser.add_argument("--measure", action="store_true", help="time every chain and the whole model, and decide by that")
    parser.add_argument("--pretrained", action="store_true", help="published weights, where timm or torchvision can get them")
    parser.add_argument("--output-stride", type=int, choices=(8, 16, 32), help="of a timm model")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    parser.add_argument("--format", choices=FORMATS, default="channels_last", help="memory format (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")


def import_library(name: str):
    """timm and torchvision, beside a torch that torchvision's compiled operators do not load into as well: no network here needs them."""
    try:
        return importlib.import_module(name)
    except (RuntimeError, AttributeError):
        # torchvision's Python code asks for the schemas of these; what it half imported must go.
        for part in [part for part in sys.modules if part.split(".")[0] in ("torchvision", "timm", name)]:
            del sys.modules[part]
        schemas = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                schemas.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(schemas)
        return importlib.import_module(name)


_kept: list[torch.library.Library] = []


def build(options: argparse.Namespace) -> nn.Module:
    library, _, name = options.model.partition(":")
    if not name:
        raise ValueError(f"model: got {options.model!r}; write timm:NAME, torchvision:NAME or MODULE:CALLABLE")
    if library == "timm":
        more = {"output_stride": options.output_stride} if options.output_stride else {}
        return import_library("timm").create_model(name, pretrained=options.pretrained, **more)
    if library == "torchvision":
        models = import_library("torchvision").models
        return models.get_model(name, weights="DEFAULT" if options.pretrained else None)
    return getattr(importlib.import_module(library), name)()


def randomise_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)


def run(options: argparse.Namespace) -> int:
    torch.manual_seed(0)
    try:
        model = build(options)
        if not options.pretrained:
            randomise_norms(model)
        place = {"device": options.device, "dtype": DTYPES[options.dtype], "memory_format": FORMATS[options.format]}
        example = torch.randn(options.shape).to(**place)
        _, report = fuse(model.eval().to(**place), example, inplace=True, measure=options.measure)
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        print(f"{options.model}: {error}", file=sys.stderr)
        return 2
    print(report)
    return 0
