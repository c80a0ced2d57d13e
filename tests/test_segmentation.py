"""DeepLabv3+, the U-Net and FCN decoder, OverFeat: sizes, both formats, the same numbers and gradients as torch's own modules."""

import pytest
import torch
import torch.nn.functional as F
from helpers import relative_error
from networks import FORMATS, lively, on_meta, parameters

from fastconv.models import DRN, Decoder, DeepLabV3Plus, MobileNetV2, MobileNetV3, OverFeat, Segmenter, Xception, create, deeplab
from fastconv.nn import DepthwiseSeparableConv2d, plain

SMALL = deeplab.Config(channels=16, low_channels=8)
ENCODERS = {
    "xception": lambda stride: Xception("xception41", output_stride=stride, width=0.0625),
    "mobilenet_v2": lambda stride: MobileNetV2(width=0.25, output_stride=stride, backend="fastconv"),
    "mobilenet_v3": lambda stride: MobileNetV3("small", width=0.5, output_stride=stride),
}


def small_deeplab(encoder="mobilenet_v2", output_stride=16, **options):
    torch.manual_seed(4)
    return DeepLabV3Plus(ENCODERS[encoder](output_stride), 5, SMALL, dropout=0.0, **options)


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("output_stride", [16, 8])
@torch.no_grad()
def test_deeplab_equals_torch_at_odd_sizes(encoder, output_stride, format_name):
    model = lively(small_deeplab(encoder, output_stride))
    image = torch.randn(2, 3, 65, 49).contiguous(memory_format=FORMATS[format_name])
    expected = plain(model).double()(image.double())
    out = model(image)
    assert out.shape == (2, 5, 65, 49) and out.is_contiguous(memory_format=FORMATS[format_name])
    assert relative_error(out, expected) <= max(2 * relative_error(plain(model)(image), expected), 1e-6)


@pytest.mark.parametrize(("encoder", "output_stride"), [("xception65", 16), ("xception65", 8), ("mobilenet_v2", 16)])
def test_deeplab_has_the_papers_layers(encoder, output_stride):
    model = on_meta(lambda: DeepLabV3Plus(create(encoder, output_stride=output_stride)))
    rates = [conv.depthwise.dilation[0] for conv in model.aspp.atrous]
    assert rates == ([6, 12, 18] if output_stride == 16 else [12, 24, 36])
    shapes = [(conv.depthwise.in_channels, conv.pointwise.out_channels) for conv in (*model.aspp.atrous, *model.decoder)]
    assert shapes == [(320 if encoder == "mobilenet_v2" else 2048, 256)] * 3 + [(304, 256), (256, 256)]
    out = model.eval()(torch.empty(1, 3, 513, 513, device="meta"))
    assert out.shape == (1, 21, 513, 513)


@pytest.mark.parametrize("norm_between", [True, False])
@pytest.mark.parametrize("format_name", FORMATS)
def test_gradients_of_a_whole_deeplab_against_float64(norm_between, format_name):
    """To float32 accuracy: no further from float64 autograd than torch's own modules in float32 are, parameter by parameter."""
    model = small_deeplab(norm_between=norm_between).train()
    model = model.to(memory_format=FORMATS[format_name])
    unfused, exact = plain(model), plain(model).double()
    image, target = torch.randn(3, 3, 64, 48), torch.randint(0, 5, (3, 64, 48))
    image = image.contiguous(memory_format=FORMATS[format_name])
    for net in (model, unfused, exact):
        F.cross_entropy(net(image.to(next(net.parameters()).dtype)), target).backward()
    # The encoder's own head has no part in this.
    used = [name for name, p in exact.named_parameters() if p.grad is not None]
    assert used == [name for name, p in model.named_parameters() if p.grad is not None]
    assert {name.split(".")[1] for name, _ in model.named_parameters() if name not in used} == {"features", "classifier"}
    ours, theirs, reference = ([net.get_parameter(name).grad.double().flatten() for name in used] for net in (model, unfused, exact))
    assert relative_error(torch.cat(ours), torch.cat(reference)) <= max(2 * relative_error(torch.cat(theirs), torch.cat(reference)), 1e-6)
    largest = max(g.norm() for g in reference)
    for name, a, b, c in zip(used, ours, theirs, reference, strict=True):
        # Where a gradient is itself small, what counts is its error beside the largest gradients.
        assert (a - c).norm() <= max(4 * (b - c).norm(), 1e-5 * c.norm(), 1e-7 * largest), name
    for (name, a), b in zip(model.named_buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-5, msg=name)


def test_running_statistics_are_equal():
    model = small_deeplab("xception").double().train()
    twin = plain(model)
    for _ in range(3):
        image = torch.randn(2, 3, 48, 48, dtype=torch.float64)
        model(image), twin(image)
    for (name, ours), theirs in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12, msg=name)


