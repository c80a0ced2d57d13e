"""Run by test_triton_plants.py with a package that has every bug of triton_plants.py in it: each must be noticed when it is switched on."""

import inspect
import zlib
from functools import cache

import pytest
import torch
import triton_blocks
import triton_kernels
from conftest import SEED
from triton.runtime.errors import InterpreterError
from triton_kernels import exact_float32, guarded_addresses, one_patch_a_launch, poisoned_memory, pytestmark  # noqa: F401
from triton_plants import PLANTS

from fastconv.triton import planted


def run(case: tuple, number: int) -> str | None:
    """The case with one bug switched on, 0 for none: what it has against the result or the addresses."""
    name, *parameters = case
    test = getattr(triton_kernels, name, None) or getattr(triton_blocks, name)
    torch.manual_seed(SEED ^ zlib.crc32(repr(case).encode()))
    planted.number = number
    try:
        with pytest.MonkeyPatch.context() as monkeypatch:
            if "monkeypatch" in inspect.signature(test).parameters:
                parameters.append(monkeypatch)
            test(*parameters)
    except AssertionError as wrong:
        return str(wrong) or "a wrong result"
    except InterpreterError as error:
        if "outside of the tensors" not in str(error):
            raise
        return str(error)
    finally:
        planted.number = 0
    return None


@cache
def without_bugs(case: tuple) -> str | None:
    return run(case, 0)


@pytest.mark.parametrize("name", PLANTS)
def test_bug_is_noticed(name):
    case = PLANTS[name].case
    assert without_bugs(case) is None
    noticed = run(case, list(PLANTS).index(name) + 1)
    assert noticed, f"{case} passes"
    print(noticed)
