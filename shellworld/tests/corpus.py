"""What agents type: a hand-made list of lines, each with the name of the world that it is typed in.

The list is tests/data/corpus.txt. There, `⟦a¦b⟧` stands for each of its alternatives in turn,
`␤` for a new line within a script, and `@tree NAME` begins the lines of a world.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

_FILE = Path(__file__).parent / "data" / "corpus.txt"


def expand(template: str) -> list[str]:
    """All lines that a template stands for."""
    parts = re.split(r"⟦(.*?)⟧", template)
    choices = [part.split("¦") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(words).replace("␤", "\n").strip(" ") for words in itertools.product(*choices)]


def corpus() -> list[tuple[str, str]]:
    """(world, line) pairs, without repetition, in the order of the list."""
    world, lines = "", {}
    for row in _FILE.read_text("utf-8").splitlines():
        if row.startswith("@tree "):
            world = row.removeprefix("@tree ")
        elif row:
            lines.update(((world, line), None) for line in expand(row))
    return list(lines)
