"""The operators, as functions: fused depthwise(-separable) convolution, and pooling at every offset.

Where a docstring is silent, each behaves as its neighbour in torch.nn.functional. All of them take contiguous and
channels_last inputs alike, with no copy from the one into the other, and return the format of their input; a
non-dense input is copied once. They run under autograd (once differentiable), autocast, torch.compile(fullgraph=True)
and torch.export.

The activations are "identity", "relu", "relu6", "silu", "gelu" (with erf), "gelu_tanh" and "hardswish".
"""

import torch
from torch import Tensor

from . import _arguments as check
from . import backends
from ._autograd import call

# One byte holds the argmax of a window of at most this many taps.
_ARGMAX_TAPS = 256

IntPair = int | tuple[int, int]


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    activation: str = "identity",
) -> Tensor:
    r"""Depthwise convolution with bias and activation in one pass.

    .. math::
        \mathrm{out}[n, cM + j, y, x] = \mathrm{activation}\Big(b[cM + j] +
        \sum_{i, k} w[cM + j, 0, i, k]\; \mathrm{input}[n, c, s_y y + d_y i - p_y, s_x x + d_x k - p_x]\Big)

    Equal to ``activation(F.conv2d(input, weight, bias, stride, padding, dilation, groups=C))``. Dilated convolution:
    Yu & Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", 2016 (arXiv:1511.07122).

    Args:
        input: (N, C, H, W) or (C, H, W); float32, float16, bfloat16, or float64.
        weight: (C*M, 1, Kh, Kw) with a depth multiplier M >= 1, any kernel size, dtype of the input.
        bias: (C*M,) or None.
        stride, dilation: int or (vertical, horizontal), at least 1.
        padding: int, (vertical, horizontal), "valid" (none), or "same" (stride 1 only; an odd total puts the extra
            row below and the extra column to the right).
        activation: one of the names above.

    Returns:
        (N, C*M, Ho, Wo) or (C*M, Ho, Wo), ``Ho = floor((H + 2*padding - dilation*(Kh - 1) - 1) / stride) + 1``.

    Raises:
        ValueError: a shape, size or name that does not fit, or a kernel larger than the padded input; the message
            names the argument.
        TypeError: an argument of the wrong type or dtype.

    Accumulates in float32 for 16-bit inputs and rounds once.
    """
    op = "depthwise_conv2d"
    x = check.batched(op, input)
    stride, padding, dilation, (_, channels, _, _) = check.conv(op, x, weight, stride, padding, dilation)
    check.bias(op, "bias", bias, channels)
    check.like_input(op, x, weight=weight, bias=bias)
    check.activation(op, "activation", activation)
    ops = backends.select(op, x, channels, weight.shape[2:], stride, dilation)
    out = call(ops.depthwise_conv2d, x, weight, bias, stride, padding, dilation, activation)
    return out.squeeze(0) if input.dim() == 3 else out


def depthwise_separable_conv2d(
    input: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    depthwise_bias: Tensor | None = None,
    pointwise_bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    input_activation: str = "identity",
    depthwise_activation: str = "identity",
    pointwise_activation: str = "identity",
    residual: Tensor | None = None,
) -> Tensor:
    r"""Depthwise convolution and the pointwise (1x1) convolution that follows it, fused: the map between the two never
    reaches main memory.

    .. math::
        m &= \mathrm{depthwise\_activation}(\mathrm{conv2d}(
             \mathrm{input\_activation}(\mathrm{input}), w_d, b_d, s, p, d, \mathrm{groups}=C)) \\
        \mathrm{out} &= \mathrm{pointwise\_activation}(\mathrm{conv2d}(m, w_p, b_p) + \mathrm{residual})

    The separable convolution of Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", 2017
    (arXiv:1610.02357), and, dilated, of Chen et al., "Encoder-Decoder with Atrous Separable Convolution", 2018
    (arXiv:1802.02611). Batch normalisation is folded into weights and biases by
    :class:`fastconv.nn.DepthwiseSeparableConv2d`.

    Args:
        input: (N, C, H, W) or (C, H, W); float32, float16, bfloat16, or float64.
        depthwise_weight: (C*M, 1, Kh, Kw), M >= 1.
        pointwise_weight: (O, C*M) or (O, C*M, 1, 1).
        depthwise_bias: (C*M,) or None.
        pointwise_bias: (O,) or None.
        stride, padding, dilation: of the depthwise convolution, as in :func:`depthwise_conv2d`.
        input_activation, depthwise_activation, pointwise_activation: one of the names above. Padding comes after the
            input's activation.
        residual: a tensor of the output's shape, added before the last activation, or None.

    Returns:
        (N, O, Ho, Wo) or (O, Ho, Wo).

    Raises:
        ValueError: a shape, size or name that does not fit, or a kernel larger than the padded input; the message
            names the argument.
        TypeError: an argument of the wrong type or dtype.

    Under autograd the input is kept for the backward pass, and the output where relu or relu6 end the call (the
    residual where another activation but identity does); the map in between is computed again. In 16 bits that map may
    be rounded to the input's dtype; everything else accumulates in float32.

    float32 on a CUDA device multiplies the pointwise part, forward and backward, in TF32 where
    ``torch.backends.cudnn.conv.fp32_precision`` is "tf32" (torch's default; ``torch.backends.cudnn.allow_tf32 = False``
    and "ieee" turn it off), as conv2d does there. The flag is read when the forward is called, and by torch.compile and
    torch.export when they trace.
    """
    op = "depthwise_separable_conv2d"
    x = check.batched(op, input)
    stride, padding, dilation, (n, channels, height, width) = check.conv(
        op, x, depthwise_weight, stride, padding, dilation, "depthwise_weight"
    )
    check.pointwise(op, pointwise_weight, channels)
    out_channels = pointwise_weight.shape[0]
    check.bias(op, "depthwise_bias", depthwise_bias, channels)
    check.bias(op, "pointwise_bias", pointwise_bias, out_channels)
    check.like_input(
        op,
        x,
        depthwise_weight=depthwise_weight,
        pointwise_weight=pointwise_weight,
        depthwise_bias=depthwise_bias,
        pointwise_bias=pointwise_bias,
        residual=residual,
    )
    check.activation(op, "input_activation", input_activation)
    check.activation(op, "depthwise_activation", depthwise_activation)
    check.activation(op, "pointwise_activation", pointwise_activation)
    if residual is not None:
        residual = check.residual(op, input, residual, (n, out_channels, height, width))
    ops = backends.select(op, x, out_channels, depthwise_weight.shape[2:], stride, dilation)
    out = call(
        ops.depthwise_separable_conv2d,
        x,
        depthwise_weight,
        pointwise_weight,
        depthwise_bias,
        pointwise_bias,
        residual,
        stride,
        padding,
        dilation,
        input_activation,
        depthwise_activation,
        pointwise_activation,
        check.allow_tf32(x),
    )
    return out.squeeze(0) if input.dim() == 3 else out


