"""Derivatives: gradcheck in float64, the kernels' gradients against float64, what is saved, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from cases import ACTIVATIONS, CONV_CASES, POOL_CASES, by_id
from helpers import (
    LAYOUTS,
    assert_bitwise,
    assert_close,
    assert_format,
    assert_no_further,
    conv_geometry,
    depthwise_tensors,
    double,
    exact_separable_tensors,
    feature_map,
    in_layout,
    poisoned_outputs,
    pool_geometry,
    rand,
    reference_call,
    separable_tensors,
)
from test_separable import ORDERS, activations
from torch.autograd import gradcheck

import fastconv.functional as FF
from fastconv import backends

GRADIENT_CASES = by_id(
    CONV_CASES, "plain", "odd-everything", "vector-tail", "panel-tail", "tiles-dilated", "dilation-beyond-map", "dilation-axes", "stride-2",
    "stride-dilation", "stride-beyond-kernel", "kernel-1", "kernel-7", "kernel-5x2", "same-even-kernel", "padding-beyond-kernel",
    "kernel-beyond-map", "map-1x1", "one-row", "one-output", "multiplier-2", "multiplier-3-stride-2", "empty-batch",
)  # fmt: skip


def leaves(tensors):
    """Detached copies with the same strides that gather gradients."""
    return {name: None if value is None else value.detach().clone().requires_grad_() for name, value in tensors.items()}


def gradients(function, tensors, grad_output, **arguments):
    inputs = leaves(tensors)
    function(**inputs, **arguments).backward(grad_output)
    return {name: value.grad for name, value in inputs.items() if value is not None}


def check_gradients(op, tensors, **arguments):
    """Each gradient against float64, and no further from it than PyTorch's own; dense in the format of its tensor."""
    exact_tensors = double(tensors)
    exact_out = reference_call(op, **exact_tensors, **arguments)
    grad_output = torch.randn_like(exact_out).to(tensors["input"])

    def reference(**kwargs):
        return reference_call(op, **kwargs)

    exact = gradients(reference, exact_tensors, grad_output.double(), **arguments)
    unfused = gradients(reference, tensors, grad_output, **arguments)
    with poisoned_outputs():
        fused = gradients(getattr(FF, op), tensors, grad_output, **arguments)
    for name, gradient in fused.items():
        assert gradient.dtype == tensors[name].dtype
        assert_no_further(gradient, unfused[name], exact[name], f"gradient of {name}")
    assert_format(fused["input"], tensors["input"])


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=lambda case: case.id)
def test_depthwise(case, dtype, memory_format, device):
    check_gradients("depthwise_conv2d", depthwise_tensors(case, dtype, device, memory_format), **conv_geometry(case))


@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_depthwise_activations(activation, dtype, memory_format, device):
    for case in by_id(CONV_CASES, "plain", "multiplier-dilated"):
        exact = exact_separable_tensors(case, dtype, device, memory_format)
        tensors = {"input": exact["input"], "weight": exact["depthwise_weight"], "bias": exact["depthwise_bias"]}
        if activation == "relu6":
            tensors["bias"] += 5
        check_gradients("depthwise_conv2d", tensors, **conv_geometry(case), activation=activation)


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=lambda case: case.id)
def test_separable(case, dtype, memory_format, device):
    check_gradients("depthwise_separable_conv2d", separable_tensors(case, dtype, device, memory_format), **conv_geometry(case))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
def test_separable_orders(order, residual, dtype, memory_format, device):
    for case in by_id(CONV_CASES, "plain", "stride-dilation"):
        tensors = exact_separable_tensors(case, dtype, device, memory_format, residual)
        check_gradients("depthwise_separable_conv2d", tensors, **conv_geometry(case), **activations(ORDERS[order]))


