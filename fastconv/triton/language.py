"""Device functions that several kernels share: activations, tile coordinates, matrix products.

Conventions of every kernel in this package:
  * A tile is [pixels, channels]; the strides decide which of the two is contiguous, so one source serves both memory formats.
  * Arithmetic is float32: 16-bit values are converted as they are loaded, before any comparison (the interpreter compares raw bits).
  * Loop bounds are constexpr: the interpreter of triton 3.6 refuses a range over a runtime argument.
  * An address is a scalar row pointer plus an offset tile that does not change from row to row, so that the loop over rows only adds.
  * Offsets inside one image are 32-bit, or 64-bit with WIDE; the offset of the image itself is always 64-bit.
"""

import triton
import triton.language as tl


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _gelu_tanh_sigmoid(x):
    # 0.5 * (1 + tanh(u)) is sigmoid(2u); there is no tanh that both the interpreter and every target have.
    return _sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """activation(x), float32. NaN goes through every activation, as in torch."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "relu6":
        x = tl.where(x < 0, 0.0, tl.where(x > 6, 6.0, x))
    elif ACTIVATION == "silu":
        x = x * _sigmoid(x)
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(0.7071067811865476 * x))
    elif ACTIVATION == "gelu_tanh":
        x = x * _gelu_tanh_sigmoid(x)
    elif ACTIVATION == "hardswish":
        gate = x + 3.0
        gate = tl.where(gate < 0, 0.0, tl.where(gate > 6, 6.0, gate))
        x = x * gate * (1.0 / 6.0)
    else:
        tl.static_assert(ACTIVATION == "identity")
    return x


@triton.jit
def activation_backward(grad, x, ACTIVATION: tl.constexpr):
    """grad * activation'(x), float32. For relu and relu6, x may be the activation's output as well as its input."""
    if ACTIVATION == "relu":
        grad = tl.where(x > 0, grad, 0.0)
    elif ACTIVATION == "relu6":
        grad = tl.where((x > 0) & (x < 6), grad, 0.0)
    elif ACTIVATION == "silu":
        s = _sigmoid(x)
        grad = grad * (s * (1.0 + x * (1.0 - s)))
    elif ACTIVATION == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(0.7071067811865476 * x))
        grad = grad * (cdf + x * 0.3989422804014327 * tl.exp(-0.5 * x * x))
    elif ACTIVATION == "gelu_tanh":
        s = _gelu_tanh_sigmoid(x)
        slope = 1.5957691216057308 * (1.0 + 0.134145 * x * x)
        grad = grad * (s + x * slope * s * (1.0 - s))
    elif ACTIVATION == "hardswish":
        slope = tl.where(x <= -3, 0.0, tl.where(x < 3, x * (1.0 / 3.0) + 0.5, 1.0))
        grad = grad * slope
    else:
        tl.static_assert(ACTIVATION == "identity")
    return grad


@triton.jit
def matmul(a, b, acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """acc + a @ b. UPCAST is for the interpreter, whose 16-bit products are wrong in some releases."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def strides(C, H, W, CHANNELS_LAST: tl.constexpr):
    """Element strides (channel, row, column) of a dense map."""
    if CHANNELS_LAST:
        return 1, W * C, C
    else:
        return H * W, W, 1


