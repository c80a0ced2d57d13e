"""fuse: every order of chains, in both modes; what must be left alone; what must keep working on the fused model."""

import copy
import io
import operator

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_no_further_on_average, relative_error
from torch import nn
from trained import BN, ORDERS, C, Chain, SqueezeExcite, Xception, dw, mbconv, pw, randomise_norms, redrawn

import fastconv
from fastconv.fusion import cost

RATES = cost.Rates((1e9, 1e9, 1e9), 1e9, 1e9)
# Results of the probes that favour neither side: what is fused saves passes.
EVEN = cost.Machine(RATES, RATES, 1e9, 1e-6)


@pytest.fixture(autouse=True)
def _same_machine(monkeypatch):
    monkeypatch.setattr(cost, "machine", lambda *_: EVEN)


def image(dtype=torch.float32, batch=2, size=(19, 15), memory_format=torch.contiguous_format):
    return torch.randn(batch, C, *size).to(dtype).contiguous(memory_format=memory_format)


def trained(name):
    return randomise_norms(ORDERS[name][0]()).eval()


def in_eval(model, x):
    with torch.no_grad():
        return model(x.clone())


@pytest.mark.parametrize("name", ORDERS)
def test_orders_in_eval_mode(name, memory_format):
    model, kinds = trained(name), ORDERS[name][1]
    fused, report = fastconv.fuse(model, image(memory_format=memory_format))
    assert [row.kind for row in report.rows] == kinds and not report.left, report
    assert report.error <= 1e-5
    for x in (image(memory_format=memory_format), image(batch=1, size=(8, 9), memory_format=memory_format)):
        expected, found = in_eval(model, x), in_eval(fused, x)
        assert relative_error(found, expected) <= 1e-5 and found.shape == expected.shape
        if name not in ("convnext", "attention", "mixed"):
            assert found.stride() == expected.stride() or not expected.is_contiguous(memory_format=memory_format)
    exact = relative_error(in_eval(copy.deepcopy(fused).double(), x.double()), in_eval(copy.deepcopy(model).double(), x.double()))
    assert exact <= 1e-13


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ORDERS)
def test_no_further_from_float64_in_16_bits(name, dtype):
    model = trained(name).to(dtype)
    fused, _ = fastconv.fuse(model)

    def draw():
        redrawn(model, fused)
        x = image(dtype, size=(17, 15))
        return in_eval(fused, x), in_eval(model, x), in_eval(copy.deepcopy(model).double(), x.double())

    # Weight, bias and map, where the original rounds a map before the norm and one behind it.
    assert_no_further_on_average(draw, roundings=3 / 2, label=name)


