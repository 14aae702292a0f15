"""Directories in the order in which the kernel lists them."""

from __future__ import annotations

from shellworld.commands import Context


def scan(ctx: Context, path: str) -> list[str]:
    """Returns the names in a directory, the newest first, as tmpfs lists them.

    find, du and grep -r keep that order. Raises FsError.
    """
    names = ctx.fs.listdir(path, ctx.who)
    if len(names) < 2:
        return names
    entries = ctx.fs.node(path, ctx.who).entries
    assert entries is not None  # listdir has had its names
    return list(reversed(entries))


def join(directory: str, name: str) -> str:
    """A path below a directory as find and grep print it."""
    return directory + name if directory.endswith("/") else f"{directory}/{name}"
