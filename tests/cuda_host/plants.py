"""Bugs planted in kernels that are otherwise as they are shipped: all of a source file in one build, each switched on by its number.

A plant replaces a piece of a header that occurs once. `$` in what it puts there is true while the plant is switched on, so that with none
the kernel is the shipped one.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import build

VARIABLE = "FASTCONV_PLANT"
REFUSED = 70  # what the host runtime exits with when it finds an error


@dataclass(frozen=True)
class Plant:
    header: str
    right: str
    wrong: str
    case: str  # that must show it
    mode: str  # the build that must notice


def mutant(name: str, plants: dict[str, Plant]) -> Path:
    """A copy of csrc/cuda with every plant in it; its path relative to the repository."""
    texts = {source.name: source.read_text() for source in (build.ROOT / "csrc" / "cuda").iterdir()}
    for number, plant in enumerate(plants.values(), 1):
        text = texts[plant.header]
        if text.count(plant.right) != 1:
            raise ValueError(f"{plant.header} has {text.count(plant.right)} times: {plant.right}")
        texts[plant.header] = text.replace(plant.right, plant.wrong.replace("$", f"(fastconv_plant == {number})"))
    # Every kernel header reaches this one first.
    texts["device.cuh"] = texts["device.cuh"].replace("#pragma once\n", '#pragma once\nextern "C" const int fastconv_plant;\n', 1)
    folder = build.OUT / "mutants" / name / "cuda"
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in texts.items():
        target = folder / file
        if not target.exists() or target.read_text() != content:
            target.write_text(content)
    return folder.relative_to(build.ROOT)


def run(program: Path, case: str, number: int) -> subprocess.CompletedProcess:
    """One case with one plant switched on; 0 for none."""
    environment = os.environ | {VARIABLE: str(number)}
    return subprocess.run([program, "--preempt-shared", "64"], input=case + "\n", capture_output=True, text=True, env=environment)


def noticed(mode: str, done: subprocess.CompletedProcess) -> bool:
    """Whether the build reports what it is there for: a crash that happens to come of a bug is no net."""
    if mode == "asan":
        return "AddressSanitizer" in done.stderr or "runtime error" in done.stderr
    return done.returncode == REFUSED or (mode == "fast" and "FAIL" in done.stdout)
