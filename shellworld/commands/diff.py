"""diff and cmp."""

from __future__ import annotations

import re

from shellworld.commands import Context, FsError, Unsupported, command
from shellworld.commands.differing import changed_lines
from shellworld.commands.options import (
    FOLD,
    Options,
    UsageError,
    lines_of,
    parse_options,
    read,
    to_bytes,
    tool,
    unknown,
    usage,
)
from shellworld.commands.times import strftime
from shellworld.commands.walking import join
from shellworld.language.pattern import matches

_SHORT = "0123456789abBcC:dD:eEfF:hHiI:lL:nNpPqrsS:tTuU:wW:x:X:yZ"
_LONG = """normal=normal brief=q report-identical-files=s context=context:: unified=unified::
ed=e rcs=n side-by-side=y width=W: show-c-function=p show-function-line=F: label=L:
expand-tabs=t initial-tab=T recursive=r no-dereference=nodereference new-file=N exclude=x:
exclude-from=X: ignore-case=i ignore-tab-expansion=E ignore-trailing-space=Z
ignore-space-change=b ignore-all-space=w ignore-blank-lines=B ignore-matching-lines=I: text=a
strip-trailing-cr=cr minimal=d color=color:: suppress-common-lines=common left-column=left
paginate=l old-line-format=old: new-line-format=new: unchanged-line-format=same:
line-format=line: unidirectional-new-file=P to-file=to: from-file=from: horizon-lines=h:
speed-large-files=H"""


# A line in a format of one's own: its text with or without its end, its number, a sign.
_DIRECTIVE = re.compile(r"%(?:([lL%])|c'(.)'|(-?)(0?)(\d*)([doxX])n)")


def _formatted(form: str, line: str, end: str, number: int) -> str:
    """A line of a file as --old-line-format and its like have it."""

    def one(match: re.Match[str]) -> str:
        letter, sign, left, zero, width, base = match.groups()
        if letter:
            return {"l": line, "L": line + end, "%": "%"}[letter]
        if sign is not None:
            return sign
        text = format(number, base)
        if left:
            return text.ljust(int(width or 0))
        return text.rjust(int(width or 0), "0" if zero else " ")

    return _DIRECTIVE.sub(one, form)


