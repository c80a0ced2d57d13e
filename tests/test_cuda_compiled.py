"""What nvcc made of the CUDA kernels: no spills, no stack, the accesses and instructions that the plans count on, and a ceiling on the
instructions a kernel's loop spends on an element.

Counts are of the longest innermost loop, divided by the elements one round of it produces. They include the blocks that only borders enter, so
they bound what the interior executes from above.
"""

import hashlib
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pytest
import sass

from fastconv import _C

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "cuda_compiled"
ARCHITECTURES = (80, 90)
FLAGS = ["-std=c++17", "-O3", "-Icsrc", "--expt-relaxed-constexpr", "-cubin"]


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidate = Path(home, "bin", "nvcc") if home else None
    return str(candidate) if candidate and candidate.exists() else shutil.which("nvcc")


def why_not() -> str | None:
    if find_nvcc() is None:
        return "no nvcc on PATH, CUDA_HOME not set"
    if sass.tool("cuobjdump") is None:
        return "no cuobjdump on PATH, and no triton that carries one"
    return None


pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"the CUDA kernels cannot be compiled and read here: {why_not()}")


@dataclass(frozen=True)
class Loop:
    """The kernels whose names match, the elements a round of their hot loop produces, and the most instructions an element may take."""

    kernels: str
    elements: int
    ceiling: dict[int, float]
    opcodes: tuple[str, ...] = ()  # patterns that must occur somewhere in the kernel
    through: tuple[str, ...] = ()  # if given: what a round of the interior passes, and only that round is counted
    without: str = ""  # an optional part of the round that is not counted
    march: int = 0  # if given: the loop is the smallest with so many multiply-adds, loads and shared stores, and its shortest round is counted


    def instructions(self, kernel: sass.Kernel) -> float:
        if self.march:
            return kernel.march(self.march).interior("FFMA", "STS") / self.elements
        hot = kernel.hot_loop(*self.through)
        count = hot.interior(*self.through) if self.through else len(hot.instructions)
        return (count - (hot.count(self.without) if self.without else 0)) / self.elements


COPY = r"LDGSTS\.E.*"
COPY_WIDE = r"LDGSTS\.E\.BYPASS\.128.*"
TENSOR = (r"HMMA.*", r"LDSM\.16\.M88\.4", COPY_WIDE)
WIDE = (r"LDG\.E\.128.*", r"STG\.E\.128.*")

