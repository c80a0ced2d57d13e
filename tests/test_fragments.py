"""Fragments against the strided network and against plain dilated compositions."""

import random

import pytest
import torch
import torch.nn.functional as F
from chains import distance, image, random_chain, strided_output
from torch import nn

from fastconv.fragments import Fragments


def dilated_chain(x, layers):
    """An oracle of its own: every layer at stride 1 in plain torch, dilation and padding times the strides before it."""
    rate = 1
    for kind, kernel, stride, padding, weight in layers:
        pads = (padding * rate,) * 4
        if kind == "conv":
            x = F.conv2d(F.pad(x, pads), weight, None, 1, 0, rate)
        else:
            x = F.max_pool2d(F.pad(x, pads, value=-torch.inf), kernel, 1, 0, rate)
        rate *= stride
    return x


def three_pools(channels=2):
    layers = []
    for stride in (2, 3, 2):
        layers.append(("conv", 3, 1, 1, torch.randn(channels, channels, 3, 3, dtype=torch.float64)))
        layers.append(("max", 3, stride, 1, None))
    return layers


def run_strided(x, layers):
    for kind, kernel, stride, padding, weight in layers:
        x = F.conv2d(x, weight, None, stride, padding) if kind == "conv" else F.max_pool2d(x, kernel, stride, padding)
    return x


@pytest.mark.parametrize("size", [(29, 31), (25, 24), (12, 37)])
def test_three_nested_pools_of_ragged_size_and_batch_three(size):
    torch.manual_seed(sum(size))
    layers = three_pools()
    x = torch.randn(3, 2, *size, dtype=torch.float64, requires_grad=True)
    fragments = run_strided(Fragments(x), layers)
    assert fragments.strides == ((2, 2), (3, 3), (2, 2))
    assert fragments.batch == 3 and fragments.offsets == 144
    dense, expected = fragments.stitch(), dilated_chain(x, layers)
    assert distance(dense, expected) < 1e-12
    assert distance(dense[..., ::12, ::12], run_strided(x, layers)) < 1e-12
    seed = torch.randn_like(dense)
    ours, theirs = (torch.autograd.grad(y, x, seed)[0] for y in (dense, expected))
    assert distance(ours, theirs) < 1e-12


def test_random_chains_at_the_strided_positions():
    """Everything a chain may hold: ceil mode, uncounted padding, different strides per axis, groups, norms."""
    rng, checked = random.Random(5), 0
    torch.manual_seed(5)
    while checked < 150:
        channels = rng.randint(1, 3)
        chain, x = random_chain(rng, channels, rng.randint(1, 5), 12), image(rng, channels)
        with torch.no_grad():
            strided = strided_output(chain, x)
            if strided is None:
                continue
            fragments = chain(Fragments(x))
            sy, sx = fragments.stride
            assert distance(fragments.stitch()[..., ::sy, ::sx], strided) < 1e-12
        checked += 1


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_formats_and_dtypes_stay(memory_format, dtype):
    x = torch.randn(2, 4, 13, 11).to(dtype).contiguous(memory_format=memory_format)
    deep = Fragments(x).shift(2).shift((3, 1))
    assert deep.tensor.is_contiguous(memory_format=memory_format) and deep.dtype == dtype
    dense = deep.stitch()
    assert dense.is_contiguous(memory_format=memory_format)
    assert torch.equal(dense, x)


def test_batch_order_newest_offset_fastest():
    x = torch.arange(2 * 12 * 12, dtype=torch.float64).reshape(2, 1, 12, 12)
    fragments = Fragments(x).shift((2, 3)).shift((3, 2))
    n, (o1y, o1x), (o2y, o2x) = 1, (1, 2), (2, 1)
    index = ((((n * 2 + o1y) * 3 + o1x) * 3) + o2y) * 2 + o2x
    assert torch.equal(fragments.tensor[index, 0], x[n, 0, o1y + 2 * o2y :: 6, o1x + 3 * o2x :: 6])
    oy, ox = fragments.dense_offsets()
    assert (oy[index].item(), ox[index].item()) == (o1y + 2 * o2y, o1x + 3 * o2x)


