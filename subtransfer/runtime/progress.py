"""Progress with rate and time left, for people: a bar on a terminal, else a plain line every few
seconds.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from subtransfer.runtime import processes

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

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeRemainingColumn(),
        )
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
            print(
                f"  {label}: {done}/{total} {unit}, {rate:.1f}/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    yield advance


@contextlib.contextmanager
def steady(label: str, status: Callable[[], tuple[int, int, str]]) -> Iterator[Callable[[], None]]:
    """Yields `tick()`, to be called often: shows what `status()` says (done, total, the rest) on
    stderr.

    On a terminal a bar, else a plain line whenever it has changed, at most every few seconds.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(label)

            def draw() -> None:
                done, total, rest = status()
                bars.update(
                    task, completed=done, total=total, description=f"{label}: {rest}; stages"
                )

            yield draw
        return
    last, shown = 0.0, None

    def tick() -> None:
        nonlocal last, shown
        now = time.monotonic()
        if now - last >= EVERY and (state := status()) != shown:
            last, shown = now, state
            print(
                f"  {label}: {state[0]}/{state[1]} stages, {state[2]}", file=sys.stderr, flush=True
            )

    yield tick
