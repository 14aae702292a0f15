"""Progress with rate and time left, for people: a bar on a terminal, else a plain line every few seconds."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from subtransfer import processes

EVERY = 5.0  # seconds between plain lines


def note(line: str) -> None:
    """A line about what has just been done, on stderr."""
    if processes.leads():
        print(f"  {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yields `advance(n)`. Shows on stderr, of one process; the clock is used for display only."""
    if not processes.leads():
        yield lambda n: None
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task) -> Text:
                return Text(f"{unit}, {task.speed:.1f}/s" if task.speed else unit)

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(label, total=total)
            yield lambda n: bars.advance(task, n)
        return
    begin = last = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= EVERY and done < total:
            last = now
            rate = done / (now - begin)
            left = (total - done) / rate
            print(f"  {label}: {done}/{total} {unit}, {rate:.1f}/s, {left:.0f} s left", file=sys.stderr, flush=True)

    yield advance
