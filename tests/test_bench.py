"""The benchmark's own promises: a wrong result is never timed, the floor counts what must be done, tables come from the record."""

import pytest
import torch

from bench import cost, measure, problem, report, rivals
from bench.cases import TIERS, Case, select
from bench.runtimes import Unavailable
from bench.sampling import Budget

TINY = Case("tiny", 8, 6, 9, 7, dilation=2, order="deeplab")
BUDGET = Budget(0.001, 0.001, 2)
CEILINGS = {
    "peak": {name: {"rate": 1e11, "probes": {"made up": 1e11}} for name in ("float32", "bfloat16")},
    "copy": [{"footprint": 2**20, "rate": 1e10, "probes": {"made up": 1e10}}],
}


def spoiled(name, spoil):
    """A contestant that computes the case and then spoils the result."""

    def build(given, layout):
        function = rivals.plain(given.case)
        return rivals.torch_runner(given, layout, lambda **tensors: spoil(function(**tensors)))

    return rivals.Rival(name, build, layouts=("contiguous",))


def one_element(output):
    output = output.clone()
    output[0, -1, -1, -1] += 0.1
    return output


def measured(monkeypatch, contestants, case=TINY):
    monkeypatch.setattr(measure, "contestants", lambda device: contestants)
    bench = measure.Bench("cpu", BUDGET, {})
    for _ in bench.steps(case):
        pass
    return {entry["rival"]: entry for entry in bench.record["results"]}, bench.record


@pytest.mark.parametrize(
    "spoil",
    [one_element, lambda output: output * (1 + 1e-4), lambda output: output * float("nan"), lambda output: output[..., 1:], torch.Tensor.double],
    ids=["one element", "all a little", "nan", "shape", "dtype"],
)
def test_wrong_result_is_not_timed(monkeypatch, spoil):
    entries, record = measured(monkeypatch, [spoiled("fastconv", spoil), spoiled("eager", lambda output: output)])
    assert entries["fastconv"]["status"] == "wrong"
    assert measure.best_time(entries["fastconv"]) is None
    assert measure.best_time(entries["eager"]) > 0
    result = {"machine": {"device": "cpu"}, "ceilings": CEILINGS, "cases": [record]}
    (row,) = report.rows(result)
    assert row.over_best is None
    assert "WRONG" in report.tables(result)[0].markdown()
    assert any("WRONG" in line for line in report.absences(result))


def test_absence_is_told(monkeypatch):
    def refuse(given, layout):
        raise Unavailable("has no such thing")

    def crash(given, layout):
        raise RuntimeError("broke")

    contestants = [rivals.Rival("fastconv", refuse, ("contiguous",)), rivals.Rival("eager", crash, ("contiguous",))]
    entries, record = measured(monkeypatch, contestants)
    told = report.absences({"machine": {"device": "cpu"}, "cases": [record]})
    assert [entry["status"] for entry in entries.values()] == ["skipped", "failed"]
    assert "has no such thing" in told[0] and "RuntimeError: broke" in told[1]


def test_triton_is_a_row_beside_cuda():
    names = [rival.name for rival in rivals.contestants("cuda")]
    assert names[:2] == ["fastconv cuda", "fastconv triton"]
    assert not any("triton" in rival.name for rival in rivals.contestants("cpu"))
    absences = report.absences({"machine": {"device": "cpu"}, "cases": [], "elsewhere": rivals.elsewhere("cpu")})
    assert any(line.startswith("fastconv triton, all cases, not runnable here: runs on a GPU") for line in absences)
    assert not rivals.elsewhere("cuda")


def check_against_autograd(case):
    """Plain PyTorch in float64 gives the problem's own answers."""
    given = problem.Problem(case, "cpu", 1)
    given.parameters = {name: value.double() for name, value in given.parameters.items()}
    given.images = {name: value.double() for name, value in given.images.items()}
    results = rivals.torch_runner(given, "contiguous", rivals.plain(case)).call(0)
    for (name, expected), result in zip(given.expected.items(), results, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
@pytest.mark.parametrize("order", ["bare", "xception", "deeplab", "mobilenet", "mobilenetv3", "smp"])
def test_answer_of_separable(order, direction):
    check_against_autograd(Case("tiny", 8, 6, 9, 7, dilation=2, stride=2, order=order, direction=direction, residual=order == "xception"))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_answer_of_depthwise(direction):
    check_against_autograd(Case("tiny", 8, 8, 9, 7, kernel=5, order="convnext", op="depthwise", direction=direction))


@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
def test_answer_of_pools(op):
    check_against_autograd(Case("tiny", 8, 8, 9, 7, stride=2, op=op, direction="forward_backward"))


def test_cost_counts_the_taps_inside_the_map():
    case = Case("middle", 728, 728, 33, 33, dilation=2)
    inside = (33 * 3 - 4) ** 2
    assert cost.cost(case) == cost.Cost(2 * 728 * inside, 2 * 728**2 * 33**2, 4 * (2 * 728 * 33**2 + 728 * 9 + 728**2))


def test_copy_rate_never_flatters():
    curve = [{"footprint": 1, "rate": 30.0}, {"footprint": 4, "rate": 10.0}, {"footprint": 16, "rate": 12.0}]
    assert [cost.copy_rate(curve, size) for size in (0, 1, 3, 4, 100)] == [30.0, 30.0, 30.0, 12.0, 12.0]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_grids_grow_and_ids_are_distinct(device):
    grids = [[case.id for case in select(device, tier)] for tier in TIERS]
    assert set(grids[0]) < set(grids[1]) < set(grids[2])
    assert all(len(set(grid)) == len(grid) for grid in grids)
