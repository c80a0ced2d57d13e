"""What a call needs of memory, and what a forward pass keeps for its backward pass."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

from .runtimes import Runner


class Memory:
    """Peak resident memory of a call on Linux: the kernel's high-water mark, reset before it. Sees every allocator, scratch included."""

    def __init__(self):
        self.reason = None
        try:
            self._libc = ctypes.CDLL(None)
            self._libc.malloc_trim(0)
            self._status("VmHWM")
            Path("/proc/self/clear_refs").write_text("5")
        except (OSError, AttributeError, StopIteration) as error:
            self.reason = f"no peak memory: {error}"

    @staticmethod
    def _status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])

    def peak(self, call: Callable[[], object]) -> int:
        """Bytes above what was resident before; results that the call returns are included."""
        self._libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = self._status("VmRSS")
        call()
        return max(0, self._status("VmHWM") - before)

    def of(self, runner: Runner) -> int | None:
        if self.reason:
            return None
        if runner.fresh is None:
            return self.peak(lambda: runner.call(0))
        self._libc.malloc_trim(0)
        other = runner.fresh()
        return self.peak(lambda: other.call(0))


def saved_bytes(runner: Runner) -> int:
    """Bytes of activations that the forward pass keeps for the backward pass: distinct storages, the parameters' own left out."""
    parameters = {tensor.untyped_storage().data_ptr() for tensor in runner.parameters}
    storages: dict[int, int] = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = runner.forward(0)
    del output
    return sum(size for address, size in storages.items() if address not in parameters)
