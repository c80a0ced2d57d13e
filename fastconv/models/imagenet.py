"""What an ImageNet classifier needs around it: class names and the preprocessing that published weights were trained with."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@cache
def class_names() -> tuple[str, ...]:
    """The 1000 classes in the order of the network's outputs: first lemma of each WordNet synset, told apart where two share it."""
    return tuple(Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines())


def resize_and_crop(image: Image, resize: int = 256, crop: int = 224) -> Image:
    """The central `crop` x `crop` square of an image whose shorter side was first made `resize` (bilinear, antialiased)."""
    from PIL import Image as pil

    width, height = image.size
    # The longer side is cut off, not rounded, as in the pipeline that the published accuracies were measured with.
    size = (resize, resize * height // width) if width <= height else (resize * width // height, resize)
    resized = image.convert("RGB").resize(size, pil.Resampling.BILINEAR)
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    return resized.crop((left, top, left + crop, top + crop))


def to_input(image: Image) -> Tensor:
    """An RGB image as the network's input: float32 (1, 3, H, W), normalised with `MEAN` and `STD`."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return ((pixels - mean) / std).unsqueeze(0)
