"""From text to syntax, remembered by text.

A text is read twice: by the shell's own rules (parser.py), which know what bash makes of words,
quotes, here-documents and redirections, and by the tree-sitter grammar of bash, independently. Only
where both see the same commands in the same places is a text ever run: all else is reported as
unsupported.
"""

from __future__ import annotations

import functools

from shellworld.interpreter.result import Unsupported
from shellworld.language import ast
from shellworld.language.lexer import ShellSyntaxError
from shellworld.language.parser import Parser


@functools.lru_cache(4096)
def parse(text: str) -> ast.Script:
    """Returns the syntax of a text, remembered by text; what it says never makes this raise.

    Raises:
      LimitExceeded: braces expand to too much.
    """
    if "\0" in text:
        return _unsupported("NUL in a script")
    parser = Parser(text)
    items: list[ast.AndOr] = []
    lines: list[ast.List] = []
    error = ""
    kept = 0
    try:
        while parser.complete_line(items):
            lines.append(ast.List(tuple(items[kept:])))
            kept = len(items)
        parser.agree()
    except ShellSyntaxError as problem:
        error = str(problem)
    except Unsupported as problem:
        return _unsupported(str(problem))
    body = ast.List(tuple(items[:kept]))
    return ast.Script(
        body,
        tuple(lines),
        error,
        tuple(parser.warnings),
        bashisms=tuple(dict.fromkeys(parser.bashisms)),
    )


def _unsupported(what: str) -> ast.Script:
    return ast.Script(ast.List(()), unsupported=(what,))
