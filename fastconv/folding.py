"""Batch norms that use their running statistics, folded into the convolutions before them.

In float64 and rounded once: conv(x, w) * s + t with s = gamma / sqrt(var + eps), t = beta - mean * s, is conv(x, w * s) + t.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._rounding import keeping_means, moments

_16_BITS = (torch.float16, torch.bfloat16)
_HOMOGENEOUS = ("identity", "relu")  # act(c x) = c act(x) for c > 0


def folds(norm: nn.Module | None) -> bool:
    """Whether a norm is a fixed affine map of each channel just now: none at all, or a batch norm that uses its running statistics."""
    if norm is None:
        return True
    # A subclass may do more than the norm: timm's BatchNormAct2d hides an activation.
    return type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm) and is_fixed(norm)


def is_fixed(norm: nn.Module) -> bool:
    """Whether a batch norm of whatever class uses stored statistics just now; the frozen ones that libraries write have no other mode."""
    return norm.running_mean is not None and not (norm.training and isinstance(norm, nn.modules.batchnorm._BatchNorm))


def _scale(norm: nn.Module) -> Tensor:
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight.double()


def _exactly(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the one convolution that equals `conv` followed by `norm`, in float64."""
    if norm is None:
        return conv.weight.double(), None if conv.bias is None else conv.bias.double()
    scale, mean = _scale(norm), norm.running_mean.double()
    shift = -mean * scale if conv.bias is None else (conv.bias.double() - mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return conv.weight.double() * scale[:, None, None, None], shift


def fold(conv: nn.Conv2d, norm: nn.Module | None, settled: bool = False) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the one convolution that equals `conv` followed by `norm`; differentiable, unless it is `settled` that they stay
    for more than a call: then 16-bit weights are rounded with more care than to the nearest."""
    if norm is None:
        return conv.weight, conv.bias
    weight, bias = _exactly(conv, norm)
    dtype = conv.weight.dtype
    return keeping_means(weight, dtype) if settled and dtype in _16_BITS else weight.to(dtype), bias.to(dtype)


def fold_chain(depthwise: tuple, pointwise: tuple, activation: str, settled: bool = False) -> tuple[Tensor | None, ...]:
    """(weight, bias) of a depthwise and of a pointwise convolution, both with norms, and an activation between them.

    Of the depthwise norm's scale only a power of two goes into the depthwise weight, which that leaves exact, where the activation lets
    the rest pass through into the pointwise weight, which is rounded anyhow. The pointwise weight is rounded such that it makes good what
    rounding both biases does to the mean of the result.
    """
    norm, dtype = depthwise[1], pointwise[0].weight.dtype
    (first, shift), (second, bias) = _exactly(*depthwise), _exactly(*pointwise)
    rest = None
    if activation in _HOMOGENEOUS:
        scale = _scale(norm)
        power = torch.where(scale == 0, 1.0, scale.detach().abs().log2().round().exp2())
        rest = torch.where(scale == 0, 1.0, scale.abs() / power)
        first, shift, second = first / rest[:, None, None, None], shift / rest, second * rest[:, None, None]
    rounded_shift, rounded_bias = shift.to(dtype), bias.to(dtype)
    if not settled or dtype not in _16_BITS:
        return first.to(dtype), rounded_shift, second.to(dtype), rounded_bias
    mean, variance = moments(norm, activation)
    error = rounded_shift.double() - shift
    moved = moments(norm, activation, error if rest is None else error * rest)[0]
    if rest is not None:
        mean, moved, variance = mean / rest, moved / rest, variance / rest.square()
    offset = rounded_bias.double() - bias + second.flatten(1) @ (moved - mean)
    return keeping_means(first, dtype), rounded_shift, keeping_means(second, dtype, mean, variance, offset), rounded_bias


class FoldedWeights:
    """Folds pairs of (convolution, norm or None), and keeps the result while every tensor that it came from is what it was.

    Identity, storage and version of each tensor are compared on each call, so replacing, moving, loading or writing to any of them is
    noticed. Writes through ``.data`` are not: whoever holds this calls :meth:`forget` where such writes may have happened. Nothing is
    kept where autograd looks on, under torch.compile, and for tensors that carry no version (those of inference mode).
    """

    def __init__(self, activation: str | None = None):
        """`activation`: that between a depthwise and a pointwise convolution which are always folded together."""
        self._activation = activation
        self._kept = None

    def forget(self) -> None:
        self._kept = None

    def __call__(self, *pairs: tuple[nn.Conv2d, nn.Module | None]) -> tuple[Tensor | None, ...]:
        """(weight, bias) of each pair, one after the other."""
        if all(norm is None for _, norm in pairs):
            return self._fold_all(pairs)
        # The dictionaries, because attribute look-ups on modules would cost more than the comparison.
        modules = [module for pair in pairs for module in pair if module is not None]
        sources = [
            tensor for module in modules for kind in (module._parameters, module._buffers) for tensor in kind.values() if tensor is not None
        ]
        if torch.compiler.is_compiling() or not _may_keep(sources):
            return self._fold_all(pairs)
        state = [(id(source), source.data_ptr(), source._version) for source in sources]
        state += [norm.eps for _, norm in pairs if norm is not None]
        kept = self._kept
        if kept is None or kept[0] != state:
            with torch.inference_mode(False), torch.no_grad():  # so that they may serve a call under autograd later
                kept = state, self._fold_all(pairs, settled=True), sources, [source.detach() for source in sources]
            self._kept = kept
        # Sources and their storages (which `.data = ...` and casts of a module exchange) are kept too: while an id and an address are
        # compared with, nothing else can take them over. Not read again from self: another thread may have put its own there.
        return kept[1]

    def _fold_all(self, pairs, settled: bool = False):
        if self._activation is not None and all(norm is not None for _, norm in pairs):
            return fold_chain(*pairs, self._activation, settled)
        return tuple(tensor for pair in pairs for tensor in fold(*pair, settled))

    def __getstate__(self):
        return {**self.__dict__, "_kept": None}


def convolved(x, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, padding=None):
    """`conv` with folded weights, by torch's own convolution."""
    return F.conv2d(x, weight, bias, conv.stride, conv.padding if padding is None else padding, conv.dilation, conv.groups)


def _may_keep(sources) -> bool:
    grad = torch.is_grad_enabled()
    return all(
        type(source) in (Tensor, nn.Parameter) and not source.is_inference() and not (grad and source.requires_grad) for source in sources
    )
