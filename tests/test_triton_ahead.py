"""The Triton kernels compiled ahead of time, for devices that are not here: no spills, shared memory within limits, wide loads, wgmma on
Hopper.

The usual run takes a few layers a target; `pytest -m all_tiles` compiles every layer, dtype, format and tile for every target.
"""

import os

import pytest
import torch

triton = pytest.importorskip("triton", reason="the Triton backend needs triton")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels do not compile under the interpreter", allow_module_level=True)

from bench import triton_grid as grid  # noqa: E402
from bench import triton_static as static  # noqa: E402
from bench.cases import select  # noqa: E402
from bench.triton_static import depthwise_backward, depthwise_forward, max_pool, max_pool_backward, separable_forward  # noqa: E402
from fastconv.triton import access, configs  # noqa: E402
from fastconv.triton.ahead import compile_launch  # noqa: E402
from fastconv.triton.launch import FAMILIES, Conv  # noqa: E402
from fastconv.triton.plan import taken, ways  # noqa: E402

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


# Of Ampere, Hopper and Blackwell.
TENSOR_CORES = r"\b(HMMA|HGMMA|UTC\w*MMA)"


def check(family, layer, dtype, channels_last, kernels=None, **options):
    """Compiles the launches of a layer, or only those of the `kernels` named; returns the reports by kernel name."""
    reports = {}
    for launch in static.launches(family, layer, dtype, channels_last, **options):
        name = launch.kernel.__name__
        if kernels is not None and name not in kernels:
            continue
        report = compile_launch(launch, FAMILIES[family])
        assert report.spills == 0, f"{name}: {report.spills} bytes spilled, {launch.arguments}"
        assert report.shared_memory <= FAMILIES[family].shared_memory, name
        taps = launch.arguments.get("KH", 1) * launch.arguments.get("KW", 1)
        bits = next((bits for most, bits in LOADS.get(name, ()) if taps <= most), None)
        if channels_last and family != "gfx942" and bits is not None:
            wide = dtype != F32 and bits == 128
            assert report.count(r"LDG\.E\.128" if wide else r"LDG\.E\.(64|128)"), f"{name}: no global loads of {bits} bits"
        if dtype == F32 and not options.get("allow_tf32", True):
            assert not report.count(TENSOR_CORES), f"{name}: operands rounded to TF32 in full precision"
        reports[name] = report
    return reports


# (Most taps, bits of a load of a map in 16-bit dtypes). 128 bits are eight channels a thread, of each of which the thread holds in float32:
#   depthwise_ring           the taps, KH sums, a row at KW shifts. 9 taps: 15 x 8 = 120 registers. 25 taps: 35 x 8 = 280, more than the
#                            255 there are, so four channels, 64 bits: 5/4 loads an element instead of 5/8, 0.6 of 46 instructions. 49
#                            taps: 63 x 4 = 252 and no room for an address, so two: 7/2 loads instead of 7/8, 2.6 of 91.
#   depthwise_backward_ring  taps and their gradients, KH sums, KH rows of x, a row at KW shifts. 9 taps: 27 x 8 = 216, and the addresses
#                            and masks of two maps beside: four channels. 25 taps: 65 x 4 = 260, so two.
#   separable_fused          the accumulator of the product beside the ring: four channels in the 128 registers that let two blocks run.
# Loads of 32 bits (two channels) are not listed: they are what is left.
LOADS = {
    "depthwise_ring": ((9, 128), (25, 64)),
    "depthwise_backward_ring": ((9, 64),),
    "separable_fused": ((9, 64),),
    **dict.fromkeys(("max_pool_ring", "avg_pool_ring", "pool_backward_ring", "permute"), ((9, 128),)),
}

QUICK = [
    ("sm_90", depthwise_forward, BF16, True),
    ("sm_90", depthwise_backward, BF16, True),
    ("sm_90", max_pool, BF16, True),
    ("sm_90", static.avg_pool_backward, F16, False),
    ("sm_80", depthwise_backward, F16, True),
    ("sm_100", max_pool_backward, BF16, True),
    ("gfx942", depthwise_forward, BF16, True),
    ("gfx942", max_pool, BF16, True),
]
OPERANDS = {"half": (BF16, True), "tf32": (F32, True), "ieee": (F32, False)}


def names(cases):
    return [f"{f}-{layer.__name__}-{str(dtype)[6:]}-{'channels_last' if cl else 'contiguous'}" for f, layer, dtype, cl in cases]


@pytest.mark.parametrize("family,layer,dtype,channels_last", QUICK, ids=names(QUICK))
def test_compiles(family, layer, dtype, channels_last):
    check(family, layer, dtype, channels_last)


@pytest.mark.all_tiles
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", static.LAYERS, ids=lambda layer: layer.__name__)
def test_every_layer_compiles(family, layer):
    for dtype in (BF16, F16, F32):
        for channels_last in (True, False):
            check(family, layer, dtype, channels_last)


def test_hopper_multiplies_with_wgmma():
    assert check("sm_90", separable_forward, BF16, True)["separable_fused"].count("HGMMA")


@pytest.mark.all_tiles
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("k,d", [(2, 1), (5, 1), (7, 1)])
@pytest.mark.parametrize("channels_last", [True, False])
def test_larger_kernels_compile(family, k, d, channels_last):
    check(family, depthwise_forward, BF16, channels_last, k=k, d=d)
    check(family, depthwise_backward, BF16, channels_last, k=k, d=d)


