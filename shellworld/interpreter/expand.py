"""Expands words: tilde, parameters, substitutions, arithmetic, splitting, file names, quotes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from shellworld.interpreter.parameters import operate
from shellworld.interpreter.result import LimitExceeded, Unsupported
from shellworld.interpreter.variables import ShellError, Variable
from shellworld.language import ast, pattern
from shellworld.language.lexer import NAME
from shellworld.world.filesystem import FsError, size_of

if TYPE_CHECKING:
    from shellworld.interpreter.shell import Shell

KEPT = frozenset(["PIPESTATUS", "FUNCNAME", "BASH_SOURCE"])
Segment = tuple[str, bool]  # text, and whether it is quoted
Field = list[Segment]


class Expander:
    """Expands words in a shell."""

    __slots__ = ("shell",)

    def __init__(self, shell: Shell):
        self.shell = shell

    # -- what the interpreter asks for -------------------------------------------------

    def words(self, words: tuple[ast.Word, ...]) -> list[str]:
        """The arguments that words become: none, one or many each."""
        found: list[str] = []
        for word in words:
            if word.plain is not None:
                found.append(word.plain)
            else:
                for field in self.fields(word):
                    self.globbed(field, found)
        if len(found) > self.shell.limits.words:
            raise LimitExceeded("memory", 137)
        return found

    def text(self, word: ast.Word, assignment: bool = False) -> str:
        """One text, neither split nor matched against file names; "$@" is joined with spaces."""
        if word.plain is not None:
            return word.plain
        out = []
        for i, part in enumerate(word.parts):
            if isinstance(part, ast.Literal):
                text = part.text
                if "~" in text:
                    text = self.tilde(text, i == 0, i == len(word.parts) - 1, assignment)
                out.append(text)
            else:
                out.append(self.part_text(part))
        text = "".join(out)
        self.shell.meter.word(len(text))
        return text

    def pattern(self, word: ast.Word) -> str:
        """A pattern: quoted text is escaped in it."""
        out = []
        for i, part in enumerate(word.parts):
            if isinstance(part, ast.Literal):
                text = (
                    self.tilde(part.text, i == 0, i == len(word.parts) - 1, False)
                    if "~" in part.text
                    else part.text
                )
                out.append(text)
            elif isinstance(part, ast.Quoted | ast.DoubleQuoted):
                out.append(pattern.escape(self.part_text(part)))
            else:
                out.append(self.part_text(part))
        return "".join(out)

    def part_text(self, part: ast.Part) -> str:
        """A part's text as within double quotes."""
        if isinstance(part, ast.Quoted | ast.Literal):
            return part.text
        if isinstance(part, ast.DoubleQuoted):
            return "".join([self.part_text(p) for p in part.parts])
        if isinstance(part, ast.Parameter):
            value = self.parameter(part, True)
            return value if isinstance(value, str) else " ".join(value or ())
        if isinstance(part, ast.CommandSubstitution):
            return self.shell.substitute(part)
        if isinstance(part, ast.Arithmetic):
            return str(self.shell.scope.evaluate(self.text(part.text)))
        raise Unsupported("process substitution here")

    # -- fields ------------------------------------------------------------------------

    def fields(self, word: ast.Word) -> list[Field]:
        """A word's fields after splitting, before file names."""
        done: list[Field] = []
        current = self.collect(word.parts, None, done, False, True)
        if current is not None:
            done.append(current)
        return done

    def collect(
        self,
        parts: tuple[ast.Part, ...],
        current: Field | None,
        done: list[Field],
        inner: bool,
        tilde: bool,
    ) -> Field | None:
        """Appends parts to the current field; finished fields go to `done`.

        Args:
          inner: the parts are the argument of ${x:-...}: their unquoted text is split too.
          tilde: whether a leading ~ is a home directory.
        """
        for i, part in enumerate(parts):
            if isinstance(part, ast.Literal):
                text = part.text
                if tilde and "~" in text:
                    text = self.tilde(text, i == 0, i == len(parts) - 1, False)
                    if text != part.text and not inner:
                        (current := [] if current is None else current).append((text, True))
                        continue
                if inner:
                    current = self.split(text, current, done)
                else:
                    (current := [] if current is None else current).append((text, False))
            elif isinstance(part, ast.Quoted):
                (current := [] if current is None else current).append((part.text, True))
            elif isinstance(part, ast.DoubleQuoted):
                current = self.double_quoted(part, current, done)
            elif isinstance(part, ast.Parameter):
                value = self.unquoted_parameter(part, current, done)
                current = self.split(value, current, done) if isinstance(value, str) else value
            elif isinstance(part, ast.ProcessSubstitution):
                (current := [] if current is None else current).append(
                    (self.shell.process_substitution(part), True)
                )
            else:
                current = self.split(self.part_text(part), current, done)
        return current

    def unquoted_parameter(
        self, part: ast.Parameter, current: Field | None, done: list[Field]
    ) -> str | Field | None:
        """A text that is still to be split, or the current field with everything in it."""
        if (
            part.operator in ("-", ":-", "+", ":+")
            and part.argument is not None
            and not part.indirect
        ):
            value = self.value(part)
            if (part.operator[-1] == "-") == self.is_missing(part, value):
                return self.collect(part.argument.parts, current, done, True, current is None)
            if part.operator[-1] == "+":
                return current
        else:
            value = self.parameter(part, False)
        if isinstance(value, list):
            for i, element in enumerate(value):
                if i and current is not None:
                    done.append(current)
                    current = None
                current = self.split(element, current, done)
            return current
        return value if value is not None else current

    def double_quoted(
        self, part: ast.DoubleQuoted, current: Field | None, done: list[Field]
    ) -> Field | None:
        """Expands a double-quoted part into the field under way.

        "$@" ends fields, which go to `done`.

        Returns:
          The field under way; None if there is none yet.
        """
        vanishes = bool(part.parts)  # "$@" without parameters is nothing at all
        for inner in part.parts:
            value: str | list[str] | None
            value = (
                self.parameter(inner, True)
                if isinstance(inner, ast.Parameter)
                else self.part_text(inner)
            )
            if isinstance(value, list):
                for i, element in enumerate(value):
                    if i:
                        done.append(current if current is not None else [])
                        current = None
                    (current := [] if current is None else current).append((element, True))
                vanishes = vanishes and not value
            else:
                (current := [] if current is None else current).append((value or "", True))
                vanishes = False
        if current is None and not vanishes:
            current = [("", True)]
        return current

    def split(self, text: str, current: Field | None, done: list[Field]) -> Field | None:
        """Splits a text by IFS onto the current field."""
        if not text:
            return current
        self.shell.meter.tick(len(text) >> 6)
        ifs = self.shell.scope.get("IFS")
        if ifs is None:
            ifs = " \t\n"
        # By far the most common case: nothing to split at.
        if not any(c in text for c in ifs):
            (current := [] if current is None else current).append((text, False))
            return current
        if ifs == " \t\n":
            pieces = re.split(r"[ \t\n]+", text)
            for i, piece in enumerate(pieces):
                if i and current is not None:
                    done.append(current)
                    current = None
                if piece:
                    (current := [] if current is None else current).append((piece, False))
            return current
        # Blanks of IFS join to one delimiter, also around another sign; each other sign is one of
        # its own, so that two in a row have an empty field between them.
        white = "".join(c for c in ifs if c in " \t\n")
        other = "".join(c for c in ifs if c not in " \t\n")
        blank = f"[{re.escape(white)}]" if white else "(?!)"
        delimiter = (
            re.compile(f"{blank}*[{re.escape(other)}]{blank}*|{blank}+")
            if other
            else re.compile(f"{blank}+")
        )
        at = 0
        for m in delimiter.finditer(text):
            piece = text[at : m.start()]
            at = m.end()
            if piece:
                (current := [] if current is None else current).append((piece, False))
            if current is not None:
                done.append(current)
                current = None
            elif any(c in other for c in m[0]):
                done.append([("", True)])
        if at < len(text):
            (current := [] if current is None else current).append((text[at:], False))
        return current

    # -- parameters --------------------------------------------------------------------

    def value(self, p: ast.Parameter) -> str | list[str] | None:
        """Returns the parameter before its operator: text, None if unset, or a list.

        A list is what @ and * give; it is joined where that is meant.
        """
        shell = self.shell
        name = p.name
        if p.index is None:
            if name == "@" or name == "*":
                return list(shell.positional)
            if name.isdigit():
                number = int(name[:6])
                if number == 0:
                    return shell.arg0
                return shell.positional[number - 1] if number <= len(shell.positional) else None
            if name in "#?$!-":
                return shell.special(name)
            return shell.scope.get(name) if name not in KEPT else self.kept(name).text()
        variable = self.kept(name) if name in KEPT else shell.scope.names.get(name)
        if p.index.plain in ("@", "*"):
            # Variables that are computed, as RANDOM, are arrays of one element.
            if variable is None and shell.scope.computed(name) is not None:
                return [shell.scope.get(name) or ""]
            return [] if variable is None else variable.elements()
        if variable is None:
            # Any scalar is an array of one element, too.
            return shell.scope.get(name) if self.text(p.index) == "0" else None
        key = shell.scope.index(name, self.text(p.index))
        if isinstance(key, int) and key < 0 and isinstance(variable.value, dict):
            key += max(variable.value, default=-1) + 1
        return variable.text(key)

    def kept(self, name: str) -> Variable:
        """The arrays that the shell itself keeps."""
        shell = self.shell
        values: dict[str, list[Any]] = {
            "PIPESTATUS": shell.pipestatus,
            "FUNCNAME": shell.calls[::-1],
            "BASH_SOURCE": [shell.source] if shell.source else [],
        }
        return Variable(dict(enumerate(map(str, values[name]))))

    def is_missing(self, p: ast.Parameter, value: str | list[str] | None) -> bool:
        """Whether :- (or -) would take its default."""
        if isinstance(value, list):
            return not value or (p.operator[0] == ":" and value == [""])
        return value is None or (p.operator[0] == ":" and value == "")

    def parameter(self, p: ast.Parameter, quoted: bool) -> str | list[str] | None:
        """The parameter after its operator; lists of * are joined if `quoted`."""
        if p.indirect:
            value = self.indirect(p)
            if p.operator == "names" or (p.index is not None and p.index.plain in ("@", "*")):
                return value
        else:
            value = self.value(p)
        if p.length:
            return str(self.length(p, value))
        operator = p.operator
        if (
            operator
            and operator[-1] in "-=?+"
            and p.argument is not None
            and operator[0] in ":-=?+"
        ):
            value = self.default(p, value, quoted)
        else:
            if value is None and "u" in self.shell.options and operator != "@":
                self.unbound(p)
            if operator:
                value = operate(self, p, value)
        if (
            isinstance(value, list)
            and quoted
            and (p.name == "*" or (p.index is not None and p.index.plain == "*"))
        ):
            ifs = self.shell.scope.get("IFS")
            return (" " if ifs is None else ifs[:1]).join(value)
        return value

    def unbound(self, p: ast.Parameter) -> None:
        """Refuses a variable that is not set, under `set -u`."""
        name = p.name
        if p.index is not None:
            name = f"{p.name}[{self.text(p.index)}]"
        elif p.name.isdigit():
            name = "$" + p.name
        raise ShellError(f"{name}: unbound variable", fatal=True)

    def length(self, p: ast.Parameter, value: str | list[str] | None) -> int:
        """Returns ${#name}: of text its bytes, of a list its number of elements."""
        if isinstance(value, list):
            return len(value)
        if value is None:
            if "u" in self.shell.options:
                self.unbound(p)
            return 0
        return size_of(value)

    def indirect(self, p: ast.Parameter) -> str | list[str] | None:
        """${!name}, ${!name[@]} (keys), ${!prefix*} (names)."""
        scope = self.shell.scope
        if p.operator == "names":
            return sorted(
                name
                for name in scope.names
                if name.startswith(p.name) and scope.names[name].value is not None
            )
        if p.index is not None and p.index.plain in ("@", "*"):
            variable = scope.names.get(p.name)
            return [] if variable is None else [str(k) for k in variable.indices()]
        name = self.value(p)
        if not isinstance(name, str) or not name:
            raise ShellError(f"{p.name}: invalid indirect expansion")
        m = re.fullmatch(r"([A-Za-z_]\w*)\[([^\]]*)\]", name)
        if m:
            return self.value(ast.Parameter(m[1], ast.Word((ast.Quoted(m[2]),), m[2])))
        if not NAME.fullmatch(name) and not name.isdigit() and name not in ("@", "*", "#", "?"):
            raise ShellError(f"{name}: invalid variable name")
        return self.value(ast.Parameter(name))

    def default(
        self, p: ast.Parameter, value: str | list[str] | None, quoted: bool
    ) -> str | list[str] | None:
        """The operators - = ? + with and without colon."""
        assert p.argument is not None
        kind = p.operator[-1]
        missing = self.is_missing(p, value)
        if kind == "+":
            return "" if missing else self.argument_text(p.argument)
        if not missing:
            return value
        if kind == "-":
            return self.argument_text(p.argument)
        if kind == "=":
            if not NAME.fullmatch(p.name):
                raise ShellError(f"${p.name}: cannot assign in this way")
            text = self.argument_text(p.argument)
            if p.index is not None:
                self.shell.scope.set_element(
                    p.name, self.shell.scope.index(p.name, self.text(p.index)), text
                )
            else:
                self.shell.scope.set(p.name, text)
            return text
        message = self.argument_text(p.argument) or (
            "parameter null or not set" if p.operator == ":?" else "parameter not set"
        )
        raise ShellError(f"{p.name}: {message}", fatal=True)

    def argument_text(self, word: ast.Word) -> str:
        """Returns the text of an operator's argument, unsplit."""
        return self.text(word)

    # -- home directories and file names -----------------------------------------------

    def tilde(self, text: str, first: bool, last: bool, assignment: bool) -> str:
        """A literal with its ~ at the start (in assignments: also behind colons) replaced."""
        if assignment and ":" in text:
            pieces = text.split(":")
            return ":".join(
                self.home(piece, last or k < len(pieces) - 1)
                if piece.startswith("~") and (k or first)
                else piece
                for k, piece in enumerate(pieces)
            )
        return self.home(text, last) if first and text.startswith("~") else text

    def home(self, text: str, whole: bool) -> str:
        """Replaces a leading ~, ~name, ~+ or ~-; the text stays if there is no such user.

        Args:
          whole: the text is all of the word, so that no slash need follow the name.
        """
        name, slash, rest = text[1:].partition("/")
        if not slash and not whole:
            return text
        scope = self.shell.scope
        if name == "":
            home = scope.get("HOME")
            if home is None:
                home = self.shell.own_home()
        elif name == "+":
            home = scope.get("PWD")
        elif name == "-":
            home = scope.get("OLDPWD")
        else:
            user = self.shell.users.users.get(name)
            home = user.home if user else None
        if home is None:
            return text
        return home.rstrip("/") + slash + rest if slash else home

    def globbed(self, field: Field, found: list[str]) -> None:
        """Appends the file names that a field matches, or the field itself."""
        text = "".join([segment[0] for segment in field])
        self.shell.meter.word(len(text))
        unquoted = "".join([segment for segment, quoted in field if not quoted])
        if "f" not in self.shell.options and any(c in unquoted for c in "*?["):
            source = "".join([pattern.escape(t) if quoted else t for t, quoted in field])
            if pattern.is_pattern(source):
                if "**" in source and "globstar" in self.shell.options:
                    raise Unsupported("globstar")
                names = self.glob(source)
                if names:
                    found.extend(names)
                    return
                if "failglob" in self.shell.options:
                    raise ShellError(f"no match: {text}")
                if "nullglob" in self.shell.options:
                    return
        if any(not quoted and "\\" in t for t, quoted in field):
            text = "".join(t for t, quoted in field)
        found.append(text)

    def glob(self, source: str) -> list[str]:
        """Existing paths that match a pattern, sorted; [] if none does."""
        shell = self.shell
        slash = source.endswith("/")
        parts = re.split("/+", source.rstrip("/"))
        bases = [""]
        if source.startswith("/"):
            bases = ["/"]
            parts = parts[1:]
        for at, part in enumerate(parts):
            last = at == len(parts) - 1
            following: list[str] = []
            wild = pattern.is_pattern(part)
            compiled = pattern.compile_pattern(part) if wild else None
            # A leading dot must be matched by a dot that is written.
            hidden = part.startswith((".", "\\.")) or "dotglob" in shell.options
            for base in bases:
                shell.meter.tick()
                if compiled is None:
                    candidate = base + pattern.unescape(part)
                    if not last or self.exists(candidate):
                        following.append(candidate if last else candidate + "/")
                    continue
                try:
                    names = shell.fs.listdir(shell.absolute(base or "."), shell.who)
                except FsError:
                    continue
                # The work of matching counts, so that patterns in large directories end at a limit.
                shell.meter.tick(len(names))
                for name in names:
                    if (name[0] != "." or hidden) and compiled.fullmatch(name):
                        candidate = base + name
                        if last and not slash:
                            following.append(candidate)
                        elif shell.fs.is_dir(shell.absolute(candidate), shell.who):
                            following.append(candidate + "/")
            bases = following
            if len(bases) > shell.limits.words:
                raise LimitExceeded("memory", 137)
        return sorted(bases)

    def exists(self, path: str) -> bool:
        """Whether there is something at a path, be it a dangling symlink."""
        return self.shell.fs.exists(self.shell.absolute(path), self.shell.who, follow=False)
