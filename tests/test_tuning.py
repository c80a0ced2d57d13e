"""Tables of measured choices: the file, what a table overrides, and the tuner's loop on launches that are recorded instead of run."""

import json

import pytest
import torch
from helpers import rand

import fastconv.functional as FF
from fastconv import _ops, backends, tuning

KEY = tuning.Key("depthwise_conv2d", "bfloat16", "channels_last", "k3x3 s1x1 d2x2 c128 o128 p32768")


def test_shape_class_rounds_up():
    assert tuning.shape_class((8, 128, 64, 64), 128, (3, 3), (1, 1), (2, 2)) == KEY.shape
    assert tuning.shape_class((1, 65, 57, 570), 128, (3, 3), (1, 1), (2, 2)) == KEY.shape
    assert tuning.shape_class((1, 728, 33, 33), 1) == "k1x1 s1x1 d1x1 c1024 o1 p2048"


def test_a_table_survives_its_file(tmp_path):
    table = tuning.Table(
        "Some GPU 80GB", {KEY: tuning.Entry("cuda", {"triton": {"columns": 8}}, {"cuda": 1e-5, "triton": 2e-5})}, {"torch": "2.13"}
    )
    path = tmp_path / tuning.file_name(table.device)
    assert path.name == "some-gpu-80gb.json"
    table.save(path)
    assert tuning.Table.load(path) == table


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1, "device": "x", "made": {}, "entries": [{"op": "shift"}]}'])
def test_a_file_that_is_no_table_is_named(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="broken.json is not a table of measured choices"):
        tuning.Table.load(path)


def test_shipped_tables_name_tiles_that_exist():
    tables = pytest.importorskip("fastconv.triton.tables")
    for path in tuning.HERE.glob("*.json"):
        table = tuning.Table.load(path)
        assert path.name == tuning.file_name(table.device)
        for key, entry in table.entries.items():
            if "triton" in entry.tiles:
                rows = tables.candidates(key.op, key.layout == "channels_last")
                assert entry.tiles["triton"] in [tables.as_tile(row) for row in rows]


def test_a_device_reads_its_own_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "_device_name", lambda index: "Some GPU")
    monkeypatch.setenv("FASTCONV_TUNING", str(tmp_path))
    tuning._of_device.cache_clear()
    device = torch.device("cuda")
    try:
        tuning.Table("Some GPU", {KEY: tuning.Entry(None, {"triton": {"columns": 8}})}).save(tmp_path / "some-gpu.json")
        assert tuning.tile(device, "triton", KEY) == {"columns": 8}
        assert tuning.tile(device, "cuda", KEY) is None and tuning.table_of(torch.device("cpu")) is None
        monkeypatch.setenv("FASTCONV_TUNING", "off")
        assert tuning.table_of(device) is None
    finally:
        tuning._of_device.cache_clear()


# ---- the backend that a table chooses ----------------------------------------------------------------------------------------------


def test_the_measured_backend_serves_if_it_can():
    # A fake tensor is on a GPU that is not there.
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(1, 4, 8, 8, device="cuda")
    geometry = (4, (3, 3), (1, 1), (1, 1))
    key = backends.key_of("depthwise_conv2d", x, *geometry)
    assert key == ("depthwise_conv2d", "float32", "contiguous", "k3x3 s1x1 d1x1 c4 o4 p64")
    usual = backends.select("depthwise_conv2d", x, *geometry)
    with tuning.use(tuning.Table("", {key: tuning.Entry("reference")})):
        assert backends.select("depthwise_conv2d", x, *geometry) is backends.reference
        assert backends.select("depthwise_conv2d", x, 4, (5, 5), (1, 1), (1, 1)) is usual
        choice = backends.explain_choice("depthwise_conv2d", x.device, x.dtype, key)
        assert choice.backend == "reference" and "measured faster here" in " ".join(choice.refused.values())
        with backends.use("cpu"), pytest.raises(RuntimeError, match="not a CPU tensor"):
            backends.select("depthwise_conv2d", x, *geometry)
    for cannot in ("cpu", "no such backend"):
        with tuning.use(tuning.Table("", {key: tuning.Entry(cannot)})):
            assert backends.select("depthwise_conv2d", x, *geometry) is usual


