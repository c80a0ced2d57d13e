"""Folded weights in 16 bits: what stays exact, and what their rounding does to the mean of a map."""

import itertools

import pytest
import torch
from torch import nn
from trained import randomise_norms

from fastconv._rounding import keeping_means, moments
from fastconv.folding import FoldedWeights, fold_chain
from fastconv.reference import ACTIVATIONS

HALVES = [torch.bfloat16, torch.float16]


def expected_square(error, mean, variance, offset):
    return (error.square() * variance).sum(1) + ((error * mean).sum(1) + offset).square()


def case(rows, length):
    weight = torch.randn(rows, length, dtype=torch.float64)
    mean, variance = torch.rand(2, length, dtype=torch.float64)
    return weight, mean, variance, torch.randn(rows, dtype=torch.float64) * 1e-3


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_each_weight_stays_next_to_its_value(dtype):
    weight, mean, variance, offset = case(16, 200)
    weight[:, ::7] = weight[:, ::7].to(dtype)
    weight[0, :3] = torch.tensor([0.0, 1e-60, -1e-60])
    weight[1, 0] = torch.finfo(dtype).max
    found = keeping_means(weight, dtype, mean, variance, offset)
    nearest = weight.to(dtype)
    bits = found.view(torch.int16).int() - nearest.view(torch.int16).int()
    assert found.dtype == dtype and found.isfinite().all()
    assert bits.abs().max() == 1 and torch.equal(found[nearest.double() == weight], nearest[nearest.double() == weight])
    # Not the far neighbour: the value lies between the two.
    moved = bits != 0
    assert ((found.double() - weight) * (nearest.double() - weight))[moved].max() <= 0


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_expected_squares(dtype):
    weight, mean, variance, offset = case(32, 200)
    error = keeping_means(weight, dtype, mean, variance, offset).double() - weight
    nearest = weight.to(dtype).double() - weight
    found, before = (expected_square(e, mean, variance, offset) for e in (error, nearest))
    assert (found <= before).all()
    # What is left of the mean is far below what was there: the offsets too are made good.
    assert ((error @ mean) + offset).norm() <= 0.1 * ((nearest @ mean) + offset).norm()


def test_close_to_the_best_of_all_choices():
    weight, mean, variance, offset = case(64, 9)
    found = expected_square(keeping_means(weight, torch.bfloat16, mean, variance, offset).double() - weight, mean, variance, offset)
    nearest = weight.to(torch.bfloat16)
    bits = nearest.view(torch.int16)
    away = torch.where(nearest.double().abs() < weight.abs(), 1, -1).to(torch.int16)
    best = torch.full((64,), float("inf"), dtype=torch.float64)
    for choice in itertools.product((0, 1), repeat=9):
        rounded = (bits + away * torch.tensor(choice, dtype=torch.int16)).view(torch.bfloat16).double()
        best = torch.minimum(best, expected_square(rounded - weight, mean, variance, offset))
    start = expected_square(nearest.double() - weight, mean, variance, offset)
    assert found.sum() - best.sum() <= 0.25 * (start.sum() - best.sum())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_moments(name):
    norm = randomise_norms(nn.BatchNorm2d(5)).double().eval()
    draws = norm.bias[:, None] + norm.weight[:, None] * torch.randn(5, 200_000, dtype=torch.float64)
    values = ACTIVATIONS[name](draws)
    mean, variance = moments(norm, name)
    # Five standard errors of the draws, and what the quadrature misses at a kink.
    assert ((mean - values.mean(1)).abs() <= 5 * values.std(1) / 200_000**0.5 + 0.01).all()
    assert ((variance - values.var(1)).abs() <= 0.03 * values.var(1) + 0.01).all()


def chain(activation):
    layers = nn.Conv2d(12, 24, 3, groups=12, bias=False), nn.BatchNorm2d(24), nn.Conv2d(24, 16, 1), nn.BatchNorm2d(16)
    randomise_norms(nn.Sequential(*layers)).eval()
    with torch.no_grad():
        layers[1].weight[0], layers[1].weight[1] = 0.0, -0.7
    return layers


@pytest.mark.parametrize("activation", ["identity", "relu", "relu6"])
def test_chains_are_the_layers_one_by_one(activation):
    layers = nn.ModuleList(chain(activation)).double()
    depthwise, first, pointwise, second = layers
    x = torch.randn(2, 12, 9, 9, dtype=torch.float64)
    expected = second(pointwise(ACTIVATIONS[activation](first(depthwise(x)))))
    w, b, v, c = fold_chain((depthwise, first), (pointwise, second), activation)
    found = nn.functional.conv2d(ACTIVATIONS[activation](nn.functional.conv2d(x, w, b, groups=12)), v, c)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(found.square().sum(), list(layers.parameters()))
    theirs = torch.autograd.grad(expected.square().sum(), list(layers.parameters()))
    for a, e in zip(ours, theirs, strict=True):
        assert torch.allclose(a, e, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_depthwise_weights_stay_exact_before_homogeneous_activations(dtype):
    depthwise, first, pointwise, second = nn.ModuleList(chain("relu")).to(dtype)
    with torch.no_grad():
        folded = FoldedWeights("relu")((depthwise, first), (pointwise, second))[0]
    original = depthwise.weight.double()
    ratio = (folded.double() / original).flatten(1)
    assert (ratio == ratio[:, :1]).all() and (ratio[0] == 0).all() and (ratio[1] < 0).all()
    powers = ratio[1:, 0].abs().log2()
    assert torch.equal(powers, powers.round())