@pytest.mark.parametrize("name", ORDERS)
def test_orders_in_train_mode(name):
    if name == "mobilenet iadd":
        pytest.skip("draws random paths in train mode")
    torch.manual_seed(1)
    model = trained(name).double()
    fused, _ = fastconv.fuse(model)
    for m in (model, fused):
        m.train()
    x, theirs = (image(torch.float64).requires_grad_() for _ in range(2))
    theirs.data.copy_(x)
    # A clone, because in-place activations may come first.
    out, expected = fused(x.clone()), model(theirs.clone())
    seed = torch.randn_like(out)
    out.backward(seed)
    expected.backward(seed)
    assert relative_error(out, expected) <= 1e-13 and relative_error(x.grad, theirs.grad) <= 1e-11
    for ours, original in zip(fused.parameters(), model.parameters(), strict=True):
        # A bias in front of a norm has a gradient of nothing but rounding.
        assert (ours.grad - original.grad).norm() <= 1e-10 * max(original.grad.norm().item(), 1.0)
    for (key, ours), original in zip(fused.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.allclose(ours, original, rtol=1e-12, atol=1e-12), key
    # What was learned is what eval mode folds.
    with torch.no_grad():
        for m in (model, fused):
            m.eval()
            next(m.parameters()).mul_(1.5)
    assert relative_error(in_eval(fused, image(torch.float64)), in_eval(model, image(torch.float64))) > 0.1
    x = image(torch.float64)
    assert relative_error(in_eval(fused, x), in_eval(model, x)) <= 1e-13


def test_a_fused_model_is_the_model():
    model = nn.Sequential(mbconv(C), Xception(C)).eval()
    fused, _ = fastconv.fuse(model)
    assert isinstance(fused, nn.Sequential) and isinstance(fused[0], Chain) and isinstance(fused[1], Xception)
    assert list(fused.state_dict()) == list(model.state_dict())
    assert [n for n, _ in fused.named_modules()] == [n for n, _ in model.named_modules()]
    other = randomise_norms(nn.Sequential(mbconv(C), Xception(C))).eval()
    x = image()
    fused.load_state_dict(other.state_dict())
    assert relative_error(in_eval(fused, x), in_eval(other, x)) <= 1e-5
    model.load_state_dict(fused.state_dict())
    assert torch.equal(in_eval(model, x), in_eval(other, x))
    assert type(model) is nn.Sequential, "inplace=False changed the original"


def test_in_place_and_again():
    model = trained("mobilenet")
    expected = in_eval(model, x := image())
    same, first = fastconv.fuse(model, inplace=True)
    again, second = fastconv.fuse(model, inplace=True)
    assert same is model and again is model and [r.chain for r in first.rows] == [r.chain for r in second.rows]
    assert relative_error(in_eval(model, x), expected) <= 1e-5


def runs_fused(model, x):
    """Whether the fused operator runs at all."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        in_eval(model, x)
    return any(event.key.startswith("fastconv::") for event in profile.key_averages())


def copies(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return {"deepcopy": copy.deepcopy(model), "pickle": torch.load(file, weights_only=False)}


def test_copies_are_fused_and_on_their_own():
    fused, _ = fastconv.fuse(trained("mobilenet"))
    x = image()
    expected = in_eval(fused, x)
    for name, other in copies(fused).items():
        assert torch.equal(in_eval(other, x), expected) and runs_fused(other, x), name
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert torch.equal(in_eval(fused, x), expected) and in_eval(other, x).abs().max() > expected.abs().max() or name
        assert not torch.equal(in_eval(other, x), expected), name


def test_hooks_before_are_respected_and_said():
    model = nn.Sequential(mbconv(C), mbconv(C)).eval()
    seen = []
    model[0][1][0].register_forward_hook(lambda *_: seen.append(1))
    fused, report = fastconv.fuse(model)
    assert [row.name for row in report.left] == ["0.1.0"] and "hooks" in report.left[0].why
    in_eval(fused, image())
    assert len(seen) == 1


@pytest.mark.parametrize("where", ["0", "0.1", "0.1.0", "1.2", "1.3"])
def test_hooks_after_run_as_before(where):
    model = randomise_norms(nn.Sequential(mbconv(C), mbconv(C))).eval()
    fused, _ = fastconv.fuse(model)
    x, seen = image(), []
    expected = in_eval(model, x)
    assert runs_fused(fused, x)
    handle = fused.get_submodule(where).register_forward_hook(lambda _, __, out: seen.append(out.detach().clone()))
    model.get_submodule(where).register_forward_hook(lambda _, __, out: seen.append(out.detach().clone()))
    found = in_eval(fused, x)
    in_eval(model, x)
    assert len(seen) == 2 and relative_error(*seen) <= 1e-5 and relative_error(found, expected) <= 1e-5
    handle.remove()
    assert runs_fused(fused, x)


def test_changes_of_structure_are_seen():
    fused, _ = fastconv.fuse(trained("mobilenet"))
    x = image()
    before = in_eval(fused, x)
    fused[0][2] = pw(3 * C, C)
    plain = nn.Sequential(*[Chain(*list(block), add=block.add) for block in fused]).eval()
    assert relative_error(in_eval(fused, x), in_eval(plain, x)) <= 1e-5
    assert relative_error(in_eval(fused, x), before) > 0.01
    nn.utils.parametrize.register_parametrization(fused[2][1][0], "weight", Halved())
    assert relative_error(in_eval(fused, x), in_eval(plain, x)) <= 1e-5


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


def test_parametrized_and_modified_convolutions_are_left():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight / self.weight.std(), self.bias, 1, 1, 1, self.groups)

    model = nn.Sequential(
        Standardised(C, C, 3, groups=C), pw(C, C), nn.Conv2d(C, C, 3, 1, 1, groups=C, padding_mode="reflect"), pw(C, C), dw(C)
    ).eval()
    nn.utils.parametrize.register_parametrization(model[4], "weight", Halved())
    fused, report = fastconv.fuse(model, x := image())
    assert len(report.left) == 3 and all(row.why for row in report.left)
    assert torch.equal(in_eval(fused, x), in_eval(model, x))


def test_shared_weights_stay_shared():
    conv = dw(C)
    model = nn.Sequential(conv, BN(C), pw(C, C), BN(C), conv, BN(C), nn.ReLU(), pw(C, C)).eval()
    randomise_norms(model)
    fused, report = fastconv.fuse(model, x := image())
    assert fused[0] is fused[4] and report.error <= 1e-5
    with torch.no_grad():
        fused[0].weight.mul_(-1)
        model[0].weight.mul_(-1)
    assert relative_error(in_eval(fused, x), in_eval(model, x)) <= 1e-5


class Overwritten(nn.Module):
    """The chain's input is overwritten after the depthwise convolution has read it, and before the chain ends."""

    def __init__(self):
        super().__init__()
        self.stem, self.dw, self.pw = nn.Conv2d(C, C, 1), dw(C), pw(C, C)

    def forward(self, x):
        x = self.stem(x)
        m = self.dw(x)
        x.view(-1).mul_(3.0)
        return self.pw(m) + x


class IntoShortcut(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.dw, self.pw = nn.Conv2d(C, C, 1), dw(C), pw(C, C)

    def forward(self, x):
        shortcut = self.stem(x)
        view = shortcut[:, :, 1:]
        shortcut += self.pw(self.dw(shortcut))
        return shortcut[:, :, 1:] + view


class Broadcast(nn.Module):
    def __init__(self):
        super().__init__()
        self.dw, self.pw, self.bias = dw(C), pw(C, C), nn.Parameter(torch.randn(1, C, 1, 1))

    def forward(self, x):
        return torch.relu(self.pw(self.dw(x)) + self.bias)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.dw, self.pw = dw(C), pw(C, C)

    def forward(self, x):
        m = self.dw(x)
        return self.pw(m) + m


@pytest.mark.parametrize("block", [Overwritten, IntoShortcut, Broadcast, Twice, lambda: Xception(C, first_in_place=True)])
def test_traps(block):
    model = nn.Sequential(block()).eval()
    fused, _ = fastconv.fuse(model)
    x = image()
    ours, theirs = x.clone(), x.clone()
    with torch.no_grad():
        assert relative_error(fused(ours), model(theirs)) <= 1e-5
    # What the model writes to its input, or does not, is part of what it does.
    assert torch.equal(ours, theirs)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block = nn.Sequential(pw(C, C), BN(C), nn.ReLU()), mbconv(C)

    def forward(self, x):
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1))
        return self.block(self.stem(x)) if x.mean() > 0 else self.block(x)


