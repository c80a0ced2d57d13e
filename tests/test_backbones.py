"""Xception and MobileNetV3: the names of public checkpoints, exact output strides, the same numbers as torch's own modules."""

import hashlib

import pytest
import torch
from helpers import relative_error
from networks import FORMATS, lively, names, on_meta, parameters
from torch import nn

from fastconv.models import MobileNetV2, MobileNetV3, Xception, create, xception
from fastconv.nn import plain

# sha256 over the sorted lines "name shape" of the checkpoints of timm 1.0 and torchvision 0.29, and their parameters.
PUBLISHED = {
    "xception41": ("0d25e16979b7cdad2b423343435bbe20256b8a23d117ab11639bbd21195abb0f", 26_969_560),
    "xception65": ("e93701d4b3e83edbfa76ec1bc379850a3e25b5c4524780d4ea9e2112ead1d97f", 39_916_312),
    "xception71": ("76efbe839d10a4ec8ed79b35500d884aacc4ec321a12e5f834d5a46f3500cbaa", 42_338_736),
    "mobilenet_v3_large": ("555a3f5e3bcc126ea392ac52ab422c6a68f733ea2a9046dbf0f1b191dd1a09af", 5_483_032),
    "mobilenet_v3_small": ("8fee267f118ca2d792c601972a6569784230d072ae8bdc09f798603f30decf4f", 2_542_856),
}


def digest(model: nn.Module) -> str:
    return hashlib.sha256("\n".join(sorted(f"{name} {shape}" for name, shape in names(model))).encode()).hexdigest()


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_the_published_ones(name):
    model = on_meta(lambda: create(name))
    assert (digest(model), parameters(model)) == PUBLISHED[name]


def small_xception(output_stride=32):
    torch.manual_seed(5)
    return lively(Xception("xception41", 10, output_stride, width=0.125))


def small_mobilenet(output_stride=32, name="large"):
    torch.manual_seed(6)
    return lively(MobileNetV3(name, 10, 0.35, output_stride, dropout=0.0))


NETWORKS = {
    "xception": small_xception,
    "mobilenet_v3_large": small_mobilenet,
    "mobilenet_v3_small": lambda output_stride=32: small_mobilenet(output_stride, "small"),
    "mobilenet_v2": lambda output_stride=32: lively(MobileNetV2(10, 0.35, output_stride, 0.0, "fastconv")),
}


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_fused_equals_torch_at_odd_sizes(name, output_stride, format_name):
    model = NETWORKS[name](output_stride)
    image = torch.randn(2, 3, 67, 49).contiguous(memory_format=FORMATS[format_name])
    exact = plain(model).double().pyramid(image.double())
    unfused = plain(model).pyramid(image)
    maps = model.pyramid(image)
    for found, torchs, expected, (stride, channels) in zip(maps, unfused, exact, model.taps, strict=True):
        assert found.shape == (2, channels, -(-67 // stride), -(-49 // stride))
        assert found.is_contiguous(memory_format=FORMATS[format_name])
        assert relative_error(found, expected) <= max(2 * relative_error(torchs, expected), 1e-6)
    assert relative_error(model(image), plain(model).double()(image.double())) < 1e-5
    assert model.taps[-1][0] == output_stride


@pytest.mark.parametrize("output_stride", [16, 8])
def test_output_strides_are_exact(output_stride):
    image = torch.randn(1, 3, 75, 98, dtype=torch.float64)
    step = 32 // output_stride
    with torch.no_grad():
        strided = small_xception().double().features(image)
        dense = small_xception(output_stride).double().features(image)
    assert relative_error(dense[..., ::step, ::step], strided) < 1e-13


@pytest.mark.parametrize("name", NETWORKS)
def test_train_mode_is_exact(name):
    model = NETWORKS[name](16).double().train()
    twin = plain(model)
    image = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    for net in (model, twin):
        net(image).square().sum().backward()
    for (key, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert relative_error(ours.grad, theirs.grad) < 1e-9, key
    for (key, ours), theirs in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=key)


def test_every_separable_convolution_is_fused(monkeypatch):
    """Xception-65 has 21 blocks of three; each is one operator, shortcuts and ReLUs included."""
    calls = []
    original = xception.DepthwiseSeparableConv2d.forward
    monkeypatch.setattr(xception.DepthwiseSeparableConv2d, "forward", lambda self, *a: calls.append(a) or original(self, *a))
    model = on_meta(lambda: Xception("xception65")).eval()
    model(torch.empty(1, 3, 64, 64, device="meta"))
    assert len(calls) == 63 and sum(a[1] is not None for a in calls if len(a) > 1) == 20


def test_what_is_not_supported_is_said():
    with pytest.raises(ValueError, match="output_stride: got 4, supported are 8, 16 and 32"):
        Xception(output_stride=4)
    with pytest.raises(ValueError, match="name: got 'xception66', supported are xception41"):
        Xception("xception66")
    with pytest.raises(ValueError, match="name: got 'medium', supported are large, small"):
        MobileNetV3("medium")
    with pytest.raises(ValueError, match="name: got 'resnet50', supported are drn_a_18"):
        create("resnet50")
