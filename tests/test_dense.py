"""to_dense: exactness on random chains and on small networks, refusals, the report."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from chains import distance, image, random_chain, random_norm, strided_output
from torch import nn

from fastconv.dense import NotConvertible, shift_and_stitch, to_dense
from fastconv.dense.cost import dense_sizes
from fastconv.dense.plan import UNSURE
from fastconv.dense.rates import rates, total_stride
from fastconv.spatial import read

CHAINS = 1000


@pytest.mark.parametrize("group", range(10))
def test_random_chains_three_methods_and_gradients(group):
    """In float64 to 1e-12: dense at the strided positions is the strided output; dilated, fragments and shifted runs agree, layers run as
    one or not; so do their gradients."""
    rng = random.Random(1000 + group)
    torch.manual_seed(1000 + group)
    checked, nested = 0, 0
    while checked < CHAINS // 10:
        channels = rng.randint(1, 3)
        chain, x = random_chain(rng, channels, rng.randint(1, 6)), image(rng, channels)
        strided = strided_output(chain, x)
        if strided is None:
            continue
        x.requires_grad_()
        chunk_bytes = rng.choice((None, None, None, 4096))
        networks = [to_dense(chain, 1, method, verify=False, chunk_bytes=chunk_bytes) for method in ("dilated", "fragments")]
        total = networks[0].report.total_stride
        maps = [*(network(x) for network in networks), shift_and_stitch(chain, x, total)]
        with torch.no_grad():
            maps += [network(x) for network in networks]
        assert distance(maps[0][..., :: total[0], :: total[1]], strided) < 1e-12
        assert all(distance(other, maps[0]) < 1e-12 for other in maps[1:])
        if not maps[0].isfinite().all():
            # A window in the padding alone has no gradient worth comparing.
            continue
        seed = torch.randn_like(maps[0])
        wanted = [x, *chain.parameters()]
        gradients = [torch.autograd.grad(y, wanted, seed, allow_unused=True) for y in maps[:3]]
        for other in gradients[1:]:
            for ours, theirs in zip(gradients[0], other, strict=True):
                assert (ours is None) == (theirs is None)
                # A gradient that cancels to rounding has no relative error.
                assert ours is None or theirs.norm() < 1e-10 or distance(ours, theirs) < 1e-12
        nested += len([s for s in chain if getattr(s, "stride", 1) not in (1, (1, 1))]) >= 3
        checked += 1
    assert nested > 3


def test_partial_output_strides():
    rng = random.Random(3)
    torch.manual_seed(3)
    checked = 0
    while checked < 20:
        chain, x = random_chain(rng, 2, rng.randint(2, 5), 12), image(rng, 2)
        with torch.no_grad():
            strided = strided_output(chain, x)
            if strided is None:
                continue
            total = to_dense(chain, 1, verify=False).report.total_stride
            for kept in [(y, z) for y in range(1, total[0] + 1) for z in range(1, total[1] + 1) if total[0] % y == 0 == total[1] % z][1:5]:
                for method in ("dilated", "fragments"):
                    dense = to_dense(chain, kept, method, verify=False)(x)
                    assert distance(dense[..., :: total[0] // kept[0], :: total[1] // kept[1]], strided) < 1e-12
        checked += 1


class Residual(nn.Module):
    """Strided bottleneck with an average-pool shortcut (ResNet-D) whose dense map is a row shorter, and in-place activations."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True), nn.Conv2d(out, out, 3, 1, 1)
        )
        self.short = nn.Sequential(
            nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False), nn.Conv2d(channels, out, 1), nn.BatchNorm2d(out)
        )

    def forward(self, x):
        y = self.main(x)
        y += self.short(x)
        return F.relu_(y)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, 2, 3)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(Residual(8, 12, 2), Residual(12, 16, 2))
        self.dropout = nn.Dropout(0.5)
        self.gamma = nn.Parameter(torch.rand(16, 1, 1))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(28, 10))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                random_norm(module)

    def features(self, x):
        x = F.relu(self.pool(self.stem(x)), inplace=True)
        x = self.blocks(x)
        x = torch.cat([x * self.gamma, x[:, :12].tanh()], dim=1)
        return self.dropout(x)

    def forward(self, x):
        return self.head(F.adaptive_avg_pool2d(self.features(x), 1))