@pytest.mark.parametrize("place", range(3), ids=["input", "depthwise", "pointwise"])
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_separable_activations(activation, place, memory_format, device):
    (case,) = by_id(CONV_CASES, "odd-everything")
    tensors = exact_separable_tensors(case, torch.float32, device, memory_format, residual=True)
    order = ["identity"] * 3
    order[place] = activation
    check_gradients("depthwise_separable_conv2d", tensors, **conv_geometry(case), **activations(order))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_of_inputs_and_gradients(layout, device):
    """Any strides of the input, and a gradient that comes back in any."""
    (case,) = by_id(CONV_CASES, "plain")
    tensors = separable_tensors(case, torch.float32, device, torch.contiguous_format)
    grad_output = in_layout(rand(2, case.out_channels, 13, 17, device=device), layout)
    expected = gradients(lambda **t: reference_call("depthwise_separable_conv2d", **t), tensors, grad_output, **conv_geometry(case))
    tensors["input"] = in_layout(tensors["input"], layout)
    for name, gradient in gradients(FF.depthwise_separable_conv2d, tensors, grad_output, **conv_geometry(case)).items():
        assert_close(gradient, expected[name], name)


def test_stride_0_gradients(dtype, memory_format, device):
    """sum().backward() sends one element, expanded."""
    (case,), (pool,) = by_id(CONV_CASES, "plain"), by_id(POOL_CASES, "resnet")
    tensors = separable_tensors(case, dtype, device, memory_format)
    geometry = conv_geometry(case)
    x = tensors["input"].clone().requires_grad_()
    for function in (
        lambda x: FF.depthwise_conv2d(x, tensors["depthwise_weight"], None, **geometry, activation="silu"),
        lambda x: FF.depthwise_separable_conv2d(x, tensors["depthwise_weight"], tensors["pointwise_weight"], **geometry),
        lambda x: FF.shift_stitch_max_pool2d(x, **pool_geometry(pool)),
        lambda x: FF.shift_stitch_max_pool2d(x, **pool_geometry(pool), return_indices=True)[0],
        lambda x: FF.shift_stitch_avg_pool2d(x, **pool_geometry(pool)),
        lambda x: FF.shift(x, 2),
        lambda x: FF.stitch(x, 1),
    ):
        out = function(x)
        (expanded,) = torch.autograd.grad(out, x, torch.ones((), dtype=dtype, device=device).expand(out.shape), retain_graph=True)
        (dense,) = torch.autograd.grad(out, x, torch.ones_like(out))
        assert_bitwise(expanded, dense)
        assert_format(expanded, x)


def test_only_what_is_asked_for(device):
    """Each tensor alone, and none of the others' gradients."""
    (case,) = by_id(CONV_CASES, "plain")
    tensors = separable_tensors(case, torch.float32, device, torch.contiguous_format, residual=True)
    arguments = {**conv_geometry(case), **activations(ORDERS["all-smooth"])}
    grad_output = rand(2, case.out_channels, 13, 17, device=device)
    everything = gradients(FF.depthwise_separable_conv2d, tensors, grad_output, **arguments)
    for name in tensors:
        alone = {key: value.detach().clone().requires_grad_(key == name) for key, value in tensors.items()}
        FF.depthwise_separable_conv2d(**alone, **arguments).backward(grad_output)
        assert_close(alone[name].grad, everything[name].double(), name)
        assert all(value.grad is None for key, value in alone.items() if key != name)


@pytest.mark.parametrize(
    "pointwise_activation, kept",
    [("identity", {"input"}), ("relu", {"input", "output"}), ("relu6", {"input", "output"}), ("silu", {"input", "residual"})],
)
def test_saved_for_backward(pointwise_activation, kept, device):
    """The input, the output or the residual where the last activation needs it, the parameters, and nothing of the map in between."""
    (case,) = by_id(CONV_CASES, "plain")
    tensors = leaves(separable_tensors(case, torch.float32, device, torch.contiguous_format, residual=True))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        out = FF.depthwise_separable_conv2d(
            **tensors,
            **conv_geometry(case),
            input_activation="relu",
            depthwise_activation="gelu",
            pointwise_activation=pointwise_activation,
        )
    maps = {"input": tensors["input"], "residual": tensors["residual"], "output": out}
    pointers = {tensor.data_ptr() for tensor in saved}
    assert {name for name, value in maps.items() if value.data_ptr() in pointers} == kept
    parameters = {value.data_ptr() for name, value in tensors.items() if name not in maps}
    assert pointers == parameters | {maps[name].data_ptr() for name in kept}


