"""tiled against the untiled network; the theoretical receptive field that its margins come from."""

import math

import numpy as np
import pytest
import torch
from chains import distance
from torch import nn

from fastconv.dense import NotConvertible, tiled, to_dense
from fastconv.receptive_field import theory


def network():
    torch.manual_seed(11)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 6, 3, 1, 2, dilation=2), nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(6, 5, 3, 1, 1)
    ).double()  # fmt: skip


@pytest.mark.parametrize("output_stride", [1, 2, 8])
@pytest.mark.parametrize("tile", [72, (90, 77), 500])
def test_tiles_equal_the_whole(output_stride, tile):
    dense = to_dense(network(), output_stride, "dilated")
    x = torch.randn(2, 3, 131, 101, dtype=torch.float64)
    with torch.no_grad():
        assert distance(tiled(dense, x, tile), dense(x)) < 1e-12


def test_strided_networks_memory_maps_and_own_outputs(tmp_path):
    net = network()
    path = tmp_path / "image.npy"
    np.save(path, (np.random.default_rng(0).random((1, 3, 150, 140)) * 255).astype(np.uint8))
    image = np.load(path, mmap_mode="c")
    out = np.lib.format.open_memmap(tmp_path / "out.npy", mode="w+", dtype=np.float64, shape=(1, 5, 19, 18))
    seen = []
    result = tiled(net, image, 80, out=out, prepare=lambda t: t.double() / 255, progress=lambda done, total: seen.append((done, total)))
    assert result is out and seen[-1][0] == seen[-1][1] > 1
    with torch.no_grad():
        assert distance(torch.from_numpy(np.array(out)), net(torch.from_numpy(np.array(image)).double() / 255)) < 1e-12


def test_a_margin_one_pixel_short_would_show():
    """The receptive field is not generous: with one pixel less some output changes."""
    net = network()
    field = theory(net, 97)[-1]
    x = torch.randn(1, 3, 97, 97, dtype=torch.float64, requires_grad=True)
    centre = net(x)[0, :, 6, 6].sum()
    rows = torch.autograd.grad(centre, x)[0].abs().sum((0, 1, 3)).nonzero().flatten()
    first = field.first[0] + 6 * field.jump[0]
    assert rows.min() == max(first, 0) and rows.max() == min(first + field.extent[0], 97) - 1


def test_refusals():
    dense = to_dense(network(), 1, "dilated")
    with pytest.raises(ValueError, match="receptive field is 43; give at least 51"):
        tiled(dense, torch.zeros(1, 3, 200, 200, dtype=torch.float64), 40)
    with pytest.raises(ValueError, match="whole image"):
        gate = nn.Conv2d(3, 3, 1)

        class Gated(nn.Module):
            def __init__(self):
                super().__init__()
                self.gate = gate

            def forward(self, x):
                return x * self.gate(x.mean((2, 3), keepdim=True))

        tiled(Gated(), torch.zeros(1, 3, 64, 64), 32)
    with pytest.raises(ValueError, match="field"):
        tiled(lambda x: x, torch.zeros(1, 3, 64, 64), 32)
    with pytest.raises(ValueError, match="image"):
        tiled(dense, torch.zeros(3, 64, 64), 32)


@pytest.mark.parametrize(("depth", "expected"), [(5, 11), (10, 21), (20, 41), (40, 81), (80, 161)])
def test_theory_of_linear_stacks(depth, expected):
    net = nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=1) for _ in range(depth)))
    last = theory(net, 200)[-1]
    assert last.extent == (expected, expected) and last.jump == (1, 1) and last.size == (200, 200) and last.start == (0.5, 0.5)
    dilated = nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=2, dilation=2) for _ in range(10)))
    assert theory(dilated, 200)[-1].extent == (41, 41)


def test_theory_of_a_graph():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.wide, self.narrow = nn.Conv2d(1, 2, 7, 2, 3), nn.Conv2d(2, 2, 5, 2, 2), nn.Conv2d(2, 2, 1, 2)
            self.last = nn.MaxPool2d((3, 1), (1, 2), (1, 0))

        def forward(self, x):
            x = self.stem(x)
            return self.last(self.wide(x) + self.narrow(x))

    table = {f.name: f for f in theory(Net(), (64, 50))}
    assert table["stem"].extent == (7, 7) and table["stem"].first == (-3, -3) and table["stem"].start == (0.5, 0.5)
    assert table["wide"].extent == (15, 15) and table["narrow"].extent == (7, 7)
    last = table["last"]
    assert (last.size, last.jump, last.extent, last.first) == ((16, 7), (4, 8), (23, 15), (-11, -7))


def test_theory_behind_a_global_pool_and_of_unknown_steps():
    class Gated(nn.Module):
        def forward(self, x):
            return x * x.mean((2, 3), keepdim=True)

    assert math.isinf(theory(Gated(), 32)[-1].extent[0])
    with pytest.raises(NotConvertible, match="resamples"):
        theory(nn.Upsample(scale_factor=2), 32)
