"""to_dense on what people write into forward: converted exactly whatever the method, or refused with a sentence that is true."""

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from chains import distance, random_norm, randomise_norms
from torch import nn

from fastconv.dense import NotConvertible, tiled, to_dense
from fastconv.fragments import Fragments
from fastconv.receptive_field import theory


class Between(nn.Module):
    """A strided convolution, something in between, another one."""

    def __init__(self, between, **modules):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 4, 3, 2, 1)
        for name, module in modules.items():
            setattr(self, name, module)
        self.between = between

    def forward(self, x):
        return self.last(self.between(self, self.first(x)))


def conv(**arguments):
    return nn.Conv2d(6, 6, 3, padding=1, **arguments)


def relu_beside(x, inplace):
    F.relu(x, inplace=inplace)
    return x


CONVERTED = {
    "max pool, ceil_mode": lambda m, x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "max pool, stride left out": lambda m, x: F.max_pool2d(x, 2),
    "max pool by keywords": lambda m, x: F.max_pool2d(x, kernel_size=(3, 2), stride=[2, 2], padding=(1, 0)),
    "average pool, divisors": lambda m, x: F.avg_pool2d(F.avg_pool2d(x, 3, 2, 1, True, False), 2, 1, ceil_mode=True, divisor_override=3),
    "generalised mean": lambda m, x: F.avg_pool2d(x.clamp(min=1e-6).pow(3), 2).pow(1 / 3),
    "padding with a number": lambda m, x: F.pad(x, (1, 2), value=0.5),
    "cropping": lambda m, x: F.pad(x, (-1, 0, 0, -2)),
    "parts of the channels": lambda m, x: torch.cat([x[:, 3:], x[:, :3]], 1),
    "chunk": lambda m, x: torch.cat([x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(), x[:, :3]], 1),
    "split, all of it again": lambda m, x: torch.cat(torch.split(x, split_size_or_sections=[2, 4], dim=1), 1),
    "split, in another order": lambda m, x: torch.cat(x.split([2, 4], 1)[::-1], 1),
    "type_as": lambda m, x: x.tanh().type_as(x),
    "softmax over channels": lambda m, x: x.softmax(1) + F.normalize(x) + x * x.mean(1, keepdim=True),
    "alpha": lambda m, x: torch.add(x, x.tanh(), alpha=2).sub(x, alpha=0.5),
    "a result thrown away": lambda m, x: relu_beside(x, inplace=True),
    "a result not used": lambda m, x: relu_beside(x, inplace=False),
    "an exact transpose": lambda m, x: x.permute(0, 2, 3, 1).square().permute(0, 3, 1, 2),
    "functional dropout in eval mode": lambda m, x: F.dropout(x, 0.5, m.training),
}
WITH_MODULES = {
    "instance norm by stored statistics": lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
    "weight norm": lambda: torch.nn.utils.parametrizations.weight_norm(conv()),
    "spectral norm": lambda: torch.nn.utils.parametrizations.spectral_norm(conv()),
    "grouped": lambda: conv(groups=3),
    "nested": lambda: nn.Sequential(nn.Sequential(), nn.Sequential(nn.Identity(), nn.Sequential(conv(), nn.PReLU(6)), nn.MaxPool2d(2))),
}


def converts(model, size=(41, 38), rate=None):
    model = model.double().eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    maps = []
    for method in ("dilated", "fragments"):
        dense = to_dense(model, 1, method)
        sy, sx = rate or dense.report.total_stride
        with torch.no_grad():
            maps.append(dense(x))
            assert distance(maps[-1][..., ::sy, ::sx], model(x)) < 1e-12
        # Layer by layer, as under autograd.
        assert distance(dense(x), maps[0]) < 1e-12
    assert distance(maps[1], maps[0]) < 1e-12
    return dense


@pytest.mark.parametrize("between", CONVERTED)
def test_converted(between):
    converts(Between(CONVERTED[between]))


