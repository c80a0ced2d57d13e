"""Modules: the plain network's state_dict, folded norms, exact batch statistics."""

import copy
import pickle

import pytest
import torch
from cases import CONV_CASES, by_id
from helpers import assert_bitwise, assert_close, assert_no_further_on_average, feature_map, rand
from torch import nn

from fastconv.nn import DepthwiseConv2d, DepthwiseSeparableConv2d, ShiftStitchAvgPool2d, ShiftStitchMaxPool2d, Stitch, plain

BN = nn.BatchNorm2d
# The orders of real networks, as arguments and as the plain chain.
ORDERS = {
    "xception": (
        {"input_activation": "relu", "depthwise_norm": BN, "pointwise_norm": BN},
        lambda dw, pw: [nn.ReLU(), dw, BN(12), pw, BN(10)],
    ),
    "deeplab": (
        {"depthwise_norm": BN, "depthwise_activation": "relu", "pointwise_norm": BN, "pointwise_activation": "relu"},
        lambda dw, pw: [dw, BN(12), nn.ReLU(), pw, BN(10), nn.ReLU()],
    ),
    "keras": ({"pointwise_norm": BN, "pointwise_activation": "relu", "depthwise_bias": False}, lambda dw, pw: [dw, pw, BN(10), nn.ReLU()]),
    "mobilenet-v2": (
        {"depthwise_norm": BN, "depthwise_activation": "relu6", "pointwise_norm": BN},
        lambda dw, pw: [dw, BN(12), nn.ReLU6(), pw, BN(10)],
    ),
    "mobilenet-v3": (
        {"depthwise_norm": BN, "depthwise_activation": "hardswish", "pointwise_norm": BN},
        lambda dw, pw: [dw, BN(12), nn.Hardswish(), pw, BN(10)],
    ),
    "bare": ({}, lambda dw, pw: [dw, pw]),
    "layer-norm-like": (
        {"depthwise_norm": lambda n: nn.GroupNorm(1, n), "pointwise_activation": "gelu"},
        lambda dw, pw: [dw, nn.GroupNorm(1, 12), pw, nn.GELU()],
    ),
    "no-affine": (
        {"depthwise_norm": lambda n: BN(n, affine=False), "depthwise_activation": "silu"},
        lambda dw, pw: [dw, BN(12, affine=False), nn.SiLU(), pw],
    ),
    "no-statistics": (
        {"pointwise_norm": lambda n: BN(n, track_running_stats=False)},
        lambda dw, pw: [dw, pw, BN(10, track_running_stats=False)],
    ),
}
GEOMETRY = {"kernel_size": (3, 5), "stride": (1, 2), "padding": (2, 2), "dilation": (2, 1)}


def pair_of(order):
    """Our module and the plain chain, trained for a few steps' worth of statistics, with one state_dict."""
    options, chain = ORDERS[order]
    module = DepthwiseSeparableConv2d(6, 10, depth_multiplier=2, **GEOMETRY, **options)
    biases = [conv.bias is not None for conv in (module.depthwise, module.pointwise)]
    plain = nn.Sequential(*chain(nn.Conv2d(6, 12, **GEOMETRY, groups=6, bias=biases[0]), nn.Conv2d(12, 10, 1, bias=biases[1])))
    for child in plain:
        if isinstance(child, BN) and child.running_mean is not None:
            child.running_mean.normal_()
            child.running_var.uniform_(0.2, 3)
            child.eps = 1e-3
        for parameter in child.parameters():
            nn.init.normal_(parameter)
    for ours, theirs in zip(module.children(), plain, strict=True):
        if isinstance(ours, BN):
            ours.eps = theirs.eps
    module.load_state_dict(plain.state_dict())
    return module, plain


