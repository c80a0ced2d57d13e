"""Networks with weights that show mistakes, and how they are compared."""

import torch
from torch import nn

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norm statistics far enough from 0 and 1 that a forgotten fold shows, near enough that deep networks stay finite."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
            nn.init.normal_(module.running_mean, 0, 0.2, generator=generator)
            nn.init.uniform_(module.running_var, 0.7, 1.5, generator=generator)
    return model.eval()


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def names(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]


def on_meta(make) -> nn.Module:
    with torch.device("meta"):
        return make()