class _Diff:
    """One run of diff."""

    def __init__(self, ctx: Context, options: Options, words: list[str]):
        self.ctx = ctx
        # As it is repeated above each file of a directory.
        self.command = " ".join(["diff", *words])
        self.flags = {key for key, _ in options}
        self.labels: list[str] = []
        self.excluded: list[str] = []
        self.around = -1  # lines of context; -1 for the normal format
        self.formats: dict[str, str] = {}  # of lines: "old", "new" and "same", if any is given
        for key, value in options:
            match key:
                case "u" | "unified" | "U":
                    if value and not value.isdigit():
                        raise UsageError(f"invalid context length '{value}'")
                    self.around = max(self.around, int(value) if value else 3)
                case "L":
                    self.labels.append(value)
                case "x":
                    self.excluded.append(value)
                case "old" | "new" | "same" | "line":
                    for side in ("old", "new", "same") if key == "line" else (key,):
                        self.formats[side] = value
                case "q" | "s" | "r" | "N" | "i" | "b" | "w" | "Z" | "normal" | "a" | "d":
                    pass
                case "color" if value in ("never", "auto", ""):
                    pass
                case _:
                    raise unknown(ctx, key)

    def key(self, line: str) -> str:
        """The line as it is compared."""
        flags = self.flags
        if "w" in flags:
            line = re.sub(r"[ \t-\r]", "", line)
        elif "b" in flags:
            line = re.sub(r"[ \t\n\v\f\r]+", " ", line).rstrip(" ")
        elif "Z" in flags:
            line = line.rstrip(" \t\n\v\f\r")
        return line.translate(FOLD) if "i" in flags else line

    def files(self, names: tuple[str, str], texts: tuple[str, str], heading: str = "") -> int:
        """Compares two texts and prints how they differ."""
        ctx, flags = self.ctx, self.flags
        if texts[0] == texts[1] and not self.formats:
            if "s" in flags:
                ctx.write(f"Files {names[0]} and {names[1]} are identical\n")
            return 0
        binary = "a" not in flags and any("\0" in text for text in texts)
        lines = [lines_of(text) for text in texts]
        whole = [text.endswith("\n") or not text for text in texts]
        keys = [list(map(self.key, side)) for side in lines]
        if not flags & {"w", "b", "Z"}:
            for side in (0, 1):
                if not whole[side]:
                    keys[side][-1] += "\0"  # a line without end is another line
        ctx.tick((len(lines[0]) + len(lines[1])) >> 3)
        if not binary and keys[0] == keys[1]:
            if self.formats:
                ctx.write(self.own(lines, whole, []))
            if "s" in flags:
                ctx.write(f"Files {names[0]} and {names[1]} are identical\n")
            return 0
        if "q" in flags:
            ctx.write(f"Files {names[0]} and {names[1]} differ\n")
            return 1
        if binary:
            ctx.write(f"Binary files {names[0]} and {names[1]} differ\n")
            return 2 if "\0" in texts[0] + texts[1] else 1
        first, behind = self.shared(lines, whole) if not self.formats else (0, 0)
        left, right = (side[first : len(side) - behind] for side in keys)
        hunks = []
        for a, b, c, d in _hunks(*changed_lines(left, right, ctx.tick, "d" in flags)):
            hunks.append((a + first, b + first, c + first, d + first))
        if self.formats and self.around >= 0:
            raise UsageError("conflicting output style options")
        if self.formats:
            shown = self.own(lines, whole, hunks)
        elif self.around < 0:
            shown = self.normal(lines, whole, hunks)
        else:
            shown = self.unified(names, lines, whole, hunks)
        ctx.write(heading + shown)
        return 1

    def shared(self, lines: list[list[str]], whole: list[bool]) -> tuple[int, int]:
        """Counts the same lines at the start and at the end, which are left out of the search.

        As many as the context shows are not left out.
        """
        left, right = lines
        shortest = min(len(left), len(right))
        last = [len(side) - 1 if not end else -1 for side, end in zip(lines, whole, strict=True)]
        first = 0
        while (
            first < shortest
            and left[first] == right[first]
            and (first == last[0]) == (first == last[1])
        ):
            first += 1
        behind = 0
        if whole[0] == whole[1]:
            while behind < shortest - first and left[-1 - behind] == right[-1 - behind]:
                behind += 1
        around = max(self.around, 0)
        return max(first - around, 0), max(behind - around, 0)

    @staticmethod
    def rows(mark: str, lines: list[str], first: int, last: int, whole: bool) -> str:
        text = "".join(f"{mark}{line}\n" for line in lines[first:last])
        return (
            text
            if whole or last < len(lines) or first == last
            else text + "\\ No newline at end of file\n"
        )

    def normal(
        self, lines: list[list[str]], whole: list[bool], hunks: list[tuple[int, int, int, int]]
    ) -> str:
        out = []
        for a, b, c, d in hunks:
            kind = "c" if a < b and c < d else "d" if a < b else "a"
            out.append(
                f"{_range(a, b)}{kind}{_range(c, d)}\n" + self.rows("< ", lines[0], a, b, whole[0])
            )
            out.append(("---\n" if kind == "c" else "") + self.rows("> ", lines[1], c, d, whole[1]))
        return "".join(out)

    def own(
        self, lines: list[list[str]], whole: list[bool], hunks: list[tuple[int, int, int, int]]
    ) -> str:
        """All lines of both files, each in the format of its kind."""
        out: list[str] = []

        def some(kind: str, side: int, first: int, last: int) -> None:
            for at in range(first, last):
                end = "\n" if whole[side] or at + 1 < len(lines[side]) else ""
                form = self.formats.get(kind, "%L")
                out.append(_formatted(form, lines[side][at], end, at + 1))

        place = 0
        for a, b, c, d in hunks:
            some("same", 0, place, a)
            some("old", 0, a, b)
            some("new", 1, c, d)
            place = b
        some("same", 0, place, len(lines[0]))
        return "".join(out)

    def unified(
        self, names: tuple[str, str], lines: list[list[str]], whole: list[bool], hunks: list
    ) -> str:
        out = []
        for side, mark in ((0, "---"), (1, "+++")):
            label = (
                self.labels[side]
                if side < len(self.labels)
                else f"{names[side]}\t{self.stamp(names[side])}"
            )
            out.append(f"{mark} {label}\n")
        at = 0
        while at < len(hunks):
            last = at
            while last + 1 < len(hunks) and hunks[last + 1][0] - hunks[last][1] <= 2 * self.around:
                last += 1
            a, c = max(hunks[at][0] - self.around, 0), max(hunks[at][2] - self.around, 0)
            first = min(hunks[at][0] - a, hunks[at][2] - c)
            a, c = hunks[at][0] - first, hunks[at][2] - first
            tail = min(self.around, len(lines[0]) - hunks[last][1], len(lines[1]) - hunks[last][3])
            b, d = hunks[last][1] + tail, hunks[last][3] + tail
            out.append(f"@@ -{_span(a, b)} +{_span(c, d)} @@\n")
            place = a
            for x0, x1, y0, y1 in hunks[at : last + 1]:
                out.append(self.rows(" ", lines[0], place, x0, True))
                out.append(
                    self.rows("-", lines[0], x0, x1, whole[0])
                    + self.rows("+", lines[1], y0, y1, whole[1])
                )
                place = x1
            out.append(self.rows(" ", lines[0], place, b, whole[0]))
            at = last + 1
        return "".join(out)

    def stamp(self, name: str) -> str:
        node = self.ctx.fs.find(self.ctx.path(name), self.ctx.who) if name != "-" else None
        when = node.mtime if node is not None else self.ctx.fs.clock if name == "-" else 0
        return strftime("%Y-%m-%d %H:%M:%S.000000000 +0000", when)

    def pair(self, left: str, right: str, heading: str = "") -> int:
        """Compares two paths."""
        ctx = self.ctx
        nodes, names = [], [left, right]
        for side, name in enumerate(names):
            other = names[1 - side]
            node = ctx.fs.find(ctx.path(name), ctx.who) if name != "-" else None
            if node is not None and node.kind == "directory" and other != "-":
                across = ctx.fs.find(ctx.path(other), ctx.who)
                if across is not None and across.kind != "directory":
                    names[side] = join(name, other.rstrip("/").rpartition("/")[2])
        for name in names:
            nodes.append(ctx.fs.find(ctx.path(name), ctx.who) if name != "-" else None)
        directories = [node is not None and node.kind == "directory" for node in nodes]
        if all(directories):
            return self.directories(names[0], names[1])
        texts, status = [], 0
        for side, name in enumerate(names):
            if (
                nodes[side] is None
                and "N" in self.flags
                and nodes[1 - side] is not None
                and name != "-"
            ):
                texts.append("")
                continue
            try:
                texts.append(read(ctx, name))
            except FsError as error:
                ctx.error(f"diff: {name}: {error.message}\n")
                status = 2
        return status or self.files((names[0], names[1]), (texts[0], texts[1]), heading)

    def directories(self, left: str, right: str) -> int:
        ctx, flags = self.ctx, self.flags
        try:
            sides = [set(ctx.fs.listdir(ctx.path(name), ctx.who)) for name in (left, right)]
        except FsError as error:
            ctx.error(f"diff: {left}: {error.message}\n")
            return 2
        status = 0
        for name in sorted(sides[0] | sides[1]):
            ctx.tick()
            if any(matches(name, pattern) for pattern in self.excluded):
                continue
            paths = join(left, name), join(right, name)
            missing = next((side for side in (0, 1) if name not in sides[side]), None)
            if missing is not None and "N" not in flags:
                ctx.write(f"Only in {(left, right)[1 - missing]}: {name}\n")
                status = max(status, 1)
                continue
            nodes = [ctx.fs.find(ctx.path(path), ctx.who) for path in paths]
            kinds = [node.kind if node is not None else "" for node in nodes]
            if "directory" in kinds and missing is not None:
                raise Unsupported("diff -N of directories")
            if kinds == ["directory", "directory"]:
                if "r" in flags:
                    status = max(status, self.directories(*paths))
                else:
                    ctx.write(f"Common subdirectories: {paths[0]} and {paths[1]}\n")
                continue
            if "directory" in kinds:
                described = [
                    _described(kind, node.content if node else "")
                    for kind, node in zip(kinds, nodes, strict=True)
                ]
                ctx.write(
                    f"File {paths[0]} is a {described[0]} while file {paths[1]} is a "
                    f"{described[1]}\n"
                )
                status = max(status, 1)
                continue
            status = max(status, self.pair(*paths, f"{self.command} {paths[0]} {paths[1]}\n"))
        return status


