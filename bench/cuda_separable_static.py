"""What can be known of the fused CUDA forward kernel without a GPU: python -m bench.cuda_separable_static > table.md

Needs nvcc and a C++ compiler. Registers and instructions come from the compiled code; tiles, traffic and times from the planner's own C++ for an H200, at
the rates of csrc/common/rates.h. Every time is a prediction; an element is one pixel of one input channel.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from fastconv.tuning import FUSED_TILES

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "cuda_static"
sys.path.insert(0, str(ROOT / "tests"))

# What a second brings of each unit, as in csrc/common/rates.h.
DRAM, L2, ISSUE, TENSOR = 4.3e12, 5.5e12, 29.6e12, 600e12

SHAPES = [  # name, n, c, o, h, w, k, d
    ("C = 64", 32, 64, 64, 256, 256, 3, 1),
    ("C = 128", 16, 128, 128, 128, 128, 3, 1),
    ("C = 256", 32, 256, 256, 64, 64, 3, 1),
    ("C = 512", 8, 512, 512, 128, 128, 3, 1),
    ("Xception middle, OS16 P", 8, 728, 728, 33, 33, 3, 1),
    ("Xception middle, OS8 C", 1, 728, 728, 129, 257, 3, 2),
    ("Xception exit 2, OS16 C", 1, 1536, 2048, 65, 129, 3, 2),
    ("ASPP rate 12, OS16 C", 1, 2048, 256, 65, 129, 3, 12),
    ("decoder, OS16 C", 1, 304, 256, 257, 513, 3, 1),
    ("MobileNetV3 last, P", 8, 960, 160, 33, 33, 5, 2),
    ("14 x 14 maps", 8, 512, 512, 14, 14, 3, 1),
]


@dataclass
class Plan:
    form: str
    rows: int
    columns: int
    unit_rows: int
    chunk: int
    splits: int
    shared: int
    resident: int
    waves: float
    bytes: float
    second_level: float
    instructions: float
    flops: float
    shared_traffic: float
    block: float
    seconds: float
    floor: float
    bound: str


def plans(shapes) -> list[Plan]:
    OUT.mkdir(parents=True, exist_ok=True)
    program = OUT / "cuda_plan"
    sources = [ROOT / "bench" / "cuda_plan.cpp", *(s for kind in ("plan", "cost") for s in sorted((ROOT / "csrc" / "common").glob(f"{kind}*.cpp")))]
    subprocess.run(["g++", "-std=c++17", "-O1", f"-I{ROOT / 'csrc'}", *map(str, sources), "-o", str(program)], check=True)
    lines = "".join(f"{n} {c} {o} {h} {w} {k} {d} channels_last\n" for _, n, c, o, h, w, k, d in shapes)
    done = subprocess.run([str(program)], input=lines, capture_output=True, text=True, check=True)
    types = [{"str": str, "int": int, "float": float}[f.type] for f in fields(Plan)]
    return [Plan(*(of(value) for of, value in zip(types, line.split("|"), strict=True))) for line in done.stdout.splitlines()]


def compiled(architecture: int):
    """(form, K, stride): the kernel in bf16, and the instructions an element of its march."""
    import test_cuda_compiled as tests

    found = {}
    for name, kernel in (tests.kernels("separable", architecture) | tests.kernels("separable_persistent", architecture)).items():
        match = re.fullmatch(r"separable_forward<MathBf16, 1, PixelRing<(?P<k>\d), (?P<stride>\d)>::Of, SeparableTile<(?P<form>\d), \d> ?>", name)
        match = match or re.fullmatch(r"separable_persistent<MathBf16, (?P<form>\d)>", name)
        if match:
            parts = match.groupdict()
            k, stride = int(parts.get("k", 3)), int(parts.get("stride", 1))
            found[FUSED_TILES[int(parts["form"])], k, stride] = kernel, kernel.march(8 * k * k).interior("FFMA", "STS") / 8
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", type=int, default=90)
    print("| instance (bf16) | K | stride | registers | instructions an element of the march |\n|---|---|---|---|---|")
    for (form, k, stride), (kernel, march) in sorted(compiled(parser.parse_args().architecture).items()):
        print(f"| {form} | {k} | {stride} | {kernel.registers} | {march:.2f} |")
    print("\n| layer | tile | shared KB | blocks a SM | waves | DRAM | L2 | issue | tensor | shared | one block us | bound | floor us | over floor |")
    print("|" + "---|" * 14)
    for shape, p in zip(SHAPES, plans(SHAPES), strict=True):
        name, n, c, o, h, w, _, _ = shape
        elements = n * c * h * w
        tile = f"{p.form} {p.rows} x {p.columns}" + (f", {p.splits} splits" if p.splits > 1 else "") + (f", chunks of {p.chunk}" if p.chunk < c else "")
        units = (p.bytes / DRAM, p.second_level / L2, p.instructions / ISSUE, p.flops / TENSOR, p.shared_traffic / ISSUE)
        rates = " | ".join(f"{1e12 * seconds / elements:.2f}" for seconds in units)
        print(
            f"| {name}: {n}x{c}x{h}x{w} -> {o} | {tile} | {p.shared / 1024:.0f} | {p.resident} | {p.waves:.1f} | {rates} | {1e6 * p.block:.1f} | {p.bound} "
            f"| {1e6 * p.floor:.1f} | {p.seconds / p.floor:.2f} |"
        )


if __name__ == "__main__":
    main()
