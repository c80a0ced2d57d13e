"""depthwise_conv2d forward.

Two kernels. The *ring* marches down a strip of one residue class: it loads each input row once for every column shift, converts it once,
and adds it into KH running sums that the loop carries; a sum leaves the ring as a finished output row. The *tap* kernel gathers the taps of
each output row and takes what the ring cannot: strides that do not divide the dilation, and kernels whose taps do not fit in registers.
"""

import math

import torch
import triton
import triton.language as tl

from . import access, check, configs
from .language import activate, activation_backward, channels_inside, image, inside, load_shifted, strides, strip_of_program
from .launch import Conv, Strips, ceil_div, channels_last, dense, empty_map, launch, vector, wide

# Unrolled taps: the ring holds a weight for each in registers.
RING_TAPS = 49


@triton.jit
def load_taps(weight_ptr, channels, channel_mask, FIRST: tl.constexpr, COUNT: tl.constexpr, TAPS: tl.constexpr):
    """Weights of taps FIRST .. FIRST + COUNT, a tuple of float32 [1, BC]."""
    taps = ()
    for t in tl.static_range(COUNT):
        w = tl.load(weight_ptr + channels * TAPS + (FIRST + t), mask=channel_mask, other=0.0)
        taps = taps + (w.to(tl.float32)[None, :],)
    return taps


@triton.jit
def depthwise_epilogue(
    acc, row, columns, channels, bias_ptr, grad_image, out_image, OH, OW, C: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr, GRADIENT: tl.constexpr, row_limit,
):  # fmt: skip
    """Stores activation(acc + bias), or, for the backward pass, grad * activation'(acc + bias)."""
    o_c, o_y, o_x = strides(C, OH, OW, CHANNELS_LAST)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + channels, mask=channels < C, other=0.0).to(tl.float32)[None, :]
    offsets = columns[:, None] * o_x + channels[None, :] * o_c
    rows = row + tl.zeros_like(columns)
    mask = ((rows >= row_limit) & (rows < OH) & (columns < OW))[:, None] & channels_inside(channels, C)[None, :]
    if GRADIENT:
        grad = tl.load(grad_image + row * o_y + offsets, mask=mask, other=0.0).to(tl.float32)
        value = activation_backward(grad, acc, ACTIVATION)
    else:
        value = activate(acc, ACTIVATION)
    tl.store(out_image + row * o_y + offsets, value.to(out_image.dtype.element_ty), mask=mask)


