"""What a call would launch and what that should cost, on a device that need not be there: how `explain` and the tuner see these kernels.

    steps = plan("depthwise_conv2d", (x, weight, None, (1, 1), (1,) * 4, (1, 1), "identity"), FAMILIES["sm_90"])     # x on the meta device

The predicted time of a launch is the largest of three: bytes over the copy rate, products over the tensor rate, and instructions over the
issue rate (these are counted in the compiled loop, so they are known only where it was compiled), over the share of processors' turns that
have a program, plus LAUNCH_SECONDS. Caches, latency and clocks are not in it: it ranks kernels and shows what binds them; it is no
measurement.
"""

from dataclasses import dataclass

import torch

from .access import Access, copies
from .ahead import Report, compile_launch
from .configs import SCRATCH_BYTES, operands_of
from .launch import INTERPRETED, Family, Launch, Recorder, ceil_div, record
from .rates import LAUNCH_SECONDS, RATES

# Turns of the longest innermost loop in one program.
_TURNS = {
    "depthwise_ring": lambda a: a["ROWS"] + a["KH"] - 1,
    "depthwise_tap": lambda a: a["ROWS"] * a["KH"],
    "depthwise_backward_ring": lambda a: a["STRIPS"] * (a["ROWS"] + a["KH"] - 1),
    "depthwise_input_gradient": lambda a: a["ROWS"] * a["KH"] * a["KW"] * a["M"],
    "depthwise_weight_gradient": lambda a: a["STRIPS"],
    "add_partials": lambda a: a["SLOT_BLOCKS"],
    "separable_fused": lambda a: ceil_div(a["C"], a["BK"]) * (1 if a["RING"] else a["KH"]),
    "pointwise_product": lambda a: ceil_div(a["C"], a["BK"]),
    "gradient_of_intermediate": lambda a: ceil_div(a["O"], a["BK"]),
    "pointwise_gradient": lambda a: a["STRIPS"] * (1 if a["RING"] or a["STORED"] else a["KH"]),
    "max_pool_ring": lambda a: a["ROWS"] + a["KH"] - 1,
    "avg_pool_ring": lambda a: a["ROWS"] + a["KH"] - 1,
    "pool_backward_ring": lambda a: a["ROWS"] + a["KH"] - 1,
    "max_pool_gather": lambda a: a["ROWS"] * a["KH"] * a["KW"],
    "avg_pool_gather": lambda a: a["ROWS"] * a["KH"] * a["KW"],
    "pool_backward_gather": lambda a: a["ROWS"] * a["KH"] * a["KW"],
    "permute": lambda a: a["ROWS"],
}

# (FLOP of multiply-adds in registers, FLOP of matrix products): depthwise values that several programs compute count each time.
_FLOPS = {
    "depthwise_ring": lambda a: (2 * a["KH"] * a["KW"] * a["out_ptr"].numel(), 0),
    "depthwise_tap": lambda a: (2 * a["KH"] * a["KW"] * a["out_ptr"].numel(), 0),
    "depthwise_backward_ring": lambda a: (2 * a["KH"] * a["KW"] * a["x_ptr"].numel() * (a["WANT_DX"] + a["WANT_DW"]), 0),
    "depthwise_input_gradient": lambda a: (2 * a["KH"] * a["KW"] * a["grad_ptr"].numel(), 0),
    "depthwise_weight_gradient": lambda a: (2 * a["KH"] * a["KW"] * a["grad_ptr"].numel(), 0),
    "separable_fused": lambda a: (
        2 * a["KH"] * a["KW"] * _positions(a["out_ptr"]) * a["C"] * a["channel_blocks"], 2 * a["C"] * a["out_ptr"].numel()
    ),
    "pointwise_product": lambda a: (0, 2 * a["C"] * a["out_ptr"].numel()),
    "gradient_of_intermediate": lambda a: (
        2 * a["KH"] * a["KW"] * a["dz1_ptr"].numel() * (a["DEPTHWISE_ACTIVATION"] != "identity"), 2 * a["O"] * a["dz1_ptr"].numel()
    ),
    "pointwise_gradient": lambda a: (
        0 if a["STORED"] else 2 * a["KH"] * a["KW"] * _positions(a["grad_ptr"]) * a["C"] * a["out_blocks"],
        2 * a["C"] * a["grad_ptr"].numel(),
    ),
}  # fmt: skip


def _positions(tensor: torch.Tensor) -> int:
    return tensor.numel() // tensor.shape[1]


@dataclass(frozen=True)
class Step:
    """One launch. Registers, spills, shared memory and instructions are None where it was not compiled."""

    kernel: str
    tile: dict
    warps: int
    programs: int
    bytes: int
    flops: int
    registers: int | None
    spills: int | None
    shared_memory: int | None
    instructions: float | None  # of the loop, an element
    resident: int  # programs that fit on a processor
    waves: float
    seconds: float
    bound: str


# Compile-time sizes of a tile, by the names they have in the kernels.
_TILE = ("ROWS", "BW", "BC", "BM", "BK", "BN", "BO", "BS", "STRIPS", "STAGES", "RING")


