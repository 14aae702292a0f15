"""Who am I, and acting as somebody else: id, whoami, groups, sudo, su, env, getent."""

from __future__ import annotations

import re

from shellworld.commands import Context, Unsupported, command
from shellworld.commands.options import (
    Options,
    UsageError,
    parse_options,
    quote,
    tool,
    unknown,
    usage,
)
from shellworld.world.users import Credentials, User


def _group_list(who: Credentials) -> list[int]:
    """The primary group, then the others by number."""
    return [who.gid, *sorted(who.groups - {who.gid})]


def _credentials(ctx: Context, name: str) -> Credentials | None:
    users = ctx.users
    if name in users.users:
        return users.credentials(name)
    if name.isdigit() and (user := users.user(int(name))) is not None:
        return users.credentials(user.name)
    return None


@tool("id", short="agGnruzZ", long="group=g groups=G name=n real=r user=u zero=z context=Z")
def id_(ctx: Context, options: Options, operands: list[str]) -> int:
    """Prints who somebody is: -u, -g, -G, -n, -r."""
    flags = {key for key, _ in options}
    if flags & {"Z", "z"}:
        raise unknown(ctx, min(flags & {"Z", "z"}))
    chosen = flags & {"u", "g", "G"}
    if len(chosen) > 1:
        return ctx.fail('cannot print "only" of more than one choice')
    if flags & {"n", "r"} and not chosen:
        return ctx.fail("cannot print only names or real IDs in default format")
    users = ctx.users
    status = 0
    named: list[str | None] = [*operands] or [None]
    for name in named:
        who = ctx.who if name is None else _credentials(ctx, name)
        if who is None:
            status = ctx.fail(f"{quote(name or '')}: no such user")
            continue
        groups = _group_list(who)
        if "u" in flags:
            text = users.user_name(who.uid) if "n" in flags else str(who.uid)
        elif "g" in flags:
            text = users.group_name(who.gid) if "n" in flags else str(who.gid)
        elif "G" in flags:
            text = " ".join(users.group_name(g) if "n" in flags else str(g) for g in groups)
        else:
            listed = ",".join(f"{g}({users.group_name(g)})" for g in groups)
            user, group = users.user_name(who.uid), users.group_name(who.gid)
            text = f"uid={who.uid}({user}) gid={who.gid}({group}) groups={listed}"
        ctx.write(text + "\n")
    return status


@tool("whoami")
def whoami(ctx: Context, options: Options, operands: list[str]) -> int:
    """Prints the name of the effective user."""
    if operands:
        return usage(ctx, f"extra operand {quote(operands[0])}")
    ctx.write(ctx.users.user_name(ctx.who.uid) + "\n")
    return 0


@tool("groups")
def groups(ctx: Context, options: Options, operands: list[str]) -> int:
    """Prints the names of somebody's groups."""
    status = 0
    named: list[str | None] = [*operands] or [None]
    for name in named:
        who = ctx.who if name is None else _credentials(ctx, name)
        if who is None:
            status = ctx.fail(f"{quote(name or '')}: no such user")
            continue
        names = " ".join(ctx.users.group_name(g) for g in _group_list(who))
        ctx.write((f"{name} : " if name is not None else "") + names + "\n")
    return status


@command("getent")
def getent(ctx: Context, argv: list[str]) -> int:
    """Prints lines of the databases passwd and group, by name or number."""
    if len(argv) < 2 or argv[1].startswith("-"):
        raise Unsupported("getent " + " ".join(argv[1:2]))
    database, keys = argv[1], argv[2:]
    if database not in ("passwd", "group"):
        raise Unsupported(f"getent {database}")
    lines = ctx.fs.read_text(f"/etc/{database}", ctx.who).splitlines()
    if not keys:
        ctx.write("".join(line + "\n" for line in lines))
        return 0
    status = 0
    for key in keys:
        found = next(
            (
                line
                for line in lines
                if (f := line.split(":"))[0] == key or (key.isdigit() and f[2:3] == [key])
            ),
            None,
        )
        if found is None:
            status = 2
        else:
            ctx.write(found + "\n")
    return status


@tool("logname")
def logname(ctx: Context, options: Options, operands: list[str]) -> int:
    """Fails, as there is no login."""
    return ctx.fail("no login name")


@tool("tty", short="s", long="silent=s quiet=s")
def tty(ctx: Context, options: Options, operands: list[str]) -> int:
    """Says that standard input is no terminal."""
    if not options:
        ctx.write("not a tty\n")
    return 1


