"""Tables of `python -m bench fuse`, and the part of docs/fuse.md between its markers."""

import os
from pathlib import Path

from . import pages
from .fuse import CHANNELS_LAST, COMPILED, EAGER, EVERYTHING, FROZEN, FUSED, FUSED_COMPILED, MEASURED
from .report import Table, geometric_mean, milliseconds, ratio, short_setting

NAMES = (EAGER, CHANNELS_LAST, COMPILED, FROZEN, FUSED, MEASURED, EVERYTHING, FUSED_COMPILED)
# What two medians of one network differ by in a run.
NOISE = 1.05
PAGE = Path(__file__).parent.parent / "docs" / "fuse.md"


def _times(network: dict, figure: str = "median") -> dict[str, float]:
    return {entry["name"]: entry[figure] for entry in network["contestants"]}


def _best(times: dict[str, float], *names: str) -> float | None:
    return min((times[name] for name in names if name in times), default=None)


def _over(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def news(network: dict) -> str:
    return f"{network['id']}: " + ", ".join(f"{name} {milliseconds(time)} ms" for name, time in _times(network).items())


def speeds(result: dict) -> Table:
    lines, gains = [], []
    for network in result["networks"]:
        times = _times(network)
        # The better of two forms of the same rival; `fused` is what fuse(model, example) gives.
        gains.append((_over(_best(times, EAGER, CHANNELS_LAST), times[FUSED]), _over(_best(times, COMPILED, FROZEN), times[FUSED])))
        lines.append((network["network"], str(network["size"]), *(milliseconds(times.get(name)) for name in NAMES), *map(ratio_or_dash, gains[-1])))
    means = [geometric_mean(column) for column in zip(*gains, strict=True)]
    lines.append(("geometric mean", *[""] * (len(NAMES) + 1), *map(ratio_or_dash, means)))
    columns = ("network", "size", *NAMES, "eager / fused", "compiled / fused")
    note = "Milliseconds for one image in float32, medians of turns. Eager / fused: the faster of the two memory formats; compiled / fused: of the two compilations."
    return Table("Time", note, columns, lines)


def decisions(result: dict) -> Table:
    """Whether a plan made the network slower, by prediction and by measurement."""
    lines = []
    for network in result["networks"]:
        times, least = _times(network), _times(network, "min")
        chains = {entry["name"]: entry["chains"] for entry in network["contestants"]}
        best = min(times[EVERYTHING], times[MEASURED], times[CHANNELS_LAST])
        slower = times[FUSED] > NOISE * times[CHANNELS_LAST] and least[FUSED] > NOISE * least[CHANNELS_LAST]
        lines.append(
            (
                network["network"],
                *(f"{chains[name]['replaced']} of {chains[name]['replaced'] + chains[name]['left']}" for name in (FUSED, MEASURED)),
                *(ratio(times[name] / times[CHANNELS_LAST]) for name in (FUSED, MEASURED, EVERYTHING)),
                ratio(times[FUSED] / best),
                "slower" if slower else "kept",
            )
        )
    columns = ("network", "chains by prediction", "by measurement", "fused / eager", "measured / eager", "everything / eager", "fused / best", "never slower")
    note = (
        "Times over eager channels_last; best: of everything fused, of what measuring chose, and of the network as it was. "
        f"Slower: beyond {NOISE:.2f} in the median and in the minimum."
    )
    return Table("Decisions", note, columns, lines)


def ratio_or_dash(value: float | None) -> str:
    return "-" if value is None else ratio(value)


def inject(result: dict, folder: Path, page: Path = PAGE) -> None:
    """Put the tables between the markers of the documentation's page."""
    place = os.path.relpath(folder, page.parent)
    text = "\n".join([short_setting(result) + "\n", speeds(result).markdown(), decisions(result).markdown(), f"Every figure: [fuse.json]({place}/fuse.json).\n"])
    pages.fill(page, "fuse", text)


def publish(result: dict, folder: Path, screen=None) -> None:
    """Print the tables and write fuse.md."""
    from .run import console, show

    screen = screen or console()
    tables = [speeds(result), decisions(result)]
    for table in tables:
        show(screen, table)
    texts = [f"# Fused networks: {result['machine']['name']}\n", short_setting(result) + "\n"]
    (folder / "fuse.md").write_text("\n".join([*texts, *(table.markdown(2) for table in tables)]))
    screen.print(f"fuse.json and fuse.md are in {folder}")
