"""`python -m bench dense`: the contestants agree, a wrong one ends the run, tables and page come from the record."""

import json

import pytest
import torch

from bench import dense, dense_report, report


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """One small case, measured as in earnest."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "SIZES", {"quick": (64,)})
        patch.setattr(dense, "FEWEST", 1)
        patch.setattr(dense, "MOST", 1)
        patch.setattr(dense, "SAMPLED_RUNS", 4)
        threads = torch.get_num_threads()
        try:
            return dense.run("cpu", "quick", threads, folder, only="small resnet"), folder
        finally:
            torch.set_num_threads(threads)


def test_every_contestant_is_compared_and_timed(result):
    (case,) = result[0]["cases"]
    names = [entry["name"] for entry in case["contestants"]]
    assert names == [dense.DILATED, dense.FRAGMENTS, dense.AUTO, dense.SHIFTED]
    for entry in case["contestants"]:
        assert entry["error"] <= dense.TOLERANCE and entry["median"] > 0
        assert entry["share"] == (4 / dense.STRIDE**2 if entry["name"] == dense.SHIFTED else 1)
    # Four runs stand for all of them.
    shifted = case["contestants"][-1]
    assert shifted["median"] > 100 * case["strided_seconds"]


def test_tables_and_page_come_from_the_record(result, tmp_path):
    record, folder = result
    assert json.loads((folder / "dense.json").read_text())["cases"] == record["cases"]
    assert (folder / "dense.md").exists()
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- dense:begin -->\nold\n<!-- dense:end -->\nafter\n")
    # The goals are about one size; as if this were it.
    goal = record | {"goal_size": 64}
    dense_report.inject(goal, folder, page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    times = {entry["name"]: entry["median"] for entry in record["cases"][0]["contestants"]}
    gain = times[dense.SHIFTED] / times[dense.AUTO]
    assert f"| {dense_report.ratio(gain)} | {'reached' if gain >= 10 else 'missed'} |" in text


def test_the_noise_of_a_run_comes_from_programs_timed_twice():
    def entry(name, median, chosen):
        return {"name": name, "median": median, "chosen": chosen}

    pure = [entry(dense.DILATED, 2.0, "dilated"), entry(dense.FRAGMENTS, 3.0, "fragments")]
    mixed, slower = entry(dense.AUTO, 1.0, "fragments behind a"), entry(dense.AUTO, 2.2, "dilated")
    assert dense_report.noise({"cases": [{"contestants": [*pure, mixed]}]}) is None
    assert dense_report.noise({"cases": [{"contestants": [*pure, slower]}]}) == pytest.approx(1.1)


def test_a_wrong_map_ends_the_run(monkeypatch):
    right = dense.shifted_runs
    monkeypatch.setattr(dense, "shifted_runs", lambda model, x, runs: right(model, x, runs) * (1 + 1e-4))
    monkeypatch.setattr(dense, "SAMPLED_RUNS", 2)
    with pytest.raises(SystemExit, match="shifted runs is wrong"):
        dense.measure(dense.DenseCase("small resnet", "contiguous", 64), "cpu", None)


def test_pieces_of_a_run_are_put_together(tmp_path):
    machine = {"commit": "a", "name": "m", "threads": 2, "versions": {}}
    path = tmp_path / "dense.json"
    path.write_text(json.dumps({"machine": machine, "cases": [{"id": "one"}, {"id": "two"}]}))
    assert report.measured_before(path, machine, "cases", {"two"}) == [{"id": "one"}]
    assert report.measured_before(path, machine | {"commit": "b"}, "cases", {"two"}) == []
