"""The inference runtimes among the rivals: ONNX Runtime and OpenVINO, both from one ONNX model written out node by node."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .cases import ORDERS
from .problem import FORMATS, Problem

OPSET = 20
IR_VERSION = 10


class Unavailable(Exception):
    """A contestant can't take part in a case; the message says why in plain words."""


@dataclass
class Runner:
    """`call(i)` runs on the i-th copy of the inputs and returns its results in the order of `Problem.expected`.

    `forward(i)`: the forward half with autograd on, where there is one; `parameters`: the weights it reads. `bound`: the results land in memory that was there before.
    `allocating`: the same work with a fresh output, where `call` is bound. `fresh()`: another runner that has never run and whose output no one
    has touched, because a runtime that keeps its memory shows what it needs in its first call only.
    """

    call: Callable[[int], tuple]
    forward: Callable[[int], torch.Tensor] | None = None
    parameters: tuple[torch.Tensor, ...] = ()
    bound: bool = False
    allocating: Callable[[int], object] | None = None
    fresh: Callable[[], "Runner"] | None = None


def _need(module: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f"{module} is not installed ({error})") from error


def _activation_nodes(helper, activation: str, source: str, target: str) -> list:
    if activation == "relu6":
        return [helper.make_node("Clip", [source, "zero", "six"], [target])]
    operator = {"identity": "Identity", "relu": "Relu", "hardswish": "HardSwish"}[activation]
    return [helper.make_node(operator, [source], [target])]


def _pool_nodes(case, helper) -> list:
    shared = {"kernel_shape": [case.kernel] * 2, "strides": [1, 1], "pads": [case.pad] * 4, "dilations": [case.dilation] * 2}
    if case.op == "max_pool":
        return [helper.make_node("MaxPool", ["input"], ["output"], **shared)]
    return [helper.make_node("AveragePool", ["input"], ["output"], count_include_pad=1, **shared)]


def _convolution_nodes(case, helper, parameters) -> list:
    order = ORDERS[case.order]
    bias = [name for name in ("depthwise_bias",) if name in parameters]
    geometry = {"strides": [case.stride] * 2, "pads": [case.pad] * 4, "dilations": [case.dilation] * 2}
    nodes = _activation_nodes(helper, order.input_activation, "input", "activated")
    nodes.append(helper.make_node("Conv", ["activated", "depthwise_weight", *bias], ["depthwise"], group=case.channels, **geometry))
    nodes += _activation_nodes(helper, order.depthwise_activation, "depthwise", "output" if case.op == "depthwise" else "middle")
    if case.op == "depthwise":
        return nodes
    bias = [name for name in ("pointwise_bias",) if name in parameters]
    nodes.append(helper.make_node("Conv", ["middle", "pointwise_weight", *bias], ["pointwise"]))
    if case.residual:
        nodes.append(helper.make_node("Add", ["pointwise", "residual"], ["sum"]))
    return nodes + _activation_nodes(helper, order.pointwise_activation, "sum" if case.residual else "pointwise", "output")


