"""shift and stitch: a map dealt out to its fragments, and back. Both are one permuted copy, and each is the other's backward."""

import triton
import triton.language as tl

from .._meta import fragment_shape
from . import check, configs
from .language import channels_inside, image, inside, strides, strip_of_program
from .launch import Strips, ceil_div, channels_last, dense, empty_map, launch, wide


@triton.jit
def permute(
    dense_ptr, fragments_ptr, fill, H, W, U, V, sh, sw, step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks,
    C: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, POLYPHASE: tl.constexpr, BC: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    SHIFT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # A strip is a piece of one fragment, so its class is the fragment's offset; strips cover whole fragments, tails included.
    channels, n, row, columns = strip_of_program(
        U * sh, V * sw, step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks, ROWS, BW, POLYPHASE, BC, WIDE
    )
    channel_mask = channels_inside(channels, C)
    d_c, d_y, d_x = strides(C, H, W, CHANNELS_LAST)
    f_c, f_y, f_x = strides(C, U, V, CHANNELS_LAST)
    dense_image = image(dense_ptr, n, C, H, W)
    fragments_image = image(fragments_ptr, n * (sh * sw), C, U, V)
    for i in tl.range(0, ROWS, num_stages=1):
        y = row + step_y * i
        fragment = (y % sh) * sw + columns % sw
        offsets = (fragment.to(tl.int64) * C * U * V + (y // sh) * f_y + (columns // sw) * f_x)[:, None] + channels[None, :] * f_c
        in_dense = inside(y, columns, H, W)[:, None] & channel_mask[None, :]
        dense_offsets = y * d_y + columns[:, None] * d_x + channels[None, :] * d_c
        if SHIFT:
            in_fragment = inside(y, columns, U * sh, V * sw)[:, None] & channel_mask[None, :]
            value = tl.load(dense_image + dense_offsets, mask=in_dense, other=fill)
            tl.store(fragments_image + offsets, value, mask=in_fragment)
        else:
            value = tl.load(fragments_image + offsets, mask=in_dense)
            tl.store(dense_image + dense_offsets, value, mask=in_dense)


def _run(dense_map, fragments, fill: float, stride, is_channels_last: bool, is_shift: bool) -> None:
    sh, sw = stride
    _, c, h, w = dense_map.shape
    n, (u, v) = fragments.shape[0] // (sh * sw), fragments.shape[2:]
    if (fragments if is_shift else dense_map).numel() == 0:
        return
    # Contiguous rows keep their neighbours together on the dense side; a pixel of channels_last is a run of its own anyway.
    step_x = sw if is_channels_last else 1
    tile = configs.permute(dense_map, n, c, is_channels_last, u * sh, v * sw, stride, step_x)
    strips = Strips(n, u * sh, v * sw, sh, step_x, tile.rows, tile.bw)
    channel_blocks = ceil_div(c, tile.bc)
    launch(
        permute,
        strips.count * channel_blocks,
        dense_map.device,
        {
            "dense_ptr": dense_map, "fragments_ptr": fragments, "fill": fill, "H": h, "W": w, "U": u, "V": v, "sh": sh, "sw": sw,
            **strips.arguments, "channel_blocks": channel_blocks, "C": c, "BC": tile.bc, "CHANNELS_LAST": is_channels_last,
            "SHIFT": is_shift,
            "WIDE": wide(c * h * w, c * u * v),
        },
        **tile.options,
    )  # fmt: skip


def shift(input, stride, fill):
    check.shift(input, stride)
    is_channels_last = channels_last(input)
    out = empty_map(input, fragment_shape(input.shape, stride), is_channels_last)
    _run(dense(input, is_channels_last), out, fill, stride, is_channels_last, True)
    return out


def stitch(input, stride, size):
    check.stitch(input, stride, size)
    is_channels_last = channels_last(input)
    out = empty_map(input, (input.shape[0] // (stride[0] * stride[1]), input.shape[1], *size), is_channels_last)
    _run(out, dense(input, is_channels_last), 0.0, stride, is_channels_last, False)
    return out
