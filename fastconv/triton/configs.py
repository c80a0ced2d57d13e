"""Explicit tile tables, by device family. No autotuning at run time: it needs a driver even where there is none, and a table can be read.

A `Tile` of a strip kernel holds `elements` = columns x channels; how they divide follows the map: as many columns as one residue class has, up
to the table's `columns`, the rest channels. Under the interpreter tiles are small, so that small maps still have several of everything.
"""

import math
from dataclasses import dataclass

import torch

from .launch import INTERPRETED, Conv, Pool, ceil_div, family_of, power_of_two


@dataclass(frozen=True)
class Strip:
    """A row of the tables of strip kernels."""

    columns: int
    elements: int
    warps: int
    maxnreg: int | None = None
    hoist: bool = True  # weights of all taps in registers


@dataclass(frozen=True)
class Tile:
    bw: int
    bc: int
    rows: int
    hoist: bool
    options: dict


# One program holds most of a small map: the interpreter's time goes by the number of operations, not by their size.
INTERPRETER = Strip(16, 512, 4)

# Longest first; a launch takes the longest strip that still fills the machine this many times.
STRIP_ROWS = (64, 32, 16, 8, 4)
WAVES = 4


def _strip_tile(row: Strip, images: int, height: int, width: int, channels: int, step_y: int, step_x: int, processors: int) -> Tile:
    """The tile of one row of a table for a map of height x width positions, cut into residue classes step_y, step_x apart."""
    class_width, class_height = ceil_div(width, step_x), ceil_div(height, step_y)
    bw = min(row.columns, power_of_two(class_width))
    bc = min(max(row.elements // bw, 1), power_of_two(channels))
    options = {"num_warps": row.warps, "maxnreg": row.maxnreg}
    if INTERPRETED:
        return Tile(bw, bc, 4, row.hoist, options)
    programs = images * min(step_y, height) * min(step_x, width) * ceil_div(class_width, bw) * ceil_div(channels, bc)
    for rows in STRIP_ROWS:
        if rows <= power_of_two(class_height) and programs * ceil_div(class_height, rows) >= WAVES * processors:
            break
    return Tile(bw, bc, min(rows, power_of_two(class_height)), row.hoist, options)


def depthwise_forward(x: torch.Tensor, conv: Conv, is_channels_last: bool, step_y: int, step_x: int, ring: bool) -> Tile:
    family = family_of(x.device)
    if INTERPRETED:
        row = INTERPRETER
    elif not ring:
        row = Strip(16, 1024, 4)
    elif conv.taps <= 9:
        row = Strip(16, 1024, 4, 128) if is_channels_last else Strip(256, 1024, 4, 128)
    elif conv.taps <= 25:
        row = Strip(16, 512, 4) if is_channels_last else Strip(256, 512, 4)
    else:
        row = Strip(16, 256, 4) if is_channels_last else Strip(256, 256, 4)
    return _strip_tile(row, conv.n, conv.oh, conv.ow, conv.out_channels, step_y, step_x, family.processors)


def depthwise_backward(x: torch.Tensor, conv: Conv, is_channels_last: bool, height: int, width: int, step_y: int, step_x: int) -> Tile:
    if INTERPRETED:
        row = INTERPRETER
    elif conv.taps <= 9:
        row = Strip(16, 512, 4) if is_channels_last else Strip(128, 512, 4)
    else:
        row = Strip(16, 256, 4) if is_channels_last else Strip(128, 256, 4)
    return _strip_tile(row, conv.n, height, width, conv.c, step_y, step_x, family_of(x.device).processors)


def depthwise_gather(x, conv: Conv, is_channels_last: bool, height: int, width: int, channels: int, step_y: int, step_x: int) -> Tile:
    row = INTERPRETER if INTERPRETED else Strip(32, 1024, 4) if is_channels_last else Strip(256, 1024, 4)
    return _strip_tile(row, conv.n, height, width, channels, step_y, step_x, family_of(x.device).processors)


def strips_per_program(x: torch.Tensor, strips: int, others: int) -> int:
    """A power of two: enough strips that partial sums stay few, not so many that processors go without."""
    if INTERPRETED:
        return 2
    return max(1, power_of_two(strips * others // (WAVES * family_of(x.device).processors) + 1) // 2)


def ordered_sum(channels: int) -> tuple[int, int, int]:
    """(slots, channels, warps) of a block of the second stage."""
    return (16, 16, 4) if INTERPRETED else (32, min(32, power_of_two(channels)), 4)


def pool(x: torch.Tensor, pool: Pool, is_channels_last: bool, height: int, width: int, step_y: int, step_x: int) -> Tile:
    row = INTERPRETER if INTERPRETED else Strip(16, 1024, 4) if is_channels_last else Strip(256, 1024, 4)
    return _strip_tile(row, pool.n, height, width, pool.c, step_y, step_x, family_of(x.device).processors)


def permute(x: torch.Tensor, images: int, channels: int, is_channels_last: bool, height: int, width: int, step_y: int, step_x: int) -> Tile:
    row = INTERPRETER if INTERPRETED else Strip(16, 1024, 4) if is_channels_last else Strip(256, 1024, 4)
    return _strip_tile(row, images, height, width, channels, step_y, step_x, family_of(x.device).processors)
