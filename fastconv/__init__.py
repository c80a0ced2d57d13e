"""fastconv: the fused dilated depthwise-separable convolution and shift-and-stitch pooling for PyTorch.

    >>> import fastconv.functional as FF
    >>> y = FF.depthwise_separable_conv2d(x, depthwise_weight, pointwise_weight, padding=2, dilation=2, pointwise_activation="relu")

Importing the package loads the compiled operators (torch.ops.fastconv) and gives them their fakes, derivatives and
autocast rules. An installation made without a compiler (FASTCONV_COMPILE=0) has the operators without kernels: CUDA
tensors go to Triton, CPU tensors to compositions of PyTorch's own operators.
"""

from . import _autocast, _autograd, _meta

for _part in (_meta, _autograd, _autocast):
    _part.register("fastconv")
del _part

from . import backends, functional, nn, reference, tuning  # noqa: E402  (they may only see operators that are complete)
from .dense import shift_and_stitch, tiled, to_dense  # noqa: E402
from .fragments import Fragments  # noqa: E402
from .fusion import fuse  # noqa: E402

__version__ = "0.1.0"
tuning.hand_to_planners()

__all__ = ["Fragments", "backends", "functional", "fuse", "nn", "reference", "shift_and_stitch", "tiled", "to_dense"]