@pytest.mark.parametrize("order", ORDERS)
def test_state_dict_is_the_plain_chains(order):
    module, plain = pair_of(order)
    assert list(module.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(module.state_dict())
    assert list(module.as_sequential().state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("grad", [False, True], ids=["kept", "differentiable"])
def test_eval_mode(order, grad, memory_format):
    module, plain = (m.eval() for m in pair_of(order))
    exact = copy.deepcopy(plain).double()
    x = feature_map((2, 6, 9, 11), torch.float32, "cpu", memory_format)
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            assert_close(module(x), exact(x.double()))


@pytest.mark.parametrize("order", ORDERS)
def test_train_mode(order, memory_format):
    """Outputs, gradients and the statistics that are kept, all as in the plain chain (in float64, where no kink is met on two sides)."""
    module, plain = (m.train().double() for m in pair_of(order))
    x = feature_map((3, 6, 9, 11), torch.float64, "cpu", memory_format)
    out, expected = module(x), plain(x)
    assert_close(out, expected)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad)
    # Biases in front of a norm have no gradient but rounding noise, hence one measure for all.
    largest = max(parameter.grad.norm() for parameter in plain.parameters())
    for (name, ours), theirs in zip(module.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() / largest < 1e-12, name
    for (name, ours), theirs in zip(module.named_buffers(), plain.buffers(), strict=True):
        assert_close(ours.double(), theirs.double(), name)


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_through_folded_norms(order):
    """Fine-tuning with frozen statistics: eval mode, and every parameter, those of the norms too, has its gradient."""
    module, plain = (m.eval().double() for m in pair_of(order))
    x = rand(2, 6, 9, 11, dtype=torch.float64)
    out = module(x)
    grad = torch.randn_like(out)
    out.backward(grad)
    plain(x).backward(grad)
    largest = max(parameter.grad.norm() for parameter in plain.parameters())
    for (name, ours), theirs in zip(module.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() / largest < 1e-12, name


@pytest.mark.parametrize("order", ["deeplab", "keras", "layer-norm-like"])
@pytest.mark.parametrize("training", [False, True])
def test_residual_comes_after_the_norm_and_before_the_activation(order, training):
    module, plain = (m.train(training) for m in pair_of(order))
    x, residual = rand(2, 6, 9, 11), rand(2, 10, 9, 6)
    before = plain[:-1](x)
    assert_close(module(x, residual), plain[-1](before.double() + residual.double()))


@pytest.mark.parametrize("order", ["deeplab", "mobilenet-v2", "xception"])
def test_16_bit(order, dtype, memory_format):
    def draw():
        module, plain = (m.eval().to(dtype) for m in pair_of(order))
        x = feature_map((2, 6, 19, 21), dtype, "cpu", memory_format)
        with torch.no_grad():
            return module(x), plain(x), copy.deepcopy(plain).double()(x.double())

    # Weight, bias and map, where the plain chain rounds a map before the norm and one behind it.
    assert_no_further_on_average(draw, roundings=3 / 2)


def test_folded_weights_follow_their_sources():
    """Whatever is written to, replaced, moved or loaded, the next call sees it."""
    module, _ = pair_of("deeplab")
    module.eval()
    x = rand(1, 6, 8, 8)

    def check():
        with torch.no_grad():
            assert_close(module(x), copy.deepcopy(module.as_sequential()).double()(x.double()))

    check()
    kept = module._folded._kept
    check()
    assert kept is not None and module._folded._kept is kept
    with torch.no_grad():
        module.depthwise.weight.mul_(2)
        check()
        module.pointwise_norm.running_var += 1
        check()
        module.pointwise_norm.weight = nn.Parameter(rand(10))
        check()
        module.depthwise_norm.running_mean = rand(12)
        check()
        module.depthwise_norm.eps *= 100
        check()
        module.add_module("1", nn.SyncBatchNorm(12).eval())
        check()
        module.add_module("1", BN(12).eval())
    _, other = pair_of("deeplab")
    module.load_state_dict(other.state_dict())
    check()
    torch.optim.SGD(module.parameters(), lr=0.1).zero_grad()
    module.train()
    module(x).sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    module.eval()
    check()
    module.depthwise.weight.data = rand(12, 1, 3, 5)
    check()
    module.depthwise.weight.data.mul_(3)
    module.eval()  # writes through .data cannot be seen; a change of mode forgets
    check()
    for _ in range(5):  # the allocator likes to give the old addresses again
        module.bfloat16().float()
        check()
    module.double()
    with torch.no_grad():
        assert_close(module(x.double()), module.as_sequential()(x.double()))


def test_inference_mode_then_training():
    module, plain = (m.eval() for m in pair_of("deeplab"))
    x = rand(1, 6, 8, 8)
    with torch.inference_mode():
        inside = module(x)
    module.requires_grad_(False)
    leaf = x.clone().requires_grad_()
    out = module(leaf)
    assert_bitwise(out.detach(), inside.clone())
    out.sum().backward()
    assert leaf.grad is not None


def test_copies_and_pickles():
    module, _ = pair_of("deeplab")
    module.eval()
    x = rand(1, 6, 8, 8)
    with torch.no_grad():
        out = module(x)
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert other._folded._kept is None
            assert_bitwise(other(x), out)


def test_from_modules():
    dw, norm, pw = nn.Conv2d(6, 6, 3, padding="same", groups=6), BN(6), nn.Conv2d(6, 4, 1)
    module = DepthwiseSeparableConv2d.from_modules(dw, pw, depthwise_norm=norm, depthwise_activation="relu").eval()
    x = rand(2, 6, 7, 7)
    with torch.no_grad():
        assert_close(module(x), pw(norm(dw(x)).relu()).double())
    assert module.depthwise.weight is dw.weight and list(module.state_dict())[:2] == ["0.weight", "0.bias"]
    with pytest.raises(ValueError, match="depthwise must have groups=in_channels"):
        DepthwiseSeparableConv2d.from_modules(nn.Conv2d(6, 6, 3), pw)
    with pytest.raises(ValueError, match="pointwise must be a plain 1x1 convolution of 6 channels"):
        DepthwiseSeparableConv2d.from_modules(dw, nn.Conv2d(6, 4, 1, stride=2))


@pytest.mark.parametrize("case", by_id(CONV_CASES, "multiplier-3-stride-2", "same-even-kernel"), ids=lambda case: case.id)
def test_depthwise_module(case, memory_format):
    arguments = (case.kernel, case.stride, case.padding, case.dilation)
    module = DepthwiseConv2d(case.size[1], *arguments, depth_multiplier=case.multiplier, activation="relu")
    plain = nn.Conv2d(case.size[1], case.middle, *arguments, groups=case.size[1])
    module.load_state_dict(plain.state_dict())
    x = feature_map(case.size, torch.float32, "cpu", memory_format)
    assert_close(module(x), plain.double()(x.double()).relu())


def test_factory_arguments():
    module = DepthwiseSeparableConv2d(4, 4, 3, depthwise_norm=BN, device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in module.parameters())
    assert DepthwiseConv2d(4, 3, dtype=torch.float64).weight.dtype == torch.float64


def test_pooling_modules():
    x = rand(2, 3, 11, 13)
    dense = ShiftStitchMaxPool2d(3, 2, padding=1)(x)
    fragments = ShiftStitchMaxPool2d(3, 2, padding=1, layout="fragments")(x)
    assert_bitwise(dense, nn.MaxPool2d(3, 1, padding=1)(x))
    assert_bitwise(Stitch(2)(fragments, dense.shape[2:]), dense)
    assert_bitwise(Stitch(2, (11, 13))(fragments), dense)
    assert_close(ShiftStitchAvgPool2d(2, 2, count_include_pad=False)(x), nn.AvgPool2d(2, 1)(x).double())


def test_representations_name_what_matters():
    assert "activation=relu" in repr(DepthwiseConv2d(4, 3, activation="relu"))
    assert "depthwise=0, pointwise=1" in repr(DepthwiseSeparableConv2d(4, 4, 3))
    assert "stride=2" in repr(ShiftStitchMaxPool2d(3, 2)) and "count_include_pad=True" in repr(ShiftStitchAvgPool2d(3))
    assert "size=(4, 4)" in repr(Stitch(2, (4, 4)))


def test_plain_is_torch_alone_on_the_same_parameters(monkeypatch):
    model = nn.Sequential(
        DepthwiseSeparableConv2d(
            6, 8, 3, padding=1, depthwise_norm=nn.BatchNorm2d, pointwise_norm=nn.BatchNorm2d, depthwise_activation="relu"
        ),
        DepthwiseConv2d(8, 5, padding=2, activation="silu"),
    ).double()
    twin = plain(model)
    assert list(twin.state_dict()) == list(model.state_dict())
    x, residual = torch.randn(2, 6, 9, 8, dtype=torch.float64), torch.randn(2, 8, 9, 8, dtype=torch.float64)
    for training in (True, False):
        expected = model.train(training)(x), model[0](x, residual)
        with monkeypatch.context() as patch:
            patch.setattr("fastconv.backends.select", None)
            torch.testing.assert_close((twin.train(training)(x), twin[0](x, residual)), expected)
