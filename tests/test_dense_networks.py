"""Networks that people use, by name: converted exactly, or refused with the true reason. Needs timm and torchvision (install both with --no-deps)."""

import importlib.util

import pytest
import torch
from chains import randomise_norms

from fastconv.dense import NotConvertible, to_dense

if importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None:
    pytest.skip("timm or torchvision is not installed (python -m pip install --no-deps timm torchvision)", allow_module_level=True)

# torchvision beside a CPU torch lacks its operators and does not import without their schemas.
_schemas = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        _schemas.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
timm = pytest.importorskip("timm", exc_type=ImportError)

EXACT = (
    "resnet18",
    "resnet50",
    "resnet50d",
    "mobilenetv2_100",
    "xception65",
    "vgg11_bn",
    "densenet121",
    "convnext_atto",
    "tf_efficientnet_lite0",
)
REFUSED = {
    # (network, size): (part of the module's name, part of the reason)
    ("regnety_002", 225): (".se", "squeeze-and-excitation"),
    ("mobilenetv3_small_100", 225): (".se", "squeeze-and-excitation"),
    ("tf_efficientnet_lite0", 224): ("conv_stem", "asymmetric"),
}


def build(name):
    torch.manual_seed(0)
    return randomise_norms(timm.create_model(name, pretrained=False, num_classes=11)).eval()


@pytest.mark.parametrize("name", EXACT)
def test_converted_exactly(name):
    model = build(name)
    method = "dilated" if EXACT.index(name) % 2 else "fragments"
    dense = to_dense(model, 8, method, example_input=torch.zeros(1, 3, 225, 225), fully_convolutional=True)
    assert dense.report.error < 1e-12
    assert dense.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(("name", "size"), REFUSED)
def test_refused_with_the_true_reason(name, size):
    module, reason = REFUSED[name, size]
    with pytest.raises(NotConvertible) as caught:
        to_dense(build(name), 1, example_input=torch.zeros(1, 3, size, size), fully_convolutional=True)
    assert module in caught.value.module and reason in caught.value.reason
