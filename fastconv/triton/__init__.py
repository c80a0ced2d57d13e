"""The Triton backend: every operator of csrc/ops.cpp, forward and backward, as Triton kernels.

It needs no compiler at installation and serves NVIDIA and AMD devices; `fastconv.backends` takes it where the CUDA library is not built,
and `fastconv.backends.use("triton")` forces it. The operators live in a namespace of their own, torch.ops.fastconv_triton, with the schemas
of torch.ops.fastconv and the same fakes, derivatives and autocast rules, so that torch.compile, export and CUDA graphs see ordinary
operators.
"""

import torch
import triton

from .. import _autocast, _autograd, _meta, _ops
from . import depthwise, depthwise_backward, pooling, pooling_backward, separable, separable_backward, shift_stitch
from .launch import INTERPRETED

NAMESPACE = "fastconv_triton"
OLDEST_TRITON = (3, 6)

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST_TRITON:
    raise ImportError(f"fastconv.triton needs triton {'.'.join(map(str, OLDEST_TRITON))} or newer, found {triton.__version__}")

# One launcher an operator, with the operator's arguments.
LAUNCHERS = {
    name: getattr(module, name)
    for module, names in (
        (depthwise, ("depthwise_conv2d",)),
        (depthwise_backward, ("depthwise_conv2d_backward",)),
        (separable, ("depthwise_separable_conv2d",)),
        (separable_backward, ("depthwise_separable_conv2d_backward",)),
        (
            pooling,
            ("shift_stitch_max_pool2d", "shift_stitch_max_pool2d_argmax", "shift_stitch_max_pool2d_indices", "shift_stitch_avg_pool2d"),
        ),
        (pooling_backward, ("shift_stitch_max_pool2d_backward", "shift_stitch_avg_pool2d_backward")),
        (shift_stitch, ("shift", "stitch")),
    )
    for name in names
}

_library = torch.library.Library(NAMESPACE, "DEF")
for _name, _schema in ((name, getattr(torch.ops.fastconv, name).default._schema) for name in _ops.FORWARD_OPS + _ops.BACKWARD_OPS):
    _library.define(str(_schema).removeprefix("fastconv::"), tags=(torch.Tag.pt2_compliant_tag,))
    for _key in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
        _library.impl(_name, LAUNCHERS[_name], _key)
for _part in (_meta, _autograd, _autocast):
    _part.register(NAMESPACE)

ops = _ops.overloads(NAMESPACE)
