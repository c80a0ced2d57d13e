"""Random cases of every Triton operator, forward and backward: shapes, views, tiles and activations that nobody thought of. test_triton.py
runs this file under Triton's interpreter.

A case is drawn from FASTCONV_TEST_SEED, its operator and its number; FASTCONV_RANDOM_CASES asks for more of each operator. Tiles are those
of the shipped tables or rows that a table could hold, chosen by the code that chooses on a GPU. Results are held, element by element,
against float64 by the bounds of triton_bounds.py, or exactly where nothing is rounded.
"""

import os
import zlib
from dataclasses import dataclass, fields
from random import Random

import pytest
import torch
import triton_bounds as bounds
from conftest import SEED
from triton_kernels import DEVICE, exact_float32, ops, ops_backward, strided, triton_backend  # noqa: F401
from triton_memory import guarded_addresses, one_patch_a_launch, poisoned_memory  # noqa: F401

from fastconv import reference
from fastconv.reference import ACTIVATIONS
from fastconv.triton import configs, plan
from fastconv.triton.launch import FAMILIES, record

RANDOM_CASES = int(os.environ.get("FASTCONV_RANDOM_CASES", 20))

pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.skipif(DEVICE == "cuda", reason="changes the tiles, to such as no GPU may have room for"),
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Interpreted operations of a case, about 40 microseconds each; a draw of more is drawn again.
MOST_OPERATIONS = 9000


@dataclass(frozen=True)
class Tiles:
    """What stands in for a device and its tables."""

    family: str
    strips: tuple | None  # rows of a table, or None for those that are shipped
    fused: tuple | None
    product: tuple | None
    apart: bool
    stored: bool
    strip_rows: int
    strips_per_program: int
    second_stage: tuple[int, int, int]
    scratch: int
    copies: bool
    wide: bool

    @classmethod
    def draw(cls, r: Random) -> "Tiles":
        shipped = r.random() < 0.3
        rows, columns = r.choice((1, 2, 4, 8)), r.choice((2, 4, 8, 16, 32))
        powers = r.choice((16, 32, 64)), r.choice((16, 32, 64))
        return cls(
            family=r.choice(list(FAMILIES)),
            strips=None if shipped else (r.choice((1, 2, 4, 8, 16, 32)), r.choice((32, 64, 128, 512)), 4),
            fused=None if shipped else (rows, rows * columns, *powers, 4, 1, None, r.random() < 0.7),
            product=None if shipped else (r.choice((16, 32, 64)), *powers, 4, 1),
            apart=r.random() < 0.3,
            stored=r.random() < 0.4,
            strip_rows=r.choice((1, 2, 4, 8, 16, 64)),
            strips_per_program=r.choice((1, 2, 4, 8)),
            second_stage=(r.choice((1, 2, 8, 32)), r.choice((1, 4, 32)), 4),
            scratch=r.choice((1, 1000, 32 << 20)),
            copies=r.random() < 0.2,
            wide=r.random() < 0.2,
        )

    def measured(self, stage: str, *_):
        if stage == "depthwise_separable_conv2d" and self.apart:
            return None
        kind = configs.ROWS.get(stage, configs.Strip)
        row = {configs.Strip: self.strips, configs.FusedRow: self.fused, configs.Product: self.product}[kind]
        return configs._NOT_MEASURED if row is None else kind(*row)

    def install(self, monkeypatch) -> None:
        monkeypatch.setattr(configs, "INTERPRETED", False)
        monkeypatch.setattr(configs, "family_of", lambda device: FAMILIES[self.family])
        monkeypatch.setattr(configs, "_measured", self.measured)
        monkeypatch.setattr(configs, "STRIP_ROWS", (self.strip_rows,))
        monkeypatch.setattr(configs, "strips_per_program", lambda *_: self.strips_per_program)
        monkeypatch.setattr(configs, "ordered_sum", lambda *_: self.second_stage)
        monkeypatch.setattr(configs, "SCRATCH_BYTES", self.scratch)
        monkeypatch.setattr(configs, "FUSED_CHANNELS", 0 if self.stored else 256)
        monkeypatch.setattr(triton_backend.access, "through_copies", lambda *_: self.copies)
        if self.strips is not None:
            monkeypatch.setattr(configs, "TAPS", configs.Strip(*self.strips))
            monkeypatch.setattr(configs, "GATHER", dict.fromkeys(("channels_last", "contiguous"), configs.Strip(*self.strips)))
        if self.wide:
            for module in ("depthwise", "depthwise_backward", "separable", "separable_backward", "pooling", "shift_stitch"):
                monkeypatch.setattr(getattr(triton_backend, module), "wide", lambda *_: True)


