"""Makes the pictures and the table of docs/receptive-field.md: python docs/receptive_field_figures.py"""

import re
import sys
from pathlib import Path

import torch
from torch import nn

from fastconv.models import DRN
from fastconv.models.blocks import initialise
from fastconv.receptive_field import STUDIES, effective, grow, taps_variance, widen_
from fastconv.receptive_field.plots import draw_field, draw_fields, draw_growth

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
DEPTHS = (5, 10, 20, 40)
# Rows and columns of the level-4 map that the dilated levels get here; more than the largest of their theoretical fields.
MAP = 67


def growth(generator) -> str:
    grown = {}
    for name, stack in STUDIES.items():
        grown[name] = grow(stack, DEPTHS, generator)
        print(f"  {name}", file=sys.stderr)
    draw_growth(grown, IMAGES / "receptive-field-growth.png")
    fields = {f"{name}\n{growth.sizes[2]:.1f} of {growth.extents[2]:.0f} pixels": growth.fields[2] for name, growth in grown.items()}
    draw_fields(fields, IMAGES / "receptive-field-stacks.png", crop=True)
    lines = ["| stack | size at 5 | 10 | 20 | 40 | slope of size | slope of share |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for name, g in grown.items():
        lines.append(f"| {name} | " + " | ".join(f"{size:.2f}" for size in g.sizes) + f" | {g.size_slope:+.3f} | {g.share_slope:+.3f} |")
    return "\n".join(lines)


def gridding(generator) -> str:
    """From the map where dilation begins: DRN-A's two dilated stages, and DRN-C before and after the layers that take the grid away."""
    a, c = (DRN(name, separable=True).eval() for name in ("drn_a_18", "drn_c_26"))
    nets = {
        "DRN-A-18, stages 3-4": nn.Sequential(a.layer3, a.layer4),
        "DRN-C-26, levels 5-6": nn.Sequential(c.layer5, c.layer6),
        "... and level 7": nn.Sequential(c.layer5, c.layer6, c.layer7),
        "... and level 8": nn.Sequential(c.layer5, c.layer6, c.layer7, c.layer8),
    }
    fields, lines = (
        {},
        ["| network | theoretical extent | coverage | evenness, period 2 | evenness, period 4 |", "| --- | ---: | ---: | ---: | ---: |"],
    )
    for name, net in nets.items():
        field = effective(net.eval(), MAP, images=6, reinitialise=initialise, generator=generator)
        coverage, two, four = field.coverage(), field.evenness(2), field.evenness(4)
        fields[f"{name}\ncoverage {coverage:.2f}, evenness {two:.2f}"] = field
        lines.append(f"| {name} | {field.field.extent[0]:.0f} | {coverage:.2f} | {two:.2f} | {four:.2f} |")
        print(f"  {name}", file=sys.stderr)
    draw_fields(fields, IMAGES / "receptive-field-gridding.png")
    return "\n".join(lines)


def widening(generator) -> str:
    stack = STUDIES["random weights, ReLU"]
    lines = ["| centre | tap variance | effective size at 20 layers |", "| ---: | ---: | ---: |"]
    for centre in (1.0, 0.5, 0.25, 0.0):
        field = effective(
            stack.build(20),
            41,
            images=stack.draws,
            reinitialise=lambda net, c=centre: widen_(net, c, generator=generator),
            generator=generator,
        )
        lines.append(f"| {centre:g} | {taps_variance((3, 3), centre)[0]:.3f} | {field.size:.2f} |")
    return "\n".join(lines)


def whole_network(generator) -> str:
    net = DRN("drn_c_26", separable=True).eval()

    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, image):
            return self.net.features(image)

    field = effective(Features().eval(), 257, images=8, reinitialise=initialise, generator=generator)
    draw_field(field, IMAGES / "receptive-field-drn.png", "separable DRN-C-26, random weights")
    extent, seen = field.field.extent[0], field.coverage()
    return f"Theoretical extent {extent:.0f} pixels, effective size {field.size:.1f}, coverage of what of it lies in the image {seen:.2f}."


def main() -> None:
    page = DOCS / "receptive-field.md"
    text = page.read_text(encoding="utf-8")
    for name, make in (("growth", growth), ("gridding", gridding), ("widening", widening), ("network", whole_network)):
        print(name, file=sys.stderr)
        torch.manual_seed(0)
        made = make(torch.Generator().manual_seed(0))
        pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        assert pattern.search(text), f"{page} has no place for {name}"
        text = pattern.sub(lambda match, made=made: f"{match[1]}\n{made}\n\n{match[2]}", text)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
