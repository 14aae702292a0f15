"""Options as GNU getopt_long reads them, input files, and byte-wise views of text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from shellworld.commands import Context, FsError, Unsupported, command
from shellworld.commands.unsimulated import UNSIMULATED

Options = list[tuple[str, str]]
# As the C locale ignores case.
FOLD = str.maketrans("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
Tool = Callable[[Context, Options, list[str]], int]


class UsageError(Exception):
    """A wrong option: the line for stderr, without the command's name."""


@functools.lru_cache(256)
def _table(short: str, long: str) -> tuple[dict[str, int], dict[str, tuple[str, int]]]:
    """Short options and long ones, with 0 for no, 1 for a required, 2 for an optional argument."""
    shorts: dict[str, int] = {}
    for at, char in enumerate(short):
        if char != ":":
            shorts[char] = len(short[at + 1 : at + 3]) - len(short[at + 1 : at + 3].lstrip(":"))
    longs = {"help": ("help", 0), "version": ("version", 0)}
    for item in long.split():
        name, _, key = item.partition("=")
        bare = key.rstrip(":")
        longs[name] = bare or name, len(key) - len(bare)
    return shorts, longs


def _long(
    command: str, word: str, longs: dict[str, tuple[str, int]]
) -> tuple[str, str, int, str | None]:
    name, equals, value = word[2:].partition("=")
    if name in longs:
        full = name
    else:
        full, *more = [n for n in longs if n.startswith(name)] or [""]
        if not full:
            _refuse(
                command,
                [
                    option
                    for option in UNSIMULATED.get(command, ())
                    if len(option) > 1 and option.startswith(name)
                ],
            )
            raise UsageError(f"unrecognized option '--{name}'")
        if any(longs[n] != longs[full] for n in more):
            raise UsageError(
                f"option '--{name}' is ambiguous; possibilities: "
                + " ".join(f"'--{n}'" for n in (full, *more))
            )
    key, argument = longs[full]
    if equals and not argument:
        raise UsageError(f"option '--{full}' doesn't allow an argument")
    return full, key, argument, value if equals else None


def _refuse(command: str, real: list[str]) -> None:
    """Raises Unsupported for an option that is not simulated, if there is one."""
    if real:
        raise Unsupported(f"{command} {'-' if len(real[0]) == 1 else '--'}{min(real)}")


def parse_options(
    argv: list[str], short: str, long: str = "", permute: bool = True
) -> tuple[Options, list[str]]:
    """Splits arguments into options [(key, value)] and operands.

    Args:
      argv: with the command's name first.
      short: as for getopt: "n:" takes an argument, "i::" may take one in the same word.
      long: "lines=n: color=color:: quiet=q"; a long option's key is the short option's letter or a
        name of its own.
      permute: options may follow operands.

    Raises:
      UsageError: as the tool would complain.
      Unsupported: for an option that only the real tool has.
    """
    shorts, longs = _table(short, long)
    options: Options = []
    operands: list[str] = []
    at = 1
    while at < len(argv):
        word = argv[at]
        at += 1
        if word == "--":
            return options, operands + argv[at:]
        if len(word) < 2 or word[0] != "-":
            operands.append(word)
            if not permute:
                return options, operands + argv[at:]
        elif word[1] == "-":
            full, key, argument, value = _long(argv[0], word, longs)
            if argument == 1 and value is None:
                if at == len(argv):
                    raise UsageError(f"option '--{full}' requires an argument")
                value = argv[at]
                at += 1
            if key in ("help", "version"):
                raise Unsupported(f"{argv[0]} --{key}")
            options.append((key, value or ""))
        else:
            place = 1
            while place < len(word):
                letter = word[place]
                place += 1
                if letter not in shorts:
                    _refuse(argv[0], [letter] if letter in UNSIMULATED.get(argv[0], ()) else [])
                    raise UsageError(f"invalid option -- '{letter}'")
                value = ""
                if shorts[letter]:
                    value, place = word[place:], len(word)
                    if not value and shorts[letter] == 1:
                        if at == len(argv):
                            raise UsageError(f"option requires an argument -- '{letter}'")
                        value = argv[at]
                        at += 1
                options.append((letter, value))
    return options, operands