@pytest.mark.parametrize("module", WITH_MODULES)
def test_modules_converted(module):
    module = WITH_MODULES[module]()
    if isinstance(module, nn.InstanceNorm2d):
        random_norm(module)
    converts(Between(lambda m, x: m.extra(x), extra=module))


def test_padding_that_copies_the_edge_may_stand_before_the_first_stride():
    for mode in ("reflect", "replicate", "circular"):
        converts(nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, padding_mode=mode), nn.Conv2d(6, 4, 3, 2, 1)))
    for pad in (nn.ReflectionPad2d(2), nn.ReplicationPad2d((1, 0, 2, 1)), nn.CircularPad2d(1)):
        converts(nn.Sequential(pad, nn.Conv2d(3, 6, 3, 2), nn.MaxPool2d(2)))


def softmax_over_rows(m, x):
    return x.softmax(2)


def written_part(m, x):
    x[:, :3].mul_(2)
    return x


REFUSED = {
    "indices": (lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0], "returns indices"),
    "mirrored": (lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 'pads in mode "reflect"'),
    "resampled": (lambda m, x: F.interpolate(x, scale_factor=2), "resamples"),
    "group norm": (lambda m, x: F.group_norm(x, 2), "statistics of the whole map"),
    "normalised over positions": (lambda m, x: F.layer_norm(x, x.shape[1:]), "depends on the size of the map"),
    "adaptive to itself": (lambda m, x: F.adaptive_avg_pool2d(x, (None, None)), "pools adaptively"),
    "over rows": (softmax_over_rows, "over positions"),
    "by the size": (lambda m, x: x * (1.0 / x.shape[2]), "size of the map"),
    "every second": (lambda m, x: x[..., ::2, ::2], "takes the entries"),
    "a part written": (written_part, "writes in place into a part"),
    "dropout": (lambda m, x: F.dropout(x, 0.5), "stochastic in train mode"),
    "batch statistics": (lambda m, x: F.batch_norm(x, None, None, training=True), "batch statistics"),
    "random by itself": (lambda m, x: x * torch.rand(6, 1, 1).double(), "two runs on the same image differ"),
    "everything by its mean": (lambda m, x: x - x.mean(), "takes the mean"),
    "attention": (lambda m, x: x @ x.transpose(2, 3) @ x, "mixes positions"),
}


@pytest.mark.parametrize("between", REFUSED)
def test_refused(between):
    function, reason = REFUSED[between]
    with pytest.raises(NotConvertible, match=reason):
        to_dense(Between(function).double().eval())


def test_modes_are_each_modules_own():
    def network(**modules):
        return Between(lambda m, x: m.extra(x), **modules)

    model = network(extra=nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))).train()
    with pytest.raises(NotConvertible, match="batch statistics in train mode") as caught:
        to_dense(model)
    assert caught.value.module == "extra.0"
    # Frozen norms in a network that trains.
    model.extra[0].eval()
    dense = to_dense(model)
    modes = {name: module.training for name, module in model.named_modules()}
    assert not modes["extra.0"] and modes["extra.2"]
    assert all(module.training == modes.get(name, True) for name, module in dense.named_modules())
    assert not any(module.training for module in to_dense(model.eval()).modules())
    model = network(extra=nn.Sequential(nn.Identity(), nn.Dropout(0.5))).eval()
    assert to_dense(model).report.error < 1e-12
    model.extra[1].train()
    with pytest.raises(NotConvertible, match="stochastic in train mode") as caught:
        to_dense(model)
    assert caught.value.module == "extra.1"


def test_arguments_with_defaults_are_left_at_them():
    class Options(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 4, 3, 2, 1)

        def forward(self, x, mask=None, scale: float = 2.0, *rest, pre_logits=False, **options):
            x = self.first(x) * scale
            if mask is not None:
                x = x * mask
            return x if pre_logits or options or rest else self.last(x)

    converts(Options())

    class Two(Options):
        def forward(self, x, mask):
            return self.last(self.first(x) * mask)

    with pytest.raises(NotConvertible, match="x, mask"):
        to_dense(Two())


