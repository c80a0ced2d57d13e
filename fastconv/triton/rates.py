"""What kinds of GPU do in a second: what predictions divide counts by."""

from dataclasses import dataclass

LAUNCH_SECONDS = 2e-6


@dataclass(frozen=True)
class Rates:
    """What a device does in a second, and where the figures are from."""

    copy: float  # bytes
    tensor: dict[int, float]  # FLOP, by bytes of an element; for 4 in TF32
    issue: float  # lane-instructions
    source: str


# Issue: processors x lanes that issue in a clock x clock.
RATES = {
    "sm_80": Rates(1.8e12, {2: 312e12, 4: 156e12}, 108 * 128 * 1.41e9, "data sheet of an A100 80 GB, nine tenths of its memory bandwidth"),
    "sm_90": Rates(4.3e12, {2: 790e12, 4: 395e12}, 29.6e12, "copy and bfloat16 product as measured on an H200, TF32 at half of that"),
    "sm_100": Rates(7.2e12, {2: 2250e12, 4: 1125e12}, 148 * 128 * 1.85e9, "data sheet of a B200, nine tenths of its memory bandwidth"),
    "gfx942": Rates(4.8e12, {2: 1307e12, 4: 653e12}, 304 * 64 * 2.1e9, "data sheet of an MI300X, nine tenths of its memory bandwidth"),
}