def usage(ctx: Context, message: str, status: int = 1) -> int:
    """Complains as coreutils do."""
    ctx.error(f"{ctx.name}: {message}\nTry '{ctx.name} --help' for more information.\n")
    return status


def unknown(ctx: Context, option: str) -> Unsupported:
    """A real option that is not simulated."""
    return Unsupported(f"{ctx.name} {'-' if len(option) == 1 else '--'}{option}")


def read(ctx: Context, name: str) -> str:
    """An input file's text; "-" is standard input. Raises FsError."""
    return ctx.stdin if name == "-" else ctx.fs.read_text(ctx.path(name), ctx.who)


_COMPLAINT = "{name}: {message}"


class Inputs:
    """The input files of a command, one after the other; complains of those that cannot be read.

    Attributes:
      failed: whether one could not be read.
    """

    def __init__(
        self, ctx: Context, names: list[str], missing: str = _COMPLAINT, directory: str = _COMPLAINT
    ):
        self._ctx = ctx
        self._names = names or ["-"]
        self._missing = missing
        self._directory = directory
        self.failed = False

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for name in self._names:
            try:
                text = read(self._ctx, name)
            except FsError as error:
                self.failed = True
                form = self._directory if error.code == "EISDIR" else self._missing
                self._ctx.fail(form.format(name=name, message=error.message, quoted=quote(name)))
            else:
                yield name, text

    def joined(self) -> str:
        """All texts as one."""
        return "".join(text for _, text in self)


def quote(name: str) -> str:
    """A name as coreutils quote it in messages."""
    if "'" in name and not set(name) & set('"$`\\\n\t'):
        return f'"{name}"'
    return "'" + name.replace("'", "'\\''") + "'"


def quoted(text: str) -> str:
    """An argument as coreutils quote it in messages."""
    return f"'{text}'"


def lines_of(text: str, separator: str = "\n") -> list[str]:
    """Lines without their ends; a last line without an end counts."""
    lines = text.split(separator)
    if not lines[-1]:
        lines.pop()
    return lines


def to_bytes(text: str) -> str:
    """The text's UTF-8 bytes as characters 0..255, for tools that count bytes."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("latin-1")


def from_bytes(text: str) -> str:
    """The inverse of `to_bytes`."""
    return text if text.isascii() else text.encode("latin-1").decode("utf-8", "surrogateescape")


_SIZES = {
    "": 1,
    "b": 512,
    "kB": 1000,
    "K": 1024,
    "KiB": 1024,
    "k": 1024,
    "MB": 10**6,
    "M": 2**20,
    "MiB": 2**20,
    "m": 2**20,
}
_SIZES |= {"GB": 10**9, "G": 2**30, "GiB": 2**30, "TB": 10**12, "T": 2**40, "TiB": 2**40}


def parse_size(text: str) -> int | None:
    """A number with an optional multiplier, as "10K"; None if it is none."""
    digits = text.rstrip("bkKmMGTiB")
    unit = text[len(digits) :]
    if not (digits.isascii() and digits.isdigit()) or unit not in _SIZES:
        return None
    return int(digits) * _SIZES[unit]


def tool(
    *names: str, short: str = "", long: str = "", status: int = 1, permute: bool = True
) -> Callable[[Tool], Tool]:
    """Registers `function(ctx, options, operands) -> status`.

    A wrong option ends it with `status` and the usual complaint.
    """

    def register(function: Tool) -> Tool:
        def run(ctx: Context, argv: list[str]) -> int:
            try:
                return function(ctx, *parse_options(argv, short, long, permute))
            except UsageError as error:
                return usage(ctx, str(error), status)

        command(*names)(run)
        return function

    return register