@pytest.mark.parametrize(
    ("method", "output_stride"), [(m, s) for m in ("dilated", "fragments", "auto") for s in (1, 2, 4, 16) if m != "auto" or s == 2]
)
def test_network_with_branches_and_a_slid_head(method, output_stride):
    torch.manual_seed(1)
    model = Network().double().eval()
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 70, 75, dtype=torch.float64)
    dense = to_dense(model, output_stride, method, fully_convolutional=True)
    k = 16 // output_stride
    with torch.no_grad():
        strided = F.conv2d(model.features(x), model.head[1].weight[:, :, None, None], model.head[1].bias)
        assert distance(dense(x)[..., ::k, ::k], strided) < 1e-12
        # With nothing behind the pool but a linear layer, the mean of the map is the classifier's answer.
        assert distance(dense(x)[..., ::k, ::k].mean((2, 3)), model(x)) < 1e-12
    assert dense.report.error < 1e-12 and dense.report.head_error < 1e-12
    assert dense.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())


def test_state_dict_round_trip_deepcopy_casts_and_training():
    torch.manual_seed(2)
    model = Network().eval()
    dense = to_dense(model, 2, "fragments", fully_convolutional=True)
    x = torch.randn(1, 3, 48, 50)
    other = copy.deepcopy(dense)
    assert torch.equal(other(x), dense(x))
    # A copy is a copy; the converted network shares the original's parameters.
    with torch.no_grad():
        model.stem.weight.mul_(1.5)
    assert not torch.equal(other(x), dense(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), dense(x))
    assert other.double()(x.double()).dtype == torch.float64
    dense(x).square().mean().backward()
    assert model.stem.weight.grad is not None and model.head[1].bias.grad is not None


def test_asymmetric_constant_padding_and_same_convolutions():
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(2, 3, 3, 2), nn.Tanh(), nn.Conv2d(3, 3, 4, padding="same"), nn.ConstantPad2d((2, 0, 1, 1), 0.7), nn.MaxPool2d(2),
        nn.Conv2d(3, 2, (2, 4), padding="same"),
    ).double()  # fmt: skip
    x = torch.randn(1, 2, 31, 28, dtype=torch.float64)
    for method in ("dilated", "fragments"):
        assert distance(to_dense(model, 1, method)(x)[..., ::4, ::4], model(x)) < 1e-12


def test_convnext_downsampling_layer_norm_and_layer_scale():
    class Block(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.dw, self.norm, self.up, self.down = (
                nn.Conv2d(c, c, 7, 1, 3, groups=c),
                nn.LayerNorm(c),
                nn.Linear(c, 2 * c),
                nn.Linear(2 * c, c),
            )
            self.gamma = nn.Parameter(torch.rand(c))

        def forward(self, x):
            y = self.norm(self.dw(x).permute(0, 2, 3, 1))
            y = self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)
            return x + y * self.gamma.reshape(1, -1, 1, 1)

    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), Block(8), nn.Conv2d(8, 12, 2, 2), Block(12)).double()
    x = torch.randn(1, 3, 40, 44, dtype=torch.float64)
    maps = [to_dense(model, 1, method)(x) for method in ("dilated", "fragments")]
    assert distance(maps[0][..., ::8, ::8], model(x)) < 1e-12
    assert distance(maps[1], maps[0]) < 1e-12


def test_a_module_called_twice_at_different_rates():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = nn.Conv2d(2, 2, 3, 1, 1), nn.MaxPool2d(2)

        def forward(self, x):
            return self.conv(self.pool(self.conv(self.pool(x))))

    model = Twice().double()
    x = torch.randn(1, 2, 22, 21, dtype=torch.float64)
    for method in ("dilated", "fragments"):
        dense = to_dense(model, 1, method)
        assert distance(dense(x)[..., ::4, ::4], model(x)) < 1e-12
        assert dense.state_dict().keys() == model.state_dict().keys()


def test_several_outputs():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 3, 3, 2, 1), nn.Conv2d(3, 4, 3, 2, 1)

        def forward(self, x):
            x = self.a(x)
            return {"fine": x, "coarse": self.b(x.relu())}

    model = Pyramid().double()
    x = torch.randn(1, 2, 17, 19, dtype=torch.float64)
    for method in ("dilated", "fragments"):
        out = to_dense(model, 1, method)(x)
        expected = model(x)
        assert distance(out["fine"][..., ::2, ::2], expected["fine"]) < 1e-12
        assert distance(out["coarse"][..., ::4, ::4], expected["coarse"]) < 1e-12


def test_branches_on_shapes_need_an_example_and_values_are_refused():
    class OnShape(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, 2, 1)

        def forward(self, x):
            return self.conv(x) if x.shape[-1] > 8 else x

    class OnValue(OnShape):
        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else x

    with pytest.raises(NotConvertible, match="pass example_input"):
        to_dense(OnShape())
    dense = to_dense(OnShape(), example_input=torch.zeros(1, 1, 16, 16))
    assert dense(torch.zeros(1, 1, 16, 16)).shape[-1] == 16
    with pytest.raises(NotConvertible, match="data-dependent control flow"):
        to_dense(OnValue(), example_input=torch.zeros(1, 1, 16, 16))


