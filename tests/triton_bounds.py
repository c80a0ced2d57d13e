"""How far a kernel's result may be from the exact one, element by element: what its roundings amount to, carried through in float64.

Every map is computed with a second one beside it that bounds its error. A sum of n terms in float32 is off by at most n roundings of the
sum of their magnitudes; an activation passes an error on by at most its steepest slope; a value that is stored is rounded once more.
"""

import torch
from triton_kernels import DEVICE

from fastconv import reference

FLOAT = 2.0**-24
# Half a unit in the last place; the interpreter cuts bfloat16 off instead of rounding it.
ROUNDING = {torch.float32: FLOAT, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8 if DEVICE == "cuda" else 2.0**-7}
# Steepest slope of any activation (hardswish at 3) and of any derivative (gelu at 0) away from its kinks, and the highest step of one.
SLOPE, BEND, STEP = 1.5, 1.0, 1.0
# Roundings inside an activation or its derivative, float32.
ACTIVATION = 16 * FLOAT
KINKS = {"relu": (0,), "relu6": (0, 6), "hardswish": (-3, 3)}


def rounding(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Of storing `exact` as `dtype`, subnormal numbers included."""
    info = torch.finfo(dtype)
    return ROUNDING[dtype] * exact.abs() + info.smallest_normal * info.eps


def sum_bound(terms: int, magnitude: torch.Tensor) -> torch.Tensor:
    """Of a float32 sum of so many products whose magnitudes add up to `magnitude`."""
    return (terms + 2) * FLOAT * magnitude


def check(name: str, got: torch.Tensor, exact: torch.Tensor, bound: torch.Tensor) -> None:
    assert got.shape == exact.shape, f"{name}: shape {tuple(got.shape)} instead of {tuple(exact.shape)}"
    excess = (got.double() - exact).abs() - bound
    bad = ~(excess <= 0)
    if bad.any():
        at = tuple(bad.nonzero()[0].tolist())
        message = f"{got[at].item()} instead of {exact[at].item()} within {bound[at].item()}"
        raise AssertionError(f"{name}: {int(bad.sum())} of {bad.numel()} elements, the first at {at}: {message}")


def near_kink(z: torch.Tensor, error: torch.Tensor, activation: str) -> torch.Tensor:
    near = torch.zeros_like(z, dtype=torch.bool)
    for kink in KINKS.get(activation, ()):
        near |= (z - kink).abs() <= error
    return near


def derivative(z: torch.Tensor, activation: str) -> torch.Tensor:
    leaf = z.detach().requires_grad_()
    return torch.autograd.grad(reference.ACTIVATIONS[activation](leaf).sum(), leaf)[0]


class Activated:
    """activation(z) of a z known within `error`, and its derivative, each with its bound. An activation of nothing adds nothing."""

    def __init__(self, z: torch.Tensor, error: torch.Tensor, activation: str):
        computed = activation != "identity"
        self.value = reference.ACTIVATIONS[activation](z)
        self.error = SLOPE * error + ACTIVATION * z.abs() if computed else error
        self.slope = derivative(z, activation)
        # Where the sign of z - kink is not known neither is the derivative.
        self.slope_error = torch.zeros_like(z)
        if computed:
            self.slope_error = BEND * error + ACTIVATION * (1 + z.abs()) + STEP * ((error > 0) & near_kink(z, error, activation))

    def back(self, grad: torch.Tensor, error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A gradient known within `error`, carried back through it."""
        return grad * self.slope, error * self.slope.abs() + (grad.abs() + error) * self.slope_error


class Linear:
    """A function linear in each argument, of arguments known within errors."""

    def __init__(self, function, arguments, errors, terms: int):
        present = [t is not None for t in arguments]
        self.leaves = [t.detach().requires_grad_() if p else None for t, p in zip(arguments, present, strict=True)]
        # Magnitudes, and with them what the errors of one argument at a time can do, the others at their largest.
        sizes = [t.abs() if p else None for t, p in zip(arguments, present, strict=True)]
        most = [s + e if p else None for s, e, p in zip(sizes, errors, present, strict=True)]
        self.sizes = [t.detach().requires_grad_() if p else None for t, p in zip(sizes, present, strict=True)]
        self.most = [t.detach().requires_grad_() if p else None for t, p in zip(most, present, strict=True)]
        self.value, self.magnitude, self.limit = function(*self.leaves), function(*self.sizes), function(*self.most)
        self.terms = terms
        # limit - magnitude >= |f(argument + error) - f(argument)|
        self.error = (self.limit - self.magnitude + sum_bound(terms, self.limit)).detach()
        self.present = present

    def back(self, i: int, grad: torch.Tensor, error: torch.Tensor, terms: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of argument i, a sum of at most so many products, from one of the value that is known within `error`."""
        (value,) = torch.autograd.grad(self.value, self.leaves[i], grad, retain_graph=True)
        (magnitude,) = torch.autograd.grad(self.magnitude, self.sizes[i], grad.abs(), retain_graph=True)
        (limit,) = torch.autograd.grad(self.limit, self.most[i], grad.abs() + error, retain_graph=True)
        return value, limit - magnitude + sum_bound(terms, limit)


class Expected:
    """The exact result of a depthwise or a separable convolution and its bound, then any gradient.

    Roundings between launches and operands: the intermediate, the gradient before the last activation where that is written, and the one
    before the activation of the intermediate.
    """

    def __init__(self, name: str, inputs: tuple, geometry: tuple):
        self.dtype = inputs[0].dtype
        exact = [None if t is None else t.detach().double() for t in inputs]
        self.separable = name == "depthwise_separable_conv2d"
        stride, padding, dilation, *places = geometry
        x, weight = exact[:2]
        zero = torch.zeros_like
        if self.separable:
            pointwise, bias, pointwise_bias, residual = exact[2:]
            self.input = Activated(x, zero(x), places[0])
        else:
            bias = exact[2]
            self.input = Activated(x, zero(x), "identity")

        def depthwise(a, w, b):
            return reference.depthwise_conv2d(a, w, b, stride, padding, dilation, "identity")

        self.taps = weight.shape[2] * weight.shape[3]
        errors = self.input.error, zero(weight), None if bias is None else zero(bias)
        self.depthwise = Linear(depthwise, (self.input.value, weight, bias), errors, self.taps + 1)
        z, error = self.depthwise.value.detach(), self.depthwise.error
        self.pixels = z.shape[0] * z.shape[2] * z.shape[3]
        if self.separable:
            self.middle = Activated(z, error, places[1])
            m, error = self.middle.value, self.middle.error
            if self.dtype != torch.float32:
                error = error + rounding(m, self.dtype)

            def product(m, w, b, added):
                out = torch.nn.functional.conv2d(m, w.reshape(*w.shape[:2], 1, 1), b)
                return out if added is None else out + added

            others = pointwise, pointwise_bias, residual
            self.product = Linear(product, (m, *others), (error, *(None if t is None else zero(t) for t in others)), m.shape[1] + 2)
            z, error = self.product.value.detach(), self.product.error
        self.last_activation = places[-1]
        self.last = Activated(z, error, self.last_activation)
        self.out = self.last.value
        self.bound = self.last.error + rounding(self.out, self.dtype)
        # relu and relu6 are read off the rounded result.
        self.known = ~near_kink(z, 2 * (error + rounding(z, self.dtype)), self.last_activation)

    check = staticmethod(check)

    def gradient(self, i: int, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(exact gradient of argument i, bound), `grad` being zero where the result is not `known`."""
        exact = grad.double()
        dz, error = self.last.back(exact, torch.zeros_like(exact))
        if self.last_activation not in ("identity", "relu", "relu6"):
            error = error + rounding(dz, self.dtype)
        else:
            error = torch.zeros_like(error)
        if self.separable:
            if i in (2, 4, 5):
                value, bound = self.product.back({2: 1, 4: 2, 5: 3}[i], dz, error, self.pixels if i != 5 else 0)
                return value, bound + rounding(value, self.dtype)
            channels = self.product.value.shape[1]
            dm, error = self.product.back(0, dz, error, channels)
            dz, error = self.middle.back(dm, error)
            error = error + rounding(dz, self.dtype)
        argument = {0: 0, 1: 1, 2: 2, 3: 2}[i]
        multiplier = self.depthwise.value.shape[1] // self.input.value.shape[1]
        value, bound = self.depthwise.back(argument, dz, error, self.taps * multiplier if i == 0 else self.pixels)
        if i == 0:
            value, bound = self.input.back(value, bound)
        return value, bound + rounding(value, self.dtype)