def onnx_model(problem: Problem) -> bytes:
    """The case as an ONNX model in float32, weights inside."""
    onnx = _need("onnx")
    numpy = _need("numpy")
    case, helper = problem.case, onnx.helper
    constants = {name: value.float().numpy() for name, value in problem.parameters.items()}
    constants |= {"zero": numpy.float32(0), "six": numpy.float32(6)} if ORDERS[case.order].depthwise_activation == "relu6" else {}
    nodes = _pool_nodes(case, helper) if case.is_pool else _convolution_nodes(case, helper, problem.parameters)
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info(name, kind, image.shape) for name, image in problem.images.items()],
        [helper.make_tensor_value_info("output", kind, case.out_shape)],
        [onnx.numpy_helper.from_array(numpy.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _bind(session, copy: dict[str, torch.Tensor], output: torch.Tensor | None):
    numpy = _need("numpy")
    binding = session.io_binding()
    for name, tensor in copy.items():
        binding.bind_input(name, "cpu", 0, numpy.float32, tuple(tensor.shape), tensor.data_ptr())
    if output is None:
        binding.bind_output("output", "cpu")
    else:
        binding.bind_output("output", "cpu", 0, numpy.float32, tuple(output.shape), output.data_ptr())
    return binding


def _output(problem: Problem, layout: str, poison: bool) -> torch.Tensor:
    output = torch.empty(problem.case.out_shape, dtype=problem.dtype, memory_format=FORMATS[layout])
    return output.fill_(float("nan")) if poison else output


def onnxruntime_runner(problem: Problem, layout: str, poison: bool = True) -> Runner:
    """ONNX Runtime's CPU provider, every graph optimisation on, inputs and output bound."""
    if problem.differentiates:
        raise Unavailable("ONNX Runtime's package has no backward pass")
    if problem.dtype is not torch.float32:
        raise Unavailable(f"ONNX Runtime's CPU provider has no {problem.case.dtype} convolution")
    runtime = _need("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(onnx_model(problem), options, providers=["CPUExecutionProvider"])
    copies = problem.inputs(layout)
    output = _output(problem, layout, poison)
    bound = [_bind(session, copy, output) for copy in copies]
    loose = [_bind(session, copy, None) for copy in copies]

    def call(index):
        session.run_with_iobinding(bound[index])
        return (output,)

    return Runner(
        call,
        bound=True,
        allocating=lambda index: session.run_with_iobinding(loose[index]),
        fresh=lambda: onnxruntime_runner(problem, layout, poison=False),
    )


def _openvino_tensor(openvino, tensor: torch.Tensor, layout: str):
    """A view of a torch tensor's memory; a channels_last one is shown to OpenVINO as the dense NHWC array it is."""
    dense = tensor.permute(0, 2, 3, 1) if layout == "channels_last" else tensor
    if tensor.dtype is torch.float32:
        return openvino.Tensor(dense.numpy(), shared_memory=True)
    return openvino.Tensor(dense.view(torch.int16).numpy(), openvino.Shape(dense.shape), openvino.Type.bf16)


def _openvino_compiled(openvino, problem: Problem, layout: str):
    core = openvino.Core()
    steps = openvino.preprocess.PrePostProcessor(core.read_model(onnx_model(problem)))
    precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[problem.dtype]
    for port in (*(steps.input(name) for name in problem.images), steps.output("output")):
        port.tensor().set_element_type(getattr(openvino.Type, precision))
        if layout == "channels_last":
            port.tensor().set_layout(openvino.Layout("NHWC"))
            port.model().set_layout(openvino.Layout("NCHW"))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # Pinned threads would stay pinned beside the other contestants; unpinned was measured as fast alone.
        "ENABLE_CPU_PINNING": False,
    }
    return core.compile_model(steps.build(), "CPU", settings)


def openvino_runner(problem: Problem, layout: str, poison: bool = True) -> Runner:
    """OpenVINO's CPU plugin with the latency hint, the row's precision forced, input and output tensors set."""
    if problem.differentiates:
        raise Unavailable("OpenVINO has no backward pass")
    if problem.dtype is torch.float16:
        raise Unavailable("OpenVINO's CPU plugin computes float16 rows in another precision")
    openvino = _need("openvino")
    request = _openvino_compiled(openvino, problem, layout).create_infer_request()
    copies = [{name: _openvino_tensor(openvino, tensor, layout) for name, tensor in copy.items()} for copy in problem.inputs(layout)]
    output = _output(problem, layout, poison)
    request.set_tensor("output", _openvino_tensor(openvino, output, layout))

    def call(index):
        for name, tensor in copies[index].items():
            request.set_tensor(name, tensor)
        request.infer()
        return (output,)

    return Runner(call, bound=True, fresh=lambda: openvino_runner(problem, layout, poison=False))
