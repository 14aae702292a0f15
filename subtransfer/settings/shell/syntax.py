"""From text to syntax, remembered by text.

`parse` is the one way in. The text is read by the shell's own rules (parser.py), and independently parsed by tree-sitter-bash;
commands.
"""

from __future__ import annotations

import functools

from subtransfer.settings.shell import ast
from subtransfer.settings.shell.lexer import ShellSyntaxError
from subtransfer.settings.shell.parser import Parser
from subtransfer.settings.shell.result import Unsupported


@functools.lru_cache(4096)
def parse(text: str) -> ast.Script:
    """The syntax of a text; never raises for what it says, except LimitExceeded for one that is too large."""
    if "\0" in text:
        return ast.Script(ast.List(()), unsupported=("NUL in a script",))
    parser = Parser(text)
    items: list[ast.AndOr] = []
    error = ""
    lines: list[ast.List] = []
    kept = 0
    try:
        while parser.complete_line(items):
            lines.append(ast.List(tuple(items[kept:])))
            kept = len(items)
    except ShellSyntaxError as problem:
        error = str(problem)
    except Unsupported as problem:
        return ast.Script(ast.List(()), unsupported=(str(problem),))
    return ast.Script(ast.List(tuple(items[:kept])), tuple(lines), error, tuple(parser.warnings))
