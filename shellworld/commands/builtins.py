"""Builtins that steer the shell: directories, control flow, evaluation, traps."""

from __future__ import annotations

import posixpath
import re

from shellworld.commands import Context, FsError, Unsupported, builtin, command
from shellworld.commands.modes import ModeError, apply_mode, symbolic_umask
from shellworld.interpreter.control import Exit, LoopJump, Return
from shellworld.interpreter.redirect import open_source
from shellworld.interpreter.result import LimitExceeded
from shellworld.language.syntax import parse
from shellworld.world.filesystem import allows


@builtin(":", "true", program=True)
def true(ctx: Context, argv: list[str]) -> int:
    """Does nothing, and succeeds."""
    return 0


@builtin("false", program=True)
def false(ctx: Context, argv: list[str]) -> int:
    """Does nothing, and fails."""
    return 1


@command("pwd")
def pwd_program(ctx: Context, argv: list[str]) -> int:
    """The program prints the physical directory."""
    ctx.write(ctx.fs.resolve(ctx.cwd) + "\n")
    return 0


@builtin("pwd")
def pwd(ctx: Context, argv: list[str]) -> int:
    """Prints the working directory: -L as it was named, -P without symlinks."""
    physical = False
    for option in argv[1:]:
        if option in ("-P", "-L"):
            physical = option == "-P"
        elif option.startswith("-"):
            return usage(ctx, option, "pwd [-LP]")
    ctx.write((ctx.fs.resolve(ctx.cwd) if physical else ctx.cwd) + "\n")
    return 0


def usage(ctx: Context, option: str, text: str) -> int:
    """A builtin's complaint about an option."""
    ctx.error(f"{ctx.name}: {option}: invalid option\n{text.split()[0]}: usage: {text}\n")
    return 2


@builtin("cd")
def cd(ctx: Context, argv: list[str]) -> int:
    """Changes the working directory: -L, -P, `-` for the one before, CDPATH."""
    shell = ctx.shell
    args = argv[1:]
    physical = False
    while args and args[0].startswith("-") and len(args[0]) > 1:
        option = args.pop(0)
        if option == "--":
            break
        if option.strip("-PLe"):
            return usage(ctx, option, "cd [-L|[-P [-e]] [-@]] [dir]")
        physical = "P" in option
    if len(args) > 1:
        return ctx.fail("too many arguments")
    shown = False
    if not args:
        target = shell.scope.get("HOME")
        if target is None:
            return ctx.fail("HOME not set")
        if not target:
            return 0
    elif args[0] == "-":
        target = shell.scope.get("OLDPWD")
        if not target:
            return ctx.fail("OLDPWD not set")
        shown = True
    else:
        target = args[0]
        if not target:
            return 0
        if (
            not target.startswith(("/", "./", "../"))
            and target not in (".", "..")
            and (path := shell.scope.get("CDPATH"))
        ):
            # A directory found along CDPATH is printed, as one cannot know which it was.
            for place in path.split(":"):
                if place and ctx.fs.is_dir(ctx.path(posixpath.join(place, target)), ctx.who):
                    target, shown = posixpath.join(place, target), True
                    break
    absolute = ctx.path(target)
    # `cd a/..` stays where it is even if `a` is a link: bash takes the names away first.
    logical = posixpath.normpath("/" + absolute.lstrip("/"))
    try:
        node = ctx.fs.node(
            logical if not physical and ctx.fs.exists(logical, ctx.who) else absolute, ctx.who
        )
        if node.entries is None:
            raise FsError("ENOTDIR")
        if not allows(node, 1, ctx.who):
            raise FsError("EACCES")
    except FsError as error:
        return ctx.fail(f"{target}: {error.message}")
    old = shell.cwd
    shell.cwd = ctx.fs.path_of(node) if physical or not ctx.fs.exists(logical, ctx.who) else logical
    # OLDPWD becomes the name by which the directory was known, links and all.
    shell.scope.set("OLDPWD", old)
    shell.scope.set("PWD", shell.cwd)
    shell.scope.declare("OLDPWD", exported=True)
    shell.scope.declare("PWD", exported=True)
    if shown:
        ctx.write(shell.cwd + "\n")
    return 0


# -- control flow ----------------------------------------------------------------------


def _number(ctx: Context, text: str) -> int | None:
    if re.fullmatch(r"\s*[+-]?\d{1,18}\s*", text):
        return int(text)
    ctx.fail(f"{text}: numeric argument required")
    return None


