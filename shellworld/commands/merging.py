"""Commands that merge sorted files: comm and join."""

from __future__ import annotations

import re

from shellworld.commands import Context, FsError, Unsupported
from shellworld.commands.options import (
    FOLD,
    Options,
    UsageError,
    from_bytes,
    lines_of,
    quoted,
    read,
    to_bytes,
    tool,
    unknown,
)


def _two_files(ctx: Context, operands: list[str], end: str) -> list[list[str]] | None:
    """The lines of both files, or None after a complaint."""
    if len(operands) < 2:
        raise UsageError(
            f"missing operand after {quoted(operands[0])}" if operands else "missing operand"
        )
    if len(operands) > 2:
        raise UsageError(f"extra operand {quoted(operands[2])}")
    if operands == ["-", "-"]:
        ctx.fail("both files cannot be standard input")
        return None
    files = []
    for name in operands:
        try:
            files.append(lines_of(to_bytes(read(ctx, name)), end))
        except FsError as error:
            ctx.fail(f"{name}: {error.message}")
            return None
    return files


class _Order:
    """Watches that the files are sorted, as comm and join do.

    Unless told otherwise, it complains only once a line without partner was seen.
    """

    def __init__(self, ctx: Context, check: str, names: list[str], line_numbers: bool):
        self.ctx, self.check, self.names, self.line_numbers = ctx, check, names, line_numbers
        self.unpaired = False
        self.warned = [False, False]
        self.stop = False

    def see(self, file: int, at: int, before: str, after: str, line: str) -> None:
        if (
            self.check == "no"
            or not (self.check == "yes" or self.unpaired)
            or self.warned[file]
            or before <= after
        ):
            return
        self.warned[file] = True
        if self.line_numbers:
            self.ctx.fail(f"{self.names[file]}:{at + 1}: is not sorted: {from_bytes(line)}")
        else:
            self.ctx.fail(f"file {file + 1} is not in sorted order")
        self.stop = self.stop or self.check == "yes"

    def status(self) -> int:
        if self.stop:
            return 1
        return self.ctx.fail("input is not in sorted order") if any(self.warned) else 0


_COMM_LONG = (
    "check-order=yes nocheck-order=no output-delimiter=output: total=total zero-terminated=z"
)


@tool("comm", short="123z", long=_COMM_LONG)
def comm(ctx: Context, options: Options, operands: list[str]) -> int:
    """comm: -1, -2, -3, -z, --check-order, --nocheck-order, --output-delimiter, --total."""
    flags = dict(options)
    tab = flags.get("output", "\t") or "\0"
    end = "\0" if "z" in flags else "\n"
    files = _two_files(ctx, operands, end)
    if files is None:
        return 1
    order = _Order(ctx, "yes" if "yes" in flags else "no" if "no" in flags else "", operands, False)
    places = [0, 0]
    lead = [
        "",
        "" if "1" in flags else tab,
        ("" if "1" in flags else tab) + ("" if "2" in flags else tab),
    ]
    totals = [0, 0, 0]
    out = []

    def advance(file: int) -> None:
        at = places[file] = places[file] + 1
        if at < len(files[file]):
            order.see(file, at, files[file][at - 1], files[file][at], files[file][at])

    while places[0] < len(files[0]) or places[1] < len(files[1]):
        ctx.tick()
        left = files[0][places[0]] if places[0] < len(files[0]) else None
        right = files[1][places[1]] if places[1] < len(files[1]) else None
        if left == right:
            column = 2
        else:
            column = 0 if right is None or (left is not None and left < right) else 1
        order.unpaired = order.unpaired or column < 2
        totals[column] += 1
        if str(column + 1) not in flags:
            out.append(f"{lead[column]}{right if left is None or column == 1 else left}{end}")
        for file in (0, 1):
            if column in (file, 2):
                advance(file)
                if order.stop:
                    ctx.write(from_bytes("".join(out)))
                    return 1
    if "total" in flags:
        out.append(tab.join(map(str, totals)) + f"{tab}total{end}")
    ctx.write(from_bytes("".join(out)))
    return order.status()


_COLUMN = re.compile(r"0|([12])\.([1-9]\d*)")
_JOIN_LONG = "ignore-case=i check-order=yes nocheck-order=no zero-terminated=z header=header"


