"""bench/gpu.sh, walked through with a stand-in for the interpreter: the order of its stages, what each leaves, and what failures and
limits do. What the stages run is tested elsewhere."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "bench" / "gpu.sh"
STAGES = ["machine", "build", "loads", "operators", "gradients", "grid", "report", "rest"]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None or shutil.which("timeout") is None, reason="needs bash and timeout")

# Does what the script asks of python: nothing, unless told to fail or to take long. `-m bench --quick` leaves a result, as the benchmark
# does case by case.
INTERPRETER = """#!/usr/bin/env bash
case "$*" in *find_spec*) exit 1 ;; esac
echo "$*" | tr '\\n' ' ' >> "$CALLS"; echo >> "$CALLS"
printf 'a last line with "quotes" and a \\\\ in it\\n'
case "$*" in *"bench --quick"*) mkdir -p "$OUT/quick"; echo '{}' > "$OUT/quick/result.json" ;; esac
if [[ -n "$HANG" && "$*" == *"$HANG"* ]]; then sleep 60; fi
if [[ -n "$FAIL" && "$*" == *"$FAIL"* ]]; then exit 3; fi
exit 0
"""


def walk(tmp_path, fail="", hang="", seconds=570):
    """(exit code, stages as written, calls of the interpreter) of a run without a GPU."""
    interpreter = tmp_path / "python"
    interpreter.write_text(INTERPRETER)
    interpreter.chmod(interpreter.stat().st_mode | stat.S_IXUSR)
    out, calls = tmp_path / "out", tmp_path / "calls"
    calls.write_text("")
    environment = os.environ | {
        "PYTHON": str(interpreter), "OUT": str(out), "CALLS": str(calls), "FAIL": fail, "HANG": hang, "FASTCONV_DEVICE": "cpu",
        "FASTCONV_SECONDS": str(seconds),
    }  # fmt: skip
    done = subprocess.run(["bash", str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=300)
    stages = [json.loads(line) for line in (out / "stages.jsonl").read_text().splitlines()]
    return done, {stage["stage"]: stage for stage in stages}, calls.read_text().splitlines()


def test_stages_run_in_the_order_of_their_worth(tmp_path):
    done, stages, calls = walk(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(stages) == STAGES
    for name, stage in stages.items():
        assert stage["state"] == "passed" and "quotes" in stage["last_line"] and (tmp_path / "out" / f"{name}.log").exists()
    ran = " ".join(calls)
    # Correctness on the device before any figure; kernels on the CPU and compilers have no business there.
    assert (
        ran.index("test_separable.py")
        < ran.index("test_autograd.py")
        < ran.index("bench --quick")
        < ran.index("--ignore=tests/test_cuda_host.py")
    )
    hosted = ("cuda_host", "cuda_host_plants", "cuda_compiled", "triton_ahead", "triton_launch", "triton_plants", "gpu_script")
    for file in (f"test_{name}.py" for name in hosted):
        assert f"--ignore=tests/{file}" in ran and (ROOT / "tests" / file).exists()


def test_files_that_the_script_names_are_there():
    words = SCRIPT.read_text().replace(")", " ").replace(";", " ").replace("(", " ").split()
    for file in (word for word in words if word.startswith("tests/test_") and word.endswith(".py") and "{" not in word):
        assert (ROOT / file).exists(), file


def test_a_failure_is_told_and_does_not_stop_the_rest(tmp_path):
    done, stages, _ = walk(tmp_path, fail="tests/test_depthwise.py tests/test_separable.py")
    assert done.returncode == 1 and list(stages) == STAGES
    assert [name for name, stage in stages.items() if stage["state"] == "failed"] == ["operators"]
    assert stages["operators"]["exit"] == 3


@pytest.mark.parametrize(("broken", "last"), [("setup.py", "build"), ("import torch, fastconv", "loads")])
def test_nothing_runs_on_a_broken_build(tmp_path, broken, last):
    done, stages, _ = walk(tmp_path, fail=broken)
    assert done.returncode == 1 and list(stages)[-1] == last and stages[last]["state"] == "failed"


def test_a_cut_run_keeps_what_it_has(tmp_path):
    """The grid hangs until the time is up: its result so far stays, and what has no time left is told."""
    done, stages, _ = walk(tmp_path, hang="bench --quick", seconds=25)
    assert stages["grid"]["state"] == "cut short" and (tmp_path / "out" / "quick" / "result.json").exists()
    assert stages["operators"]["state"] == "passed" and stages["rest"]["state"] == "skipped"
    assert done.returncode == 0, "what ran was right"


def test_shellcheck_has_no_complaint():
    tool = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("no shellcheck on PATH")
    done = subprocess.run([tool, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def build(folder: Path, prebuilt: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"FASTCONV_PREBUILT": str(prebuilt)}, capture_output=True, text=True)


def test_libraries_built_elsewhere_are_taken_as_they_are(tmp_path):
    prebuilt, out = tmp_path / "prebuilt", tmp_path / "out"
    prebuilt.mkdir()
    names = ("libfastconv_cpu.so", "libfastconv_cuda.so", "_C.cpython-311-x86_64-linux-gnu.so")
    for name in (*names, "notes.txt"):
        (prebuilt / name).write_text(name)
    done = build(out, prebuilt)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (out / "fastconv").iterdir()) == sorted(names)
    (prebuilt / names[0]).unlink()
    done = build(out, prebuilt)
    assert done.returncode != 0 and "holds no libfastconv_cpu.so" in done.stderr
