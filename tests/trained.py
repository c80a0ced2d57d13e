"""Blocks in the orders that real networks use, with norms far from the identity, for the tests of fuse."""

import operator

import torch
import torch.nn.functional as F
from torch import nn


def randomise_norms(model):
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def redrawn(model, twin):
    """New weights for a model and for its fused twin, of a size that keeps deep maps from fading."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    twin.load_state_dict(randomise_norms(model).state_dict())


def dw(c, k=3, s=1, d=1, m=1, bias=False):
    return nn.Conv2d(c, c * m, k, s, d * (k - 1) // 2, d, groups=c, bias=bias)


def pw(c, o, bias=False):
    return nn.Conv2d(c, o, 1, bias=bias)


class Chain(nn.Sequential):
    """Its last layers may add the input."""

    def __init__(self, *layers, add=None, after=None):
        super().__init__(*layers)
        self.add, self.after = add, after

    def forward(self, x):
        out = x
        for layer in self:
            out = layer(out)
        if self.add is not None:
            out = self.add(out, x)
        return self.after(out) if self.after is not None else out


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's: the activation hides inside the norm."""

    def __init__(self, channels, act):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class DropPath(nn.Module):
    def forward(self, x):
        return x * torch.bernoulli(torch.full((), 0.5)) if self.training else x


class SqueezeExcite(nn.Module):
    def __init__(self, c, gate=torch.sigmoid, adaptive=False):
        super().__init__()
        self.reduce, self.expand, self.gate = nn.Conv2d(c, 4, 1), nn.Conv2d(4, c, 1), gate
        self.pool = nn.AdaptiveAvgPool2d(1) if adaptive else None

    def forward(self, x):
        s = self.pool(x) if self.pool is not None else x.mean((2, 3), keepdim=True)
        return x * self.gate(self.expand(F.relu(self.reduce(s), inplace=True)))


class ConvModule(nn.Module):
    """As mmcv's: the order is a tuple, parts are optional, the call has flags."""

    def __init__(self, conv, norm, act, order=("conv", "norm", "act")):
        super().__init__()
        self.conv, self.bn, self.activate, self.order = conv, norm, act, order

    def forward(self, x, activate=True, norm=True):
        for step in self.order:
            if step == "conv":
                x = self.conv(x)
            elif step == "norm" and norm and self.bn is not None:
                x = self.bn(x)
            elif step == "act" and activate and self.activate is not None:
                x = self.activate(x)
        return x


class Xception(nn.Module):
    """ReLU-dw-BN-pw-BN three times and the shortcut; the first ReLU must not be in place."""

    def __init__(self, c, first_in_place=False):
        super().__init__()
        layers = []
        for i in range(3):
            layers += [nn.ReLU(inplace=i > 0 or first_in_place), dw(c), nn.BatchNorm2d(c), pw(c, c), nn.BatchNorm2d(c)]
        self.stack = nn.Sequential(*layers)

    def forward(self, x):
        return self.stack(x) + x


class ConvNeXt(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv_dw, self.norm = dw(c, 7, bias=True), nn.LayerNorm(c)
        self.mlp, self.gamma = nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c)), nn.Parameter(torch.full((c,), 0.5))

    def forward(self, x):
        out = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return x + out * self.gamma.reshape(1, -1, 1, 1)


class LargeKernelAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv0, self.spatial, self.conv1 = dw(c, 5, bias=True), dw(c, 7, d=3, bias=True), pw(c, c, bias=True)

    def forward(self, x):
        return x * self.conv1(self.spatial(self.conv0(x)))


class Mixed(nn.Module):
    """Two kernels, each on half of the channels, as in MixNet."""

    def __init__(self, c):
        super().__init__()
        self.small, self.large, self.norm, self.pw = dw(c // 2), dw(c // 2, 5), nn.BatchNorm2d(c), pw(c, c)

    def forward(self, x):
        a, b = x.chunk(2, 1)
        return self.pw(F.relu(self.norm(torch.cat([self.small(a), self.large(b)], 1))))


def mbconv(c, act=nn.ReLU6, se=None, k=3, s=1, add=operator.add, drop=False):
    m = 3 * c
    layers = [
        nn.Sequential(pw(c, m), nn.BatchNorm2d(m), act(inplace=True)),
        nn.Sequential(dw(m, k, s), nn.BatchNorm2d(m), act(inplace=True)),
    ]
    layers += [se(m)] if se else []
    layers += [pw(m, c), nn.BatchNorm2d(c)] + ([DropPath()] if drop else [])
    return Chain(*layers, add=add if s == 1 else None)


def functional_activations(c):
    return Chain(dw(c), Apply(torch.relu), pw(c, c), Apply(lambda x: x.clamp(0, 6)), dw(c), Apply(lambda x: F.gelu(x, approximate="tanh")),
                 pw(c, c), Apply(lambda x: F.hardtanh(x, 0.0, 6.0)))  # fmt: skip


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


C = 12
BN = nn.BatchNorm2d

# name: (constructor, kinds of the chains in the order of the model)
ORDERS = {
    "xception": (lambda: Xception(C), ["separable"] * 3),
    "aspp": (lambda: nn.Sequential(dw(C, d=6), BN(C), nn.ReLU(), pw(C, 20), BN(20), nn.ReLU()), ["separable"]),
    "smp": (lambda: nn.Sequential(nn.Sequential(dw(C), pw(C, 20)), BN(20), nn.ReLU()), ["separable"]),
    "keras": (lambda: nn.Sequential(dw(C, s=2), pw(C, 20, bias=True), nn.SiLU(inplace=True)), ["separable"]),
    "timm": (
        lambda: Chain(dw(C), BatchNormAct2d(C, nn.ReLU(inplace=True)), pw(C, C), BatchNormAct2d(C, nn.Identity()), add=operator.add),
        ["separable"],
    ),
    "mmcv": (
        lambda: nn.Sequential(ConvModule(dw(C), BN(C), nn.ReLU(inplace=True)), ConvModule(pw(C, 20), BN(20), nn.ReLU(inplace=True))),
        ["separable"],
    ),
    "mobilenet": (lambda: nn.Sequential(mbconv(C), mbconv(C, s=2), mbconv(C, add=torch.add)), ["conv", "separable"] * 3),
    "mobilenet iadd": (lambda: mbconv(C, add=operator.iadd, drop=True), ["conv", "separable"]),
    "squeeze-and-excitation": (lambda: mbconv(C, nn.Hardswish, SqueezeExcite, 5), ["conv", "depthwise", "scaled"]),
    "torchvision's": (
        lambda: mbconv(C, nn.ReLU, lambda c: SqueezeExcite(c, F.hardsigmoid, adaptive=True), s=2),
        ["conv", "depthwise", "scaled"],
    ),
    "multiplier": (lambda: nn.Sequential(dw(C, m=2, bias=True), BN(2 * C), nn.GELU(), pw(2 * C, C)), ["separable"]),
    "functional": (lambda: functional_activations(C), ["separable"] * 2),
    "act after add": (lambda: Chain(dw(C), pw(C, C), BN(C), add=operator.add, after=nn.ReLU()), ["separable"]),
    "convnext": (lambda: ConvNeXt(C), ["depthwise"]),
    "attention": (lambda: LargeKernelAttention(C), ["depthwise", "separable"]),
    "mixed": (lambda: Mixed(C), ["depthwise", "depthwise"]),
}
