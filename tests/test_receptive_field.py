"""The effective receptive field: golden values of linear stacks, each convention on known gradients, growth, gridding, initialisation."""

import json
import math

import pytest
import torch
from torch import nn

from fastconv import receptive_field as rf
from fastconv.__main__ import main
from fastconv.nn import DepthwiseConv2d, DepthwiseSeparableConv2d

# depth: theoretical extent, pixels above 1 - 0.9545 of the centre, side of a square of as many.
GOLDEN = {5: (11, 69, 8.307), 10: (21, 137, 11.705), 20: (41, 261, 16.155), 40: (81, 517, 22.738), 80: (161, 1041, 32.265)}


def uniform(depth, kernel=3, dilation=1):
    return rf.Stack(kernel=kernel, dilation=dilation).build(depth)


@pytest.fixture(scope="module")
def linear():
    return rf.grow(rf.STUDIES["uniform"])


@pytest.mark.parametrize("position", range(5))
def test_golden_sizes(linear, position):
    field = linear.fields[position]
    expected = GOLDEN[linear.depths[position]]
    assert (linear.extents[position], field.pixels, round(field.size, 3)) == expected
    assert field.field.extent == (expected[0], expected[0]) and field.coverage() == 1


def test_golden_slopes(linear):
    assert linear.size_slope == pytest.approx(0.487, abs=0.001)
    assert linear.share_slope == pytest.approx(-0.482, abs=0.001)


def test_golden_deviations():
    assert rf.effective(uniform(1, kernel=5), 11, images=1).standard_deviation == pytest.approx((1.414, 1.414), abs=5e-4)
    assert rf.effective(uniform(2), 11, images=1).standard_deviation == pytest.approx((1.155, 1.155), abs=5e-4)


def test_golden_dilation():
    """Twice the extent, and not one pixel more: a count cannot see the holes, coverage and evenness do."""
    field = rf.effective(uniform(10, dilation=2), 41, images=1)
    assert field.field.extent == (41, 41) and field.pixels == 137
    assert field.coverage() == pytest.approx(21**2 / 41**2)
    assert field.evenness(2) == 0


