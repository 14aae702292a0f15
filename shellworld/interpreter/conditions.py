"""[[ ... ]], and the file tests that it shares with `test`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shellworld.commands import PROGRAMS
from shellworld.interpreter.result import Unsupported
from shellworld.interpreter.variables import ShellError
from shellworld.language import ast, pattern
from shellworld.language.regexes import RegexError, compile_regex
from shellworld.world.filesystem import FileSystem, allows, size_of
from shellworld.world.users import Credentials

if TYPE_CHECKING:
    from shellworld.interpreter.shell import Shell

FILE_TESTS = frozenset("-a -b -c -d -e -f -g -h -k -p -r -s -u -w -x -L -O -G -S -N".split())
COMPARISONS = frozenset("-eq -ne -lt -le -gt -ge".split())


def file_test(operator: str, path: str, fs: FileSystem, who: Credentials) -> bool:
    """A test of a file by absolute path ("" is no file)."""
    try:
        node = fs.find(path, who, follow=operator not in ("-h", "-L")) if path else None
    except Unsupported:
        if not _is_program(path):
            raise
        return operator in ("-e", "-a", "-f", "-x", "-r", "-s")
    if node is None:
        return False
    if operator in ("-e", "-a"):
        return True
    if operator == "-f":
        return node.kind == "file"
    if operator == "-d":
        return node.kind == "directory"
    if operator in ("-h", "-L"):
        return node.kind == "symlink"
    if operator == "-c":
        return node.kind == "device"
    if operator in ("-b", "-p", "-S"):
        return False
    if operator == "-s":
        return node.kind == "directory" or size_of(node.content) > 0
    if operator in ("-r", "-w", "-x"):
        return allows(node, {"-r": 4, "-w": 2, "-x": 1}[operator], who)
    if operator in ("-u", "-g", "-k"):
        return bool(node.mode & {"-u": 0o4000, "-g": 0o2000, "-k": 0o1000}[operator])
    if operator == "-O":
        return node.uid == who.uid
    if operator == "-G":
        return node.gid == who.gid
    raise Unsupported(f"test {operator}")


def _is_program(path: str) -> bool:
    directory, _, name = path.rpartition("/")
    return directory in ("/bin", "/usr/bin") and name in PROGRAMS


def compare_files(operator: str, left: str, right: str, fs: FileSystem, who: Credentials) -> bool:
    """-nt, -ot, -ef of absolute paths."""
    a, b = (fs.find(p, who) if p else None for p in (left, right))
    if operator == "-ef":
        return a is not None and a is b
    if operator == "-ot":
        a, b = b, a
    return a is not None and (b is None or a.mtime > b.mtime)


def compare_numbers(operator: str, left: int, right: int) -> bool:
    """Compares two integers by -eq, -ne, -lt, -le, -gt or -ge."""
    return {
        "-eq": left == right,
        "-ne": left != right,
        "-lt": left < right,
        "-le": left <= right,
        "-gt": left > right,
        "-ge": left >= right,
    }[operator]


def holds(shell: Shell, test: ast.Test) -> bool:
    """The value of a condition."""
    if isinstance(test, ast.Logical):
        if test.operator == "!":
            return not holds(shell, test.left)
        assert test.right is not None
        if test.operator == "&&":
            return holds(shell, test.left) and holds(shell, test.right)
        return holds(shell, test.left) or holds(shell, test.right)
    if isinstance(test, ast.Unary):
        return _unary(shell, test.operator, shell.expander.text(test.word))
    left = shell.expander.text(test.left)
    operator = test.operator
    if operator in ("=", "==", "!="):
        return pattern.matches(left, shell.expander.pattern(test.right)) == (operator != "!=")
    if operator == "=~":
        return _regex(shell, left, test.right)
    right = shell.expander.text(test.right)
    if operator in COMPARISONS:
        return compare_numbers(operator, shell.scope.evaluate(left), shell.scope.evaluate(right))
    if operator in ("<", ">"):
        return left < right if operator == "<" else left > right
    return compare_files(operator, shell.absolute(left), shell.absolute(right), shell.fs, shell.who)


def _unary(shell: Shell, operator: str, text: str) -> bool:
    if operator in ("-n", "-z"):
        return (text == "") == (operator == "-z")
    if operator == "-v":
        return is_set(shell, text)
    if operator == "-o":
        return option_is_on(shell, text)
    if operator == "-t":
        return False
    return file_test(operator, shell.absolute(text), shell.fs, shell.who)


def is_set(shell: Shell, text: str) -> bool:
    """-v name, -v name[index]."""
    name, bracket, rest = text.partition("[")
    variable = shell.scope.names.get(name)
    if not bracket:
        return shell.scope.get(name) is not None
    index = rest.removesuffix("]")
    if variable is None:
        return False
    if index in ("@", "*"):
        return bool(variable.elements())
    return variable.text(shell.scope.index(name, index)) is not None


OPTION_NAMES = {
    "allexport": "a",
    "errexit": "e",
    "noglob": "f",
    "noclobber": "C",
    "nounset": "u",
    "verbose": "v",
    "xtrace": "x",
    "noexec": "n",
    "pipefail": "pipefail",
}


def option_is_on(shell: Shell, name: str) -> bool:
    """Whether a shell option is on, as `test -o` asks; some always are."""
    return OPTION_NAMES.get(name, name) in shell.options or name in (
        "braceexpand",
        "hashall",
        "interactive-comments",
    )


def _regex(shell: Shell, text: str, word: ast.Word) -> bool:
    source = ""
    for part in word.parts:
        if isinstance(part, ast.Literal):
            source += part.text
        elif isinstance(part, ast.Quoted | ast.DoubleQuoted):
            source += _escaped(shell.expander.part_text(part))
        else:
            source += shell.expander.part_text(part)
    try:
        regex = compile_regex(source, "ere", "sed")
    except RegexError as error:
        raise ShellError(f"[[: invalid regular expression `{source}': {error}", status=2) from error
    match = regex.find(text)
    groups: dict = {}
    if match is not None:
        groups = {k: match.group(k) or "" for k in range(regex.groups + 1)}
    shell.scope.set_array("BASH_REMATCH", groups, False)
    return match is not None


def _escaped(text: str) -> str:
    return "".join("\\" + c if c in "\\.[]*^$+?(){}|" else c for c in text)
