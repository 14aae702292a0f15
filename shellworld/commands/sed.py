"""sed, as GNU sed 4.9."""

from __future__ import annotations

from shellworld.commands import Context, FsError, LimitExceeded
from shellworld.commands.options import Options, from_bytes, read, to_bytes, tool, unknown
from shellworld.commands.sed_machine import File, Machine, Output, Panic, Quit
from shellworld.commands.sed_parser import Parser, SedError

_LONG = """quiet=n silent=n debug=debug expression=e: file=f: follow-symlinks=follow
in-place=i:: line-length=l: posix=posix regexp-extended=E separate=s sandbox=sandbox
unbuffered=u null-data=z zero-terminated=z binary=b"""
_USAGE = "Usage: sed [OPTION]... {script-only-if-no-other-script} [input-file]...\n"


@tool("sed", short="bsnrzuEe:f:l:i::V", long=_LONG)
def sed(ctx: Context, options: Options, operands: list[str]) -> int:
    """sed: -n -e -f -E -r -i[SUFFIX] -s -z -u -l; every command but e and v."""
    flags: dict[str, str] = {}
    scripts: list[str] = []
    for key, value in options:
        match key:
            case "e":
                scripts.append(value)
            case "f":
                try:
                    scripts.append(read(ctx, value).removesuffix("\n"))
                except FsError as error:
                    return ctx.fail(f"couldn't open file {value}: {error.message}", 4)
            case "l" if value.isdigit() and int(value) != 1:
                flags["l"] = value
            case "r" | "E":
                flags["E"] = ""
            case "n" | "s" | "z" | "u" | "i" | "b":
                flags[key] = value
            case _:
                raise unknown(ctx, key)
    if not scripts:
        if not operands:
            ctx.error(_USAGE)
            return 1
        scripts, operands = operands[:1], operands[1:]
    script = to_bytes("\n".join(scripts))
    quiet = "n" in flags or script.startswith("#n\n") or script == "#n"
    try:
        commands = Parser(script, "E" in flags).parse()
    except SedError as error:
        text = str(error)
        ctx.error(
            "sed: " + (text[1:] if text.startswith("!") else f"-e expression #1, {text}") + "\n"
        )
        return 4 if text.startswith("!") else 1
    for command in commands:
        if command.name == "l" and command.number < 0 and "l" in flags:
            command.number = int(flags["l"])
    machine = Machine(ctx, commands, quiet, "\0" if "z" in flags else "\n")
    status = _process(ctx, machine, operands, flags)
    for name, output in machine.outputs.items():
        text = from_bytes("".join(output.parts))
        if name == "/dev/stderr":
            ctx.error(text)
        elif name != "/dev/stdout":
            try:
                ctx.fs.write_text(ctx.path(from_bytes(name)), text, ctx.who)
            except FsError as error:
                return ctx.fail(f"couldn't open file {name}: {error.message}", 4)
    return status


def _process(ctx: Context, machine: Machine, names: list[str], flags: dict[str, str]) -> int:
    """Runs the script over the files as one stream, or one by one with -s and -i."""
    if "i" in flags and not names:
        ctx.error("sed: no input files\n")
        return 4
    names = names or ["-"]
    apart = "s" in flags or "i" in flags
    groups = [[name] for name in names] if apart else [names]
    try:
        for group in groups:
            if "i" in flags and not _editable(ctx, machine, group[0]):
                continue
            if apart:
                machine.forget()
            try:
                machine.run([File(name) for name in group])
            except Panic:
                machine.out = Output() if "i" in flags else machine.out
                raise
            except Quit:
                _edited(ctx, machine, group[0], flags)
                raise
            _edited(ctx, machine, group[0], flags)
    except LimitExceeded:
        # Who reads may have enough with what there is so far.
        ctx.write(from_bytes("".join(machine.out.parts)))
        raise
    except Quit as quit_:
        ctx.endless = False  # it has not asked for more
        machine.status = quit_.status or machine.status
    except FsError as error:
        return ctx.fail(f"couldn't open temporary file {error}", 4)
    ctx.write(from_bytes("".join(machine.out.parts)))
    return machine.status


def _edited(ctx: Context, machine: Machine, name: str, flags: dict[str, str]) -> None:
    """With -i, puts what came out in the file's place."""
    if "i" in flags:
        _replace(ctx, name, from_bytes("".join(machine.out.parts)), flags["i"])
        machine.out = Output()


def _editable(ctx: Context, machine: Machine, name: str) -> bool:
    """Whether sed -i can work on a file; complains if not."""
    try:
        if ctx.fs.node(ctx.path(name), ctx.who).kind != "file":
            machine.status = ctx.fail(f"couldn't edit {name}: not a regular file", 4)
            return False
        read(ctx, name)
    except FsError as error:
        machine.status = machine.status or ctx.fail(f"can't read {name}: {error.message}", 2)
        return False
    return True


def _replace(ctx: Context, name: str, text: str, suffix: str) -> None:
    """Puts a new file in the old one's place, as sed -i does.

    It has the same mode, owner and ACL; hard links part.
    """
    fs, path = ctx.fs, ctx.path(name)
    old = fs.node(path, ctx.who)
    directory, _, base = path.rpartition("/")
    temporary = f"{directory}/sedAAAAAA"
    try:
        fs.write_text(temporary, text, ctx.who, mode=0o600)
    except FsError as error:
        shown = name.rpartition("/")[0] or "."
        raise FsError(error.code, f"{shown}/sedAAAAAA: {error.message}") from error
    node = fs.node(temporary, ctx.who)
    if ctx.who.uid == 0:
        node.uid, node.gid = old.uid, old.gid
    elif old.gid in ctx.who.groups:
        node.gid = old.gid
    node.mode, node.acl = old.mode, old.acl
    if suffix:
        backup = suffix.replace("*", base) if "*" in suffix else base + suffix
        fs.rename(path, backup if backup.startswith("/") else f"{directory}/{backup}", ctx.who)
    fs.rename(temporary, path, ctx.who)
