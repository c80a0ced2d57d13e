"""Network-level shift-and-stitch against to_dense, and its borders."""

import random

import pytest
import torch
import torch.nn.functional as F
from chains import distance, image, random_chain, strided_output
from torch import nn

from fastconv.dense import shift_and_stitch, to_dense


def test_chunks_of_any_length_give_the_same_map():
    rng = random.Random(8)
    torch.manual_seed(8)
    checked = 0
    while checked < 25:
        chain, x = random_chain(rng, 2, rng.randint(1, 4)), image(rng, 2)
        with torch.no_grad():
            if strided_output(chain, x) is None:
                continue
            dense = to_dense(chain, 1, "fragments", verify=False)
            total = dense.report.total_stride
            for chunk in (2, rng.randint(3, 7), 10**6):
                assert distance(shift_and_stitch(chain, x, total, chunk=chunk), dense(x)) < 1e-12
        checked += 1


def test_crop_is_dense_where_nothing_is_padded():
    torch.manual_seed(9)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Tanh(), nn.Conv2d(2, 2, 3), nn.AvgPool2d((3, 2))).double()
    x = torch.randn(2, 1, 40, 37, dtype=torch.float64)
    dense = to_dense(net)(x)
    assert distance(shift_and_stitch(net, x, (6, 4), "crop"), dense) < 1e-12
    padded = shift_and_stitch(net, x, (6, 4), "pad")
    assert padded.shape == dense.shape
    assert distance(padded, dense) < 1e-12


@pytest.mark.parametrize("border", ["pad", "crop"])
def test_borders_differ_in_the_first_outputs_only(border):
    torch.manual_seed(10)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, 2, 1), nn.Tanh(), nn.Conv2d(3, 2, 3, 2, 1)).double()
    x = torch.randn(1, 1, 41, 38, dtype=torch.float64)
    dense, other = to_dense(net)(x), shift_and_stitch(net, x, 4, border)
    assert other.shape == dense.shape
    differs = (dense - other).abs().amax((0, 1)) > 1e-12
    # The second layer's padding reaches output 0 of the strided map: positions 0 to 3.
    assert differs[:4].any() and not differs[4:, 4:].any()
    assert distance(other[..., ::4, ::4], net(x)) < 1e-12


def test_any_callable_and_progress():
    calls = []
    x = torch.randn(1, 2, 12, 12, dtype=torch.float64)
    out = shift_and_stitch(lambda z: F.avg_pool2d(z, 3).sin(), x, 3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 9) for i in range(9)]
    assert distance(out, F.avg_pool2d(x, 3, 1).sin()) < 1e-12
    # What torch functions cannot tell, the black box can.
    opaque = shift_and_stitch(lambda z: torch.from_numpy(F.avg_pool2d(z, 3).sin().numpy().copy()), x, 3, "crop")
    assert distance(opaque, out) < 1e-12


def test_progress_line(capsys):
    shift_and_stitch(nn.MaxPool2d(2), torch.zeros(1, 1, 6, 6), 2, progress=True)
    assert "4 of 4" in capsys.readouterr().err


def test_bad_arguments_say_what_to_do():
    x = torch.zeros(1, 1, 16, 16)
    with pytest.raises(ValueError, match="total stride is"):
        shift_and_stitch(nn.MaxPool2d(2), x, 4)
    with pytest.raises(ValueError, match="total stride is another one"):
        shift_and_stitch(nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(3)), torch.zeros(1, 1, 40, 40), 4, "crop")
    with pytest.raises(ValueError, match="border"):
        shift_and_stitch(nn.MaxPool2d(2), x, 2, "reflect")
    with pytest.raises(ValueError, match="chunk"):
        shift_and_stitch(nn.MaxPool2d(2), x, 2, "pad", chunk=2)
    with pytest.raises(ValueError, match="x:"):
        shift_and_stitch(nn.MaxPool2d(2), x[0], 2)
    with pytest.raises(TypeError, match="interpolate"):
        shift_and_stitch(lambda z: F.interpolate(F.max_pool2d(z, 2), scale_factor=2), x, 1)
    with pytest.raises(TypeError, match="one map"):
        shift_and_stitch(lambda z: F.max_pool2d(z, 2).flatten(1) if isinstance(z, torch.Tensor) else z, x, 2, "crop")
