"""What the words of a script stand for, as far as that can be known without running anything."""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Iterable, Sequence

from shellworld.language import ast
from shellworld.reading.launchers import UNKNOWN

# Variables that every shell has; all others are empty until they are set.
_INHERITED = frozenset(
    "HOME PATH USER LOGNAME SHELL PWD OLDPWD TERM HOSTNAME UID EUID PPID RANDOM SECONDS LINENO "
    "BASHPID IFS LANG TMPDIR".split()
)
# Nested calls and commands that are read; more is no script that an agent writes.
DEPTH, STEPS = (
    24,
    5000,
)


@dataclasses.dataclass
class Known:
    """What a shell has been told so far: definitions that later lines of a trajectory can use.

    Attributes:
      functions: bodies by name.
      aliases: texts by name.
      variables: values by name; a scalar is a list of one. Parts that cannot be known are
        `UNKNOWN`.
      arguments: the positional parameters.
      files: texts by path, of files whose whole content was written by a command that can be read.
    """

    functions: dict[str, ast.Command] = dataclasses.field(default_factory=dict)
    aliases: dict[str, str] = dataclasses.field(default_factory=dict)
    variables: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    arguments: list[str] = dataclasses.field(default_factory=list)
    files: dict[str, str] = dataclasses.field(default_factory=dict)

    def copy(self) -> Known:
        """For a subshell: what is set there is not seen outside; files are."""
        return Known(
            dict(self.functions),
            dict(self.aliases),
            dict(self.variables),
            list(self.arguments),
            self.files,
        )


class StaticWords(abc.ABC):
    """Expands words against `known`; what runs inside a substitution is read by `statements`."""

    def __init__(self, known: Known):
        self.known = known
        self._depth = self._pipes = 0

    @abc.abstractmethod
    def statements(self, body: ast.List, stdin: str | None = None) -> str | None:
        """Reads commands; returns their standard output if that can be known."""

    def assign(self, node: ast.Assignment) -> list[str]:
        """Notes the value of an assignment and returns it, one text for each element."""
        if isinstance(node.value, ast.ArrayValue):
            value: list[str] = []
            for item in node.value.items:
                value += (
                    self.assign(item) if isinstance(item, ast.Assignment) else self.words((item,))
                )
        else:
            value = ["".join(self.words((node.value,), split=False))]
        if node.index is not None:
            known = list(self.known.variables.get(node.name, []))
            at = "".join(self.words((node.index,), split=False))
            if at.isdigit() and int(at) < STEPS:
                known += [""] * (int(at) + 1 - len(known))
                known[int(at)] = value[0]
            self.known.variables[node.name] = known
        elif node.append:
            before = self.known.variables.get(node.name, [])
            if isinstance(node.value, ast.ArrayValue):
                self.known.variables[node.name] = before + value
            else:
                self.known.variables[node.name] = [(before or [""])[0] + value[0], *before[1:]]
        else:
            self.known.variables[node.name] = value
        return value

    def words(self, words: Iterable[ast.Word], *, split: bool = True) -> list[str]:
        """The fields that words expand to; what cannot be known is `UNKNOWN`."""
        out: list[str] = []
        for word in words:
            if word.plain is not None:
                out.append(word.plain)
                continue
            fields: list[str] = []
            current: str | None = None
            for values, separate in self.parts(word.parts, quoted=not split):
                # `separate`: the values are fields of their own, joined to their neighbours at both
                # ends only.
                if not separate:
                    current = (current or "") + "".join(values)
                    continue
                for i, value in enumerate(values):
                    if i and current is not None:
                        fields.append(current)
                        current = None
                    current = (current or "") + value
            if current is not None:
                fields.append(current)
            out += fields
        return out

    def parts(self, parts: Iterable[ast.Part], *, quoted: bool) -> Iterable[tuple[list[str], bool]]:
        """Yields the parts of a word as (texts, whether these are words apart)."""
        for part in parts:
            if isinstance(part, ast.Literal | ast.Quoted):
                yield [part.text], False
            elif isinstance(part, ast.DoubleQuoted):
                yield [""], False
                yield from self.parts(part.parts, quoted=True)
            else:
                values, array = self.value(part)
                if array:
                    yield (values if quoted else " ".join(values).split()), True
                elif quoted:
                    yield values, False
                else:
                    text = "".join(values)
                    yield (["", *text.split()] if text[:1].isspace() else text.split()), True

    def value(self, part: ast.Part) -> tuple[list[str], bool]:
        """(values, whether they are the elements of an array) of an expansion."""
        if isinstance(part, ast.CommandSubstitution):
            outer, self.known = self.known, self.known.copy()
            self._depth += 1
            text = self.statements(part.body) if self._depth < DEPTH else None
            self._depth -= 1
            self.known = outer
            return [UNKNOWN if text is None else text.rstrip("\n")], False
        if isinstance(part, ast.ProcessSubstitution):
            outer, self.known = self.known, self.known.copy()
            text = self.statements(part.body)
            self.known = outer
            self._pipes += 1
            path = f"/dev/fd/{64 + self._pipes}"
            if text is not None and part.direction == "<":
                self.known.files[path] = text
            return [path], False
        if isinstance(part, ast.Arithmetic):
            self.words((part.text,))
            return [UNKNOWN], False
        assert isinstance(part, ast.Parameter)
        return self.parameter(part)

    def parameter(self, p: ast.Parameter) -> tuple[list[str], bool]:
        """Returns the values of a parameter, if they are known, and whether it is an array."""
        known, name = self.known, p.name
        argument = "".join(self.words((p.argument,), split=False)) if p.argument else ""
        second = "".join(self.words((p.second,), split=False)) if p.second else ""
        index = "".join(self.words((p.index,), split=False)) if p.index else None
        if p.length or p.operator in ("names", "@") or p.indirect and p.operator:
            return [UNKNOWN], False
        if name in ("@", "*"):
            values: list[str] | None = list(known.arguments)
        elif name.isdigit():
            values = known.arguments[int(name) - 1 : int(name)] if name != "0" else [UNKNOWN]
        elif name in known.variables:
            values = known.variables[name]
        else:
            values = (
                [UNKNOWN]
                if name in _INHERITED or not name[:1].isalpha() and name[:1] != "_"
                else None
            )
        whole = index in ("@", "*") or name in ("@", "*")
        if values is not None and not whole and not name.isdigit():
            at = int(index) if index is not None and index.isdigit() else 0
            values = values[at : at + 1]
        if p.indirect and values:
            values = known.variables.get(values[0])
        unset = not values or values == [""]
        if p.operator in ("-", ":-", "=", ":=") and unset:
            if p.operator in ("=", ":="):
                known.variables[name] = [argument]
            return [argument], False
        if p.operator in ("+", ":+"):
            return ([] if unset else [argument]), False
        values = [_changed(value, p.operator, argument, second) for value in values or []]
        return values, whole and (index or name) == "@"


