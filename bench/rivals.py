"""Who is measured: one registry. Each entry builds, for a problem and a memory format, a Runner, or raises Unavailable with the reason in plain words.

`fastconv` rows are the subject, everything else a rival. A rival gets its best: weights in its own layout or prepacked where it can prepack,
bound outputs where it can bind them, a build with channels_last inputs and outputs for channels_last rows.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from . import runtimes
from .cases import ORDERS
from .problem import ACTIVATIONS, Problem
from .runtimes import Runner, Unavailable


@dataclass(frozen=True)
class Rival:
    """A name, the memory formats and devices it runs in, and how it is built; `absence`, for a subject: why it is not measured elsewhere."""

    name: str
    build: Callable[[Problem, str], Runner]
    layouts: tuple[str, ...] = ("contiguous", "channels_last")
    devices: tuple[str, ...] = ("cpu", "cuda")
    absence: str = ""

    @property
    def is_subject(self) -> bool:
        return self.name.startswith("fastconv")


def plain(case) -> Callable:
    """The case as somebody writes it with torch.nn.functional; takes the named tensors of the problem."""
    if case.op == "max_pool":
        return lambda input: F.max_pool2d(input, case.kernel, 1, case.pad, case.dilation)
    if case.op == "avg_pool":
        return lambda input: F.avg_pool2d(input, case.kernel, 1, case.pad)
    order = ORDERS[case.order]

    def depthwise(input, depthwise_weight, depthwise_bias=None):
        return F.conv2d(input, depthwise_weight, depthwise_bias, case.stride, case.pad, case.dilation, case.channels)

    return depthwise if case.op == "depthwise" else _followed_by_pointwise(depthwise, order)


def _followed_by_pointwise(depthwise: Callable, order) -> Callable:
    before, between, after = (ACTIVATIONS[name] for name in order[:3])

    def separable(input, depthwise_weight, pointwise_weight, depthwise_bias=None, pointwise_bias=None, residual=None):
        output = F.conv2d(between(depthwise(before(input), depthwise_weight, depthwise_bias)), pointwise_weight, pointwise_bias)
        return after(output if residual is None else output + residual)

    return separable


def shifted(case) -> Callable:
    """Depthwise as shifted multiply-adds, for a compiler to fuse into one kernel: the hard rival of a hand-written one."""
    order = ORDERS[case.order]

    def depthwise(input, depthwise_weight, depthwise_bias=None):
        padded = F.pad(input, (case.pad,) * 4)
        rows, columns, step = *case.out_shape[2:], case.stride
        total = None
        for y in range(case.kernel):
            for x in range(case.kernel):
                top, left = y * case.dilation, x * case.dilation
                window = padded[:, :, top : top + (rows - 1) * step + 1 : step, left : left + (columns - 1) * step + 1 : step]
                term = window.float() * depthwise_weight[:, :, y, x].float()[:, :, None]
                total = term if total is None else total + term
        total = total if depthwise_bias is None else total + depthwise_bias.float()[:, None, None]
        return total.to(input.dtype)

    return depthwise if case.op == "depthwise" else _followed_by_pointwise(depthwise, order)


def fused(case) -> Callable:
    """The case through fastconv's documented functions."""
    if importlib.util.find_spec("fastconv") is None:
        raise Unavailable("fastconv is not importable here; build it first")
    from fastconv import functional

    if case.is_pool:
        pool = functional.shift_stitch_max_pool2d if case.op == "max_pool" else functional.shift_stitch_avg_pool2d
        return lambda input: pool(input, case.kernel, case.stride, case.pad, case.dilation)
    geometry = {"stride": case.stride, "padding": case.pad, "dilation": case.dilation}
    if case.op == "depthwise":
        return lambda **tensors: functional.depthwise_conv2d(
            tensors["input"], tensors["depthwise_weight"], tensors.get("depthwise_bias"), **geometry
        )
    order = ORDERS[case.order]
    epilogue = dict(zip(("input_activation", "depthwise_activation", "pointwise_activation"), order[:3], strict=True))
    return lambda **tensors: functional.depthwise_separable_conv2d(**tensors, **geometry, **epilogue)


