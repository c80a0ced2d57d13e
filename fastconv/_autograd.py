"""Derivatives of every operator: the only place where autograd is spoken of.

Each block pairs a `save`, which keeps what the backward needs and not one tensor more, with a `backward`, which calls
the operator's own backward operator. Everything is differentiable once; a second derivative raises.
"""

from functools import partial

import torch
from torch._prims_common import suggest_memory_format

from . import _ops

# act'(z) follows from act(z) for these, so the output is saved and z need not be computed again.
DERIVATIVE_FROM_OUTPUT = frozenset(("relu", "relu6"))
# act'(z) needs z = conv + bias + residual, so the residual is needed to compute z again.
DERIVATIVE_FROM_INPUT = frozenset(("silu", "gelu", "gelu_tanh", "hardswish"))


def _dense(grad_output, memory_format):
    """sum().backward() sends gradients of stride 0, and a gradient in another format would cost the kernel a copy all the same."""
    return grad_output.contiguous(memory_format=memory_format)


def _wanted(gradients, mask):
    return tuple(gradient if wanted else None for gradient, wanted in zip(gradients, mask, strict=True))


def _save_depthwise_conv2d(ctx, inputs, output):
    input, weight, bias, stride, padding, dilation, activation = inputs
    ctx.save_for_backward(input, weight, bias, output if activation in DERIVATIVE_FROM_OUTPUT else None)
    ctx.geometry = (stride, padding, dilation, activation)


def _depthwise_conv2d(ops, ctx, grad_output):
    input, weight, bias, output = ctx.saved_tensors
    mask = list(ctx.needs_input_grad[:3])
    grad_output = _dense(grad_output, suggest_memory_format(input))
    gradients = ops.depthwise_conv2d_backward(grad_output, input, weight, bias, output, *ctx.geometry, mask)
    return *_wanted(gradients, mask), None, None, None, None


def _save_depthwise_separable_conv2d(ctx, inputs, output):
    input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual, *geometry, ctx.allow_tf32 = inputs
    activation = geometry[-1]
    ctx.save_for_backward(
        input,
        depthwise_weight,
        pointwise_weight,
        depthwise_bias,
        pointwise_bias,
        residual if activation in DERIVATIVE_FROM_INPUT else None,
        output if activation in DERIVATIVE_FROM_OUTPUT else None,
    )
    ctx.geometry = tuple(geometry)


def _depthwise_separable_conv2d(ops, ctx, grad_output):
    input = ctx.saved_tensors[0]
    mask = list(ctx.needs_input_grad[:6])
    grad_output = _dense(grad_output, suggest_memory_format(input))
    passes_through = mask[5] and ctx.geometry[-1] == "identity"
    asked = [*mask[:5], mask[5] and not passes_through]
    gradients = ops.depthwise_separable_conv2d_backward(grad_output, *ctx.saved_tensors, *ctx.geometry, asked, ctx.allow_tf32)
    gradients = _wanted(gradients, asked)
    return *gradients[:5], grad_output if passes_through else gradients[5], *(None,) * 7


def _save_max_pool(ctx, inputs, output):
    input, *geometry, fill = inputs
    ctx.save_for_backward(input, None)
    ctx.input_size, ctx.memory_format, ctx.geometry = input.shape, suggest_memory_format(input), geometry


def _save_max_pool_argmax(ctx, inputs, output):
    input, *geometry, fill = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(None, output[1])
    ctx.input_size, ctx.memory_format, ctx.geometry = input.shape, suggest_memory_format(input), geometry


def _save_max_pool_indices(ctx, inputs, output):
    # The indices are eight bytes an element: recomputing the argmax from the input is cheaper than keeping them.
    ctx.mark_non_differentiable(output[1])
    _save_max_pool(ctx, inputs, output)


def _max_pool(ops, ctx, grad_output, grad_indices=None):
    input, argmax = ctx.saved_tensors
    grad_output = _dense(grad_output, ctx.memory_format)
    gradient = ops.shift_stitch_max_pool2d_backward(grad_output, input, argmax, ctx.input_size, *ctx.geometry)
    return gradient, *(None,) * 7


def _save_avg_pool(ctx, inputs, output):
    input, *geometry, fill = inputs
    ctx.input_size, ctx.memory_format, ctx.geometry = input.shape, suggest_memory_format(input), geometry


def _avg_pool(ops, ctx, grad_output):
    grad_output = _dense(grad_output, ctx.memory_format)
    return ops.shift_stitch_avg_pool2d_backward(grad_output, ctx.input_size, *ctx.geometry), *(None,) * 9


def _save_shift(ctx, inputs, output):
    input, stride, fill = inputs
    ctx.stride, ctx.size, ctx.memory_format = stride, input.shape[2:], suggest_memory_format(input)


def _shift(ops, ctx, grad_output):
    return ops.stitch(_dense(grad_output, ctx.memory_format), ctx.stride, ctx.size), None, None


def _save_stitch(ctx, inputs, output):
    input, stride, size = inputs
    ctx.stride, ctx.size, ctx.memory_format = stride, input.shape[2:], suggest_memory_format(input)


def _stitch(ops, ctx, grad_output):
    gradient = ops.shift(_dense(grad_output, ctx.memory_format), ctx.stride, 0.0)
    # stitch may have dropped more than the tails: rows of every fragment that lie beyond `size` have no gradient.
    missing = [full - got for full, got in zip(ctx.size, gradient.shape[2:], strict=True)]
    return torch.nn.functional.pad(gradient, (0, missing[1], 0, missing[0])), None, None


_RULES = {
    "depthwise_conv2d": (_save_depthwise_conv2d, _depthwise_conv2d),
    "depthwise_separable_conv2d": (_save_depthwise_separable_conv2d, _depthwise_separable_conv2d),
    "shift_stitch_max_pool2d": (_save_max_pool, _max_pool),
    "shift_stitch_max_pool2d_argmax": (_save_max_pool_argmax, _max_pool),
    "shift_stitch_max_pool2d_indices": (_save_max_pool_indices, _max_pool),
    "shift_stitch_avg_pool2d": (_save_avg_pool, _avg_pool),
    "shift": (_save_shift, _shift),
    "stitch": (_save_stitch, _stitch),
}


def _no_second_derivative(name, ctx, *gradients):
    raise RuntimeError(
        f"fastconv::{name} is differentiable once; second derivatives (create_graph=True, gradient penalties, torch.func.hessian) are "
        'supported by the reference backend only: wrap the forward in fastconv.backends.use("reference").'
    )


def register(namespace: str) -> None:
    """Gives every operator of a namespace that carries these schemas its derivative."""
    ops = _ops.overloads(namespace, _ops.FORWARD_OPS + _ops.BACKWARD_OPS)
    for name, (save, backward) in _RULES.items():
        torch.library.register_autograd(f"{namespace}::{name}", partial(backward, ops), setup_context=save)
    for name in _ops.BACKWARD_OPS:
        torch.library.register_autograd(f"{namespace}::{name}", partial(_no_second_derivative, name.removesuffix("_backward")))


def call(op, *arguments):
    """op(*arguments), past the operator's derivative where nobody asks for one: torch's dispatcher calls it, as Python code, for every tensor that could
    require a gradient, which costs a third of a small call.

    What traces (torch.compile, torch.export) or transforms (torch.func) sees every layer of the operator, and what is not an operator, such as the
    reference, is called as it is.
    """
    if (
        torch.compiler.is_compiling()
        or type(op) is not torch._ops.OpOverload
        or torch._C._functorch.peek_interpreter_stack() is not None
        or (torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments))
    ):
        return op(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)
