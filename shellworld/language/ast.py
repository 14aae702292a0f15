"""The shell's syntax as small immutable nodes; what `syntax.parse` returns.

Brace expansion is a matter of the text alone, so the words here have it behind them.
"""

from __future__ import annotations

from dataclasses import dataclass

# -- words -----------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Literal:
    """Unquoted text: its *, ? and [ are wildcards, a leading ~ is a home directory."""

    text: str


@dataclass(slots=True, eq=False)
class Quoted:
    """Text that stands for itself."""

    text: str


@dataclass(slots=True, eq=False)
class DoubleQuoted:
    """A text in double quotes, in which parameters and substitutions are expanded."""

    parts: tuple[Part, ...]


@dataclass(slots=True, eq=False)
class Parameter:
    """$name or ${...}.

    Attributes:
      name: a variable, a number or one of @*#?$!-_0.
      index: the subscript, "@" and "*" as such words; None without one.
      length, indirect: ${#name}, ${!name}.
      operator: "" or one of - :- = :- ? :? + :+ # ## % %% / // /# /% ^ ^^ , ,, : @ and "names" for
        ${!prefix*}.
      argument, second: the operator's words.
    """

    name: str
    index: Word | None = None
    length: bool = False
    indirect: bool = False
    operator: str = ""
    argument: Word | None = None
    second: Word | None = None


@dataclass(slots=True, eq=False)
class CommandSubstitution:
    """$(...) or `...`.

    Attributes:
      body: the commands.
      error: of backquotes: what bash says behind the commands, if it cannot read the rest. It reads
        them when it comes to run them, and the line goes on.
    """

    body: List
    error: str = ""


@dataclass(slots=True, eq=False)
class Arithmetic:
    """$((...)): its text is expanded as in double quotes, then evaluated."""

    text: Word


@dataclass(slots=True, eq=False)
class ProcessSubstitution:
    """<(...) or >(...)."""

    direction: str
    body: List


Part = (
    Literal
    | Quoted
    | DoubleQuoted
    | Parameter
    | CommandSubstitution
    | Arithmetic
    | ProcessSubstitution
)


@dataclass(slots=True, eq=False)
class Word:
    """Parts that are expanded and joined.

    Attributes:
      plain: the word's text if nothing in it needs expansion, else None.
    """

    parts: tuple[Part, ...]
    plain: str | None = None
    position: int = -1


# -- commands --------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class ArrayValue:
    """(a b [3]=c): words, and assignments where an element names its index."""

    items: tuple[Word | Assignment, ...]


@dataclass(slots=True, eq=False)
class Assignment:
    """name=value, name+=value, name[index]=value, name=(...)."""

    name: str
    value: Word | ArrayValue
    append: bool = False
    index: Word | None = None


@dataclass(slots=True, eq=False)
class Redirect:
    """A redirection of one file descriptor.

    Attributes:
      operator: < > >> >| <> <& >& &> &>> <<< << (also for <<-).
      target: a word; of a here-document, its body.
    """

    operator: str
    fd: int
    target: Word


@dataclass(slots=True, eq=False)
class Simple:
    """A simple command: assignments, then words.

    Among the words, assignments are only arguments of declare, export and the like.
    """

    assignments: tuple[Assignment, ...]
    words: tuple[Word | Assignment, ...]
    redirects: tuple[Redirect, ...]
    line: int


@dataclass(slots=True, eq=False)
class Pipeline:
    """Commands joined by | or |&.

    Attributes:
      merge: for each command, whether its stderr goes into the pipe too (|&).
      timed: whether `time` stands before it.
    """

    commands: tuple[Command, ...]
    negated: bool
    merge: tuple[bool, ...]
    timed: bool = False


@dataclass(slots=True, eq=False)
class AndOr:
    """Pipelines joined by && and ||, from the left.

    Attributes:
      rest: (operator, pipeline) pairs after the first one.
      background: whether a & ends it.
    """

    first: Pipeline
    rest: tuple[tuple[str, Pipeline], ...]
    background: bool = False


@dataclass(slots=True, eq=False)
class List:
    """Commands one after the other."""

    items: tuple[AndOr, ...]


@dataclass(slots=True, eq=False)
class Compound:
    """What all compound commands have."""

    redirects: tuple[Redirect, ...]
    line: int


@dataclass(slots=True, eq=False)
class Subshell(Compound):
    """The command ( ... )."""

    body: List


@dataclass(slots=True, eq=False)
class Group(Compound):
    """The command { ...; }."""

    body: List


@dataclass(slots=True, eq=False)
class If(Compound):
    """(condition, body) pairs of if and elif; `otherwise` of else."""

    branches: tuple[tuple[List, List], ...]
    otherwise: List | None


@dataclass(slots=True, eq=False)
class For(Compound):
    """`words` is None for the positional parameters."""

    name: str
    words: tuple[Word, ...] | None
    body: List


@dataclass(slots=True, eq=False)
class ForArithmetic(Compound):
    """The loop for ((start; condition; step))."""

    start: Word
    condition: Word
    step: Word
    body: List


@dataclass(slots=True, eq=False)
class While(Compound):
    """The loops while and until."""

    condition: List
    body: List
    until: bool


@dataclass(slots=True, eq=False)
class CaseItem:
    """`end`: ";;", ";&" or ";;&"."""

    patterns: tuple[Word, ...]
    body: List
    end: str


@dataclass(slots=True, eq=False)
class Case(Compound):
    """The command case ... esac."""

    word: Word
    items: tuple[CaseItem, ...]


@dataclass(slots=True, eq=False)
class Function(Compound):
    """The definition of a function."""

    name: str
    body: Command


@dataclass(slots=True, eq=False)
class ArithmeticCommand(Compound):
    """The command ((...))."""

    text: Word


@dataclass(slots=True, eq=False)
class Condition(Compound):
    """The command [[ ... ]]."""

    test: Test


Command = (
    Simple
    | Subshell
    | Group
    | If
    | For
    | ForArithmetic
    | While
    | Case
    | Function
    | ArithmeticCommand
    | Condition
)


# -- inside [[ ]] ----------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Unary:
    """-f word and the like; "-n" for a lone word."""

    operator: str
    word: Word


@dataclass(slots=True, eq=False)
class Binary:
    """A test of two words in [[ ]]."""

    operator: str
    left: Word
    right: Word


@dataclass(slots=True, eq=False)
class Logical:
    """`operator`: "&&", "||", or "!" (then `right` is None)."""

    operator: str
    left: Test
    right: Test | None = None


Test = Unary | Binary | Logical


@dataclass(slots=True, eq=False)
class Script:
    """A whole text. Bash reads and runs it line by line: what precedes a syntax error does run.

    Attributes:
      body: what runs before the error, if there is one; all of it otherwise.
      lines: the body again, by the lines (or groups of lines) that bash reads at once.
      error: bash's message(s) without the "bash: " in front, or "".
      warnings: messages that do not stop it (a here-document without end).
      unsupported: constructs that are not simulated; the script must not be run then.
      bashisms: what only bash reads this way, for when it is run by sh.
    """

    body: List
    lines: tuple[List, ...] = ()
    error: str = ""
    warnings: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()
    bashisms: tuple[str, ...] = ()
