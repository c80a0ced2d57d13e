"""Loads the compiled operator libraries. Whoever touches torch.ops.fastconv imports this module first.

Two libraries, so that a machine without CUDA needs none of it: libfastconv_cpu holds the schemas and the CPU kernels,
    libfastconv_cuda adds kernels to the same operators and is optional; `cuda_refusal` says why it is not in use.
An installation made without a compiler has schemas.txt instead of both: the same operators, without kernels, for their
    fakes and for those who borrow their schemas (fastconv.triton). `compiled_refusal` then says so; neither
    fastconv._C nor any kernel is there.
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

_HERE = Path(__file__).resolve().parent
_CPU_LIBRARY = _HERE / "libfastconv_cpu.so"
# Written by setup.py, and only where it was asked not to compile.
_SCHEMAS = _HERE / "schemas.txt"
WITHOUT_COMPILER = "installed without compiled kernels (FASTCONV_COMPILE=0)"

# In the order of csrc/ops.cpp.
FORWARD_OPS = (
    "depthwise_conv2d",
    "depthwise_separable_conv2d",
    "shift_stitch_max_pool2d",
    "shift_stitch_max_pool2d_argmax",
    "shift_stitch_max_pool2d_indices",
    "shift_stitch_avg_pool2d",
    "shift",
    "stitch",
)
BACKWARD_OPS = (
    "depthwise_conv2d_backward",
    "depthwise_separable_conv2d_backward",
    "shift_stitch_max_pool2d_backward",
    "shift_stitch_avg_pool2d_backward",
)
# Tells a planner something and computes nothing: no fakes, no derivatives.
PLANNER_OPS = ("set_measured_tiles",)


def _no_kernel(name: str, *arguments):
    raise NotImplementedError(
        f"fastconv::{name} has no kernel: fastconv is {WITHOUT_COMPILER}. The functions of fastconv.functional go to Triton or to "
        "PyTorch's own operators."
    )


def _define(schemas: list[str]) -> torch.library.Library:
    """torch.ops.fastconv without kernels; a call past fastconv.functional is told so in better words than the dispatcher's."""
    library = torch.library.Library("fastconv", "DEF")
    for schema in schemas:
        name = library.define(schema)
        for key in ("CPU", "CUDA"):
            library.impl(name, partial(_no_kernel, name), key)
    return library


def _load_cpu() -> None:
    if not _CPU_LIBRARY.exists():
        raise ImportError(
            f"fastconv is not built: {_CPU_LIBRARY} does not exist. Run `pip install --no-build-isolation .`, or, in a source tree, "
            "`python setup.py build_ext --inplace`; with FASTCONV_COMPILE=0 before either, no compiler is needed and nothing is compiled."
        )
    try:
        torch.ops.load_library(str(_CPU_LIBRARY))
    except OSError as error:
        raise ImportError(
            f"fastconv could not load {_CPU_LIBRARY} into torch {torch.__version__}; it serves torch 2.10 and later. "
            f"If torch was changed since, build fastconv again. The loader said: {error}"
        ) from error


def _load_cuda() -> str | None:
    """Loads the CUDA kernels; returns why not, or None when they are in use."""
    path = _HERE / "libfastconv_cuda.so"
    if not path.exists():
        return "fastconv was built without CUDA (libfastconv_cuda.so does not exist)"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"libfastconv_cuda.so does not load: {error}"
    return None


if _SCHEMAS.exists() and not _CPU_LIBRARY.exists():
    # A Library takes its definitions with it when it is collected.
    _library = _define(_SCHEMAS.read_text(encoding="utf-8").splitlines())
    compiled_refusal: str | None = WITHOUT_COMPILER
    cuda_refusal: str | None = WITHOUT_COMPILER
else:
    _load_cpu()
    compiled_refusal, cuda_refusal = None, _load_cuda()


def overloads(namespace: str, names: tuple[str, ...] = FORWARD_OPS) -> SimpleNamespace:
    """The operators of a namespace by name, with the lookup of the overload already done: it costs a microsecond a call."""
    packets = getattr(torch.ops, namespace)
    return SimpleNamespace(**{name: getattr(packets, name).default for name in names})


native = overloads("fastconv")
