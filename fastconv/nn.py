"""Modules around fastconv.functional.

Their `state_dict` is that of the plain network: DepthwiseConv2d has the keys of an nn.Conv2d,
DepthwiseSeparableConv2d those of the nn.Sequential of convolutions, norms and activations that it stands for.

Modules of fastconv that stand for modules of torch have a `plain_forward`: the same numbers by torch's own modules, one after the other, on
the same parameters. It is what graph tools read (`to_dense`, the receptive field), and what :func:`plain` runs.
"""

import copy

from torch import Tensor, nn

from . import functional as F
from .folding import FoldedWeights, folds
from .reference import ACTIVATIONS

IntPair = F.IntPair

_ACTIVATION_MODULES = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "hardswish": nn.Hardswish,
}


def plain(model: nn.Module) -> nn.Module:
    """A copy of `model` that runs torch's own modules only: what a comparison compares with. Its state_dict is the model's."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if hasattr(module, "plain_forward"):
            module.forward = module.plain_forward
    return twin


class DepthwiseConv2d(nn.Conv2d):
    """``activation(F.conv2d(input, weight, bias, stride, padding, dilation, groups=in_channels))``, see
    :func:`fastconv.functional.depthwise_conv2d`.

    An ``nn.Conv2d`` with ``groups=in_channels`` and ``out_channels=in_channels*depth_multiplier``: same parameters,
    same initialisation, same keys ("weight", "bias").
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair | str = 0,
        dilation: IntPair = 1,
        depth_multiplier: int = 1,
        bias: bool = True,
        activation: str = "identity",
        device=None,
        dtype=None,
    ):
        F.check.activation("DepthwiseConv2d", "activation", activation)
        super().__init__(
            in_channels,
            in_channels * depth_multiplier,
            kernel_size,
            stride,
            padding,
            dilation,
            groups=in_channels,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        return F.depthwise_conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.activation)

    def plain_forward(self, input: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](super().forward(input))

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", activation={self.activation}" if self.activation != "identity" else "")


