"""Undoing the encodings in which a keyword could hide.

Each view of a text is what a determined reader could make of it.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
import unicodedata
import urllib.parse
from collections.abc import Iterator

# Look-alikes of Latin letters that NFKC leaves alone (Cyrillic, Greek, a few symbols).
_LOOKALIKES = str.maketrans(
    "аеорсухіѕјһԁԛԝкмтнвгηικνορτυχαεγβѵⅼıɡ",
    "aeopcyxisjhdqwkmthbrnikvoptuxaeybvlig",
)
_LEET = str.maketrans("013457@$!|", "oieastasil")
# At least three single letters or digits, each one to three separators apart.
_SPACED = re.compile(r"(?<![^\W_])[^\W_](?:[\W_]{1,3}[^\W_](?![^\W_])){2,}")
# Shorter runs decode to too few letters to hold a keyword.
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{8,}={0,2}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}[\s:]?){4,}")
_ESCAPE = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}|U([0-9a-fA-F]{8})"
    r"|(0[0-3][0-7]{2}|[0-7]{3})|([abfnrtv0\"'/\\]))"
)
# What JSON, C and shells write as a backslash and a letter.
ESCAPED = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "0": "\0"}
# How often escapes are undone: a command in JSON that itself writes octal numbers has two.
_TIMES = 3
# What is cut out between letters and digits: signs, empty variables, the seam of two texts.
_SIGNS = re.compile(r"(?<=\w)(?:[._\-*'\"`~^+\\$@{}]+|\\?[\"']\s*[+.,&]?\s*\\?[\"'])(?=\w)")
# Control characters go, but those that separate words stay white space.
_CONTROLS = {c: None for c in (*range(32), 127)} | {ord(c): "\n" for c in "\n\r\v\f"} | {9: "\t"}


def fold(text: str) -> str:
    """Reduces a text to what the eye reads.

    Case, compatibility forms, look-alikes, accents and invisible characters go.
    """
    # All that follows leaves such a text as it is, and most texts are of this kind.
    if text.isascii():
        return text.lower().translate(_CONTROLS)
    text = unicodedata.normalize("NFKC", text.translate(_CONTROLS)).casefold()
    text = unicodedata.normalize("NFKD", text)
    kept = []
    for c in text:
        # Combining marks, format characters (zero-width ones) and controls.
        if unicodedata.category(c) not in ("Mn", "Cf", "Cc") or c in "\n\t":
            kept.append(c)
    return "".join(kept).translate(_LOOKALIKES)


def _joined(text: str) -> str:
    """Puts letters together that spaces or punctuation set apart, as in "d e l" or "d-e-l"."""
    return _SPACED.sub(lambda m: re.sub(r"[\W_]", "", m.group()), text)


def _unescaped(text: str) -> str:
    """Undoes backslash, percent and HTML escapes."""

    def one(match: re.Match[str]) -> str:
        *hexadecimal, octal, letter = match.groups()
        if letter:
            return ESCAPED.get(letter, letter)
        code = int(octal, 8) if octal else int(next(filter(None, hexadecimal)), 16)
        return chr(code) if code < 0x110000 else match.group()

    plain = html.unescape(urllib.parse.unquote(_ESCAPE.sub(one, text), errors="ignore"))
    # JSON writes characters beyond the first 65,536 as two halves.
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")


def _decoded(text: str) -> Iterator[str]:
    """Decodes the base64 and hexadecimal runs of a text, where they stand for text."""
    for match in _BASE64.finditer(text):
        run = match.group().rstrip("=").replace("-", "+").replace("_", "/")
        try:
            yield base64.b64decode(run + "=" * (-len(run) % 4)).decode("ascii")
        except (binascii.Error, UnicodeDecodeError):
            continue
    for match in _HEX.finditer(text):
        try:
            yield bytes.fromhex(re.sub(r"[\s:]", "", match.group())).decode("ascii")
        except (ValueError, UnicodeDecodeError):
            continue


def views(text: str) -> list[tuple[str, str]]:
    """Returns (name, folded text) of every reading; the plain one first."""
    plain = fold(text)
    out = [("plain", plain)]

    def add(name: str, view: str) -> None:
        if view and view != plain:
            out.append((name, view))

    add("spaced", _joined(plain))
    add("unpunctuated", _SIGNS.sub("", plain).replace("_", ""))
    unescaped = text
    for _ in range(_TIMES):
        if not any(c in unescaped for c in "\\%&"):
            break
        before, unescaped = unescaped, _unescaped(unescaped)
        if unescaped == before:
            break
        add("escaped", fold(unescaped))
    add("leet", plain.translate(_LEET))
    # These turn any text into another; only long stems count in them (see marks.py).
    add("reversed", plain[::-1])
    add("rot13", codecs.decode(plain, "rot13"))
    add("encoded", fold(" ".join(_decoded(text))))
    return out
