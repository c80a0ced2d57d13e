"""Pools at every offset, forward: max (with an argmax byte, with int64 indices, or neither) and average.

Both march down a strip of one residue class modulo the dilation. Each input row is loaded once for every column shift and reduced over
them; the result enters KH running windows that the loop carries, and a window that has met its KH rows leaves as an output row. So a window
costs KH + KW steps instead of KH * KW, for any dilation. Windows too large to unroll take a gather.

The maximum follows torch: the first of equal values wins, the last NaN wins over everything, and a window of -inf alone has its first
position inside the input. A row is compared left to right and rows top to bottom, each with "greater, or NaN", which gives that order for
the whole window.
"""

import torch
import triton
import triton.language as tl

from . import check, configs
from .language import channels_inside, image, inside, load_shifted, strides, strip_of_program
from .launch import Pool, Strips, ceil_div, channels_last, dense, empty_map, launch, wide

# Unrolled taps, horizontally and vertically.
RING_SIDE = 16

# By what is kept of the winners; their tiles are tuned apart.
MAX_STAGES = {
    "none": "shift_stitch_max_pool2d",
    "tap": "shift_stitch_max_pool2d_argmax",
    "plane": "shift_stitch_max_pool2d_indices",
}


@triton.jit
def strip_of_windows(
    x_ptr, H, W, DENSE_H, DENSE_W, pw, step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks,
    C: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, POLYPHASE: tl.constexpr, BC: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """What this program covers of the dense map, and what its windows read: (channels, their mask, image number, first row, columns, first
    column of each window, the image, its row and column strides, offsets of the first columns)."""
    channels, n, row, columns = strip_of_program(
        DENSE_H, DENSE_W, step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks, ROWS, BW, POLYPHASE, BC, WIDE
    )
    x_c, x_y, x_x = strides(C, H, W, CHANNELS_LAST)
    left = columns - pw
    offsets = left[:, None] * x_x + channels[None, :] * x_c
    return channels, channels_inside(channels, C), n, row, columns, left, image(x_ptr, n, C, H, W), x_y, x_x, offsets


@triton.jit
def fragment_offsets(
    n, y, x, channels, sh, sw, FH, FW, C: tl.constexpr, CHANNELS_LAST: tl.constexpr, FRAGMENTS: tl.constexpr
):  # fmt: skip
    """Where dense positions (y, x) of image n lie: (scalar offset, element offsets [BW, BC]).

    FH, FW are the size of the map, or with FRAGMENTS of one fragment; a row y below zero gives offsets that are masked by the caller.
    """
    c, row, column = strides(C, FH, FW, CHANNELS_LAST)
    if FRAGMENTS:
        of_fragment = ((y % sh) * sw + x % sw).to(tl.int64) * C * FH * FW
        base = n.to(tl.int64) * sh * sw * C * FH * FW
        return base, (of_fragment + (y // sh) * row + (x // sw) * column)[:, None] + channels[None, :] * c
    else:
        return n.to(tl.int64) * C * FH * FW + y * row, x[:, None] * column + channels[None, :] * c


@triton.jit
def first_tap(start, dilation):
    """The first tap of a window that starts at `start` which is not left of (or above) the input."""
    return tl.where(start < 0, (dilation - 1 - start) // dilation, 0)


@triton.jit
def better(value, best):
    return (value > best) | (value != value)


@triton.jit
def store_argmax(
    index_ptr, offsets, mask, tap, y, columns, ph, pw, dh, dw, H, W, KH: tl.constexpr, KW: tl.constexpr, INDEX: tl.constexpr
):  # fmt: skip
    """INDEX "tap": the window's tap; "plane": the position in the input plane, -1 where no tap is inside it."""
    if INDEX == "plane":
        row = y - ph + (tap // KW) * dh
        column = (columns - pw)[:, None] + (tap % KW) * dw
        reaches = (_taps_inside(y - ph + tl.zeros_like(columns), H, dh, KH) > 0) & (_taps_inside(columns - pw, W, dw, KW) > 0)
        tap = tl.where(reaches[:, None], row.to(tl.int64) * W + column, -1)
    tl.store(index_ptr + offsets, tap.to(index_ptr.dtype.element_ty), mask=mask)


@triton.jit
def max_pool_ring(
    x_ptr, out_ptr, index_ptr, H, W, DENSE_H, DENSE_W, FH, FW, sh, sw, ph, pw, dh, dw,
    step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, POLYPHASE: tl.constexpr, BC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FRAGMENTS: tl.constexpr, INDEX: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    channels, channel_mask, n, row, columns, left, x_image, x_y, x_x, offsets = strip_of_windows(
        x_ptr, H, W, DENSE_H, DENSE_W, pw, step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks, C, ROWS, BW,
        POLYPHASE, BC, CHANNELS_LAST, WIDE,
    )  # fmt: skip
    first_column = (first_tap(left, dw) + tl.zeros((BW,), tl.int32)).to(tl.int32)[:, None] + tl.zeros((BW, BC), tl.int32)

    low = tl.full((BW, BC), -float("inf"), tl.float32)
    bests = (low,) * KH
    taps = (tl.zeros((BW, BC), tl.int32),) * KH
    for i in tl.range(0, ROWS + KH - 1, num_stages=1):
        y = row - ph + i * dh
        line = low
        line_tap = first_column
        for kx in tl.static_range(KW):
            value = load_shifted(x_image, offsets, y, left, kx * dw, x_y, x_x, channel_mask, H, W, -float("inf"))
            if kx == 0:
                line = value
            else:
                wins = better(value, line)
                line = tl.where(wins, value, line)
                if INDEX != "none":
                    line_tap = tl.where(wins, kx, line_tap)
        nan = line != line
        new_bests = ()
        new_taps = ()
        for ky in tl.static_range(KH):
            if ky == 0:
                best = line
                tap = line_tap
                if INDEX != "none":
                    # The window that starts here: a window of -inf alone keeps this tap, so it must be the first inside the input.
                    tap += first_tap(y, dh).to(tl.int32) * KW
            else:
                wins = (line > bests[ky - 1]) | nan
                best = tl.where(wins, line, bests[ky - 1])
                tap = taps[ky - 1]
                if INDEX != "none":
                    tap = tl.where(wins, line_tap + ky * KW, tap)
            new_bests = new_bests + (best,)
            new_taps = new_taps + (tap,)
        bests = new_bests
        taps = new_taps

        y = row + (i - (KH - 1)) * dh
        base, at = fragment_offsets(n, y, columns, channels, sh, sw, FH, FW, C, CHANNELS_LAST, FRAGMENTS)
        rows = y + tl.zeros_like(columns)
        mask = (inside(y, columns, DENSE_H, DENSE_W) & (rows >= row))[:, None] & channel_mask[None, :]
        tl.store(out_ptr + base + at, bests[KH - 1].to(out_ptr.dtype.element_ty), mask=mask)
        if INDEX != "none":
            store_argmax(index_ptr + base, at, mask, taps[KH - 1], y, columns, ph, pw, dh, dw, H, W, KH, KW, INDEX)


@triton.jit
def max_pool_gather(
    x_ptr, out_ptr, index_ptr, H, W, DENSE_H, DENSE_W, FH, FW, sh, sw, ph, pw, dh, dw,
    step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, POLYPHASE: tl.constexpr, BC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FRAGMENTS: tl.constexpr, INDEX: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    channels, channel_mask, n, first, columns, left, x_image, x_y, x_x, offsets = strip_of_windows(
        x_ptr, H, W, DENSE_H, DENSE_W, pw, step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks, C, ROWS, BW,
        POLYPHASE, BC, CHANNELS_LAST, WIDE,
    )  # fmt: skip
    for i in tl.range(0, ROWS, num_stages=1):
        top = first + step_y * i - ph
        best = tl.full((BW, BC), -float("inf"), tl.float32)
        tap = tl.zeros((BW, BC), tl.int32) + (first_tap(top, dh) * KW + first_tap(left, dw)).to(tl.int32)[:, None]
        for ky in tl.range(0, KH, num_stages=1):
            y = top + ky * dh
            for kx in tl.range(0, KW, num_stages=1):
                value = load_shifted(x_image, offsets, y, left, kx * dw, x_y, x_x, channel_mask, H, W, -float("inf"))
                wins = better(value, best)
                best = tl.where(wins, value, best)
                tap = tl.where(wins, ky * KW + kx, tap)
        y = top + ph
        base, at = fragment_offsets(n, y, columns, channels, sh, sw, FH, FW, C, CHANNELS_LAST, FRAGMENTS)
        mask = inside(y, columns, DENSE_H, DENSE_W)[:, None] & channel_mask[None, :]
        tl.store(out_ptr + base + at, best.to(out_ptr.dtype.element_ty), mask=mask)
        if INDEX != "none":
            store_argmax(index_ptr + base, at, mask, tap, y, columns, ph, pw, dh, dw, H, W, KH, KW, INDEX)


@triton.jit
def window_share(y, x, H, W, ph, pw, dh, dw, divisor, KH: tl.constexpr, KW: tl.constexpr, COUNT: tl.constexpr):
    """1 / divisor of the windows at (scalar y, columns x), float32 [BW]. COUNT "given": `divisor`; "inside": the taps inside the input;
    "padded": those inside the input or its symmetric padding, beyond which ceil mode may reach."""
    if COUNT == "given":
        return 1.0 / (divisor + tl.zeros_like(x)).to(tl.float32)
    else:
        top = y - ph + tl.zeros_like(x)
        left = x - pw
        if COUNT == "padded":
            taps = _taps_before(top, H + ph, dh, KH) * _taps_before(left, W + pw, dw, KW)
        else:
            taps = _taps_inside(top, H, dh, KH) * _taps_inside(left, W, dw, KW)
        # A window without any tap sums to zero, whatever its share.
        return 1.0 / tl.maximum(taps, 1).to(tl.float32)


@triton.jit
def _taps_before(start, end, dilation, K: tl.constexpr):
    """How many of K taps, the first at `start`, lie before `end`."""
    return tl.minimum(tl.maximum(end - start + dilation - 1, 0) // dilation, K)


@triton.jit
def _taps_inside(start, size, dilation, K: tl.constexpr):
    """How many of K taps, the first at `start`, lie in the input."""
    return tl.maximum(_taps_before(start, size, dilation, K) - first_tap(start, dilation), 0)


@triton.jit
def avg_pool_ring(
    x_ptr, out_ptr, H, W, DENSE_H, DENSE_W, FH, FW, sh, sw, ph, pw, dh, dw, divisor,
    step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, POLYPHASE: tl.constexpr, BC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FRAGMENTS: tl.constexpr, COUNT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    channels, channel_mask, n, row, columns, left, x_image, x_y, x_x, offsets = strip_of_windows(
        x_ptr, H, W, DENSE_H, DENSE_W, pw, step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks, C, ROWS, BW,
        POLYPHASE, BC, CHANNELS_LAST, WIDE,
    )  # fmt: skip
    sums = (tl.zeros((BW, BC), tl.float32),) * KH
    for i in tl.range(0, ROWS + KH - 1, num_stages=1):
        y = row - ph + i * dh
        line = tl.zeros((BW, BC), tl.float32)
        for kx in tl.static_range(KW):
            line += load_shifted(x_image, offsets, y, left, kx * dw, x_y, x_x, channel_mask, H, W, 0.0)
        shifted = (line,)
        for ky in tl.static_range(1, KH):
            shifted = shifted + (sums[ky - 1] + line,)
        sums = shifted

        y = row + (i - (KH - 1)) * dh
        share = window_share(y, columns, H, W, ph, pw, dh, dw, divisor, KH, KW, COUNT)
        base, at = fragment_offsets(n, y, columns, channels, sh, sw, FH, FW, C, CHANNELS_LAST, FRAGMENTS)
        rows = y + tl.zeros_like(columns)
        mask = (inside(y, columns, DENSE_H, DENSE_W) & (rows >= row))[:, None] & channel_mask[None, :]
        tl.store(out_ptr + base + at, (sums[KH - 1] * share[:, None]).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def avg_pool_gather(
    x_ptr, out_ptr, H, W, DENSE_H, DENSE_W, FH, FW, sh, sw, ph, pw, dh, dw, divisor,
    step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, POLYPHASE: tl.constexpr, BC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FRAGMENTS: tl.constexpr, COUNT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    channels, channel_mask, n, first, columns, left, x_image, x_y, x_x, offsets = strip_of_windows(
        x_ptr, H, W, DENSE_H, DENSE_W, pw, step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks, C, ROWS, BW,
        POLYPHASE, BC, CHANNELS_LAST, WIDE,
    )  # fmt: skip
    for i in tl.range(0, ROWS, num_stages=1):
        row = first + step_y * i
        total = tl.zeros((BW, BC), tl.float32)
        for ky in tl.range(0, KH, num_stages=1):
            y = row - ph + ky * dh
            for kx in tl.range(0, KW, num_stages=1):
                total += load_shifted(x_image, offsets, y, left, kx * dw, x_y, x_x, channel_mask, H, W, 0.0)
        share = window_share(row, columns, H, W, ph, pw, dh, dw, divisor, KH, KW, COUNT)
        base, at = fragment_offsets(n, row, columns, channels, sh, sw, FH, FW, C, CHANNELS_LAST, FRAGMENTS)
        mask = inside(row, columns, DENSE_H, DENSE_W)[:, None] & channel_mask[None, :]
        tl.store(out_ptr + base + at, (total * share[:, None]).to(out_ptr.dtype.element_ty), mask=mask)


def pool_arguments(pool: Pool, is_channels_last: bool) -> dict:
    height, width = pool.fragment_size if pool.fragments else (pool.dense_h, pool.dense_w)
    return {
        "H": pool.h, "W": pool.w, "DENSE_H": pool.dense_h, "DENSE_W": pool.dense_w, "FH": height, "FW": width,
        "sh": pool.sh, "sw": pool.sw, "ph": pool.ph, "pw": pool.pw, "dh": pool.dh, "dw": pool.dw,
        "C": pool.c, "KH": pool.kh, "KW": pool.kw, "CHANNELS_LAST": is_channels_last, "FRAGMENTS": pool.fragments,
        "WIDE": wide(pool.c * pool.h * pool.w, pool.c * pool.dense_h * pool.dense_w),
    }  # fmt: skip


def launch_pool(stage: str, ring, gather, pool: Pool, x, is_channels_last: bool, height: int, width: int, arguments: dict) -> None:
    """Launches the ring, or the gather where its taps do not unroll, over a map of height x width positions; `stage` names its tiles."""
    unrolled = max(pool.kh, pool.kw) <= RING_SIDE
    step_x = pool.dw if is_channels_last else 1
    tile = configs.pool(stage, x, pool, is_channels_last, height, width, pool.dh, step_x)
    strips = Strips(pool.n, height, width, pool.dh, step_x, tile.rows, tile.bw)
    channel_blocks = ceil_div(pool.c, tile.bc)
    launch(
        ring if unrolled else gather,
        strips.count * channel_blocks,
        x.device,
        {**pool_arguments(pool, is_channels_last), **arguments, **strips.arguments, "channel_blocks": channel_blocks, "BC": tile.bc},
        **tile.options,
    )


def _filled(x, pool: Pool, is_channels_last: bool, fill: float, dtype=None) -> torch.Tensor:
    """The result, with `fill` in it where fragments have tails, which no window writes."""
    out = empty_map(x, pool.shape, is_channels_last, dtype)
    has_tails = pool.fragments and (pool.dense_h % pool.sh or pool.dense_w % pool.sw)
    return out.fill_(fill) if has_tails else out


def run_max_pool(x, pool: Pool, is_channels_last: bool, fill: float, index: str, index_dtype=None, index_fill: int = 0):
    """(out, index), index being None for "none"; x is dense in the format."""
    out = _filled(x, pool, is_channels_last, fill)
    indices = None if index == "none" else _filled(x, pool, is_channels_last, index_fill, index_dtype)
    if out.numel():
        launch_pool(
            MAX_STAGES[index], max_pool_ring, max_pool_gather, pool, x, is_channels_last, pool.dense_h, pool.dense_w,
            {"x_ptr": x, "out_ptr": out, "index_ptr": indices, "INDEX": index},
        )  # fmt: skip
    return out, indices


def _max_pool(input, geometry, fill, index, index_dtype=None, index_fill=0):
    pool = check.pool_of_map(input, *geometry)
    if index == "tap":
        check.argmax_taps(pool)
    is_channels_last = channels_last(input)
    return run_max_pool(dense(input, is_channels_last), pool, is_channels_last, fill, index, index_dtype, index_fill)


def shift_stitch_max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, fragments, fill):
    return _max_pool(input, (kernel_size, stride, padding, dilation, ceil_mode, fragments), fill, "none")[0]


def shift_stitch_max_pool2d_argmax(input, kernel_size, stride, padding, dilation, ceil_mode, fragments, fill):
    return _max_pool(input, (kernel_size, stride, padding, dilation, ceil_mode, fragments), fill, "tap", torch.uint8)


def shift_stitch_max_pool2d_indices(input, kernel_size, stride, padding, dilation, ceil_mode, fragments, fill):
    return _max_pool(input, (kernel_size, stride, padding, dilation, ceil_mode, fragments), fill, "plane", torch.int64, -1)


def average_count(count_include_pad: bool, divisor_override: int | None) -> dict:
    """Arguments that say how the divisor is found."""
    count = "given" if divisor_override is not None else "padded" if count_include_pad else "inside"
    return {"COUNT": count, "divisor": divisor_override if divisor_override is not None else 1}


def shift_stitch_avg_pool2d(
    input, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override, fragments, fill
):  # fmt: skip
    pool = check.pool_of_map(input, kernel_size, stride, padding, dilation, ceil_mode, fragments)
    check.divisor(divisor_override)
    is_channels_last = channels_last(input)
    x = dense(input, is_channels_last)
    out = _filled(x, pool, is_channels_last, fill)
    if out.numel():
        launch_pool(
            "shift_stitch_avg_pool2d", avg_pool_ring, avg_pool_gather, pool, x, is_channels_last, pool.dense_h, pool.dense_w,
            {"x_ptr": x, "out_ptr": out, **average_count(count_include_pad, divisor_override)},
        )  # fmt: skip
    return out