def shift_stitch_max_pool2d(
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
    *,
    layout: str = "stitched",
    return_indices: bool = False,
    fill: float = 0.0,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Max pool at every offset ``o = (oy, ox)``, ``0 <= oy < sy``, ``0 <= ox < sx``, instead of at offset 0 only.

    With the dense length :math:`D = H + 2p - d(k - 1)` of each axis, the pool of offset o has
    :math:`U_o = \lfloor (D - 1 - o) / s \rfloor + 1` rows, and its row u is row :math:`y = o + s u` of the dense map:

    .. math::
        \mathrm{dense}[n, c, y, x] = \max_{0 \le i < K_h,\; 0 \le k < K_w} \mathrm{input}[n, c, y + d_y i - p_y, x + d_x k - p_x]

    The offset pooling of Sermanet et al., "OverFeat", 2014 (arXiv:1312.6229), and the fragments of Giusti et al.,
    "Fast Image Scanning with Deep Max-Pooling Convolutional Neural Networks", 2013 (arXiv:1302.1700). ``dense[...,
    ::sy, ::sx]`` is ``F.max_pool2d`` of the same arguments.

    Args:
        input: (N, C, H, W) or (C, H, W); float32, float16, bfloat16, or float64.
        kernel_size, stride, padding, dilation: int or (vertical, horizontal); stride defaults to kernel_size, padding
            is at most half of kernel_size and counts as minus infinity.
        ceil_mode: as in ``F.max_pool2d``; the dense map then reaches to the last window that the strided pool has.
        layout: "stitched" for the dense map, "fragments" for one small map an offset.
        return_indices: also return int64 indices into the flattened H x W plane, as ``F.max_pool2d`` gives them: the
            first maximum in row-major order, or the last NaN. -1 in the tail of a fragment.
        fill: the value of the tail of short fragments: 0 for a convolution to follow, -inf for a padded max pool.

    Returns:
        stitched: (N, C, Dh, Dw) or (C, Dh, Dw), equal to ``F.max_pool2d(input, kernel_size, 1, padding, dilation)``
            bit for bit where ceil_mode is off and that takes the padding (at most ``kernel_size // 2``).
        fragments: (N*sy*sx, C, ceil(Dh/sy), ceil(Dw/sx)), batch index ``(n*sy + oy)*sx + ox``; for (C, H, W), N is 1.
        With return_indices, a pair of such tensors.

    Raises:
        ValueError: a size that does not fit, or an output that would be empty; the message names the argument.
        TypeError: an argument of the wrong type or dtype.

    Under autograd one byte an element is kept (the winning tap), or the input itself for return_indices and for
    kernels of more than 256 taps.
    """
    op = "shift_stitch_max_pool2d"
    x = check.batched(op, input)
    geometry = check.pool(op, x, kernel_size, stride, padding, dilation, ceil_mode)
    fragments = check.layout(op, layout)
    ops = backends.select(op, x, x.shape[1], geometry[0], geometry[1], geometry[3])
    if return_indices:
        out, indices = call(ops.shift_stitch_max_pool2d_indices, x, *geometry, ceil_mode, fragments, fill)
        return (out.squeeze(0), indices.squeeze(0)) if input.dim() == 3 and not fragments else (out, indices)
    if x.requires_grad and torch.is_grad_enabled() and geometry[0][0] * geometry[0][1] <= _ARGMAX_TAPS:
        out = call(ops.shift_stitch_max_pool2d_argmax, x, *geometry, ceil_mode, fragments, fill)[0]
    else:
        out = call(ops.shift_stitch_max_pool2d, x, *geometry, ceil_mode, fragments, fill)
    return out.squeeze(0) if input.dim() == 3 and not fragments else out


def shift_stitch_avg_pool2d(
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    layout: str = "stitched",
    fill: float = 0.0,
) -> Tensor:
    r"""Average pool at every offset; the offsets, the dense length D and both layouts are those of :func:`shift_stitch_max_pool2d`.

    .. math::
        \mathrm{dense}[n, c, y, x] = \frac{1}{\mathrm{divisor}}
            \sum_{0 \le i < K_h,\; 0 \le k < K_w} \mathrm{input}[n, c, y + d_y i - p_y, x + d_x k - p_x]

    Equal to ``F.avg_pool2d`` at stride 1, and dilated, which that is not. Source: Sermanet et al., "OverFeat", 2014
    (arXiv:1312.6229).

    Args:
        input: (N, C, H, W) or (C, H, W); float32, float16, bfloat16, or float64.
        kernel_size, stride, padding, dilation: int or (vertical, horizontal); stride defaults to kernel_size, padding
            is at most half of kernel_size and counts as zero.
        ceil_mode: as in ``F.avg_pool2d``; the dense map then reaches to the last window that the strided pool has.
            Taps beyond the padding never count.
        count_include_pad: whether the divisor counts the taps that fall on padding. A window without any tap inside
            the input is 0.
        divisor_override: the divisor, if given; not 0.
        layout: "stitched" or "fragments".
        fill: the value of the tail of short fragments.

    Returns:
        stitched: (N, C, Dh, Dw) or (C, Dh, Dw).
        fragments: (N*sy*sx, C, ceil(Dh/sy), ceil(Dw/sx)), batch index ``(n*sy + oy)*sx + ox``; for (C, H, W), N is 1.

    Raises:
        ValueError: a size that does not fit, a divisor of 0, or an output that would be empty; the message names the
            argument.
        TypeError: an argument of the wrong type or dtype.
    """
    op = "shift_stitch_avg_pool2d"
    x = check.batched(op, input)
    geometry = check.pool(op, x, kernel_size, stride, padding, dilation, ceil_mode)
    fragments = check.layout(op, layout)
    if divisor_override == 0:
        raise ValueError(f"{op}: divisor_override must not be 0")
    ops = backends.select(op, x, x.shape[1], geometry[0], geometry[1], geometry[3])
    out = call(ops.shift_stitch_avg_pool2d, x, *geometry, ceil_mode, count_include_pad, divisor_override, fragments, fill)
    return out.squeeze(0) if input.dim() == 3 and not fragments else out


def shift(input: Tensor, stride: IntPair, fill: float = 0.0) -> Tensor:
    """Deals a map out to its sy*sx fragments, ``out[(n*sy + oy)*sx + ox, c, u, v] = input[n, c, oy + sy*u, ox + sx*v]``.

    A convolution of dilation d on the fragments is the convolution of dilation ``d*stride`` on the map (Giusti et al.
    2013, arXiv:1302.1700).

    Args:
        input: (N, C, H, W) or (C, H, W), any dtype.
        stride: int or (sy, sx).
        fill: the value of the tail of short fragments, those that the map's size leaves a row or a column less.

    Returns:
        (N*sy*sx, C, ceil(H/sy), ceil(W/sx)); for (C, H, W), N is 1.

    Raises:
        ValueError, TypeError: an argument that does not fit; the message names it.
    """
    op = "shift"
    x = check.batched(op, input)
    stride = check.pair(op, "stride", stride, 1)
    return call(backends.select(op, x, x.shape[1], (1, 1), stride).shift, x, stride, fill)


def stitch(input: Tensor, stride: IntPair, size: IntPair | None = None) -> Tensor:
    """Inverse of :func:`shift`, ``out[n, c, oy + sy*u, ox + sx*v] = input[(n*sy + oy)*sx + ox, c, u, v]``; the tails are dropped.

    Args:
        input: (N*sy*sx, C, U, V), any dtype.
        stride: int or (sy, sx).
        size: (H, W) of the dense map, at most (U*sy, V*sx), which is the default.

    Returns:
        (N, C, H, W).

    Raises:
        ValueError: a batch that is no multiple of sy*sx, or a size that the fragments do not cover.
        TypeError: an argument of the wrong type.
    """
    op = "stitch"
    stride = check.pair(op, "stride", stride, 1)
    size = check.fragments(op, input, stride, size)
    return call(backends.select(op, input, input.shape[1], (1, 1), stride).stitch, input, stride, size)