# ---- operands ----------------------------------------------------------------------------------------------------------------------

STRIDED = ("sliced", "sliced channels_last", "some channels", "expanded", "turned", "every other")
VIEWS = (*["contiguous", "channels_last"] * 2, *STRIDED)


def lay_out(t: torch.Tensor, view: str) -> torch.Tensor:
    """The values of `t` (but for "expanded", whose images are all the first) in memory as `view` says, between NaN where it is a part."""
    n, c, h, w = t.shape
    if view == "expanded":
        return t[:1].expand(t.shape)
    if view == "turned":
        return t.transpose(2, 3).contiguous().transpose(2, 3)
    larger = {"sliced": (n, c, h + 1, w + 2), "sliced channels_last": (n, c, h + 1, w + 2), "some channels": (n, c + 3, h, w)}.get(view)
    if view == "every other":
        return strided(t)
    layout = torch.channels_last if "channels_last" in view else torch.contiguous_format
    if larger is None:
        return t.contiguous(memory_format=layout)
    whole = torch.full(larger, torch.nan, dtype=t.dtype).contiguous(memory_format=layout)
    part = whole[:, :c, :h, :w] if view == "some channels" else whole[:, :, 1:, 2:]
    return part.copy_(t)


def values(r: Random, shape, dtype, scale=1.0) -> torch.Tensor:
    t = torch.randn(shape)
    # Halves are often on a kink exactly.
    t = ((2 * t).round() / 2 if r.random() < 0.2 else t * scale).to(dtype)
    return strided(t) if r.random() < 0.3 else t


def gradient_of(r: Random, out: torch.Tensor) -> torch.Tensor:
    if r.random() < 0.1:
        return torch.ones((), dtype=out.dtype).expand(out.shape)
    return lay_out(torch.randn(out.shape).to(out.dtype), r.choice(VIEWS))