def test_what_cannot_be_traced_is_fused_in_parts():
    model = randomise_norms(Branches()).eval()
    fused, report = fastconv.fuse(model, image())
    assert [row.kind for row in report.rows] == ["conv", "conv", "separable"] and list(report.failures) == [""]
    for sign in (1, -1):
        x = image().abs() * sign
        assert relative_error(in_eval(fused, x), in_eval(model, x)) <= 1e-5


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.dw, self.pw, self.calls = dw(C), pw(C, C), 0

    def forward(self, x):
        self.calls += 1
        return self.pw(self.dw(x))


def test_what_is_left_says_why():
    fused, report = fastconv.fuse(nn.Sequential(Counts()).eval())
    assert "forward changes calls" in report.left[0].why and fused[0].calls == 0
    assert "LEFT" in str(report) and "forward changes calls" in str(report)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda m: nn.Sequential(nn.DataParallel(m))])
def test_wrapped_models_are_refused(wrap):
    with pytest.raises(ValueError, match="fuse the plain model first"):
        fastconv.fuse(wrap(trained("smp")))


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_distributed_wrappers(one_process):
    """Refused with a sentence where they wrap; the fused model may be wrapped, and then has the original's gradients."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    model = trained("aspp").train()
    with pytest.raises(ValueError, match="DistributedDataParallel.*fuse the plain model first"):
        fastconv.fuse(DistributedDataParallel(copy.deepcopy(model)))
    with pytest.raises(ValueError, match="FSDP.*fuse the plain model first"):
        fastconv.fuse(fully_shard(copy.deepcopy(model), mesh=init_device_mesh("cpu", (1,))))

    fused, _ = fastconv.fuse(model)
    wrapped = DistributedDataParallel(fused)
    x = image()
    wrapped(x).square().sum().backward()
    model(x).square().sum().backward()
    for ours, original in zip(fused.parameters(), model.parameters(), strict=True):
        assert (ours.grad - original.grad).norm() <= 1e-4 * max(original.grad.norm().item(), 1.0)


def test_bad_arguments():
    with pytest.raises(TypeError, match="model: must be a torch.nn.Module, got function"):
        fastconv.fuse(lambda x: x)
    with pytest.raises(ValueError, match="measure: .*example_input"):
        fastconv.fuse(trained("smp"), measure=True)
    with pytest.raises(TypeError, match="example_input: must be a tensor.* got int"):
        fastconv.fuse(trained("smp"), 3)


def test_the_librarys_wins_are_left(monkeypatch):
    slow = cost.Rates((1e7, 1e7, 1e7), 1e7, 1e7)
    monkeypatch.setattr(cost, "machine", lambda *_: cost.Machine(RATES, slow, 1e12, 1e-9))
    model = trained("smp")
    fused, report = fastconv.fuse(model, x := image())
    assert len(report.left) == 1 and "library's own is faster here, as predicted" in report.left[0].why
    assert not runs_fused(fused, x) and type(fused) is type(model) and len(report.pairs) == 1


def test_measured_times_decide(monkeypatch):
    model = nn.Sequential(trained("smp"), dw(20), nn.Sigmoid()).eval()
    monkeypatch.setattr(cost, "measure", lambda layer, _: (1.0, 2.0) if layer.kind == "separable" else (2.0, 1.0))
    monkeypatch.setattr(cost, "alternate", lambda *_: (2.0, 1.0))
    _, report = fastconv.fuse(model, image(), measure=True)
    assert [row.replaced for row in report.rows] == [False, True] and report.seconds == (2.0, 1.0)
    monkeypatch.setattr(cost, "alternate", lambda *_: (1.0, 2.0))
    fused, report = fastconv.fuse(model, x := image(), measure=True)
    assert not report.replaced and not runs_fused(fused, x) and "not faster" in str(report)


def test_measurement_runs_both_chains():
    fused, report = fastconv.fuse(trained("squeeze-and-excitation"), image(batch=1), measure=True)
    assert all(row.measured and min(row.measured) > 0 for row in report.rows) and min(report.seconds) > 0
    assert "measured, whole model" in str(report)


def test_autocast():
    """Autocast rounds the original's weights too; its residuals it leaves in float32, and they must not be rounded."""
    model = trained("mobilenet")
    fused, _ = fastconv.fuse(model)

    def draw():
        redrawn(model, fused)
        x = image(size=(17, 15))
        with torch.autocast("cpu", torch.bfloat16):
            out, original = in_eval(fused, x), in_eval(model, x)
        return out, original, in_eval(copy.deepcopy(model).double(), x.double())

    assert_no_further_on_average(draw)


