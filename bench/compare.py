"""Two result files side by side: what got faster and what got slower between two commits, or two machines."""

from .measure import best_time
from .report import SHORT, Table, geometric_mean, grouped, milliseconds, ratio

NOISE = 0.05


def _times(result: dict) -> dict[tuple[str, str, str], tuple[str, float]]:
    """(case id, name, layout) -> (section, seconds)."""
    return {
        (record["id"], entry["rival"], entry["layout"]): (record["case"]["section"], best_time(entry))
        for record in result["cases"]
        for entry in record["results"]
        if best_time(entry) is not None
    }


def _differences(first: dict, second: dict) -> list[str]:
    """What else differs between the two runs, apart from the commit."""
    one, two = first["machine"], second["machine"]
    lines = [f"{name}: {one[name]} against {two[name]}" for name in ("name", "isa", "threads") if one[name] != two[name]]
    versions = one["versions"], two["versions"]
    return lines + [f"{name}: {versions[0].get(name)} against {versions[1].get(name)}" for name in sorted(set(versions[0]) | set(versions[1])) if versions[0].get(name) != versions[1].get(name)]


def compared(first: dict, second: dict) -> tuple[Table, Table, list[str]]:
    """Geometric means by section and contestant; fastconv's rows that moved by more than the noise; other differences of the runs."""
    before, after = _times(first), _times(second)
    common = [key for key in before if key in after]
    means = []
    for (section, name), keys in grouped(common, lambda key: (before[key][0], key[1])).items():
        change = geometric_mean(after[key][1] / before[key][1] for key in keys)
        means.append((section, name, str(len(keys)), ratio(change)))
    moved = []
    for key in common:
        change = after[key][1] / before[key][1]
        if key[1].startswith("fastconv") and abs(change - 1) > NOISE:
            moved.append((change, (key[0], f"{key[1]} {SHORT[key[2]]}", milliseconds(before[key][1]), milliseconds(after[key][1]), ratio(change))))
    labels = [result["machine"]["commit"] for result in (first, second)]
    note = f"{labels[1]} over {labels[0]}: below 1 the second is faster. Rivals that moved say how much the machine did."
    summary = Table("Change by section", note, ("section", "who", "rows", "time ratio"), means)
    rows = Table("Rows that moved by more than 5 %", note, ("case", "who", "before ms", "after ms", "ratio"), [cells for _, cells in sorted(moved)])
    return summary, rows, _differences(first, second)