def _bytes(launches: list[Launch]) -> list[int]:
    """Of each launch, every tensor once, but what passes from one launch to the next through the second-level cache not at all."""
    tensors = [{id(value): value for value in launch.arguments.values() if isinstance(value, torch.Tensor)} for launch in launches]
    seen = [ident for step in tensors for ident in step]
    last = {id(launches[-1].arguments.get(name)) for name in ("out_ptr", "dx_ptr", "dw_ptr", "db_ptr")}
    scratch = set()
    for launch in launches[:-1]:
        for name in ("out_ptr", "partial_ptr", "bias_partial_ptr", "dz1_ptr"):
            value = launch.arguments.get(name)
            if value is not None and seen.count(id(value)) > 1 and id(value) not in last and value.nbytes <= SCRATCH_BYTES:
                scratch.add(id(value))
    return [sum(value.nbytes for ident, value in step.items() if ident not in scratch) for step in tensors]


def _resident(launch: Launch, family: Family, report: Report | None) -> int:
    """Programs on a processor: by warps, registers and shared memory."""
    if family.name != "cuda":
        return max(1, 32 // launch.options["num_warps"])
    limits = [64 // launch.options["num_warps"]]
    if report is not None:
        limits.append(65536 // (report.registers * 32 * launch.options["num_warps"]))
        limits.append((family.shared_memory + 1024) // (report.shared_memory + 1024))
    return max(1, min(limits))


def _step(launch: Launch, family: Family, moved: int, report: Report | None) -> Step:
    name, arguments = launch.kernel.__name__, launch.arguments
    rates, warps = RATES[family.key], launch.options["num_warps"]
    in_registers, products = _FLOPS.get(name, lambda a: (0, 0))(arguments)
    times = {"memory": moved / rates.copy}
    if products:
        tensor = next(value for value in arguments.values() if isinstance(value, torch.Tensor))
        operands = operands_of(tensor, arguments["PRECISION"])
        times["multiply-adds" if operands == "ieee" else "tensor cores"] = products / rates.products[operands]
    instructions = None
    if report is not None and family.name == "cuda":
        # What is outside of the loop runs once.
        issued = report.instructions() + (_TURNS[name](arguments) - 1) * len(report.hot_loop())
        times["issue"] = launch.grid * issued * 32 * warps / rates.issue
        instructions = report.instructions_an_element(launch)
    resident = _resident(launch, family, report)
    bound = max(times, key=times.get)
    balance = launch.grid / (family.processors * ceil_div(launch.grid, family.processors))
    return Step(
        kernel=name,
        tile={key: arguments[key] for key in _TILE if key in arguments},
        warps=warps,
        programs=launch.grid,
        bytes=moved,
        flops=in_registers + products,
        registers=report.registers if report else None,
        spills=report.spills if report else None,
        shared_memory=report.shared_memory if report else None,
        instructions=instructions,
        resident=resident,
        waves=launch.grid / (resident * family.processors),
        seconds=times[bound] / balance + LAUNCH_SECONDS,
        bound=bound,
    )


def through_copies(op: str, arguments: tuple, out: torch.Tensor, family: Family, compiled: bool = True) -> Access:
    """A call on contiguous maps if they were copied into channels_last, and the result back."""
    maps = [value for value in arguments if isinstance(value, torch.Tensor) and value.dim() == 4 and value.shape[0] == out.shape[0]]
    there = (value.contiguous(memory_format=torch.channels_last) if any(value is m for m in maps) else value for value in arguments)
    moved, seconds = copies(sum(value.nbytes for value in (*maps, out)), len(maps) + 1, family)
    steps = plan(op, tuple(there), family, compiled)
    return Access("copied", moved + sum(step.bytes for step in steps), seconds + sum(step.seconds for step in steps))


def ways(op: str, arguments: tuple, out: torch.Tensor, family: Family, compiled: bool = True) -> list[Access]:
    """Both ways to take contiguous maps, with the bytes they move and the time they are predicted to take."""
    steps = plan(op, arguments, family, compiled)
    strided = Access("strided", sum(step.bytes for step in steps), sum(step.seconds for step in steps))
    return [strided, through_copies(op, arguments, out, family, compiled)]


def taken(op: str, arguments: tuple, family: Family) -> str:
    """Which of the `ways` a call takes. access.py decides, from instructions counted beforehand: a call cannot wait for compilations."""
    return "copied" if _recorded(op, arguments, family).through_copies else "strided"


def _recorded(op: str, arguments: tuple, family: Family) -> Recorder:
    from . import LAUNCHERS

    with record(family) as recorder:
        LAUNCHERS[op](*arguments)
    return recorder


def launches_of(op: str, arguments: tuple, family: Family) -> list[Launch]:
    """What operator `op` would launch; tensors may be on the meta device."""
    return _recorded(op, arguments, family).launches


def plan(op: str, arguments: tuple, family: Family, compiled: bool = True) -> list[Step]:
    """The launches of one call in order; `compiled`: with what the compiled code says of itself."""
    launches = launches_of(op, arguments, family)
    reports = {}

    def report(launch: Launch) -> Report | None:
        if not compiled or INTERPRETED:
            return None
        # The runs of a batch are the same launch again and again.
        sizes = tuple(value for value in launch.arguments.values() if not isinstance(value, torch.Tensor))
        if (launch.kernel, sizes) not in reports:
            reports[launch.kernel, sizes] = compile_launch(launch, family)
        return reports[launch.kernel, sizes]

    return [
        _step(launch, family, moved, report(launch)) for launch, moved in zip(launches, _bytes(launches) if launches else [], strict=True)
    ]