# sm_80 compares packed bf16 by two multiply-adds, and both 16-bit types by narrower maxima.
LOOPS = {
    "shift_stitch": [],
    # Interior rounds of identity and the clamps, whose FMNMX the ceilings leave out.
    "depthwise": [
        Loop(r"depthwise_pixels<(bf16|f16), 3, 1>", 16, {80: 14.7, 90: 14.6}, (COPY, r"STG\.E\.64.*"), ("FFMA", "STG"), "FMNMX"),
        Loop(r"depthwise_pixels<float, 3, 1>", 16, {80: 12.7, 90: 12.9}, (r"LDGSTS\.E\.BYPASS\.128.*", r"STG\.E\.128.*"), ("FFMA", "STG"), "FMNMX"),
        Loop(r"depthwise_pixels<(bf16|f16), 5, 1>", 8, {80: 36, 90: 36}, (COPY,), ("FFMA", "STG"), "FMNMX"),
        Loop(r"depthwise_pixels<(bf16|f16), 7, 1>", 8, {80: 64.5, 90: 64.3}, (COPY,), ("FFMA", "STG"), "FMNMX"),
        Loop(r"depthwise_bands<(bf16|f16), 3, 1>", 4, {80: 26, 90: 25}, (r"LDGSTS\.E\.BYPASS\.128.*",), ("FFMA", "STG"), "FMNMX"),
        Loop(r"depthwise_bands<(bf16|f16), 5, 1>", 2, {80: 53.5, 90: 54.5}, (r"LDGSTS\.E\.BYPASS\.128.*",), ("FFMA", "STG"), "FMNMX"),
        Loop(r"depthwise_bands<(bf16|f16), 7, 1>", 2, {80: 83, 90: 81}, (r"LDGSTS\.E\.BYPASS\.128.*",), ("FFMA", "STG"), "FMNMX"),
    ],
    # Three (five) rounds of the ring, all of their border code included.
    "depthwise_backward": [
        Loop(r"depthwise_backward_pixels<(bf16|f16), 3, true, false>", 48, {80: 30.6, 90: 30.2}, (r"LDGSTS\.E.*64.*", r"STG\.E\.64.*")),
        Loop(r"depthwise_backward_pixels<float, 3, true, false>", 48, {80: 27.5, 90: 27}, (r"LDGSTS\.E\.BYPASS\.128.*", r"STG\.E\.128.*")),
        Loop(r"depthwise_backward_pixels<(bf16|f16), 5, true, false>", 30, {80: 77, 90: 76}, (COPY,)),
        Loop(r"depthwise_backward_bands<(bf16|f16), 3, false>", 12, {80: 51, 90: 50}, (r"LDGSTS\.E\.BYPASS\.128.*",)),
    ],
    # The march of the fused kernels, identity activations: 9 multiply-adds an element of the 3 x 3 ring, 25 and 49 of the larger ones. The planner counts
    # with the ceilings of 16-bit types (march_instructions).
    "separable": [
        Loop(r"separable_forward<Math(Bf16|F16), 1, PixelRing<3, 1>::Of, .*>", 8, {80: 18.3, 90: 18.3}, (*TENSOR, r"STG\.E\.128.*"), march=72),
        Loop(r"separable_forward<Math(Bf16|F16), 1, PixelRing<3, 2>::Of, .*>", 8, {80: 28, 90: 28}, (*TENSOR, r"STG\.E\.128.*"), march=72),
        Loop(r"separable_forward<Math(Bf16|F16), 1, PixelRing<5, 1>::Of, .*>", 8, {80: 41, 90: 41}, (*TENSOR, r"STG\.E\.128.*"), march=200),
        Loop(r"separable_forward<Math(Bf16|F16), 1, PixelRing<7, 1>::Of, .*>", 8, {80: 71, 90: 71}, (*TENSOR, r"STG\.E\.128.*"), march=392),
    ],
    "separable_float": [
        Loop(r"separable_forward<MathTf32, 1, PixelRing<3, 1>::Of, .*>", 8, {80: 17.5, 90: 17.5}, (*TENSOR, r"STG\.E\.128.*"), march=72),
        Loop(r"separable_forward<MathFloat, 1, PixelRing<3, 1>::Of, .*>", 8, {80: 17.5, 90: 17.5}, (COPY_WIDE, r"STG\.E\.128.*"), march=72),
        Loop(r"separable_forward<MathTf32, 1, PixelRing<3, 2>::Of, .*>", 8, {80: 26, 90: 26}, (*TENSOR, r"STG\.E\.128.*"), march=72),
        Loop(r"separable_forward<Math(Tf32|Float), 1, PixelRing<5, 1>::Of, .*>", 8, {80: 40, 90: 40}, (COPY_WIDE, r"STG\.E\.128.*"), march=200),
        Loop(r"separable_forward<Math(Tf32|Float), 1, PixelRing<7, 1>::Of, .*>", 8, {80: 70, 90: 70}, (COPY_WIDE, r"STG\.E\.128.*"), march=392),
    ],
    "separable_persistent": [
        Loop(r"separable_persistent<Math(Bf16|F16), .*>", 8, {80: 18.3, 90: 18.3}, (*TENSOR, r"STG\.E\.128.*", r"BAR\.ARV"), march=72),
    ],
    "separable_planes": [
        Loop(r"separable_forward<Math(Bf16|F16|Tf32), 0, PlaneRing<3>::Of, .*>", 4, {80: 32, 90: 32}, TENSOR, march=36),
    ],
    "separable_taps": [],
    "separable_backward": [
        Loop(r"separable_dz<Math(Bf16|F16), 1, PixelRing<3, 1>::Of>", 8, {80: 18.5, 90: 18.5}, (*TENSOR, r"STG\.E\.128.*", r"LDG\.E\.128.*"), march=72),
        Loop(r"separable_dweight<Math(Bf16|F16), 1, PixelRing<3, 1>::Of>", 8, {80: 18.5, 90: 18.5}, (r"HMMA.*", r"LDSM\.16\.MT88\.4", r"LDG\.E\.128.*"), march=72),
    ],
    "separable_backward_planes": [Loop(r"separable_dweight<Math(Bf16|F16), 0, PlaneRing<3>::Of>", 4, {80: 33, 90: 33}, (r"HMMA.*",), march=36)],
    "separable_backward_taps": [],
    "max_pool": [
        Loop(r"max_pool_pixels<(bf16|f16), 2, 4, true>", 32, {80: 13, 90: 9.5}, (*WIDE, r"STG\.E\.64.*")),
        Loop(r"max_pool_pixels<(bf16|f16), 3, 4, true>", 32, {80: 19, 90: 14}, (*WIDE, r"STG\.E\.64.*")),
        Loop(r"max_pool_pixels<(bf16|f16), 3, 4, false>", 32, {80: 16, 90: 11}, WIDE),
        Loop(r"max_pool_pixels<(bf16|f16), 5, 2, true>", 16, {80: 33.5, 90: 25}, WIDE),
        Loop(r"max_pool_pixels<float, 3, 4, true>", 16, {80: 30, 90: 30}, WIDE),
    ],
    "max_pool_backward": [
        Loop(r"max_pool_backward_pixels<(bf16|f16), 2, 6>", 24, {80: 16, 90: 15.5}, (r"LDG\.E\.64.*", r"STG\.E\.64.*")),
        Loop(r"max_pool_backward_pixels<(bf16|f16), 3, 4>", 16, {80: 19, 90: 18.5}, (r"LDG\.E\.64.*", r"STG\.E\.64.*")),
        Loop(r"max_pool_backward_pixels<float, 3, 4>", 16, {80: 18, 90: 18}, WIDE),
    ],
    "avg_pool": [
        Loop(r"avg_pool_pixels<(bf16|f16), 3, 4, (true|false)>", 32, {80: 14, 90: 13.5}, WIDE),
        Loop(r"avg_pool_pixels<(bf16|f16), 5, 2, (true|false)>", 16, {80: 26, 90: 25}, WIDE),
    ],
}