def _described(kind: str, content: str) -> str:
    return (
        "directory" if kind == "directory" else "regular file" if content else "regular empty file"
    )


def _hunks(left: list[bool], right: list[bool]) -> list[tuple[int, int, int, int]]:
    """Runs of changes: lines [a, b) of the left became [c, d) of the right."""
    hunks = []
    i = j = 0
    while i < len(left) or j < len(right):
        a, c = i, j
        while i < len(left) and left[i]:
            i += 1
        while j < len(right) and right[j]:
            j += 1
        if i > a or j > c:
            hunks.append((a, i, c, j))
        else:
            i, j = i + 1, j + 1
    return hunks


def _range(first: int, last: int) -> str:
    if last - first < 2:
        return str(last)
    return f"{first + 1},{last}"


def _span(first: int, last: int) -> str:
    count = last - first
    return f"{first + 1}" if count == 1 else f"{first + 1 if count else first},{count}"


@command("diff")
def diff(ctx: Context, argv: list[str]) -> int:
    """diff: the normal format, -u, -U, -q, -s, -r, -N, -i, -b, -w, -Z, -x, --label."""
    try:
        options, operands = parse_options(argv, _SHORT, _LONG)
        words = argv[1:]
        for operand in operands:
            words.remove(operand)
        run = _Diff(ctx, options, words)
    except UsageError as error:
        return usage(ctx, str(error), 2)
    if len(operands) < 2:
        return usage(ctx, f"missing operand after '{operands[0] if operands else 'diff'}'", 2)
    if len(operands) > 2:
        return usage(ctx, f"extra operand '{operands[2]}'", 2)
    return run.pair(*operands)