def torch_runner(problem: Problem, layout: str, function: Callable) -> Runner:
    """A function of named tensors, run forward only, forward and backward, or backward alone, on each copy of the inputs."""
    parameters = problem.placed(layout)
    copies = [dict(copy) for copy in problem.inputs(layout)]
    if not problem.differentiates:
        arguments = [{**copy, **parameters} for copy in copies]
        return Runner(torch.no_grad()(lambda index: (function(**arguments[index]),)))
    for tensor in parameters.values():
        tensor.requires_grad_()
    gradients = [copy.pop("gradient") for copy in copies]
    copies = [{name: tensor.detach().requires_grad_() for name, tensor in copy.items()} for copy in copies]
    arguments = [{**copy, **parameters} for copy in copies]
    leaves = [[*parameters.values(), *copy.values()] for copy in copies]

    def forward(index):
        return function(**arguments[index])

    def forward_backward(index):
        output = forward(index)
        return (output, *torch.autograd.grad(output, leaves[index], gradients[index]))

    if problem.case.direction == "forward_backward":
        return Runner(forward_backward, forward, tuple(parameters.values()))
    outputs = [forward(index) for index in range(len(copies))]

    def backward(index):
        return torch.autograd.grad(outputs[index], leaves[index], gradients[index], retain_graph=True)

    return Runner(backward, forward, tuple(parameters.values()))


class _Module(torch.nn.Module):
    """Parameters as attributes, which is where Inductor's freezing looks for weights it may prepack."""

    def __init__(self, function, parameters):
        super().__init__()
        self.function = function
        self.names = tuple(parameters)
        for name, value in parameters.items():
            self.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))

    def forward(self, **images):
        return self.function(**images, **{name: getattr(self, name) for name in self.names})


def compiled(function_of: Callable, **options) -> Callable[[Problem, str], Runner]:
    """torch.compile with static shapes; inference is frozen, so that weights are prepacked ahead."""

    def build(problem: Problem, layout: str) -> Runner:
        from torch._functorch import config as functorch_config
        from torch._inductor import config as inductor_config

        torch._dynamo.reset()
        function = function_of(problem.case)
        # A backward measured alone runs twice through one graph, which donated buffers forbid.
        with functorch_config.patch(donated_buffer=False), inductor_config.patch(freezing=not problem.differentiates):
            if problem.differentiates:
                runner = torch_runner(problem, layout, torch.compile(function, dynamic=False, **options))
            else:
                module = torch.compile(_Module(function, problem.placed(layout)).eval(), dynamic=False, **options)
                copies = problem.inputs(layout)
                runner = Runner(torch.no_grad()(lambda index: (module(**copies[index]),)))
            runner.call(0)
        return runner

    return build


def _shifted_compiled(problem: Problem, layout: str) -> Runner:
    if problem.case.is_pool:
        raise Unavailable("shifted multiply-adds are a way to write a convolution, not a pool")
    return compiled(shifted)(problem, layout)


def fastconv_backend(name: str) -> Callable[[Problem, str], Runner]:
    """fastconv with one backend forced, so that CUDA and Triton are rows of their own."""

    def build(problem: Problem, layout: str) -> Runner:
        function = fused(problem.case)
        from fastconv import backends

        def forced(**tensors):
            with backends.use(name):
                return function(**tensors)

        return torch_runner(problem, layout, forced)

    return build


RIVALS = (
    Rival("fastconv", lambda problem, layout: torch_runner(problem, layout, fused(problem.case)), devices=("cpu",)),
    Rival("fastconv cuda", fastconv_backend("cuda"), devices=("cuda",), absence="runs on a GPU"),
    Rival(
        "fastconv triton",
        fastconv_backend("triton"),
        devices=("cuda",),
        absence="runs on a GPU; what Triton's interpreter takes on a CPU says nothing",
    ),
    Rival("eager", lambda problem, layout: torch_runner(problem, layout, plain(problem.case))),
    Rival("torch.compile", compiled(plain)),
    Rival("torch.compile max-autotune", compiled(plain, mode="max-autotune-no-cudagraphs"), devices=("cuda",)),
    Rival("torch.compile shifted", _shifted_compiled, devices=("cuda",)),
    Rival("onnxruntime", runtimes.onnxruntime_runner, layouts=("contiguous",), devices=("cpu",)),
    Rival("openvino", runtimes.openvino_runner, devices=("cpu",)),
)


def contestants(device: str) -> list[Rival]:
    """Everybody who runs on a device, subjects first."""
    return [rival for rival in RIVALS if device in rival.devices]


def elsewhere(device: str) -> dict[str, str]:
    """The subjects that are not runnable on a device, and why."""
    return {rival.name: f"not runnable here: {rival.absence}" for rival in RIVALS if device not in rival.devices and rival.absence}
