"""Which implementation serves a call: the first rung of a short ladder that does not refuse, cuda / triton / cpu / reference.

    >>> fastconv.backends.explain_choice("depthwise_conv2d", torch.device("cpu"), torch.float32)
    Choice(op='depthwise_conv2d', backend='cpu', refused={'cuda': 'not a CUDA tensor', 'triton': 'not a CUDA tensor'})
    >>> with fastconv.backends.use("reference"):
    ...     y = fastconv.functional.depthwise_conv2d(x, weight)

Each rung has a `can_run_*` predicate that returns None, or the reason why it refuses. A rung refuses by operator, device and dtype, never
by shape: which kernel and which tile a shape gets is the planner's decision, inside the rung. Among rungs that do not refuse the first
serves, unless the device has a table of measured choices (`fastconv.tuning`) that names another for the layer's class.
"""

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch._prims_common import suggest_memory_format

from . import _ops, reference, tuning

logger = logging.getLogger("fastconv.backends")

_KERNEL_DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))
_TRITON_DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16))


def _import_triton() -> tuple[object | None, str | None]:
    """The operators of fastconv.triton, or the reason why there are none."""
    if importlib.util.find_spec("fastconv.triton") is None:
        return None, "fastconv.triton is not part of this installation"
    try:
        return importlib.import_module("fastconv.triton").ops, None
    except ImportError as error:
        return None, f"fastconv.triton does not import: {error}"


# On the CPU kernels run under Triton's interpreter, which is for finding mistakes: only when asked for by name.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Where tensors may need Triton it is imported now: torch.compile follows a call, and an import inside of one would break the graph.
_imported = _import_triton() if _INTERPRETED or torch.cuda.is_available() else None


def _triton() -> tuple[object | None, str | None]:
    global _imported
    if _imported is None:
        _imported = _import_triton()
    return _imported


def triton_refusal() -> str | None:
    """Why there are no Triton kernels in this installation, whatever the tensor; None where there are."""
    return _triton()[1]


def can_run_cuda(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    if device_type != "cuda":
        return "not a CUDA tensor"
    if _ops.cuda_refusal is not None:
        return _ops.cuda_refusal
    if dtype not in _KERNEL_DTYPES:
        return "the kernels take float32, bfloat16, float16 and float64"
    return None


def can_run_triton(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    if device_type != "cuda" and not (_forced == "triton" and _INTERPRETED):
        return "not a CUDA tensor"
    ops, reason = _triton()
    if ops is None:
        return reason
    if not hasattr(ops, op):
        return "fastconv.triton has no such operator"
    if dtype not in _TRITON_DTYPES:
        return "the kernels take float32, bfloat16 and float16"
    return None


def can_run_cpu(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    if device_type != "cpu":
        return "not a CPU tensor"
    if _ops.compiled_refusal is not None:
        return _ops.compiled_refusal
    if dtype not in _KERNEL_DTYPES:
        return "the kernels take float32, bfloat16, float16 and float64"
    return None


def can_run_reference(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    return None


@dataclass(frozen=True)
class _Rung:
    refuses: Callable[[str, str, torch.dtype], str | None]
    ops: Callable[[], object]  # has one function for each forward operator of csrc/ops.cpp, by name, with its arguments


# Fastest first.
_LADDER = {
    "cuda": _Rung(can_run_cuda, lambda: _ops.native),
    "triton": _Rung(can_run_triton, lambda: _triton()[0]),
    "cpu": _Rung(can_run_cpu, lambda: _ops.native),
    "reference": _Rung(can_run_reference, lambda: reference),
}
_KERNELS = tuple(rung for name, rung in _LADDER.items() if name != "reference")
NAMES = tuple(_LADDER)

_forced: str | None = None
_logged: set[tuple[str, str]] = set()


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Forces one backend ("cuda", "triton", "cpu" or "reference") inside the context, in every thread.

    A call that the backend cannot serve raises a RuntimeError with the reason, instead of falling back.
    """
    global _forced
    if backend not in _LADDER:
        raise ValueError(f"use: got backend {backend!r}; supported are {', '.join(NAMES)}")
    previous, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = previous


@dataclass(frozen=True)
class Choice:
    """What the ladder says for one operator on one kind of tensor: the backend, and why each rung above it refused."""

    op: str
    backend: str
    refused: dict[str, str]


def key_of(op: str, tensor: torch.Tensor, *geometry) -> tuning.Key:
    """The class of a layer in a table of measured choices; `geometry` is (out_channels, kernel, stride, dilation), as far as there is
    one."""
    is_channels_last = suggest_memory_format(tensor) == torch.channels_last
    return tuning.key_of(op, tensor.dtype, is_channels_last, tuning.shape_class(tensor.shape, *geometry))


def _measured(op: str, device: torch.device, dtype: torch.dtype, key_of_call: Callable[[], tuning.Key]) -> tuning.Entry | None:
    """The measured choice for a class of layers, if there is one and its backend can serve the call."""
    table = tuning.table_of(device)
    entry = table.entries.get(key_of_call()) if table is not None else None
    if entry is None or entry.backend not in _LADDER or _LADDER[entry.backend].refuses(op, device.type, dtype) is not None:
        return None
    return entry


def explain_choice(op: str, device: torch.device | str, dtype: torch.dtype, key: tuning.Key | None = None) -> Choice:
    """Walks the ladder as a call of `op` on such a tensor would, and keeps the reasons; with `key` (see `key_of`), as a call of that class
    would."""
    device = torch.device(device)
    device_type = device.type
    if op not in _ops.FORWARD_OPS:
        raise ValueError(f"explain_choice: got op {op!r}; supported are {', '.join(_ops.FORWARD_OPS)}")
    measured = _measured(op, device, dtype, lambda: key) if key is not None and _forced is None else None
    refused = {}
    for name, rung in _LADDER.items():
        if _forced is not None and name != _forced:
            refused[name] = f'use("{_forced}") is in force'
            continue
        reason = rung.refuses(op, device_type, dtype)
        if reason is None and measured is not None and name != measured.backend:
            reason = f"{measured.backend} was measured faster here"
        if reason is None:
            return Choice(op, name, refused)
        refused[name] = reason
    raise RuntimeError(f"fastconv::{op}: the backend {_forced!r} cannot run on {device_type} {dtype}: {refused[_forced]}")


def _log_fallback(choice: Choice, device_type: str, dtype: torch.dtype) -> None:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in choice.refused.items())
    if (choice.op, reasons) not in _logged:
        _logged.add((choice.op, reasons))
        logger.warning("%s on %s %s runs through torch.nn.functional (%s)", choice.op, device_type, dtype, reasons)


def select(op: str, tensor: torch.Tensor, *geometry):
    """The namespace of operators that serves `op` on such a tensor; `geometry` as in `key_of`. A fall back to the reference is logged, once
    for each reason. A graph that is being compiled takes the ladder as it is: sizes may be symbols there, and a choice by size would be one
    more guard."""
    device_type, dtype = tensor.device.type, tensor.dtype
    if _forced is None:
        if device_type == "cuda" and not torch.compiler.is_compiling():
            measured = _measured(op, tensor.device, dtype, lambda: key_of(op, tensor, *geometry))
            if measured is not None:
                return _LADDER[measured.backend].ops()
        for rung in _KERNELS:
            if rung.refuses(op, device_type, dtype) is None:
                return rung.ops()
    choice = explain_choice(op, device_type, dtype)
    if _forced is None and not torch.compiler.is_compiling():
        _log_fallback(choice, device_type, dtype)
    return _LADDER[choice.backend].ops()
