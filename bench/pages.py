"""Documents with a part between markers that is generated from a result."""

from pathlib import Path


def fill(page: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of that name; refuse where they are missing."""
    opening, closing = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, begin, rest = page.read_text().partition(opening)
    _, end, after = rest.partition(closing)
    if not (begin and end):
        raise SystemExit(f"{page} has no {opening} ... {closing} to fill")
    page.write_text(f"{before}{opening}\n\n{text}\n{closing}{after}")
