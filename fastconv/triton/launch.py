"""From tensors to a launch: memory formats, geometry, the device family, and the one place where a kernel is started.

A `Recorder` stands in for the device: launches are kept instead of run, which is how kernels are compiled ahead of time for machines that
are not there.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
import triton
from torch._prims_common import suggest_memory_format

from .._meta import conv_output_size, dense_size, fragment_size

INTERPRETED: bool = triton.knobs.runtime.interpret


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


@dataclass(frozen=True)
class Family:
    """A kind of device, as far as tiles depend on it."""

    name: str  # "cuda" or "hip"
    capability: int  # 80, 90, 100; 0 for HIP
    processors: int
    shared_memory: int  # bytes a program may use

    @property
    def key(self) -> str:
        """Its name in FAMILIES, and in the tile tables."""
        return f"sm_{self.capability}" if self.name == "cuda" else "gfx942"


FAMILIES = {
    "sm_80": Family("cuda", 80, 108, 166912),
    "sm_90": Family("cuda", 90, 132, 232448),
    "sm_100": Family("cuda", 100, 148, 232448),
    "gfx942": Family("hip", 0, 304, 65536),
}


@dataclass
class Launch:
    kernel: object
    grid: int
    arguments: dict
    options: dict


@dataclass
class Recorder:
    family: Family
    launches: list[Launch] = field(default_factory=list)
    through_copies: bool = False  # a call would copy contiguous maps; `launches` are those without


_recorder: Recorder | None = None


@contextmanager
def record(family: Family):
    """Inside the context launches are kept, not run, and tiles are those of `family`."""
    global _recorder
    previous, _recorder = _recorder, Recorder(family)
    try:
        yield _recorder
    finally:
        _recorder = previous


def recorder() -> Recorder | None:
    return _recorder


def family_of(device: torch.device) -> Family:
    if _recorder is not None:
        return _recorder.family
    if device.type != "cuda":
        return FAMILIES["sm_90"]
    return _cuda_family(device.index)


_families: dict[int | None, Family] = {}


def _cuda_family(index: int | None) -> Family:
    if index not in _families:
        properties = torch.cuda.get_device_properties(index)
        if torch.version.hip:
            known = FAMILIES["gfx942"]
        else:
            major = 10 * properties.major
            known = FAMILIES["sm_100" if major >= 100 else "sm_90" if major >= 90 else "sm_80"]
        shared = getattr(properties, "shared_memory_per_block_optin", known.shared_memory)
        _families[index] = Family(known.name, known.capability, properties.multi_processor_count, shared)
    return _families[index]


def launch(kernel, grid: int, device: torch.device, arguments: dict, num_warps: int, num_stages=1, maxnreg=None) -> None:
    """Starts `kernel` on a one-dimensional grid. Arguments go by name: every launcher reads like its kernel's signature."""
    family = family_of(device)
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    if maxnreg is not None and family.name == "cuda":
        options["maxnreg"] = maxnreg
    if _recorder is not None:
        _recorder.launches.append(Launch(kernel, grid, arguments, options))
    elif device.type == "cuda":
        with torch.cuda.device(device):
            kernel[(grid,)](**arguments, **options)
    else:
        kernel[(grid,)](**arguments)


def channels_last(tensor: torch.Tensor) -> bool:
    return suggest_memory_format(tensor) == torch.channels_last


def memory_format(is_channels_last: bool) -> torch.memory_format:
    return torch.channels_last if is_channels_last else torch.contiguous_format


def dense(tensor: torch.Tensor | None, is_channels_last: bool) -> torch.Tensor | None:
    """The tensor in the given format: copied once if it is not dense in it."""
    return None if tensor is None else tensor.contiguous(memory_format=memory_format(is_channels_last))


def empty_map(like: torch.Tensor, shape, is_channels_last: bool, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format(is_channels_last))