class SqueezeExcitation(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.reduce(x.mean((2, 3), keepdim=True)))


class Conv2dSame(nn.Conv2d):
    """As timm's and others': TensorFlow's padding, by class name."""

    def forward(self, x):
        pads = []
        for axis in (1, 0):
            length, k, s, d = x.shape[2 + axis], self.kernel_size[axis], self.stride[axis], self.dilation[axis]
            total = max((-(-length // s) - 1) * s + (k - 1) * d + 1 - length, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def body(*layers):
    return nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), *layers, nn.Conv2d(4, 3, 3, 2, 1))


@pytest.mark.parametrize(
    ("model", "name", "reason"),
    [
        (body(SqueezeExcitation(4)), "1", "squeeze-and-excitation"),
        (body(nn.AdaptiveAvgPool2d(3)), "1", "pools adaptively to 3"),
        (body(nn.GroupNorm(2, 4)), "1", "statistics of the whole map"),
        (body(nn.InstanceNorm2d(4)), "1", "statistics of the whole map"),
        (body(nn.BatchNorm2d(4, track_running_stats=False)).eval(), "1", "no running statistics"),
        (body(nn.BatchNorm2d(4)), "1", "model.eval()"),
        (body(nn.Dropout(0.5)), "1", "stochastic in train mode"),
        (body(nn.Upsample(scale_factor=2)), "1", "resamples"),
        (body(nn.ConvTranspose2d(4, 4, 2, 2)), "1", "transposed"),
        (body(nn.Conv2d(4, 4, 3, 1, 1, padding_mode="reflect")), "1", "reflect"),
        (body(nn.PixelShuffle(1)), "1", "rearranges"),
        (nn.Sequential(body(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), "1", "fully_convolutional=True"),
    ],
)
def test_refusals_name_the_module_and_the_reason(model, name, reason):
    with pytest.raises(NotConvertible) as caught:
        to_dense(model)
    assert caught.value.module == name
    assert reason in caught.value.reason


def test_what_stands_before_the_first_stride_given_up_may_stay():
    torch.manual_seed(6)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1),
        nn.GroupNorm(2, 4),
        SqueezeExcitation(4),
        nn.Conv2d(4, 4, 3, 2, 1, padding_mode="reflect"),
        nn.Conv2d(4, 3, 3, 2, 1),
    ).double()
    x = torch.randn(1, 2, 37, 33, dtype=torch.float64)
    dense = to_dense(model, 2)
    assert distance(dense(x)[..., ::4, ::4], model(x)) < 1e-12


def test_same_padding_is_exact_where_symmetric_and_refused_where_not():
    torch.manual_seed(7)
    model = nn.Sequential(Conv2dSame(2, 4, 3, 2), nn.Tanh(), Conv2dSame(4, 4, 5, 2), Conv2dSame(4, 3, 3, 1)).double()
    odd = torch.randn(1, 2, 33, 29, dtype=torch.float64)
    for method in ("dilated", "fragments"):
        dense = to_dense(model, 1, method, example_input=odd)
        assert distance(dense(odd)[..., ::4, ::4], model(odd)) < 1e-12
        with pytest.raises(NotConvertible, match="asymmetric") as caught:
            dense(torch.zeros(1, 2, 32, 29, dtype=torch.float64))
        assert caught.value.module == "0"
    with pytest.raises(NotConvertible, match="asymmetric"):
        to_dense(model, example_input=torch.zeros(1, 2, 32, 32))


def test_bad_arguments_say_what_to_do():
    chain = nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1), nn.MaxPool2d(3, 3))
    with pytest.raises(ValueError, match=r"total stride is 6 along rows; got 4, possible are \[1, 2, 3, 6\]"):
        to_dense(chain, 4)
    with pytest.raises(ValueError, match="method"):
        to_dense(chain, 1, "shifted")
    with pytest.raises(ValueError, match="at least 1"):
        to_dense(chain, 0)
    with pytest.raises(ValueError, match="no global average pool"):
        to_dense(chain, fully_convolutional=True)
    with pytest.raises(TypeError, match="wrap a function in a Module"):
        to_dense(lambda x: x)
    dense = to_dense(chain)
    with pytest.raises(ValueError, match=r"at least 5x5 pixels.*\(1, 1, 4, 9\)"):
        dense(torch.zeros(1, 1, 4, 9))


def test_report_is_a_table():
    dense = to_dense(nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1), nn.MaxPool2d(3, 3), nn.Conv2d(1, 1, 3)), method="fragments")
    text = str(dense.report)
    assert "output stride 6 -> 1" in text and "on 36 fragments, dilation 1" in text and "relative L2 error" in text
    assert dense.report.error < 1e-12


