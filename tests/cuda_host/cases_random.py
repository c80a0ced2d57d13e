"""Random cases for the host-run kernels: shapes, devices and activations that nobody thought of. A seed gives the same ones again."""

from collections.abc import Callable
from random import Random

from .cases import ACTIVATIONS, LAYOUTS


def _device(r: Random) -> dict:
    return dict(multiprocessors=r.choice((1, 2, 3, 6, 132)), threads=r.choice((1, 256, 512)), shared=r.choice((99_000, 166_912, 232_448)))


def _convolution(r: Random, most_channels: int) -> dict:
    """Mostly what the fast kernels serve."""
    while True:
        k, s, d = r.choice((1, 2, 3, 3, 3, 3, 5, 7)), r.choice((1, 1, 1, 2, 3)), r.choice((1, 1, 1, 2, 3, 6))
        h, w, p = r.randint(1, 17), r.randint(1, 22), r.randint(0, d * (k - 1))
        if min(h, w) + 2 * p > d * (k - 1):
            break
    c = r.choice((8 * r.randint(1, most_channels // 8), r.randint(1, 40)))
    return dict(n=r.randint(1, 2), c=c, h=h, w=w, k=k, s=s, d=d, p=p, m=r.choice((1, 1, 1, 2)), bias=r.randint(0, 1), offset=r.choice((0, 0, 0, 1)))


def _types(r: Random) -> dict:
    return dict(dtype=r.choice(("bf16", "f16", "f32")), layout=r.choice((*LAYOUTS, "channels_last")))


def depthwise(r: Random) -> dict:
    # The programs' bounds are relative to the input's activation, and the smooth ones lose that in their tails: gelu(-4) is exact to 1e-7, not to a part of itself.
    return _convolution(r, 64) | _types(r) | _device(r) | dict(act=r.choice(ACTIVATIONS), input_act=r.choice(("identity", "identity", "relu", "relu6")))


def separable(r: Random) -> dict:
    # Full shared memory and small devices are what the largest tiles ask for.
    device = _device(r) | r.choice(({}, dict(shared=232_448, multiprocessors=r.choice((1, 2, 3)))))
    activations = {place: r.choice(("identity", "relu", r.choice(ACTIVATIONS))) for place in ("input", "depthwise", "pointwise")}
    case = _convolution(r, 200) | _types(r) | device | activations | dict(o=r.choice((r.randint(1, 70), r.randint(1, 200))), residual=r.randint(0, 1))
    # Rounding to TF32 is looked for in the result: sums of many terms, none of them cut off, biases where every tap falls into the padding.
    seen = dict(tf32=1, bias=1, c=8 * r.randint(8, 25), depthwise="identity", pointwise="identity")
    return case | r.choice((dict(tf32=0), seen))


def separable_backward(r: Random) -> dict:
    return separable(r) | dict(c=8 * r.randint(1, 9), o=r.randint(1, 70), residual=0, tf32=r.randint(0, 1))


def _pool(r: Random) -> dict:
    while True:
        k, s, d = r.choice((1, 2, 2, 3, 3, 3, 5)), r.choice((1, 2, 2, 3)), r.choice((1, 1, 2, 3))
        h, w, p = r.randint(1, 20), r.randint(1, 30), r.randint(0, k // 2)
        if min(h, w) + 2 * p > d * (k - 1):
            break
    shape = dict(n=r.randint(1, 3), c=r.choice((4, 8, 16, 24, r.randint(1, 20))), h=h, w=w, k=k, s=s, d=d, p=p)
    return shape | _types(r) | _device(r) | dict(ceil=r.randint(0, 1), fragments=r.randint(0, 1))


def max_pool(r: Random) -> dict:
    return _pool(r) | dict(data=r.choice(("normal", "ties", "nan", "lowest")), want=r.choice(("argmax", "value")))


def avg_pool(r: Random) -> dict:
    return _pool(r) | dict(backward=r.randint(0, 1), include_pad=r.randint(0, 1), divisor=r.choice((0, 0, 7)))


# By program.
CASES: dict[str, Callable[[Random], dict]] = {
    "depthwise": depthwise,
    "depthwise_backward": depthwise,
    "max_pool": max_pool,
    "max_pool_backward": _pool,
    "avg_pool": avg_pool,
    "separable": separable,
    "separable_backward": separable_backward,
}


def draw(program: str, count: int, seed: int) -> list[dict]:
    r = Random(f"{program} {seed}")
    return [CASES[program](r) for _ in range(count)]