@triton.jit
def depthwise_ring(
    x_ptr, weight_ptr, bias_ptr, grad_ptr, out_ptr, H, W, OH, OW, sh, sw, dh, dw, pt, pl,
    step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks,
    C: tl.constexpr, M: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, POLYPHASE: tl.constexpr,
    BC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, INPUT_ACTIVATION: tl.constexpr, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, GRADIENT: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    # step_y * sh == dh: the input rows of a strip are dh apart, as are the rows of one window.
    channels, n, row, columns = strip_of_program(
        OH, OW, step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks, ROWS, BW, POLYPHASE, BC, WIDE
    )
    channel_mask = channels_inside(channels, C)
    x_c, x_y, x_x = strides(C // M, H, W, CHANNELS_LAST)
    x_image = image(x_ptr, n, C // M, H, W)
    grad_image = image(grad_ptr, n, C, OH, OW)
    out_image = image(out_ptr, n, C, OH, OW)
    top = row * sh - pt
    left = columns * sw - pl
    offsets = left[:, None] * x_x + (channels // M)[None, :] * x_c

    weights = load_taps(weight_ptr, channels, channel_mask, 0, KH * KW, KH * KW)
    # A sum starts at the bias, so that no finished row has to meet it.
    start = tl.zeros((BW, BC), tl.float32)
    if HAS_BIAS:
        start += tl.load(bias_ptr + channels, mask=channel_mask, other=0.0).to(tl.float32)[None, :]
    sums = (start,) * KH
    for i in tl.range(0, ROWS + KH - 1, num_stages=1):
        y = top + i * dh
        line = ()
        for kx in tl.static_range(KW):
            x = load_shifted(x_image, offsets, y, left, kx * dw, x_y, x_x, channel_mask, H, W, 0.0)
            line = line + (activate(x, INPUT_ACTIVATION),)
        shifted = ()
        for ky in tl.static_range(KH):
            if ky == 0:
                acc = start + line[0] * weights[0]
            else:
                acc = sums[ky - 1] + line[0] * weights[ky * KW]
            for kx in tl.static_range(1, KW):
                acc += line[kx] * weights[ky * KW + kx]
            shifted = shifted + (acc,)
        sums = shifted
        depthwise_epilogue(
            sums[KH - 1], row + step_y * (i - (KH - 1)), columns, channels, bias_ptr, grad_image, out_image, OH, OW, C, CHANNELS_LAST,
            ACTIVATION, False, GRADIENT, row,
        )  # fmt: skip


@triton.jit
def tap_sum(
    x_image, weight_ptr, y, x, pixel_mask, channels, H, W, dh, dw, C: tl.constexpr, M: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, CHANNELS_LAST: tl.constexpr, INPUT_ACTIVATION: tl.constexpr,
):  # fmt: skip
    """The depthwise sums of a tile, float32 [BP, BC]: (y, x) are the input coordinates of tap (0, 0) of each pixel."""
    x_c, x_y, x_x = strides(C // M, H, W, CHANNELS_LAST)
    channel_mask = channels_inside(channels, C)
    x_channels = (channels // M)[None, :] * x_c
    acc = tl.zeros((BP, BC), tl.float32)
    # Rows in a loop, columns unrolled: all taps unrolled spill, and pipelining the loads would take them past L1.
    for ky in tl.range(0, KH, num_stages=1):
        row = y + ky * dh
        row_mask = pixel_mask & (row >= 0) & (row < H)
        for kx in tl.static_range(KW):
            column = x + kx * dw
            mask = (row_mask & (column >= 0) & (column < W))[:, None] & channel_mask[None, :]
            value = tl.load(x_image + ((row * x_y + column * x_x)[:, None] + x_channels), mask=mask, other=0.0).to(tl.float32)
            w = tl.load(weight_ptr + channels * (KH * KW) + (ky * KW + kx), mask=channel_mask, other=0.0).to(tl.float32)
            acc += activate(value, INPUT_ACTIVATION) * w[None, :]
    return acc


@triton.jit
def depthwise_tap(
    x_ptr, weight_ptr, bias_ptr, grad_ptr, out_ptr, H, W, OH, OW, sh, sw, dh, dw, pt, pl,
    step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks,
    C: tl.constexpr, M: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, POLYPHASE: tl.constexpr,
    BC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, INPUT_ACTIVATION: tl.constexpr, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, GRADIENT: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    channels, n, first, columns = strip_of_program(
        OH, OW, step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks, ROWS, BW, POLYPHASE, BC, WIDE
    )
    x_image = image(x_ptr, n, C // M, H, W)
    for i in tl.range(0, ROWS, num_stages=1):
        row = first + step_y * i
        y = row * sh - pt + tl.zeros_like(columns)
        acc = tap_sum(
            x_image, weight_ptr, y, columns * sw - pl, inside(row, columns, OH, OW), channels, H, W, dh, dw, C, M, KH, KW, BW, BC,
            CHANNELS_LAST,
            INPUT_ACTIVATION,
        )  # fmt: skip
        depthwise_epilogue(
            acc, row, columns, channels, bias_ptr, image(grad_ptr, n, C, OH, OW), image(out_ptr, n, C, OH, OW), OH, OW, C, CHANNELS_LAST,
            ACTIVATION,
            HAS_BIAS, GRADIENT, row,
        )  # fmt: skip


def run_depthwise(x, weight, bias, conv: Conv, is_channels_last: bool, input_activation: str, activation: str, grad=None) -> torch.Tensor:
    """activation(conv2d(input_activation(x))), or, with `grad`, grad * activation'(conv2d(...)); operands are dense in the format."""
    out = empty_map(x, conv.out_shape, is_channels_last)
    if out.numel() == 0:
        return out
    # Output rows that far apart read input rows that are whole dilations apart.
    step_y = conv.dh // math.gcd(conv.dh, conv.sh)
    step_x = conv.dw // math.gcd(conv.dw, conv.sw) if is_channels_last else 1
    ring = conv.taps <= RING_TAPS and conv.marches
    tile = configs.depthwise_forward(x, conv, is_channels_last, step_y, step_x, ring)
    strips = Strips(conv.n, conv.oh, conv.ow, step_y, step_x, tile.rows, tile.bw)
    channel_blocks = ceil_div(conv.out_channels, tile.bc)
    launch(
        depthwise_ring if ring else depthwise_tap,
        strips.count * channel_blocks,
        x.device,
        {
            "x_ptr": x, "weight_ptr": weight, "bias_ptr": bias, "grad_ptr": grad if grad is not None else out, "out_ptr": out,
            "H": conv.h, "W": conv.w, "OH": conv.oh, "OW": conv.ow, "sh": conv.sh, "sw": conv.sw, "dh": conv.dh, "dw": conv.dw,
            "pt": conv.pt, "pl": conv.pl, **strips.arguments, "channel_blocks": channel_blocks,
            "C": conv.out_channels, "M": conv.m, "KH": conv.kh, "KW": conv.kw, "BC": tile.bc,
            "CHANNELS_LAST": is_channels_last, "INPUT_ACTIVATION": input_activation, "ACTIVATION": activation,
            "HAS_BIAS": bias is not None, "GRADIENT": grad is not None,
            "WIDE": wide(conv.c * conv.h * conv.w, conv.out_channels * conv.oh * conv.ow),
        },
        **tile.options,
    )  # fmt: skip
    return out


def depthwise_conv2d(input, weight, bias, stride, padding, dilation, activation):
    conv = check.conv(input, weight, "weight", bias, "bias", stride, padding, dilation)
    check.activation(activation, "activation")
    is_channels_last = channels_last(input)
    runs_channels_last = is_channels_last or access.through_copies(input, conv, "depthwise_ring")
    x = dense(input, runs_channels_last)
    out = run_depthwise(x, weight.contiguous(), vector(bias), conv, runs_channels_last, "identity", activation)
    return dense(out, is_channels_last)
