"""What the interpreter does not look at: where a kernel points, and memory that it was to write and did not."""

import numpy
import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty is NaN: a position left out must not show the right value that an earlier call left there."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def _extent(tensor) -> tuple[int, int]:
    """First address, and the one past the last."""
    elements = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + elements * tensor.element_size()


@pytest.fixture(autouse=True)
def guarded_addresses(monkeypatch):
    """Under the interpreter every address that a launch reads or writes, unless masked, must lie in one of its tensors."""
    from triton import knobs
    from triton.runtime import interpreter

    if not knobs.runtime.interpret:
        return
    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    convert, load, store = executor._init_args_hst, builder.create_masked_load, builder.create_masked_store
    spans = []

    def converted(self, positional, named):
        operands = [value for value in (*positional, *named.values()) if isinstance(value, torch.Tensor) and value.numel()]
        spans[:] = map(_extent, operands)
        return convert(self, positional, named)

    def check(pointers, mask):
        addresses = pointers.data[numpy.broadcast_to(mask.data, pointers.data.shape)]
        size = numpy.uint64(pointers.get_element_ty().primitive_bitwidth // 8)
        outside = numpy.ones(addresses.shape, bool)
        for begin, end in spans:
            outside &= (addresses < begin) | (addresses + size > end)
        assert not outside.any(), f"{outside.sum()} of {outside.size} addresses outside of the tensors of the launch"

    def checked_load(self, pointers, mask, *rest):
        check(pointers, mask)
        return load(self, pointers, mask, *rest)

    def checked_store(self, pointers, value, mask, *rest):
        check(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(executor, "_init_args_hst", converted)
    monkeypatch.setattr(builder, "create_masked_load", checked_load)
    monkeypatch.setattr(builder, "create_masked_store", checked_store)


@pytest.fixture(autouse=True)
def one_patch_a_launch(monkeypatch):
    """The interpreter puts its operations into triton.language again at each call of a device function, which is half of its time: once a
    launch will do."""
    from triton.runtime import interpreter

    patch, call, patched = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()

    def patch_once(function):
        modules = frozenset(name for name in ("tl", "core") if name in function.__globals__)
        if modules in patched:
            return interpreter._LangPatchScope()
        patched.add(modules)
        return patch(function)

    def launch(self, *arguments, **options):
        patched.clear()
        return call(self, *arguments, **options)

    monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
