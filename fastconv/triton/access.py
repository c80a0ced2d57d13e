"""How contiguous maps of 16-bit pixels are taken: as they come, or through one copy into channels_last and back.

A row that a tap shifts starts at any address, so its loads are 16 bits wide and cost instructions; copies cost memory traffic. Both are
predicted for each layer, from instructions that were counted in the compiled kernels (instructions.json, written by
`python -m bench.triton_static --write`) and the rates of the device, and the cheaper one is taken. A third way, loads of aligned rows that
are shifted on the chip (`tl.gather`), was compiled and is not taken: docs/triton-kernels.md has the counts.
"""

import json
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .launch import INTERPRETED, Conv, Family, family_of, recorder
from .rates import LAUNCH_SECONDS, RATES

logger = logging.getLogger("fastconv.triton")

COUNTS = Path(__file__).with_name("instructions.json")


@dataclass(frozen=True)
class Access:
    """One way to take the maps of a call: "strided", as they come, or "copied", through channels_last."""

    name: str
    bytes: int
    seconds: float


@lru_cache
def counted() -> dict[str, float]:
    """Instructions an element of compiled kernels, by `key`."""
    return json.loads(COUNTS.read_text())


def key(family: Family, kernel: str, taps: int, layout: str) -> str:
    return f"{family.key} {kernel} {taps} {layout}"


def copies(map_bytes: int, maps: int, family: Family) -> tuple[int, float]:
    """(bytes, seconds) of copying maps that take `map_bytes` together into another format."""
    return 2 * map_bytes, 2 * map_bytes / RATES[family.key].copy + maps * LAUNCH_SECONDS


@lru_cache(maxsize=4096)
def weigh(family: Family, kernel: str, taps: int, elements: int, map_bytes: int, maps: int) -> tuple[Access, Access] | None:
    """Both ways for a layer whose loop runs over `elements` and whose 16-bit maps, `maps` of them, take `map_bytes`; None where nothing was
    counted. Logs the choice, once."""
    rates, seconds = RATES[family.key], {}
    for layout in ("contiguous", "channels_last"):
        instructions = counted().get(key(family, kernel, taps, layout))
        if instructions is None:
            return None
        seconds[layout] = max(map_bytes / rates.copy, elements * instructions / rates.issue) + LAUNCH_SECONDS
    moved, time = copies(map_bytes, maps, family)
    strided = Access("strided", map_bytes, seconds["contiguous"])
    copied = Access("copied", map_bytes + moved, seconds["channels_last"] + time)
    told = ", ".join(f"{way.name} {way.bytes / 1e6:.2f} MB {1e6 * way.seconds:.1f} microseconds" for way in (strided, copied))
    taken = min(strided, copied, key=lambda way: way.seconds).name
    logger.info("contiguous maps of %s, %d taps, on %s: %s; %s taken", kernel, taps, family.key, told, taken)
    return strided, copied


def through_copies(x, conv: Conv, kernel: str, blocks: int = 1, out_channels: int | None = None, maps: int = 2) -> bool:
    """Whether a call on contiguous `x` should run in channels_last: `blocks` programs repeat the depthwise part of each pixel, and `maps`
    counts x and maps of the result's size. A recorder is told, and gets the launches without copies: a plan shows each way by itself."""
    if INTERPRETED or x.element_size() != 2:
        return False
    out_channels = conv.out_channels if out_channels is None else out_channels
    pixels = conv.n * conv.oh * conv.ow
    map_bytes = 2 * (x.numel() + (maps - 1) * pixels * out_channels)
    ways = weigh(family_of(x.device), kernel, conv.taps, pixels * conv.out_channels * blocks, map_bytes, maps)
    copied = ways is not None and ways[1].seconds < ways[0].seconds
    if recorder() is not None:
        recorder().through_copies = copied
        return False
    return copied
