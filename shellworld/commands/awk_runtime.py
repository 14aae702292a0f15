"""What an awk program works with: records, fields, variables, files and pipes."""

from __future__ import annotations

import re
from typing import Any

from shellworld.commands import Context, FsError, Unsupported
from shellworld.commands.awk_lexer import unescape
from shellworld.commands.awk_values import UNSET, Array, Field, Value, number, text_of
from shellworld.commands.options import from_bytes, to_bytes
from shellworld.language.regexes import Regex, RegexError, compile_regex

_EMPTY = Field("")
_PLAIN = re.compile(r"[\t-\r -~]*\Z")  # where Python's idea of blanks is the same


class AwkFailure(Exception):
    """An error at run time; ends the program with status 2."""


def regex_of(text: str) -> Regex:
    """A compiled pattern; raises AwkFailure."""
    try:
        return compile_regex(text, "ere", "awk")
    except RegexError as error:
        raise AwkFailure(f"regular expression compile failed ({error})\n{text}") from error


class Reader:
    """Splits a text into records."""

    def __init__(self, text: str):
        self.text = text
        self.at = 0

    def read(self, separator: str) -> str | None:
        """The next record, or None at the end."""
        text, at = self.text, self.at
        if separator == "":
            empty_lines = re.compile(r"\n*").match(text, at)
            assert empty_lines is not None  # there may be none
            at = empty_lines.end()
        if at >= len(text):
            return None
        if separator == "\n" or (len(separator) == 1 and separator != " "):
            end = text.find(separator, at)
            stop, after = (len(text), len(text)) if end < 0 else (end, end + 1)
        elif separator == "":
            match = re.compile(r"\n\n+").search(text, at)
            stop, after = match.span() if match else (len(text.rstrip("\n")), len(text))
            stop = max(stop, at)
        else:
            match = regex_of(separator).find(text, at)
            stop, after = (
                match.span() if match and match.end() > match.start() else (len(text), len(text))
            )
        self.at = after
        return text[at:stop]


def split_text(text: str, separator: str | Regex, paragraph: bool = False) -> list[str]:
    """Fields of a text; " " splits at blanks, "" into characters."""
    if separator == " ":
        return text.split() if _PLAIN.match(text) else re.findall(r"[^ \t-\r]+", text)
    if not text:
        return []
    if separator == "":
        return list(text)
    if isinstance(separator, str):
        if len(separator) == 1 and separator not in "\\^$.[|()*+?" and not paragraph:
            return text.split(separator)
        pattern = re.escape(separator) if len(separator) == 1 else separator
        separator = regex_of(f"\n|({pattern})" if paragraph else pattern)
    parts, at, start = [], 0, 0
    while at <= len(text):
        match = separator.find(text, at)
        if match is None:
            break
        first, last = match.span()
        if first == last:
            at = last + 1
            continue
        parts.append(text[start:first])
        start = at = last
    parts.append(text[start:])
    return parts


