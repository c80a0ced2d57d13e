"""Measured choices that override the tables in the code: which backend serves a class of layers, and with which tile.

A table holds one device. `python -m bench tune` measures the candidates on the GPU that is there and writes
`fastconv/tuning/<device>.json`; from then on that device's calls go by it. FASTCONV_TUNING names another folder to look in first, or "off".
Nothing here knows what a tile is made of:

    Key("depthwise_conv2d", "bfloat16", "channels_last", "k3x3 s1x1 d2x2 c128 o128 p32768")
        -> Entry("triton", tiles={"triton": {"columns": 16, "elements": 1024, "warps": 4}}, seconds={"triton": 1.1e-5, "cuda": 1.3e-5})

A key's `op` is an operator, or a stage of one that has a tile of its own. A layer whose class no entry names takes the tables in the code.
The CUDA kernels choose in C++: their tiles, `{"cuda": {"tile": NAME}}` with one of CUDA_TILES, are handed to their planner, where they
override its cost model.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

FORMAT = 1
# What may be measured of the CUDA kernels: which of them serves (csrc/common/plan_depthwise.h says what each takes; where one cannot serve a
# layer of the class, the planner chooses as ever); whether a separable layer is fused or goes through memory and the library's product, and by
# which tile it is fused (csrc/common/plan_separable.h).
FUSED_TILES = ("pair", "tall", "wide", "small", "slim", "plain", "persistent", "persistent_narrow")  # in the order of TileForm
CUDA_TILES = {
    "depthwise_conv2d": ("pixels", "bands", "vectors", "elements"),
    "depthwise_separable_conv2d": ("fused", "library", *FUSED_TILES),
}
HERE = Path(__file__).resolve().parent


class Key(NamedTuple):
    """What an entry is found by."""

    op: str
    dtype: str
    layout: str  # "contiguous" or "channels_last"
    shape: str  # see shape_class


@dataclass(frozen=True)
class Entry:
    """The measured choice: the fastest backend (None where only tiles were compared), the best tile of each, and the seconds of a call with
    it."""

    backend: str | None
    tiles: dict[str, dict] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Table:
    """The choices of one device; `made` says with what they were measured."""

    device: str
    entries: dict[Key, Entry] = field(default_factory=dict)
    made: dict = field(default_factory=dict)

    def save(self, path: Path) -> None:
        entries = [key._asdict() | asdict(entry) for key, entry in sorted(self.entries.items())]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"format": FORMAT, "device": self.device, "made": self.made, "entries": entries}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Table":
        """Raises ValueError, with the path, where the file is not such a table."""
        try:
            data = json.loads(path.read_text())
            if data["format"] != FORMAT:
                raise ValueError(f"its format is {data['format']!r}, this fastconv reads {FORMAT}")
            entries = {}
            for entry in data["entries"]:
                key = Key(*(entry.pop(name) for name in Key._fields))
                entries[key] = Entry(**entry)
            return cls(data["device"], entries, data["made"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a table of measured choices: {type(error).__name__}: {error}") from error


def _least_power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def shape_class(size, out_channels: int, kernel=(1, 1), stride=(1, 1), dilation=(1, 1)) -> str:
    """Layers that are tuned as one, by the (N, C, H, W) of the input: kernel and stride as they are; dilations, channels and pixels of the
    whole batch up to the next power of two."""
    (n, channels, height, width), (kh, kw), (sh, sw) = size, kernel, stride
    dh, dw, c, o, p = map(_least_power_of_two, (*dilation, channels, out_channels, n * height * width))
    return f"k{kh}x{kw} s{sh}x{sw} d{dh}x{dw} c{c} o{o} p{p}"


def key_of(op: str, dtype: torch.dtype, is_channels_last: bool, shape: str) -> Key:
    return Key(op, str(dtype).removeprefix("torch."), "channels_last" if is_channels_last else "contiguous", shape)


def file_name(device: str) -> str:
    """Of a device as torch names it."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json"


def cuda_rows(tables: Iterable[Table]) -> str:
    """The tiles of the CUDA kernels as their planner takes them: a line a choice, device, key and tile with tabs between."""
    return "\n".join(
        "\t".join((table.device, *key, entry.tiles["cuda"]["tile"]))
        for table in tables
        for key, entry in table.entries.items()
        if "cuda" in entry.tiles
    )


def _kept() -> list[Table]:
    """Every table that a call may go by; those of the folder that FASTCONV_TUNING names come last and win."""
    folder = os.environ.get("FASTCONV_TUNING")
    if folder == "off":
        return []
    folders = (HERE,) if folder is None else (HERE, Path(folder))
    return [Table.load(path) for each in folders for path in sorted(each.glob("*.json"))]


_handed = ""  # what the planners were told last; they start with nothing


def hand_to_planners(tables: Iterable[Table] | None = None) -> None:
    """Tells the planner of the CUDA kernels, and the one that explains it, what was measured; None for the tables that are kept."""
    from fastconv import _ops

    if _ops.compiled_refusal is not None:
        return
    from fastconv import _C

    global _handed
    rows = cuda_rows(_kept() if tables is None else tables)
    if rows == _handed:
        return
    _handed = rows
    _C.set_measured_tiles(rows)
    if _ops.cuda_refusal is None:
        torch.ops.fastconv.set_measured_tiles(rows)


_in_use: Table | None = None


@contextmanager
def use(table: Table | None) -> Iterator[Table | None]:
    """Inside the context `table` stands for every device's, in every thread; None leaves each its own."""
    global _in_use
    previous, _in_use = _in_use, table
    _hand_over()
    try:
        yield table
    finally:
        _in_use = previous
        _hand_over()


def _hand_over() -> None:
    if _in_use is None:
        return hand_to_planners()
    here = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    hand_to_planners(replace(_in_use, device=name) for name in {_in_use.device, *here})


_asked: list[Key] | None = None


@contextmanager
def asked() -> Iterator[list[Key]]:
    """Collects the classes whose tiles are looked up inside the context, in that order: what there is to tune in a call."""
    global _asked
    previous, _asked = _asked, []
    try:
        yield _asked
    finally:
        _asked = previous


@cache
def _of_device(name: str, folder: str | None) -> Table | None:
    for path in (Path(folder or HERE) / file_name(name), HERE / file_name(name)):
        if path.exists():
            return Table.load(path)
    return None


@cache
def _device_name(index: int | None) -> str | None:
    # Choices are explained for devices that are not there, too.
    return torch.cuda.get_device_name(index) if torch.cuda.is_available() else None


def table_of(device: torch.device) -> Table | None:
    """The table in force for a device, read when first asked for."""
    if _in_use is not None:
        return _in_use
    folder = os.environ.get("FASTCONV_TUNING")
    if device.type != "cuda" or folder == "off":
        return None
    name = _device_name(device.index)
    return None if name is None else _of_device(name, folder)


def tile(device: torch.device, backend: str, key: Key) -> dict | None:
    """The measured tile of a backend for a class of layers."""
    if _asked is not None and key not in _asked:
        _asked.append(key)
    table = table_of(device)
    entry = table.entries.get(key) if table else None
    return entry.tiles.get(backend) if entry else None
