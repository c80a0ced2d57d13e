"""What the machine is and what it can do: its description for a result file, and its ceilings, measured in the same run as everything else."""

import ctypes
import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

MIB = 2**20
# From inside one core's L2 to well beyond any last-level cache of a small machine.
COPY_FOOTPRINTS = tuple(size * MIB for size in (1, 2, 4, 8, 16, 32, 64, 128, 256))
MATRIX_SIZES = (768, 1536, 2304)
# Some ten milliseconds of a register loop, long against starting a thread.
ROUNDS = 500_000
PACKAGES = ("torch", "triton", "onnxruntime", "onnx", "openvino", "numpy", "fastconv")


def cache_sizes() -> dict[str, int]:
    """Bytes of each cache level over all cores we may use, as Linux lists them; empty elsewhere."""
    sizes, seen = {}, set()
    for cpu in sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []:
        for index in Path(f"/sys/devices/system/cpu/cpu{cpu}/cache").glob("index*"):
            level, kind, size, shared = ((index / name).read_text().strip() for name in ("level", "type", "size", "shared_cpu_list"))
            if kind != "Instruction" and (level, shared) not in seen:
                seen.add((level, shared))
                sizes[f"L{level}"] = sizes.get(f"L{level}", 0) + int(size.rstrip("K")) * 1024
    return sizes


def usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu_model() -> str:
    """The name, and family and model where the name alone says little (virtual machines hide it)."""
    try:
        fields = dict(re.findall(r"^([^\t:]+)\s*: (.*)$", Path("/proc/cpuinfo").read_text().split("\n\n")[0], re.MULTILINE))
        return f"{fields['model name']} (family {fields['cpu family']}, model {fields['model']})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def _isa() -> str:
    """The instruction set fastconv's kernels chose, or what torch reports where fastconv isn't built."""
    try:
        from fastconv import _C

        return _C.isa()["active"]
    except ImportError:
        return torch.backends.cpu.get_cpu_capability()


def _command(*words: str) -> str | None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, cwd=Path(__file__).parent)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _commit() -> str:
    commit = _command("git", "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return "unknown"
    return commit + ("+changes" if _command("git", "status", "--porcelain", "--untracked-files=no") else "")


def _versions() -> dict[str, str | None]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None}


def describe(device: str) -> dict:
    """Everything a reader needs to know where and with what the figures were made."""
    description = {
        "device": device,
        "name": _cpu_model(),
        "isa": _isa(),
        "threads": torch.get_num_threads(),
        "cpus": usable_cpus(),
        "caches": cache_sizes(),
        "system": platform.platform(terse=True),
        "load_before": os.getloadavg()[0],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": _versions(),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        description |= {
            "name": properties.name,
            "isa": f"sm_{properties.major}{properties.minor}",
            "memory": properties.total_memory,
            "caches": {"L2": properties.L2_cache_size},
            "multiprocessors": properties.multi_processor_count,
            "driver": _command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"),
        }
    return description


def slug(description: dict) -> str:
    """A folder name for results of this device."""
    threads = f"-{description['threads']}-threads" if description["device"] == "cpu" else ""
    return re.sub(r"[^a-z0-9]+", "-", description["name"].lower()).strip("-") + threads


def timed(call) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _best_seconds(call, budget: float) -> float:
    """The fastest of as many calls as fit into the budget, at least three."""
    call()
    best, end, count = float("inf"), time.perf_counter() + budget, 0
    while count < 3 or time.perf_counter() < end:
        best, count = min(best, timed(call)), count + 1
    return best


def _copy_probes(footprint: int, threads: int, pool: ThreadPoolExecutor) -> dict[str, float]:
    """Bytes a second (read plus written) of the two ways to copy that a machine offers without a compiler."""
    source = torch.ones(footprint // 8, dtype=torch.float32)
    target = torch.zeros_like(source)
    part = source.nbytes // threads

    def memmove(index):
        ctypes.memmove(target.data_ptr() + index * part, source.data_ptr() + index * part, part)

    calls = {"copy_": lambda: target.copy_(source), "memmove": lambda: list(pool.map(memmove, range(threads)))}
    return {name: footprint / _best_seconds(call, 0.02) for name, call in calls.items()}


def copy_curve() -> list[dict]:
    """Copy bandwidth against the memory touched: small maps are held against the cache they fit into, not against DRAM."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        curve = [{"footprint": footprint, "probes": _copy_probes(footprint, threads, pool)} for footprint in COPY_FOOTPRINTS]
    return [point | {"rate": max(point["probes"].values())} for point in curve]


def _matrix_rate(dtype: torch.dtype, size: int, device: str = "cpu") -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    target = torch.empty_like(left)
    seconds = _best_seconds(lambda: torch.mm(left, right, out=target), 0.25) if device == "cpu" else _event_seconds(lambda: torch.mm(left, right, out=target))
    return 2 * size**3 / seconds


def _register_rate(dtype: str, pool: ThreadPoolExecutor, threads: int) -> dict[str, float]:
    """fastconv's own loops over registers, multiply-adds or bfloat16 dot products, where its library is built and the machine has them."""
    try:
        from fastconv import _C
    except ImportError:
        return {}
    if dtype == "bfloat16" and not _C.isa()["bf16_dot"]:
        return {}
    loop = {"float32": _C.fma_flops, "bfloat16": _C.bf16_dot_flops}[dtype]
    done = []
    seconds = _best_seconds(lambda: done.append(sum(pool.map(loop, [ROUNDS] * threads))), 0.3)
    return {"registers": done[-1] / seconds}


def cpu_peaks() -> dict[str, dict]:
    """FLOP/s by dtype: the best of every probe, each one named."""
    peaks, threads = {}, torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        for name in ("float32", "bfloat16"):
            probes = {f"torch.mm {size}": _matrix_rate(getattr(torch, name), size) for size in MATRIX_SIZES}
            probes |= _register_rate(name, pool, threads)
            peaks[name] = {"rate": max(probes.values()), "probes": probes}
    return peaks


def _event_seconds(call) -> float:
    """Device time of one call, the best of many."""
    for _ in range(3):
        call()
    best = float("inf")
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return best


def cuda_ceilings() -> dict:
    """A copy of 1 GiB and matrix products of each dtype; float32 without TF32, because that is what float32 arithmetic can do."""
    source = torch.empty(2**28, dtype=torch.float32, device="cuda").normal_()
    target = torch.empty_like(source)
    rate = 2 * source.nbytes / _event_seconds(lambda: target.copy_(source))
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        rates = {name: _matrix_rate(getattr(torch, name), 8192, "cuda") for name in ("float32", "bfloat16", "float16")}
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    peaks = {name: {"rate": value, "probes": {"torch.mm 8192": value}} for name, value in rates.items()}
    return {"peak": peaks, "copy": [{"footprint": 0, "rate": rate, "probes": {"copy_ 1 GiB": rate}}]}


def ceilings(device: str) -> dict:
    """Peak arithmetic by dtype and copy bandwidth by footprint."""
    return cuda_ceilings() if device == "cuda" else {"peak": cpu_peaks(), "copy": copy_curve()}


def best_of(first: dict, second: dict) -> dict:
    """The higher of two measurements of the same ceilings: a busy moment must not lower a floor."""
    peak = {name: max(first["peak"][name], second["peak"][name], key=lambda probe: probe["rate"]) for name in first["peak"]}
    copy = [max(points, key=lambda point: point["rate"]) for points in zip(first["copy"], second["copy"], strict=True)]
    return {"peak": peak, "copy": copy}
