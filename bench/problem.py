"""The tensors of a case, and its answer in float64 from shifted slices and one matrix product: no convolution or pooling routine of anybody.

Inputs are random and seeded. Copies of them are rotated through, so that a small case doesn't run out of a cache that no network would leave warm.
"""

import math
import zlib

import torch
from torch.nn.functional import pad as pad_map

from .cases import ORDERS, Case
from .cost import ITEMSIZE

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
MAX_COPIES = {"cpu": 16, "cuda": 128}
# Distance from a kink of an activation, relative to the values' root mean square, within which rounding may decide on which side a value falls:
# after the few taps of the depthwise part, and with room to spare after the long sums of the pointwise part.
INNER_ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
OUTER_ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
KINKS = {"relu": (0.0,), "relu6": (0.0, 6.0), "hardswish": (-3.0, 3.0)}

ACTIVATIONS = {
    "identity": lambda value: value,
    "relu": torch.relu,
    "relu6": torch.nn.functional.relu6,
    "hardswish": torch.nn.functional.hardswish,
}


def _windows(case: Case, image: torch.Tensor, fill: float):
    """The K*K shifted views of the padded image, each of the output's size."""
    padded = pad_map(image, (case.pad,) * 4, value=fill)
    rows, columns = case.out_shape[2:]
    stride = case.conv_stride
    for y in range(0, case.kernel * case.dilation, case.dilation):
        for x in range(0, case.kernel * case.dilation, case.dilation):
            yield padded[:, :, y : y + (rows - 1) * stride + 1 : stride, x : x + (columns - 1) * stride + 1 : stride]


def _near_kink(value: torch.Tensor, activation: str, rounding: float) -> torch.Tensor:
    near = torch.zeros_like(value, dtype=torch.bool)
    scale = value.detach().square().mean().sqrt()
    for kink in KINKS.get(activation, ()):
        near |= (value.detach() - kink).abs() < rounding * scale
    return near


