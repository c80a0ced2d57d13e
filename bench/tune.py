"""`python -m bench tune`: measures candidate tiles on the GPU that is here, and writes what was best to fastconv/tuning/<device>.json.

    python -m bench --only 'separable-forward-bfloat16/aspp' tune       # what is written already stays, unless it is measured again

Each layer of the benchmark's grid is called through the Triton kernels; every tile that the call looks up is a stage to tune. A stage's
candidates come from `fastconv.triton.tables`; one whose launches equal an earlier one's is skipped, one that fails or gives another result
is refused. The tile in the code's own tables runs first and stays unless another is faster by more than MARGIN. Then the CUDA kernels run
the same layer, where they are built, with their planner's choice and with each of `fastconv.tuning.CUDA_TILES`, and the table keeps the
faster backend; its forward decides, since that is when a call chooses.

The loop knows nothing of clocks: `tune` takes a function that runs a call and returns its seconds.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path

import torch

from fastconv import _ops, backends, tuning

from . import cuda, machine
from .cases import Case, select
from .measure import check
from .problem import FORMATS, Problem
from .rivals import fastconv_backend

MARGIN = 0.02
OPERATORS = {
    "separable": "depthwise_separable_conv2d",
    "depthwise": "depthwise_conv2d",
    "max_pool": "shift_stitch_max_pool2d",
    "avg_pool": "shift_stitch_avg_pool2d",
}


@dataclass
class Layer:
    """One thing to tune. `run` calls it through the backend named and returns its results; `key` is its class where a call of it chooses a
    backend, None for a backward pass."""

    name: str
    run: Callable[[str], tuple[torch.Tensor, ...]]
    key: tuning.Key | None


class Tuner:
    """`seconds(call)` measures a call without arguments; `others` are the backends to compare with Triton."""

    def __init__(
        self, table: tuning.Table, seconds: Callable[[Callable], float], others: tuple[str, ...] = (), say: Callable[[str], None] = print
    ):
        self.table, self.seconds, self.others, self.say = table, seconds, others, say
        self.done: set[tuning.Key] = set()

    def tune(self, layers: Iterable[Layer]) -> tuning.Table:
        for layer in layers:
            with tuning.use(self.table):
                self._tiles(layer)
                if layer.key is not None:
                    if "cuda" in self.others:
                        self._cuda_tile(layer)
                    self._backend(layer)
        return self.table

    def _tiles(self, layer: Layer) -> None:
        for key in self._asked(layer):
            self._tile(layer, key)

    def _asked(self, layer: Layer) -> list[tuning.Key]:
        with tuning.asked() as keys:
            _signature(layer)
        return [key for key in keys if key not in self.done]

    def _tile(self, layer: Layer, key: tuning.Key) -> None:
        from fastconv.triton import tables

        self.done.add(key)
        before = self.table.entries.pop(key, tuning.Entry(None))
        rows = tables.candidates(key.op, key.layout == "channels_last")
        if None in rows:
            # Depthwise and product apart have tiles of their own, which come first: apart must be at its best when it is compared.
            self._set(key, before, tables.as_tile(None))
            self._tiles(layer)
            del self.table.entries[key]
        seen = [_signature(layer)]
        expected, usual = layer.run("triton"), self.seconds(lambda: layer.run("triton"))
        best, fastest = None, usual * (1 - MARGIN)
        for row in rows:
            tile = tables.as_tile(row)
            self._set(key, before, tile)
            try:
                signature = _signature(layer)
                if signature in seen:
                    continue
                seen.append(signature)
                if not _agree(layer.run("triton"), expected):
                    self.say(f"{layer.name}: {key.op} {tile}: another result")
                    continue
                seconds = self.seconds(lambda: layer.run("triton"))
            except Exception as error:  # a tile that does not compile, or asks for more than the device has, is no candidate
                self.say(f"{layer.name}: {key.op} {tile}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}")
                continue
            if seconds < fastest:
                best, fastest = tile, seconds
        del self.table.entries[key]
        if best is not None:
            self._set(key, before, best)
        elif before.backend is not None:
            self.table.entries[key] = replace(before, tiles={name: tile for name, tile in before.tiles.items() if name != "triton"})
        gain = f"{usual / fastest:.2f} times as fast with {best}" if best is not None else "the usual tile stays"
        self.say(f"{layer.name}: {key.op}: {len(seen)} tiles, {1e6 * usual:.1f} microseconds, {gain}")

    def _set(self, key: tuning.Key, before: tuning.Entry, tile: dict) -> None:
        self.table.entries[key] = replace(before, tiles=before.tiles | {"triton": tile})

    def _cuda_tile(self, layer: Layer) -> None:
        """The kernels of the CUDA library against the choice of its own planner."""
        before = self.table.entries.pop(layer.key, tuning.Entry(None))
        tiles = {name: tile for name, tile in before.tiles.items() if name != "cuda"}
        tuning.hand_to_planners([self.table])
        expected, usual = layer.run("cuda"), self.seconds(lambda: layer.run("cuda"))
        best, fastest = None, usual * (1 - MARGIN)
        for name in tuning.CUDA_TILES.get(layer.key.op, ()):
            self.table.entries[layer.key] = replace(before, tiles=tiles | {"cuda": {"tile": name}})
            tuning.hand_to_planners([self.table])
            if not _agree(layer.run("cuda"), expected):
                self.say(f"{layer.name}: cuda {name}: another result")
                continue
            seconds = self.seconds(lambda: layer.run("cuda"))
            if seconds < fastest:
                best, fastest = name, seconds
        self.table.entries[layer.key] = replace(before, tiles=tiles | ({} if best is None else {"cuda": {"tile": best}}))
        tuning.hand_to_planners([self.table])
        self.say(f"{layer.name}: cuda: {'the planner is right' if best is None else f'{usual / fastest:.2f} times as fast with {best}'}")

    def _backend(self, layer: Layer) -> None:
        expected = layer.run("triton")
        seconds = {"triton": self.seconds(lambda: layer.run("triton"))}
        for name in self.others:
            if _agree(layer.run(name), expected):
                seconds[name] = self.seconds(lambda name=name: layer.run(name))
            else:
                self.say(f"{layer.name}: {name} gives another result than triton: not compared")
        entry = self.table.entries.get(layer.key, tuning.Entry(None))
        fastest = min(seconds, key=seconds.get) if len(seconds) > 1 else None
        self.table.entries[layer.key] = replace(entry, backend=fastest, seconds=seconds)


def _signature(layer: Layer) -> list:
    """What a call would launch: two tiles with the same launches are the same tile."""
    from fastconv.triton.launch import family_of, record

    with record(family_of(torch.device("cuda"))) as recorder:
        layer.run("triton")
    return [
        (
            launch.kernel.__name__,
            launch.grid,
            launch.options,
            [value for value in launch.arguments.values() if not isinstance(value, torch.Tensor)],
        )
        for launch in recorder.launches
    ]


def _agree(results: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> bool:
    """Within two roundings of the dtype, of the norm: sums are taken in another order."""
    for got, want in zip(results, expected, strict=True):
        error = (got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-30)
        if not error <= 2 * torch.finfo(want.dtype).eps:
            return False
    return True


def key_of(case: Case, layout: str) -> tuning.Key:
    """The class of a case as `fastconv.functional` finds it."""
    geometry = ((case.kernel,) * 2, (case.stride,) * 2, (case.dilation,) * 2)
    shape = tuning.shape_class(case.in_shape, case.out_channels, *geometry)
    return tuning.key_of(OPERATORS[case.op], getattr(torch, case.dtype), layout == "channels_last", shape)


def _layers(cases: list[Case], names: tuple[str, ...], cache_bytes: int) -> Iterator[Layer]:
    """Every case in both formats, on inputs that take turns, so that they have left the cache; only those with the right answer."""
    for case in cases:
        problem = Problem(case, "cuda", cache_bytes)
        for layout in FORMATS:
            runners = {name: fastconv_backend(name)(problem, layout) for name in names}
            wrong = [name for name, runner in runners.items() if not all(found["right"] for found in check(problem, runner).values())]
            if wrong:
                print(f"{case.id} {layout}: WRONG result of {', '.join(wrong)}: not tuned")
                continue
            turns = cycle(range(problem.copies))
            # Bound now: the loop goes on while the layer is being tuned.
            run = partial(lambda runners, turns, name: runners[name].call(next(turns)), runners, turns)
            yield Layer(f"{case.id} {layout}", run, key_of(case, layout) if case.direction == "forward" else None)


def main(tier: str, only: str | None, path: Path | None) -> None:
    if not torch.cuda.is_available():
        raise SystemExit("tune: measures on a GPU, and torch sees none here")
    if (reason := backends.triton_refusal()) is not None:
        raise SystemExit(f"tune: {reason}")
    name = torch.cuda.get_device_name()
    path = path or tuning.HERE / tuning.file_name(name)
    table = tuning.Table.load(path) if path.exists() else tuning.Table(name)
    description = machine.describe("cuda")
    table.made = {name: description[name] for name in ("date", "commit", "driver", "versions")}
    others = ("cuda",) if _ops.cuda_refusal is None else ()
    tuner = Tuner(table, cuda.seconds_of, others)
    for layer in _layers(select("cuda", tier, only), ("triton", *others), 4 * description["caches"]["L2"]):
        tuner.tune([layer])
        # A run that is cut short keeps what it has measured.
        table.save(path)
