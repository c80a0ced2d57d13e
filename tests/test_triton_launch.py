"""What a launch compiles on a device is what `fastconv.triton.ahead` compiles without one.

Triton's own way from arguments to machine code (binding by name, specialising, options) runs here with a driver that only names its device,
up to where the kernel would be loaded.
"""

import os

import pytest

triton = pytest.importorskip("triton", reason="the Triton backend needs triton")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels do not compile under the interpreter", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.driver import driver  # noqa: E402

from bench import triton_grid as grid  # noqa: E402
from bench.cases import select  # noqa: E402
from fastconv.triton import ahead  # noqa: E402
from fastconv.triton.launch import FAMILIES  # noqa: E402


class NamesItsDevice:
    def __init__(self, target: GPUTarget):
        self.target = target

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return "not a device"  # whose compiled kernels nobody else is given

    def get_current_stream(self, device=None):
        return 0


@pytest.fixture
def hopper():
    before = driver._active
    driver.set_active(NamesItsDevice(GPUTarget("cuda", 90, 32)))
    yield
    driver._active = before


def one_of_each() -> list:
    """A launch of every kernel that the quick grid has."""
    found = {}
    for _, launch in grid.distinct(select("cuda", "quick"), "sm_90").values():
        found.setdefault(launch.kernel.__name__, launch)
    return list(found.values())


@pytest.mark.parametrize("launch", one_of_each(), ids=lambda launch: launch.kernel.__name__)
def test_a_launch_compiles_what_is_compiled_ahead(hopper, launch):
    compiled = launch.kernel.run(grid=(launch.grid,), warmup=True, **launch.arguments, **launch.options)
    assert compiled.metadata.num_warps == launch.options["num_warps"]
    assert getattr(compiled.metadata, "maxnreg", None) == launch.options.get("maxnreg")
    # Not byte by byte: a cubin has the time at which its source was written.
    there, here = ahead.report_of(compiled, FAMILIES["sm_90"]), ahead.compile_launch(launch, FAMILIES["sm_90"])
    assert there.hot_loop() == here.hot_loop() and there.instructions() == here.instructions() > 50
    assert (there.registers, there.shared_memory) == (here.registers, here.shared_memory)
