"""What torch.autocast does to each operator, by hand: torch.library.register_autocast would fix one dtype for good, while
torch.nn.functional.conv2d follows the dtype of the context.

The convolutions run in the autocast dtype, as conv2d does. The pools, shift and stitch have no rule: they keep the
dtype of their input, as max_pool2d and avg_pool2d do on every device.
"""

from functools import partial

import torch

from . import _ops

_CASTING_OPS = ("depthwise_conv2d", "depthwise_separable_conv2d")
_KEYS = {"cpu": torch._C.DispatchKey.AutocastCPU, "cuda": torch._C.DispatchKey.AutocastCUDA}


def _cast(argument, device: str, dtype: torch.dtype):
    # float64 is left alone, as autocast leaves it everywhere: who asks for it means it.
    if (
        isinstance(argument, torch.Tensor)
        and argument.is_floating_point()
        and argument.dtype != torch.float64
        and argument.device.type == device
    ):
        return argument.to(dtype)
    return argument


def _call(op, device: str, keys, *arguments):
    dtype = torch.get_autocast_dtype(device)
    with torch._C._ExcludeDispatchKeyGuard(keys):
        return op(*(_cast(argument, device, dtype) for argument in arguments))


_libraries = []


def register(namespace: str) -> None:
    """Gives the convolutions of a namespace that carries these schemas their autocast rule."""
    library = torch.library.Library(namespace, "FRAGMENT")
    _libraries.append(library)  # a Library takes its registrations with it when it is collected
    ops = _ops.overloads(namespace, _CASTING_OPS)
    for name in _CASTING_OPS:
        for device, key in _KEYS.items():
            rule = partial(_call, getattr(ops, name), device, torch._C.DispatchKeySet(key))
            library.impl(name, rule, key.name)