def test_tables_are_of_gpus():
    x, weight = rand(1, 4, 8, 8), rand(4, 1, 3, 3)
    key = backends.key_of("depthwise_conv2d", x, 4, (3, 3), (1, 1), (1, 1))
    with tuning.use(tuning.Table("", {key: tuning.Entry("reference")})):
        assert backends.select("depthwise_conv2d", x, 4, (3, 3), (1, 1), (1, 1)) is _ops.native
        assert FF.depthwise_conv2d(x, weight).shape == (1, 4, 6, 6)


# ---- the tiles that a table overrides ----------------------------------------------------------------------------------------------

triton_backend = pytest.importorskip("fastconv.triton", reason="the Triton backend needs triton")
if triton_backend.INTERPRETED:
    pytest.skip("tiles under the interpreter are its own", allow_module_level=True)

from bench import triton_static as static  # noqa: E402
from bench import tune  # noqa: E402
from bench.cases import select  # noqa: E402
from fastconv.triton import tables  # noqa: E402
from fastconv.triton.launch import FAMILIES, record  # noqa: E402

BF16 = torch.bfloat16


def keys_of(layer, **options):
    with tuning.use(tuning.Table("")), tuning.asked() as keys:
        static.launches("sm_90", layer, BF16, True, **options)
    return keys


@pytest.mark.parametrize("layer", static.LAYERS, ids=lambda layer: layer.__name__)
def test_every_stage_that_is_asked_for_has_candidates_and_obeys(layer):
    """Each candidate goes through the file's form and changes what is launched, or is the usual tile."""
    keys = keys_of(layer)
    assert keys or layer is static.depthwise_strided
    for key in keys:
        launched = []
        for row in tables.candidates(key.op, True):
            table = tuning.Table("", {key: tuning.Entry(None, {"triton": json.loads(json.dumps(tables.as_tile(row)))})})
            with tuning.use(table):
                launched.append(
                    [(launch.arguments | launch.options, launch.kernel) for launch in static.launches("sm_90", layer, BF16, True)]
                )
        assert len({str([kernel for _, kernel in launches]) + tiles_of(launches) for launches in launched}) > 3


def tiles_of(launches) -> str:
    names = ("BW", "BC", "BM", "BK", "BN", "BO", "ROWS", "RING", "num_warps", "num_stages", "maxnreg")
    return str([[arguments.get(name) for name in names] for arguments, _ in launches])


def test_a_tile_of_other_fields_is_refused():
    (key,) = keys_of(static.max_pool)
    with (
        tuning.use(tuning.Table("", {key: tuning.Entry(None, {"triton": {"bm": 3}})})),
        pytest.raises(ValueError, match="argmax that is none"),
    ):
        static.launches("sm_90", static.max_pool, BF16, True)


# ---- the tuner's loop --------------------------------------------------------------------------------------------------------------


def layer_of(function, key=None, **options):
    def run(backend):
        if backend == "triton":
            function(BF16, True, **options)
        return ()

    return tune.Layer(function.__name__, run, key)


def clock(cost):
    """A timer that adds up `cost(kernel name, arguments and options)` over what a call launches; a call that launches nothing takes a
    second."""

    def seconds(call):
        with record(FAMILIES["sm_90"]) as recorder:
            call()
        return sum(cost(launch.kernel.__name__, launch.arguments | launch.options) for launch in recorder.launches) or 1.0

    return seconds


@pytest.fixture
def there():
    """A GPU to ask for its family."""
    with record(FAMILIES["sm_90"]):
        yield


def test_the_tuner_keeps_the_fastest_tile(there):
    (key,) = keys_of(static.depthwise_forward)
    said = []
    seconds = clock(lambda kernel, sizes: 0.5 if (sizes["BW"], sizes["num_warps"], sizes["maxnreg"]) == (8, 8, 255) else 2.0)
    table = tune.Tuner(tuning.Table("GPU"), seconds, say=said.append).tune([layer_of(static.depthwise_forward)])
    tile = table.entries[key].tiles["triton"]
    assert (tile["columns"], tile["warps"], tile["maxnreg"]) == (8, 8, None)
    assert table.entries[key].backend is None and "4.00 times as fast" in said[-1]