@tool("join", short="a:e:i1:2:j:o:t:v:z", long=_JOIN_LONG)
def join(ctx: Context, options: Options, operands: list[str]) -> int:
    """join: -1, -2, -j, -a, -v, -e, -i, -o, -t, -z, --header, --check-order, --nocheck-order."""
    fields, separator, empty = [0, 0], None, ""
    output: list[tuple[int, int]] | None = None
    shown = {"pairs"}
    flags: set[str] = set()
    for key, value in options:
        match key:
            case "1" | "2" | "j":
                if not value.isdigit() or int(value) == 0:
                    return ctx.fail(f"invalid field number: {quoted(value)}")
                for file in (0, 1) if key == "j" else (int(key) - 1,):
                    fields[file] = int(value) - 1
            case "a" | "v":
                if value not in ("1", "2"):
                    return ctx.fail(f"invalid file number: {quoted(value)}")
                shown.add(value)
                if key == "v":
                    shown.discard("pairs")
            case "e":
                empty = value
            case "t":
                separator = to_bytes("\0" if value == "\\0" else value)
                if len(separator) > 1:
                    return ctx.fail(f"multi-character tab {quoted(value)}")
            case "o":
                if value == "auto":
                    raise Unsupported("join -o auto")
                columns = output or []
                items = re.split("[, \t]", value)
                # The old form: more of them, as words of their own before the files.
                while len(operands) > 2 and _COLUMN.fullmatch(operands[0]):
                    items.append(operands.pop(0))
                for item in items:
                    m = _COLUMN.fullmatch(item)
                    if m is None:
                        return ctx.fail(f"invalid field specifier: {quoted(value)}")
                    columns.append((int(m[1]) - 1, int(m[2]) - 1) if m[1] else (2, 0))
                output = columns
            case _:
                flags.add(key)
    if separator == "":
        raise unknown(ctx, "t")
    end = "\0" if "z" in flags else "\n"
    files = _two_files(ctx, operands, end)
    if files is None:
        return 1
    rows = []
    for lines in files:
        ctx.tick(len(lines))
        rows.append(
            [
                re.findall("[^ \t]+", line) if separator is None else line.split(separator)
                for line in lines
            ]
        )
    join_with = " " if separator is None else separator
    order = _Order(ctx, "yes" if "yes" in flags else "no" if "no" in flags else "", operands, True)

    def key_of(file: int, row: list[str]) -> str:
        key = row[fields[file]] if fields[file] < len(row) else ""
        return key.translate(FOLD) if "i" in flags else key

    def cell(row: list[str] | None, field: int) -> str:
        return (row[field] if row is not None and field < len(row) else "") or to_bytes(empty)

    def show(left: list[str] | None, right: list[str] | None) -> None:
        ctx.tick()
        pair = left, right
        key = cell(left, fields[0]) if left is not None else cell(right, fields[1])
        if output is not None:
            cells = [key if file == 2 else cell(pair[file], field) for file, field in output]
        else:
            cells = [key]
            for file, row in enumerate(pair):
                cells += (
                    []
                    if row is None
                    else [cell(row, i) for i in range(len(row)) if i != fields[file]]
                )
        out.append(join_with.join(cells) + end)

    out: list[str] = []
    at = [0, 0]
    if "header" in flags:
        heads = [r.pop(0) if r else None for r in rows]
        if heads != [None, None]:
            show(*heads)
        for lines in files:
            del lines[:1]

    def step(file: int) -> list[str]:
        row = rows[file][at[file]]
        at[file] += 1
        if at[file] < len(rows[file]):
            here = files[file][at[file]]
            number = at[file] + ("header" in flags)
            order.see(file, number, key_of(file, row), key_of(file, rows[file][at[file]]), here)
        return row

    while at[0] < len(rows[0]) or at[1] < len(rows[1]):
        keys = [key_of(f, rows[f][at[f]]) if at[f] < len(rows[f]) else None for f in (0, 1)]
        if keys[0] == keys[1]:
            groups: list[list[list[str]]] = [[], []]
            for file in (0, 1):
                while at[file] < len(rows[file]) and key_of(file, rows[file][at[file]]) == keys[0]:
                    groups[file].append(step(file))
            if "pairs" in shown:
                for left in groups[0]:
                    for right in groups[1]:
                        show(left, right)
        else:
            file = 0 if keys[1] is None or (keys[0] is not None and keys[0] < keys[1]) else 1
            order.unpaired = order.unpaired or None not in keys
            row = step(file)
            if str(file + 1) in shown:
                show(row if file == 0 else None, row if file == 1 else None)
        if order.stop:
            break
    ctx.write(from_bytes("".join(out)))
    return order.status()