def test_casts_of_the_model():
    model = trained("mobilenet")
    fused, _ = fastconv.fuse(model)
    x = image(torch.float64)
    assert relative_error(in_eval(fused.double(), x), in_eval(model.double(), x)) <= 1e-13


@pytest.mark.parametrize("name", ["mobilenet", "squeeze-and-excitation"])
def test_compiles_and_exports(name):
    fused, _ = fastconv.fuse(trained(name))
    x = image(batch=1)
    expected = in_eval(fused, x)
    exported = torch.export.export(fused, (x,), strict=False).module()
    assert relative_error(in_eval(exported, x), expected) <= 1e-6
    with torch.no_grad():
        # One that was called before, and copies that were not.
        for model in (fused, copy.deepcopy(fused), fastconv.fuse(fused)[0]):
            torch.compiler.reset()
            assert relative_error(torch.compile(model, backend="eager", fullgraph=True)(x), expected) <= 1e-6


def test_mixed_modes_and_dropout_that_stays_on():
    model = randomise_norms(nn.Sequential(dw(C), BN(C), nn.ReLU(), nn.Dropout(0.5), pw(C, C), BN(C))).eval()
    fused, report = fastconv.fuse(model, x := image())
    assert [row.kind for row in report.rows] == ["separable"] and report.error <= 1e-5
    for m in (model, fused):
        m[3].train()
    torch.manual_seed(0)
    found = in_eval(fused, x)
    torch.manual_seed(0)
    assert torch.allclose(found, in_eval(model, x), atol=1e-5)
    for m in (model, fused):
        m.eval()[1].train()
    assert relative_error(in_eval(fused, x), in_eval(model, x)) <= 1e-5
    assert relative_error(fused[1].running_mean, model[1].running_mean) <= 1e-6