def test_results_may_be_nested_and_parts_of_a_split_may_not():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 4, 3, 2, 1)

        def forward(self, x):
            x = self.first(x)
            return {"maps": [x, {"last": self.last(x)}], "nothing": None, "number": 3}

    model = Nested().double()
    x = torch.randn(1, 3, 20, 23, dtype=torch.float64)
    for method in ("dilated", "fragments"):
        found, expected = to_dense(model, 1, method)(x), model(x)
        assert distance(found["maps"][0][..., ::2, ::2], expected["maps"][0]) < 1e-12
        assert distance(found["maps"][1]["last"][..., ::4, ::4], expected["maps"][1]["last"]) < 1e-12
        assert found["nothing"] is None and found["number"] == 3

    class Parts(Nested):
        def forward(self, x):
            return self.first(x).chunk(2, 1)

    with pytest.raises(NotConvertible, match="tuple of parts"):
        to_dense(Parts())
    model.forward = lambda x: model.first(x)
    with pytest.raises(NotConvertible, match="assigned to the object"):
        to_dense(model)


def test_parts_of_channels_on_every_plan():
    model = Between(
        lambda m, x: (lambda parts: torch.cat([parts[0] * parts[1].tanh(), parts[1]], 1))(m.pool(x).chunk(2, 1)), pool=nn.MaxPool2d(2)
    )
    model = model.double().eval()
    x = torch.randn(1, 3, 60, 60, dtype=torch.float64)
    for chunk_bytes in (None, 1, 3000):
        for method in ("fragments", "auto"):
            dense = to_dense(model, 1, method, x, chunk_bytes=chunk_bytes, tune=method == "auto")
            with torch.no_grad():
                assert distance(dense(x)[..., ::8, ::8], model(x)) < 1e-12


class NormAct(nn.BatchNorm2d):
    """A norm that hides its activation and what stands between, as timm's BatchNormAct2d."""

    def __init__(self, channels, act):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x):
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(self.drop(x))


def test_norms_that_hide_an_activation_are_folded():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.expand, self.n1 = nn.Conv2d(6, 12, 1, bias=False), NormAct(12, nn.ReLU6())
            self.dw, self.n2, self.se = nn.Conv2d(12, 12, 3, 1, 1, groups=12, bias=False), NormAct(12, nn.SiLU()), nn.Identity()
            self.pw, self.n3 = nn.Conv2d(12, 6, 1), NormAct(6, nn.Identity())

        def forward(self, x):
            y = self.se(self.n2(self.dw(self.n1(self.expand(x)))))
            return x + self.n3(self.pw(y))

    model = randomise_norms(Between(lambda m, x: m.extra(x), extra=Block()))
    dense = converts(model)
    # The expansion with its norm and activation; the other two convolutions as one, with the sum.
    assert sum(type(m).__name__ == "Fused" for m in dense.modules()) == 2
    assert not any(node.target is F.batch_norm for node in dense.graph.nodes) and operator.add not in {n.target for n in dense.graph.nodes}
    x = torch.randn(1, 3, 30, 30, dtype=torch.float64)
    with torch.no_grad():
        before = dense(x)
        model.extra.n2.running_var.mul_(1.5)
        assert distance(dense(x), before) > 1e-6
        assert distance(dense(x)[..., ::4, ::4], model(x)) < 1e-12
        assert distance(copy.deepcopy(dense)(x), dense(x)) < 1e-12


def test_hooks_are_called():
    model = Between(lambda m, x: m.act(m.norm(m.extra(x))), extra=conv(), norm=nn.BatchNorm2d(6), act=nn.ReLU())
    for module in (model.extra, model.norm, model.act):
        handle = module.register_forward_hook(lambda module, inputs, output: output * 1.5 - 0.1)
        converts(model)
        handle.remove()