@cache
def kernels(source: str, architecture: int) -> dict[str, sass.Kernel]:
    # nvcc works on one core: who asks for one architecture will ask for the others.
    wanted = {architecture, *ARCHITECTURES}
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        return sass.read(dict(zip(wanted, pool.map(partial(compiled, source), wanted), strict=True))[architecture])


def compiled(source: str, architecture: int) -> Path:
    """The source as nvcc compiles it, cached by the content of everything it includes."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = ROOT / "csrc" / "cuda" / f"{source}.cu"
    digest = hashlib.sha256(repr((FLAGS, architecture, find_nvcc())).encode())
    for folder in ("cuda", "common"):
        for header in sorted((ROOT / "csrc" / folder).iterdir()):
            if header.suffix in (".cuh", ".h"):
                digest.update(header.read_bytes())
    digest.update(path.read_bytes())
    cubin = OUT / f"{source}.{architecture}.{digest.hexdigest()[:16]}.cubin"
    if not cubin.exists():
        unfinished = cubin.with_suffix(f".{os.getpid()}.tmp")
        command = [find_nvcc(), *FLAGS, f"-arch=sm_{architecture}", "-o", str(unfinished), str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        unfinished.replace(cubin)
    return cubin


def test_every_source_is_listed():
    assert sorted(LOOPS) == sorted(p.stem for p in (ROOT / "csrc" / "cuda").glob("*.cu"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", LOOPS)
def test_no_spills(source: str, architecture: int):
    found = kernels(source, architecture)
    assert found
    bad = {name: (k.stack, k.local_accesses()) for name, k in found.items() if k.stack or k.local_accesses()}
    assert not bad, f"stack bytes and local accesses: {bad}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", [s for s in LOOPS if LOOPS[s]])
def test_instructions(source: str, architecture: int):
    found = kernels(source, architecture)
    too_many, missing = {}, {}
    for loop in LOOPS[source]:
        matching = {name: k for name, k in found.items() if re.fullmatch(loop.kernels, name)}
        assert matching, f"no kernel is called {loop.kernels}; there are {sorted(found)}"
        for name, kernel in matching.items():
            each = loop.instructions(kernel)
            if each > loop.ceiling[architecture]:
                too_many[name] = f"{each:.2f} > {loop.ceiling[architecture]}"
            absent = [o for o in loop.opcodes if not kernel.has(o)]
            if absent:
                missing[name] = absent
    assert not too_many and not missing, f"instructions an element: {too_many}; absent: {missing}"


# Registers of a multiprocessor, dealt out to warps in eights a thread.
REGISTERS = 65536
# The system's share of each block's shared memory; kernels ask for theirs at launch, and have no other.
RESERVED = 1024
# Launched around the kernels whose costs are counted, and not counted themselves.
UNCOUNTED = ("gate_elements",)


def assumption(name: str) -> tuple[float, int] | None:
    """(instructions an element or 0, registers) that the cost model takes a depthwise kernel to need at most."""
    kernel, size = re.fullmatch(r"(\w+)<\w+(?:, (\d+))?.*>", name).groups()
    assumed = {(kernel, size): (instructions, registers) for kernel, size, instructions, registers in _C.cuda_compiled()}
    return assumed.get((kernel, int(size or 0))) or assumed.get((kernel, 0))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", ("depthwise", "depthwise_backward"))
def test_depthwise_kernels_need_no_more_than_the_cost_model_assumes(source: str, architecture: int):
    wrong = {}
    for name, kernel in kernels(source, architecture).items():
        if name.split("<")[0] in UNCOUNTED:
            continue
        assumed = assumption(name)
        assert assumed is not None, f"the cost model has no figures for {name}"
        counted = [loop.instructions(kernel) for loop in LOOPS[source] if re.fullmatch(loop.kernels, name)]
        if kernel.registers > assumed[1] or kernel.shared > RESERVED or (assumed[0] and max(counted, default=0) > assumed[0]):
            wrong[name] = (kernel.registers, kernel.shared, counted, assumed)
    assert not wrong, f"(registers, shared, instructions, (instructions, registers) assumed): {wrong}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", ("separable", "separable_float", "separable_persistent", "separable_planes", "separable_taps"))
def test_as_many_blocks_fit_as_the_tile_promises(source: str, architecture: int):
    """The plan divides shared memory among so many blocks; registers must let them in."""
    forward = {name: k for name, k in kernels(source, architecture).items() if name.startswith(("separable_forward<", "separable_persistent<"))}
    assert forward
    for name, kernel in forward.items():
        tile = re.search(r"SeparableTile<(?P<form>\d+), (?P<k>\d+)>|separable_persistent<\w+, (?P<stays>\d+)>", name)
        threads, blocks = _C.cuda_tile(int(tile["form"] or tile["stays"]), int(tile["k"] or 3))
        fit = REGISTERS // (-(-kernel.registers // 8) * 8 * threads)
        assert fit >= blocks and kernel.shared <= RESERVED, f"{name}: {kernel.registers} registers let in {fit} of {blocks} blocks; {kernel.shared} bytes of shared memory"