def test_several_inputs_and_residuals_from_outside():
    class Add(nn.Module):
        def __init__(self):
            super().__init__()
            self.dw, self.pw = dw(C), pw(C, C)

        def forward(self, x, other, scale=2.0):
            return torch.relu(self.pw(self.dw(x)) + other) * scale

    model = Add().eval()
    x, other = image(), image()
    fused, report = fastconv.fuse(model, (x, other))
    assert report.rows[0].chain.endswith("+ residual, relu") and report.error <= 1e-5
    with torch.no_grad():
        for arguments in ((x, other), (x, other[:, :1]), (x, other, 3.0)):
            assert relative_error(fused(*arguments), model(*arguments)) <= 1e-5
        assert relative_error(fused(x, other=other), model(x, other=other)) <= 1e-5


def test_scaled_by_anything_but_one_image():
    model = Chain(dw(C), nn.ReLU(), SqueezeExcite(C), pw(C, C), BN(C), add=operator.add).eval()
    fused, report = fastconv.fuse(model)
    assert [row.kind for row in report.rows] == ["depthwise", "scaled"]
    for x in (image(batch=1), image(batch=3), image(batch=1)[0][None]):
        assert relative_error(in_eval(fused, x), in_eval(model, x)) <= 1e-5


def test_command_line(capsys):
    from fastconv.__main__ import main

    assert main(["fuse", "fastconv.models:MobileNetV2", "--shape", "1,3,64,64"]) == 0
    assert "17 depthwise-pointwise pairs fused" in (said := capsys.readouterr().out) and "relative L2 distance" in said
    assert main(["fuse", "nonsense"]) == 2 and "write timm:NAME" in capsys.readouterr().err
