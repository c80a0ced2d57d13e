"""Dilated Residual Networks: the checkpoints' names, the paper's sizes, DRN-A as the exact dilated form of a ResNet, localisation."""

import copy
import json
from pathlib import Path

import pytest
import torch
from helpers import relative_error
from networks import FORMATS, lively, names, on_meta, parameters
from torch import nn

from fastconv.dense import to_dense
from fastconv.models import DRN, drn
from fastconv.nn import DepthwiseSeparableConv2d, plain
from fastconv.receptive_field import theory

PUBLISHED = json.loads((Path(__file__).parent / "data" / "drn_state_dict_shapes.json").read_text())

# The paper's table, in millions.
MILLIONS = {
    "drn_a_50": 25.56, "drn_c_26": 21.13, "drn_c_42": 31.23, "drn_c_58": 41.59,
    "drn_d_22": 16.39, "drn_d_38": 26.50, "drn_d_54": 35.81, "drn_d_105": 54.80,
}  # fmt: skip


class Features(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net.features(x)


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_the_published_ones(name):
    model = on_meta(lambda: DRN(name))
    # The checkpoints are older than the counters of batches.
    ours = [(key, list(shape)) for key, shape in names(model) if not key.endswith("num_batches_tracked")]
    assert ours == [(key, shape) for key, shape in PUBLISHED[name].items()]
    checkpoint = {key: torch.empty(shape, device="meta") for key, shape in PUBLISHED[name].items()}
    model.load_state_dict(checkpoint, strict=True, assign=True)
    if name in MILLIONS:
        assert round(parameters(model) / 1e6, 2) == MILLIONS[name]


def test_a_checkpoint_decides_every_number():
    """Loaded strictly from names and shapes alone, and not one value of the old model is left."""
    old, new = DRN("drn_d_22", 10), DRN("drn_d_22", 10)
    state = {key: value for key, value in new.state_dict().items() if not key.endswith("num_batches_tracked")}
    old.load_state_dict(state, strict=True)
    assert all(torch.equal(value, new.state_dict()[key]) for key, value in old.state_dict().items())


@pytest.mark.parametrize("name", [name for name in drn.CONFIGS if not name.endswith(("42", "40", "105", "107"))])
def test_maps_at_224(name):
    model = on_meta(lambda: DRN(name))
    maps = model.pyramid(torch.empty(1, 3, 224, 224, device="meta"))
    assert [(224 // m.shape[2], m.shape[1]) for m in maps] == list(model.taps)
    assert maps[-1].shape[2:] == (28, 28)
    assert [m.shape[2] for m in maps] == ([112, 56, 28] if name.startswith("drn_a") else [224, 112, 56, 28])


def test_b_has_the_shortcuts_that_c_has_not():
    b, c = on_meta(lambda: DRN("drn_b_26")), on_meta(lambda: DRN("drn_c_26"))
    assert names(b) == names(c)
    last = {"b": b.layer7[0], "c": c.layer7[0]}
    assert last["b"].residual and not last["c"].residual and b.layer6[0].residual and c.layer6[0].residual


@pytest.mark.parametrize("name", ["drn_a_18", "drn_a_50"])
def test_a_is_the_exact_dilated_form_of_the_strided_resnet(name):
    dilated = lively(DRN(name, 5)).double()
    strided = copy.deepcopy(dilated)
    for stage in (strided.layer3, strided.layer4):
        for block in stage:
            for conv in (m for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)):
                conv.dilation = conv.padding = (1, 1)
        first = stage[0]
        (first.conv2 if hasattr(first, "conv3") else first.conv1).stride = (2, 2)
        first.downsample[0].stride = (2, 2)

    image = torch.randn(1, 3, 43, 50, dtype=torch.float64)
    with torch.no_grad():
        dense = to_dense(Features(strided).eval(), output_stride=8, verify=False)(image)
        ours, theirs = dilated.features(image), strided.features(image)
    assert ours.shape == dense.shape and relative_error(ours, dense) < 1e-13
    assert relative_error(ours[..., ::4, ::4], theirs) < 1e-13


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("name", ["drn_a_18", "drn_b_26", "drn_c_26", "drn_d_22"])
@torch.no_grad()
def test_separable_variants(name, format_name):
    """Fused equals torch's own modules, at an odd size, in the format of the image; every 3x3 convolution is replaced."""
    torch.manual_seed(3)
    model = lively(DRN(name, 7, separable=True))
    assert not any(m.kernel_size == (3, 3) and m.groups == 1 for m in model.modules() if isinstance(m, nn.Conv2d))
    exact = plain(model).double()
    image = torch.randn(2, 3, 45, 38).contiguous(memory_format=FORMATS[format_name])
    out, expected = model.features(image), exact.features(image.double())
    assert relative_error(out, expected) <= max(2 * relative_error(plain(model).features(image), expected), 1e-6)
    assert out.shape[2:] == (6, 5) and out.is_contiguous(memory_format=FORMATS[format_name])
    assert sum(isinstance(m, DepthwiseSeparableConv2d) for m in model.modules()) == sum(
        isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in on_meta(lambda: DRN(name, 7)).modules()
    )


def test_separable_gradients_and_statistics():
    model = DRN("drn_c_26", 4, separable=True).double().train()
    twin = plain(model)
    image = torch.randn(2, 3, 32, 40, dtype=torch.float64)
    for net in (model, twin):
        net(image).square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or relative_error(ours.grad, theirs.grad) < 1e-10, name
    for (name, ours), theirs in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("name", ["drn_a_18", "drn_c_26"])
@torch.no_grad()
def test_the_class_map_averages_to_the_scores(name):
    model = lively(DRN(name, 6))
    image = torch.randn(2, 3, 61, 48)
    torch.testing.assert_close(model.class_map(image).mean((2, 3)), model(image), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_localize():
    """A bright square, and a classifier that only knows brightness: the box is where the square is, to within a position."""
    model = DRN("drn_d_22", 2)
    model.pyramid = lambda x: [nn.functional.avg_pool2d(x, 7, 8, 3)[:, :1]]
    model.fc = nn.Conv2d(1, 2, 1)
    model.fc.weight.copy_(torch.tensor([-20.0, 20.0]).view(2, 1, 1, 1))
    model.fc.bias.copy_(torch.tensor([10.0, -10.0]))
    image = torch.zeros(2, 3, 120, 157)
    image[0, :, 40:72, 24:96] = 1
    found = model.localize(image, 0.9)
    assert found.heat_maps.shape == (2, 2, 15, 20)
    torch.testing.assert_close(found.heat_maps.sum(1), torch.ones(2, 15, 20))
    background, square = found.boxes[0]
    assert (background.label, square.label, [b.label for b in found.boxes[1]]) == (0, 1, [0])
    assert (square.top, square.left, square.bottom, square.right) == pytest.approx((40, 24, 72, 96), abs=8)
    assert (background.top, background.left, background.bottom, background.right) == (0, 0, 116.5, 156.5)


def test_positions_of_the_class_map():
    """What `localize` assumes of every architecture: position u looks at pixel 8u."""
    for name in ("drn_a_50", "drn_b_26", "drn_c_58", "drn_d_22"):
        field = theory(Features(on_meta(lambda n=name: DRN(n)).eval()), 224)[-1]
        assert field.jump == (drn.JUMP,) * 2 and field.start == (drn.START,) * 2


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="name: got 'drn_c_27', supported are drn_a_18"):
        DRN("drn_c_27")
