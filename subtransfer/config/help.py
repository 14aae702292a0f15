"""All config fields in words, as `--help` prints them."""

from __future__ import annotations

import textwrap
from collections.abc import Collection

from subtransfer.config.fields import rooms
from subtransfer.runtime.field import Field


def help_text(plugins: Collection[str] = ()) -> str:
    """All fields by room: default, range and meaning, for `--help`."""
    lines = []
    for room in rooms(plugins):
        title = f"{room.name or 'config'}: {room.meaning}"
        lines += ["", title, "-" * len(title)]
        for name, field in room.fields.items():
            full = f"{room.name}.{name}" if room.name else name
            limits = _limits(field)
            lines.append(
                f"  --config.{full}={_default(field)}" + (f"  ({limits})" if limits else "")
            )
            lines += textwrap.wrap(
                field.meaning, 96, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
    return "\n".join(lines) + "\n"


def _default(field: Field) -> str:
    if field.type is bool:
        return str(field.default).lower()
    if field.type is tuple:
        return repr(field.default).replace(" ", "")
    return f"{field.default!r}" if field.default == "" else str(field.default)


def _limits(field: Field) -> str:
    """What it takes: its choices, its range, or its type."""
    if field.allowed():
        known = [choice or "''" for choice in field.allowed()]
        if field.suffix:
            known.append(f"FILE{field.suffix}")
        return ", ".join(known)
    words = {bool: "true or false", int: "integer", float: "number", str: "", tuple: "tuple"}
    return ", ".join(part for part in (words[field.type], field.range()) if part)
