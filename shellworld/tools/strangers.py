r"""Lines that strangers wrote, each with a world to run it in, as `tools/agreement.py` takes them.

    python -m shellworld.tools.strangers --nl2bash=all.cm --tldr=pages --intercode=DIR \
        --take=1000 --skip=0 > lines.jsonl

Reads local copies of public collections; none of their lines is in this repository:

  * nl2bash (github.com/TellinaTool/nl2bash, data/bash/all.cm): what people asked and answered;
  * tldr (github.com/tldr-pages/tldr, pages/): examples of manuals, of the pages that are named
    after a builtin or a program of a Debian base system;
  * InterCode (github.com/princeton-nlp/intercode): what language models typed, with the file
    systems that they typed it in; needs the sandbox, where their set-up scripts run;
  * actions in trajectories of SWE-agent (*.traj).

All lines of a collection are put in the order of their hashes, and a share of each is taken, so
that nothing depends on what a line does. Names in a line that could be files become files.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from shellworld.commands import BUILTINS, PROGRAMS
from shellworld.errors import UserError
from shellworld.interpreter import programs
from shellworld.interpreter.known import KNOWN
from shellworld.sandbox.pool import Pool
from shellworld.world import tree as trees

_NL2BASH = flags.DEFINE_string("nl2bash", None, "A file of nl2bash: a line each (all.cm).")
_TLDR = flags.DEFINE_string("tldr", None, "The folder `pages` of tldr.")
_INTERCODE = flags.DEFINE_string("intercode", None, "A copy of InterCode's repository.")
_ACTIONS = flags.DEFINE_string("actions", None, "A folder with trajectories of SWE-agent.")
_TAKE = flags.DEFINE_integer("take", 1000, "How many lines.", lower_bound=1)
_SKIP = flags.DEFINE_integer(
    "skip", 0, "How many lines stand before them: earlier samples.", lower_bound=0
)
# Collection -> its share of a sample. SWE-agent's public trajectories are few.
_SHARES = {"nl2bash": 0.48, "tldr": 0.2, "intercode": 0.3, "actions": 0.02}

_HOME = "/home/agent/files"
_TEXT = "alpha 1\nfoo bar,2\nbeta:3 error\n\nalpha 1\nzeta\ttab 10\nFoo = baz\n"
_CONTENTS = {
    "csv": "id,name,size\n1,foo,20\n2,bar,10\n3,baz,30\n",
    "json": '{"name": "foo", "list": [1, 2, 3]}\n',
    "sh": '#!/bin/bash\necho "script $1"\n',
    "py": "import os\n\nprint('hello')\n",
    "log": "2023-11-01 ERROR one\n2023-11-02 INFO two\n2023-11-02 ERROR three\n",
    "html": "<html>\n<a href='x'>foo</a>\n</html>\n",
    "xml": "<a>\n  <b>1</b>\n</a>\n",
    "sed": "s/foo/bar/\n",
    "awk": "{ print $1 }\n",
}
# What every such world has: some of each type, empty ones, links, other owners, large and old ones.
_STANDARD: dict[str, dict[str, Any]] = {
    "": {},
    "file": {"content": _TEXT},
    "file1": {"content": "b\na\nc\na\n"},
    "file2": {"content": "a\nc\nd\n", "mode": "0600"},
    "file.txt": {"content": _TEXT},
    "empty": {"content": ""},
    "big.log": {"content": "line of a log\n" * 3000, "mtime": 1690000000},
    "old.txt": {"content": "old\n", "mtime": 1500000000},
    "name with spaces.txt": {"content": "spaces\n"},
    ".hidden": {"content": "hidden\n"},
    "script.sh": {"content": _CONTENTS["sh"], "mode": "0755"},
    "data.csv": {"content": _CONTENTS["csv"]},
    "dir/a.c": {"content": "int main() { return 0; }\n"},
    "dir/b.java": {"content": "class B { }\n"},
    "dir/sub/c.py": {"content": _CONTENTS["py"]},
    "dir/sub/photo.jpg": {"content": "JPG"},
    "dir/sub/deep/index.html": {"content": _CONTENTS["html"]},
    "dir/empty.d": {},
    "dir/root.txt": {"content": "of root\n", "owner": "root", "group": "root"},
    "link": {"target": "file.txt"},
    "broken": {"target": "nowhere"},
}
# A word that may be a file of the line's author: relative or below places of users' own.
_NAME = re.compile(
    r"(?<![\w$%{}\\*?=:@./~^(\[-])"
    r"((?:/(?:path|home|data|srv|opt|mnt|tmp|var|foo|dir\w*|some\w*)/)?"
    r"[A-Za-z_][\w+-]*(?:[./][\w+-]+)*/?)"
    r"(?![\w$%{}\\*?=:@./~^(\]-])"
)
_PLAIN = re.compile(
    r"(?:file|dir|directory|folder|foo|bar|baz|test|input|output|src|source|data)\d*"
)


def _entry(name: str) -> dict[str, Any]:
    """A file with text that goes with its name, or a directory."""
    last = name.rpartition("/")[2]
    extension = last.rpartition(".")[2]
    if "." in last:
        mode = "0755" if extension == "sh" else "0644"
        return {"content": _CONTENTS.get(extension, _TEXT), "mode": mode}
    return {} if re.match("dir|folder|src|source|data", last) else {"content": _TEXT}


def world(line: str) -> dict[str, Any]:
    """Returns a tree with the usual names and those that the line seems to mean."""
    found = {f"{_HOME}/{name}".rstrip("/"): entry for name, entry in _STANDARD.items()}
    for name in dict.fromkeys(_NAME.findall(line)):
        if not (re.search(r"[./]", name) or _PLAIN.fullmatch(name)):
            continue  # a word like any other
        path = (name if name.startswith("/") else f"{_HOME}/{name}").rstrip("/")
        above = {str(parent) for parent in Path(path).parents}
        below = any(Path(path) in Path(other).parents for other in found)
        if below or path in found or any("content" in found.get(other, {}) for other in above):
            continue
        if not any(trees.is_system(other) for other in (path, *above - {"/"})):
            found[path] = {} if name.endswith("/") else _entry(name)
    for path in list(found):
        # The directories in between are the user's own, too.
        for parent in Path(path).parents:
            if str(parent).startswith(f"{_HOME}/"):
                found.setdefault(str(parent), {})
    mine = {"owner": "agent", "group": "agent"}
    return {
        "cwd": _HOME,
        "users": {"agent": {"uid": 1000, "groups": ["staff"], "sudo": True}, "bob": {}},
        "groups": {"staff": 1050},
        "paths": {path: {**mine, **entry} for path, entry in found.items()},
    }


programs.load()  # so that all names are known


def _nl2bash(path: Path) -> Iterator[str]:
    yield from path.read_text("utf-8", errors="replace").splitlines()


def _choice(options: str, line: str) -> str:
    """One of the alternatives that stand between bars, whichever the line's hash picks."""
    several = options.split("|")
    return several[_rank(line + options) % len(several)]