def test_variances_add_up():
    """sigma^2 = sum d^2 R^2 (k^2 - 1) / 12 for uniform weights, strides and dilations mixed."""
    layers = [(3, 1, 1), (5, 2, 1), (3, 1, 2), (7, 2, 1), (3, 1, 3)]
    net = nn.Sequential(*(nn.Conv2d(1, 1, k, s, d * (k // 2), d, bias=False) for k, s, d in layers)).double()
    for conv in net:
        nn.init.constant_(conv.weight, 1.0)
    variance, jump = 0.0, 1
    for k, s, d in layers:
        variance += d**2 * jump**2 * (k**2 - 1) / 12
        jump *= s
    field = rf.effective(net, 160, images=1)
    assert field.standard_deviation == pytest.approx((math.sqrt(variance),) * 2, rel=1e-9)
    top, left, bottom, right = field.window
    assert (bottom - top, right - left) == field.field.extent
    assert field.map.sum() == pytest.approx(field.within.sum().item())


class Fixed(nn.Module):
    """A linear map to two channels whose gradients are known."""

    def __init__(self, first, second):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, first.shape[-1], padding=first.shape[-1] // 2, bias=False).double()
        self.conv.weight.data = torch.stack([first, second])

    def forward(self, x):
        return self.conv(x)


def test_conventions_on_known_gradients():
    first, second = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    images = [torch.randn(2, 3, 9, 11, dtype=torch.float64), torch.randn(1, 3, 9, 11, dtype=torch.float64)]

    def placed(map):
        out = torch.zeros(9, 11, dtype=torch.float64)
        out[2:7, 3:8] = map
        return out

    net = Fixed(first, second)
    luo = rf.effective(net, inputs=images)
    torch.testing.assert_close(luo.map, placed((first + second).abs().sum(0)))
    assert luo.images == 3 and luo.unit == (4, 5) and luo.centre == (4, 5) and luo.window == (2, 3, 7, 8)

    openerf = rf.effective(net, inputs=images, convention="openerf")
    positive = (first + second).mean(0).relu()
    torch.testing.assert_close(openerf.map, placed(positive / positive.sum()))

    replknet = rf.effective(net, inputs=images, convention="replknet")
    total = torch.zeros(5, 5, dtype=torch.float64)
    for image in torch.cat(images):
        on = net(image[None])[0, :, 4, 5] > 0
        total += (first * on[0] + second * on[1]).relu().sum(0)
    scores = torch.log10(total / 3 + 1)
    torch.testing.assert_close(replknet.map, placed(scores / scores.max()))

    only = rf.effective(net, inputs=images, channel=1, unit=(0, 10))
    torch.testing.assert_close(only.map[:3, -3:], second.abs().sum(0)[2:, :3])
    assert only.window == (0, 8, 3, 11)


def test_square_sides_by_counting():
    map = torch.rand(15, 12, dtype=torch.float64)
    sides = rf.square_sides(map, (0.1, 0.4, 0.7, 0.99))
    for share, side in sides.items():
        holds = [r for r in range(6) if map[7 - r : 8 + r, 6 - r : 7 + r].sum() >= share * map.sum()]
        assert side == (2 * holds[0] + 1 if holds else None)
    point = torch.zeros(9, 9)
    point[4, 4] = 1
    assert set(rf.square_sides(point).values()) == {1}


def test_a_layer_in_the_middle_and_models_of_fastconv():
    separable = nn.Sequential(
        DepthwiseSeparableConv2d(3, 4, 3, padding=1, depthwise_norm=nn.BatchNorm2d),
        DepthwiseConv2d(4, 5, 2, padding=4, dilation=2, activation="relu"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).eval()
    field = rf.effective(separable, 33, layer="1", images=3)
    assert field.field.extent == (11, 11) and field.unit == (8, 8) and field.coverage() == 1
    with pytest.raises(ValueError, match="layer: the output must be a map"):
        rf.effective(separable, 33)
    with pytest.raises(ValueError, match="layer: the model has no 'x'; its own are 0, 1, 2, 3"):
        rf.effective(separable, 33, layer="x")


def test_models_that_theory_cannot_follow():
    class Resampled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return nn.functional.interpolate(self.conv(x), scale_factor=2, mode="bilinear")

    field = rf.effective(Resampled(), (12, 16), images=2)
    assert field.field is None and field.window == (0, 0, 12, 16) and field.centre == (6, 8)


def test_arguments():
    net = uniform(2)
    with pytest.raises(ValueError, match="convention: got 'zhou', supported are luo, replknet, openerf"):
        rf.effective(net, convention="zhou")
    with pytest.raises(ValueError, match=r"unit: \(0, 9\) is outside the 9x9 output"):
        rf.effective(net, 9, unit=(0, 9))
    with pytest.raises(ValueError, match="channel: 1 is outside the 1"):
        rf.effective(net, 9, channel=1)
    with pytest.raises(ValueError, match="inputs: all images must have one size"):
        rf.effective(net, inputs=[torch.zeros(1, 1, 9, 9).double(), torch.zeros(1, 1, 8, 9).double()])
    with pytest.raises(ValueError, match="inputs: no images"):
        rf.effective(net, inputs=[])
    with pytest.raises(ValueError, match="centre: must be between 0 and 1"):
        rf.widen_(net, 2)
    with pytest.raises(ValueError, match="period"):
        rf.evenness(torch.ones(3, 3), 4)


DEPTHS = (5, 10, 20)


@pytest.mark.parametrize("study", ["random weights, ReLU", "dropout 1/2", "skip connections", "dilation 2", "two strides of 2"])
def test_growth_studies(linear, study):
    """Luo et al.: the square root of depth whatever the weights; skips shrink, subsampling and dilation widen."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    grown = rf.grow(rf.STUDIES[study], DEPTHS, generator)
    assert 0.4 < grown.size_slope < 0.65
    plain = linear.sizes[: len(DEPTHS)]
    ratios = [size / other for size, other in zip(grown.sizes, plain, strict=True)]
    low, high = {"random weights, ReLU": (1.1, 1.6), "skip connections": (0.5, 0.8), "two strides of 2": (1.8, 4)}.get(study, (0.92, 1.08))
    assert low < min(ratios) and max(ratios) < high
    assert grown.extents[0] == (21 if study in ("dilation 2", "two strides of 2") else 11)


def test_progress_and_reproducibility():
    seen = []
    runs = [
        rf.effective(uniform(3).float(), 9, images=4, generator=torch.Generator().manual_seed(3), progress=lambda *at: seen.append(at)).map
        for _ in range(2)
    ]
    assert torch.equal(*runs)
    assert seen == [(n, 4) for n in (1, 2, 3, 4)] * 2


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (1, 7), (4, 2)])
def test_tap_scales(kernel):
    scales = rf.tap_scales(kernel, 0.25)
    assert scales.square().mean() == pytest.approx(1)
    assert scales.shape == kernel and scales.max() == scales[0, 0] == scales[-1, -1]
    assert rf.taps_variance(kernel) == pytest.approx(tuple((k**2 - 1) / 12 for k in kernel))
    wide, plain = rf.taps_variance(kernel, 0.25), rf.taps_variance(kernel)
    assert all(w > p for w, p, k in zip(wide, plain, kernel, strict=True) if k > 2)
    if kernel == (3, 3):
        assert scales[1, 1] / scales[0, 0] == pytest.approx(0.25)


def test_widening_widens_as_predicted():
    """The effective variance of random networks is the sum of the layers' tap variances; the signal's variance stays."""
    generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(12)))
    measured = {}
    for centre in (1.0, 0.0):
        energy = torch.zeros(25, 25, dtype=torch.float64)
        for _ in range(12):
            rf.widen_(net, centre, "linear", generator)
            x = torch.zeros(1, 8, 25, 25, requires_grad=True)
            gradient = torch.autograd.grad(net(x)[0, :, 12, 12].square().sum() + net(x)[0, :, 12, 12].sum(), x)[0]
            energy += gradient[0].double().square().sum(0)
        measured[centre] = rf.standard_deviation(energy)[0] ** 2
        assert measured[centre] == pytest.approx(12 * rf.taps_variance((3, 3), centre)[0], rel=0.12)
        assert net(torch.randn(1, 8, 64, 64, generator=generator)).std().item() == pytest.approx(1, rel=0.5)
    assert measured[0.0] > 1.2 * measured[1.0]


@pytest.mark.parametrize("convention", rf.CONVENTIONS)
def test_command(convention, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    out = tmp_path / "folder" / "erf.png"
    command = ["erf", "--model", "drn_a_18", "--layer", "layer1", "--size", "65", "--images", "2", "--json", "--out", str(out)]
    assert main([*command, "--convention", convention]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["theory"] == {"extent": [43, 43], "jump": [4, 4]} and facts["weights"] == "random" and facts["images"] == 2
    assert ("size" in facts, "square_sides" in facts) == (convention == "luo", convention == "replknet")
    assert out.read_bytes().startswith(b"\x89PNG")


def test_command_says_what_is_wrong(capsys):
    assert main(["erf", "--model", "drn_c_27"]) == 2
    assert "name: got 'drn_c_27', supported are" in capsys.readouterr().err


def test_pictures(tmp_path, linear):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from fastconv.receptive_field import plots

    plots.draw_growth({"uniform": linear}, tmp_path / "growth.png")
    plots.draw_fields({str(depth): field for depth, field in zip(linear.depths, linear.fields, strict=True)}, tmp_path / "fields.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("growth.png", "fields.png"))
