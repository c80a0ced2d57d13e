"""Reads compiled CUDA code: instructions of each kernel, its loops, registers, stack, spills. Uses cuobjdump, which comes with triton."""

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path


@cache
def tool(name: str) -> str | None:
    """A binary utility of the CUDA toolkit: on PATH, or the copy that triton carries."""
    spec = importlib.util.find_spec("triton")
    carried = Path(next(iter(spec.submodule_search_locations)), "backends", "nvidia", "bin", name) if spec else None
    return shutil.which(name) or (str(carried) if carried and carried.exists() else None)


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    opcode: str  # with its modifiers: LDG.E.128.CONSTANT
    operands: str

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]


@dataclass
class Loop:
    instructions: list[Instruction]
    innermost: bool

    def count(self, *names: str) -> int:
        return sum(i.name in names for i in self.instructions) if names else len(self.instructions)

    def mix(self) -> Counter:
        return Counter(i.name for i in self.instructions)

    def interior(self, *through: str) -> int:
        """Instructions of the shortest way around the loop that passes instructions of all these names: a round that loads, computes and
        stores, without the blocks that only borders enter."""
        starts = {0}
        index = {i.address: n for n, i in enumerate(self.instructions)}
        jumps = {}
        for n, i in enumerate(self.instructions):
            if i.name in ("BRA", "EXIT", "CALL"):
                starts.add(n + 1)
            target = re.search(r"0x([0-9a-f]+)", i.operands) if i.name == "BRA" else None
            if target:
                jumps[n] = index.get(int(target[1], 16))  # None leaves the loop
                if jumps[n] is not None:
                    starts.add(jumps[n])
        edges = sorted(n for n in starts if n < len(self.instructions)) + [len(self.instructions)]
        full = (1 << len(through)) - 1
        best: dict[tuple[int, int], int] = {(0, 0): 0}
        answer = None
        # Addresses only grow inside a round, so blocks in order see every way in before any way out.
        for first, end in zip(edges, edges[1:], strict=False):
            body = self.instructions[first:end]
            passed = sum(1 << t for t, name in enumerate(through) if any(i.name == name for i in body))
            last = body[-1]
            for (at, seen), cost in [(k, v) for k, v in best.items() if k[0] == first]:
                state, total = seen | passed, cost + len(body)
                ways = []
                if last.name == "BRA":
                    ways.append(jumps.get(end - 1))
                # BRA.DIV is taken by warps that have diverged.
                if not (last.opcode in ("BRA", "EXIT") and not last.predicate and not re.match(r"\s*!?U?P", last.operands)):
                    ways.append(end)
                for to in ways:
                    if to == 0 and state == full:
                        answer = total if answer is None else min(answer, total)
                    elif to is not None and to > first:
                        best[to, state] = min(best.get((to, state), total), total)
        if answer is None:
            raise ValueError(f"no way around the loop passes {through}")
        return answer


@dataclass
class Kernel:
    name: str
    instructions: list[Instruction]
    registers: int = 0
    stack: int = 0
    shared: int = 0
    loops: list[Loop] = field(default_factory=list)

    def opcodes(self) -> Counter:
        return Counter(i.opcode for i in self.instructions)

    def has(self, pattern: str) -> bool:
        return any(re.fullmatch(pattern, i.opcode) for i in self.instructions)

    def local_accesses(self) -> int:
        return sum(i.name in ("LDL", "STL") for i in self.instructions)

    def hot_loop(self, *through: str) -> Loop:
        """The longest innermost loop that has instructions of all these names."""
        fitting = [loop for loop in self.loops if loop.innermost and all(loop.count(name) for name in through)]
        return max(fitting, key=lambda loop: len(loop.instructions))


    def march(self, multiply_adds: int) -> Loop:
        """The smallest loop that has so many multiply-adds, loads or copies from global memory, and shared stores: the march down the rows of a tile."""
        fitting = [loop for loop in self.loops if loop.count("FFMA") >= multiply_adds and loop.count("LDG", "LDGSTS") and loop.count("STS")]
        return min(fitting, key=lambda loop: len(loop.instructions))


_LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")


def _loops(instructions: list[Instruction]) -> list[Loop]:
    index = {i.address: n for n, i in enumerate(instructions)}
    spans = {}
    for n, i in enumerate(instructions):
        if i.name != "BRA":
            continue
        target = re.search(r"0x([0-9a-f]+)", i.operands)
        if target and int(target[1], 16) < i.address and int(target[1], 16) in index:
            first = index[int(target[1], 16)]
            spans[first] = max(spans.get(first, 0), n)
    ranges = sorted(spans.items())
    return [
        Loop(instructions[a : b + 1], not any(a <= c and d <= b and (a, b) != (c, d) for c, d in ranges))
        for a, b in ranges
    ]


def demangle(names: list[str]) -> dict[str, str]:
    filt = shutil.which("c++filt") or shutil.which("cu++filt")
    if not filt or not names:
        return {n: n for n in names}
    done = subprocess.run([filt], input="\n".join(names), capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.splitlines(), strict=True))


def read(cubin: Path) -> dict[str, Kernel]:
    """Kernels of a compiled file by readable name, `max_pool_pixels<bf16, 3, 4, true>`."""
    cuobjdump = tool("cuobjdump")
    text = subprocess.run([cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    usage = subprocess.run([cuobjdump, "-res-usage", str(cubin)], capture_output=True, text=True, check=True)
    kernels = {}
    current = None
    for line in text.splitlines():
        function = re.match(r"\s+Function : (\S+)", line)
        if function:
            current = kernels[function[1]] = Kernel(function[1], [])
            continue
        parsed = _LINE.match(line)
        if parsed and current:
            current.instructions.append(Instruction(int(parsed[1], 16), parsed[2] or "", parsed[3], parsed[4]))
    for name, registers, stack, shared in re.findall(r"Function (\S+?):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage.stdout + usage.stderr):
        if name in kernels:
            kernels[name].registers, kernels[name].stack, kernels[name].shared = int(registers), int(stack), int(shared)
    readable = demangle(list(kernels))
    out = {}
    for mangled, kernel in kernels.items():
        # Trailing NOPs and the branch to itself that fill up a function are no loop.
        kernel.loops = [loop for loop in _loops(kernel.instructions) if len(loop.instructions) > 1]
        # Enumerators among the template arguments are printed as casts.
        short = re.sub(r"^void ", "", re.sub(r"\([\w:]+\)(?=\d)", "", readable[mangled]).replace("(anonymous namespace)::", ""))
        kernel.name = re.sub(r"\(.*", "", short).replace("fastconv::cuda::", "")
        out[kernel.name] = kernel
    return out
