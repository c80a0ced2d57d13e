"""torch.library.opcheck on every operator: schema, autograd registration, fakes, AOT dispatch with dynamic shapes."""

import pytest
from helpers import LAYOUTS, in_layout, rand
from torch.library import opcheck

from fastconv import _ops

OPS = _ops.overloads("fastconv", _ops.FORWARD_OPS + _ops.BACKWARD_OPS)
CONV = ((2, 1), (1, 2, 0, 1), (1, 2))  # stride, padding, dilation
POOL = ((3, 2), (2, 1), (1, 0), (1, 2), True)  # kernel, stride, padding, dilation, ceil_mode


def arguments(op, layout, grad, device):
    """One call of each operator; `grad` asks for derivatives of every floating-point tensor."""

    def tensor(*size):
        return in_layout(rand(*size, device=device), layout).requires_grad_(grad)

    def plain(*size):
        return rand(*size, device=device).requires_grad_(grad)

    x = tensor(2, 3, 7, 8)
    conv_weights = (plain(6, 1, 3, 2), plain(4, 6, 1, 1), plain(6), plain(4))
    return {
        "depthwise_conv2d": lambda: (x, conv_weights[0], conv_weights[2], *CONV, "silu"),
        "depthwise_conv2d_backward": lambda: (tensor(2, 6, 4, 7), x, conv_weights[0], None, None, *CONV, "silu", [True, True, False]),
        "depthwise_separable_conv2d": lambda: (x, *conv_weights, tensor(2, 4, 4, 7), *CONV, "relu", "gelu", "relu6"),
        "depthwise_separable_conv2d_backward": lambda: (
            tensor(2, 4, 4, 7),
            x,
            *conv_weights,
            tensor(2, 4, 4, 7),
            None,
            *CONV,
            "relu",
            "gelu",
            "silu",
            [True, False, True, True, True, True],
        ),  # fmt: skip
        "shift_stitch_max_pool2d": lambda: (x, *POOL, False, 0.0),
        "shift_stitch_max_pool2d_argmax": lambda: (x, *POOL, True, 0.0),
        "shift_stitch_max_pool2d_indices": lambda: (x, *POOL, False, 0.0),
        "shift_stitch_max_pool2d_backward": lambda: (tensor(2, 3, 7, 6), x, None, [2, 3, 7, 8], *POOL, False),
        "shift_stitch_avg_pool2d": lambda: (x, *POOL, True, None, True, 0.0),
        "shift_stitch_avg_pool2d_backward": lambda: (tensor(2, 3, 7, 6), [2, 3, 7, 8], *POOL, False, None, False),
        "shift": lambda: (x, (2, 3), 1.0),
        "stitch": lambda: (tensor(12, 3, 4, 3), (2, 3), (7, 8)),
    }[op]()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", _ops.FORWARD_OPS)
def test_forward_operators(op, layout, device):
    opcheck(getattr(OPS, op), arguments(op, layout, grad=True, device=device))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", _ops.BACKWARD_OPS)
def test_backward_operators(op, layout, device):
    opcheck(getattr(OPS, op), arguments(op, layout, grad=False, device=device))
