"""What this installation is and what it can use: versions, instruction set, threads, devices, libraries. Put it into bug reports."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

import torch

import fastconv
from fastconv import _ops

PACKAGES = ("numpy", "triton", "onnxruntime", "openvino")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object")


def commit() -> str | None:
    """The commit of the source tree that the package runs from, "+" behind it where files were changed; None for an installed package."""
    root = Path(fastconv.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def introspection() -> dict:
    """What fastconv._C knows, or why it is not there."""
    if _ops.compiled_refusal is not None:
        return {"refused": _ops.compiled_refusal}
    try:
        from fastconv import _C
    except ImportError as error:
        return {"refused": str(error)}
    return {"refused": None, "build": _C.build_info(), "isa": _C.isa()}


def devices() -> list[dict]:
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        architecture = properties.gcnArchName if torch.version.hip else f"sm_{properties.major}{properties.minor}"
        facts = {"name": properties.name, "architecture": architecture, "memory_bytes": properties.total_memory}
        found.append({"device": f"cuda:{index}", **facts})
    return found


def describe() -> dict:
    """Everything `env` prints, as plain data."""
    inside = introspection()
    isa, build = inside.get("isa", {}), dict(inside.get("build", {}))
    # The configured list says nothing where the library it is meant for was not compiled.
    configured = build.pop("cuda_architectures", "") if (Path(fastconv.__file__).parent / "libfastconv_cuda.so").exists() else ""
    build["cuda_architectures"] = [name for name in configured.split(";") if name]
    return {
        "fastconv": fastconv.__version__,
        "commit": commit(),
        "folder": str(Path(fastconv.__file__).resolve().parent),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "packages": {name: version(name) for name in PACKAGES},
        "cpu": {
            "isa": isa.get("active"),
            "isa_available": isa.get("available", []),
            "isa_requested": os.environ.get("FASTCONV_CPU_ISA"),
            "bf16_dot_products": isa.get("bf16_dot"),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "devices": devices(),
        "libraries": {
            "cpu": {"in_use": _ops.compiled_refusal is None, "refused": _ops.compiled_refusal},
            "cuda": {"in_use": _ops.cuda_refusal is None, "refused": _ops.cuda_refusal},
            "introspection": {"in_use": inside["refused"] is None, "refused": inside["refused"]},
        },
        "build": build,
    }


def run(options: argparse.Namespace) -> int:
    facts = describe()
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    cpu, build = facts["cpu"], facts["build"]
    isa = f"{cpu['isa']} chosen of {', '.join(cpu['isa_available'])}" if cpu["isa"] else "no compiled kernels"
    rows = [
        ("fastconv", f"{facts['fastconv']}, commit {facts['commit'] or 'unknown'}, in {facts['folder']}"),
        ("python", f"{facts['python']} on {facts['system']}"),
        ("torch", f"{facts['torch']}, CUDA {facts['cuda'] or 'not built in'}"),
        *((name, found or "not installed") for name, found in facts["packages"].items()),
        ("cpu", f"{isa}; {cpu['threads']} threads on {cpu['cores']} cores"),
        *((gpu["device"], f"{gpu['name']}, {gpu['architecture']}, {gpu['memory_bytes'] / 2**30:.0f} GiB") for gpu in facts["devices"]),
        *((f"library {name}", "in use" if it["in_use"] else f"not in use: {it['refused']}") for name, it in facts["libraries"].items()),
        *((f"build {name}", (", ".join(value) or "none") if isinstance(value, list) else str(value)) for name, value in build.items()),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}s}  {value}")
    return 0
