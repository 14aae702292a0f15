"""Quoting for reuse, and the quotes of $'...'."""

from __future__ import annotations

import re

_ESCAPES = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "a": "\a",
    "b": "\b",
    "e": "\x1b",
    "E": "\x1b",
    "f": "\f",
    "v": "\v",
}
_ANSI = re.compile(
    r"\\(?:x([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{1,4})|U([0-9a-fA-F]{1,8})|([0-7]{1,3})|c(.)|(.))", re.S
)
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-:=+@%,")


def quote_value(text: str) -> str:
    """As ${x@Q} and `set` write a value: '...' or $'...'."""
    if any(ord(c) < 32 or ord(c) == 127 or 0xDC80 <= ord(c) <= 0xDCFF for c in text):
        return ansi_quote(text)
    return "'" + text.replace("'", "'\\''") + "'"


def ansi_quote(text: str) -> str:
    """$'...' with escapes for what cannot be shown."""
    names = {
        "\n": "\\n",
        "\t": "\\t",
        "\r": "\\r",
        "\a": "\\a",
        "\b": "\\b",
        "\x1b": "\\E",
        "\f": "\\f",
        "\v": "\\v",
        "\\": "\\\\",
        "'": "\\'",
    }
    out = []
    for c in text:
        code = ord(c)
        if c in names:
            out.append(names[c])
        elif code < 32 or code == 127:
            out.append(f"\\{code:03o}")
        elif 0xDC80 <= code <= 0xDCFF:
            out.append(f"\\{code - 0xDC00:03o}")
        else:
            out.append(c)
    return "$'" + "".join(out) + "'"


def quote_word(text: str) -> str:
    """As printf %q writes it: backslashes, or $'...'."""
    if not text:
        return "''"
    if any(ord(c) < 32 or ord(c) == 127 or 0xDC80 <= ord(c) <= 0xDCFF for c in text):
        return ansi_quote(text)
    out = "".join(c if c in _SAFE or ord(c) > 127 else "\\" + c for c in text)
    return "\\" + out if out[0] == "~" or out[0] == "#" else out


def trace_word(text: str) -> str:
    """As set -x shows a word: quoted only where needed."""
    if (
        text
        and all(c in _SAFE or c in "]{}!^~#" or ord(c) > 127 for c in text)
        and text[0] not in "~#"
    ):
        return text if text not in ("!", "{", "}") else f"'{text}'"
    return quote_value(text)


def ansi_c(text: str) -> str:
    """The text of $'...' without its quotes."""
    if "\\" not in text:
        return text
    out = bytearray()
    at = 0
    for m in _ANSI.finditer(text):
        if m.start() < at:
            continue
        out += text[at : m.start()].encode("utf-8", "surrogateescape")
        at = m.end()
        if m[1]:
            out.append(int(m[1], 16))
        elif m[2] or m[3]:
            code = int(m[2] or m[3], 16)  # beyond ASCII, the C locale has no such characters
            if code < 128:
                out.append(code)
            else:
                out += (f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}").encode()
        elif m[4]:
            out.append(int(m[4], 8) & 255)
        elif m[5]:
            out += (
                bytes([ord(m[5].upper()) & 31])
                if ord(m[5]) < 128
                else m[5].encode("utf-8", "surrogateescape")
            )
        elif m[6] in _ESCAPES:
            out += _ESCAPES[m[6]].encode()
        elif m[6] in "\\'\"?":
            out += m[6].encode()
        else:
            out += m[0].encode("utf-8", "surrogateescape")
    out += text[at:].encode("utf-8", "surrogateescape")
    return bytes(out).partition(b"\0")[0].decode("utf-8", "surrogateescape")
