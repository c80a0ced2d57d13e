"""Loads the compiled operator libraries. Whoever touches torch.ops.fastconv imports this module first.

Two libraries, so that a machine without CUDA needs none of it: libfastconv_cpu holds the schemas and the CPU kernels
    and is required, libfastconv_cuda adds kernels to the same operators and is optional; `cuda_refusal` says why it
    is not in use.
"""

from pathlib import Path
from types import SimpleNamespace

import torch

_HERE = Path(__file__).resolve().parent

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


def _load_cpu() -> None:
    path = _HERE / "libfastconv_cpu.so"
    if not path.exists():
        raise ImportError(
            f"fastconv is not built: {path} does not exist. Run `pip install --no-build-isolation .`, or, in a source tree, "
            "`python setup.py build_ext --inplace`."
        )
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(
            f"fastconv could not load {path} into torch {torch.__version__}; it serves torch 2.10 and later. If torch was changed since, "
            f"build fastconv again. The loader said: {error}"
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


_load_cpu()
cuda_refusal: str | None = _load_cuda()


def overloads(namespace: str, names: tuple[str, ...] = FORWARD_OPS) -> SimpleNamespace:
    """The operators of a namespace by name, with the lookup of the overload already done: it costs a microsecond a call."""
    packets = getattr(torch.ops, namespace)
    return SimpleNamespace(**{name: getattr(packets, name).default for name in names})


native = overloads("fastconv")