@builtin("logout")
def logout(ctx: Context, argv: list[str]) -> int:
    """Ends login shells only, and no shell here is one."""
    return ctx.fail("not login shell: use `exit'")


@builtin("exit")
def exit_(ctx: Context, argv: list[str]) -> int:
    """Ends the shell, with the last status or the one given."""
    status: int | None = ctx.shell.status
    if len(argv) > 1:
        status = _number(ctx, argv[1])
        # A word that is no number ends the shell all the same; too many words do not.
        if status is None:
            status = 2
        elif len(argv) > 2:
            return ctx.fail("too many arguments")
    raise Exit((status or 0) & 255)


@builtin("return")
def return_(ctx: Context, argv: list[str]) -> int:
    """Ends a function or a sourced script."""
    status: int | None = ctx.shell.status
    if len(argv) > 1:
        status = _number(ctx, argv[1])
        status = 2 if status is None else status
    if not ctx.shell.in_function and not ctx.shell.sourced:
        return ctx.fail("can only `return' from a function or sourced script", 2)
    raise Return((status or 0) & 255)


@builtin("break", "continue")
def break_(ctx: Context, argv: list[str]) -> int:
    """Leaves loops, or goes on with their next turn."""
    levels: int | None = 1
    if len(argv) > 1:
        levels = _number(ctx, argv[1])
        # Not only the loop ends, but the shell.
        if levels is None:
            raise Exit(128)
        if levels < 1:
            ctx.fail(f"{argv[1]}: loop count out of range")
            if not ctx.shell.loops:
                return 1
            # bash leaves all loops then.
            raise LoopJump(ctx.shell.loops, False)
    if not ctx.shell.loops:
        return ctx.fail("only meaningful in a `for', `while', or `until' loop", 0)
    raise LoopJump(min(levels or 1, ctx.shell.loops), argv[0] == "continue")


@builtin("eval")
def eval_(ctx: Context, argv: list[str]) -> int:
    """Runs its arguments as a text of shell."""
    args = argv[2:] if argv[1:2] == ["--"] else argv[1:]
    text = " ".join(args)
    if not text.strip():
        return 0
    nested(ctx)
    # A text without commands succeeds; any other sees the status before it.
    ctx.shell.status = 0 if not parse(text).body.items else ctx.shell.status
    status = ctx.shell.evaluate_text(text)
    ctx.shell.depth -= 1
    return status


def nested(ctx: Context) -> None:
    """Counts a level of evaluation."""
    ctx.shell.depth += 1
    if ctx.shell.depth > ctx.shell.limits.depth:
        raise LimitExceeded("recursion")


@builtin(".", "source")
def source(ctx: Context, argv: list[str]) -> int:
    """Runs a file in this shell, with arguments if there are some."""
    shell = ctx.shell
    args = argv[2:] if argv[1:2] == ["--"] else argv[1:]
    if not args:
        ctx.fail("filename argument required", 2)
        ctx.error(f"{argv[0]}: usage: {argv[0]} filename [arguments]\n")
        return 2
    path = args[0]
    candidates = [path]
    if "/" not in path:
        candidates = [
            posixpath.join(d or ".", path) for d in (shell.scope.get("PATH") or "").split(":")
        ] + [path]
    try:
        place = next((c for c in candidates if _is_file(ctx, c)), path)
        if path.startswith("/dev/"):
            opened = open_source(shell, path, shell.files)
            text = opened.read() if opened is not None else ""
        else:
            text = ctx.fs.read_text(ctx.path(place), ctx.who)
    except FsError as error:
        message = (
            f"{path}: {error.message}" if error.code != "EISDIR" else f"{path}: is a directory"
        )
        ctx.error(f"{shell.name}: line {shell.line}: {message}\n")
        return 1
    nested(ctx)
    # Without arguments of its own the script shares, and may change, those of its caller.
    saved = shell.positional
    if len(args) > 1:
        shell.positional = args[1:]
    shell.sourced += 1
    outer, shell.source = shell.source, place
    depth, guard = shell.depth, shell.guard
    shell.status = 0
    try:
        status = shell.run_script(parse(text))
    except Return as leave:
        status = leave.status
        shell.depth, shell.guard = depth, guard
    finally:
        shell.sourced -= 1
        shell.source = outer
        if len(args) > 1:
            shell.positional = saved
    shell.depth -= 1
    return status


def _is_file(ctx: Context, path: str) -> bool:
    try:
        return ctx.fs.is_file(ctx.path(path), ctx.who)
    except Unsupported:
        return False


