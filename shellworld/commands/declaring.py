"""Builtins for variables and options: declare, export, readonly, unset, set, shopt, let."""

from __future__ import annotations

import re

from shellworld.commands import Context, Unsupported, builtin
from shellworld.commands.builtins import usage
from shellworld.interpreter.conditions import OPTION_NAMES
from shellworld.interpreter.variables import ShellError, Variable
from shellworld.language.quoting import quote_value

_WORD = re.compile(r"([A-Za-z_]\w*)(?:\[(.*?)\])?(\+?=)?", re.S)
_ATTRIBUTES = {
    "x": "exported",
    "r": "readonly",
    "i": "integer",
    "A": "associative",
    "l": "fold",
    "u": "fold",
    "a": "",
    "g": "",
    "p": "",
}


def _split(
    ctx: Context, argv: list[str], letters: str
) -> tuple[set[str], set[str], list[str]] | None:
    """Options with - and with +, and the operands; None after a complaint."""
    on: set[str] = set()
    off: set[str] = set()
    args = argv[1:]
    while args and len(args[0]) > 1 and args[0][0] in "-+":
        word = args.pop(0)
        if word == "--":
            break
        if word.strip("-+" + letters):
            if word[0] == "-" and not word[1:].strip("aAfFgilnrtuxpcIE"):
                raise Unsupported(f"{argv[0]} {word}")
            usage(ctx, word, f"{argv[0]} [-{letters}] [name[=value] ...]")
            return None
        (on if word[0] == "-" else off).update(word[1:])
    return on, off, args


@builtin("declare", "typeset", "local")
def declare(ctx: Context, argv: list[str]) -> int:
    """Declares variables, or prints them: -a -A -g -i -l -p -r -u -x."""
    shell = ctx.shell
    local = argv[0] == "local"
    if local and not shell.in_function:
        return ctx.fail("can only be used in a function")
    found = _split(ctx, argv, "axriAlugp")
    if found is None:
        return 2
    on, off, names = found
    if "p" in on or not names:
        return _print(ctx, names, on)
    return _assign_all(ctx, names, on, off, bool(shell.in_function) and "g" not in on)


def _assign_all(ctx: Context, words: list[str], on: set[str], off: set[str], local: bool) -> int:
    shell = ctx.shell
    scope = shell.scope
    status = 0
    for word in words:
        m = _WORD.match(word)
        if not m or (m.end() < len(word) and not m[3]):
            status = ctx.fail(f"`{word}': not a valid identifier")
            continue
        name = m[1]
        old = scope.names.get(name)
        if old is not None and old.readonly and (m[3] or local):
            status = ctx.fail(f"{name}: readonly variable")
            continue
        if local:
            scope.make_local(name)
        attributes: dict[str, object] = {}
        for letter in on:
            field = _ATTRIBUTES[letter]
            if field and field != "readonly":
                attributes[field] = letter if field == "fold" else True
        for letter in off:
            field = _ATTRIBUTES[letter]
            if field == "readonly":
                status = (
                    ctx.fail(f"{name}: readonly variable")
                    if old is not None and old.readonly
                    else 0
                )
            elif field:
                attributes[field] = "" if field == "fold" else False
        current = scope.names.get(name)
        if ("a" in on or "A" in on) and not m[3] and (current is None or current.value is None):
            pass
        scope.declare(name, **attributes)
        pending = shell.pending_arrays.pop(name, None)
        if pending is not None:
            shell.assign_array(pending)
        elif m[3]:
            value = word[m.end() :]
            append = m[3] == "+="
            if m[2] is not None:
                scope.set_element(name, scope.index(name, m[2]), value, append)
            elif "a" in on or "A" in on:
                scope.set_element(name, "0" if "A" in on else 0, value, append)
            else:
                scope.set(name, value, append)
        if "r" in on:
            scope.declare(name, readonly=True)
    return status