def test_max_pool_saves_one_byte_an_element(memory_format, device):
    x = feature_map((2, 8, 20, 20), torch.float32, device, memory_format).clone().requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        out = FF.shift_stitch_max_pool2d(x, 3, 2, 1)
    assert sum(tensor.nbytes for tensor in saved) == out.numel()


@pytest.mark.parametrize(
    "case",
    by_id(
        POOL_CASES,
        "resnet",
        "overfeat",
        "vgg",
        "axes",
        "kernel-5-ceil",
        "dilation-3-even-kernel",
        "padding-in-dilations",
        "stride-beyond-map",
        "argmax-in-a-byte",
        "argmax-beyond-a-byte",
        "empty-batch",
    ),
    ids=lambda case: case.id,
)
@pytest.mark.parametrize("path", ["argmax", "recompute"])
@pytest.mark.parametrize("layout", ["stitched", "fragments"])
def test_max_pool(case, path, layout, dtype, memory_format, device):
    """Bit for bit torch's gradient (small integers, so that the order of additions does not matter), on inputs full of ties and NaN."""
    x = feature_map(case.size, dtype, device, memory_format)
    x.copy_(torch.tensor([float("nan"), 0.0, -0.0, 1.0, 2.0, -torch.inf])[torch.randint(6, case.size)])
    ours, torchs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out = FF.shift_stitch_max_pool2d(ours, **pool_geometry(case), layout=layout, return_indices=path == "recompute")
    out = out[0] if path == "recompute" else out
    expected = reference_call("shift_stitch_max_pool2d", torchs, **pool_geometry(case), layout=layout)
    grad_output = torch.randint(-1, 3, out.shape, device=device).to(out)
    with poisoned_outputs():
        out.backward(grad_output)
    expected.backward(grad_output)
    assert_bitwise(ours.grad, torchs.grad)
    assert_format(ours.grad, x)


@pytest.mark.parametrize(
    "case",
    by_id(POOL_CASES, "resnet", "overfeat", "axes", "kernel-5-ceil", "dilation-2", "beyond-map-ceil", "empty-batch"),
    ids=lambda case: case.id,
)
@pytest.mark.parametrize("options", [{}, {"count_include_pad": False}, {"divisor_override": 5}], ids=["", "exclude-pad", "divisor"])
@pytest.mark.parametrize("layout", ["stitched", "fragments"])
def test_avg_pool(case, options, layout, dtype, memory_format, device):
    arguments = {**pool_geometry(case), **options, "layout": layout}
    check_gradients("shift_stitch_avg_pool2d", {"input": feature_map(case.size, dtype, device, memory_format)}, **arguments)


@pytest.mark.parametrize("stride", [(2, 3), (1, 2), (5, 7)], ids=str)
def test_shift_and_stitch(stride, dtype, memory_format, device):
    """The tails of the fragments have no gradient to give, and get none."""
    x = feature_map((2, 5, 9, 8), dtype, device, memory_format).clone().requires_grad_()
    fragments = FF.shift(x, stride, fill=4.0)
    grad_output = torch.randn_like(fragments)
    fragments.backward(grad_output)
    assert_bitwise(x.grad, reference_call("stitch", grad_output, stride, (9, 8)))
    leaf = fragments.detach().clone().requires_grad_()
    for size in ((9, 8), (4, 3)):
        leaf.grad = None
        dense = FF.stitch(leaf, stride, tuple(min(s, full) for s, full in zip(size, (9, 8), strict=True)))
        grad_output = torch.randn_like(dense)
        dense.backward(grad_output)
        again = leaf.detach().clone().requires_grad_()
        reference_call("stitch", again, stride, size).backward(grad_output)
        assert_bitwise(leaf.grad, again.grad)