class Runtime:
    """The state of a running program. Text is bytes as characters throughout."""

    def __init__(self, ctx: Context):
        self.ctx = ctx
        # Values and arrays by name; awk's own variables are values.
        self.variables: dict[str, Any] = {
            "CONVFMT": "%.6g",
            "FILENAME": UNSET,
            "FNR": 0.0,
            "FS": " ",
            "NR": 0.0,
            "OFMT": "%.6g",
            "OFS": " ",
            "ORS": "\n",
            "RLENGTH": -1.0,
            "RS": "\n",
            "RSTART": 0.0,
            "SUBSEP": "\x1c",
        }
        environment = Array()
        for name, value in ctx.env.items():
            environment.use(to_bytes(name), "%.6g")
            environment[to_bytes(name)] = Field(to_bytes(value))
        self.variables["ENVIRON"] = environment
        self.record = ""
        self.fields: list[Value] | None = []
        self.stale = False  # the record must be put together again
        self.arguments: list[str] = []
        self.reader: Reader | None = None
        self.used_file = False
        # Open by getline (Reader) or print (what was written).
        self.files: dict[str, Reader | list[str]] = {}
        self.modes: dict[str, str] = {}
        self.out: list[str] = []
        self.out_size = 0

    # -- records -----------------------------------------------------------------------

    def text(self, name: str) -> str:
        """Returns one of awk's own variables as text."""
        return text_of(self.variables[name], "%.6g")

    def set_record(self, text: str) -> None:
        """Begins a new record, whose fields are split when they are asked for."""
        self.record, self.fields, self.stale = text, None, False

    def get_fields(self) -> list[Value]:
        """Returns the fields of the record."""
        if self.fields is None:
            parts = split_text(
                self.record, self.text("FS"), self.text("RS") == "" and self.text("FS") != " "
            )
            self.fields = list(map(Field, parts))
        return self.fields

    def get(self, index: int) -> Value:
        """Returns a field; number 0 is the record, put together anew if a field has changed."""
        if index == 0:
            if self.stale:
                convfmt = self.text("CONVFMT")
                texts = [text_of(field, convfmt) for field in self.get_fields()]
                self.record = self.text("OFS").join(texts)
                self.stale = False
            return Field(self.record)
        if index < 0:
            raise AwkFailure(f"negative field index ${index}")
        fields = self.get_fields()
        return fields[index - 1] if index <= len(fields) else _EMPTY

    def set(self, index: int, value: Value) -> None:
        """Assigns field number `index`; 0 is the record."""
        if index == 0:
            self.set_record(text_of(value, self.text("CONVFMT")))
            return
        if index < 0:
            raise AwkFailure(f"negative field index ${index}")
        self.resize(max(index, len(self.get_fields())))
        self.get_fields()[index - 1] = value
        self.stale = True

    def resize(self, count: int) -> None:
        """Sets NF."""
        fields = self.get_fields()
        if count > 10_000 or count < 0:
            raise Unsupported("awk with so many fields")
        self.stale = True
        del fields[count:]
        fields += [_EMPTY] * (count - len(fields))

    def assign(self, name: str, value: Value) -> None:
        """Sets a variable; those with an effect have it."""
        if name == "NF":
            self.resize(int(number(value)))
            return
        if name in ("FS", "RS") and self.fields is None:
            self.get_fields()  # the record at hand is split by the old one
        self.variables[name] = value

    def next_record(self) -> str | None:
        """The next record of the main input, or None."""
        while True:
            if self.reader is None and not self.open_next():
                return None
            assert self.reader is not None
            record = self.reader.read(self.text("RS"))
            if record is not None:
                self.ctx.tick()
                for name in ("NR", "FNR"):
                    self.variables[name] = number(self.variables[name]) + 1.0
                return record
            self.reader = None

    def open_next(self) -> bool:
        """Opens the next file among the arguments, making assignments before it."""
        while self.arguments:
            argument = self.arguments.pop(0)
            match = re.fullmatch(r"([A-Za-z_]\w*)=(.*)", argument, re.DOTALL)
            if match:
                self.assign_argument(match[1], match[2])
                continue
            if argument == "":
                continue
            self.used_file = True
            self.variables["FILENAME"] = "" if argument == "-" else argument
            self.variables["FNR"] = 0.0
            self.reader = Reader(self.read_file(argument))
            return True
        if not self.used_file:
            self.used_file = True
            self.reader = Reader(to_bytes(self.ctx.stdin))
            return True
        return False

    def assign_argument(self, name: str, text: str) -> None:
        """Makes an assignment that stands among the arguments."""
        if isinstance(self.variables.get(name), Array):
            raise AwkFailure(f"cannot assign to array {name}")
        self.assign(name, Field(unescape(text)))

    def read_file(self, name: str) -> str:
        """Returns what a file or standard input holds, as bytes in characters."""
        if name in ("-", "/dev/stdin"):
            return to_bytes(self.ctx.stdin)
        try:
            return to_bytes(self.ctx.fs.read_text(self.ctx.path(from_bytes(name)), self.ctx.who))
        except FsError as error:
            raise AwkFailure(f"cannot open {name} ({error.message})") from error

    # -- other input and output --------------------------------------------------------

    def getline(self, mode: str, source: str) -> tuple[float, str | None]:
        """(1, record), (0, None) at the end, (-1, None) if it cannot be read."""
        if not mode:
            record = self.next_record()
            return (0.0, None) if record is None else (1.0, record)
        reader = self.files.get(source)
        if reader is None:
            if mode == "|":
                self.flush()
                _, text = self.ctx.capture(["sh", "-c", from_bytes(source)], self.ctx.stdin)
                reader = Reader(to_bytes(text))
            else:
                try:
                    reader = Reader(self.read_file(source))
                except AwkFailure:
                    return -1.0, None
            self.files[source] = reader
        if not isinstance(reader, Reader):
            raise Unsupported("awk that reads what it writes")
        record = reader.read(self.text("RS"))
        if record is None:
            return 0.0, None
        self.ctx.tick()
        return 1.0, record

    def write(self, text: str) -> None:
        """Writes to standard output, in parts that are not too small."""
        self.out.append(text)
        self.out_size += len(text)
        if self.out_size > 1 << 16:
            self.flush()

    def flush(self) -> None:
        """Hands what was printed so far to stdout."""
        text = from_bytes("".join(self.out))
        self.out, self.out_size = [], 0
        if text:
            self.ctx.write(text)

    def print_to(self, mode: str, name: str, text: str) -> None:
        """Writes to a file or a pipe, as `mode` (">", ">>" or "|") says.

        Files and pipes stay open until they are closed.
        """
        if name in ("/dev/stdout", "-") and mode != "|":
            self.write(text)
            return
        if name == "/dev/stderr" and mode != "|":
            self.ctx.error(from_bytes(text))
            return
        if name not in self.files:
            self.files[name] = []
            self.modes[name] = mode
            if mode != "|":
                self.write_file(name, "", mode == ">>")
        parts = self.files[name]
        if isinstance(parts, Reader):
            raise Unsupported("awk that writes what it reads")
        parts.append(text)

    def write_file(self, name: str, text: str, append: bool) -> None:
        """Writes a file of the world; AwkFailure if it cannot be written."""
        if name == "":
            raise AwkFailure('cannot open "" for output')
        try:
            self.ctx.fs.write_text(
                self.ctx.path(from_bytes(name)), from_bytes(text), self.ctx.who, append
            )
        except FsError as error:
            raise AwkFailure(f"cannot open {name} for output ({error.message})") from error

    def close(self, name: str) -> float:
        """Ends a file or pipe; its status, or -1 if it was not open."""
        entry = self.files.pop(name, None)
        if entry is None:
            return -1.0
        if isinstance(entry, Reader):
            return 0.0
        text = "".join(entry)
        if self.modes.pop(name) != "|":
            if text:
                self.write_file(name, text, True)
            return 0.0
        self.flush()
        return float(self.ctx.run(["sh", "-c", from_bytes(name)], from_bytes(text)))

    def close_all(self) -> None:
        """Writes all that is still kept, and runs the commands at the ends of pipes."""
        self.flush()
        for name in list(self.files):
            self.close(name)

    def system(self, line: str) -> float:
        """Runs a line of shell, after what was written before, and returns its status."""
        for name, mode in self.modes.items():
            parts = self.files[name]
            if mode != "|" and not isinstance(parts, Reader):
                self.write_file(name, "".join(parts), True)
                self.files[name] = []
        self.flush()
        return float(self.ctx.run(["sh", "-c", from_bytes(line)], None))
