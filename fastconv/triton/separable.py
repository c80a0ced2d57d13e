"""depthwise_separable_conv2d forward:

    m = act1(depthwise(act0(x)) + depthwise_bias)          out = act2(pointwise @ m + pointwise_bias + residual)

depthwise and pointwise convolutions as in Howard et al., MobileNets (2017), and Chollet, Xception (2017).

*Fused*: a program owns a tile of pixels and of output channels. Per chunk of input channels it computes the depthwise tile in registers, in
float32, activates it, rounds it to the operands' dtype and multiplies it into the accumulator; the intermediate m never leaves the chip. The
tile is BH rows of BW columns of one residue class: at stride 1 each of its BH + KH - 1 input rows is loaded and converted once for each
column shift and serves all the output rows that want it (a ring unrolled over the tile); otherwise the taps of every pixel are gathered.

*Split*: where the output channels do not fit in one tile, the fused kernel would repeat the depthwise part for each of their blocks. There
the depthwise kernel writes the intermediate to a scratch buffer, a few images at a time so that it stays in the second-level cache, and a
matrix product reads it back.
"""

import math

import torch
import triton
import triton.language as tl

from . import access, check, configs
from .depthwise import load_taps, run_depthwise, tap_sum
from .language import activate, activation_backward, block, channels_inside, image, load_shifted, matmul, strides, tile_pixels
from .launch import INTERPRETED, Conv, Strips, ceil_div, channels_last, dense, dot_precision, empty_map, launch, vector, wide

# Unrolled taps of the fused ring.
RING_TAPS = 25


@triton.jit
def stack_rows(rows, BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr):
    """BH tiles [BW, BC] as one [BH*BW, BC], rows outermost."""
    if BH == 1:
        return rows[0]
    elif BH == 2:
        return tl.join(rows[0], rows[1]).permute(2, 0, 1).reshape(2 * BW, BC)
    elif BH == 4:
        pairs = tl.join(tl.join(rows[0], rows[1]), tl.join(rows[2], rows[3]))
        return pairs.permute(3, 2, 0, 1).reshape(4 * BW, BC)
    else:
        tl.static_assert(BH == 8)
        low = tl.join(tl.join(rows[0], rows[1]), tl.join(rows[2], rows[3]))
        high = tl.join(tl.join(rows[4], rows[5]), tl.join(rows[6], rows[7]))
        return tl.join(low, high).permute(4, 3, 2, 0, 1).reshape(8 * BW, BC)


@triton.jit
def finish_depthwise(acc, ACTIVATION: tl.constexpr, DERIVATIVE: tl.constexpr, DTYPE: tl.constexpr):
    """The intermediate, rounded to the dtype of the operands; or with DERIVATIVE the slope of its activation, float32."""
    if DERIVATIVE:
        return activation_backward(tl.full(acc.shape, 1.0, tl.float32), acc, ACTIVATION)
    else:
        return activate(acc, ACTIVATION).to(DTYPE)


