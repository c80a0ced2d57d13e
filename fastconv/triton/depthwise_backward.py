"""depthwise_conv2d backward, and the depthwise half of the separable backward.

At stride 1 one kernel gives both gradients. It owns pixels of x, not of the output: dx[p] = sum_t w[t] g[p - t] and dw[t] += x[p] g[p - t]
read the same window of g, so x needs no halo and g is loaded once for both. It marches like the forward ring, with two rings: the KH sums
of dx that are unfinished, and the KH rows of x that still meet rows of g. Weight gradients stay in registers over all strips of a program
and leave as one partial a program; a second kernel adds the partials in order, so results do not change from run to run.

Other strides, depth multipliers and large kernels take a gather for dx and a program per tap for dw.
"""

import torch
import triton
import triton.language as tl

from . import check, configs
from .depthwise import load_taps, run_depthwise
from .language import activate, activation_backward, block, channels_inside, image, inside, strides, strip_coordinates, strip_of_program
from .launch import Conv, Strips, ceil_div, channels_last, dense, empty_map, launch, nothing, power_of_two, vector, wide

# Unrolled taps of the one-pass kernel: a weight and a weight gradient of each are held in registers.
RING_TAPS = 25

# For these the derivative follows from the output.
FROM_OUTPUT = ("identity", "relu", "relu6")


