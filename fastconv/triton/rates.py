"""What kinds of GPU do in a second: what predictions divide counts by."""

from dataclasses import dataclass

LAUNCH_SECONDS = 2e-6


@dataclass(frozen=True)
class Rates:
    """What a device does in a second, and where the figures are from."""

    copy: float  # bytes
    products: dict[str, float]  # FLOP of matrix products, by operands: "half", "tf32", or "ieee", float32 in full precision
    issue: float  # lane-instructions
    source: str


H200 = "copy and bfloat16 product as measured on an H200, TF32 at half of that, full precision at a multiply-add for each lane that issues"
# Issue: processors x lanes that issue in a clock x clock.
RATES = {
    "sm_80": Rates(
        1.8e12,
        {"half": 312e12, "tf32": 156e12, "ieee": 19.5e12},
        108 * 128 * 1.41e9,
        "data sheet of an A100 80 GB, nine tenths of its memory bandwidth",
    ),
    "sm_90": Rates(4.3e12, {"half": 790e12, "tf32": 395e12, "ieee": 59e12}, 29.6e12, H200),
    "sm_100": Rates(
        7.2e12,
        {"half": 2250e12, "tf32": 1125e12, "ieee": 70e12},
        148 * 128 * 1.85e9,
        "data sheet of a B200, nine tenths of its memory bandwidth",
    ),
    "gfx942": Rates(
        4.8e12,
        {"half": 1307e12, "tf32": 653e12, "ieee": 163e12},
        304 * 64 * 2.1e9,
        "data sheet of an MI300X, nine tenths of its memory bandwidth",
    ),
}
