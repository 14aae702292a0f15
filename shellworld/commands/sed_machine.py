"""Runs parsed sed scripts. Texts are bytes as characters."""

from __future__ import annotations

import dataclasses
import re

from shellworld.commands import Context, FsError, Unsupported
from shellworld.commands.options import from_bytes, lines_of, read, to_bytes
from shellworld.commands.sed_parser import Address, Sed
from shellworld.language.regexes import Match, Regex


class Output:
    """A destination that adds the newline that a last line lacked only once more follows."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.missing = ""

    def line(self, text: str, end: str, whole: bool) -> None:
        """Writes a line; `whole`: with its end."""
        self.parts += (self.missing, text, end if whole else "")
        self.missing = "" if whole else end

    def raw(self, text: str) -> None:
        """Writes text as it is."""
        if text:
            self.parts += (self.missing, text)
            self.missing = ""


class Quit(Exception):
    """Ends sed with a status."""

    def __init__(self, status: int):
        self.status = status


class Panic(Quit):
    """Ends sed for a mistake; what it was to edit in place stays as it was."""


@dataclasses.dataclass
class File:
    """An input file, read when its turn comes. `whole`: the last line has its end."""

    name: str
    lines: list[str] | None = None
    whole: bool = True
    at: int = 0


class Machine:
    """Runs a parsed script over files."""

    def __init__(self, ctx: Context, commands: list[Sed], quiet: bool, end: str):
        self.ctx = ctx
        self.commands = commands
        self.quiet = quiet
        self.end = end
        self.out = Output()
        self.outputs: dict[str, Output] = {
            c.text: Output() for c in commands if c.text and c.name in "wWs"
        }
        self.readers: dict[str, list[str]] = {}
        self.pattern, self.whole = "", True
        self.hold, self.hold_whole = "", True
        self.number = 0
        self.last_regex: Regex | None = None
        self.files: list[File] = []
        self.queue: list[tuple[str, str]] = []
        self.status = 0

    # -- input -------------------------------------------------------------------------

    def load(self, file: File) -> list[str]:
        """Reads a file's lines; complains of one that cannot be read. A directory ends sed."""
        try:
            text = read(self.ctx, file.name)
        except FsError as error:
            if error.code == "EISDIR":
                self.ctx.error(f"sed: read error on {file.name}: {error.message}\n")
                raise Quit(4) from error
            self.ctx.error(f"sed: can't read {file.name}: {error.message}\n")
            self.status = 2
            return []
        file.whole = text.endswith(self.end) or not text
        return lines_of(to_bytes(text), self.end)

    def more(self) -> bool:
        """Whether another line follows."""
        while True:
            file = self.files[0]
            if file.lines is None:
                file.lines = self.load(file)
            if file.at < len(file.lines):
                return True
            if len(self.files) == 1:
                return False
            self.files.pop(0)

    def take(self) -> str:
        """Returns the next line of the input, without its end."""
        file = self.files[0]
        assert file.lines is not None  # `more` has read them
        line = file.lines[file.at]
        file.at += 1
        self.whole = file.whole or file.at < len(file.lines)
        self.number += 1
        return line

    def forget(self) -> None:
        """Starts anew for the next file, with -s and -i."""
        self.number, self.hold, self.hold_whole = 0, "", True
        for command in self.commands:
            command.active, command.until, command.begun = False, -1, False

    def run(self, files: list[File]) -> None:
        """Runs the cycles over these files as one stream; lets Quit through."""
        self.files = files
        again = False
        while again or self.more():
            self.ctx.tick()
            if not again:
                self.pattern = self.take()
            try:
                again = self.cycle()
            finally:
                self.flush()

    def flush(self) -> None:
        """What a, r and R kept for the end of the cycle."""
        for kind, text in self.queue:
            if kind == "a":
                self.out.raw(text)
            elif kind == "R":
                self.out.line(text, self.end, True)
            else:
                try:
                    self.out.raw(
                        to_bytes(read(self.ctx, "-" if text == "/dev/stdin" else from_bytes(text)))
                    )
                except FsError:
                    continue
        self.queue.clear()

    def output(self, name: str) -> Output:
        """Returns the destination of a name."""
        return self.out if name == "/dev/stdout" else self.outputs[name]

    # -- addresses ---------------------------------------------------------------------

    def matches(self, address: Address) -> bool:
        """Whether an address that stands alone matches the current line."""
        kind = address.kind
        if kind == "line":
            return self.number == address.first
        if kind == "re":
            return bool(self.regex(address.regex).test(self.pattern))
        if kind == "last":
            return not self.more()
        if kind == "step":
            return (
                self.number >= address.first and (self.number - address.first) % address.step == 0
            )
        return False

    def regex(self, regex: Regex | None) -> Regex:
        """The regex, or the last one used for an empty one."""
        if regex is None:
            if self.last_regex is None:
                self.ctx.error("sed: -e expression #1, char 0: no previous regular expression\n")
                raise Panic(1)
            return self.last_regex
        self.last_regex = regex
        return regex

    def selects(self, c: Sed) -> bool:
        """Whether a command's addresses select the current line, moving the state of its range."""
        if c.start is None:
            return True
        if c.end is None:
            return self.matches(c.start)
        if c.active:
            if c.until >= 0:  # the range ends at a line number
                if self.number >= c.until:
                    c.active = False
                return self.number <= c.until or (self.number > c.until and self.matches_again(c))
            if self.matches(c.end):
                c.active = False
            return True
        if c.start.kind == "zero":
            if c.until == -2 or self.number != 1:
                return False
            c.until = -2
            c.active = not self.matches(c.end)
            c.until = -2 if not c.active else -1
            return True
        return self.begins(c)

    def matches_again(self, c: Sed) -> bool:
        """Whether the line behind a range that has ended begins it anew."""
        assert c.start is not None  # only a range begins anew
        return c.start.kind != "line" and self.begins(c)

    def begins(self, c: Sed) -> bool:
        """Whether the current line begins a command's range; sets where it ends."""
        end, number = c.end, self.number
        assert c.start is not None and end is not None  # it is a range
        if c.start.kind == "line":  # a line skipped by a jump before is made up for by the next
            if c.begun or number < c.start.first:
                return False
            c.begun = True
            if end.kind == "line" and number > max(end.first, c.start.first):
                return False
        elif not self.matches(c.start):
            return False
        c.until = -1
        if end.kind == "line":
            c.until = end.first
        elif end.kind == "plus":
            c.until = number + end.first
        elif end.kind == "multiple":
            c.until = number + -number % end.first if end.first else number
        c.active = not (0 <= c.until <= number) and not (end.kind == "last" and not self.more())
        return True

    # -- commands ----------------------------------------------------------------------

    def end_cycle(self) -> None:
        """Prints the pattern space, unless -n is given."""
        if not self.quiet:
            self.out.line(self.pattern, self.end, self.whole)

    def cycle(self) -> bool:
        """One cycle; true if the next one starts without reading (D)."""
        commands, at, changed = self.commands, 0, False
        size = len(commands)
        while at < size:
            c = commands[at]
            at += 1
            if (c.start is not None or c.negated) and self.selects(c) == c.negated:
                if c.name == "{":
                    at = c.target
                continue
            match c.name:
                case "s":
                    changed = self.substitute(c) or changed
                case "p":
                    self.out.line(self.pattern, self.end, self.whole)
                case "d":
                    return False
                case "D":
                    head, newline, tail = self.pattern.partition("\n")
                    if newline:
                        self.pattern = tail
                        return True
                    return False
                case "n":
                    if not self.more():
                        break
                    self.end_cycle()
                    self.flush()
                    self.pattern = self.take()
                case "N":
                    if not self.more():
                        break
                    self.flush()
                    self.pattern += "\n" + self.take()
                    self.ctx.meter.word(len(self.pattern))
                case "P":
                    self.first_line(self.out)
                case "q":
                    raise self.stop(c.number)
                case "Q":
                    raise Quit(c.number)
                case "h":
                    self.hold, self.hold_whole = self.pattern, self.whole
                case "H":
                    self.hold += "\n" + self.pattern
                    self.hold_whole = self.whole
                    self.ctx.meter.word(len(self.hold))
                case "g":
                    self.pattern, self.whole = self.hold, self.hold_whole
                case "G":
                    self.pattern += "\n" + self.hold
                    self.whole = self.hold_whole
                    self.ctx.meter.word(len(self.pattern))
                case "x":
                    self.pattern, self.hold = self.hold, self.pattern
                    self.whole, self.hold_whole = self.hold_whole, self.whole
                case "a":
                    self.queue.append(("a", c.text))
                case "i":
                    self.out.raw(c.text)
                case "c":
                    if c.end is None or not c.active or c.negated:
                        self.out.raw(c.text)
                    return False
                case "=":
                    self.out.raw(f"{self.number}\n")
                case "l":
                    self.out.raw(self.listing(c.number))
                case "y":
                    assert c.table is not None  # y has one
                    self.pattern = self.pattern.translate(c.table)
                case "b" | "t" | "T":
                    if c.name == "b" or changed == (c.name == "t"):
                        at = c.target
                        self.ctx.tick()
                    if c.name != "b":
                        changed = False
                case "r":
                    self.queue.append(("r", c.text))
                case "R":
                    self.read_line(c.text)
                case "w":
                    self.output(c.text).line(self.pattern, self.end, self.whole)
                case "W":
                    self.first_line(self.output(c.text))
                case "z":
                    self.pattern = ""
                case "F":
                    self.out.raw(to_bytes(self.files[0].name) + "\n")
        self.end_cycle()
        return False

    def first_line(self, output: Output) -> None:
        """Writes the pattern space up to its first newline."""
        line, newline, _ = self.pattern.partition("\n")
        output.line(line, self.end, bool(newline) or self.whole)

    def stop(self, status: int) -> Quit:
        """Ends the cycle and returns what ends sed."""
        self.end_cycle()
        return Quit(status)

    def read_line(self, name: str) -> None:
        """Keeps the next line of a file for the end of the cycle (R)."""
        if name not in self.readers:
            try:
                self.readers[name] = lines_of(to_bytes(read(self.ctx, from_bytes(name))), self.end)
            except FsError:
                self.readers[name] = []
        if self.readers[name]:
            self.queue.append(("R", self.readers[name].pop(0)))

    def listing(self, width: int) -> str:
        """The pattern space as l shows it."""
        names = {
            "\a": "\\a",
            "\b": "\\b",
            "\f": "\\f",
            "\n": "\\n",
            "\r": "\\r",
            "\t": "\\t",
            "\v": "\\v",
            "\\": "\\\\",
        }
        width = 70 if width < 0 else width
        if width == 1:
            raise Unsupported("sed l 1")
        lines, line = [], ""
        for char in self.pattern:
            shown = names.get(char) or (char if " " <= char <= "~" else f"\\{ord(char):03o}")
            if width and len(line) + len(shown) > width - 1:
                lines.append(line + "\\\n")
                line = ""
            line += shown
        return "".join(lines) + line + "$\n"

    def substitute(self, c: Sed) -> bool:
        """Runs s on the pattern space; whether it replaced something."""
        regex = self.regex(c.regex)
        text = self.pattern
        match = regex.find(text, 0)
        if not match:
            return False
        numbers = [p for p in c.parts if isinstance(p, int)]
        if numbers and max(numbers) > regex.groups:
            raise Unsupported("sed s//\\1/ with another expression's groups")
        everything = "g" in c.flags
        out: list[str] = []
        at, copied, count, done = 0, 0, 0, False
        while match:
            start, end = match.span()
            if start == end and start == copied and count:  # empty, right behind the match before
                count -= 1
                hit = False
            else:
                hit = count + 1 >= (c.number or 1)
            count += 1
            if hit:
                out.append(text[copied:start])
                out.append(self.expand(c.parts, match))
                copied = end
                done = True
                if not everything:
                    break
            elif start < end:
                out.append(text[copied:end])
                copied = end
            at = end if end > start else end + 1
            if at > len(text):
                break
            self.ctx.tick()
            match = regex.find(text, at)
        if not done:
            return False
        out.append(text[copied:])
        self.pattern = "".join(out)
        self.ctx.meter.word(len(self.pattern))
        if "p" in c.flags:
            self.out.line(self.pattern, self.end, self.whole)
        if c.text:
            self.output(c.text).line(self.pattern, self.end, self.whole)
        return True

    @staticmethod
    def expand(parts: tuple, match: re.Match[str] | Match) -> str:
        """The replacement, with its changes of case."""
        if len(parts) == 1 and isinstance(parts[0], str) and parts[0][0] != "\0":
            return parts[0]
        out = ""
        mode, once = "E", ""
        for part in parts:
            if isinstance(part, str) and part[0] == "\0":
                if part[1] in "ul":
                    once = part[1]
                else:
                    mode, once = part[1], ""
                continue
            text = (match.group(part) or "") if isinstance(part, int) else part
            if (mode != "E" or once) and not text.isascii():
                raise Unsupported("sed \\U of bytes beyond ASCII")
            if mode != "E":
                text = text.upper() if mode == "U" else text.lower()
            if once and text:
                text = (text[0].upper() if once == "u" else text[0].lower()) + text[1:]
                once = ""
            out += text
        return out