# -- environment -----------------------------------------------------------------------


@command("printenv")
def printenv(ctx: Context, argv: list[str]) -> int:
    """Prints variables of the environment."""
    names = argv[1:]
    if names and names[0].startswith("-"):
        raise Unsupported(f"printenv {names[0]}")
    if not names:
        ctx.write("".join(f"{k}={v}\n" for k, v in ctx.env.items()))
        return 0
    status = 0
    for name in names:
        if name in ctx.env:
            ctx.write(ctx.env[name] + "\n")
        else:
            status = 1
    return status


@command("env")
def env(ctx: Context, argv: list[str]) -> int:
    """Prints the environment or runs a command in a changed one: -i -u -0 -C."""
    try:
        options, operands = parse_options(
            argv,
            "iu:0C:S:v",
            "ignore-environment=i unset=u: null=0 chdir=C: split-string=S: debug=v",
            permute=False,
        )
    except UsageError as error:
        return usage(ctx, str(error), 125)
    new = dict(ctx.env)
    cwd = None
    end = "\n"
    for key, value in options:
        if key == "i":
            new = {}
        elif key == "u":
            new.pop(value, None)
        elif key == "0":
            end = "\0"
        elif key == "C":
            if not ctx.fs.is_dir(ctx.path(value), ctx.who):
                return ctx.fail(
                    f"cannot change directory to {quote(value)}: No such file or directory", 125
                )
            cwd = ctx.fs.resolve(ctx.path(value), ctx.who)
        else:
            raise unknown(ctx, key)
    if operands[:1] == ["-"]:
        new = {}
        operands = operands[1:]
    while operands and re.match(r"[^=]+=", operands[0]):
        name, _, value = operands.pop(0).partition("=")
        new[name] = value
    if not operands:
        ctx.write("".join(f"{k}={v}{end}" for k, v in new.items()))
        return 0
    return launch(ctx, operands, "env", env=new, cwd=cwd)


def launch(
    ctx: Context,
    argv: list[str],
    name: str,
    who: Credentials | None = None,
    env: dict[str, str] | None = None,
    cwd: str | None = None,
) -> int:
    """Runs a program for env, sudo and the like, with their complaints."""
    inner = ctx.env if env is None else env
    path = inner.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    kind, why = ctx.shell.find_program(argv[0], path, who or ctx.who, cwd or ctx.cwd)
    if kind in ("program", "script"):
        return (
            ctx.run(argv, None, who, {**inner, "PATH": path}, cwd)
            if "PATH" not in inner
            else ctx.run(argv, None, who, env, cwd)
        )
    if kind == "known":
        raise Unsupported(argv[0])
    if name == "sudo":
        ctx.error(f"sudo: {argv[0]}: command not found\n")
        return 1
    ctx.error(f"{name}: {quote(argv[0])}: {why or 'No such file or directory'}\n")
    return 126 if kind == "denied" else 127


# -- other users -----------------------------------------------------------------------

_SUDO_LONG = (
    "user=u: group=g: non-interactive=n preserve-env=E:: set-home=H login=i shell=s list=l "
    "validate=v background=b "
    "reset-timestamp=k remove-timestamp=K stdin=S prompt=p: askpass=A chdir=D: edit=e "
    "other-user=U: host=h:"
)


@command("sudo")
def sudo(ctx: Context, argv: list[str]) -> int:
    """Runs a command as root or as -u and -g say, if the world's user may."""
    try:
        options, operands = parse_options(
            argv, "u:g:nEHislvbkKSp:AD:eU:h:", _SUDO_LONG, permute=False
        )
    except UsageError as error:
        ctx.error(f"sudo: {error}\n")
        return 1
    flags = dict(options)
    for key in ("l", "v", "b", "K", "e", "A", "h", "U", "D"):
        if key in flags and key != "v":
            raise unknown(ctx, key)
    me = ctx.users.user(ctx.who.uid)
    assigned: dict[str, str] = {}
    while operands and re.match(r"[A-Za-z_]\w*=", operands[0]):
        name, _, value = operands.pop(0).partition("=")
        assigned[name] = value
    # There is no terminal, so a password cannot be asked for.
    if not (me is not None and me.sudo) and ctx.who.uid != 0:
        name = ctx.users.user_name(ctx.who.uid)
        if "n" in flags:
            ctx.error("sudo: a password is required\n")
        else:
            ctx.error(
                "sudo: a terminal is required to read the password; either use the -S option to "
                "read from standard input "
                f"or configure an askpass helper\nsudo: a password is required for {name}\n"
            )
        return 1
    target = flags.get("u", me.name if "g" in flags and me is not None else "root")
    user = ctx.users.users.get(target)
    if user is None and target.startswith("#") and target[1:].isdigit():
        user = ctx.users.user(int(target[1:]))
    if user is None:
        ctx.error(
            f"sudo: unknown user {target}\nsudo: error initializing audit plugin sudoers_audit\n"
        )
        return 1
    if "v" in flags:
        return 0
    return _as_user(ctx, user, flags, operands, assigned)