def test_an_empty_batch_and_unusual_images():
    model = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3, 1, 1)).eval()
    x = torch.randn(4, 6, 29, 40)[:, ::2, 1:, 3:35]
    for method in ("dilated", "fragments"):
        for chunk_bytes in (None, "auto", 1):
            dense = to_dense(model, 1, method, chunk_bytes=chunk_bytes)
            with torch.no_grad():
                whole = dense(x)
                assert dense(x[:0]).shape == (0, *whole.shape[1:])
                assert distance(dense(x[:1].expand(3, -1, -1, -1)), whole[:1].expand(3, -1, -1, -1)) < 1e-5
                assert distance(dense(x.contiguous(memory_format=torch.channels_last)), whole) < 1e-5
            with pytest.raises(ValueError, match=r"x\[None\]"):
                dense(x[0])
    for dtype in (torch.bfloat16, torch.float16):
        other = to_dense(copy.deepcopy(model).to(dtype), 1, "fragments")
        with torch.no_grad():
            assert distance(other(x.to(dtype)).float(), whole) < 16 * torch.finfo(dtype).eps


def test_what_cannot_be_converted_as_it_was_handed_in():
    model = Between(lambda m, x: x)
    for wrapped, hint in ((torch.compile(model, backend="eager"), "_orig_mod"), (nn.DataParallel(model), "model.module")):
        with pytest.raises(NotConvertible, match=hint):
            to_dense(wrapped)
    with pytest.raises(ValueError, match="DenseModel already"):
        to_dense(to_dense(model))
    with pytest.raises(ValueError, match="verify=False"):
        to_dense(copy.deepcopy(model).to("meta"))
    for arguments, message in (
        ({"output_stride": 1.5}, "output_stride must be an int"),
        ({"output_stride": (1, 1, 1)}, "output_stride must be an int"),
        ({"example_input": (1, 3, 32, 32)}, "example_input: must be a tensor"),
        ({"example_input": torch.zeros(1, 3, 32, 32), "chunk_bytes": 0}, "chunk_bytes"),
        ({"chunk_bytes": "all"}, "chunk_bytes"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            to_dense(model, **arguments)
    with pytest.raises(ValueError, match=r"at least 5x5 pixels.*\(1, 3, 4, 9\)"):
        to_dense(nn.Sequential(nn.Conv2d(3, 1, 3, 2), nn.MaxPool2d(2)).eval(), method="auto", example_input=torch.zeros(1, 3, 4, 9))


def test_maps_that_have_no_margins_are_not_tiled():
    x = torch.randn(1, 3, 60, 60)
    features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
    with pytest.raises(ValueError, match="one map"):
        tiled(nn.Sequential(features, nn.AdaptiveAvgPool2d(1)), x, 32)
    around = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, padding_mode="circular"))
    assert theory(around)[-1].extent == (float("inf"),) * 2
    with pytest.raises(ValueError, match="whole image"):
        tiled(around, x, 32)
    with pytest.raises(ValueError, match=r"out: must be \(1, 6, 30, 30\)"):
        tiled(features, x, 32, out=torch.empty(1, 6, 31, 30))


def test_fragments_refuse_what_they_cannot_hold():
    x = torch.randn(2, 3, 9, 8)
    for strides, error in ((2, ValueError), ((0,), ValueError), ((1.5,), TypeError)):
        with pytest.raises(error, match="strides"):
            Fragments(x, strides)
    parts = list(Fragments(x).shift(2).parts(2))
    assert torch.equal(Fragments.join(parts).stitch(), x)
    with pytest.raises(ValueError, match="consecutive"):
        Fragments.join([parts[0], parts[2], parts[1], parts[3]])
    norm = nn.InstanceNorm2d(3)
    with pytest.raises(TypeError, match="instance_norm"):
        norm(Fragments(x))
