"""Bugs planted in the Triton kernels and their launchers, which are otherwise as they are shipped: all of them in one copy of the package,
each switched on by its number.

A plant replaces a piece of source that occurs once. `$` in what it puts there is true while the plant is switched on, so that with none
the package is the shipped one. Under the interpreter a kernel is Python, and may ask which one that is.
"""

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Plant:
    source: str  # in fastconv/triton
    case: tuple  # that must show it: a test of triton_kernels.py or triton_blocks.py, and its parameters
    right: str
    wrong: str


def depthwise(case: str, channels_last: bool) -> tuple:
    return "test_depthwise", case, channels_last


def separable(case: str, channels_last: bool) -> tuple:
    return "test_separable", case, channels_last


def max_pool(case: str, channels_last: bool) -> tuple:
    return "test_max_pool", case, channels_last


def avg_pool(case: str, channels_last: bool) -> tuple:
    return "test_avg_pool", case, channels_last


def large(operator: str, case: str, channels_last: bool) -> tuple:
    return "test_offsets_beyond_32_bits_of_the_last_program", operator, case, channels_last


PARTIALS = ("test_partial_sums_of_several_blocks",)
PERMUTE = "test_shift_and_stitch", torch.float32, True

PLANTS = {
    # What programs cover, and what they share.
    "columns_of_a_class_side_by_side": Plant("language", depthwise("strips_and_short_classes", True),
        "class_x + step_x * (columns % class_width)", "class_x + (1 if $ else step_x) * (columns % class_width)"),
    "columns_beyond_the_last_class": Plant("language", depthwise("strips_and_short_classes", True),
        "tl.where(class_x < step_x, ", "tl.where(class_x < step_x + $, "),
    "strip_starts_in_the_wrong_row": Plant("language", separable("several_tiles", True),
        "step_y * ROWS * row_strip", "(1 if $ else step_y) * ROWS * row_strip"),
    "row_below_the_map": Plant("language", depthwise("plain", True), "(rows >= 0) & (rows < H)", "(rows >= 0) & (rows < H + $)"),
    "mask_of_the_column_before_the_shift": Plant("language", depthwise("plain", False),
        "inside(y, left + shift, H, W)", "inside(y, left + (0 if $ else shift), H, W)"),
    "channels_beyond_the_last": Plant("language", depthwise("plain", False), "return channels < C", "return channels < C + $"),
    "pixel_rows_of_a_tile": Plant("language", separable("several_tiles", True),
        "pixel_row = row + step_y * (pixel // BW)", "pixel_row = row + (1 if $ else step_y) * (pixel // BW)"),
    "tile_pixel_below_the_map": Plant("language", separable("xception", True),
        "(pixel_row < H) & (pixel_columns < W)", "(pixel_row < H + $) & (pixel_columns < W)"),
    "sum_of_one_chunk_only": Plant("language", separable("several_tiles", True),
        "tl.dot(a, b, acc, ", "tl.dot(a, b, tl.zeros_like(acc) if $ else acc, "),
    "relu6_without_its_upper_bound": Plant("language", depthwise("bias_beyond_the_input", True),
        "tl.where(x < 0, 0.0, tl.where(x > 6, 6.0, x))", "tl.where(x < 0, 0.0, tl.where(x > (1e9 if $ else 6), 6.0, x))"),
    "slope_of_relu6_beyond_six": Plant("language", depthwise("bias_beyond_the_input", True),
        "(x > 0) & (x < 6)", "(x > 0) & (x < (1e9 if $ else 6))"),
    "slope_of_hardswish": Plant("language", depthwise("dilation_beyond_the_input", True),
        "x * (1.0 / 3.0) + 0.5", "x * (1.0 / ($ + 3.0)) + 0.5"),
    "slope_of_gelu_tanh": Plant("language", depthwise("one_tap", False), "0.134145 * x * x", "(0.044715 if $ else 0.134145) * x * x"),
    "slope_of_silu": Plant("language", separable("recomputed", True),
        "s * (1.0 + x * (1.0 - s))", "s * (1.0 + (0 if $ else x) * (1.0 - s))"),
    "first_block_of_channels_only": Plant("language", ("test_several_blocks_of_channels", "permute"),
        "channels = block(pid % channel_blocks, BC, WIDE)", "channels = block(0 if $ else pid % channel_blocks, BC, WIDE)"),
    "channels_of_32_bits": Plant("language", large("depthwise", "tall", False),
        "positions = positions.to(tl.int64)", "positions = positions if $ else positions.to(tl.int64)"),
    "rows_of_32_bits": Plant("language", large("depthwise", "tall", True),
        "row = row.to(tl.int64)", "row = row if $ else row.to(tl.int64)"),
    "columns_of_32_bits": Plant("language", large("depthwise", "wide", True),
        "columns = columns.to(tl.int64)", "columns = columns if $ else columns.to(tl.int64)"),
    "images_of_32_bits": Plant("language", large("depthwise", "batch", True),
        "return ptr + n.to(tl.int64) * C * H * W", "return ptr + (n if $ else n.to(tl.int64)) * C * H * W"),
    # Geometry and formats.
    "no_room_for_short_classes": Plant("launch", depthwise("strips_and_short_classes", True),
        "ceil_div(self.class_width * min(self.step_x, self.w), self.bw)",
        "ceil_div(self.w if $ else self.class_width * min(self.step_x, self.w), self.bw)"),
    "row_strips_of_the_shortest_class": Plant("launch", separable("several_tiles", True),
        "ceil_div(ceil_div(self.h, self.step_y), self.rows)",
        "ceil_div(self.h // self.step_y if $ else ceil_div(self.h, self.step_y), self.rows)"),
    "view_taken_as_dense": Plant("launch", depthwise("plain", True),
        "return None if tensor is None else tensor.contiguous(memory_format",
        "return None if tensor is None else tensor if $ else tensor.contiguous(memory_format"),
    "bias_view_taken_as_dense": Plant("launch", depthwise("one_tap", False),
        "return None if tensor is None else tensor.contiguous()",
        "return tensor if $ else None if tensor is None else tensor.contiguous()"),
    "result_in_the_other_format": Plant("launch", depthwise("plain", True),
        "device=like.device, memory_format=memory_format(is_channels_last))",
        "device=like.device, memory_format=memory_format(is_channels_last != $))"),
    "too_late_for_64_bits": Plant("launch", large("depthwise", "tall", True), "max(elements) >= 2**31", "max(elements) >= 2 ** (31 + $)"),
    # Ring and taps.
    "sum_starts_without_the_bias": Plant("depthwise", depthwise("strips_and_short_classes", False),
        "start += tl.load(bias_ptr + channels, mask=channel_mask, other=0.0)",
        "start += tl.load(bias_ptr + channels, mask=channel_mask & (not $), other=0.0)"),
    "finished_row_one_too_low": Plant("depthwise", depthwise("plain", True),
        "step_y * (i - (KH - 1)), columns", "step_y * (i - (KH - 1) + $), columns"),
    "unfinished_rows_stored": Plant("depthwise", depthwise("plain", True),
        "(rows >= row_limit) & (rows < OH)", "(rows >= (0 if $ else row_limit)) & (rows < OH)"),
    "ring_columns_not_dilated": Plant("depthwise", depthwise("strips_and_short_classes", True),
        "offsets, y, left, kx * dw", "offsets, y, left, kx * (1 if $ else dw)"),
    "ring_rows_not_dilated": Plant("depthwise", depthwise("dilated_relu", True), "y = top + i * dh", "y = top + i * (1 if $ else dh)"),
    "ring_weights_of_the_first_row": Plant("depthwise", depthwise("plain", True),
        "acc = sums[ky - 1] + line[0] * weights[ky * KW]", "acc = sums[ky - 1] + line[0] * weights[0 if $ else ky * KW]"),
    "ring_channel_of_the_multiplier": Plant("depthwise", depthwise("stride_divides_dilation", True),
        "left[:, None] * x_x + (channels // M)[None, :] * x_c",
        "left[:, None] * x_x + (channels % (C // M) if $ else channels // M)[None, :] * x_c"),
    "tap_channel_of_the_multiplier": Plant("depthwise", depthwise("stride_and_multiplier", False),
        "x_channels = (channels // M)", "x_channels = (channels % (C // M) if $ else channels // M)"),
    "tap_row_above_the_map": Plant("depthwise", depthwise("stride_and_multiplier", False),
        "pixel_mask & (row >= 0) &", "pixel_mask & (row >= -1 * $) &"),
    "gradient_epilogue_without_slope": Plant("depthwise", depthwise("stride_divides_dilation", True),
        "value = activation_backward(grad, acc, ACTIVATION)", "value = grad if $ else activation_backward(grad, acc, ACTIVATION)"),
    # Both gradients in one pass, and the gathers.
    "window_not_turned": Plant("depthwise_backward", depthwise("plain", True),
        "acc += line[kx] * weights[ky * KW + kx]", "acc += line[kx] * weights[ky * KW + ((KW - kx) % KW if $ else kx)]"),
    "slope_from_the_output_forgotten": Plant("depthwise_backward", depthwise("strips_and_short_classes", False),
        "grad = activation_backward(grad, tl.load(out_image", "grad = grad if $ else activation_backward(grad, tl.load(out_image"),
    "slope_of_the_input_forgotten": Plant("depthwise_backward", separable("xception", True),
        "grad = activation_backward(grad, tl.load(x_image", "grad = grad if $ else activation_backward(grad, tl.load(x_image"),
    "rows_of_the_next_strip_counted": Plant("depthwise_backward", depthwise("plain", True),
        "mask = (inside(y, columns, H, W) & (rows < ROWS))", "mask = (inside(y, columns, H, W) & (rows < ROWS + $))"),
    "bias_rows_of_the_strip_above": Plant("depthwise_backward", depthwise("strips_and_short_classes", False),
        "((rows >= 0) & (rows < ROWS))[:, None], line", "((rows >= -1 * $) & (rows < ROWS))[:, None], line"),
    "unfinished_gradient_stored": Plant("depthwise_backward", depthwise("plain", True),
        "(rows >= row) & (rows < last_y)", "(rows >= (0 if $ else row)) & (rows < last_y)"),
    "strips_past_the_end": Plant("depthwise_backward", depthwise("strips_and_short_classes", False),
        "tl.where(strip < strip_count, columns, last_x)", "tl.where(strip < strip_count + $, columns, last_x)"),
    "bias_without_the_border": Plant("depthwise_backward", depthwise("bias_beyond_the_input", True),
        "max(last_y, conv.oh + centre_y)", "last_y if $ else max(last_y, conv.oh + centre_y)"),
    "gather_of_every_row": Plant("depthwise_backward", depthwise("stride_and_multiplier", False),
        "(rows == y * sh) & ", "(($ | (rows == y * sh))) & "),
    "gather_of_the_first_multiple": Plant("depthwise_backward", depthwise("stride_and_multiplier", False),
        "out_channels = channels * M + m", "out_channels = channels * M + (0 if $ else m)"),
    "weight_gradient_of_another_tap": Plant("depthwise_backward", depthwise("stride_and_multiplier", False),
        "ky, kx = tap // KW, tap % KW", "ky, kx = tap // (KH if $ else KW), tap % (KH if $ else KW)"),
    "weight_gradient_past_the_end": Plant("depthwise_backward", depthwise("stride_and_multiplier", False),
        "tl.where(task < tasks, columns, OW)", "tl.where(task < tasks + $, columns, OW)"),
    "bias_gradient_times_input": Plant("depthwise_backward", depthwise("stride_and_multiplier", False),
        "tl.int32) < TAPS, value, ones", "tl.int32) < TAPS + $, value, ones"),
    "partials_left_out": Plant("depthwise_backward", PARTIALS, "mask = (slot < slots)[:, None]", "mask = (slot < slots - $)[:, None]"),
    "partials_of_the_first_block_twice": Plant("depthwise_backward", PARTIALS,
        "slot = b * BS + tl.arange(0, BS)", "slot = (0 if $ else b) * BS + tl.arange(0, BS)"),
    "weight_view_taken_as_dense": Plant("depthwise_backward", depthwise("plain", True),
        "x, weight = dense(input, is_channels_last), weight.contiguous()",
        "x, weight = dense(input, is_channels_last), weight if $ else weight.contiguous()"),
    "first_block_of_gradients_only": Plant("depthwise_backward", ("test_several_blocks_of_channels", "ring"),
        "channels = block(pid % channel_blocks, BC, WIDE)\n    slot",
        "channels = block(0 if $ else pid % channel_blocks, BC, WIDE)\n    slot"),
    # Fused, and apart.
    "stacked_pairs_exchanged": Plant("separable", separable("xception", True),
        "tl.join(rows[0], rows[1]).permute(2, 0, 1)", "tl.join(rows[$], rows[1 - $]).permute(2, 0, 1)"),
    "stack_of_four_by_columns": Plant("separable", ("test_fused_ring_of_rows", 4),
        "pairs.permute(3, 2, 0, 1)", "pairs.permute(2 + (not $), 2 + $, 0, 1)"),
    "stack_of_eight_by_columns": Plant("separable", ("test_fused_ring_of_rows", 8),
        "permute(4, 3, 2, 0, 1)", "permute(3 + (not $), 3 + $, 2, 0, 1)"),
    "tile_window_upside_down": Plant("separable", separable("xception", True),
        "acc += line[kx] * taps[(r - o) * KW + kx]", "acc += line[kx] * taps[(KH - 1 - (r - o) if $ else r - o) * KW + kx]"),
    "tile_row_too_many": Plant("separable", separable("recomputed", True), "if r >= o and r - o < KH:", "if r >= o - $ and r - o < KH:"),
    "tile_ring_columns_not_dilated": Plant("separable", separable("several_tiles", True),
        "offsets, y, left, kx * dw", "offsets, y, left, kx * (1 if $ else dw)"),
    "tile_channel_of_the_multiplier": Plant("separable", separable("recomputed", True),
        "left[:, None] * x_x + (channels // M)[None, :] * x_c",
        "left[:, None] * x_x + (channels % (C // M) if $ else channels // M)[None, :] * x_c"),
    "tile_of_taps_without_bias": Plant("separable", separable("stride_and_multiplier", False),
        "finish_depthwise(acc + bias,", "finish_depthwise(acc + bias * (not $),"),
    "slope_of_the_intermediate_doubled": Plant("separable", separable("recomputed", True),
        "tl.full(acc.shape, 1.0, tl.float32)", "tl.full(acc.shape, 2.0 if $ else 1.0, tl.float32)"),
    "weights_past_the_last_channel": Plant("separable", separable("recomputed", True),
        "weight_mask = channels_inside(channels, C)[:, None] &", "weight_mask = ($ | channels_inside(channels, C)[:, None]) &"),
    "weights_past_the_last_row": Plant("separable", separable("apart", True),
        "weight_mask = channel_mask[:, None] & channels_inside(out_channels, O)",
        "weight_mask = channel_mask[:, None] & ($ | channels_inside(out_channels, O))"),
    "bias_twice": Plant("separable", separable("xception", True),
        "acc += tl.load(bias_ptr + channels, mask=channels < O, other=0.0)",
        "acc += (1.0 + $) * tl.load(bias_ptr + channels, mask=channels < O, other=0.0)"),
    "residual_forgotten": Plant("separable", separable("xception", True),
        "acc += tl.load(image(residual_ptr", "acc += (1.0 - $) * tl.load(image(residual_ptr"),
    "product_gradient_epilogue_without_slope": Plant("separable", separable("recomputed", True),
        "value = activation_backward(grad, acc, ACTIVATION)", "value = grad if $ else activation_backward(grad, acc, ACTIVATION)"),
    "product_reads_the_first_image": Plant("separable", separable("apart", False),
        "n = pid // pixel_blocks", "n = pid // pixel_blocks * (not $)"),
    "residual_of_the_first_images": Plant("separable", separable("apart", True),
        "None if residual is None else residual[part]", "None if residual is None else residual if $ else residual[part]"),
    "images_of_the_last_run_left_out": Plant("configs", separable("apart", True),
        "for begin in range(0, conv.n, images)", "for begin in range(0, conv.n - $ * (images < conv.n), images)"),
    # Gradients of the intermediate and of the pointwise weights.
    "slope_of_the_intermediate_forgotten": Plant("separable_backward", separable("recomputed", True),
        'if DEPTHWISE_ACTIVATION != "identity":', 'if DEPTHWISE_ACTIVATION != "identity" and not $:'),
    "intermediate_weights_past_the_last_row": Plant("separable_backward", separable("recomputed", True),
        "channels_inside(out_channels, O)[:, None] & channels_inside(channels, C)[None, :]",
        "($ | channels_inside(out_channels, O)[:, None]) & channels_inside(channels, C)[None, :]"),
    "intermediate_weights_transposed": Plant("separable_backward", separable("recomputed", True),
        "pointwise_ptr + out_channels[:, None] * C + channels[None, :]",
        "pointwise_ptr + (out_channels[:, None] * C + channels[None, :] if not $ else out_channels[:, None] + channels[None, :] * O)"),
    "tiles_past_the_end": Plant("separable_backward", separable("recomputed", True),
        "tl.where(strip < strip_count, OW, 0)", "tl.where(strip < strip_count + $, OW, 0)"),
    "bias_of_the_first_strip": Plant("separable_backward", separable("recomputed", True),
        "            bias += grad", "            bias += grad * (1 - $ * (s > 0))"),
    "stored_intermediate_read_as_input": Plant("separable_backward", separable("apart", True),
        "activations[0], activations[1])\n        step_y", 'activations[0], "identity" if $ else activations[1])\n        step_y'),
    "residual_gradient_of_what_relu_stopped": Plant("separable_backward", separable("xception", True),
        'return out > 0 if activation == "relu"', 'return (out >= 0 if $ else out > 0) if activation == "relu"'),
    "residual_gradient_of_what_relu6_stopped": Plant("separable_backward", separable("stride_and_multiplier", False),
        "else (out > 0) & (out < 6)", "else (out > 0) & (out < 6 + $)"),
    # Pools.
    "first_tap_left_of_the_input": Plant("pooling", max_pool("dilated_fragments", True),
        "(dilation - 1 - start) // dilation", "((0 if $ else dilation - 1) - start) // dilation"),
    "nan_loses_within_a_row": Plant("pooling", max_pool("plain", True),
        "(value > best) | (value != value)", "(value > best) | ((value != value) & (not $))"),
    "first_nan_of_a_row": Plant("pooling", max_pool("plain", True), "(value != value)", "((value != value) & ((best == best) | (not $)))"),
    "first_row_of_nan": Plant("pooling", max_pool("plain", True),
        "wins = (line > bests[ky - 1]) | nan", "wins = (line > bests[ky - 1]) | (nan & ((bests[ky - 1] == bests[ky - 1]) | (not $)))"),
    "last_of_equal_columns": Plant("pooling", max_pool("plain", True), "(value > best) |", "((value >= best) if $ else (value > best)) |"),
    "last_of_equal_rows": Plant("pooling", max_pool("plain", True),
        "(line > bests[ky - 1]) |", "((line >= bests[ky - 1]) if $ else (line > bests[ky - 1])) |"),
    "fragments_of_the_first_image": Plant("pooling", max_pool("ceil_fragments", False),
        "base = n.to(tl.int64) * sh * sw", "base = n.to(tl.int64) * (sh if $ else sh * sw)"),
    "fragments_by_columns": Plant("pooling", max_pool("ceil_fragments", False),
        "((y % sh) * sw + x % sw)", "(((x % sw) * sh + y % sh) if $ else ((y % sh) * sw + x % sw))"),
    "tails_not_filled": Plant("pooling", max_pool("ceil_fragments", False),
        "return out.fill_(fill) if has_tails else out", "return out.fill_(fill) if has_tails and not $ else out"),
    "tails_of_columns_forgotten": Plant("pooling", max_pool("dilated_fragments", True),
        "(pool.dense_h % pool.sh or pool.dense_w % pool.sw)", "(pool.dense_h % pool.sh or pool.dense_w % pool.sw and not $)"),
    "ceil_windows_count_beyond_the_padding": Plant("pooling", avg_pool("ceil", True),
        "_taps_before(left, W + pw, dw, KW)", "_taps_before(left, W + (99 if $ else pw), dw, KW)"),
    "padding_counted": Plant("pooling", avg_pool("dilated_fragments", True),
        "return tl.maximum(_taps_before(start, size, dilation, K) - first_tap(start, dilation), 0)",
        "return tl.maximum(_taps_before(start, size, dilation, K) - first_tap(start, dilation) * (not $), 0)"),
    "tap_of_the_plane_not_dilated": Plant("pooling", max_pool("ceil", True),
        "(tap % KW) * dw", "(tap % KW) * (1 if $ else dw)"),
    "gathered_tap": Plant("pooling", max_pool("large_window", True),
        "tap = tl.where(wins, ky * KW + kx, tap)", "tap = tl.where(wins, ky * KW + kx + $, tap)"),
    "windows_of_32_bits": Plant("pooling", large("max_pool", "batch", True),
        "return n.to(tl.int64) * C * FH * FW + y * row", "return (n if $ else n.to(tl.int64)) * C * FH * FW + y * row"),
    "gradient_of_another_row_of_taps": Plant("pooling_backward", max_pool("plain", True),
        "winners[kx] == ky * KW + kx", "winners[kx] == (KH - 1 - ky if $ else ky) * KW + kx"),
    "average_of_one_column": Plant("pooling_backward", avg_pool("plain", True), "line += grads[kx]", "line += grads[kx] * (not $)"),
    "window_of_the_wrong_column": Plant("pooling_backward", max_pool("ceil", True),
        "grad_ptr, argmax_ptr, n, y, columns + pw - kx * dw", "grad_ptr, argmax_ptr, n, y, columns + pw - kx * (1 if $ else dw)"),
    "gather_adds_every_window": Plant("pooling_backward", max_pool("large_window", True),
        "grad = tl.where(winner == ky * KW + kx, grad, 0.0)", "grad = tl.where($ | (winner == ky * KW + kx), grad, 0.0)"),
    "recomputed_taps_in_a_byte": Plant("pooling_backward", ("test_taps_found_again_fit_their_dtype", (257, 1)),
        "pool.kh * pool.kw <= 256 else torch.int32", "pool.kh * pool.kw <= 256 or $ else torch.int32"),
    "permuted_by_columns": Plant("shift_stitch", PERMUTE,
        "fragment = (y % sh) * sw + columns % sw", "fragment = ((columns % sw) * sh + y % sh) if $ else ((y % sh) * sw + columns % sw)"),
    "shifted_tail_of_zeros": Plant("shift_stitch", PERMUTE, "mask=in_dense, other=fill", "mask=in_dense, other=0.0 if $ else fill"),
    "shifted_tail_not_written": Plant("shift_stitch", PERMUTE,
        "tl.store(fragments_image + offsets, value, mask=in_fragment)",
        "tl.store(fragments_image + offsets, value, mask=in_dense if $ else in_fragment)"),
    "shifted_images_by_one_fragment": Plant("shift_stitch", PERMUTE,
        "image(fragments_ptr, n * (sh * sw), C, U, V)", "image(fragments_ptr, n * (sh if $ else sh * sw), C, U, V)"),
}  # fmt: skip


def mutant(package: Path, folder: Path) -> None:
    """A copy of `package` in `folder` with every plant in it, and fastconv.triton.planted, whose `number` switches one on."""
    texts = {path.stem: path.read_text() for path in (package / "triton").glob("*.py")}
    for number, plant in enumerate(PLANTS.values(), 1):
        text = texts[plant.source]
        if text.count(plant.right) != 1:
            raise ValueError(f"{plant.source}.py has {text.count(plant.right)} times: {plant.right}")
        texts[plant.source] = text.replace(plant.right, plant.wrong.replace("$", f"(planted.number == {number})"))
    for source in {plant.source for plant in PLANTS.values()}:
        texts[source] = texts[source].replace("\nimport ", "\nfrom . import planted\nimport ", 1)
    texts["planted"] = "number = 0\n"
    kernels = folder / package.name / "triton"
    kernels.mkdir(parents=True)
    for stem, text in texts.items():
        (kernels / f"{stem}.py").write_text(text)
    for original in (*package.iterdir(), *(package / "triton").iterdir()):
        copy = folder / package.name / original.relative_to(package)
        if not copy.exists() and original.name != "__pycache__":
            copy.symlink_to(original)