@triton.jit
def depthwise_tile(
    x_image, weight_ptr, bias_ptr, row, columns, pixel_row, pixel_columns, pixel_mask, channels, H, W, sh, sw, dh, dw, pt, pl,
    C: tl.constexpr, M: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
    RING: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, INPUT_ACTIVATION: tl.constexpr, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, DERIVATIVE: tl.constexpr,
):  # fmt: skip
    """The depthwise intermediate (or its activation's slope) of BH x BW pixels and BC channels, as [BH*BW, BC].

    `row` and `columns` [BW] are output coordinates, `pixel_row` and `pixel_columns` [BH*BW] the same for every pixel.
    """
    DTYPE: tl.constexpr = x_image.dtype.element_ty
    channel_mask = channels_inside(channels, C)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channels, mask=channel_mask, other=0.0).to(tl.float32)[None, :]
    else:
        bias = tl.zeros((1, BC), tl.float32)
    if RING:
        x_c, x_y, x_x = strides(C // M, H, W, CHANNELS_LAST)
        taps = load_taps(weight_ptr, channels, channel_mask, 0, KH * KW, KH * KW)
        left = columns * sw - pl
        offsets = left[:, None] * x_x + (channels // M)[None, :] * x_c
        rows = (tl.zeros((BW, BC), tl.float32) + bias,) * BH
        for r in tl.static_range(BH + KH - 1):
            y = row * sh - pt + r * dh
            line = ()
            for kx in tl.static_range(KW):
                x = load_shifted(x_image, offsets, y, left, kx * dw, x_y, x_x, channel_mask, H, W, 0.0)
                line = line + (activate(x, INPUT_ACTIVATION),)
            updated = ()
            for o in tl.static_range(BH):
                acc = rows[o]
                if r >= o and r - o < KH:
                    for kx in tl.static_range(KW):
                        acc += line[kx] * taps[(r - o) * KW + kx]
                    if r - o == KH - 1:
                        # Rounded as soon as it is whole: a finished row takes half the registers.
                        acc = finish_depthwise(acc, ACTIVATION, DERIVATIVE, DTYPE)
                updated = updated + (acc,)
            rows = updated
        return stack_rows(rows, BH, BW, BC)
    else:
        acc = tap_sum(
            x_image, weight_ptr, pixel_row * sh - pt, pixel_columns * sw - pl, pixel_mask, channels, H, W, dh, dw, C, M, KH, KW, BH * BW,
            BC,
            CHANNELS_LAST, INPUT_ACTIVATION,
        )  # fmt: skip
        return finish_depthwise(acc + bias, ACTIVATION, DERIVATIVE, DTYPE)


@triton.jit
def pointwise_epilogue(
    acc, n, pixel_row, pixel_columns, pixel_mask, channels, bias_ptr, residual_ptr, grad_ptr, out_ptr, OH, OW, O: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """Stores activation(acc + bias + residual), or with GRADIENT grad * activation'(...)."""
    o_c, o_y, o_x = strides(O, OH, OW, CHANNELS_LAST)
    offsets = (pixel_row * o_y + pixel_columns * o_x)[:, None] + channels[None, :] * o_c
    mask = pixel_mask[:, None] & channels_inside(channels, O)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + channels, mask=channels < O, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        acc += tl.load(image(residual_ptr, n, O, OH, OW) + offsets, mask=mask, other=0.0).to(tl.float32)
    if GRADIENT:
        grad = tl.load(image(grad_ptr, n, O, OH, OW) + offsets, mask=mask, other=0.0).to(tl.float32)
        value = activation_backward(grad, acc, ACTIVATION)
    else:
        value = activate(acc, ACTIVATION)
    tl.store(image(out_ptr, n, O, OH, OW) + offsets, value.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def separable_fused(
    x_ptr, depthwise_ptr, pointwise_ptr, depthwise_bias_ptr, pointwise_bias_ptr, residual_ptr, grad_ptr, out_ptr,
    H, W, OH, OW, sh, sw, dh, dw, pt, pl, step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks,
    C: tl.constexpr, O: tl.constexpr, M: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    ROWS: tl.constexpr, BW: tl.constexpr, POLYPHASE: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, RING: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, INPUT_ACTIVATION: tl.constexpr, DEPTHWISE_ACTIVATION: tl.constexpr, POINTWISE_ACTIVATION: tl.constexpr,
    HAS_DEPTHWISE_BIAS: tl.constexpr, HAS_POINTWISE_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, GRADIENT: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    BM: tl.constexpr = ROWS * BW
    pid = tl.program_id(0)
    out_channels = block(pid % channel_blocks, BN, WIDE)
    n, row, columns, pixel_row, pixel_columns, pixel_mask = tile_pixels(
        pid // channel_blocks, OH, OW, step_y, step_x, classes_y, class_width, row_strips, column_blocks, ROWS, BW, POLYPHASE, WIDE
    )
    x_image = image(x_ptr, n, C // M, H, W)

    acc = tl.zeros((BM, BN), tl.float32)
    for chunk in tl.range(0, (C + BK - 1) // BK, num_stages=1):
        channels = block(chunk, BK, WIDE)
        m = depthwise_tile(
            x_image, depthwise_ptr, depthwise_bias_ptr, row, columns, pixel_row, pixel_columns, pixel_mask, channels, H, W, sh, sw, dh, dw,
            pt, pl,
            C, M, KH, KW, ROWS, BW, BK, RING, CHANNELS_LAST, INPUT_ACTIVATION, DEPTHWISE_ACTIVATION, HAS_DEPTHWISE_BIAS, False,
        )  # fmt: skip
        # After the depthwise part: its registers are the ones that run out.
        weight_mask = channels_inside(channels, C)[:, None] & channels_inside(out_channels, O)[None, :]
        weight = tl.load(pointwise_ptr + out_channels[None, :] * C + channels[:, None], mask=weight_mask, other=0.0)
        acc = matmul(m, weight, acc, PRECISION, UPCAST)
    pointwise_epilogue(
        acc, n, pixel_row, pixel_columns, pixel_mask, out_channels, pointwise_bias_ptr, residual_ptr, grad_ptr, out_ptr, OH, OW, O,
        CHANNELS_LAST,
        POINTWISE_ACTIVATION, HAS_POINTWISE_BIAS, HAS_RESIDUAL, GRADIENT,
    )  # fmt: skip


@triton.jit
def pointwise_product(
    m_ptr, pointwise_ptr, bias_ptr, residual_ptr, grad_ptr, out_ptr, P, pixel_blocks, channel_blocks,
    C: tl.constexpr, O: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, GRADIENT: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Maps of P pixels in a row: out = activation(pointwise @ m + bias + residual)."""
    pid = tl.program_id(0)
    out_channels = block(pid % channel_blocks, BN, WIDE)
    pid = pid // channel_blocks
    pixels = block(pid % pixel_blocks, BM, WIDE)
    n = pid // pixel_blocks
    m_image = image(m_ptr, n, C, 1, P)
    m_c, _, m_x = strides(C, 1, P, CHANNELS_LAST)
    pixel_mask = pixels < P
    acc = tl.zeros((BM, BN), tl.float32)
    for chunk in tl.range(0, (C + BK - 1) // BK, num_stages=STAGES):
        channels = block(chunk, BK, WIDE)
        channel_mask = channels_inside(channels, C)
        m = tl.load(m_image + pixels[:, None] * m_x + channels[None, :] * m_c, mask=pixel_mask[:, None] & channel_mask[None, :], other=0.0)
        weight_mask = channel_mask[:, None] & channels_inside(out_channels, O)[None, :]
        weight = tl.load(pointwise_ptr + out_channels[None, :] * C + channels[:, None], mask=weight_mask, other=0.0)
        acc = matmul(m, weight, acc, PRECISION, UPCAST)
    pointwise_epilogue(
        acc, n, tl.zeros_like(pixels), pixels, pixel_mask, out_channels, bias_ptr, residual_ptr, grad_ptr, out_ptr, 1, P, O, CHANNELS_LAST,
        ACTIVATION,
        HAS_BIAS, HAS_RESIDUAL, GRADIENT,
    )  # fmt: skip


def fused_ring(conv: Conv) -> tuple[bool, int]:
    """(whether the tile may be a ring, distance of its rows)."""
    return conv.taps <= RING_TAPS and conv.marches, conv.dh // math.gcd(conv.dh, conv.sh)


def _fused(
    x, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual, grad, out, conv, is_channels_last, activations,
    precision, tile
):  # fmt: skip
    _, step_y = fused_ring(conv)
    step_x = conv.dw // math.gcd(conv.dw, conv.sw) if is_channels_last else 1
    o = out.shape[1]
    strips = Strips(conv.n, conv.oh, conv.ow, step_y, step_x, tile.bh, tile.bw)
    channel_blocks = ceil_div(o, tile.bn)
    launch(
        separable_fused,
        strips.count * channel_blocks,
        x.device,
        {
            "x_ptr": x, "depthwise_ptr": depthwise_weight, "pointwise_ptr": pointwise_weight, "depthwise_bias_ptr": depthwise_bias,
            "pointwise_bias_ptr": pointwise_bias, "residual_ptr": residual, "grad_ptr": grad, "out_ptr": out,
            "H": conv.h, "W": conv.w, "OH": conv.oh, "OW": conv.ow, "sh": conv.sh, "sw": conv.sw, "dh": conv.dh, "dw": conv.dw,
            "pt": conv.pt,
            "pl": conv.pl, **strips.arguments, "channel_blocks": channel_blocks, "C": conv.out_channels, "O": o, "M": conv.m, "KH": conv.kh,
            "KW": conv.kw, "BK": tile.bk, "BN": tile.bn, "RING": tile.ring, "CHANNELS_LAST": is_channels_last,
            "INPUT_ACTIVATION": activations[0],
            "DEPTHWISE_ACTIVATION": activations[1], "POINTWISE_ACTIVATION": activations[2],
            "HAS_DEPTHWISE_BIAS": depthwise_bias is not None,
            "HAS_POINTWISE_BIAS": pointwise_bias is not None, "HAS_RESIDUAL": residual is not None, "GRADIENT": grad is not None,
            "PRECISION": precision, "UPCAST": INTERPRETED,
            "WIDE": wide(conv.c * conv.h * conv.w, conv.out_channels * conv.oh * conv.ow, o * conv.oh * conv.ow),
        },
        **tile.options,
    )  # fmt: skip


def run_product(m, pointwise_weight, bias, residual, grad, out, is_channels_last, activation, precision) -> None:
    """out = activation(pointwise @ m + bias + residual) over whole maps, or with `grad` grad * activation'(...)."""
    n, c, h, w = m.shape
    o, pixels = out.shape[1], h * w
    if is_channels_last and not wide(n * pixels * max(c, o)):
        # Images follow one another without a seam, so that small ones fill tiles.
        n, pixels = 1, n * pixels
    tile = configs.product(m, n, pixels, is_channels_last, o, precision)
    pixel_blocks, channel_blocks = ceil_div(pixels, tile.bm), ceil_div(o, tile.bn)
    launch(
        pointwise_product,
        n * pixel_blocks * channel_blocks,
        m.device,
        {
            "m_ptr": m, "pointwise_ptr": pointwise_weight, "bias_ptr": bias, "residual_ptr": residual, "grad_ptr": grad, "out_ptr": out,
            "P": pixels, "pixel_blocks": pixel_blocks, "channel_blocks": channel_blocks, "C": c, "O": o, "BM": tile.bm, "BK": tile.bk,
            "BN": tile.bn, "STAGES": tile.stages, "CHANNELS_LAST": is_channels_last, "ACTIVATION": activation, "HAS_BIAS": bias is not None,
            "HAS_RESIDUAL": residual is not None, "GRADIENT": grad is not None, "PRECISION": precision, "UPCAST": INTERPRETED,
            "WIDE": wide(pixels * max(c, o)),
        },
        **tile.options,
    )  # fmt: skip


def run_separable(
    x,
    depthwise_weight,
    pointwise_weight,
    depthwise_bias,
    pointwise_bias,
    residual,
    conv: Conv,
    is_channels_last: bool,
    activations,
    precision: str,
    grad=None,
) -> torch.Tensor:
    """The forward result, or with `grad` the gradient before the last activation; operands are dense in the format."""
    o = pointwise_weight.shape[0]
    out = empty_map(x, (conv.n, o, conv.oh, conv.ow), is_channels_last)
    if out.numel() == 0:
        return out
    tile = configs.separable_forward(x, conv, o, is_channels_last, *fused_ring(conv), precision)
    if tile is not None:
        _fused(
            x, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual, grad, out, conv, is_channels_last,
            activations, precision, tile
        )  # fmt: skip
        return out
    for images in configs.image_runs(conv, x.element_size()):
        part = slice(*images)
        m = run_depthwise(
            x[part], depthwise_weight, depthwise_bias, conv.with_images(images[1] - images[0]), is_channels_last, activations[0],
            activations[1]
        )  # fmt: skip
        run_product(
            m, pointwise_weight, pointwise_bias, None if residual is None else residual[part], None if grad is None else grad[part],
            out[part],
            is_channels_last, activations[2], precision,
        )  # fmt: skip
    return out


def _through_copies(x, conv: Conv, o: int, residual, precision: str) -> bool:
    if x.numel() == 0:
        return False
    tile = configs.separable_forward(x, conv, o, False, *fused_ring(conv), precision)
    kernel, blocks = ("depthwise_ring", 1) if tile is None else ("separable_fused", ceil_div(o, tile.bn))
    return access.through_copies(x, conv, kernel, blocks, o, 2 if residual is None else 3)


def depthwise_separable_conv2d(
    input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual, stride, padding, dilation, input_activation,
    depthwise_activation, pointwise_activation, allow_tf32=False,
):  # fmt: skip
    conv, o = check.separable(input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, stride, padding, dilation)
    check.tensor_map(residual, "residual", (conv.n, o, conv.oh, conv.ow), input)
    activations = check.activations(input_activation, depthwise_activation, pointwise_activation)
    is_channels_last = channels_last(input)
    precision = dot_precision(input.dtype, allow_tf32)
    runs_channels_last = is_channels_last or _through_copies(input, conv, o, residual, precision)
    out = run_separable(
        dense(input, runs_channels_last), depthwise_weight.contiguous(), pointwise_weight.contiguous(), vector(depthwise_bias),
        vector(pointwise_bias), dense(residual, runs_channels_last), conv, runs_channels_last, activations, precision,
    )  # fmt: skip
    return dense(out, is_channels_last)