@pytest.mark.parametrize("family", ["sm_90", "sm_100"])
def test_full_precision_multiplies_without_tensor_cores(family):
    """Triton 3.6 may take tcgen05, which rounds operands to TF32, where a program of sm_100 has 4 or 8 warps (triton issue 10176)."""
    assert check(family, separable_forward, F32, True, allow_tf32=False)["separable_fused"].count("FFMA")
    assert check(family, separable_forward, F32, True, allow_tf32=True)["separable_fused"].count(TENSOR_CORES)


@pytest.mark.all_tiles
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("operands", OPERANDS)
@pytest.mark.parametrize("c,o,n,size", [(512, 512, 8, 32), (728, 728, 8, 33), (512, 512, 8, 7), (1024, 1024, 32, 7), (24, 20, 8, 16)])
def test_every_separable_tile_compiles(family, operands, c, o, n, size):
    dtype, allow_tf32 = OPERANDS[operands]
    for layer in (separable_forward, static.separable_backward):
        check(family, layer, dtype, True, c=c, o=o, n=n, size=size, allow_tf32=allow_tf32)


# As many rows and columns as a tile has, fewer columns, and residue classes of two rows.
SHAPES = ((8, 64, 1), (64, 7, 1), (8, 33, 18))
# The kernels whose tiles take a shape from the map.
SHAPED = ("separable_fused", "gradient_of_intermediate", "pointwise_gradient")


@pytest.mark.all_tiles
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("operands", OPERANDS)
@pytest.mark.parametrize("channels", [64, 128, 256])
@pytest.mark.parametrize("n,size,d", SHAPES)
def test_fused_tiles_compile_in_every_shape(family, operands, channels, n, size, d):
    dtype, allow_tf32 = OPERANDS[operands]
    for layer in (separable_forward, static.separable_backward):
        for channels_last in (True, False):
            options = {"c": channels, "o": channels, "n": n, "size": size, "d": d, "allow_tf32": allow_tf32}
            check(family, layer, dtype, channels_last, SHAPED, **options)


@pytest.mark.all_tiles
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_the_grid_spills(family):
    """The benchmark's layers and those it has none of: registers go with widths, windows, strides, activations and tails."""
    cases = select("cuda", "quick") + grid.more_cases()
    assert not [wrong for found in grid.compiled(cases, family) if (wrong := grid.unfit(found, family))]


COUNTED = pytest.mark.skipif(
    not triton.__version__.startswith("3.6."), reason="the instructions that these figures count are those of triton 3.6"
)

# Instructions an element in the loop over rows, bfloat16 channels_last, K = 3; what each kernel is for.
CEILINGS = {depthwise_forward: 20.5, max_pool: 30, max_pool_backward: 43, static.avg_pool: 19.5}


@COUNTED
@pytest.mark.all_tiles
@pytest.mark.parametrize("layer", CEILINGS, ids=lambda layer: layer.__name__)
def test_instructions_an_element(layer):
    (launch,) = static.launches("sm_90", layer, BF16, True)
    assert compile_launch(launch, FAMILIES["sm_90"]).instructions_an_element(launch) <= CEILINGS[layer]


@COUNTED
@pytest.mark.all_tiles
@pytest.mark.parametrize("family", sorted({key.split()[0] for key in access.counted()}))
def test_counted_instructions_are_those_of_the_compiled_kernels(family):
    """Within a tenth: 3.9 takes a fifth less for contiguous depthwise rows."""
    for key, instructions in static.counts(family).items():
        assert access.counted()[key] == pytest.approx(instructions, rel=0.1), key


@pytest.mark.all_tiles
@pytest.mark.parametrize("n,c,k", [(8, 128, 3), (64, 128, 3), (64, 128, 5), (8, 512, 3)])
def test_contiguous_maps_take_the_cheaper_way(n, c, k):
    """Strided loads cost instructions, copies into channels_last and back memory traffic. The choice, made from counts that are kept, is
    what compiling both ways comes to, wherever the two are not the same within a tenth."""
    x, depthwise, pointwise = (static.meta(*shape, dtype=BF16) for shape in ((n, c, 64, 64), (c, 1, k, k), (c, c)))
    geometry = (1, 1), (k // 2,) * 4, (1, 1)
    for op, arguments in (
        ("depthwise_separable_conv2d", (x, depthwise, pointwise, None, None, None, *geometry, "identity", "relu", "relu")),
        ("depthwise_conv2d", (x, depthwise, None, *geometry, "relu")),
    ):
        strided, copied = ways(op, arguments, x, FAMILIES["sm_90"])
        if max(strided.seconds, copied.seconds) > 1.1 * min(strided.seconds, copied.seconds):
            assert taken(op, arguments, FAMILIES["sm_90"]) == min(strided, copied, key=lambda way: way.seconds).name


def test_scratch_is_bounded():
    """Depthwise and product apart: the batch goes through the scratch in runs, and every image goes once."""
    x = static.meta(64, 512, 64, 64, dtype=BF16, channels_last=True)
    conv = Conv.of(x, static.meta(512, 1, 3, 3, dtype=BF16), (1, 1), (1,) * 4, (1, 1))
    runs = configs.image_runs(conv, 2)
    assert [image for begin, end in runs for image in range(begin, end)] == list(range(64))
    assert max(end - begin for begin, end in runs) * 512 * 64 * 64 * 2 <= configs.SCRATCH_BYTES