def filled(example: str) -> str:
    """Returns an example of tldr as somebody may type it, its placeholders filled in."""

    def one(match: re.Match[str]) -> str:
        text = match[1]
        if option := re.fullmatch(r"\[(.*)\]", text):
            return _choice(option[1], example)
        if text.startswith("command"):
            return "cat file.txt"
        text = re.sub(r"(?<=\w)\[[^]]*\]", "", text).replace(" ...", "")
        bars = re.fullmatch(r"[^|'\"]+(?:\|[^|'\"]+)+", text)
        return _choice(text, example) if bars else text

    return re.sub(r"\{\{(.*?)\}\}", one, example)


def _tldr(folder: Path) -> Iterator[str]:
    for page in sorted(itertools.chain(folder.glob("common/*.md"), folder.glob("linux/*.md"))):
        if page.stem in KNOWN or page.stem in BUILTINS or page.stem in PROGRAMS:
            for row in page.read_text("utf-8").splitlines():
                if row.startswith("`") and row.endswith("`"):
                    yield filled(row[1:-1])


def _intercode(folder: Path) -> dict[str, dict[str, Any]]:
    """What models typed, each line with the file system that it was typed in."""
    found: dict[str, dict[str, Any]] = {}
    with Pool() as pool:
        for number in range(1, 5):
            script = folder / f"docker/bash_scripts/setup_nl2b_fs_{number}.sh"
            _, tree = pool.run({"user": "root", "cwd": "/"}, script.read_text("utf-8"))
            for home in ("/testbed", "/system", "/workspace"):
                tree["cwd"] = home if home in tree["paths"] else tree["cwd"]
            for path in sorted(folder.glob(f"data/results/bash/*/*_fs_{number}.json")):
                for episode in json.loads(path.read_text("utf-8")).values():
                    for line in episode.get("turn_history", {}).get("actions", []):
                        if isinstance(line, str):
                            found.setdefault(line.strip(), tree)
    return found


def _actions(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.traj")):
        for step in json.loads(path.read_text("utf-8")).get("trajectory", []):
            yield step["action"].strip()


def _rank(line: str) -> int:
    return int.from_bytes(hashlib.sha256(line.encode("utf-8", "replace")).digest()[:8], "big")


def _usable(line: str) -> bool:
    """Whether a tool for agents would pass the line on: some text, no control characters."""
    return bool(line) and len(line) <= 2000 and not re.search(r"[\0-\x08\x0b-\x1f\ufffd]", line)


# Collection -> its lines, each with the tree that it comes with, if any.
_READERS: dict[str, Callable[[Path], Mapping[str, dict[str, Any] | None]]] = {
    "nl2bash": lambda path: dict.fromkeys(_nl2bash(path)),
    "tldr": lambda path: dict.fromkeys(_tldr(path)),
    "intercode": _intercode,
    "actions": lambda path: dict.fromkeys(_actions(path)),
}


def rows(places: Mapping[str, str | None], skip: int, take: int) -> Iterator[dict[str, Any]]:
    """The rows of a sample: `line`, `tree` and the collection it is `from`.

    Args:
      places: where each collection lies; those without a place have no lines.
      skip: how many lines earlier samples took.
      take: how many lines this one has, of all collections together.
    """
    given = {name: place for name, place in places.items() if place}
    whole = sum(_SHARES[name] for name in given)
    for name, place in given.items():
        lines = _READERS[name](Path(place))
        share = _SHARES[name] / whole
        ordered = sorted(filter(_usable, lines), key=_rank)
        for line in ordered[round(skip * share) : round((skip + take) * share)]:
            yield {"from": name, "line": line, "tree": lines[line] or world(line)}


def main(argv: Sequence[str]) -> None:
    """Prints the sample, a JSON object a line."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    places = {
        "nl2bash": _NL2BASH.value,
        "tldr": _TLDR.value,
        "intercode": _INTERCODE.value,
        "actions": _ACTIONS.value,
    }
    try:
        for row in rows(places, _SKIP.value, _TAKE.value):
            print(json.dumps(row))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)
