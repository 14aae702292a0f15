"""What names stand for: alias, type, command, builtin, hash, which."""

from __future__ import annotations

from shellworld.commands import BUILTINS, Context, Unsupported, builtin, command
from shellworld.commands.builtins import usage
from shellworld.language.tokens import RESERVED

# -- aliases ---------------------------------------------------------------------------


@builtin("alias")
def alias(ctx: Context, argv: list[str]) -> int:
    """Sets and prints aliases."""
    aliases = ctx.shell.aliases
    status = 0
    args = [a for a in argv[1:] if a != "-p"]
    for word in args or sorted(aliases):
        name, equals, value = word.partition("=")
        if equals:
            aliases[name] = value
        elif name in aliases:
            ctx.write(f"alias {name}='" + aliases[name].replace("'", "'\\''") + "'\n")
        else:
            status = ctx.fail(f"{name}: not found")
    return status


@builtin("unalias")
def unalias(ctx: Context, argv: list[str]) -> int:
    """Removes aliases: -a all."""
    status = 0
    for name in argv[1:]:
        if name == "-a":
            ctx.shell.aliases.clear()
        elif ctx.shell.aliases.pop(name, None) is None:
            status = ctx.fail(f"{name}: not found")
    return status


# -- lookup ----------------------------------------------------------------------------


def _path(ctx: Context, name: str) -> str | None:
    return ctx.shell.which(name, ctx.shell.scope.get("PATH") or "", ctx.who, ctx.cwd)


def _kind(ctx: Context, name: str) -> tuple[str, str | None]:
    if name in RESERVED:
        return "keyword", name
    if name in ctx.shell.functions:
        return "function", name
    if name in BUILTINS:
        return "builtin", name
    path = _path(ctx, name)
    return ("file", path) if path is not None else ("", None)


@builtin("type")
def type_(ctx: Context, argv: list[str]) -> int:
    """Says what names stand for: -f -p -P -t."""
    flags = ""
    args = argv[1:]
    while args and args[0].startswith("-"):
        flags += args.pop(0)[1:]
    if flags.strip("taPpf"):
        return usage(ctx, "-" + flags, "type [-afptP] name [name ...]")
    status = 0
    for name in args:
        kind, path = _kind(ctx, name)
        if "P" in flags:
            path = _path(ctx, name)
            kind = "file" if path else ""
        if "a" in flags:
            raise Unsupported("type -a")
        if not kind:
            status = 1
            if "t" not in flags and "p" not in flags and "P" not in flags:
                ctx.fail(f"{name}: not found")
        elif "t" in flags:
            ctx.write(kind + "\n")
        elif "p" in flags or "P" in flags:
            if kind == "file":
                ctx.write(f"{path}\n")
        elif kind == "function":
            raise Unsupported("type of a function")
        else:
            text = {"keyword": "a shell keyword", "builtin": "a shell builtin", "file": str(path)}[
                kind
            ]
            ctx.write(f"{name} is {text}\n")
    return status


@builtin("command")
def command_(ctx: Context, argv: list[str]) -> int:
    """Runs a command without functions, or says what it is: -p, -v, -V."""
    args = argv[1:]
    flags = ""
    while args and args[0].startswith("-") and len(args[0]) > 1:
        word = args.pop(0)
        if word == "--":
            break
        flags += word[1:]
    if flags.strip("pvV"):
        return usage(ctx, "-" + flags, "command [-pVv] command [arg ...]")
    if not args:
        return 0
    if not flags.strip("p"):
        name = args[0]
        if name == "exec":
            return ctx.shell.execute_instead(args, ctx.shell.files)
        if name in BUILTINS:
            return ctx.shell.run_builtin(args, ctx.shell.files)
        return ctx.shell.start(args, ctx.shell.files, ctx.env)
    status = 1
    for name in args:
        kind, path = _kind(ctx, name)
        if not kind:
            if "V" in flags:
                ctx.fail(f"{name}: not found")
            continue
        status = 0
        if "V" in flags:
            if kind == "function":
                raise Unsupported("command -V of a function")
            text = {"keyword": "a shell keyword", "builtin": "a shell builtin", "file": str(path)}[
                kind
            ]
            ctx.write(f"{name} is {text}\n")
        else:
            ctx.write(f"{path}\n")
    return status


@builtin("builtin")
def builtin_(ctx: Context, argv: list[str]) -> int:
    """Runs a builtin, whatever functions there are."""
    if len(argv) == 1:
        return 0
    if argv[1] not in BUILTINS or argv[1] == "exec":
        return ctx.fail(f"{argv[1]}: not a shell builtin")
    return ctx.shell.run_builtin(argv[1:], ctx.shell.files)


@builtin("exec")
def exec_(ctx: Context, argv: list[str]) -> int:
    """Reached through `builtin` only; `exec` itself is the launcher's."""
    return ctx.shell.execute_instead(argv, ctx.shell.files)


@command("which")
def which(ctx: Context, argv: list[str]) -> int:
    """Prints the paths of programs."""
    status = 0
    names = argv[1:]
    if names and names[0].startswith("-"):
        if names[0] not in ("-a", "-s"):
            ctx.error(f"Illegal option {names[0]}\nUsage: /usr/bin/which [-as] args\n")
            return 2
        raise Unsupported(f"which {names[0]}")
    for name in names:
        path = ctx.which(name)
        if path is None:
            status = 1
        else:
            ctx.write(path + "\n")
    return status if names else 1


@builtin("hash")
def hash_(ctx: Context, argv: list[str]) -> int:
    """Looks names up, as if to remember them."""
    if argv[1:] and argv[1].startswith("-") and argv[1] != "-r":
        raise Unsupported(f"hash {argv[1]}")
    status = 0
    for name in argv[1:]:
        if (
            name != "-r"
            and name not in BUILTINS
            and name not in ctx.shell.functions
            and _path(ctx, name) is None
        ):
            status = ctx.fail(f"{name}: not found")
    if len(argv) == 1:
        raise Unsupported("hash without arguments")
    return status