def test_the_usual_tile_stays_unless_another_is_faster_beyond_noise(there):
    table = tuning.Table("GPU")
    tune.Tuner(table, clock(lambda kernel, sizes: 1.0 + 0.001 * sizes["num_warps"]), say=lambda line: None).tune(
        [layer_of(static.depthwise_forward)]
    )
    assert not table.entries


def test_tiles_that_fail_or_differ_are_refused(there):
    def cost(kernel, sizes):
        if sizes["num_warps"] == 8:
            raise RuntimeError("out of resources: shared memory\nand more")
        return 0.1 if sizes["maxnreg"] == 255 else 1.0

    results = {4: torch.ones(3), 8: torch.ones(3)}

    def run(backend):
        with record(FAMILIES["sm_90"]) as recorder:
            static.depthwise_forward(BF16, True)
        static.depthwise_forward(BF16, True)
        (launch,) = recorder.launches
        # With few columns the result is another one.
        return (results[4] * (2.0 if launch.arguments["BW"] == 8 else 1.0),)

    said = []
    (key,) = keys_of(static.depthwise_forward)
    table = tune.Tuner(tuning.Table("GPU"), clock(cost), say=said.append).tune([tune.Layer("layer", run, None)])
    tile = table.entries[key].tiles["triton"]
    assert tile["columns"] > 8 and tile["warps"] == 4 and tile["maxnreg"] is None
    assert any("out of resources: shared memory" in line and "and more" not in line for line in said)
    assert any("another result" in line for line in said)


def test_depthwise_and_product_apart_are_tuned_before_they_are_compared(there):
    """Apart wins only with the best tiles of its own."""

    def cost(kernel, sizes):
        if kernel == "separable_fused":
            return 3.0
        return 1.0 if sizes["num_warps"] == 8 and sizes.get("BW", sizes.get("BM")) in (8, 64) else 2.0

    table = tune.Tuner(tuning.Table("GPU"), clock(cost), say=lambda line: None).tune([layer_of(static.separable_forward)])
    tiles = {key.op: entry.tiles["triton"] for key, entry in table.entries.items()}
    assert tiles["depthwise_separable_conv2d"] == {"apart": True}
    assert tiles["depthwise_conv2d"]["columns"] == 8 and tiles["pointwise_product"]["bm"] == 64
    with tuning.use(table):
        names = [launch.kernel.__name__ for launch in static.launches("sm_90", static.separable_forward, BF16, True)]
    assert names == ["depthwise_ring", "pointwise_product"]


def test_the_tuner_compares_backends(there, tmp_path):
    case = next(case for case in select("cuda", "full") if case.op == "depthwise" and case.direction == "forward")
    key = tune.key_of(case, "channels_last")
    layer = layer_of(static.depthwise_forward, key)
    table = tune.Tuner(tuning.Table("GPU"), clock(lambda kernel, sizes: 2.0), ("cuda",), say=lambda line: None).tune([layer])
    assert table.entries[key] == tuning.Entry("cuda", {}, {"triton": 2.0, "cuda": 1.0})
    table.save(tmp_path / "gpu.json")
    assert tuning.Table.load(tmp_path / "gpu.json") == table


def test_keys_of_cases_are_those_of_calls():
    """The tuner writes what a call looks up."""
    for case in {case.op: case for case in select("cuda", "full")}.values():
        x = torch.empty(case.in_shape, dtype=getattr(torch, case.dtype), device="meta")
        geometry = ((case.kernel,) * 2, (case.stride,) * 2, (case.dilation,) * 2)
        assert backends.key_of(tune.OPERATORS[case.op], x, case.out_channels, *geometry) == tune.key_of(case, "contiguous")


def test_tuning_needs_a_gpu():
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="torch sees none here"):
            tune.main("quick", None, None)
