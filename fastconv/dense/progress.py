"""Progress of long evaluations: a callback, or one line on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

Progress = bool | Callable[[int, int], None] | None


def reporter(progress: Progress, what: str) -> Callable[[int, int], None]:
    """What to call with (done, total). True writes one line to stderr, at most ten times a second."""
    if not progress:
        return lambda done, total: None
    if callable(progress):
        return progress
    start = time.perf_counter()
    last = [0.0]

    def line(done: int, total: int) -> None:
        now = time.perf_counter()
        if done < total and now - last[0] < 0.1:
            return
        last[0] = now
        rest = (now - start) * (total - done) / max(done, 1)
        sys.stderr.write(f"\r{what}: {done} of {total}, {now - start:.0f} s, {rest:.0f} s to go ")
        sys.stderr.write("\n" if done == total else "")
        sys.stderr.flush()

    return line
