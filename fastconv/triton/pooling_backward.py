"""Pools at every offset, backward: the gradient of each input pixel is gathered from the windows that hold it.

The kernels own input pixels, so that nothing is added from two places and no atomics are needed. They march like the forward ring: one row
of windows is loaded once for every column shift and feeds the KH sums of input rows that are unfinished. A window of a max pool gives its
gradient to the one tap that its argmax byte names; a window of an average pool gives its share to every tap.
"""

import torch
import triton
import triton.language as tl

from . import check
from .language import channels_inside, image, inside, strides, strip_of_program
from .launch import Pool, channels_last, dense, empty_map
from .pooling import average_count, fragment_offsets, launch_pool, run_max_pool, window_share


@triton.jit
def load_windows(
    grad_ptr, argmax_ptr, n, y, columns, channels, H, W, DENSE_H, DENSE_W, FH, FW, sh, sw, ph, pw, dh, dw, divisor,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, CHANNELS_LAST: tl.constexpr, FRAGMENTS: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """(gradient, argmax) of the windows at (y, columns), zero outside the map. With COUNT the gradient is that of one tap of an average."""
    base, offsets = fragment_offsets(n, y, columns, channels, sh, sw, FH, FW, C, CHANNELS_LAST, FRAGMENTS)
    mask = inside(y, columns, DENSE_H, DENSE_W)[:, None] & channels_inside(channels, C)[None, :]
    grad = tl.load(grad_ptr + base + offsets, mask=mask, other=0.0).to(tl.float32)
    if COUNT == "none":
        return grad, tl.load(argmax_ptr + base + offsets, mask=mask, other=0).to(tl.int32)
    else:
        return grad * window_share(y, columns, H, W, ph, pw, dh, dw, divisor, KH, KW, COUNT)[:, None], 0


@triton.jit
def pool_backward_ring(
    grad_ptr, argmax_ptr, dx_ptr, H, W, DENSE_H, DENSE_W, FH, FW, sh, sw, ph, pw, dh, dw, divisor,
    step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, POLYPHASE: tl.constexpr, BC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FRAGMENTS: tl.constexpr, COUNT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    channels, n, row, columns = strip_of_program(
        H, W, step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks, ROWS, BW, POLYPHASE, BC, WIDE
    )
    x_c, x_y, x_x = strides(C, H, W, CHANNELS_LAST)
    dx_image = image(dx_ptr, n, C, H, W)
    sums = (tl.zeros((BW, BC), tl.float32),) * KH
    for i in tl.range(0, ROWS + KH - 1, num_stages=1):
        y = row + ph + (i - (KH - 1)) * dh
        grads = ()
        winners = ()
        for kx in tl.static_range(KW):
            grad, winner = load_windows(
                grad_ptr, argmax_ptr, n, y, columns + pw - kx * dw, channels, H, W, DENSE_H, DENSE_W, FH, FW, sh, sw, ph, pw, dh, dw,
                divisor,
                C, KH, KW, CHANNELS_LAST, FRAGMENTS, COUNT,
            )  # fmt: skip
            grads = grads + (grad,)
            winners = winners + (winner,)
        if COUNT != "none":
            line = grads[0]
            for kx in tl.static_range(1, KW):
                line += grads[kx]
        shifted = ()
        for ky in tl.static_range(KH):
            if ky == KH - 1:
                acc = tl.zeros((BW, BC), tl.float32)
            else:
                acc = sums[ky + 1]
            if COUNT == "none":
                for kx in tl.static_range(KW):
                    acc += tl.where(winners[kx] == ky * KW + kx, grads[kx], 0.0)
            else:
                acc += line
            shifted = shifted + (acc,)
        sums = shifted

        y = row + (i - (KH - 1)) * dh
        rows = y + tl.zeros_like(columns)
        mask = (inside(y, columns, H, W) & (rows >= row))[:, None] & channels_inside(channels, C)[None, :]
        tl.store(dx_image + y * x_y + (columns[:, None] * x_x + channels[None, :] * x_c), sums[0].to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def pool_backward_gather(
    grad_ptr, argmax_ptr, dx_ptr, H, W, DENSE_H, DENSE_W, FH, FW, sh, sw, ph, pw, dh, dw, divisor,
    step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, POLYPHASE: tl.constexpr, BC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FRAGMENTS: tl.constexpr, COUNT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    channels, n, first, columns = strip_of_program(
        H, W, step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks, ROWS, BW, POLYPHASE, BC, WIDE
    )
    x_c, x_y, x_x = strides(C, H, W, CHANNELS_LAST)
    dx_image = image(dx_ptr, n, C, H, W)
    for i in tl.range(0, ROWS, num_stages=1):
        row = first + step_y * i
        acc = tl.zeros((BW, BC), tl.float32)
        for ky in tl.range(0, KH, num_stages=1):
            for kx in tl.range(0, KW, num_stages=1):
                grad, winner = load_windows(
                    grad_ptr, argmax_ptr, n, row + ph - ky * dh, columns + pw - kx * dw, channels, H, W, DENSE_H, DENSE_W, FH, FW, sh, sw,
                    ph, pw,
                    dh, dw, divisor, C, KH, KW, CHANNELS_LAST, FRAGMENTS, COUNT,
                )  # fmt: skip
                if COUNT == "none":
                    grad = tl.where(winner == ky * KW + kx, grad, 0.0)
                acc += grad
        mask = inside(row, columns, H, W)[:, None] & channels_inside(channels, C)[None, :]
        tl.store(dx_image + row * x_y + (columns[:, None] * x_x + channels[None, :] * x_c), acc.to(dx_ptr.dtype.element_ty), mask=mask)


def _run(kind: str, grad, argmax, pool: Pool, is_channels_last: bool, count: dict) -> torch.Tensor:
    dx = empty_map(grad, (pool.n, pool.c, pool.h, pool.w), is_channels_last)
    if dx.numel():
        launch_pool(
            f"shift_stitch_{kind}_pool2d_backward", pool_backward_ring, pool_backward_gather, pool, grad, is_channels_last, pool.h, pool.w,
            {"grad_ptr": grad, "argmax_ptr": argmax, "dx_ptr": dx, **count},
        )  # fmt: skip
    return dx


def shift_stitch_max_pool2d_backward(
    grad_output, input, argmax, input_size, kernel_size, stride, padding, dilation, ceil_mode, fragments
):  # fmt: skip
    check.floating(grad_output, "grad_output")
    pool = check.pool(input_size, "input_size", kernel_size, stride, padding, dilation, ceil_mode, fragments)
    check.max_pool_backward(grad_output, input, argmax, pool)
    is_channels_last = channels_last(grad_output)
    grad = dense(grad_output, is_channels_last)
    if argmax is None:
        # Found again from the input; one byte does not hold the tap of a larger window.
        dtype = torch.uint8 if pool.kh * pool.kw <= 256 else torch.int32
        argmax = run_max_pool(dense(input, is_channels_last), pool, is_channels_last, 0.0, "tap", dtype)[1]
    return _run("max", grad, dense(argmax, is_channels_last), pool, is_channels_last, {"COUNT": "none", "divisor": 1})


def shift_stitch_avg_pool2d_backward(
    grad_output, input_size, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override, fragments
):  # fmt: skip
    pool = check.pool(input_size, "input_size", kernel_size, stride, padding, dilation, ceil_mode, fragments)
    check.size(grad_output, "grad_output", pool.shape)
    check.divisor(divisor_override)
    check.floating(grad_output, "grad_output")
    is_channels_last = channels_last(grad_output)
    count = average_count(count_include_pad, divisor_override)
    return _run("avg", dense(grad_output, is_channels_last), None, pool, is_channels_last, count)