@triton.jit
def load_gradient(grad_image, out_image, base, offsets, mask, ACTIVATION: tl.constexpr):
    """Gradient before the activation, float32; the saved output tells where relu and relu6 let it through."""
    grad = tl.load(grad_image + base + offsets, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION != "identity":
        grad = activation_backward(grad, tl.load(out_image + base + offsets, mask=mask, other=0.0).to(tl.float32), ACTIVATION)
    return grad


@triton.jit
def store_input_gradient(grad, x_image, dx_image, base, offsets, mask, INPUT_ACTIVATION: tl.constexpr):
    if INPUT_ACTIVATION != "identity":
        grad = activation_backward(grad, tl.load(x_image + base + offsets, mask=mask, other=0.0).to(tl.float32), INPUT_ACTIVATION)
    tl.store(dx_image + base + offsets, grad.to(dx_image.dtype.element_ty), mask=mask)


@triton.jit
def depthwise_backward_ring(
    grad_ptr, out_ptr, x_ptr, weight_ptr, dx_ptr, partial_ptr, H, W, OH, OW, dh, dw, pt, pl, first_y, first_x, last_y, last_x,
    step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks, strip_count,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, POLYPHASE: tl.constexpr, BC: tl.constexpr,
    STRIPS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, INPUT_ACTIVATION: tl.constexpr, ACTIVATION: tl.constexpr, WANT_DX: tl.constexpr, WANT_DW: tl.constexpr,
    WANT_DB: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    channels = block(pid % channel_blocks, BC, WIDE)
    slot = pid // channel_blocks
    channel_mask = channels_inside(channels, C)
    x_c, x_y, x_x = strides(C, H, W, CHANNELS_LAST)
    g_c, g_y, g_x = strides(C, OH, OW, CHANNELS_LAST)
    weights = load_taps(weight_ptr, channels, channel_mask, 0, KH * KW, KH * KW)

    zero = tl.zeros((BW, BC), tl.float32)
    dws = (zero,) * (KH * KW)
    db = zero
    for s in tl.range(0, STRIPS, num_stages=1):
        strip = slot * STRIPS + s
        n, row, columns = strip_coordinates(
            strip, tl.arange(0, BW), last_y - first_y, last_x - first_x, step_y, step_x, classes_y, class_width, row_strips, column_blocks,
            ROWS,
            BW, POLYPHASE, WIDE,
        )  # fmt: skip
        # The strips cover first .. last: every pixel of x, and every position whose centre tap is a pixel of g, so that db meets each g
        # once.
        row += first_y
        columns += first_x
        columns = tl.where(strip < strip_count, columns, last_x)
        n = tl.where(strip < strip_count, n, 0)
        x_image, dx_image = image(x_ptr, n, C, H, W), image(dx_ptr, n, C, H, W)
        grad_image, out_image = image(grad_ptr, n, C, OH, OW), image(out_ptr, n, C, OH, OW)
        x_offsets = columns[:, None] * x_x + channels[None, :] * x_c
        g_offsets = (columns + pl)[:, None] * g_x + channels[None, :] * g_c

        sums = (zero,) * KH
        xs = (zero,) * KH
        for i in tl.range(0, ROWS + KH - 1, num_stages=1):
            # This row of g meets rows i - (KH - 1) .. i of x.
            y_g = row + pt + (i - (KH - 1)) * dh
            line = ()
            for kx in tl.static_range(KW):
                column = columns + pl - kx * dw
                owned = (columns < last_x) & (column < OW)
                mask = inside(y_g, tl.where(owned, column, -1), OH, OW)[:, None] & channel_mask[None, :]
                line = line + (load_gradient(grad_image, out_image, y_g * g_y - kx * dw * g_x, g_offsets, mask, ACTIVATION),)
            if WANT_DX:
                shifted = ()
                for ky in tl.static_range(KH):
                    if ky == KH - 1:
                        acc = line[0] * weights[ky * KW]
                    else:
                        acc = sums[ky + 1] + line[0] * weights[ky * KW]
                    for kx in tl.static_range(1, KW):
                        acc += line[kx] * weights[ky * KW + kx]
                    shifted = shifted + (acc,)
                sums = shifted
                y = row + (i - (KH - 1)) * dh
                rows = y + tl.zeros_like(columns)
                mask = (inside(y, columns, H, W) & (rows >= row) & (rows < last_y))[:, None] & channel_mask[None, :]
                store_input_gradient(sums[0], x_image, dx_image, y * x_y, x_offsets, mask, INPUT_ACTIVATION)
            if WANT_DW:
                y = row + i * dh
                rows = i + tl.zeros_like(columns)
                mask = (inside(y, columns, H, W) & (rows < ROWS))[:, None] & channel_mask[None, :]
                x = tl.load(x_image + y * x_y + x_offsets, mask=mask, other=0.0).to(tl.float32)
                xs = xs[1:] + (activate(x, INPUT_ACTIVATION),)
                added = ()
                for ky in tl.static_range(KH):
                    for kx in tl.static_range(KW):
                        added = added + (dws[ky * KW + kx] + xs[ky] * line[kx],)
                dws = added
            if WANT_DB:
                # The strip owns this row of g if it owns the row of x under the centre tap.
                rows = i - (KH - 1 - KH // 2) + tl.zeros_like(columns)
                db += tl.where(((rows >= 0) & (rows < ROWS))[:, None], line[KW // 2], 0.0)

    TAPS: tl.constexpr = KH * KW
    # Without either there are no partials to point at.
    if WANT_DW or WANT_DB:
        base = partial_ptr + slot.to(tl.int64) * ((TAPS + 1) * C) + channels
    if WANT_DW:
        for t in tl.static_range(TAPS):
            tl.store(base + t * C, tl.sum(dws[t], 0), mask=channel_mask)
    if WANT_DB:
        tl.store(base + TAPS * C, tl.sum(db, 0), mask=channel_mask)


@triton.jit
def depthwise_input_gradient(
    grad_ptr, out_ptr, x_ptr, weight_ptr, dx_ptr, H, W, OH, OW, sh, sw, dh, dw, pt, pl,
    step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks,
    C: tl.constexpr, M: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, POLYPHASE: tl.constexpr,
    BC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, INPUT_ACTIVATION: tl.constexpr, ACTIVATION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    channels, n, first, columns = strip_of_program(
        H, W, step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks, ROWS, BW, POLYPHASE, BC, WIDE
    )
    channel_mask = channels_inside(channels, C)
    x_c, x_y, x_x = strides(C, H, W, CHANNELS_LAST)
    g_c, g_y, g_x = strides(C * M, OH, OW, CHANNELS_LAST)
    grad_image, out_image = image(grad_ptr, n, C * M, OH, OW), image(out_ptr, n, C * M, OH, OW)
    for i in tl.range(0, ROWS, num_stages=1):
        row = first + step_y * i
        acc = tl.zeros((BW, BC), tl.float32)
        for ky in tl.range(0, KH, num_stages=1):
            high = row + pt - ky * dh
            y = high // sh
            for kx in tl.range(0, KW, num_stages=1):
                wide_x = columns + pl - kx * dw
                x = wide_x // sw
                # A tap reaches this pixel only where the stride divides; the C division of a negative number does not matter.
                rows = high + tl.zeros_like(columns)
                met = (rows == y * sh) & (rows >= 0) & (wide_x == x * sw) & (wide_x >= 0) & (columns < W)
                mask = inside(y, tl.where(met, x, -1), OH, OW)[:, None] & channel_mask[None, :]
                for m in tl.range(0, M, num_stages=1):
                    out_channels = channels * M + m
                    offsets = x[:, None] * g_x + out_channels[None, :] * g_c
                    g = load_gradient(grad_image, out_image, y * g_y, offsets, mask, ACTIVATION)
                    w = tl.load(weight_ptr + out_channels * (KH * KW) + (ky * KW + kx), mask=channel_mask, other=0.0)
                    acc += g * w.to(tl.float32)[None, :]
        mask = inside(row, columns, H, W)[:, None] & channel_mask[None, :]
        offsets = columns[:, None] * x_x + channels[None, :] * x_c
        store_input_gradient(acc, image(x_ptr, n, C, H, W), image(dx_ptr, n, C, H, W), row * x_y, offsets, mask, INPUT_ACTIVATION)


@triton.jit
def depthwise_weight_gradient(
    grad_ptr, out_ptr, x_ptr, partial_ptr, H, W, OH, OW, sh, sw, dh, dw, pt, pl, column_blocks, channel_blocks, tasks,
    C: tl.constexpr, M: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr, STRIPS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, INPUT_ACTIVATION: tl.constexpr, ACTIVATION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # One tap a program, and one "tap" more for the bias.
    TAPS: tl.constexpr = KH * KW
    pid = tl.program_id(0)
    channels = block(pid % channel_blocks, BC, WIDE)
    pid = pid // channel_blocks
    tap = pid % (TAPS + 1)
    slot = pid // (TAPS + 1)
    channel_mask = channels_inside(channels, C)
    x_c, x_y, x_x = strides(C // M, H, W, CHANNELS_LAST)
    g_c, g_y, g_x = strides(C, OH, OW, CHANNELS_LAST)
    x_channels = (channels // M)[None, :] * x_c
    ky, kx = tap // KW, tap % KW
    acc = tl.zeros((BW, BC), tl.float32)
    for s in tl.range(0, STRIPS, num_stages=1):
        task = slot * STRIPS + s
        columns = block(task % column_blocks, BW, WIDE)
        line = task // column_blocks
        if WIDE:
            line = line.to(tl.int64)
        row = line % OH
        n = line // OH
        columns = tl.where(task < tasks, columns, OW)
        n = tl.where(task < tasks, n, 0)
        mask = inside(row, columns, OH, OW)
        offsets = columns[:, None] * g_x + channels[None, :] * g_c
        g = load_gradient(
            image(grad_ptr, n, C, OH, OW), image(out_ptr, n, C, OH, OW), row * g_y, offsets, mask[:, None] & channel_mask[None, :],
            ACTIVATION
        )  # fmt: skip
        y = row * sh - pt + ky * dh
        x = columns * sw - pl + kx * dw
        met = inside(y, tl.where(mask, x, -1), H, W)[:, None] & channel_mask[None, :]
        value = tl.load(image(x_ptr, n, C // M, H, W) + y * x_y + (x[:, None] * x_x + x_channels), mask=met, other=0.0).to(tl.float32)
        value = activate(value, INPUT_ACTIVATION)
        ones = tl.full((BW, BC), 1.0, tl.float32)
        acc += g * tl.where(tap + tl.zeros((BW, BC), tl.int32) < TAPS, value, ones)
    base = partial_ptr + slot.to(tl.int64) * ((TAPS + 1) * C) + tap * C + channels
    tl.store(base, tl.sum(acc, 0), mask=channel_mask)


@triton.jit
def add_partials(
    partial_ptr, dw_ptr, db_ptr, slots, channel_blocks, C: tl.constexpr, TAPS: tl.constexpr, SLOT: tl.constexpr, SLOT_BLOCKS: tl.constexpr,
    BS: tl.constexpr, BC: tl.constexpr,
    WANT_DW: tl.constexpr, WANT_DB: tl.constexpr,
):  # fmt: skip
    """Partials (slots, SLOT) into dw (C, TAPS) and db (C): a slot holds dw as (TAPS, C), then db, if there is one."""
    pid = tl.program_id(0)
    channels = block(pid % channel_blocks, BC, False)
    tap = pid // channel_blocks
    acc = tl.zeros((BS, BC), tl.float32)
    for b in tl.range(0, SLOT_BLOCKS, num_stages=1):
        slot = b * BS + tl.arange(0, BS)
        mask = (slot < slots)[:, None] & (channels < C)[None, :]
        acc += tl.load(partial_ptr + slot.to(tl.int64)[:, None] * SLOT + tap * C + channels[None, :], mask=mask, other=0.0)
    total = tl.sum(acc, 0)
    if WANT_DW:
        if tap < TAPS:
            tl.store(dw_ptr + channels * TAPS + tap, total.to(dw_ptr.dtype.element_ty), mask=channels < C)
    if WANT_DB:
        if tap == TAPS:
            tl.store(db_ptr + channels, total.to(db_ptr.dtype.element_ty), mask=channels < C)


def ordered_sum(partial: torch.Tensor, slots: int, dw: torch.Tensor | None, db: torch.Tensor | None, channels: int, taps: int) -> None:
    """Second stage: adds partials (slots, ...), each holding dw as (taps, channels) and then db, always in the same order."""
    bs, bc, warps = configs.ordered_sum(channels)
    channel_blocks = ceil_div(channels, bc)
    launch(
        add_partials,
        channel_blocks * (taps + (db is not None)),
        partial.device,
        {
            "partial_ptr": partial, "dw_ptr": dw, "db_ptr": db, "slots": slots, "channel_blocks": channel_blocks, "C": channels,
            "TAPS": taps,
            "SLOT": partial.numel() // slots, "SLOT_BLOCKS": power_of_two(ceil_div(slots, bs)), "BS": bs, "BC": bc,
            "WANT_DW": dw is not None,
            "WANT_DB": db is not None,
        },
        num_warps=warps,
    )  # fmt: skip


def run_depthwise_backward(
    grad,
    out,
    x,
    weight,
    conv: Conv,
    is_channels_last: bool,
    input_activation: str,
    activation: str,
    want_dx: bool,
    want_dw: bool,
    want_db: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dw, db) from `grad`, the gradient after `activation`, which is identity, or relu or relu6 with the saved `out`."""
    dx = empty_map(x, x.shape, is_channels_last) if want_dx else nothing(x)
    dw = torch.empty_like(weight) if want_dw else nothing(x)
    db = x.new_empty(conv.out_channels) if want_db else nothing(x)
    if x.numel() == 0:
        return dx, dw.zero_(), db.zero_()
    common = {
        "grad_ptr": grad, "out_ptr": out if out is not None else grad, "x_ptr": x, "H": conv.h, "W": conv.w, "OH": conv.oh, "OW": conv.ow,
        "dh": conv.dh, "dw": conv.dw, "pt": conv.pt, "pl": conv.pl, "KH": conv.kh, "KW": conv.kw,
        "CHANNELS_LAST": is_channels_last, "INPUT_ACTIVATION": input_activation, "ACTIVATION": activation,
        "WIDE": wide(conv.c * conv.h * conv.w, conv.out_channels * conv.oh * conv.ow),
    }  # fmt: skip
    if (conv.sh, conv.sw, conv.m) == (1, 1, 1) and conv.taps <= RING_TAPS:
        partial, slots = _one_pass(common, x, weight, dx, conv, is_channels_last, want_dx, want_dw, want_db)
    else:
        if want_dx:
            _input_gradient(common, x, weight, dx, conv, is_channels_last)
        partial, slots = _weight_gradient(common, x, conv, is_channels_last) if want_dw or want_db else (None, 0)
    if want_dw or want_db:
        ordered_sum(partial, slots, dw if want_dw else None, db if want_db else None, conv.out_channels, conv.taps)
    return dx, dw, db


def _partials(x, conv: Conv, slots: int) -> torch.Tensor:
    return torch.empty((slots, conv.taps + 1, conv.out_channels), dtype=torch.float32, device=x.device)


def _one_pass(common, x, weight, dx, conv: Conv, is_channels_last, want_dx, want_dw, want_db):
    centre_y, centre_x = conv.kh // 2 * conv.dh - conv.pt, conv.kw // 2 * conv.dw - conv.pl
    first_y, first_x, last_y, last_x = 0, 0, conv.h, conv.w
    if want_db:
        first_y, last_y = min(first_y, centre_y), max(last_y, conv.oh + centre_y)
        first_x, last_x = min(first_x, centre_x), max(last_x, conv.ow + centre_x)
    step_x = conv.dw if is_channels_last else 1
    height, width = last_y - first_y, last_x - first_x
    tile = configs.depthwise_backward(x, conv, is_channels_last, height, width, conv.dh, step_x)
    strips = Strips(conv.n, height, width, conv.dh, step_x, tile.rows, tile.bw)
    channel_blocks = ceil_div(conv.c, tile.bc)
    count = strips.count
    per_program = configs.strips_per_program(x, count, channel_blocks) if want_dw or want_db else 1
    slots = ceil_div(count, per_program)
    partial = _partials(x, conv, slots) if want_dw or want_db else None
    launch(
        depthwise_backward_ring,
        slots * channel_blocks,
        x.device,
        {
            **common, "weight_ptr": weight, "dx_ptr": dx, "partial_ptr": partial, "first_y": first_y, "first_x": first_x, "last_y": last_y,
            "last_x": last_x, **strips.arguments, "channel_blocks": channel_blocks, "strip_count": count, "C": conv.c, "BC": tile.bc,
            "STRIPS": per_program, "WANT_DX": want_dx, "WANT_DW": want_dw, "WANT_DB": want_db,
        },
        **tile.options,
    )  # fmt: skip
    return partial, slots


def _input_gradient(common, x, weight, dx, conv: Conv, is_channels_last):
    step_x = conv.dw * conv.sw if is_channels_last else 1
    tile = configs.depthwise_gather(x, conv, is_channels_last, conv.h, conv.w, conv.c, conv.dh, step_x)
    strips = Strips(conv.n, conv.h, conv.w, conv.dh, step_x, tile.rows, tile.bw)
    channel_blocks = ceil_div(conv.c, tile.bc)
    launch(
        depthwise_input_gradient,
        strips.count * channel_blocks,
        x.device,
        {
            **common, "weight_ptr": weight, "dx_ptr": dx, "sh": conv.sh, "sw": conv.sw, **strips.arguments,
            "channel_blocks": channel_blocks,
            "C": conv.c, "M": conv.m, "BC": tile.bc,
        },
        **tile.options,
    )  # fmt: skip


def _weight_gradient(common, x, conv: Conv, is_channels_last):
    tile = configs.depthwise_gather(x, conv, is_channels_last, conv.oh, conv.ow, conv.out_channels, 1, 1)
    column_blocks, channel_blocks = ceil_div(conv.ow, tile.bw), ceil_div(conv.out_channels, tile.bc)
    tasks = conv.n * conv.oh * column_blocks
    per_program = configs.strips_per_program(x, tasks, channel_blocks * (conv.taps + 1))
    slots = ceil_div(tasks, per_program)
    partial = _partials(x, conv, slots)
    launch(
        depthwise_weight_gradient,
        slots * (conv.taps + 1) * channel_blocks,
        x.device,
        {
            **common, "partial_ptr": partial, "sh": conv.sh, "sw": conv.sw, "column_blocks": column_blocks,
            "channel_blocks": channel_blocks,
            "tasks": tasks, "C": conv.out_channels, "M": conv.m, "BW": tile.bw, "BC": tile.bc, "STRIPS": per_program,
        },
        **tile.options,
    )  # fmt: skip
    return partial, slots


def depthwise_conv2d_backward(grad_output, input, weight, bias, output, stride, padding, dilation, activation, output_mask):
    conv = check.conv(input, weight, "weight", bias, "bias", stride, padding, dilation)
    check.activation(activation, "activation")
    check.tensor_map(grad_output, "grad_output", conv.out_shape, input)
    check.tensor_map(output, "output", conv.out_shape, input)
    check.mask(output_mask, 3)
    is_channels_last = channels_last(input)
    x, weight = dense(input, is_channels_last), weight.contiguous()
    grad, out = dense(grad_output, is_channels_last), dense(output, is_channels_last)
    if activation not in FROM_OUTPUT or (activation != "identity" and out is None):
        grad = run_depthwise(x, weight, vector(bias), conv, is_channels_last, "identity", activation, grad)
        activation, out = "identity", None
    return run_depthwise_backward(grad, out, x, weight, conv, is_channels_last, "identity", activation, *output_mask)
