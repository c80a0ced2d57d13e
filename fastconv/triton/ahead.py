"""Compiles launches for devices that are not there, and reads from the machine code what can be known without running it.

    with record(FAMILIES["sm_90"]) as recorder:
        depthwise_conv2d(torch.empty(..., device="meta"), ...)
    report = compile_launch(recorder.launches[0], recorder.family)

The arguments are specialised as a launch on a device would: integers equal to 1 are constants, multiples of 16 and pointers are known to be
such.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .launch import Family, Launch

_POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float64: "*fp64", torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}  # fmt: skip
_ALIGNMENT = [["tt.divisibility", 16]]

# A loop of so few instructions waits for a barrier.
WAIT = 16

# Kernels whose longest innermost loop is one row or one chunk.
MARCHING = ("depthwise_ring", "depthwise_backward_ring", "max_pool_ring", "avg_pool_ring", "pool_backward_ring", "separable_fused")


@dataclass(frozen=True)
class Report:
    """What the compiled kernel says of itself."""

    registers: int
    spills: int  # bytes a thread, or on AMD spilled registers
    shared_memory: int
    binary: bytes  # a cubin, or AMD assembly
    is_cubin: bool

    @cached_property
    def code(self) -> str:
        """SASS, or AMD assembly. Disassembled when asked for: it takes as long as compiling does."""
        return _run_on_file("nvdisasm", self.binary) if self.is_cubin else self.binary.decode()

    def count(self, pattern: str) -> int:
        """Instructions that match a regular expression."""
        return len(re.findall(pattern, self.code))

    def instructions(self) -> int:
        """All there are (SASS)."""
        return len(self._lines()[0])

    def hot_loop(self) -> list[str]:
        """Instructions of the longest innermost loop (SASS), or all where the compiler left no loop but waits."""
        instructions, labels = self._lines()
        loops = []
        for end, instruction in enumerate(instructions, 1):
            target = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", instruction)
            if target and end - labels.get(target.group(1), end) > WAIT:
                loops.append((labels[target.group(1)], end))
        innermost = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
        begin, end = max(innermost, key=lambda loop: loop[1] - loop[0], default=(0, len(instructions)))
        return instructions[begin:end]

    def _lines(self) -> tuple[list[str], dict[str, int]]:
        """Instructions in order, and which of them follows a label."""
        instructions, labels = [], {}
        for line in self.code.splitlines():
            if label := re.match(r"\s*(\.L_x_\d+):", line):
                labels[label.group(1)] = len(instructions)
            elif re.match(r"\s*/\*[0-9a-f]{4,}\*/", line):
                instruction = re.sub(r"/\*.*?\*/", "", line).strip()
                # Sections of data are listed with addresses, too.
                if instruction and not instruction.startswith((".", "NOP")):
                    instructions.append(instruction)
        return instructions, labels

    def instructions_an_element(self, launch: Launch) -> float | None:
        """Of the longest innermost loop, for kernels that take one row of [BW, BC] a turn, or one chunk of [ROWS*BW, BK]; None for
        others."""
        sizes, name = launch.arguments, launch.kernel.__name__
        if name not in MARCHING or not sizes.get("RING", True):
            return None
        elements = sizes["BW"] * (sizes["ROWS"] * sizes["BK"] if name == "separable_fused" else sizes["BC"])
        return len(self.hot_loop()) * 32 * launch.options["num_warps"] / elements


def _source(launch: Launch) -> ASTSource:
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
            attributes[(index,)] = _ALIGNMENT
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(index,)] = _ALIGNMENT
    return ASTSource(launch.kernel, signature, constants, attributes)


def specialisation(launch: Launch) -> str:
    """Launches with the same one are the same compiled kernel."""
    source = _source(launch)
    # Shapes and pointers of tensors are no part of it.
    return repr((launch.kernel.__name__, source.signature, source.constants, source.attrs, sorted(launch.options.items())))


def compile_launch(launch: Launch, family: Family) -> Report:
    if family.name == "cuda":
        target = GPUTarget("cuda", family.capability, 32)
    else:
        target = GPUTarget("hip", "gfx942", 64)
    compiled = triton.compile(_source(launch), target=target, options=launch.options)
    return report_of(compiled, family)


def report_of(compiled, family: Family) -> Report:
    """What a kernel that Triton has compiled says of itself."""
    return _cuda_report(compiled) if family.name == "cuda" else _amd_report(compiled)


def _run_on_file(tool: str, cubin: bytes, *options: str) -> str:
    """What one of the CUDA tools that come with Triton prints of a cubin."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tools / tool, *options, file.name], capture_output=True, text=True, check=True).stdout


def _cuda_report(compiled) -> Report:
    cubin = compiled.asm["cubin"]
    usage = _run_on_file("cuobjdump", cubin, "-res-usage")
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage).group(1)) for name in ("REG", "STACK"))
    # A frame on the stack is where ptxas puts spills, and nothing else in these kernels needs one.
    return Report(registers, stack, compiled.metadata.shared, cubin, True)


def _amd_report(compiled) -> Report:
    code = compiled.asm["amdgcn"]
    number = {key: int(value) for key, value in re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", code)}
    spills = number["vgpr_spill_count"] + number["sgpr_spill_count"]
    return Report(number["vgpr_count"], spills, compiled.metadata.shared, code.encode(), False)
