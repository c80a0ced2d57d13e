"""The ladder of backends: who serves a call, why the others do not, and what is logged."""

import logging

import pytest
import torch
from helpers import assert_bitwise, rand

import fastconv.functional as FF
from fastconv import _ops, backends, reference


def test_every_operator_explains_itself():
    for op in _ops.FORWARD_OPS:
        choice = backends.explain_choice(op, "cpu", torch.float32)
        assert choice.backend == "cpu" and set(choice.refused) == {"cuda", "triton"}
        choice = backends.explain_choice(op, "cpu", torch.int32)
        assert choice.backend == "reference" and "float32" in choice.refused["cpu"]
        assert all(choice.refused.values())
        assert callable(getattr(reference, op))


def test_use_forces_and_restores():
    with backends.use("reference"):
        assert backends.select("shift", rand(1)) is reference
        with backends.use("cpu"):
            assert backends.select("shift", rand(1)) is _ops.native
        assert backends.select("shift", rand(1)) is reference
    assert backends.select("shift", rand(1)) is _ops.native


def test_a_forced_backend_that_cannot_run_says_why():
    with (
        backends.use("cuda"),
        pytest.raises(RuntimeError, match="fastconv::shift: the backend 'cuda' cannot run on cpu torch.float32: not a CUDA tensor"),
    ):
        FF.shift(rand(1, 1, 4, 4), 2)


def test_fallbacks_are_logged_once(caplog):
    backends._logged.clear()
    x = torch.arange(16, dtype=torch.int32).view(1, 1, 4, 4)
    with caplog.at_level(logging.WARNING, logger="fastconv.backends"):
        FF.shift(x, 2)
        FF.shift(x, 2)
    (record,) = caplog.records
    assert (
        "shift on cpu torch.int32 runs through torch.nn.functional" in record.getMessage()
        and "cpu: the kernels take" in record.getMessage()
    )


def test_forcing_the_reference_is_no_fallback(caplog):
    backends._logged.clear()
    x = rand(1, 3, 5, 5)
    with caplog.at_level(logging.WARNING, logger="fastconv.backends"), backends.use("reference"):
        out = FF.shift(x, 2)
    assert not caplog.records
    assert_bitwise(out, FF.shift(x, 2))


def test_reference_matches_the_schemas():
    """The reference stands in for the operators: same arguments, in the same order."""
    import inspect

    for op in _ops.FORWARD_OPS:
        schema = getattr(_ops.native, op)._schema
        assert [argument.name for argument in schema.arguments] == list(inspect.signature(getattr(reference, op)).parameters)