class Problem:
    """`parameters` by name, `inputs(format)` as a list of dicts of rotated copies, and `expected`: name -> float64 tensor.

    `expected` holds "output" and, for a backward direction, "input", "depthwise_weight", ... : the gradients. `ambiguous` is the share of inner
    activations so close to a kink that rounding may flip their derivative; gradients are allowed exactly that much (see measure.tolerance).
    """

    def __init__(self, case: Case, device: str, cache_bytes: int):
        self.case, self.device = case, device
        self.dtype = getattr(torch, case.dtype)
        self.generator = torch.Generator().manual_seed(zlib.crc32(case.id.encode()))
        self.parameters = {} if case.is_pool else self._parameters()
        self.images = {"input": self._normal(case.in_shape)}
        if case.residual:
            self.images["residual"] = self._normal(case.out_shape)
        self.ambiguous = 0.0
        self.expected = self._expected()
        self.copies = max(2, min(MAX_COPIES[device], math.ceil(cache_bytes / self.bytes_of_one)))
        self._inputs: dict[str, list[dict]] = {}

    def _normal(self, shape, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=self.generator) * scale).to(self.dtype)

    def _parameters(self) -> dict[str, torch.Tensor]:
        case, order = self.case, ORDERS[self.case.order]
        parameters = {"depthwise_weight": self._normal((case.channels, 1, case.kernel, case.kernel), 1 / case.kernel)}
        if order.depthwise_bias:
            parameters["depthwise_bias"] = self._normal((case.channels,), 0.1)
        if case.op == "separable":
            parameters["pointwise_weight"] = self._normal((case.out_channels, case.channels, 1, 1), (2 / case.channels) ** 0.5)
            if order.pointwise_bias:
                parameters["pointwise_bias"] = self._normal((case.out_channels,), 0.1)
        return parameters

    @property
    def differentiates(self) -> bool:
        return self.case.direction != "forward"

    @property
    def output_bytes(self) -> int:
        return math.prod(self.case.out_shape) * ITEMSIZE[self.case.dtype]

    @property
    def bytes_of_one(self) -> int:
        elements = sum(image.numel() for image in self.images.values()) + math.prod(self.case.out_shape)
        return elements * ITEMSIZE[self.case.dtype]

    @property
    def footprint(self) -> int:
        """Bytes that one round over all copies touches."""
        return self.bytes_of_one * self.copies

    def inputs(self, layout: str) -> list[dict[str, torch.Tensor]]:
        """Copies of the images (and of the output's gradient) in a memory format, made once."""
        if layout not in self._inputs:
            self._inputs[layout] = [
                {name: image.to(self.device, memory_format=FORMATS[layout], copy=True) for name, image in self.images.items()} for _ in range(self.copies)
            ]
        return self._inputs[layout]

    def placed(self, layout: str) -> dict[str, torch.Tensor]:
        """The parameters as a user of that memory format keeps them."""
        return {
            name: value.to(self.device, memory_format=FORMATS[layout] if value.dim() == 4 else torch.preserve_format, copy=True)
            for name, value in self.parameters.items()
        }

    def _expected(self) -> dict[str, torch.Tensor]:
        named = {**self.parameters, **self.images}
        leaves = {name: value.double().requires_grad_(self.differentiates) for name, value in named.items()}
        with torch.set_grad_enabled(self.differentiates):
            output = self._pool(leaves["input"]) if self.case.is_pool else self._convolve(leaves)
        if not self.differentiates:
            return {"output": output}
        gradient = self._normal(self.case.out_shape)
        gradient[self.output_near_kink] = 0
        self.images["gradient"] = gradient
        gradients = torch.autograd.grad(output, list(leaves.values()), gradient.double())
        expected = {"output": output.detach(), **dict(zip(leaves, gradients, strict=True))}
        if self.case.direction == "backward":
            del expected["output"]
        return expected

    def _convolve(self, leaves: dict[str, torch.Tensor]) -> torch.Tensor:
        case, order = self.case, ORDERS[self.case.order]
        image = ACTIVATIONS[order.input_activation](leaves["input"])
        weight = leaves["depthwise_weight"].flatten(2).unbind(2)
        middle = torch.zeros(case.batch, case.channels, *case.out_shape[2:], dtype=torch.float64)
        for window, tap in zip(_windows(case, image, 0.0), weight, strict=True):
            middle = torch.addcmul(middle, window, tap[None, :, :, None])
        if "depthwise_bias" in leaves:
            middle = middle + leaves["depthwise_bias"][:, None, None]
        self.output_near_kink = torch.zeros(case.out_shape, dtype=torch.bool)
        if case.op == "depthwise":
            return middle
        self.ambiguous = _near_kink(middle, order.depthwise_activation, INNER_ROUNDING[self.dtype]).double().mean().item()
        middle = ACTIVATIONS[order.depthwise_activation](middle)
        output = (leaves["pointwise_weight"].flatten(1) @ middle.flatten(2)).view(case.out_shape)
        if "pointwise_bias" in leaves:
            output = output + leaves["pointwise_bias"][:, None, None]
        if "residual" in leaves:
            output = output + leaves["residual"]
        self.output_near_kink = _near_kink(output, order.pointwise_activation, OUTER_ROUNDING[self.dtype])
        return ACTIVATIONS[order.pointwise_activation](output)

    def _pool(self, image: torch.Tensor) -> torch.Tensor:
        """A maximum compares strictly in row-major window order, so that a tie gives its gradient to the first."""
        case = self.case
        self.output_near_kink = torch.zeros(case.out_shape, dtype=torch.bool)
        if case.op == "avg_pool":
            return sum(_windows(case, image, 0.0)) / case.kernel**2
        windows = _windows(case, image, -math.inf)
        best = next(windows)
        for window in windows:
            best = torch.where(window > best, window, best)
        return best
