"""Boxes from class maps: the rule of Dilated Residual Networks, position by position."""

import pytest
import torch

from fastconv.localization import Box, heat_maps, localize


def planted(size=(9, 12), classes=4):
    """Class 0 wins everywhere, weakly; classes 2 and 3 win somewhere, strongly."""
    logits = torch.zeros(classes, *size)
    logits[0] = 0.1
    logits[2, 2:5, 3:8] = 9.0
    logits[2, 7, 1] = 7.0
    logits[3, 0, 11] = 8.0
    return logits


def by_the_book(logits, threshold):
    f = logits.double().softmax(0)
    boxes = {}
    for h in range(f.shape[1]):
        for w in range(f.shape[2]):
            c = int(f[:, h, w].argmax())
            if f[c, h, w] > threshold:
                top, left, bottom, right, n = boxes.get(c, (h, w, h, w, 0))
                boxes[c] = (min(top, h), min(left, w), max(bottom, h), max(right, w), n + 1)
    return {c: (top, left, bottom + 1, right + 1, n) for c, (top, left, bottom, right, n) in boxes.items()}


def test_planted_boxes():
    first, second = localize(planted())
    score = heat_maps(planted())[2, 2, 3].item()
    assert first == Box(2, score, 16, 2, 1, 8, 8)
    assert (second.label, second.positions, second.top, second.left, second.bottom, second.right) == (3, 1, 0, 11, 1, 12)
    assert localize(planted()[None]) == [[first, second]]
    assert localize(planted()[:1] * 0, 0.5)[0].positions == 9 * 12
    assert localize(torch.zeros(3, 5, 5), 0.5) == []


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6])
def test_random_maps_follow_the_rule(threshold):
    logits = 2 * torch.randn(3, 5, 7, 6)
    for image, boxes in zip(logits, localize(logits, threshold), strict=True):
        assert {b.label: (b.top, b.left, b.bottom, b.right, b.positions) for b in boxes} == by_the_book(image, threshold)
        assert [b.positions for b in boxes] == sorted((b.positions for b in boxes), reverse=True)


def test_pixels():
    """At stride 8 with centred padding, position u looks at pixel 8u: its cell reaches four pixels to both sides of that centre."""
    box = localize(planted(), jump=8, start=0.5, image_size=(66, 90))[0]
    assert (box.top, box.left, box.bottom, box.right) == (12.5, 4.5, 60.5, 60.5)
    clipped = localize(planted(), jump=(8, 7), start=(0.5, 1), image_size=(66, 77))[1]
    assert (clipped.top, clipped.left, clipped.bottom, clipped.right) == (0, 74.5, 4.5, 77)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    assert [b.label for b in localize(planted().to(dtype))] == [2, 3]


def test_what_is_not_supported_is_said():
    with pytest.raises(ValueError, match=r"logits: must be a floating .* got \(3, 4\)"):
        localize(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="threshold: a probability in .* got 1.5"):
        localize(torch.zeros(3, 4, 4), 1.5)