def _changed(value: str, operator: str, argument: str, second: str) -> str:
    """Returns a value behind ${name#...}, ${name/...}, ${name,,} and the like.

    Wildcards in patterns are not known, but * is.
    """
    if operator in ("", "-", ":-", "=", ":=", "?", ":?"):
        return value
    if operator in (",,", "^^") and not argument:
        return value.lower() if operator == ",," else value.upper()
    if operator in (",", "^") and not argument:
        return (value[:1].lower() if operator == "," else value[:1].upper()) + value[1:]
    if operator == ":" and argument.strip().isdigit() and (second.strip() or "0").isdigit():
        begin = int(argument)
        return value[begin : begin + int(second)] if second.strip() else value[begin:]
    pattern = ".*".join(re.escape(piece) for piece in argument.split("*")).replace(r"\?", ".")
    lazy = pattern.replace(".*", ".*?")
    if operator in ("#", "##"):
        return re.sub(
            rf"\A(?:{lazy if operator == '#' else pattern})", "", value, count=1, flags=re.DOTALL
        )
    if operator in ("%", "%%"):
        ends = [i for i in range(len(value) + 1) if re.fullmatch(pattern, value[i:], re.DOTALL)]
        return value[: (max(ends) if operator == "%" else min(ends))] if ends else value
    if operator in ("/", "//") and argument:
        return re.sub(pattern, lambda _: second, value, count=int(operator == "/"))
    return UNKNOWN


def printed(arguments: Sequence[str]) -> str | None:
    r"""Returns what printf writes, for formats of %s and \n only."""
    if not arguments:
        return None
    form, rest = arguments[0].replace("\\n", "\n"), list(arguments[1:])
    slots = form.count("%s")
    if "%" in form.replace("%s", "") or "\\" in form:
        return None
    out = ""
    while True:
        pieces = form.split("%s")
        out += pieces[0] + "".join((rest.pop(0) if rest else "") + piece for piece in pieces[1:])
        if not rest or not slots:
            return out