def _as_user(
    ctx: Context, user: User, flags: dict[str, str], argv: list[str], assigned: dict[str, str]
) -> int:
    # sudo only ever adds bits to the umask.
    who = ctx.users.credentials(user.name, ctx.who.umask | 0o022)
    if "g" in flags:
        gid = ctx.users.gid(flags["g"].removeprefix("#"))
        if gid is None:
            ctx.error(f"sudo: unknown group {flags['g']}\n")
            return 1
        who = Credentials(who.uid, gid, who.groups | {gid}, who.umask)
    me = ctx.users.user_name(ctx.who.uid)
    secure = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    if "E" in flags and not flags["E"]:
        env = {**ctx.env, "PATH": secure}
    else:
        kept = {name: ctx.env[name] for name in flags.get("E", "").split(",") if name in ctx.env}
        # The few that its default rules let through.
        kept |= {name: ctx.env[name] for name in ("TERM", "LANG", "DISPLAY") if name in ctx.env}
        env = {
            **kept,
            "PATH": secure,
            "HOME": user.home,
            "LOGNAME": user.name,
            "USER": user.name,
            "SHELL": user.shell,
            "MAIL": f"/var/mail/{user.name}",
        }
    env |= {
        "SUDO_USER": me,
        "SUDO_UID": str(ctx.who.uid),
        "SUDO_GID": str(ctx.who.gid),
        "SUDO_COMMAND": " ".join(argv),
    }
    env |= assigned
    cwd = None
    if "i" in flags or "s" in flags:
        if "i" in flags and ctx.fs.is_dir(user.home, who):
            cwd = user.home
        quoted = " ".join(re.sub(r"([^\w$-])", r"\\\1", word) for word in argv)
        argv = ["bash", "-c", quoted] if argv else ["bash"]
    if not argv:
        ctx.error(
            "usage: sudo -h | -K | -k | -V\nusage: sudo [-AbEHknPS] [-u user] [-g group] "
            "[VAR=value] [command [arg ...]]\n"
        )
        return 0 if "k" in flags else 1
    return launch(ctx, argv, "sudo", who, env, cwd)


@command("su")
def su(ctx: Context, argv: list[str]) -> int:
    """Asks for a password that nobody can type here."""
    try:
        options, operands = parse_options(
            argv, "c:lmps:g:G:f", "command=c: login=l preserve-environment=p shell=s:", permute=True
        )
    except UsageError as error:
        return usage(ctx, str(error))
    if operands[:1] == ["-"]:
        operands = operands[1:]
    user = ctx.users.users.get(operands[0] if operands else "root")
    if user is None:
        return ctx.fail(
            f"user {operands[0]} does not exist or the user entry does not contain all the "
            "required fields"
        )
    if ctx.who.uid != 0:
        ctx.error("Password: su: Authentication failure\n")
        return 1
    raise Unsupported("su as root")


@command(
    "passwd",
    "chpasswd",
    "useradd",
    "userdel",
    "usermod",
    "groupadd",
    "groupdel",
    "groupmod",
    "adduser",
    "deluser",
    "addgroup",
    "delgroup",
    "gpasswd",
    "chfn",
    "chsh",
    "chage",
    "newgrp",
    "sg",
    "visudo",
    "vipw",
)
def administration(ctx: Context, argv: list[str]) -> int:
    """Refuses changes to the user database.

    They are not simulated for root, and what root alone may do is denied to others.
    """
    raise Unsupported(argv[0])


@command("users", "who", "w", "last")
def nobody(ctx: Context, argv: list[str]) -> int:
    """Says that nobody is logged in."""
    if len(argv) > 1 or argv[0] in ("w", "last"):
        raise Unsupported(argv[0])
    return 0