def _quoted(text: str) -> str:
    """As declare -p writes a value."""
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        return quote_value(text)
    return '"' + re.sub(r'([$`"\\])', r"\\\1", text) + '"'


def _describe(name: str, v: Variable) -> str:
    flags = (
        ("A" if v.associative else "a" if isinstance(v.value, dict) else "")
        + "i" * v.integer
        + v.fold
        + "r" * v.readonly
        + "x" * v.exported
    )
    head = f"declare -{flags or '-'} {name}"
    if v.value is None:
        return head
    if isinstance(v.value, str):
        return f"{head}={_quoted(v.value)}"
    if v.associative and len(v.value) > 1:
        raise Unsupported("order of an associative array")
    inner = " ".join(f"[{k}]={_quoted(v.value[k])}" for k in v.indices())
    return f"{head}=({inner}{' ' if v.associative and inner else ''})"


def _print(ctx: Context, names: list[str], on: set[str]) -> int:
    scope = ctx.shell.scope
    if not names:
        if on <= {"p", "x"} and "x" in on:
            return _print_exported(ctx)
        raise Unsupported("declare without names")
    status = 0
    for name in names:
        variable = scope.names.get(name)
        if variable is None:
            status = ctx.fail(f"{name}: not found")
        else:
            ctx.write(_describe(name, variable) + "\n")
    return status


def _print_exported(ctx: Context) -> int:
    if ctx.shell.posix:
        raise Unsupported("export -p in sh")  # dash has a form of its own
    for name, variable in sorted(ctx.shell.scope.names.items()):
        if variable.exported:
            ctx.write(_describe(name, variable) + "\n")
    return 0


@builtin("export", "readonly")
def export(ctx: Context, argv: list[str]) -> int:
    """Marks variables as exported or read-only; -n takes the export back."""
    args = argv[1:]
    off: set[str] = set()
    on = {"x" if argv[0] == "export" else "r"}
    while args and args[0].startswith("-") and len(args[0]) > 1:
        word = args.pop(0)
        if word == "--":
            break
        if word == "-p":
            continue
        if word == "-n" and argv[0] == "export":
            on, off = set(), {"x"}
        elif word == "-f" and argv[0] == "export":
            raise Unsupported("export -f")
        elif word in ("-a", "-A") and argv[0] == "readonly":
            on.add(word[1])
        else:
            return usage(ctx, word, f"{argv[0]} [-fn] [name[=value] ...] or {argv[0]} -p")
    if not args:
        if argv[0] == "export":
            return _print_exported(ctx)
        raise Unsupported("readonly without names")
    return _assign_all(ctx, args, on, off, False)


@builtin("unset")
def unset(ctx: Context, argv: list[str]) -> int:
    """Removes variables, elements or functions: -v, -f."""
    shell = ctx.shell
    args = argv[1:]
    kind = ""
    while args and args[0].startswith("-"):
        word = args.pop(0)
        if word not in ("-v", "-f", "--"):
            if word == "-n":
                raise Unsupported("unset -n")
            return usage(ctx, word, "unset [-f] [-v] [-n] [name ...]")
        kind = word[1:]
    status = 0
    for word in args:
        m = re.fullmatch(r"([A-Za-z_]\w*)(?:\[(.*)\])?", word, re.S)
        if not m and kind != "f" and word not in shell.functions:
            status = ctx.fail(f"`{word}': not a valid identifier")
        elif m and m[2] is not None and kind != "f":
            if m[2] in ("@", "*"):
                shell.scope.unset(m[1])
            else:
                shell.scope.unset_element(m[1], shell.scope.index(m[1], m[2]))
        elif kind != "f" and word in shell.scope.names:
            try:
                shell.scope.unset(word)
            except ShellError as error:
                status = ctx.fail(str(error))
        elif kind != "v":
            shell.functions.pop(word, None)
    return status


_LETTERS = {letter: name for name, letter in OPTION_NAMES.items() if len(letter) == 1}
# Options that change nothing that is simulated, or that nobody sets.
_IGNORED = frozenset("hBmbktpEHT")
_IGNORED_NAMES = frozenset(
    "braceexpand hashall interactive-comments errtrace functrace history histexpand monitor "
    "notify".split()
)


