"""What tree-sitter-bash makes of a text: where its commands stand."""

from __future__ import annotations

import tree_sitter
import tree_sitter_bash

_LANGUAGE = tree_sitter.Language(tree_sitter_bash.language())
_PARSER = tree_sitter.Parser(_LANGUAGE)
_COMMANDS = tree_sitter.Query(
    _LANGUAGE,
    "[(command name: (command_name) @name) (declaration_command) @name (unset_command) @name (test_command) @name]",
)


def command_places(text: str) -> set[int] | None:
    """Character offsets at which the grammar sees the name of a command; None if it cannot parse the text."""
    source = text.encode("utf-8", "surrogateescape")
    root = _PARSER.parse(source).root_node
    if root.has_error:
        return None
    nodes = tree_sitter.QueryCursor(_COMMANDS).captures(root).get("name", ())
    starts = {node.start_byte for node in nodes}
    if len(source) == len(text):
        return starts
    return {len(source[:start].decode("utf-8", "surrogateescape")) for start in starts}
