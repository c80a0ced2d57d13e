"""The effective receptive field of a network, measured and drawn.

  python -m fastconv erf --model drn_c_26 --out erf.png
  python -m fastconv erf --model xception65 --images 32 --convention replknet --out xception.png
  python -m fastconv erf --model timm:resnet50 --layer layer3 --size 321

Without --weights the network has random weights, drawn anew for every image: what its architecture alone decides.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn


class Features(nn.Module):
    """A classifier's last map in the place of its scores."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.run = "forward_features" if hasattr(model, "forward_features") else "features" if hasattr(model, "features") else None

    def forward(self, input: Tensor) -> Tensor:
        return self.model(input) if self.run is None else getattr(self.model, self.run)(input)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a name of fastconv.models, or timm:NAME where timm is installed")
    parser.add_argument("--out", type=Path, default=Path("erf.png"), help="where the picture goes (default: %(default)s)")
    parser.add_argument("--weights", type=Path, help="a state_dict to load")
    parser.add_argument("--layer", help="a submodule whose output counts (default: the last map)")
    parser.add_argument("--convention", default="luo", help="luo, replknet or openerf (default: %(default)s)")
    parser.add_argument("--size", type=int, default=257, help="rows and columns of the image (default: %(default)s)")
    parser.add_argument("--images", type=int, default=8, help="random images to average over (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="the numbers as one JSON object")


def build(name: str) -> nn.Module:
    if not name.startswith("timm:"):
        from fastconv.models import create

        return create(name)
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"model: {name} needs timm, which cannot be imported here ({error})") from error
    return timm.create_model(name.removeprefix("timm:"), pretrained=False)


def measure(options: argparse.Namespace):
    from fastconv.models.blocks import initialise
    from fastconv.receptive_field import effective

    torch.manual_seed(options.seed)
    model = build(options.model)
    if options.weights:
        model.load_state_dict(torch.load(options.weights, map_location="cpu", weights_only=True))
    # A named layer is found by its name in the model; `Features` would put its own in front.
    net = (model if options.layer else Features(model)).eval()
    with progress_bar(options.images) as update:
        return effective(
            net,
            options.size,
            convention=options.convention,
            images=options.images,
            reinitialise=None if options.weights else initialise,
            layer=options.layer,
            generator=torch.Generator().manual_seed(options.seed),
            progress=lambda done, total: update(),
        )


class progress_bar:
    """tqdm's where it is installed and somebody looks; a context that gives what to call after every image."""

    def __init__(self, total: int):
        self.bar = None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self.bar = tqdm(total=total, unit="image", desc="gradients", file=sys.stderr)

    def __enter__(self):
        return self.bar.update if self.bar is not None else lambda: None

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()


def numbers(options: argparse.Namespace, field) -> dict:
    facts = {
        "model": options.model,
        "layer": options.layer,
        "weights": str(options.weights) if options.weights else "random",
        "convention": field.convention,
        "images": field.images,
        "image": list(field.map.shape),
        "unit": list(field.unit),
        "theory": None if field.field is None else {"extent": list(field.field.extent), "jump": list(field.field.jump)},
        "standard_deviation": list(field.standard_deviation),
        "coverage": field.coverage(),
    }
    if field.convention == "luo":
        facts |= {"pixels": field.pixels, "size": field.size}
    if field.convention == "replknet":
        facts["square_sides"] = {str(share): side for share, side in field.square_sides().items()}
    return facts


def run(options: argparse.Namespace) -> int:
    try:
        field = measure(options)
    except (ValueError, OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    facts = numbers(options, field)
    print(json.dumps(facts, indent=2) if options.json else "\n".join(f"{name:20s} {value}" for name, value in facts.items()))
    try:
        from fastconv.receptive_field.plots import draw_field

        where = f", {options.layer}" if options.layer else ""
        draw_field(field, options.out, f"{options.model}{where}: {facts['weights']} weights, {field.images} images")
    except ImportError:
        print("no picture: drawing it needs matplotlib (python -m pip install matplotlib)", file=sys.stderr)
    else:
        print(f"picture: {options.out}", file=sys.stderr if options.json else sys.stdout)
    return 0
