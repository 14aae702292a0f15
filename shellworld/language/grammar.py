"""What tree-sitter-bash makes of a text: where its commands stand."""

from __future__ import annotations

import re

import tree_sitter
import tree_sitter_bash

_LANGUAGE = tree_sitter.Language(tree_sitter_bash.language())
_PARSER = tree_sitter.Parser(_LANGUAGE)
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_COMMANDS = tree_sitter.Query(
    _LANGUAGE,
    "[(command name: (command_name) @name) (declaration_command) @name (unset_command) @name "
    "(test_command) @name]",
)


def root(text: str) -> tree_sitter.Node:
    """The syntax tree of a text, whose byte offsets are the text's character offsets.

    The grammar's scanner asks C's `isdigit` and the like about characters of any number, which
    reads outside their table and can end the process; so it gets "%" for each that is not ASCII,
    which like them is part of a word and of no name.
    """
    return _PARSER.parse(_NOT_ASCII.sub("%", text).encode("ascii")).root_node


def command_places(text: str) -> set[int] | None:
    """Returns the character offsets of the names of commands; None if the grammar cannot parse."""
    tree = root(text)
    if tree.has_error:
        return None
    return {
        node.start_byte
        for node in tree_sitter.QueryCursor(_COMMANDS).captures(tree).get("name", ())
    }
