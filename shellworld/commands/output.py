"""echo and printf."""

from __future__ import annotations

import re

from shellworld.commands import Context, Unsupported, builtin, command
from shellworld.interpreter.variables import ShellError
from shellworld.language.quoting import quote_word

_ESCAPE = re.compile(
    r"\\(?:0([0-7]{0,3})|([1-7][0-7]{0,2})|x([0-9a-fA-F]{1,2})"
    r"|u([0-9a-fA-F]{1,4})|U([0-9a-fA-F]{1,8})|(.))",
    re.S,
)
_SIMPLE = {
    "a": "\a",
    "b": "\b",
    "e": "\x1b",
    "E": "\x1b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
}
_OCTAL = re.compile(r"\\([1-7][0-7]{0,2})")  # %b reads octal numbers without a zero too
_FORMAT = re.compile(
    r"%([-+ #0']*)(\*|\d+)?(?:\.(\*|-?\d+)?)?(?:hh|h|ll|l|L|j|z|t)*(?:\(([^)]*)\))?(.)", re.S
)


class _Stop(Exception):
    r"""The escape \c: no more output."""


def unescape(text: str, octal_needs_zero: bool) -> tuple[str, bool]:
    r"""Replaces backslash escapes in a text; also returns whether \c ended it.

    Args:
      octal_needs_zero: \0nnn as in echo -e and %b; otherwise \nnn as in printf's format.
    """
    if "\\" not in text:
        return text, False
    out = bytearray()
    at = 0
    for m in _ESCAPE.finditer(text):
        out += text[at : m.start()].encode("utf-8", "surrogateescape")
        at = m.end()
        if m[1] is not None:
            digits = m[1]
            if not octal_needs_zero and len(digits) == 3:
                digits, at = digits[:2], at - 1
            out.append(int("0" + digits, 8) & 255)
        elif m[2]:
            out += bytes([int(m[2], 8) & 255]) if not octal_needs_zero else m[0].encode()
        elif m[3]:
            out.append(int(m[3], 16))
        elif m[4] or m[5]:
            code = int(m[4] or m[5], 16)  # beyond ASCII, the C locale has no such characters
            if code < 128:
                out.append(code)
            else:
                out += (f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}").encode()
        elif m[6] == "c":
            return bytes(out).decode("utf-8", "surrogateescape"), True
        elif m[6] in _SIMPLE:
            out += _SIMPLE[m[6]].encode()
        elif m[6] in "\"'?" and not octal_needs_zero:
            out += m[6].encode()
        else:
            out += m[0].encode("utf-8", "surrogateescape")
    out += text[at:].encode("utf-8", "surrogateescape")
    return bytes(out).decode("utf-8", "surrogateescape"), False


def _echo(ctx: Context, args: list[str], always: bool) -> int:
    newline, escapes = True, always
    at = 0
    while (
        at < len(args)
        and len(args[at]) > 1
        and args[at][0] == "-"
        and not args[at][1:].strip("n" if always else "neE")
    ):
        for letter in args[at][1:]:
            # The last of -e and -E counts.
            newline = newline and letter != "n"
            escapes = letter == "e" if letter in "eE" else escapes
        at += 1
    text = " ".join(args[at:] if at else args)
    if escapes:
        text, stopped = unescape(text, True)
        newline = newline and not stopped
    ctx.write(text + "\n" if newline else text)
    return 0


@builtin("echo")
def echo(ctx: Context, argv: list[str]) -> int:
    """Writes its arguments: -e, -E, -n."""
    return _echo(ctx, argv[1:], ctx.shell.posix)


@command("echo")
def echo_program(ctx: Context, argv: list[str]) -> int:
    """Writes its arguments, as /bin/echo does."""
    return _echo(ctx, argv[1:], False)


