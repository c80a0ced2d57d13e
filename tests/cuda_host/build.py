"""Builds the host-run kernels: three builds of the same sources, each object cached by the content of everything it includes."""

import hashlib
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUT = ROOT / "build" / "cuda_host"
MODES = ("fast", "asan", "race")

COMMON = ("-std=c++17", "-g1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-fno-strict-aliasing", "-DFASTCONV_CUDA_HOST", f"-I{HERE}", f"-I{ROOT / 'csrc'}")
PLAIN = ("-O2",)
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# Kernels carry the instrumentation of a build; the references and the evaluation of instructions never do. The race build compiles kernels
# for the thread sanitizer and links without its library: memory.cpp stands in for it.
KERNEL_FLAGS = {"fast": ("-O2",), "asan": ("-O1", *SANITIZERS), "race": ("-O1", "-fsanitize=thread")}
RUNTIME_FLAGS = {"fast": PLAIN, "asan": ("-O1", *SANITIZERS), "race": PLAIN}
LINK_FLAGS = {"fast": (), "asan": SANITIZERS, "race": ()}
RUNTIME = ("runtime.cpp", "memory.cpp")


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("g++")


def why_not() -> str | None:
    """Why the host-run tests cannot be built here, or None."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the fiber switch is written for x86-64, this machine is {platform.machine()}"
    if compiler() is None:
        return "no C++ compiler found"
    return None


def _conversions() -> tuple[str, ...]:
    """Hardware half-precision conversions where this machine has them: the programs run here and nowhere else."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ()
    return ("-mf16c", "-mfma", "-mavx2") if all(f" {f} " in flags for f in ("f16c", "fma", "avx2")) else ()


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def _source(path: str) -> Path:
    return HERE / path if (HERE / path).exists() else ROOT / path


def _digest(path: str, flags: tuple[str, ...]) -> str:
    rule = _run([compiler(), *COMMON, "-MM", "-x", "c++", str(_source(path))])
    digest = hashlib.sha256(repr((compiler(), COMMON, _conversions(), flags)).encode())
    for dependency in rule.replace("\\\n", " ").split(":", 1)[1].split():
        digest.update(Path(dependency).read_bytes())
    return digest.hexdigest()[:16]


def _compile(path: str, flags: tuple[str, ...]) -> Path:
    target = OUT / f"{Path(path).stem}.{_digest(path, flags)}.o"
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}.tmp")
        _run([compiler(), *COMMON, *_conversions(), *flags, "-c", "-x", "c++", str(_source(path)), "-o", str(partial)])
        partial.replace(target)
    return target


def binaries(name: str, kernels: list[str], plain: list[str], modes: tuple[str, ...] = MODES) -> dict[str, Path]:
    """One program per mode from kernel sources and plain ones; paths relative to tests/cuda_host or to the repository."""
    OUT.mkdir(parents=True, exist_ok=True)
    units = {
        mode: [(k, KERNEL_FLAGS[mode]) for k in kernels] + [(r, RUNTIME_FLAGS[mode]) for r in RUNTIME] + [(p, PLAIN) for p in ("ptx_host.cpp", *plain)]
        for mode in modes
    }
    wanted = list(dict.fromkeys(unit for mode in modes for unit in units[mode]))
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        objects = dict(zip(wanted, pool.map(lambda unit: _compile(*unit), wanted), strict=True))
    programs = {}
    for mode in modes:
        mine = [objects[unit] for unit in units[mode]]
        target = OUT / f"{name}.{mode}.{hashlib.sha256(repr(mine).encode()).hexdigest()[:16]}"
        if not target.exists():
            partial = target.with_suffix(f".{os.getpid()}.tmp")
            _run([compiler(), *LINK_FLAGS[mode], *map(str, mine), "-o", str(partial)])
            partial.replace(target)
        programs[mode] = target
    return programs