@pytest.mark.parametrize("case", by_id(CONV_CASES, "one-channel", "kernel-5x2", "multiplier-3-stride-2"), ids=lambda case: case.id)
def test_gradcheck_convolutions(case, memory_format, device):
    small = (min(case.size[0], 2), min(case.size[1], 3), min(case.size[2], 7), min(case.size[3], 6))
    case = type(case)("small", small, case.kernel, 2, case.multiplier, case.stride, case.padding, case.dilation)
    tensors = leaves(separable_tensors(case, torch.float64, device, memory_format))
    names = list(tensors)

    def separable(*values):
        arguments = {**conv_geometry(case), **activations(ORDERS["all-smooth"])}
        return FF.depthwise_separable_conv2d(**dict(zip(names, values, strict=True)), **arguments)

    def depthwise(input, weight, bias):
        return FF.depthwise_conv2d(input, weight, bias, **conv_geometry(case), activation="gelu_tanh")

    assert gradcheck(separable, tuple(tensors.values()))
    assert gradcheck(depthwise, (tensors["input"], tensors["depthwise_weight"], tensors["depthwise_bias"]))


def test_gradcheck_pools(memory_format, device):
    values = torch.randperm(2 * 2 * 6 * 5).double() / 7  # no two within reach of gradcheck's steps
    x = values.view(2, 2, 6, 5).to(device).contiguous(memory_format=memory_format).requires_grad_()
    for layout in ("stitched", "fragments"):
        assert gradcheck(lambda x, layout=layout: FF.shift_stitch_max_pool2d(x, 3, 2, 1, ceil_mode=True, layout=layout), (x,))
        assert gradcheck(lambda x, layout=layout: FF.shift_stitch_max_pool2d(x, 3, 2, 1, layout=layout, return_indices=True)[0], (x,))
        assert gradcheck(lambda x, layout=layout: FF.shift_stitch_avg_pool2d(x, 2, 2, 1, 2, True, False, layout=layout), (x,))
    assert gradcheck(lambda x: FF.shift(x, (2, 3)), (x,))
    assert gradcheck(lambda x: FF.stitch(x, (1, 2), (5, 9)), (x,))


def test_second_derivatives_are_refused_by_name(device):
    x = rand(1, 4, 6, 6, device=device).requires_grad_()
    weight = rand(4, 1, 3, 3, device=device).requires_grad_()
    pointwise = rand(2, 4, device=device).requires_grad_()
    for name, function in {
        "depthwise_conv2d": lambda: FF.depthwise_conv2d(x, weight, activation="silu"),
        "depthwise_separable_conv2d": lambda: FF.depthwise_separable_conv2d(x, weight, pointwise),
        "shift_stitch_avg_pool2d": lambda: FF.shift_stitch_avg_pool2d(x**2, 2),
        "shift_stitch_max_pool2d": lambda: FF.shift_stitch_max_pool2d(x**2, 2),
    }.items():
        (gradient,) = torch.autograd.grad(function().square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match=f"fastconv::{name} is differentiable once"):
            gradient.sum().backward()
        with backends.use("reference"):
            (gradient,) = torch.autograd.grad(function().square().sum(), x, create_graph=True)
            gradient.square().sum().backward()


def test_indices_and_argmax_have_no_gradient(device):
    x = rand(1, 2, 6, 6, device=device).requires_grad_()
    out, indices = FF.shift_stitch_max_pool2d(x, 2, return_indices=True)
    assert out.requires_grad and not indices.requires_grad
    values, argmax = torch.ops.fastconv.shift_stitch_max_pool2d_argmax(x, [2, 2], [2, 2], [0, 0], [1, 1], False, False, 0.0)
    assert values.requires_grad and not argmax.requires_grad
    assert_bitwise(F.max_pool2d(x.detach(), 2, 1), values.detach())
