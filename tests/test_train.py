"""The training comparison: its task, and that both networks take the same steps."""

import argparse

import pytest
import torch
from helpers import relative_error

from bench import train
from fastconv.nn import plain


def shapes(seed):
    pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    if not train.photographs([]):
        pytest.skip("scikit-image is not installed")
    return train.Shapes(train.pictures(), 48, seed)


def test_shapes_on_photographs():
    images, labels = shapes(1).batch(6)
    again = shapes(1).batch(6)
    assert torch.equal(images, again[0]) and torch.equal(labels, again[1])
    assert not torch.equal(labels, shapes(2).batch(6)[1])
    assert images.shape == (6, 3, 48, 48) and images.is_contiguous(memory_format=torch.channels_last)
    assert set(labels.unique().tolist()) == set(range(len(train.CLASSES)))
    assert labels.flatten(1).any(1).all() and images.mean().abs() < 2


def test_both_networks_take_the_same_steps(tmp_path):
    data = shapes(3)
    ours = train.network(0)
    trainees = [train.Trainee(name, model.double(), 2e-3, 2) for name, model in (("fastconv", ours), ("PyTorch", plain(ours)))]
    for _ in range(2):
        image, label = data.batch(2)
        for trainee in trainees:
            trainee.step(image.double(), label, 0.5)
    assert trainees[0].losses == pytest.approx(trainees[1].losses, rel=1e-9)
    states = [trainee.model.state_dict() for trainee in trainees]
    for name, value in states[0].items():
        # Adam divides by the gradient's own size: where that is near zero, rounding decides the step.
        assert not value.is_floating_point() or relative_error(value, states[1][name]) < 1e-3, name


def test_the_whole_comparison(tmp_path):
    shapes(0)
    options = argparse.Namespace(seconds=0.01, size=48, batch=2, seed=0, threads=torch.get_num_threads(), out=tmp_path)
    result = train.train(options)
    assert len(result["runs"]["fastconv"]["losses"]) == len(result["runs"]["PyTorch"]["losses"]) >= 1
    assert result["runs"]["fastconv"]["saved_bytes"] < result["runs"]["PyTorch"]["saved_bytes"]
    assert "held out: mean IoU" in train.table(result)
