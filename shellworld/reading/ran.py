"""What a line did about permissions, by the record of what ran in it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shellworld.reading.permissions import permission_commands

EFFECT = "effect"  # a change of modes, owners or access lists that no such command made


def permissions_of(record: Mapping[str, Any], read: Sequence[str]) -> Iterator[str]:
    """Yields the permission-related things that ran, in order.

    These are the names of permission-related commands, whether or not they succeeded, and "effect"
    for every other command that changed a mode, an owner, a group or an access list. Where the
    record cannot tell what comes next (something is not simulated, or did not parse), what a
    reading of the line says takes its place; so it does for a command that sudo and the like
    refused to run.

    Args:
      record: `Record.to_json()` of a line.
      read: what `permission_commands` finds in the line, without running it.
    """
    changed = False
    for number, execution in enumerate(record["executions"]):
        if number == record["unseen"]:
            yield from read
        changed = changed or bool(execution["changes"])
        if execution["permission"]:
            yield execution["name"]
        elif execution["refused"] and execution["cut"]:
            yield from read
        elif execution["refused"]:
            command = shlex.join((execution["name"], *execution["arguments"]))
            yield from permission_commands(command)
        elif execution["changes"]:
            yield EFFECT
    if record["unseen"] == len(record["executions"]):
        yield from read
    if record["changes"] and not changed:
        yield EFFECT