def vector(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()


def nothing(like: torch.Tensor) -> torch.Tensor:
    """Stands for a gradient that was not asked for."""
    return like.new_empty((0,))


def wide(*elements: int) -> bool:
    """Whether offsets inside one image need 64 bits."""
    return max(elements) >= 2**31


def dot_precision(dtype: torch.dtype, allow_tf32: bool) -> str:
    """How products run. 16-bit operands do not read it: one value, one compiled kernel."""
    return "tf32" if allow_tf32 or dtype != torch.float32 else "ieee"


@dataclass(frozen=True)
class Conv:
    """Sizes of a depthwise convolution; the input channel of output channel j is j // m."""

    n: int
    c: int
    h: int
    w: int
    m: int
    kh: int
    kw: int
    sh: int
    sw: int
    dh: int
    dw: int
    pt: int
    pl: int
    oh: int
    ow: int

    @classmethod
    def of(cls, input, weight, stride, padding, dilation) -> "Conv":
        n, c, h, w = input.shape
        kh, kw = weight.shape[2:]
        pt, pb, pl, pr = padding
        oh = conv_output_size(h, kh, stride[0], pt + pb, dilation[0])
        ow = conv_output_size(w, kw, stride[1], pl + pr, dilation[1])
        return cls(n, c, h, w, weight.shape[0] // c, kh, kw, *stride, *dilation, pt, pl, oh, ow)

    def with_images(self, n: int) -> "Conv":
        return replace(self, n=n)

    @property
    def out_channels(self) -> int:
        return self.c * self.m

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.out_channels, self.oh, self.ow

    @property
    def taps(self) -> int:
        return self.kh * self.kw

    @property
    def marches(self) -> bool:
        """Whether there are rows of the output, at an equal distance, that read rows of the input a dilation apart: what a ring takes."""
        return self.dh % self.sh == 0


@dataclass(frozen=True)
class Pool:
    """Sizes of a pool evaluated at every offset."""

    n: int
    c: int
    h: int
    w: int
    kh: int
    kw: int
    sh: int
    sw: int
    ph: int
    pw: int
    dh: int
    dw: int
    dense_h: int
    dense_w: int
    fragments: bool

    @classmethod
    def of(cls, size, kernel_size, stride, padding, dilation, ceil_mode, fragments) -> "Pool":
        dense_h, dense_w = (dense_size(*axis, ceil_mode) for axis in zip(size[2:], kernel_size, stride, padding, dilation, strict=True))
        return cls(*size, *kernel_size, *stride, *padding, *dilation, dense_h, dense_w, fragments)

    @property
    def fragment_size(self) -> tuple[int, int]:
        return fragment_size(self.dense_h, self.sh), fragment_size(self.dense_w, self.sw)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        if self.fragments:
            return (self.n * self.sh * self.sw, self.c, *self.fragment_size)
        return (self.n, self.c, self.dense_h, self.dense_w)


@dataclass(frozen=True)
class Strips:
    """How maps of (h, w) positions are cut: a strip is `rows` rows step_y apart and `bw` columns, taken in the order of their class modulo
    step_x."""

    n: int
    h: int
    w: int
    step_y: int
    step_x: int
    rows: int
    bw: int

    @property
    def count(self) -> int:
        return self.n * self.classes_y * self.row_strips * self.column_blocks

    @property
    def classes_y(self) -> int:
        return min(self.step_y, self.h)

    @property
    def row_strips(self) -> int:
        return ceil_div(ceil_div(self.h, self.step_y), self.rows)

    @property
    def class_width(self) -> int:
        return ceil_div(self.w, self.step_x)

    @property
    def column_blocks(self) -> int:
        # A class one column short still takes its place, so that the order of columns is a plain division.
        return ceil_div(self.class_width * min(self.step_x, self.w), self.bw)

    @property
    def arguments(self) -> dict:
        return {
            "step_y": self.step_y,
            "step_x": self.step_x,
            "classes_y": self.classes_y,
            "class_width": self.class_width,
            "row_strips": self.row_strips,
            "column_blocks": self.column_blocks,
            "ROWS": self.rows,
            "BW": self.bw,
            "POLYPHASE": self.step_x > 1,
        }
