"""What can be known of the fused CUDA forward kernel without a GPU: python -m bench.cuda_separable_static > table.md

Needs nvcc and a C++ compiler. Registers and instructions come from the compiled code, tiles and shared memory from the planner's own C++, and the
rest is arithmetic over both at the rates named below. Every time is a prediction; an element is one pixel of one input channel.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "cuda_static"
sys.path.insert(0, str(ROOT / "tests"))

# H200: measured elsewhere (copy, bf16 product) or taken from the clock (issue, shared memory); L2 is an estimate.
MULTIPROCESSORS, CLOCK = 132, 1.755e9
DRAM, L2, TENSOR = 4.3e12, 5.5e12, 600e12  # bytes/s, bytes/s, FLOP/s of mma.sync
TENSOR_FLOOR = 790e12  # what the floor may use: wgmma
ISSUE = MULTIPROCESSORS * CLOCK * 128  # lane instructions a second
SHARED = MULTIPROCESSORS * CLOCK * 128  # bytes a second
REGISTERS, SHARED_BYTES = 65536, 228 * 1024

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
    pixels: int
    channels: int
    threads: int
    rows: int
    columns: int
    unit_rows: int
    chunk: int
    split: int
    splits: int
    blocks: int
    shared: int


def plans(shapes) -> list[Plan]:
    OUT.mkdir(parents=True, exist_ok=True)
    program = OUT / "cuda_plan"
    sources = [ROOT / "bench" / "cuda_plan.cpp", *sorted((ROOT / "csrc" / "common").glob("plan*.cpp"))]
    subprocess.run(["g++", "-std=c++17", "-O1", f"-I{ROOT / 'csrc'}", *map(str, sources), "-o", str(program)], check=True)
    lines = "".join(f"{n} {c} {o} {h} {w} {k} {d} channels_last\n" for _, n, c, o, h, w, k, d in shapes)
    done = subprocess.run([str(program)], input=lines, capture_output=True, text=True, check=True)
    return [Plan(line.split()[0], *map(int, line.split()[1:])) for line in done.stdout.splitlines()]


def compiled(architecture: int):
    import sass
    import test_cuda_compiled as tests

    found = tests.kernels("separable", architecture)
    kernels = {}
    forms = {"128, 128, 256": "pair", "128, 128, 512": "wide", "64, 64, 128": {3: "small", 5: "slim", 7: "slim"}}
    for name, kernel in found.items():
        for k, multiply_adds in ((3, 72), (5, 200), (7, 392)):
            if f"MathBf16, 1, PixelRing<{k}>" in name:
                form = next(f for text, f in forms.items() if f"<{text}" in name)
                march = kernel.march(multiply_adds)
                kernels[form[k] if isinstance(form, dict) else form, k] = (kernel, march.interior("FFMA", "LDG", "STS") / 8)
    return kernels, sass


def predict(shape, plan: Plan, kernel, march: float) -> dict:
    _, n, c, o, h, w, k, d = shape
    elements = n * h * w * c
    tile_elements = plan.rows * plan.columns * c  # produced by a block, spare rows aside
    blocks_each = min(SHARED_BYTES // (plan.shared + 1024), REGISTERS // (kernel.registers * plan.threads))
    recompute = plan.splits * (1 if plan.chunk >= c else -(-plan.split // plan.channels))
    # Phase 1: marches, with the rows above the strip that feed its first results.
    strips = -(-plan.rows // plan.unit_rows)
    head = strips * (k - 1) / plan.rows * (0.5 if k == 3 else 1.0)
    phase1 = plan.blocks / plan.splits * tile_elements * recompute * march * (1 + head)
    # Phase 2: a warp's step of 32 bytes multiplies kM * 16 x 32 by 16: kM * 4 products, kM + 2 matrix loads, about 3 more.
    warps = plan.threads // 32
    m = plan.pixels * plan.channels // (warps * 512)
    steps = plan.blocks * -(-min(plan.split, o) // plan.channels) * -(-c // 16)
    phase2 = steps * warps * (m * 5 + 5) * 32
    shared = steps * warps * (m * 16 + 32) * 32 + plan.blocks * tile_elements * 2
    halo = (plan.rows + k - 1) * (plan.columns + k - 1) / (plan.rows * plan.columns)
    l2 = plan.blocks * (tile_elements * 2 * halo * recompute / plan.splits + min(plan.split, o) * c * 2) + n * h * w * o * 2
    floor = max(n * h * w * (c + o) * 2 / DRAM, 2 * n * h * w * c * o / TENSOR_FLOOR)
    waves = plan.blocks / (MULTIPROCESSORS * blocks_each)
    quantised = -(-plan.blocks // (MULTIPROCESSORS * blocks_each)) / waves
    units = {
        "DRAM": n * h * w * (c + o) * 2 / DRAM,
        "L2": l2 / L2,
        "issue": (phase1 + phase2) / ISSUE,
        "tensor": steps * plan.pixels * plan.channels * 32 / TENSOR,
        "shared": shared / SHARED,
    }
    bound = max(units, key=units.get)
    second = max(units["tensor"], units["shared"], phase2 / ISSUE)
    return {
        **{name: seconds / elements * 1e12 for name, seconds in units.items()},
        "bound": bound,
        "blocks_each": blocks_each,
        "waves": waves,
        "floor_us": floor * 1e6,
        "overlapped": units[bound] * quantised / floor,
        "serial": max(units["DRAM"], units["L2"], phase1 / ISSUE + second) * quantised / floor,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", type=int, default=90)
    kernels, _ = compiled(parser.parse_args().architecture)
    print("| instance (bf16) | K | registers | instructions an element of the march |\n|---|---|---|---|")
    for (form, k), (kernel, march) in sorted(kernels.items()):
        print(f"| {form} | {k} | {kernel.registers} | {march:.2f} |")
    print("\n| layer | tile | shared KB | blocks a SM | waves | DRAM | L2 | issue | tensor | shared | bound | floor us | over floor, overlapped | one after the other |")
    print("|" + "---|" * 14)
    for shape, plan in zip(SHAPES, plans(SHAPES), strict=True):
        kernel, march = kernels[plan.form, shape[6]]
        p = predict(shape, plan, kernel, march)
        tile = f"{plan.form} {plan.rows} x {plan.columns}" + (f", {plan.splits} splits" if plan.splits > 1 else "") + (f", chunks of {plan.chunk}" if plan.chunk < shape[2] else "")
        rates = " | ".join(f"{p[unit]:.2f}" for unit in ("DRAM", "L2", "issue", "tensor", "shared"))
        print(
            f"| {shape[0]}: {shape[1]}x{shape[2]}x{shape[4]}x{shape[5]} -> {shape[3]} | {tile} | {plan.shared / 1024:.0f} | {p['blocks_each']} | {p['waves']:.1f} "
            f"| {rates} | {p['bound']} | {p['floor_us']:.1f} | {p['overlapped']:.2f} | {p['serial']:.2f} |"
        )


if __name__ == "__main__":
    main()
