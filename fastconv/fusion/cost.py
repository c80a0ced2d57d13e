"""What a chain costs as the model wrote it and fused: predicted from a few probes of this machine, or measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional as FF
from .layers import Fused

_KERNELS = (3, 5, 7)


@dataclass(frozen=True)
class Spec:
    """One input of a layer, as it came."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Spec:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)

    @property
    def channels_last(self) -> bool:
        return len(self.shape) == 4 and self.shape[1] > 1 and self.stride[1] == 1

    def random(self) -> Tensor:
        # Of the same strides where these are dense, as they are in every network but by slicing.
        out = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        return out.copy_(torch.randn(self.shape, device=self.device))


@dataclass(frozen=True)
class Rates:
    """Units per second of one implementation: depthwise output elements for each kernel, dilated ones, FLOPs of a pointwise product."""

    depthwise: tuple[float, ...]
    dilated: float
    pointwise: float


@dataclass(frozen=True)
class Machine:
    library: Rates
    ours: Rates
    elements: float  # of an elementwise pass, read and written
    call: float  # seconds that any call costs


@lru_cache(maxsize=8)
def machine(device: torch.device, dtype: torch.dtype, channels_last: bool, threads: int) -> Machine:
    """Probes the machine, about a fifth of a second for each kind of tensor."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    channels, size = 192, 28

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=memory_format)

    x, one, tiny = tensor(1, channels, size, size), tensor(channels, channels, 1, 1), tensor(1, 1, 1, 1)
    weights = [tensor(channels, 1, k, k) for k in _KERNELS]
    ones, flops = tensor(channels, 1, 1, 1), 2 * channels * x.numel()
    n = x.numel()

    def depthwise(run: Callable, weight: Tensor, d: int) -> Callable[[], Tensor]:
        return lambda: run(x, weight, None, 1, d * (weight.shape[2] // 2), d)

    def library(x, weight, bias, stride, padding, dilation) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding, dilation, channels)

    kernels = [(weight, 1) for weight in weights] + [(weights[0], 2)]
    probes: list[tuple[float, Callable[[], object]]] = []
    for run, product in ((library, lambda: F.conv2d(x, one)), (FF.depthwise_conv2d, lambda: FF.depthwise_separable_conv2d(x, ones, one))):
        probes += [(n, depthwise(run, weight, d)) for weight, d in kernels] + [(flops, product)]
    probes += [(n, lambda: F.relu6(x)), (1.0, lambda: F.relu6(tiny))]
    with torch.inference_mode():
        times = quickest([run for _, run in probes], device)
    rates = [units / time for (units, _), time in zip(probes, times, strict=True)]

    def of(first: int) -> Rates:
        return Rates(tuple(rates[first : first + len(_KERNELS)]), rates[first + len(_KERNELS)], rates[first + len(_KERNELS) + 1])

    return Machine(of(0), of(len(kernels) + 1), rates[-2], times[-1])


def quickest(runs: list[Callable[[], object]], device: torch.device) -> list[float]:
    """Seconds of each: the least of three runs in each of five turns, after one that warms up. In turns, because what disturbs the machine
    for some milliseconds must not make one side look slow."""
    best = [float("inf")] * len(runs)
    for _ in range(5):
        for index, run in enumerate(runs):
            for repeat in range(4):
                synchronize(device)
                start = time.perf_counter()
                run()
                synchronize(device)
                if repeat:
                    best[index] = min(best[index], time.perf_counter() - start)
    return best


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def predict(layer: Fused, inputs: list[Spec], output: Spec) -> tuple[float, float]:
    """Seconds of the chain as written and fused, by the machine's probes."""
    x = inputs[0]
    m = machine(x.device, x.dtype, x.channels_last, torch.get_num_threads())
    middle = prod(output.shape)
    before = after = 0.0
    if layer.depthwise is not None:
        conv = layer.depthwise.conv
        positions = prod(output.shape[-2:]) if layer.pointwise is not None else middle // conv.out_channels // x.shape[0]
        middle = x.shape[0] * conv.out_channels * positions
        before += _depthwise(m.library, conv, middle) + m.call + _passes(layer.depthwise, middle, m)
        after += _depthwise(m.ours, conv, middle)
    if layer.input_activation != "identity":
        before += prod(x.shape) / m.elements + m.call
    if layer.kind == "scaled":
        before += prod(x.shape) / m.elements + m.call
    if layer.pointwise is not None:
        conv, out = layer.pointwise.conv, prod(output.shape)
        flops = 2 * out * prod(conv.weight.shape[1:])
        passes = _passes(layer.pointwise, out, m)
        if len(inputs) > (2 if layer.kind == "scaled" else 1):
            passes += 1.5 * out / m.elements + m.call
        before += flops / m.library.pointwise + m.call + passes
        by_library = layer.kind == "conv" and conv.kernel_size != (1, 1)
        after += flops / (m.library if by_library else m.ours).pointwise + (passes / 2 if by_library else 0.0)
    return before, after + m.call


def _depthwise(rates: Rates, conv, elements: float) -> float:
    area = prod(conv.kernel_size)
    nearest = min(range(len(_KERNELS)), key=lambda i: abs(_KERNELS[i] ** 2 - area))
    if conv.dilation != (1, 1):
        return elements / rates.dilated * max(area / _KERNELS[0] ** 2, 1.0)
    return elements / rates.depthwise[nearest]


def _passes(stage, elements: float, m: Machine) -> float:
    count = (stage.norm is not None) + (stage.activation != "identity")
    return count * (elements / m.elements + m.call)


def measure(layer: Fused, inputs: list[Spec], budget: float = 0.05) -> tuple[float, float]:
    """Seconds of the chain as written and fused on random tensors like those: alternating, the median of many runs of each."""
    tensors = [spec.random() for spec in inputs]
    device = tensors[0].device
    with torch.inference_mode():
        tensors = [t.clone() for t in tensors]
        return alternate(lambda: layer.unfused(*tensors), lambda: layer(*tensors), device, budget)


def alternate(first: Callable[[], object], second: Callable[[], object], device: torch.device, budget: float) -> tuple[float, float]:
    runs: tuple[list[float], list[float]] = ([], [])
    for run in (first, second):
        run()
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(runs[0]) < 5:
        for run, times in zip((first, second), runs, strict=True):
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            times.append(time.perf_counter() - start)
    return tuple(sorted(times)[len(times) // 2] for times in runs)