def saved(forward) -> int:
    """Bytes that a forward pass keeps for its backward pass."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward()
    del out
    return sum(storages.values())


def test_training_keeps_less_than_torch_does():
    model = DRN("drn_d_22", 4, separable=True).train()
    twin = plain(model)
    image = torch.randn(2, 3, 64, 64)
    fixed = sum(p.nbytes for p in model.parameters())
    ours, theirs = (saved(lambda net=net: net.class_map(image)) - fixed for net in (model, twin))
    assert ours < 0.85 * theirs


def test_deeplab_on_a_drn_and_wrong_encoders():
    model = DeepLabV3Plus(DRN("drn_d_22", separable=True), 3, SMALL).eval()
    assert model(torch.randn(1, 3, 41, 50)).shape == (1, 3, 41, 50)
    with pytest.raises(ValueError, match="encoder: needs a map of stride 4 and a last one of stride 8 or 16"):
        DeepLabV3Plus(MobileNetV2(width=0.25))


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("merge", ["concatenate", "add"])
@torch.no_grad()
def test_decoders(merge, format_name):
    torch.manual_seed(9)
    encoder = MobileNetV2(width=0.25, backend="fastconv")
    model = lively(Segmenter(encoder, 4, (24, 16, 12, 8), merge))
    image = torch.randn(2, 3, 71, 90).contiguous(memory_format=FORMATS[format_name])
    out, expected = model(image), plain(model).double()(image.double())
    assert out.shape == (2, 4, 71, 90) and out.is_contiguous(memory_format=FORMATS[format_name])
    assert relative_error(out, expected) <= max(2 * relative_error(plain(model)(image), expected), 1e-6)
    assert model.decoder(encoder.pyramid(image)).shape == (2, 8, 36, 45)
    separables = [m for m in model.decoder.modules() if isinstance(m, DepthwiseSeparableConv2d)]
    assert len(separables) == (8 if merge == "concatenate" else 4)


def test_decoder_gradients():
    for merge in ("concatenate", "add"):
        model = Segmenter(MobileNetV2(width=0.25, backend="fastconv"), 3, (8, 8), merge).double().train()
        twin = plain(model)
        image = torch.randn(2, 3, 50, 37, dtype=torch.float64)
        for net in (model, twin):
            net(image).square().sum().backward()
        for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
            # The encoder's classifier has no part in this.
            assert (ours.grad is None) == (theirs.grad is None), name
            assert ours.grad is None or relative_error(ours.grad, theirs.grad) < 1e-9, name


def test_decoders_say_what_is_wrong():
    with pytest.raises(ValueError, match="merge: got 'multiply', supported are concatenate, add"):
        Decoder(((4, 8), (8, 16)), (8,), "multiply")
    with pytest.raises(ValueError, match="channels: between 1 and 1 steps are possible"):
        Decoder(((4, 8), (8, 16)), (8, 8))


# Image, last map, windows of one offset, outputs of one offset, output: the paper's table of its multi-scale classification.
SCALES = [
    ((245, 245), (17, 17), (5, 5), (1, 1), (3, 3)),
    ((281, 317), (20, 23), (6, 7), (2, 3), (6, 9)),
    ((317, 389), (23, 29), (7, 9), (3, 5), (9, 15)),
    ((389, 461), (29, 35), (9, 11), (5, 7), (15, 21)),
    ((461, 569), (35, 44), (11, 14), (7, 10), (21, 30)),
]


@pytest.mark.parametrize("scale", SCALES, ids=str)
@torch.no_grad()
def test_overfeat_has_the_papers_sizes(scale):
    image, last, windows, each, output = scale
    model = OverFeat("accurate", 3, width=1 / 64).eval()
    features = model.features(torch.randn(1, 3, *image))
    pooled = model.offset_pool(features)
    assert (features.shape[2:], pooled.shape[2:], pooled.shape[0]) == (last, windows, 9)
    slid = model.classifier(pooled)
    assert slid.shape[2:] == each and slid.stitch().shape[2:] == output


@pytest.mark.parametrize(("name", "offset"), [("fast", 2), ("accurate", 3)])
@torch.no_grad()
def test_overfeat_is_the_strided_network_on_every_offset(name, offset):
    torch.manual_seed(2)
    model = OverFeat(name, 4, width=1 / 32).double().eval()
    size = model.config.size + 58
    image = torch.randn(2, 3, size, size + 37, dtype=torch.float64)
    features, dense = model.features(image), model(image)
    assert model.pool.kernel_size == offset
    for y in range(offset):
        for x in range(offset):
            expected = model.classifier(F.max_pool2d(features[..., y:, x:], offset))
            assert relative_error(dense[..., y::offset, x::offset], expected) < 1e-13
    strided = model.strided(image)
    assert relative_error(dense[..., ::offset, ::offset], strided) < 1e-13


def test_overfeat_parameters_gradients_and_errors():
    counts = [parameters(on_meta(lambda n=name: OverFeat(n))) for name in ("fast", "accurate")]
    assert counts == [145_920_872, 144_656_488]
    model = OverFeat("fast", 3, width=1 / 64, dropout=0.0)
    model(torch.randn(1, 3, 247, 231)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ValueError, match="input: the last map is 10x12, the classifier needs 12x12; give at least 231x231"):
        model(torch.zeros(1, 3, 200, 231))
    with pytest.raises(TypeError, match="dropout: in train mode it would drop fragments"):
        OverFeat("fast", 3, width=1 / 64)(torch.zeros(1, 3, 231, 231))
    OverFeat("fast", 3, width=1 / 64).strided(torch.zeros(1, 3, 231, 231)).sum().backward()
    with pytest.raises(ValueError, match="name: got 'slow', supported are fast, accurate"):
        OverFeat("slow")


def test_overfeat_with_channels_last_images():
    model = OverFeat("fast", 4, width=1 / 32).eval()
    image = torch.randn(1, 3, 263, 240)
    out = model(image.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(out, model(image), rtol=1e-4, atol=1e-5)


def test_deeplab_compiles_without_a_graph_break():
    model = lively(small_deeplab())
    image = torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        expected = model(image)
        assert relative_error(torch.compile(model, fullgraph=True, backend="aot_eager")(image), expected) < 1e-6
