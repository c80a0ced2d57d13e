"""The interpreter's net catches bugs in the Triton kernels and their launchers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastconv

pytest.importorskip("triton", reason="the Triton backend needs triton")

from triton_plants import mutant  # noqa: E402


def test_interpreter_notices_planted_bugs(tmp_path):
    mutant(Path(fastconv.__file__).parent, tmp_path)
    # The interpreter on a GPU's machine too, where the kernels themselves could not ask which bug is on.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(tmp_path)}
    tests = Path(__file__).resolve().parent / "triton_planted.py"
    command = [sys.executable, "-m", "pytest", "-q", "--durations=5", "-p", "no:cacheprovider", str(tests)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    print(result.stdout)
    assert result.returncode == 0, result.stdout[-20000:] + result.stderr[-2000:]
