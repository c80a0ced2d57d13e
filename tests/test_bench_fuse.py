"""`python -m bench fuse`: the contestants agree, a wrong one ends the run, tables and page come from the record."""

import json

import pytest
import torch
from test_fuse_networks import library

from bench import fuse, fuse_report


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """One small network, measured as in earnest, without the minutes that compiling takes."""
    library("timm")
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuse, "NETWORKS", [fuse.Network("timm:mobilenetv2_050", 64)])
        patch.setattr(fuse, "BUDGETS", {"quick": fuse.Budget(0.01, 0.0, 2)})
        threads = torch.get_num_threads()
        try:
            return fuse.run("cpu", "quick", threads, folder, compiled=False), folder
        finally:
            torch.set_num_threads(threads)


def test_every_contestant_is_compared_and_timed(result):
    (network,) = result[0]["networks"]
    assert [entry["name"] for entry in network["contestants"]] == [fuse.EAGER, fuse.CHANNELS_LAST, fuse.FUSED, fuse.MEASURED, fuse.EVERYTHING]
    for entry in network["contestants"]:
        assert entry["error"] <= fuse.TOLERANCE and 0 < entry["min"] <= entry["median"] and entry["samples"] >= 2
    everything = network["contestants"][-1]["chains"]
    assert everything["pairs"] == 17 and everything["left"] == 0


def test_tables_and_page_come_from_the_record(result, tmp_path):
    record, folder = result
    assert json.loads((folder / "fuse.json").read_text())["networks"] == record["networks"]
    text = (folder / "fuse.md").read_text()
    assert "mobilenetv2_050" in text and "never slower" in text
    page = tmp_path / "fuse.md"
    page.write_text("before\n<!-- fuse:begin -->\nold\n<!-- fuse:end -->\nafter\n")
    fuse_report.inject(record, folder, page)
    assert "old" not in page.read_text() and "mobilenetv2_050" in page.read_text() and page.read_text().endswith("after\n")
    page.write_text("no markers")
    with pytest.raises(SystemExit, match="has no"):
        fuse_report.inject(record, folder, page)


def test_a_wrong_result_ends_the_run():
    expected = torch.ones(4, dtype=torch.float64)
    with pytest.raises(SystemExit, match="fused is wrong: relative error"):
        fuse.checked(fuse.Contestant(fuse.FUSED, lambda: torch.full((4,), 1.001)), expected)
    with pytest.raises(SystemExit, match="is wrong"):
        fuse.checked(fuse.Contestant(fuse.FUSED, lambda: torch.full((4,), float("nan"))), expected)
