"""Progress: for people a bar on a terminal, else a plain line every few seconds.

For the process itself it is a number that grows as long as work goes on.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from subtransfer.runtime import processes

EVERY = 5.0  # seconds between plain lines

_movements = 0


def moved() -> None:
    """Notes that work has gone on: a step, an episode, a stage; from any thread."""
    global _movements
    _movements += 1


def movements() -> int:
    """A number that is another whenever work has gone on meanwhile."""
    return _movements


def note(line: str) -> None:
    """Prints a line about what has just been done, on stderr."""
    moved()
    if processes.leads():
        print(f"  {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yields `advance(n)`, which shows how much is done, with the rate and the time left.

    It shows on stderr, of one process. The clock is used for display only.

    Args:
      label: what is being done.
      total: how much there is to do.
      unit: of what.
    """
    with _shown(label, total, unit) as show:

        def advance(n: int) -> None:
            moved()
            show(n)

        yield advance


@contextlib.contextmanager
def _shown(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """As `progress`, for people alone."""
    if not processes.leads():
        yield lambda n: None
        return
    if sys.stderr.isatty():
        # Imported here: most runs write to a file, and rich takes a while.
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
            def render(self, task: Any) -> Text:
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
            # Nothing may be done yet, as when a first step fails.
            left = f", {(total - done) / rate:.0f} s left" if done else ""
            line = f"  {label}: {done}/{total} {unit}, {rate:.1f}/s{left}"
            print(line, file=sys.stderr, flush=True)

    yield advance


@contextlib.contextmanager
def steady(label: str, status: Callable[[], tuple[int, int, str]]) -> Iterator[Callable[[], None]]:
    """Yields `tick()`, to be called often, which shows a status on stderr.

    On a terminal it is a bar, else a plain line whenever the status has changed, at most every few
    seconds.

    Args:
      label: what is being done.
      status: returns how many stages are done, how many there are, and the rest of the line.
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
    last = 0.0
    shown: tuple[int, int, str] | None = None

    def tick() -> None:
        nonlocal last, shown
        now = time.monotonic()
        if now - last < EVERY:
            return
        state = status()
        if state != shown:
            last, shown = now, state
            done, total, rest = state
            print(f"  {label}: {done}/{total} stages, {rest}", file=sys.stderr, flush=True)

    yield tick
