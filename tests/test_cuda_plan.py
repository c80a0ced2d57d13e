"""The planner of the CUDA kernels: what it predicts follows the laws it is made of, and the page in docs/ is what it prints."""

import re
import sys
from pathlib import Path

import pytest

from fastconv import _C
from fastconv.cli.predict_cuda import CHIPS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench import cuda_predicted  # noqa: E402
from bench.cuda_predicted import arguments  # noqa: E402

LAYOUTS = ("channels_last", "contiguous")


def forward(batch, channels, kernel, dilation, size, layout, **chip):
    asked = arguments(batch, channels, kernel, 1, dilation, size, layout)
    (step,) = _C.cost_cuda_depthwise(**asked | {"chip": CHIPS["sm_90"] | chip})
    return step


@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_maps_are_bound_by_memory(layout):
    step = forward(16, 128, 3, 1, (256, 256), layout)
    floor = 4 * 16 * 128 * 256 * 256 / CHIPS["sm_90"]["copy"]
    assert floor < step["seconds"] < 1.5 * floor
    assert step["bytes"] == 4 * 16 * 128 * 256 * 256


def test_dilation_is_free_on_channels_last():
    """Residue classes read their halo as often as neighbours do."""
    near, far = (forward(16, 128, 3, d, (256, 256), "channels_last") for d in (1, 16))
    assert far["seconds"] < 1.05 * near["seconds"]


def test_every_kernel_size_has_its_own_kernel():
    for kernel in (3, 5, 7):
        assert forward(1, 64, kernel, 1, (64, 64), "channels_last")["kernel"] == "depthwise_pixels"
        assert forward(1, 63, kernel, 1, (64, 64), "contiguous")["kernel"] == "depthwise_bands"
    assert forward(1, 64, 4, 1, (64, 64), "channels_last")["kernel"] == "depthwise_vectors"
    assert forward(1, 63, 3, 1, (64, 64), "channels_last")["kernel"] == "depthwise_elements"


def test_a_slower_chip_takes_longer():
    fast, slow = (forward(8, 256, 3, 1, (128, 128), "channels_last", copy=copy) for copy in (4.3e12, 1.0e12))
    assert slow["seconds"] > 3 * fast["seconds"] and slow["bound"] == "memory bandwidth"
    with pytest.raises(ValueError, match="chip: got the key 'speed'"):
        forward(8, 256, 3, 1, (128, 128), "channels_last", speed=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_separable_is_never_below_its_floor(layout):
    for batch, c, o, size in ((1, 64, 64, 14), (16, 128, 128, 128), (8, 728, 728, 33), (1, 2048, 256, 65)):
        cost = _C.cost_cuda_separable(out_channels=o, **arguments(batch, c, 3, 1, 1, (size, size), layout))
        for steps in (cost["fused"], cost["unfused"]):
            assert sum(step["seconds"] for step in steps) > cost["floor"] > 0


@pytest.mark.parametrize("c, o, stride, size", [(64, 64, 1, 256), (64, 128, 1, 257), (128, 128, 1, 257), (128, 128, 2, 257), (128, 256, 1, 129), (256, 256, 2, 129)])
def test_separable_nears_the_memory_floor(c, o, stride, size):
    """Layers that memory bounds, whose weights are no large part of the traffic: the ring of rows keeps the memory busy."""
    cost = _C.cost_cuda_separable(out_channels=o, **arguments(16, c, 3, stride, 1, (size, size), "channels_last"))
    (step,) = cost["fused"]
    assert step["seconds"] <= 1.5 * cost["floor"], step


def test_many_channels_stay_resident():
    """Each depthwise value is computed once: a tile of 64 pixels holds all channels."""
    for c in (512, 728, 1024):
        (step,) = _C.cost_cuda_separable(out_channels=c, **arguments(16, c, 3, 1, 1, (65, 65), "channels_last"))["fused"]
        assert "all input channels resident" in step["tile"]


def test_backward_adds_its_partial_sums():
    for layout in LAYOUTS:
        steps = _C.cost_cuda_depthwise(backward=True, **arguments(8, 128, 3, 1, 1, (128, 128), layout))
        assert [step["kernel"] for step in steps] == [f"depthwise_backward_{'pixels' if layout == 'channels_last' else 'bands'}", "sum_partials"]


def test_page_in_docs_is_current():
    page = ROOT / "docs" / "cuda-predicted.md"
    # Figures may differ in their last digit from one compiler's floating point to another's.
    words, expected = (re.sub(r"\d+\.\d+", "#", text) for text in (page.read_text(), cuda_predicted.page() + "\n"))
    assert words == expected, "run python -m bench.cuda_predicted > docs/cuda-predicted.md"