@tool(
    "cmp",
    short="bi:ln:sv",
    long="print-bytes=b ignore-initial=i: verbose=l bytes=n: silent=s quiet=s",
    status=2,
)
def cmp(ctx: Context, options: Options, operands: list[str]) -> int:
    """cmp: -s, -l, -n."""
    flags = dict(options)
    if set(flags) - {"s", "l", "n"} or not flags.get("n", "0").isdigit():
        raise unknown(ctx, (set(flags) - {"s", "l"}).pop())
    if not operands or len(operands) > 2:
        raise UsageError(
            f"extra operand '{operands[2]}'" if operands else "missing operand after 'cmp'"
        )
    names = (*operands, "-")[:2]
    texts = []
    for name in names:
        try:
            texts.append(to_bytes(read(ctx, name)))
        except FsError as error:
            return 2 if "s" in flags else ctx.fail(f"{name}: {error.message}", 2)
    if "n" in flags:
        texts = [text[: int(flags["n"])] for text in texts]
    left, right = texts
    ctx.tick(min(len(left), len(right)) >> 8)
    if left == right:
        return 0
    if "s" in flags:
        return 1
    shared = min(len(left), len(right))
    at = next((i for i in range(shared) if left[i] != right[i]), shared)
    if "l" in flags:
        width = len(str(max(len(left), len(right))))
        for i in range(at, shared):
            if left[i] != right[i]:
                ctx.write(f"{i + 1:{width}d} {ord(left[i]):3o} {ord(right[i]):3o}\n")
    if at == shared or ("l" in flags and len(left) != len(right)):
        short = names[0] if len(left) < len(right) else names[1]
        if not shared:
            ctx.error(f"cmp: EOF on {short} which is empty\n")
        else:
            line = left[:shared].count("\n")
            where = f"in line {line + 1}" if not left[:shared].endswith("\n") else f"line {line}"
            ctx.error(f"cmp: EOF on {short} after byte {shared}, {where}\n")
    elif "l" not in flags:
        ctx.write(
            f"{names[0]} {names[1]} differ: char {at + 1}, line {left[:at].count(chr(10)) + 1}\n"
        )
    return 1
