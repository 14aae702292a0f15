"""Measures how fast the shells are, and whether the simulator survives broken lines.

    python -m shellworld.tools.bench [--fuzz=100000] [--json=FILE]

Lines are the hand-made list of the tests. Speeds are per second of one processor's time, as the
process's own clock counts it; for the sandbox that is the time of all its processes together, with
the wall clock's beside it.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags

from shellworld.errors import UserError
from shellworld.interpreter.session import Image, Session
from shellworld.language import ast
from shellworld.language.syntax import parse
from shellworld.sandbox.pool import Pool, SandboxSession
from shellworld.tests.corpus import corpus
from shellworld.tests.fuzz import survive
from shellworld.tests.trees import TREES

_FUZZ = flags.DEFINE_integer(
    "fuzz",
    0,
    "Run that many broken lines in the simulator instead of measuring speed.",
    lower_bound=0,
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the broken lines.")
_JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")
_IMAGES = {name: Image(tree) for name, tree in TREES.items()}
_ROUNDS = 3  # over the whole list; the best one counts
_SESSION = 20  # lines that one session runs, where sessions last


def _cpu() -> float:
    return sum(
        sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def _best(lines: int, run: Callable[[], None]) -> float:
    """Lines per second of processor time."""
    run()  # the first round warms up
    seconds = []
    for _ in range(_ROUNDS):
        begin = time.process_time()
        run()
        seconds.append(time.process_time() - begin)
    return lines / min(seconds)


def simulator() -> dict[str, float]:
    """Lines that the simulator supports: in a fresh session each, and in sessions that last."""
    lines = [
        (world, line) for world, line in corpus() if Session(_IMAGES[world]).run(line).supported
    ]

    def unseen() -> None:
        # an experiment meets most lines again and again; this is how fast new ones are
        parse.cache_clear()
        fresh()

    def fresh() -> None:
        for world, line in lines:
            Session(_IMAGES[world]).run(line)

    def lasting() -> None:
        for at in range(0, len(lines), _SESSION):
            session = Session(_IMAGES[lines[at][0]])
            for _, line in lines[at : at + _SESSION]:
                session.run(line)

    written = sum(_commands(parse(line).body) for _, line in lines) / len(lines)
    figures: dict[str, float] = {
        "simulator, lines": len(lines),
        "simulator, commands a line": written,
    }
    for name, run in (
        ("new lines in fresh sessions", unseen),
        ("fresh sessions", fresh),
        (f"session of {_SESSION}", lasting),
    ):
        speed = _best(len(lines), run)
        figures |= {
            f"simulator, {name}, lines/s": speed,
            f"simulator, {name}, commands/s": speed * written,
        }
    return figures


def _commands(node: object) -> int:
    """How many simple commands are written in a syntax tree."""
    if isinstance(node, tuple | list):
        return sum(map(_commands, node))
    if not dataclasses.is_dataclass(node):
        return 0
    inside = sum(_commands(getattr(node, field.name)) for field in dataclasses.fields(node))
    return inside + isinstance(node, ast.Simple)


def sandbox() -> dict[str, float]:
    """Runs every tenth line in one warm sandbox.

    It measures lines in a fresh tree each, which is read afterwards, and lines of a session that
    lasts.
    """
    lines = corpus()[::10]
    figures = {}
    for name in ("fresh tree", "session"):
        before = _cpu()
        with Pool() as pool:
            pool.run(TREES["project"], ":")
            begin = time.monotonic()
            if name == "fresh tree":
                for world, line in lines:
                    pool.run(TREES[world], line)
            else:
                with pool.take() as warm:
                    session = SandboxSession(TREES["project"], sandbox=warm)
                    for _ in lines:
                        session.run("ls -l | head -3")
            wall = time.monotonic() - begin
        figures[f"sandbox, {name}, lines/s"] = len(lines) / (_cpu() - before)
        figures[f"sandbox, {name}, lines/s by the wall clock"] = len(lines) / wall
    return figures


def main(argv: Sequence[str]) -> None:
    """Prints the figures, and writes them to --json."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    figures: dict[str, object] = {
        "machine": platform.platform(),
        "python": platform.python_version(),
    }
    if _FUZZ.value:
        begin = time.process_time()
        survived = survive(_FUZZ.value, _SEED.value)
        figures |= {f"fuzz, {field}": value for field, value in survived._asdict().items()}
        figures["fuzz, line"] = survived.line[:200]
        figures["fuzz, processor seconds"] = time.process_time() - begin
        figures["fuzz, MiB at most"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    else:
        figures |= simulator()
        try:
            figures |= sandbox()
        except UserError as error:
            print(f"no figures of the sandbox: {error}", file=sys.stderr)
    for name, value in figures.items():
        print(f"{name}: {value:,.1f}" if isinstance(value, float) else f"{name}: {value}")
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
