"""Networks on fastconv's operators. Parameter names follow the public checkpoints, so that those load."""

from .mobilenet import InvertedResidual, MobileNetV2, load_pretrained

__all__ = ["InvertedResidual", "MobileNetV2", "load_pretrained"]
