"""torch's functions and operators on `Fragments`: which may run on every fragment, how, and the sentence for those that may not."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _pointwise as pointwise

if TYPE_CHECKING:
    from .fragments import Fragments


def _is_fragments(value) -> bool:
    return hasattr(type(value), "dense_offsets")


def call(function, args: tuple, kwargs: dict):
    """`function(*args, **kwargs)`, where at least one argument is a `Fragments` (or holds one)."""
    handler = _HANDLERS.get(function)
    if handler is not None:
        return handler(*args, **kwargs)
    if function in pointwise.UNARY:
        return _unary(function, *args, **kwargs)
    if function in pointwise.ELEMENTWISE:
        return elementwise(function, *args, **kwargs)
    if function in pointwise.ALONG_AXIS:
        return _along_axis(function, *args, **kwargs)
    if function in pointwise.DROPOUT:
        return _dropout(function, *args, **kwargs)
    name = getattr(function, "__name__", repr(function))
    raise TypeError(
        f"{name} is not known to treat every position of a map alike, so it has no meaning on Fragments; stitch() first, or keep to convolutions, "
        "pools, batch norms, activations, arithmetic and cat"
    )


def _unary(function, x: Fragments, *args, **kwargs) -> Fragments:
    args = tuple(a.tensor if _is_fragments(a) else a for a in args)
    return x.map(lambda tensor: function(tensor, *args, **kwargs))


def aligned(maps: list[Fragments], what: str) -> list[Fragments]:
    """The same maps cropped to their common size, which is legitimate where the strided network's maps are equally long."""
    first = maps[0]
    for other in maps[1:]:
        if (other.strides, other._start, other._axes, other.shape[0]) != (first.strides, first._start, first._axes, first.shape[0]):
            raise ValueError(f"{what}: fragments of different strides do not meet: {first!r} and {other!r}")
    if all(m.dense_size == first.dense_size for m in maps):
        return maps
    strided = {tuple(-(-n // s) for n, s in zip(m.dense_size, m.stride, strict=True)) for m in maps}
    if len(strided) > 1:
        raise ValueError(f"{what}: the strided network's maps have different sizes, {sorted(strided)}")
    common = (min(m.dense_size[0] for m in maps), min(m.dense_size[1] for m in maps))
    return [m.crop(common) for m in maps]


def elementwise(function, *args, **kwargs) -> Fragments:
    name = getattr(function, "__name__", repr(function))
    maps = [a for a in args if _is_fragments(a)]
    if any(_is_fragments(v) for v in kwargs.values()):
        raise TypeError(f"{name}: pass Fragments by position")
    whole = iter(aligned(maps, name))
    operands = []
    for value in args:
        if _is_fragments(value):
            operands.append(next(whole))
        else:
            if isinstance(value, Tensor):
                _require_constant(value, maps[0], name)
            operands.append(value)
    tensors = [v.tensor if _is_fragments(v) else v for v in operands]
    like = next(v for v in operands if _is_fragments(v))
    return like._like(function(*tensors, **kwargs))


def _require_constant(value: Tensor, fragments: Fragments, name: str) -> None:
    sizes = [value.shape[axis] if value.dim() >= -axis else 1 for axis in (*fragments._axes, -fragments.dim())]
    if any(size != 1 for size in sizes):
        raise TypeError(f"{name}: a tensor of shape {tuple(value.shape)} differs from position to position; on Fragments only constants along rows, columns "
                        "and batch have a meaning")  # fmt: skip


def _channel_axis(x: Fragments, dim: int, name: str) -> None:
    axis = dim if dim < 0 else dim - x.dim()
    if axis in x._axes or axis == -x.dim():
        raise TypeError(f"{name}: axis {dim} runs over positions or images, which Fragments keep apart; only channels may be reduced")


def _along_axis(function, x: Fragments, *args, **kwargs) -> Fragments:
    name = function.__name__
    position = {F.normalize: 1}.get(function, 0)
    default = {F.normalize: 1, F.glu: -1}.get(function)
    dim = kwargs.get("dim", args[position] if len(args) > position else default)
    if dim is None:
        raise TypeError(f"{name}: name the axis (dim=1 for channels)")
    _channel_axis(x, dim, name)
    return x._like(function(x.tensor, *args, **kwargs))


def _dropout(function, x: Fragments, p=0.5, training=True, inplace=False) -> Fragments:
    if training:
        raise TypeError("dropout: in train mode it would drop fragments of one map differently; call model.eval()")
    return x


def _batch_norm(
    x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5, cudnn_enabled=True
) -> Fragments:
    if training or running_mean is None:
        raise TypeError("batch_norm: batch statistics over Fragments would count every offset and the tails; call model.eval()")
    return x.map(lambda tensor: F.batch_norm(tensor, running_mean, running_var, weight, bias, False, momentum, eps))


def _instance_norm(
    input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5
) -> Fragments:
    if use_input_stats:
        raise TypeError("instance_norm: statistics of each fragment are not those of the map; only stored ones (eval mode) have a meaning")
    return _batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)


def _layer_norm(x, normalized_shape, *args, **kwargs) -> Fragments:
    if len(normalized_shape) != 1:
        raise TypeError("layer_norm: over rows and columns it mixes positions; on Fragments it may only normalise channels")
    _channel_axis(x, -1, "layer_norm")
    return x._like(F.layer_norm(x.tensor, normalized_shape, *args, **kwargs))


def _linear(x, weight, bias=None) -> Fragments:
    _channel_axis(x, -1, "linear")
    return x._like(F.linear(x.tensor, weight, bias))


def _conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Fragments:
    return input.conv2d(weight, bias, stride, padding, dilation, groups)


def _max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False) -> Fragments:
    if return_indices:
        raise TypeError("max_pool2d: return_indices has no meaning on Fragments")
    return input.max_pool2d(kernel_size, stride, padding, dilation, ceil_mode)


def _avg_pool2d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None) -> Fragments:
    return input.avg_pool2d(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _pad(input, pad, mode="constant", value=None) -> Fragments:
    if mode != "constant" or len(pad) > 4:
        raise TypeError(f"pad: on Fragments rows and columns can be padded with a constant, got mode={mode!r}, pad={tuple(pad)}")
    left, right, top, bottom = (*pad, 0, 0)[:4]
    return input.pad((top, bottom, left, right), 0.0 if value is None else value)


def cat(tensors, dim=0) -> Fragments:
    if not all(_is_fragments(t) for t in tensors):
        raise TypeError("cat: Fragments and tensors do not mix; stitch() the one or wrap the other")
    tensors = aligned(list(tensors), "cat")
    _channel_axis(tensors[0], dim, "cat")
    return tensors[0]._like(torch.cat([t.tensor for t in tensors], dim))


def permute(x: Fragments, *dims) -> Fragments:
    dims = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    dims = [d % x.dim() for d in dims]
    if dims[0] != 0:
        raise TypeError("permute: the batch of Fragments must stay in front")
    axes = tuple(dims.index(axis % x.dim()) - x.dim() for axis in x._axes)
    return x._like(x.tensor.permute(dims), owned=False, axes=axes)


def _transpose(x: Fragments, first: int, second: int) -> Fragments:
    dims = list(range(x.dim()))
    dims[first], dims[second] = dims[second], dims[first]
    return permute(x, dims)


def _reduce(function, x: Fragments, dim=None, keepdim=False, **kwargs) -> Fragments:
    name = function.__name__
    for axis in dim if isinstance(dim, (tuple, list)) else [dim]:
        if axis is None:
            raise TypeError(f"{name}: over all axes it mixes positions, which Fragments keep apart")
        _channel_axis(x, axis, name)
    if not keepdim:
        raise TypeError(f"{name}: on Fragments a reduction over channels needs keepdim=True")
    return x._like(function(x.tensor, dim, keepdim, **kwargs))


def _split(function, x: Fragments, sections, dim=0):
    _channel_axis(x, dim, function.__name__)
    return tuple(x._like(part, owned=False) for part in function(x.tensor, sections, dim))


def _reduction(function):
    return lambda x, dim=None, keepdim=False, **kwargs: _reduce(function, x, dim, keepdim, **kwargs)


REDUCTIONS = (torch.mean, torch.sum, torch.amax, torch.amin)

_HANDLERS = {
    F.conv2d: _conv2d,
    F.max_pool2d: _max_pool2d,
    torch.max_pool2d: _max_pool2d,
    F.max_pool2d_with_indices: lambda *args, **kwargs: _max_pool2d(*args, **{**kwargs, "return_indices": True}),
    F.avg_pool2d: _avg_pool2d,
    F.pad: _pad,
    F.batch_norm: _batch_norm,
    torch.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    F.linear: _linear,
    F.local_response_norm: lambda x, *args, **kwargs: x._like(F.local_response_norm(x.tensor, *args, **kwargs)),
    torch.permute: permute,
    torch.transpose: _transpose,
    torch.chunk: lambda x, chunks, dim=0: _split(torch.chunk, x, chunks, dim),
    torch.split: lambda x, sections, dim=0: _split(torch.split, x, sections, dim),
    **{function: cat for function in pointwise.CONCATENATION},
    **{function: _reduction(function) for function in REDUCTIONS},
}


def _getitem(x: Fragments, index) -> Fragments:
    index = index if isinstance(index, tuple) else (index,)
    full = slice(None)
    plain = Ellipsis not in index and len(index) <= x.dim() and index[0] == full
    if (
        not plain
        or any(i - x.dim() in x._axes and item != full for i, item in enumerate(index))
        or not all(isinstance(i, slice) for i in index)
    ):
        raise TypeError(f"indexing: on Fragments only channels may be sliced, got {index}")
    return x._like(x.tensor[index], owned=False)


def install(cls: type) -> None:
    """Gives the class the operators and methods of a tensor that a network's forward uses."""
    for name in ("add", "sub", "mul", "truediv", "pow"):
        function = getattr(operator, name)
        setattr(cls, f"__{name}__", lambda self, other, f=function: elementwise(f, self, other))
        setattr(cls, f"__r{name}__", lambda self, other, f=function: elementwise(f, other, self))
    cls.__neg__ = lambda self: self.map(operator.neg)
    cls.__getitem__ = _getitem
    for name in pointwise.UNARY_METHODS:
        setattr(cls, name, lambda self, *args, n=name, **kwargs: _unary(getattr(Tensor, n), self, *args, **kwargs))
    for name in pointwise.ELEMENTWISE_METHODS:
        if not name.startswith("__"):
            setattr(cls, name, lambda self, *args, n=name, **kwargs: elementwise(getattr(Tensor, n), self, *args, **kwargs))
    for name in pointwise.ALONG_AXIS_METHODS:
        setattr(cls, name, lambda self, *args, n=name, **kwargs: _along_axis(getattr(torch, n), self, *args, **kwargs))
    for function in (*REDUCTIONS, torch.chunk, torch.split, torch.permute, torch.transpose):
        setattr(cls, function.__name__, lambda self, *args, f=function, **kwargs: _HANDLERS[f](self, *args, **kwargs))