@builtin("trap")
def trap(ctx: Context, argv: list[str]) -> int:
    """Sets, removes and prints actions; only that of EXIT is ever run."""
    shell = ctx.shell
    args = argv[1:]
    if args and args[0] == "--":
        args = args[1:]
    if not args or args[0] == "-p":
        for name, action in sorted(shell.traps.items()):
            ctx.write("trap -- '" + action.replace("'", "'\\''") + f"' {name}\n")
        return 0
    if args[0].startswith("-") and args[0] != "-":
        raise Unsupported(f"trap {args[0]}")
    action, names = (args[0], args[1:]) if len(args) > 1 else ("-", args)
    for name in names:
        signal = {"0": "EXIT"}.get(name, name.upper().removeprefix("SIG"))
        if signal in ("ERR", "DEBUG", "RETURN"):
            raise Unsupported(f"trap {signal}")
        if signal != "EXIT" and not re.fullmatch(r"[A-Z]{3,6}\d?|\d{1,2}", signal):
            ctx.fail(f"{name}: invalid signal specification")
            return 1
        signal = signal if signal == "EXIT" else "SIG" + signal
        if action == "-":
            shell.traps.pop(signal, None)
        else:
            shell.traps[signal] = action
    return 0


@builtin("shift")
def shift(ctx: Context, argv: list[str]) -> int:
    """Drops the first positional parameters."""
    count: int | None = 1
    if len(argv) > 1:
        count = _number(ctx, argv[1])
        if count is None:
            raise Exit(1)
    assert count is not None
    if count < 0:
        return ctx.fail(f"{argv[1]}: shift count out of range")
    if count > len(ctx.shell.positional):
        return 1
    ctx.shell.positional = ctx.shell.positional[count:]
    return 0


@builtin("wait")
def wait(ctx: Context, argv: list[str]) -> int:
    """Returns the status of a background command, which has ended already."""
    status = 0
    for word in argv[1:]:
        if word.startswith("-"):
            raise Unsupported(f"wait {word}")
        if word.startswith("%"):
            raise Unsupported("job control")
        if not word.isdigit():
            return ctx.fail(f"`{word}': not a pid or valid job spec", 2)
        if int(word) in ctx.shell.background:
            status = ctx.shell.background[int(word)]
        else:
            status = ctx.fail(f"pid {word} is not a child of this shell", 127)
    return status


@builtin(
    "jobs",
    "times",
    "fg",
    "bg",
    "kill",
    "ulimit",
    "disown",
    "suspend",
    "pushd",
    "popd",
    "dirs",
    "compgen",
    "complete",
    "bind",
    "history",
    "fc",
    "help",
    "enable",
    "caller",
    "coproc",
    "compopt",
)
def unsupported_builtin(ctx: Context, argv: list[str]) -> int:
    """Refuses builtins that are not simulated."""
    raise Unsupported(argv[0])


@command("bash", "sh", "dash")
def shell_program(ctx: Context, argv: list[str]) -> int:
    """Runs bash, sh or dash as a program."""
    return ctx.shell.run_shell(argv, ctx)


@builtin("umask")
def umask(ctx: Context, argv: list[str]) -> int:
    """Sets or prints the mask: -S in symbols, -p as a command."""
    args = argv[1:]
    symbolic = printable = False
    while args and args[0] in ("-S", "-p"):
        symbolic = symbolic or args[0] == "-S"
        printable = printable or args[0] == "-p"
        args.pop(0)
    shell = ctx.shell
    if not args:
        text = symbolic_umask(shell.who.umask) if symbolic else f"{shell.who.umask:04o}"
        ctx.write(("umask " + ("-S " if symbolic else "") if printable else "") + text + "\n")
        return 0
    text = args[0]
    if text.isdigit():
        if re.fullmatch(r"0*[0-7]{1,4}", text) is None or int(text, 8) > 0o7777:
            return ctx.fail(f"{text}: octal number out of range")
        shell.who = shell.who.with_umask(int(text, 8) & 0o777)
    else:
        try:
            allowed = apply_mode(text, ~shell.who.umask & 0o777, False, 0)
        except ModeError:
            return ctx.fail(f"`{text}': invalid symbolic mode operator")
        shell.who = shell.who.with_umask(~allowed & 0o777)
    if symbolic:
        ctx.write(symbolic_umask(shell.who.umask) + "\n")
    return 0