def test_tails_cannot_be_seen():
    """Poisoned tails must not reach any stitched value, whatever layer comes next."""
    x = torch.randn(1, 2, 11, 9, dtype=torch.float64)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    steps = [
        lambda z: F.conv2d(z, weight, None, 1, 1),
        lambda z: F.max_pool2d(z, 3, 2, 1),
        lambda z: F.avg_pool2d(z, 3, 1, 1, count_include_pad=False),
        lambda z: F.avg_pool2d(z, 2, 2, 0, ceil_mode=True),
        lambda z: F.pad(z, (1, 2, 0, 1), value=3.0),
        lambda z: torch.tanh(z) + z,
    ]
    for step in steps:
        clean, poisoned = Fragments(x).shift(4), Fragments(x).shift(4).fill_tail(float("nan"))
        assert poisoned.tensor.isnan().any()
        assert torch.equal(step(poisoned).stitch(), step(clean).stitch())


def test_arithmetic_cat_and_norms():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 15, 14, dtype=torch.float64)
    norm = nn.BatchNorm2d(4).double().eval()
    norm.running_mean.normal_()
    pool = nn.MaxPool2d(3, 2, 1)

    def network(z):
        a, b = pool(z), F.avg_pool2d(z, 3, 2, 1)
        gate = torch.sigmoid(a.mean(1, keepdim=True))
        parts = torch.cat([norm(a) * gate, b - 0.5, F.softmax(b, dim=1)], 1)
        return F.layer_norm(parts.permute(0, 2, 3, 1), (12,)).permute(0, 3, 1, 2)[:, 2:10] * torch.ones(1, 8, 1, 1, dtype=torch.float64)

    dense = network(Fragments(x)).stitch()
    assert distance(dense[..., ::2, ::2], network(x)) < 1e-12


def test_branches_of_different_reach_are_cropped_to_what_both_have():
    x = torch.randn(1, 1, 16, 16, dtype=torch.float64)

    def network(z):
        return F.avg_pool2d(z, 2, 2) + F.max_pool2d(z, 3, 2, 1)

    fragments = network(Fragments(x))
    assert fragments.dense_size == (15, 15)
    assert distance(fragments.stitch()[..., ::2, ::2], network(x)) < 1e-12


def test_parts_go_through_layers_and_join():
    x = torch.randn(2, 3, 17, 19, dtype=torch.float64)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)

    def layers(z):
        return F.max_pool2d(F.conv2d(z, weight, None, 1, 1), 2, 2, ceil_mode=True)

    whole = Fragments(x).shift((2, 3))
    parts = list(whole.parts(5))
    assert "part" in repr(parts[0])
    with pytest.raises(ValueError, match="only a part"):
        parts[0].stitch()
    assert torch.equal(Fragments.join([layers(p) for p in parts]).stitch(), layers(whole).stitch())


def test_repr_explains():
    text = repr(Fragments(torch.zeros(2, 3, 7, 16)).shift(2).shift(2))
    assert "2 x 3 x 7 x 16 dense map as 16 fragments" in text and "2x2 * 2x2" in text and "one shorter at 1 of 4 row offsets" in text


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda z: F.interpolate(z, scale_factor=2), "interpolate"),
        (lambda z: F.adaptive_avg_pool2d(z, 1), "adaptive_avg_pool2d"),
        (lambda z: F.group_norm(z, 1), "group_norm"),
        (lambda z: F.batch_norm(z, None, None, training=True), "model.eval()"),
        (lambda z: F.dropout(z, 0.5, training=True), "model.eval()"),
        (lambda z: z.mean((2, 3), keepdim=True), "mean"),
        (lambda z: z + torch.ones(4, 5, 5), "position to position"),
        (lambda z: z[:, :, 1:], "channels"),
        (lambda z: torch.cat([z, z], 2), "cat"),
        (lambda z: F.max_pool2d(z, 2, return_indices=True), "return_indices"),
        (lambda z: F.pad(z, (1, 1, 1, 1), mode="reflect"), "reflect"),
    ],
)
def test_what_mixes_positions_is_refused_by_name(call, words):
    with pytest.raises(TypeError, match=words.replace("(", r"\(").replace(")", r"\)")):
        call(Fragments(torch.zeros(1, 4, 10, 10)).shift(2))


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="no multiple of the 4 offsets"):
        Fragments(torch.zeros(3, 1, 4, 4), (2,))
    with pytest.raises(ValueError, match="has fragments of 5x4"):
        Fragments(torch.zeros(4, 1, 4, 4), (2,), (9, 8))
    with pytest.raises(ValueError, match="different strides"):
        Fragments(torch.zeros(1, 1, 8, 8)).shift(2) + Fragments(torch.zeros(1, 1, 8, 8)).shift(4)
    with pytest.raises(ValueError, match="larger input"):
        F.conv2d(Fragments(torch.zeros(1, 1, 8, 8)).shift(4), torch.zeros(1, 1, 3, 3))