@triton.jit
def block(index, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """Positions of block `index` of SIZE, 64-bit where offsets are."""
    positions = index * SIZE + tl.arange(0, SIZE)
    if WIDE:
        positions = positions.to(tl.int64)
    return positions


@triton.jit
def channels_inside(channels, C: tl.constexpr):
    """Mask of the channels below C, known to be true where whole blocks make up C: a predicate less an access."""
    if tl.constexpr(C) % channels.shape[0] == 0:
        return tl.full((channels.shape[0],), 1, tl.int1)
    else:
        return channels < C


@triton.jit
def image(ptr, n, C, H, W):
    """Where image n of a dense (N, C, H, W) map starts."""
    return ptr + n.to(tl.int64) * C * H * W


@triton.jit
def strip_coordinates(
    pid, lane, H, W, step_y, step_x, classes_y, class_width, row_strips, column_blocks, ROWS: tl.constexpr, BW: tl.constexpr,
    POLYPHASE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """What strip `pid` of maps of H x W positions covers: (image, first row, the column of each lane).

    Rows y, y + step_y, y + 2*step_y ... (ROWS of them) belong to one residue class, and columns are sorted by residue class modulo step_x
    when POLYPHASE: so a strip has the halo and the reuse of dilation 1. Lanes count columns, 0 .. BW. A lane beyond the map gets column W,
    rows may pass H.
    """
    column_block = pid % column_blocks
    pid = pid // column_blocks
    row_strip = pid % row_strips
    pid = pid // row_strips
    class_y = pid % classes_y
    n = pid // classes_y
    row = class_y + step_y * ROWS * row_strip
    columns = column_block * BW + lane
    if POLYPHASE:
        class_x = columns // class_width
        columns = tl.where(class_x < step_x, class_x + step_x * (columns % class_width), W)
    if WIDE:
        row = row.to(tl.int64)
        columns = columns.to(tl.int64)
    return n, row, columns


@triton.jit
def strip_of_program(
    H, W, step_y, step_x, classes_y, class_width, row_strips, column_blocks, channel_blocks, ROWS: tl.constexpr, BW: tl.constexpr,
    POLYPHASE: tl.constexpr, BC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """What this program covers where a program is one strip of BC channels: (channels, image, first row, columns). Channels go fastest:
    programs that follow one another read the same pixels."""
    pid = tl.program_id(0)
    channels = block(pid % channel_blocks, BC, WIDE)
    n, row, columns = strip_coordinates(
        pid // channel_blocks, tl.arange(0, BW), H, W, step_y, step_x, classes_y, class_width, row_strips, column_blocks, ROWS, BW,
        POLYPHASE, WIDE,
    )  # fmt: skip
    return channels, n, row, columns


@triton.jit
def tile_pixels(
    pid, H, W, step_y, step_x, classes_y, class_width, row_strips, column_blocks, ROWS: tl.constexpr, BW: tl.constexpr,
    POLYPHASE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Strip `pid` as an operand of a product: (image, first row, columns [BW]), then of its ROWS*BW pixels, rows outermost, (rows, columns,
    mask of those on the map)."""
    n, row, columns = strip_coordinates(
        pid, tl.arange(0, BW), H, W, step_y, step_x, classes_y, class_width, row_strips, column_blocks, ROWS, BW, POLYPHASE, WIDE
    )
    # Computed again rather than spread from `columns`, which would move values between threads.
    pixel = tl.arange(0, ROWS * BW)
    _, _, pixel_columns = strip_coordinates(
        pid, pixel % BW, H, W, step_y, step_x, classes_y, class_width, row_strips, column_blocks, ROWS, BW, POLYPHASE, WIDE
    )
    pixel_row = row + step_y * (pixel // BW)
    return n, row, columns, pixel_row, pixel_columns, (pixel_row < H) & (pixel_columns < W)


@triton.jit
def inside(row, columns, H, W):
    """Mask of the columns, all false when the row is outside: a scalar cannot be combined with a block under every interpreter."""
    rows = row + tl.zeros_like(columns)
    return (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W)


@triton.jit
def load_shifted(x_image, offsets, y, left, shift, y_stride, x_stride, channel_mask, H, W, other):
    """Row y of an image, float32, `shift` columns to the right of `left`, where `offsets` point; `other` outside the map."""
    mask = inside(y, left + shift, H, W)[:, None] & channel_mask[None, :]
    return tl.load(x_image + (y * y_stride + shift * x_stride) + offsets, mask=mask, other=other).to(tl.float32)
