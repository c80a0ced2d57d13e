"""The torch functions that treat every position of a map alike: they may run on a dense map, or on its fragments, exactly as they stand.

One table for everybody who asks: `Fragments` (through __torch_function__) and the tracer behind `to_dense` and the receptive field.
"""

import operator

import torch
import torch.nn.functional as F
from torch import nn

# One map in, one map out, no axis argument.
UNARY = frozenset(
    {
        F.relu, F.relu_, F.relu6, F.silu, F.gelu, F.hardswish, F.hardsigmoid, F.hardtanh, F.hardtanh_, F.elu, F.elu_, F.selu, F.selu_, F.celu, F.celu_,
        F.leaky_relu, F.leaky_relu_, F.prelu, F.softplus, F.softsign, F.tanh, F.sigmoid, F.mish, F.logsigmoid, F.threshold, F.hardshrink, F.softshrink,
        F.tanhshrink, torch.relu, torch.relu_, torch.sigmoid, torch.sigmoid_, torch.tanh, torch.tanh_, torch.exp, torch.log, torch.sqrt, torch.rsqrt,
        torch.square, torch.abs, torch.neg, torch.erf, torch.sign, torch.sin, torch.cos, torch.clamp, torch.clamp_, torch.clone, torch.prelu,
        torch.celu, torch.selu, torch.detach, torch.nan_to_num, operator.neg, operator.pos, operator.abs, torch.reciprocal, torch.log1p, torch.expm1,
    }
)  # fmt: skip

# Maps and constants in, broadcast against each other, one map out.
ELEMENTWISE = frozenset(
    {
        torch.add, torch.sub, torch.mul, torch.div, torch.true_divide, torch.multiply, torch.subtract, torch.divide, torch.pow, torch.maximum,
        torch.minimum, torch.rsub, torch.addcmul, operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.iadd,
        operator.isub, operator.imul, operator.itruediv,
    }
)  # fmt: skip

# The same by method name: Tensor.relu, Tensor.add_, ...
UNARY_METHODS = frozenset(
    """relu relu_ sigmoid sigmoid_ tanh tanh_ exp log sqrt rsqrt square abs neg erf sign sin cos clamp clamp_ clamp_min clamp_max clone detach contiguous
    to float half double bfloat16 type_as reciprocal log1p expm1 hardshrink""".split()
)
ELEMENTWISE_METHODS = frozenset(
    "add add_ sub sub_ mul mul_ div div_ pow maximum minimum addcmul __add__ __mul__ __sub__ __truediv__".split()
)

DROPOUT = frozenset({F.dropout, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout})
CONCATENATION = frozenset({torch.cat, torch.concat, torch.concatenate})
# Along one named axis, which must not be a spatial one.
ALONG_AXIS = frozenset({F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, F.softmin, F.glu, F.normalize})
ALONG_AXIS_METHODS = frozenset({"softmax", "log_softmax"})

MODULES = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.PReLU,
    nn.Softplus, nn.Softsign, nn.Tanh, nn.Sigmoid, nn.Mish, nn.LogSigmoid, nn.Threshold, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink,
    nn.LocalResponseNorm,
)  # fmt: skip
DROPOUT_MODULES = (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