def _axis(r: Random, most_taps: int, longest: int) -> tuple[int, int, int, int, int, int]:
    """(size, kernel, stride, dilation, padding before, padding after) that give at least one position."""
    while True:
        kernel = min(r.choice((1, 2, 3, 3, 3, 4, 5, 7, 8)), most_taps)
        dilation = r.choice((1, 1, 1, 2, 3, r.randint(1, 6)))
        size = r.choice((1, 2, r.randint(1, longest), r.randint(1, longest)))
        halo = dilation * (kernel - 1)
        padding = r.choice(((0, 0), (halo // 2, halo - halo // 2), (r.randint(0, halo + 2), r.randint(0, halo + 2))))
        if size + sum(padding) > halo:
            return size, kernel, r.choice((1, 1, 1, 2, 3, 4)), dilation, *padding


def _plane(r: Random, longest: int) -> list[tuple]:
    most = r.choice((3, 3, 5, 8))
    return [_axis(r, most, longest), _axis(r, r.choice((most, 3)), longest)]


def draw_depthwise(r: Random) -> dict:
    vertical, horizontal = _plane(r, r.choice((7, 13, 20)))
    return dict(
        size=(r.choice((1, 1, 2, 3, 0)), r.choice((1, 2, 5, r.randint(1, 40))), vertical[0], horizontal[0]),
        kernel=(vertical[1], horizontal[1]),
        geometry=((vertical[2], horizontal[2]), (*vertical[4:], *horizontal[4:]), (vertical[3], horizontal[3])),
        m=r.choice((1, 1, 2, 3)),
        dtype=r.choice(DTYPES),
        view=r.choice(VIEWS),
        activation=r.choice(list(ACTIVATIONS)),
        bias=r.random() < 0.6,
        wanted=[r.random() < 0.8 for _ in range(3)],
    )


def depthwise(case: dict, r: Random):
    n, c, h, w = case["size"]
    m, dtype = case["m"], case["dtype"]
    x = lay_out(values(r, case["size"], dtype), case["view"])
    weight = values(r, (c * m, 1, *case["kernel"]), dtype)
    bias = values(r, (c * m,), dtype) if case["bias"] else None
    return Convolution("depthwise_conv2d", (x, weight, bias), (*case["geometry"], case["activation"]), case["wanted"], r)


def draw_separable(r: Random) -> dict:
    some = ("identity", "identity", "relu", *ACTIVATIONS)
    return draw_depthwise(r) | dict(
        activation=[r.choice(some) for _ in range(3)],
        o=r.choice((1, 3, r.randint(1, 20), r.randint(1, 70))),
        residual=r.random() < 0.4,
        pointwise_bias=r.random() < 0.6,
        wanted=[r.random() < 0.8 for _ in range(6)],
        residual_view=r.choice(VIEWS),
        flat=r.random() < 0.5,
    )


def separable(case: dict, r: Random):
    n, c, h, w = case["size"]
    m, o, dtype = case["m"], case["o"], case["dtype"]
    x = lay_out(values(r, case["size"], dtype), case["view"])
    weight = values(r, (c * m, 1, *case["kernel"]), dtype)
    pointwise = values(r, (o, c * m) if case["flat"] else (o, c * m, 1, 1), dtype, (c * m) ** -0.5)
    biases = (values(r, (c * m,), dtype) if case["bias"] else None, values(r, (o,), dtype) if case["pointwise_bias"] else None)
    residual = None
    if case["residual"]:
        size = reference.depthwise_conv2d(x.float(), weight.float(), None, *case["geometry"], "identity").shape[2:]
        residual = lay_out(values(r, (n, o, *size), dtype, 2.0), case["residual_view"])
    inputs = x, weight, pointwise, *biases, residual
    return Convolution("depthwise_separable_conv2d", inputs, (*case["geometry"], *case["activation"]), case["wanted"], r)


class Convolution:
    """Forward and the wanted gradients; the gradient of the result is zero where the derivative is not known."""

    def __init__(self, name: str, inputs: tuple, geometry: tuple, wanted: list[bool], r: Random):
        self.name, self.inputs, self.geometry = name, inputs, geometry
        self.expected = bounds.Expected(name, inputs, geometry)
        self.grad = gradient_of(r, self.expected.out.to(inputs[0].dtype))
        if not self.expected.known.all():
            self.grad = torch.where(self.expected.known, self.grad, 0)
        self.wanted = [i for i, t in enumerate(inputs) if t is not None and wanted[i]]

    def call(self) -> list[torch.Tensor]:
        leaves = [None if t is None else t.detach().requires_grad_(i in self.wanted) for i, t in enumerate(self.inputs)]
        out = getattr(ops, self.name)(*leaves, *self.geometry)
        return [out.detach(), *(torch.autograd.grad(out, [leaves[i] for i in self.wanted], self.grad) if self.wanted else ())]

    def check(self, results: list[torch.Tensor]) -> None:
        out, *gradients = results
        expected = self.expected
        channels_last = triton_backend.launch.channels_last(self.inputs[0])
        assert out.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        expected.check("result", out, expected.out, expected.bound)
        for i, gradient in zip(self.wanted, gradients, strict=True):
            expected.check(f"gradient of argument {i}", gradient, *expected.gradient(i, self.grad))


def draw_pool(r: Random) -> dict:
    vertical, horizontal = _plane(r, r.choice((7, 13, 20)))
    # A window of 17 taps is gathered; padding as fastconv.functional takes it.
    kernel = [1 + 16 * (r.random() < 0.05) if a[1] == 1 else a[1] for a in (vertical, horizontal)]
    axes = [
        (max(a[0], a[3] * (k - 1) + 1) if r.random() < 0.7 or k == 17 else a[0], k, a[2], a[3], r.randint(0, a[3] * (k // 2)))
        for a, k in zip((vertical, horizontal), kernel, strict=True)
    ]
    axes = [(max(size, d * (k - 1) + 1 - 2 * p), k, s, d, p) for size, k, s, d, p in axes]
    return dict(
        size=(r.choice((1, 1, 2, 3, 0)), r.choice((1, 2, 5, r.randint(1, 40))), axes[0][0], axes[1][0]),
        geometry=tuple(tuple(a[i] for a in axes) for i in (1, 2, 4, 3)) + (r.random() < 0.5,),
        fragments=r.random() < 0.5,
        dtype=r.choice(DTYPES),
        view=r.choice(VIEWS),
        divisor=(r.random() < 0.5, r.choice((None, None, None, 7, -3))),
        special=r.random() < 0.4,
    )


class MaxPool:
    """All three operators, and the backward pass with the argmax and with the taps found again."""

    def __init__(self, case: dict, r: Random):
        x = (torch.randn(case["size"]) * 3).round() / 2
        if case["special"]:
            of = torch.rand(x.shape)
            for i, special in enumerate((torch.nan, torch.inf, 0.0, -0.0, *[-torch.inf] * r.choice((1, 8)))):
                x[(of >= 0.1 * i) & (of < 0.1 * i + 0.1)] = special
        self.x = lay_out(x.to(case["dtype"]), case["view"])
        self.geometry = *case["geometry"], case["fragments"]
        self.exact = self.x.double()
        self.out, self.indices = reference.shift_stitch_max_pool2d_indices(self.exact, *self.geometry, -2.0)
        self.argmax = reference.shift_stitch_max_pool2d_argmax(self.exact, *self.geometry, -2.0)[1]
        self.grad = gradient_of(r, self.out.to(case["dtype"]))

    def call(self) -> list[torch.Tensor]:
        leaf = self.x.detach().requires_grad_()
        out, argmax = ops.shift_stitch_max_pool2d_argmax(leaf, *self.geometry, -2.0)
        (gradient,) = torch.autograd.grad(out, leaf, self.grad)
        again = ops_backward("shift_stitch_max_pool2d_backward", self.grad, self.x, None, self.x.shape, *self.geometry)
        plain = ops.shift_stitch_max_pool2d(self.x, *self.geometry, -2.0)
        return [out.detach(), argmax, plain, *ops.shift_stitch_max_pool2d_indices(self.x, *self.geometry, -2.0), gradient, again]

    def check(self, results: list[torch.Tensor]) -> None:
        out, argmax, plain, also_out, indices, gradient, again = results
        for got in (out, plain, also_out):
            torch.testing.assert_close(got.double(), self.out, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(torch.signbit(got.nan_to_num()), torch.signbit(self.out.nan_to_num()))
        assert torch.equal(indices, self.indices)
        # A window without an element of the map has no tap.
        has_tap = self.indices >= 0
        assert torch.equal(argmax[has_tap], self.argmax[has_tap])
        assert torch.equal(gradient, again)
        # Fragments' tails are no windows; the reference's indices name every element that a gradient goes to.
        n, c, h, w = self.x.shape
        grads, indices = self.grad.double(), self.indices
        if self.geometry[-1]:
            stride = self.geometry[1]
            dense = [size * step for size, step in zip(indices.shape[2:], stride, strict=True)]
            grads, indices = reference.stitch(grads, stride, dense), reference.stitch(indices, stride, dense)
        wanted, total = torch.zeros(2, n, c, h * w, dtype=torch.float64)
        indices = indices.flatten(2)
        for sums, terms in ((wanted, grads), (total, grads.abs())):
            sums.scatter_add_(2, indices.clamp(min=0), terms.flatten(2).where(indices >= 0, 0))
        bound = bounds.sum_bound(self.geometry[0][0] * self.geometry[0][1], total) + bounds.rounding(wanted, gradient.dtype)
        bounds.check("gradient", gradient, wanted.view_as(gradient), bound.view_as(gradient))


class AvgPool:
    def __init__(self, case: dict, r: Random):
        self.x = lay_out(values(r, case["size"], case["dtype"]), case["view"])
        self.arguments = *case["geometry"], *case["divisor"], case["fragments"], 3.0
        self.taps = case["geometry"][0][0] * case["geometry"][0][1]
        self.exact, self.absolute = self.x.double().requires_grad_(), self.x.double().abs().requires_grad_()
        self.out = reference.shift_stitch_avg_pool2d(self.exact, *self.arguments)
        self.grad = gradient_of(r, self.out.to(case["dtype"]))

    def call(self) -> list[torch.Tensor]:
        leaf = self.x.detach().requires_grad_()
        out = ops.shift_stitch_avg_pool2d(leaf, *self.arguments)
        return [out.detach(), *torch.autograd.grad(out, leaf, self.grad)]

    def check(self, results: list[torch.Tensor]) -> None:
        total = reference.shift_stitch_avg_pool2d(self.absolute, *self.arguments)
        (wanted,) = torch.autograd.grad(self.out, self.exact, self.grad.double())
        (total_gradient,) = torch.autograd.grad(total, self.absolute, self.grad.double().abs())
        for name, got, exact, terms in zip(("result", "gradient"), results, (self.out, wanted), (total, total_gradient), strict=True):
            bounds.check(name, got, exact, bounds.sum_bound(self.taps + 2, terms.abs()) + bounds.rounding(exact, got.dtype))


def draw_shift(r: Random) -> dict:
    height, width = r.choice((r.randint(0, 3), r.randint(1, 14))), r.choice((1, r.randint(0, 20)))
    return dict(
        size=(r.choice((1, 2, 0)), r.choice((1, 3, r.randint(0, 40))), height, width),
        stride=(r.randint(1, 4), r.randint(1, 4)),
        cut=(r.random(), r.random()),
        dtype=r.choice(DTYPES),
        view=r.choice(VIEWS),
    )


class Shift:
    """There and back, to a size that fragments may cover more than; nothing is rounded."""

    def __init__(self, case: dict, r: Random):
        self.x, self.stride = lay_out(values(r, case["size"], case["dtype"]), case["view"]), case["stride"]
        self.fragments = reference.shift(self.x, self.stride, -1.0)
        u, v = self.fragments.shape[2:]
        self.size = [round(cut * length * step) for cut, length, step in zip(case["cut"], (u, v), self.stride, strict=True)]
        self.view = lay_out(self.fragments, r.choice([view for view in VIEWS if view != "expanded"]))

    def call(self) -> list[torch.Tensor]:
        leaf, view = self.x.detach().requires_grad_(), self.view.detach().requires_grad_()
        fragments, dense = ops.shift(leaf, self.stride, -1.0), ops.stitch(view, self.stride, self.size)
        back = [torch.autograd.grad(out, of, torch.ones_like(out))[0] for out, of in ((fragments, leaf), (dense, view))]
        return [fragments.detach(), dense.detach(), *back]

    def check(self, results: list[torch.Tensor]) -> None:
        exact, of = self.x.detach().clone().requires_grad_(), self.fragments.detach().clone().requires_grad_()
        fragments, dense = reference.shift(exact, self.stride, -1.0), reference.stitch(of, self.stride, self.size)
        wanted = [torch.autograd.grad(out, leaf, torch.ones_like(out))[0] for out, leaf in ((fragments, exact), (dense, of))]
        for got, right in zip(results, (fragments, dense, *wanted), strict=True):
            assert got.shape == right.shape and torch.equal(got, right)


OPERATORS = {
    "depthwise": (draw_depthwise, depthwise),
    "separable": (draw_separable, separable),
    "max_pool": (draw_pool, MaxPool),
    "avg_pool": (draw_pool, AvgPool),
    "shift": (draw_shift, Shift),
}


def operations(call, family: str) -> int:
    """About how many operations the interpreter would run: launches are recorded, each turn of a loop with its unrolled taps."""
    with record(FAMILIES[family]) as recorder:
        call()
    total = 0
    for launch in recorder.launches:
        arguments = launch.arguments
        kh, kw = arguments.get("KH", 1), arguments.get("KW", 1)
        rows = arguments.get("ROWS", 1) if arguments.get("RING") else 1
        unrolled = 10 * kw + 4 * kh * kw if "gather" not in launch.kernel.__name__ else 25
        total += launch.grid * (30 + plan._TURNS[launch.kernel.__name__](arguments) * (30 + unrolled * rows))
    return total


@pytest.mark.parametrize("number", range(RANDOM_CASES))
@pytest.mark.parametrize("name", OPERATORS)
def test_random(name, number, monkeypatch):
    draw, kind = OPERATORS[name]
    r = Random(f"{name} {SEED} {number}")
    torch.manual_seed(zlib.crc32(f"{name} {SEED} {number}".encode()))
    while True:
        case, tiles = draw(r), Tiles.draw(r)
        with monkeypatch.context() as patch:
            tiles.install(patch)
            subject = kind(case, r)
            if operations(subject.call, tiles.family) > MOST_OPERATIONS:
                continue
            environment = f"TRITON_INTERPRET=1 FASTCONV_TEST_SEED={SEED} FASTCONV_RANDOM_CASES={number + 1}"
            print(f"{environment} pytest 'tests/triton_random.py::test_random[{name}-{number}]'")
            print(case, {field.name: getattr(tiles, field.name) for field in fields(tiles)})
            subject.check(subject.call())
            return
