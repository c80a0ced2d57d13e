"""depthwise_separable_conv2d backward: from the saved input alone, the intermediate is computed again.

With z1 the depthwise result, m = act1(z1), z2 = pointwise @ m + bias + residual, and dz2 the gradient before the last activation:
  1. dz1 = (pointwise^T @ dz2) * act1'(z1): one kernel, a product whose epilogue computes z1 again from x.
  2. d(pointwise) = dz2 @ m^T and its bias's gradient: split over pixels, a program computes its tile of m again and leaves one partial; the
     partials are added in order.
  3. (dz1, x) -> dx and the depthwise weight gradient: the depthwise backward.
dz2 is read off the saved output for relu and relu6 as it is loaded; for the other activations one forward pass writes it.
"""

import torch
import triton
import triton.language as tl

from . import check, configs
from .depthwise import run_depthwise
from .depthwise_backward import FROM_OUTPUT, load_gradient, ordered_sum, run_depthwise_backward
from .language import block, channels_inside, image, matmul, strides, tile_pixels
from .launch import INTERPRETED, Conv, Strips, ceil_div, channels_last, dense, dot_precision, empty_map, launch, nothing, vector, wide
from .separable import depthwise_tile, fused_ring, run_separable


@triton.jit
def gradient_of_intermediate(
    grad_ptr, out_ptr, x_ptr, depthwise_ptr, pointwise_ptr, depthwise_bias_ptr, dz1_ptr,
    H, W, OH, OW, sh, sw, dh, dw, pt, pl, step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks,
    C: tl.constexpr, O: tl.constexpr, M: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    ROWS: tl.constexpr, BW: tl.constexpr, POLYPHASE: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, RING: tl.constexpr,
    STAGES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, INPUT_ACTIVATION: tl.constexpr, DEPTHWISE_ACTIVATION: tl.constexpr, POINTWISE_ACTIVATION: tl.constexpr,
    HAS_DEPTHWISE_BIAS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    BM: tl.constexpr = ROWS * BW
    pid = tl.program_id(0)
    channels = block(pid % channel_blocks, BN, WIDE)
    n, row, columns, pixel_row, pixel_columns, pixel_mask = tile_pixels(
        pid // channel_blocks, OH, OW, step_y, step_x, classes_y, class_width, row_strips, column_blocks, ROWS, BW, POLYPHASE, WIDE
    )
    g_c, g_y, g_x = strides(O, OH, OW, CHANNELS_LAST)
    grad_image, out_image = image(grad_ptr, n, O, OH, OW), image(out_ptr, n, O, OH, OW)
    pixel_offsets = (pixel_row * g_y + pixel_columns * g_x)[:, None]

    acc = tl.zeros((BM, BN), tl.float32)
    for chunk in tl.range(0, (O + BK - 1) // BK, num_stages=STAGES):
        out_channels = block(chunk, BK, WIDE)
        grad_mask = pixel_mask[:, None] & channels_inside(out_channels, O)[None, :]
        grad = load_gradient(grad_image, out_image, 0, pixel_offsets + out_channels[None, :] * g_c, grad_mask, POINTWISE_ACTIVATION)
        weight_mask = channels_inside(out_channels, O)[:, None] & channels_inside(channels, C)[None, :]
        weight = tl.load(pointwise_ptr + out_channels[:, None] * C + channels[None, :], mask=weight_mask, other=0.0)
        acc = matmul(grad.to(weight.dtype), weight, acc, PRECISION, UPCAST)
    if DEPTHWISE_ACTIVATION != "identity":
        acc *= depthwise_tile(
            image(x_ptr, n, C // M, H, W), depthwise_ptr, depthwise_bias_ptr, row, columns, pixel_row, pixel_columns, pixel_mask, channels,
            H, W,
            sh, sw, dh, dw, pt, pl, C, M, KH, KW, ROWS, BW, BN, RING, CHANNELS_LAST, INPUT_ACTIVATION, DEPTHWISE_ACTIVATION,
            HAS_DEPTHWISE_BIAS, True,
        )  # fmt: skip
    z_c, z_y, z_x = strides(C, OH, OW, CHANNELS_LAST)
    offsets = (pixel_row * z_y + pixel_columns * z_x)[:, None] + channels[None, :] * z_c
    mask = pixel_mask[:, None] & channels_inside(channels, C)[None, :]
    tl.store(image(dz1_ptr, n, C, OH, OW) + offsets, acc.to(dz1_ptr.dtype.element_ty), mask=mask)


@triton.jit
def pointwise_gradient(
    grad_ptr, out_ptr, x_ptr, depthwise_ptr, depthwise_bias_ptr, partial_ptr, bias_partial_ptr,
    H, W, OH, OW, sh, sw, dh, dw, pt, pl, step_y, step_x, classes_y, class_width, row_strips, column_blocks, out_blocks, channel_blocks,
    strip_count,
    C: tl.constexpr, O: tl.constexpr, M: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    ROWS: tl.constexpr, BW: tl.constexpr, POLYPHASE: tl.constexpr, BO: tl.constexpr, BC: tl.constexpr, RING: tl.constexpr,
    STRIPS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, INPUT_ACTIVATION: tl.constexpr, DEPTHWISE_ACTIVATION: tl.constexpr, POINTWISE_ACTIVATION: tl.constexpr,
    HAS_DEPTHWISE_BIAS: tl.constexpr, WANT_WEIGHT: tl.constexpr, WANT_BIAS: tl.constexpr, STORED: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # With STORED x is the intermediate itself, written by a depthwise pass.
    BM: tl.constexpr = ROWS * BW
    pid = tl.program_id(0)
    channel_block = pid % channel_blocks
    channels = block(channel_block, BC, WIDE)
    pid = pid // channel_blocks
    out_channels = block(pid % out_blocks, BO, WIDE)
    slot = pid // out_blocks
    g_c, g_y, g_x = strides(O, OH, OW, CHANNELS_LAST)
    acc = tl.zeros((BO, BC), tl.float32)
    bias = tl.zeros((BM, BO), tl.float32)
    for s in tl.range(0, STRIPS, num_stages=1):
        strip = slot * STRIPS + s
        # Strips past the end take the first strip's place on a map without columns, so that every pixel is masked.
        live = tl.where(strip < strip_count, strip, 0)
        n, row, columns, pixel_row, pixel_columns, pixel_mask = tile_pixels(
            live, OH, tl.where(strip < strip_count, OW, 0), step_y, step_x, classes_y, class_width, row_strips, column_blocks, ROWS, BW,
            POLYPHASE, WIDE,
        )  # fmt: skip
        offsets = (pixel_row * g_y + pixel_columns * g_x)[:, None] + out_channels[None, :] * g_c
        mask = pixel_mask[:, None] & channels_inside(out_channels, O)[None, :]
        grad = load_gradient(image(grad_ptr, n, O, OH, OW), image(out_ptr, n, O, OH, OW), 0, offsets, mask, POINTWISE_ACTIVATION)
        if WANT_BIAS:
            bias += grad
        if WANT_WEIGHT:
            if STORED:
                m_c, m_y, m_x = strides(C, OH, OW, CHANNELS_LAST)
                m_offsets = (pixel_row * m_y + pixel_columns * m_x)[:, None] + channels[None, :] * m_c
                m_mask = pixel_mask[:, None] & channels_inside(channels, C)[None, :]
                m = tl.load(image(x_ptr, n, C, OH, OW) + m_offsets, mask=m_mask, other=0.0)
            else:
                m = depthwise_tile(
                    image(x_ptr, n, C // M, H, W), depthwise_ptr, depthwise_bias_ptr, row, columns, pixel_row, pixel_columns, pixel_mask,
                    channels,
                    H, W, sh, sw, dh, dw, pt, pl, C, M, KH, KW, ROWS, BW, BC, RING, CHANNELS_LAST, INPUT_ACTIVATION, DEPTHWISE_ACTIVATION,
                    HAS_DEPTHWISE_BIAS, False,
                )  # fmt: skip
            acc = matmul(grad.to(m.dtype).trans(), m, acc, PRECISION, UPCAST)
    if WANT_WEIGHT:
        base = partial_ptr + slot.to(tl.int64) * (O * C)
        tl.store(base + out_channels[:, None] * C + channels[None, :], acc, mask=(out_channels < O)[:, None] & (channels < C)[None, :])
    if WANT_BIAS:
        if channel_block == 0:
            tl.store(bias_partial_ptr + slot.to(tl.int64) * O + out_channels, tl.sum(bias, 0), mask=out_channels < O)


def _geometry(conv: Conv, o: int, is_channels_last: bool, activations) -> dict:
    return {
        "H": conv.h, "W": conv.w, "OH": conv.oh, "OW": conv.ow, "sh": conv.sh, "sw": conv.sw, "dh": conv.dh, "dw": conv.dw, "pt": conv.pt,
        "pl": conv.pl,
        "C": conv.out_channels, "O": o, "M": conv.m, "KH": conv.kh, "KW": conv.kw, "CHANNELS_LAST": is_channels_last,
        "INPUT_ACTIVATION": activations[0], "DEPTHWISE_ACTIVATION": activations[1], "UPCAST": INTERPRETED,
        "WIDE": wide(conv.c * conv.h * conv.w, conv.out_channels * conv.oh * conv.ow, o * conv.oh * conv.ow),
    }  # fmt: skip


def _steps(conv: Conv, is_channels_last: bool) -> tuple[bool, int, int]:
    """(ring, distance of a tile's rows, distance of its columns within a class)."""
    ring, step_y = fused_ring(conv)
    return ring, step_y, conv.dw if is_channels_last and conv.sw == 1 else 1


def _gradient_of_intermediate(
    grad, out, x, depthwise_weight, pointwise_weight, depthwise_bias, conv, is_channels_last, activations, precision
):  # fmt: skip
    o = pointwise_weight.shape[0]
    dz1 = empty_map(x, conv.out_shape, is_channels_last)
    ring, step_y, step_x = _steps(conv, is_channels_last)
    tile = configs.gradient_of_intermediate(x, conv, o, is_channels_last, ring, step_y, precision)
    strips = Strips(conv.n, conv.oh, conv.ow, step_y, step_x, tile.bh, tile.bw)
    channel_blocks = ceil_div(conv.out_channels, tile.bn)
    launch(
        gradient_of_intermediate,
        strips.count * channel_blocks,
        x.device,
        {
            **_geometry(conv, o, is_channels_last, activations), **strips.arguments, "grad_ptr": grad,
            "out_ptr": grad if out is None else out,
            "x_ptr": x, "depthwise_ptr": depthwise_weight, "pointwise_ptr": pointwise_weight, "depthwise_bias_ptr": depthwise_bias,
            "dz1_ptr": dz1,
            "channel_blocks": channel_blocks, "BK": tile.bk, "BN": tile.bn, "RING": tile.ring,
            "STAGES": tile.options.get("num_stages", 1),
            "POINTWISE_ACTIVATION": activations[2], "HAS_DEPTHWISE_BIAS": depthwise_bias is not None, "PRECISION": precision,
        },
        **tile.options,
    )  # fmt: skip
    return dz1


def _pointwise_gradient(
    grad, out, x, depthwise_weight, pointwise_weight, depthwise_bias, conv, is_channels_last, activations, precision, want_weight,
    want_bias
):  # fmt: skip
    o, c = pointwise_weight.shape[0], conv.out_channels
    weight_gradient = torch.empty_like(pointwise_weight) if want_weight else nothing(x)
    bias_gradient = x.new_empty(o) if want_bias else nothing(x)
    ring, step_y, step_x = _steps(conv, is_channels_last)
    tile, stored = configs.pointwise_gradient(x, conv, o, is_channels_last, ring, step_y, precision)
    stored = stored and want_weight
    if stored:
        x = run_depthwise(x, depthwise_weight, depthwise_bias, conv, is_channels_last, activations[0], activations[1])
        step_y, step_x = 1, 1
    strips = Strips(conv.n, conv.oh, conv.ow, step_y, step_x, tile.bh, tile.bw)
    out_blocks, channel_blocks = ceil_div(o, tile.bk), ceil_div(c, tile.bn) if want_weight else 1
    per_program = configs.strips_per_program(x, strips.count, out_blocks * channel_blocks)
    slots = ceil_div(strips.count, per_program)
    partial = torch.empty((slots, o, c) if want_weight else 0, dtype=torch.float32, device=x.device)
    bias_partial = torch.empty((slots, o) if want_bias else 0, dtype=torch.float32, device=x.device)
    launch(
        pointwise_gradient,
        slots * out_blocks * channel_blocks,
        x.device,
        {
            **_geometry(conv, o, is_channels_last, activations), **strips.arguments, "grad_ptr": grad,
            "out_ptr": grad if out is None else out,
            "x_ptr": x, "depthwise_ptr": depthwise_weight, "depthwise_bias_ptr": depthwise_bias, "partial_ptr": partial,
            "bias_partial_ptr": bias_partial, "out_blocks": out_blocks, "channel_blocks": channel_blocks, "strip_count": strips.count,
            "BO": tile.bk, "BC": tile.bn, "RING": tile.ring, "STRIPS": per_program, "POINTWISE_ACTIVATION": activations[2],
            "HAS_DEPTHWISE_BIAS": depthwise_bias is not None, "WANT_WEIGHT": want_weight, "WANT_BIAS": want_bias, "STORED": stored,
            "PRECISION": precision,
        },
        **tile.options,
    )  # fmt: skip
    if want_weight:
        ordered_sum(partial, slots, weight_gradient, None, o * c, 1)
    if want_bias:
        ordered_sum(bias_partial, slots, None, bias_gradient, o, 0)
    return weight_gradient, bias_gradient


def depthwise_separable_conv2d_backward(
    grad_output, input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual, output, stride, padding, dilation,
    input_activation, depthwise_activation, pointwise_activation, output_mask, allow_tf32=False,
):  # fmt: skip
    conv, o = check.separable(input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, stride, padding, dilation)
    for name, value in (("grad_output", grad_output), ("residual", residual), ("output", output)):
        check.tensor_map(value, name, (conv.n, o, conv.oh, conv.ow), input)
    check.mask(output_mask, 6)
    activations = check.activations(input_activation, depthwise_activation, pointwise_activation)
    is_channels_last = channels_last(input)
    want_dx, want_depthwise, want_pointwise, want_depthwise_bias, want_pointwise_bias, want_residual = output_mask
    x, grad, out = (dense(t, is_channels_last) for t in (input, grad_output, output))
    depthwise_weight, pointwise_weight = depthwise_weight.contiguous(), pointwise_weight.contiguous()
    depthwise_bias = vector(depthwise_bias)
    precision = dot_precision(x.dtype, allow_tf32)
    if grad.numel() == 0:
        shapes = (x, depthwise_weight, pointwise_weight, depthwise_weight[:, 0, 0, 0], pointwise_weight[:, 0].flatten(), grad)
        return tuple(torch.zeros_like(like) if wanted else nothing(x) for like, wanted in zip(shapes, output_mask, strict=True))

    if pointwise_activation not in FROM_OUTPUT or (pointwise_activation != "identity" and out is None):
        grad = run_separable(
            x, depthwise_weight, pointwise_weight, depthwise_bias, vector(pointwise_bias), dense(residual, is_channels_last), conv,
            is_channels_last,
            activations, precision, grad,
        )  # fmt: skip
        residual_gradient = grad
        activations, out = (*activations[:2], "identity"), None
    elif want_residual:
        residual_gradient = grad.clone() if out is None else torch.where(_passes(out, pointwise_activation), grad, 0)
    if not want_residual:
        residual_gradient = nothing(x)

    dx, depthwise_gradient, depthwise_bias_gradient = (nothing(x),) * 3
    if want_dx or want_depthwise or want_depthwise_bias:
        dz1 = _gradient_of_intermediate(
            grad, out, x, depthwise_weight, pointwise_weight, depthwise_bias, conv, is_channels_last, activations, precision
        )  # fmt: skip
        dx, depthwise_gradient, depthwise_bias_gradient = run_depthwise_backward(
            dz1,
            None,
            x,
            depthwise_weight,
            conv,
            is_channels_last,
            input_activation,
            "identity",
            want_dx,
            want_depthwise,
            want_depthwise_bias,
        )
    pointwise_gradients = (nothing(x),) * 2
    if want_pointwise or want_pointwise_bias:
        pointwise_gradients = _pointwise_gradient(
            grad, out, x, depthwise_weight, pointwise_weight, depthwise_bias, conv, is_channels_last, activations, precision,
            want_pointwise, want_pointwise_bias
        )  # fmt: skip
    return dx, depthwise_gradient, pointwise_gradients[0], depthwise_bias_gradient, pointwise_gradients[1], residual_gradient


def _passes(out: torch.Tensor, activation: str) -> torch.Tensor:
    """Where relu or relu6 with this output lets the gradient through."""
    return out > 0 if activation == "relu" else (out > 0) & (out < 6)
