"""Runs tests/triton_kernels.py and triton_blocks.py: in place where there is a GPU, elsewhere in a process of its own under Triton's
interpreter, which has to be chosen before Triton is imported; there the random cases of triton_random.py run too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the Triton backend needs triton")

HERE = Path(__file__).resolve().parent

if torch.cuda.is_available():
    sys.path.insert(0, str(HERE))
    from triton_blocks import *  # noqa: F403
    from triton_kernels import *  # noqa: F403
else:

    def test_kernels_under_the_interpreter():
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        files = [str(HERE / f"triton_{name}.py") for name in ("kernels", "blocks", "random")]
        command = [sys.executable, "-m", "pytest", "-q", "--durations=5", "-p", "no:cacheprovider", *files]
        result = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True)
        print(result.stdout)
        assert result.returncode == 0, result.stdout[-20000:] + result.stderr[-2000:]
