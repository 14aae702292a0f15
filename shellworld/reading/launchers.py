"""Commands that run other commands, and where in their arguments those stand."""

from __future__ import annotations

import dataclasses
import posixpath
import re
from collections.abc import Iterator, Sequence

UNKNOWN = "\0"  # stands for text that cannot be known without running something

SHELLS = frozenset({"bash", "sh", "dash", "ash", "zsh", "ksh", "mksh", "rbash"})
_PLACES = frozenset({"/bin", "/usr/bin", "/usr/local/bin", "/sbin", "/usr/sbin", "/usr/local/sbin"})
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\+?=")


@dataclasses.dataclass(frozen=True)
class Launcher:
    """How a command line names the command that it runs.

    Attributes:
      short: letters of options that take a value.
      long: names of long options that take a value as the next word.
      skip: operands that stand before the command.
      assigns: whether NAME=VALUE may stand before it.
      looks: options with which nothing is run.
    """

    short: str = ""
    long: tuple[str, ...] = ()
    skip: int = 0
    assigns: bool = False
    looks: tuple[str, ...] = ()


LAUNCHERS = {
    "sudo": Launcher(
        "ugCcDhpRrTtU",
        (
            "user",
            "group",
            "close-from",
            "chdir",
            "host",
            "prompt",
            "chroot",
            "role",
            "command-timeout",
            "type",
            "other-user",
        ),
        assigns=True,
        looks=(
            "-l",
            "--list",
            "-v",
            "--validate",
            "-K",
            "-e",
            "--edit",
            "-V",
            "--version",
            "-h",
            "--help",
        ),
    ),
    "doas": Launcher("uC", assigns=True),
    "env": Launcher("uC", ("unset", "chdir"), assigns=True),
    "nice": Launcher("n", ("adjustment",)),
    "ionice": Launcher("cnpPu", ("class", "classdata")),
    "chrt": Launcher("TPD", ("sched-runtime", "sched-period", "sched-deadline"), skip=1),
    "taskset": Launcher(skip=1),
    "nohup": Launcher(),
    "setsid": Launcher(),
    "time": Launcher("fo", ("format", "output")),
    "timeout": Launcher("sk", ("signal", "kill-after"), skip=1),
    "stdbuf": Launcher("ioe", ("input", "output", "error")),
    "chroot": Launcher(skip=1),
    "unshare": Launcher("RwSG", ("root", "wd", "setuid", "setgid")),
    "nsenter": Launcher("tSGrw", ("target", "setuid", "setgid")),
    "fakeroot": Launcher("lsib"),
    "eatmydata": Launcher(),
    "strace": Launcher("abeEIoOpPsSuUX"),
    "ltrace": Launcher("aAeDFlnopsuwxX"),
    "busybox": Launcher(),
    "toybox": Launcher(),
    "command": Launcher(looks=("-v", "-V")),
    "builtin": Launcher(),
    "exec": Launcher("a"),
    "coproc": Launcher(),
    "setpriv": Launcher(long=("reuid", "regid", "groups", "inh-caps", "bounding-set")),
    "runuser": Launcher("uglwG", ("user", "group", "shell", "supp-group")),
    "flock": Launcher("wE", ("timeout", "wait", "conflict-exit-code"), skip=1),
    "watch": Launcher("nq", ("interval", "equexit")),
    "parallel": Launcher("jnNLI", ("jobs", "max-args", "delay")),
    "xargs": Launcher(
        "adEILnPs",
        (
            "arg-file",
            "delimiter",
            "max-lines",
            "max-args",
            "max-procs",
            "max-chars",
            "process-slot-var",
        ),
    ),
}
# They hand their operands to a shell, as one text.
JOINED = frozenset({"watch", "parallel"})
# These take a shell's text after -c.
TEXT_AFTER_C = frozenset({"su", "runuser", "flock", "script", "sg"})
_FIND_EXEC = frozenset({"-exec", "-execdir", "-ok", "-okdir"})


def program(word: str) -> str:
    """Returns the program that a command word names.

    A system directory in front is left out; other paths stay paths.
    """
    directory, name = posixpath.split(word)
    return name if directory in _PLACES or UNKNOWN in directory else word


def launched(launcher: Launcher, argv: Sequence[str]) -> tuple[list[str], dict[str, str]] | None:
    """(the command that `argv` runs, its options with their values); None where it runs nothing."""
    options: dict[str, str] = {}
    at, skip = 1, launcher.skip
    while at < len(argv):
        word = argv[at]
        if word == "--":
            at += 1
            at += skip
            skip = 0
            break
        if word in launcher.looks:
            return None
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if not equals and name in launcher.long:
                at += 1
                value = argv[at] if at < len(argv) else ""
            options[name] = value
        elif word.startswith("-") and len(word) > 1:
            for i, letter in enumerate(word[1:], 2):
                if f"-{letter}" in launcher.looks:
                    return None
                if letter in launcher.short:
                    at += not word[i:]
                    options[letter] = word[i:] or (argv[at] if at < len(argv) else "")
                    break
                options[letter] = ""
        elif launcher.assigns and _ASSIGNMENT.match(word):
            pass
        elif skip:
            skip -= 1
        else:
            break
        at += 1
    while launcher.assigns and at < len(argv) and _ASSIGNMENT.match(argv[at]):
        at += 1
    return list(argv[at:]), options


def after_c(argv: Sequence[str]) -> str | None:
    """The text after -c or --command (also in -lc), or None."""
    for at, word in enumerate(argv[1:], 1):
        if word.startswith("--command="):
            return word.partition("=")[2]
        if word in ("--command", "--session-command") or re.fullmatch(r"-[A-Za-z]*c", word):
            at += 1 + (argv[at + 1 : at + 2] == ["--"])
            return argv[at] if at < len(argv) else None
        if word == "--":
            return None
    return None


def find_commands(argv: Sequence[str]) -> Iterator[list[str]]:
    """The commands that a find runs, `{}` as it stands."""
    at = 1
    while at < len(argv):
        if argv[at] in _FIND_EXEC:
            end = at + 1
            while (
                end < len(argv)
                and argv[end] != ";"
                and not (argv[end] == "+" and argv[end - 1] == "{}")
            ):
                end += 1
            yield list(argv[at + 1 : end])
            at = end
        at += 1


def with_input(command: list[str], options: dict[str, str], stdin: str | None) -> list[str]:
    """The first command that xargs runs."""
    command = command or ["echo"]
    if "I" in options or "i" in options or "replace" in options:
        marker = options.get("I") or options.get("i") or options.get("replace") or "{}"
        value = UNKNOWN if stdin is None else stdin.partition("\n")[0]
        return [word.replace(marker, value) for word in command]
    return [*command, *([UNKNOWN] if stdin is None else stdin.replace("\0", " ").split())]