@pytest.mark.parametrize("chunk_bytes", [1, 20_000, None])
def test_fragments_a_few_at_a_time(chunk_bytes):
    torch.manual_seed(12)
    model = Network().double().eval()
    x = torch.randn(2, 3, 61, 50, dtype=torch.float64)
    whole = to_dense(model, 1, "dilated", fully_convolutional=True, verify=False)(x)
    dense = to_dense(model, 1, "fragments", fully_convolutional=True, verify=False, chunk_bytes=chunk_bytes)
    assert (len(dense.cuts) > 1) == (chunk_bytes is not None)
    with torch.no_grad():
        assert distance(dense(x), whole) < 1e-12
    assert distance(dense(x), whole) < 1e-12


def test_auto_prints_its_costs_and_tune_measures():
    torch.manual_seed(13)
    model = Network().eval()
    x = torch.randn(1, 3, 64, 64)
    for tune in (False, True):
        dense = to_dense(model, 1, "auto", x, fully_convolutional=True, tune=tune)
        plan = dense.report.plan
        text = str(dense.report)
        assert "GFLOP" in text and f"chosen: {plan.choice}" in text
        close = [name for name, seconds in plan.predicted.items() if tune or seconds < UNSURE * min(plan.predicted.values())]
        assert set(plan.measured) == set(close if len(close) > 1 else ())
        times = plan.measured or plan.predicted
        # The quickest, or the better of the two pure methods where a mixture is hardly quicker.
        assert times[plan.choice] <= min(times[name] for name in ("dilated", "fragments") if name in times)
        assert times[plan.choice] * 0.95 < min(times.values())
    with pytest.raises(ValueError, match="tune"):
        to_dense(model, 1, "auto", tune=True)


def test_the_cost_model_knows_the_sizes_of_dense_maps():
    rng, checked = random.Random(9), 0
    torch.manual_seed(9)
    while checked < 20:
        chain, x = random_chain(rng, 2, rng.randint(2, 5), 8), image(rng, 2)
        if strided_output(chain, x) is None:
            continue
        network = read(chain)
        for stride in ((1, 1), (2, 1)):
            if any(t % s for t, s in zip(total_stride(network), stride, strict=True)):
                continue
            spans = dense_sizes(network, rates(network, stride), tuple(x.shape[2:]))
            with torch.no_grad():
                assert spans[network.output_maps()[0]] == to_dense(chain, stride, verify=False)(x).shape[2:]
        checked += 1


def test_layers_that_run_as_one_are_the_layers():
    """Norm, sum, activation and the pointwise convolution behind a depthwise one, against the same network run layer by layer."""

    class Block(nn.Module):
        def __init__(self, channels, stride, activation):
            super().__init__()
            self.expand = nn.Sequential(nn.Conv2d(channels, 12, 1, bias=False), nn.BatchNorm2d(12), activation)
            self.dw = nn.Sequential(nn.Conv2d(12, 24, 3, stride, 1, groups=12, bias=False), nn.BatchNorm2d(24), activation)
            self.pw = nn.Sequential(nn.Conv2d(24, channels, 1), nn.BatchNorm2d(channels))
            self.stride = stride

        def forward(self, x):
            y = self.pw(self.dw(self.expand(x)))
            if self.stride == 1:
                # Of both additions only the second may run inside: the first changes what it adds to.
                y += x
                y = F.relu(y + x)
            return y

    torch.manual_seed(14)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), Block(4, 1, nn.ReLU6()), Block(4, 2, nn.SiLU()), nn.MaxPool2d(2), Block(4, 1, nn.Hardswish()),
        nn.Conv2d(4, 4, 3, 1, 1, groups=4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1),
    ).double().eval()  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            random_norm(module)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 3, 43, 50, dtype=torch.float64).contiguous(memory_format=memory_format)
        for method in ("dilated", "fragments"):
            dense = to_dense(model, 1, method, chunk_bytes=100_000)
            assert sum(type(m).__name__ == "Fused" for m in dense.modules()) >= 8
            plain = dense(x)
            with torch.no_grad():
                assert distance(dense(x), plain) < 1e-12
                assert distance(dense(x)[..., ::8, ::8], model(x)) < 1e-12
                # Folded weights follow their sources.
                model[2].dw[1].weight.mul_(1.25)
                changed = dense(x)
            assert distance(changed, plain) > 1e-6 and distance(changed, dense(x)) < 1e-12
    # The modules stay in the mode that they are in, whatever their container says.
    to_dense(nn.Sequential(*model))
    assert not any(module.training for module in model.modules())
    # With batch statistics nothing may be folded.
    dense = to_dense(model, 1, "dilated").train()
    with torch.no_grad():
        assert distance(dense(x)[..., ::8, ::8], model.eval()(x)) > 1e-6
