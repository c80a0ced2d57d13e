"""Every refusal names the argument, what it got and what is supported."""

import pytest
import torch
from helpers import rand

import fastconv.functional as FF
from fastconv import backends, nn

X = rand(2, 4, 6, 6)
DW, PW = rand(4, 1, 3, 3), rand(5, 4)
OPS = torch.ops.fastconv


def dw(x=X, weight=DW, **arguments):
    return FF.depthwise_conv2d(x, weight, **arguments)


def sep(x=X, weight=DW, pointwise=PW, **arguments):
    return FF.depthwise_separable_conv2d(x, weight, pointwise, **arguments)


def max_pool(x=X, kernel_size=3, **arguments):
    return FF.shift_stitch_max_pool2d(x, kernel_size, **arguments)


def avg_pool(x=X, kernel_size=3, **arguments):
    return FF.shift_stitch_avg_pool2d(x, kernel_size, **arguments)


REFUSALS = {
    "input-2d": (lambda: dw(rand(6, 6)), ValueError, r"depthwise_conv2d: input must be \(N, C, H, W\) or \(C, H, W\), got \(6, 6\)"),
    "input-5d": (lambda: max_pool(rand(1, 1, 1, 6, 6)), ValueError, r"input must be .*, got \(1, 1, 1, 6, 6\)"),
    "input-empty-rows": (lambda: dw(rand(2, 4, 0, 6), padding=2), ValueError, r"input may be empty in its batch only, got \(2, 4, 0, 6\)"),
    "input-no-channels": (lambda: max_pool(rand(2, 0, 6, 6)), ValueError, r"input may be empty in its batch only, got \(2, 0, 6, 6\)"),
    "input-int": (lambda: dw(X.long()), TypeError, r"input must be float32, float16, bfloat16 or float64, got torch.int64"),
    "pool-int": (lambda: avg_pool(X.int()), TypeError, r"shift_stitch_avg_pool2d: input must be .*, got torch.int32"),
    "weight-3d": (lambda: dw(weight=rand(4, 3, 3)), ValueError, r"weight must be \(C\*M, 1, Kh, Kw\), got \(4, 3, 3\)"),
    "weight-grouped": (lambda: dw(weight=rand(4, 2, 3, 3)), ValueError, r"weight must be \(C\*M, 1, Kh, Kw\), got \(4, 2, 3, 3\)"),
    "weight-channels": (
        lambda: sep(weight=rand(6, 1, 3, 3)),
        ValueError,
        r"depthwise_weight must have a multiple of the input's 4 channels .*\(6, 1",
    ),
    "weight-empty": (lambda: dw(weight=rand(4, 1, 0, 3)), ValueError, r"weight must have a kernel of at least 1x1, got \(4, 1, 0, 3\)"),
    "weight-dtype": (lambda: dw(weight=DW.half()), TypeError, r"weight must have the input's dtype torch.float32, got torch.float16"),
    "weight-device": (lambda: dw(weight=DW.to("meta")), ValueError, r"weight must be on the input's device cpu, got meta"),
    "bias-shape": (lambda: dw(bias=rand(5)), ValueError, r"bias must be \(4,\), one for each output channel, got \(5,\)"),
    "bias-dtype": (lambda: sep(pointwise_bias=rand(5).double()), TypeError, r"pointwise_bias must have the input's dtype"),
    "pointwise-shape": (
        lambda: sep(pointwise=rand(5, 4, 3, 3)),
        ValueError,
        r"pointwise_weight must be \(O, C\*M\) or .*, got \(5, 4, 3, 3\)",
    ),
    "pointwise-channels": (lambda: sep(pointwise=rand(5, 3)), ValueError, r"pointwise_weight must be \(O, 4\).*, got \(5, 3\)"),
    "residual-shape": (
        lambda: sep(residual=rand(2, 5, 6, 6)),
        ValueError,
        r"residual must have the output's shape \(2, 5, 4, 4\), got \(2, 5, 6, 6\)",
    ),
    "residual-unbatched": (
        lambda: sep(X[0], residual=rand(1, 5, 4, 4)),
        ValueError,
        r"residual must have the output's shape \(5, 4, 4\), got",
    ),
    "stride-zero": (lambda: dw(stride=0), ValueError, r"stride must be at least 1, got 0"),
    "stride-triple": (lambda: dw(stride=(1, 1, 1)), TypeError, r"stride must be an int or a pair of ints, got \(1, 1, 1\)"),
    "stride-float": (lambda: max_pool(stride=1.5), TypeError, r"stride must be an int or a pair of ints, got 1.5"),
    "stride-floats": (lambda: dw(stride=(1, 2.5)), TypeError, r"stride must hold ints, got \(1, 2.5\)"),
    "dilation-zero": (lambda: dw(dilation=(1, 0)), ValueError, r"dilation must be at least 1, got \(1, 0\)"),
    "padding-negative": (lambda: dw(padding=-1), ValueError, r"padding must be at least 0, got -1"),
    "padding-word": (lambda: dw(padding="full"), ValueError, r'padding must be an int, a pair, "same" or "valid", got \'full\''),
    "padding-same-strided": (lambda: dw(padding="same", stride=2), ValueError, r'padding="same" needs stride 1, got stride \(2, 2\)'),
    "kernel-too-large": (lambda: dw(dilation=3), ValueError, r"the kernel spans 7x7 pixels .* more than the padded input's 6x6"),
    "activation": (lambda: dw(activation="tanh"), ValueError, r"activation must be one of identity, relu, .*, got 'tanh'"),
    "activation-name": (lambda: sep(depthwise_activation=None), ValueError, r"depthwise_activation must be one of .*, got None"),
    "kernel-zero": (lambda: max_pool(kernel_size=0), ValueError, r"kernel_size must be at least 1, got 0"),
    "pool-padding": (
        lambda: max_pool(padding=2),
        ValueError,
        r"padding must be at most dilation \* \(kernel_size // 2\), got padding \(2, 2\)",
    ),
    "pool-too-large": (
        lambda: avg_pool(dilation=4),
        ValueError,
        r"the output would be -2x-2: input 6x6 is too small for kernel_size \(3, 3\)",
    ),
    "layout": (lambda: max_pool(layout="dense"), ValueError, r'layout must be "stitched" or "fragments", got \'dense\''),
    "divisor": (lambda: avg_pool(divisor_override=0), ValueError, r"divisor_override must not be 0"),
    "stitch-batch": (lambda: FF.stitch(X, 2), ValueError, r"input must be \(N\*2\*2, C, U, V\) for stride \(2, 2\), got \(2, 4, 6, 6\)"),
    "stitch-size": (lambda: FF.stitch(X, (1, 2), (6, 13)), ValueError, r"size must be between 1x1 and the 6x12 .*, got \(6, 13\)"),
    "stitch-size-type": (lambda: FF.stitch(X, (1, 2), 6.5), TypeError, r"size must be an int or a pair of ints, got"),
    "module-activation": (
        lambda: nn.DepthwiseSeparableConv2d(4, 4, 3, depthwise_activation="elu"),
        ValueError,
        r"depthwise_activation must be one of",
    ),
    "module-layout": (lambda: nn.ShiftStitchMaxPool2d(2, layout="flat"), ValueError, r'layout must be "stitched" or "fragments"'),
    "backend": (lambda: backends.use("tpu").__enter__(), ValueError, r"got backend 'tpu'; supported are cuda, triton, cpu, reference"),
    "explain": (
        lambda: backends.explain_choice("conv3d", "cpu", torch.float32),
        ValueError,
        r"got op 'conv3d'; supported are depthwise_conv2d",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    call, kind, message = REFUSALS[name]
    with pytest.raises(kind, match=message):
        call()


# What the operators themselves say to callers that go past fastconv.functional.
DIRECT = {
    "depthwise-weight": lambda: OPS.depthwise_conv2d(X, rand(6, 1, 3, 3), None, [1, 1], [0] * 4, [1, 1], "relu"),
    "depthwise-activation": lambda: OPS.depthwise_conv2d(X, DW, None, [1, 1], [0] * 4, [1, 1], "tanh"),
    "depthwise-padding": lambda: OPS.depthwise_conv2d(X, DW, None, [1, 1], [0] * 2, [1, 1], "relu"),
    "depthwise-stride": lambda: OPS.depthwise_conv2d(X, DW, None, [1, 0], [0] * 4, [1, 1], "relu"),
    "depthwise-size": lambda: OPS.depthwise_conv2d(X, DW, None, [1, 1], [0] * 4, [9, 1], "relu"),
    "depthwise-dtype": lambda: OPS.depthwise_conv2d(X, DW.half(), None, [1, 1], [0] * 4, [1, 1], "relu"),
    "depthwise-grad": lambda: OPS.depthwise_conv2d_backward(X, X, DW, None, None, [1, 1], [0] * 4, [1, 1], "identity", [True] * 3),
    "depthwise-mask": lambda: OPS.depthwise_conv2d_backward(
        rand(2, 4, 4, 4), X, DW, None, None, [1, 1], [0] * 4, [1, 1], "identity", [True]
    ),
    "separable-pointwise": lambda: OPS.depthwise_separable_conv2d(
        X, DW, rand(5, 3), None, None, None, [1, 1], [0] * 4, [1, 1], *["relu"] * 3
    ),
    "separable-residual": lambda: OPS.depthwise_separable_conv2d(X, DW, PW, None, None, X, [1, 1], [0] * 4, [1, 1], *["relu"] * 3),
    "depthwise-3d": lambda: OPS.depthwise_conv2d(X[0], DW, None, [1, 1], [0] * 4, [1, 1], "relu"),
    "depthwise-bias": lambda: OPS.depthwise_conv2d(X, DW, rand(4, 1), [1, 1], [0] * 4, [1, 1], "relu"),
    "depthwise-output": lambda: OPS.depthwise_conv2d_backward(
        rand(2, 4, 4, 4), X, DW, None, X, [1, 1], [0] * 4, [1, 1], "relu", [True] * 3
    ),
    "separable-bias": lambda: OPS.depthwise_separable_conv2d(X, DW, PW, None, rand(4), None, [1, 1], [0] * 4, [1, 1], *["relu"] * 3),
    "separable-activation": lambda: OPS.depthwise_separable_conv2d(
        X, DW, PW, None, None, None, [1, 1], [0] * 4, [1, 1], "relu", "elu", "relu"
    ),
    "separable-mask": lambda: OPS.depthwise_separable_conv2d_backward(
        rand(2, 5, 4, 4), X, DW, PW, None, None, None, None, [1, 1], [0] * 4, [1, 1], *["identity"] * 3, [True] * 5
    ),
    "pool-empty": lambda: OPS.shift_stitch_max_pool2d(rand(2, 4, 0, 6), [3, 3], [2, 2], [1, 1], [1, 1], False, False, 0.0),
    "pool-kernel": lambda: OPS.shift_stitch_avg_pool2d(X, [3], [2, 2], [0, 0], [1, 1], False, True, None, False, 0.0),
    "pool-divisor": lambda: OPS.shift_stitch_avg_pool2d(X, [3, 3], [2, 2], [0, 0], [1, 1], False, True, 0, False, 0.0),
    "pool-argmax": lambda: OPS.shift_stitch_max_pool2d_backward(
        rand(2, 4, 4, 4), None, rand(2, 4, 4, 4), [2, 4, 6, 6], [3, 3], [2, 2], [0, 0], [1, 1], False, False
    ),
    "pool-padding": lambda: OPS.shift_stitch_max_pool2d(X, [3, 3], [2, 2], [-1, 0], [1, 1], False, False, 0.0),
    "pool-size": lambda: OPS.shift_stitch_max_pool2d(X, [3, 3], [2, 2], [0, 0], [4, 4], False, False, 0.0),
    "pool-argmax-taps": lambda: OPS.shift_stitch_max_pool2d_argmax(rand(1, 1, 20, 20), [17, 16], [2, 2], [0, 0], [1, 1], False, False, 0.0),
    "pool-grad": lambda: OPS.shift_stitch_avg_pool2d_backward(X, [2, 4, 9, 9], [3, 3], [2, 2], [0, 0], [1, 1], False, True, None, False),
    "pool-backward-source": lambda: OPS.shift_stitch_max_pool2d_backward(
        rand(2, 4, 4, 4), None, None, [2, 4, 6, 6], [3, 3], [2, 2], [0, 0], [1, 1], False, False
    ),
    "shift-stride": lambda: OPS.shift(X, [0, 1], 0.0),
    "stitch-batch": lambda: OPS.stitch(X, [2, 2], [12, 12]),
    "stitch-size": lambda: OPS.stitch(X, [1, 2], [6, 13]),
}


@pytest.mark.parametrize("name", DIRECT)
def test_operators_check_for_themselves(name):
    """No shape reaches a kernel unchecked, and the refusal carries more than a file name."""
    with pytest.raises(RuntimeError, match=r"\w+: |\w+ .*(expected|must|got)"):
        DIRECT[name]()
