"""Which commands are permission-related: those that set modes, owners, groups or access lists."""

from __future__ import annotations

from collections.abc import Sequence

_ALWAYS = frozenset({"chmod", "chown", "chgrp", "setfacl", "chacl"})
# Options that make a command permission-related: short letters, and long names.
_WITH_MODE = {
    "install": ("mog", ("mode", "owner", "group")),
    "mkdir": ("m", ("mode",)),
    "mkfifo": ("m", ("mode",)),
    "mknod": ("m", ("mode",)),
}
_INSTALL_VALUES = "tSZ"  # options of install that take another value
NAMES = _ALWAYS | _WITH_MODE.keys() | {"umask"}


def permission_related(name: str, argv: Sequence[str]) -> bool:
    """Says whether a command is permission-related.

    These are `chmod`, `chown`, `chgrp`, `setfacl` and `chacl`; `install` with a mode, an owner or a
    group; `mkdir`, `mkfifo` and `mknod` with a mode; and `umask` with a mask. `chmod --help` and
    the like only look.

    Args:
      name: the program's or builtin's name, without directories.
      argv: the words that it is called with; the first is not looked at.
    """
    if name not in NAMES:
        return False
    arguments = argv[1:]
    if name in _ALWAYS:
        return not {"--help", "--version"} & set(arguments) and "--test" not in arguments
    if name == "umask":
        return any(not word.startswith("-") for word in arguments)
    letters, names = _WITH_MODE[name]
    values = _INSTALL_VALUES if name == "install" else ""
    skip = False
    for word in arguments:
        if skip:
            skip = False
        elif word == "--":
            return False
        elif word.startswith("--"):
            if any(full.startswith(word[2:].partition("=")[0]) for full in names):
                return True
        elif word.startswith("-"):
            for i, letter in enumerate(word[1:], 2):
                if letter in letters:
                    return True
                if letter in values:
                    skip = not word[i:]
                    break
    return False