class _Formatter:
    """One run of printf."""

    def __init__(self, ctx: Context, args: list[str]):
        self.ctx = ctx
        self.args = args
        self.at = 0
        self.status = 0

    def next(self) -> str | None:
        if self.at < len(self.args):
            self.at += 1
            return self.args[self.at - 1]
        return None

    def number(self, text: str | None) -> int:
        if not text:
            return 0
        # A quote in front asks for the number of the character behind it.
        if text[0] in "'\"":
            return ord(text[1]) if len(text) > 1 else 0
        m = re.match(r"\s*([+-]?)(0[xX][0-9a-fA-F]+|\d+)", text)
        if not m:
            self.status = self.ctx.fail(f"{text}: invalid number")
            return 0
        digits = m[2]
        if m.end() < len(text):
            self.status = self.ctx.fail(f"{text}: invalid number")
        try:
            # A leading zero makes it octal, as in C.
            if digits[0] == "0" and len(digits) > 1 and digits[1] not in "xX":
                octal = re.match(r"[0-7]*", digits)
                if octal and octal.end() < len(digits):
                    self.status = self.ctx.fail(f"{text}: invalid octal number")
                value = int((octal[0] if octal else "") or "0", 8)
            else:
                value = int(digits, 16) if digits[1:2] in ("x", "X") else int(digits[:400])
        except ValueError:
            return 0
        value = -value if m[1] == "-" else value
        if not -(1 << 63) <= value < 1 << 63:
            self.status = self.ctx.fail(f"warning: {text}: Numerical result out of range")
            # Bash goes on with the nearest number that it has.
            value = max(min(value, (1 << 63) - 1), -(1 << 63))
        return value

    def real(self, text: str | None) -> float:
        if not text:
            return 0.0
        if text[0] in "'\"":
            return float(ord(text[1])) if len(text) > 1 else 0.0
        m = re.match(r"\s*[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?)", text)
        if not m:
            if re.fullmatch(r"\s*[+-]?(inf|infinity|nan)", text, re.I):
                return float(text)
            if text.lower().lstrip().startswith(("0x", "-0x")):
                return float(self.number(text))
            self.status = self.ctx.fail(f"{text}: invalid number")
            return 0.0
        if m.end() < len(text):
            if text[m.end()] in "xX":
                return float(self.number(text))
            self.status = self.ctx.fail(f"{text}: invalid number")
        return float(m[0])

    def run(self, template: str) -> str:
        out: list[str] = []
        at = 0
        while at < len(template):
            percent = template.find("%", at)
            text = template[at : percent if percent >= 0 else len(template)]
            text, stopped = unescape(text, False)
            out.append(text)
            if stopped:
                raise _Stop("".join(out))
            if percent < 0:
                break
            if template.startswith("%%", percent):
                out.append("%")
                at = percent + 2
                continue
            m = _FORMAT.match(template, percent)
            if not m:
                self.status = self.ctx.fail(
                    f"`{template[percent : percent + 1]}': missing format character"
                )
                break
            at = m.end()
            try:
                out.append(self.one(m))
            except _Stop as stop:
                raise _Stop("".join(out) + str(stop)) from None
            except ValueError:
                self.status = self.ctx.fail(f"`{m[5]}': invalid format character")
                raise _Stop("".join(out)) from None
        return "".join(out)

    def one(self, m: re.Match) -> str:
        flags, kind = m[1], m[5]
        width = self.size(m[2])
        precision = (
            self.size(m[3]) if m[3] is not None else 0 if "." in m[0].partition("(")[0] else None
        )
        if precision is not None and precision < 0:
            precision = None
        if width is not None and width < 0:
            flags, width = flags + "-", -width
        if max(width or 0, precision or 0) > 100_000:
            raise Unsupported("printf field of this width")
        if "'" in flags:
            flags = flags.replace("'", "")
        if kind == "(" or m[4] is not None:
            if kind != "T":
                raise ValueError
            raise Unsupported("printf %(...)T")
        if kind in "sbqcQ":
            argument = self.next() or ""
            stopped = False
            if kind == "b":
                argument, stopped = unescape(_OCTAL.sub(r"\\\\0\1", argument), True)
            elif kind in "qQ":
                argument = quote_word(argument)
            elif kind == "c":
                argument = argument[:1]
            if precision is not None and kind != "c":
                argument = argument[:precision]
            text = argument.ljust(width or 0) if "-" in flags else argument.rjust(width or 0)
            if stopped:
                raise _Stop(text)
            return text
        spec = (
            "%"
            + "".join(dict.fromkeys(flags))
            + (str(width) if width else "")
            + (f".{precision}" if precision is not None else "")
        )
        if kind in "di":
            return (spec + "d") % self.number(self.next())
        if kind in "ouxX":
            value = self.number(self.next()) % (1 << 64)
            if "#" in flags and kind == "o":
                raise Unsupported("printf %#o")
            spec = spec.replace("+", "").replace(" ", "")
            if "#" in flags and value == 0:
                spec = spec.replace("#", "")
            return (spec + ("d" if kind == "u" else kind)) % value
        if kind in "eEfFgG":
            return (spec + kind) % self.real(self.next())
        if kind in "aAn":
            raise Unsupported(f"printf %{kind}")
        raise ValueError

    def size(self, text: str | None) -> int | None:
        if text is None:
            return None
        return self.number(self.next()) if text == "*" else int(text[:9])


def _format(ctx: Context, template: str, args: list[str]) -> tuple[str, int]:
    formatter = _Formatter(ctx, args)
    out: list[str] = []
    try:
        while True:
            before = formatter.at
            text = formatter.run(template)
            out.append(text)
            ctx.tick(1 + (len(text) >> 6))
            if formatter.at >= len(args) or formatter.at == before:
                break
    except _Stop as stop:
        out.append(str(stop))
    return "".join(out), formatter.status


@command("printf")
def printf_program(ctx: Context, argv: list[str]) -> int:
    """Writes its arguments as a format says, as /usr/bin/printf does."""
    args = argv[2:] if argv[1:2] == ["--"] else argv[1:]
    if not args:
        ctx.error("printf: missing operand\nTry 'printf --help' for more information.\n")
        return 1
    text, status = _format(ctx, args[0], args[1:])
    ctx.write(text)
    return status


@builtin("printf")
def printf(ctx: Context, argv: list[str]) -> int:
    """Writes its arguments as a format says, or sets the variable of -v to that."""
    args = argv[1:]
    name = ""
    if args and args[0].startswith("-v") and len(args) > (args[0] == "-v"):
        name = args.pop(0)[2:] or args.pop(0)
    if args and args[0] == "--":
        args.pop(0)
    elif args and len(args[0]) > 1 and args[0][0] == "-" and args[0] != "-":
        ctx.error(
            f"{ctx.name}: {args[0][:2]}: invalid option\nprintf: usage: printf [-v var] format "
            "[arguments]\n"
        )
        return 2
    if not args:
        ctx.error("printf: usage: printf [-v var] format [arguments]\n")
        return 2
    text, status = _format(ctx, args[0], args[1:])
    if not name:
        ctx.write(text)
        return status
    m = re.fullmatch(r"([A-Za-z_]\w*)(?:\[(.*)\])?", name)
    if not m:
        return ctx.fail(f"`{name}': not a valid identifier", 2)
    try:
        if m[2] is not None:
            ctx.shell.scope.set_element(m[1], ctx.shell.scope.index(m[1], m[2]), text)
        else:
            ctx.shell.scope.set(m[1], text)
    except ShellError as error:
        return ctx.fail(str(error))
    return status