@builtin("set")
def set_(ctx: Context, argv: list[str]) -> int:
    """Sets options and positional parameters."""
    shell = ctx.shell
    args = argv[1:]
    if not args:
        raise Unsupported("set without arguments")
    while args and len(args[0]) > 1 and args[0][0] in "-+" or args and args[0] == "-":
        word = args.pop(0)
        if word == "--":
            shell.positional = args
            return 0
        if word == "-":
            shell.options.discard("x")
            shell.options.discard("v")
            if args:
                shell.positional = args
            return 0
        change = shell.options.add if word[0] == "-" else shell.options.discard
        for letter in word[1:]:
            if letter == "o":
                if not args:
                    raise Unsupported(f"set {word} without a name")
                name = args.pop(0)
                if shell.posix and name == "pipefail":
                    raise Unsupported("pipefail in sh")
                if name in OPTION_NAMES:
                    change(OPTION_NAMES[name])
                elif name == "posix":
                    raise Unsupported("set -o posix")
                elif name not in _IGNORED_NAMES:
                    return ctx.fail(f"{name}: invalid option name")
            elif letter in _LETTERS:
                if letter in "nv":
                    raise Unsupported(f"set -{letter}")
                change(letter)
            elif letter not in _IGNORED:
                return usage(
                    ctx, word, "set [-abefhkmnptuvxBCEHPT] [-o option-name] [--] [-] [arg ...]"
                )
    if args:
        shell.positional = args
    return 0


_SHOPT_ON = frozenset(
    "checkwinsize cmdhist complete_fullquote extquote force_fignore "
    "globasciiranges globskipdots "
    "hostcomplete "
    "interactive_comments patsub_replacement progcomp promptvars "
    "sourcepath".split()
)
_SHOPT_FREE = frozenset("nullglob dotglob failglob inherit_errexit".split())
_SHOPT_LOST = frozenset(
    "extglob globstar expand_aliases nocasematch nocaseglob lastpipe xpg_echo "
    "autocd cdspell compat31 "
    "localvar_inherit assoc_expand_once histappend checkjobs execfail "
    "login_shell "
    "shift_verbose".split()
)


@builtin("shopt")
def shopt(ctx: Context, argv: list[str]) -> int:
    """Sets, unsets and prints options of the shell: -s -u -q -p."""
    args = argv[1:]
    flags = ""
    while args and args[0].startswith("-"):
        flags += args.pop(0)[1:]
    if flags.strip("suqp") or "o" in flags or not args:
        raise Unsupported("shopt " + " ".join(argv[1:2]))
    status = 0
    for name in args:
        if name not in _SHOPT_ON | _SHOPT_FREE | _SHOPT_LOST:
            status = ctx.fail(f"{name}: invalid shell option name")
            continue
        on = name in ctx.shell.options or name in _SHOPT_ON
        if "s" in flags or "u" in flags:
            if name in _SHOPT_FREE:
                (ctx.shell.options.add if "s" in flags else ctx.shell.options.discard)(name)
            elif on != ("s" in flags):
                raise Unsupported(f"shopt {name}")
            continue
        status = status or int(not on)
        if "q" not in flags:
            if "p" in flags:
                ctx.write(f"shopt -{'s' if on else 'u'} {name}\n")
            else:
                ctx.write(f"{name:<15}\t{'on' if on else 'off'}\n")
    return status


@builtin("let")
def let(ctx: Context, argv: list[str]) -> int:
    """Evaluates arithmetic; fails if the last value is 0."""
    if len(argv) == 1:
        return ctx.fail("expression expected")
    value = 0
    for expression in argv[1:]:
        try:
            value = ctx.shell.scope.evaluate(expression)
        except ShellError as error:
            return ctx.fail(str(error))
    return int(value == 0)
