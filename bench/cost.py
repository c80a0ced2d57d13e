"""The least a case can cost: operations, bytes, and the floor they set on a machine whose ceilings are known.

Operations are counted exactly (taps that fall into the padding are not work), bytes are each tensor moved once between memory and the chip.
Nothing an implementation chooses to do (recomputing, packing, writing an intermediate) is in here.
"""

from dataclasses import dataclass

from .cases import Case

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Cost:
    """FLOPs of the depthwise part and of the pointwise product, and bytes; a multiply-add is two FLOPs."""

    depthwise_flops: int
    pointwise_flops: int
    bytes: int

    @property
    def flops(self) -> int:
        return self.depthwise_flops + self.pointwise_flops


def _taps(case: Case, size: int) -> int:
    """Window positions along one axis that fall inside the map, summed over the outputs."""
    total = 0
    for out in range(case.out_size(size)):
        start = out * case.conv_stride - case.pad
        total += sum(0 <= start + tap * case.dilation < size for tap in range(case.kernel))
    return total


def _volume(shape) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _convolution_bytes(case: Case, itemsize: int) -> int:
    """Forward: read the input (and residual), write the output. Backward: read the output's gradient and the input (and the output where its sign
    is the activation's mask), write the input's gradient (and the residual's, which is a tensor of its own)."""
    inputs, outputs = _volume(case.in_shape), _volume(case.out_shape)
    weights = case.channels * case.kernel**2 + (case.channels * case.out_channels if case.op == "separable" else 0)
    forward = inputs + outputs * (2 if case.residual else 1) + weights
    masked = case.op == "separable" and case.order in ("deeplab", "smp")
    backward = 2 * inputs + outputs * (1 + masked + case.residual) + 2 * weights
    return itemsize * {"forward": forward, "backward": backward, "forward_backward": forward + backward}[case.direction]


def _pool_bytes(case: Case, itemsize: int) -> int:
    """Backward of a max pool must learn the argmax: from a byte written and read again, or by reading the input once more."""
    inputs, outputs = _volume(case.in_shape), _volume(case.out_shape)
    forward = itemsize * (inputs + outputs)
    argmax = min(2 * outputs, itemsize * inputs) if case.op == "max_pool" else 0
    return forward if case.direction == "forward" else forward + argmax + itemsize * (inputs + outputs)


def cost(case: Case) -> Cost:
    """The least work of a case."""
    itemsize = ITEMSIZE[case.dtype]
    if case.is_pool:
        return Cost(0, 0, _pool_bytes(case, itemsize))
    passes = {"forward": 1, "backward": 2, "forward_backward": 3}[case.direction]
    depthwise = 2 * passes * case.batch * case.channels * _taps(case, case.height) * _taps(case, case.width)
    pointwise = 2 * passes * case.channels * _volume(case.out_shape) if case.op == "separable" else 0
    return Cost(depthwise, pointwise, _convolution_bytes(case, itemsize))


def copy_rate(copy_curve: list[dict], footprint: int) -> float:
    """Bytes a second of a copy whose source and destination take `footprint` bytes together, from a measured curve.

    The best of every probe at least as large as the largest probe that fits into the footprint: a larger footprint is never credited with more."""
    smaller = [point["footprint"] for point in copy_curve if point["footprint"] <= footprint]
    base = max(smaller, default=0)
    return max(point["rate"] for point in copy_curve if point["footprint"] >= base)


def floor(case: Case, ceilings: dict, footprint: int, device: str) -> dict:
    """Seconds below which the case can't go here. On a CPU one unit does all arithmetic; on a GPU tensor cores and FMA pipes overlap."""
    work = cost(case)
    memory = work.bytes / copy_rate(ceilings["copy"], footprint)
    depthwise = work.depthwise_flops / ceilings["peak"]["float32"]["rate"]
    pointwise = work.pointwise_flops / ceilings["peak"][case.dtype]["rate"]
    compute = max(depthwise, pointwise) if device == "cuda" else depthwise + pointwise
    return {"seconds": max(memory, compute), "memory": memory, "compute": compute, "bound": "memory" if memory >= compute else "compute"}
