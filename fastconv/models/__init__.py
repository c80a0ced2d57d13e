"""Networks on fastconv's operators. Parameter names follow the public checkpoints, so that those load."""

from . import drn, mobilenet_v3, overfeat, xception
from .decoder import Decoder, Segmenter
from .deeplab import DeepLabV3Plus
from .drn import DRN, Localization
from .mobilenet import InvertedResidual, MobileNetV2, load_pretrained
from .mobilenet_v3 import MobileNetV3
from .overfeat import OverFeat
from .xception import Xception

# Every network by name: what makes it, to be called with num_classes and the network's own options.
BUILDERS = {
    **{name: (DRN, (name,), {}) for name in drn.CONFIGS},
    **{name: (Xception, (name,), {}) for name in xception.CONFIGS},
    "mobilenet_v2": (MobileNetV2, (), {"backend": "fastconv"}),
    **{f"mobilenet_v3_{name}": (MobileNetV3, (name,), {}) for name in mobilenet_v3.CONFIGS},
    **{f"overfeat_{name}": (OverFeat, (name,), {}) for name in overfeat.CONFIGS},
}


def create(name: str, **options):
    """A network by its name in `BUILDERS`, such as "drn_c_26", with random weights; `options` are its constructor's.

    Raises:
        ValueError: a name that is not there.
    """
    if name not in BUILDERS:
        raise ValueError(f"name: got {name!r}, supported are {', '.join(BUILDERS)}")
    make, arguments, defaults = BUILDERS[name]
    return make(*arguments, **{**defaults, **options})


__all__ = [
    "BUILDERS",
    "DRN",
    "Decoder",
    "DeepLabV3Plus",
    "InvertedResidual",
    "Localization",
    "MobileNetV2",
    "MobileNetV3",
    "OverFeat",
    "Segmenter",
    "Xception",
    "create",
    "load_pretrained",
]