class DepthwiseSeparableConv2d(nn.Module):
    r"""A depthwise and a pointwise convolution with optional norms and activations around them, run as one fused operator.

    It stands for this chain, whose absent members take no place::

        nn.Sequential(
            input_activation, depthwise, depthwise_norm, depthwise_activation,
            pointwise, pointwise_norm, [+ residual], pointwise_activation,
        )

    which spells every order in use: Xception's ReLU-dw-BN-pw-BN, DeepLabv3+'s dw-BN-ReLU-pw-BN-ReLU, timm's and
        Keras' dw-pw-BN-act, MobileNet's dw-BN-act-pw-BN (+ residual). The children carry the numbers they have in
        that Sequential ("0", "1", ...), so its ``state_dict`` loads here and the other way round;
        :meth:`as_sequential` gives the chain itself, on the same parameters. Hooks on the children do not run when
        the fused operator does.

    In eval mode batch norms are folded into weights and biases (in float64, rounded once), and the fused operator
    runs. In train mode, and for norms
    that are no fixed affine map, the statistics are those of the chain: the operator is cut at the norm.

    The folded weights are kept between calls where no gradient is asked for, see :class:`fastconv.folding.FoldedWeights`: any change to
    the tensors they came from is noticed, but for writes through ``.data``; ``eval()`` and ``train()`` forget the folded weights.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation: as in ``nn.Conv2d``.
        depth_multiplier: depthwise channels for each input channel.
        depthwise_norm, pointwise_norm: None, or what makes a norm from a number of channels, such as
            ``nn.BatchNorm2d``; called with the number of channels, and with ``device`` and ``dtype`` where these are
            given.
        input_activation, depthwise_activation, pointwise_activation: see :mod:`fastconv.functional`.
        depthwise_bias, pointwise_bias: by default a convolution has a bias where no norm follows it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair | str = 0,
        dilation: IntPair = 1,
        depth_multiplier: int = 1,
        *,
        input_activation: str = "identity",
        depthwise_norm=None,
        depthwise_activation: str = "identity",
        pointwise_norm=None,
        pointwise_activation: str = "identity",
        depthwise_bias: bool | None = None,
        pointwise_bias: bool | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        middle = in_channels * depth_multiplier
        factory = {name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None}
        depthwise_bias = depthwise_norm is None if depthwise_bias is None else depthwise_bias
        pointwise_bias = pointwise_norm is None if pointwise_bias is None else pointwise_bias
        self._adopt(
            input_activation,
            nn.Conv2d(in_channels, middle, kernel_size, stride, padding, dilation, groups=in_channels, bias=depthwise_bias, **factory),
            None if depthwise_norm is None else depthwise_norm(middle, **factory),
            depthwise_activation,
            nn.Conv2d(middle, out_channels, 1, bias=pointwise_bias, **factory),
            None if pointwise_norm is None else pointwise_norm(out_channels, **factory),
            pointwise_activation,
        )

    @classmethod
    def from_modules(
        cls,
        depthwise: nn.Conv2d,
        pointwise: nn.Conv2d,
        *,
        input_activation: str = "identity",
        depthwise_norm: nn.Module | None = None,
        depthwise_activation: str = "identity",
        pointwise_norm: nn.Module | None = None,
        pointwise_activation: str = "identity",
    ) -> "DepthwiseSeparableConv2d":
        """The same chain around modules that exist already; they are taken as they are, parameters, buffers and mode included."""
        if depthwise.groups != depthwise.in_channels or depthwise.padding_mode != "zeros":
            raise ValueError(f"DepthwiseSeparableConv2d: depthwise must have groups=in_channels and zero padding, got {depthwise}")
        plain = (
            pointwise.kernel_size == (1, 1)
            and pointwise.stride == (1, 1)
            and pointwise.groups == 1
            and pointwise.padding in ((0, 0), "valid", "same")
        )
        if not plain or pointwise.in_channels != depthwise.out_channels:
            raise ValueError(
                f"DepthwiseSeparableConv2d: pointwise must be a plain 1x1 convolution of {depthwise.out_channels} channels, got {pointwise}"
            )
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module._adopt(input_activation, depthwise, depthwise_norm, depthwise_activation, pointwise, pointwise_norm, pointwise_activation)
        module.training = depthwise.training
        return module

    def _adopt(self, input_activation, depthwise, depthwise_norm, depthwise_activation, pointwise, pointwise_norm, pointwise_activation):
        activations = {
            "input_activation": input_activation,
            "depthwise_activation": depthwise_activation,
            "pointwise_activation": pointwise_activation,
        }
        for name, value in activations.items():
            F.check.activation("DepthwiseSeparableConv2d", name, value)
            setattr(self, name, value)
        chain = {
            "input_activation": _activation_module(input_activation),
            "depthwise": depthwise,
            "depthwise_norm": depthwise_norm,
            "depthwise_activation": _activation_module(depthwise_activation),
            "pointwise": pointwise,
            "pointwise_norm": pointwise_norm,
            "pointwise_activation": _activation_module(pointwise_activation),
        }
        self._places = {}
        for role, module in chain.items():
            if module is not None:
                self._places[role] = str(len(self._places))
                self.add_module(self._places[role], module)
        self._folded = FoldedWeights(depthwise_activation)

    @property
    def depthwise(self) -> nn.Conv2d:
        return self._modules[self._places["depthwise"]]

    @property
    def pointwise(self) -> nn.Conv2d:
        return self._modules[self._places["pointwise"]]

    @property
    def depthwise_norm(self) -> nn.Module | None:
        return self._modules[self._places["depthwise_norm"]] if "depthwise_norm" in self._places else None

    @property
    def pointwise_norm(self) -> nn.Module | None:
        return self._modules[self._places["pointwise_norm"]] if "pointwise_norm" in self._places else None

    def as_sequential(self) -> nn.Sequential:
        """The plain chain on the same parameters."""
        return nn.Sequential(*self.children())

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        depthwise, pointwise = (self.depthwise, self.depthwise_norm), (self.pointwise, self.pointwise_norm)
        if not folds(depthwise[1]):
            return self._cut_at_depthwise_norm(input, residual)
        if not folds(pointwise[1]):
            out = self._fused(input, self._folded(depthwise, (pointwise[0], None)), "identity", None)
            return self._finish(pointwise[1](out), residual)
        return self._fused(input, self._folded(depthwise, pointwise), self.pointwise_activation, residual)

    def plain_forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        last = self._places.get("pointwise_activation")
        for place, module in self._modules.items():
            if residual is not None and place == last:
                input, residual = input + residual, None
            input = module(input)
        return input if residual is None else input + residual

    def _fused(self, input, weights, pointwise_activation, residual):
        depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias = weights
        return F.depthwise_separable_conv2d(
            input,
            depthwise_weight,
            pointwise_weight,
            depthwise_bias,
            pointwise_bias,
            self.depthwise.stride,
            self.depthwise.padding,
            self.depthwise.dilation,
            self.input_activation,
            self.depthwise_activation,
            pointwise_activation,
            residual,
        )

    def _cut_at_depthwise_norm(self, input, residual):
        """The two halves as operators of their own, because the norm between them needs the whole intermediate map first."""
        conv = self.depthwise
        m = F.depthwise_conv2d(ACTIVATIONS[self.input_activation](input), conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation)
        m = ACTIVATIONS[self.depthwise_activation](self.depthwise_norm(m))
        out = self.pointwise(m)
        return self._finish(out if self.pointwise_norm is None else self.pointwise_norm(out), residual)

    def _finish(self, out, residual):
        return ACTIVATIONS[self.pointwise_activation](out if residual is None else out + residual)

    def train(self, mode: bool = True):
        self._folded.forget()
        return super().train(mode)

    def extra_repr(self) -> str:
        return ", ".join(f"{role}={place}" for role, place in self._places.items())


def _activation_module(name):
    return None if name == "identity" else _ACTIVATION_MODULES[name]()


class ShiftStitchMaxPool2d(nn.Module):
    """See :func:`fastconv.functional.shift_stitch_max_pool2d`."""

    def __init__(
        self,
        kernel_size: IntPair,
        stride: IntPair | None = None,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        ceil_mode: bool = False,
        *,
        layout: str = "stitched",
        return_indices: bool = False,
        fill: float = 0.0,
    ):
        super().__init__()
        F.check.layout("ShiftStitchMaxPool2d", layout)
        self.kernel_size, self.stride, self.padding, self.dilation = (
            kernel_size,
            kernel_size if stride is None else stride,
            padding,
            dilation,
        )
        self.ceil_mode, self.layout, self.return_indices, self.fill = ceil_mode, layout, return_indices, fill

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return F.shift_stitch_max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            layout=self.layout,
            return_indices=self.return_indices,
            fill=self.fill,
        )

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"ceil_mode={self.ceil_mode}, layout={self.layout}"
        )


class ShiftStitchAvgPool2d(nn.Module):
    """See :func:`fastconv.functional.shift_stitch_avg_pool2d`."""

    def __init__(
        self,
        kernel_size: IntPair,
        stride: IntPair | None = None,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        layout: str = "stitched",
        fill: float = 0.0,
    ):
        super().__init__()
        F.check.layout("ShiftStitchAvgPool2d", layout)
        self.kernel_size, self.stride, self.padding, self.dilation = (
            kernel_size,
            kernel_size if stride is None else stride,
            padding,
            dilation,
        )
        self.ceil_mode, self.count_include_pad, self.divisor_override = ceil_mode, count_include_pad, divisor_override
        self.layout, self.fill = layout, fill

    def forward(self, input: Tensor) -> Tensor:
        return F.shift_stitch_avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
            layout=self.layout,
            fill=self.fill,
        )

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"ceil_mode={self.ceil_mode}, count_include_pad={self.count_include_pad}, layout={self.layout}"
        )


class Stitch(nn.Module):
    """Fragments back to the dense map, see :func:`fastconv.functional.stitch`; `size` may be given here or with each call."""

    def __init__(self, stride: IntPair, size: IntPair | None = None):
        super().__init__()
        self.stride, self.size = stride, size

    def forward(self, input: Tensor, size: IntPair | None = None) -> Tensor:
        return F.stitch(input, self.stride, self.size if size is None else size)

    def extra_repr(self) -> str:
        return f"stride={self.stride}" + (f", size={self.size}" if self.size is not None else "")
