"""Shells for agents: bash simulated in memory, and real bash in a sandbox.

Both run lines of shell in a small world of files with owners, modes and access control
lists, described by a tree (a dict, or a JSON file). The simulator works in this process
and touches nothing of the machine; the sandbox runs real programs in namespaces of its own.

The public names, each imported when it is first used:

  normalise_tree, load_tree, changed_paths: a world before and after, as data.
  Session, Image, Limits: the simulator; an Image is a tree read once, for many sessions.
  Pool, Sandbox, SandboxSession, SandboxLimits: real bash.
  Result: what a line printed, how it ended, what of it is not simulated, and its record.
  Record, Execution, Change: what ran in a line, and which modes, owners and lists it changed.
  permission_commands, first_permission_command: what a script would run that changes
    permissions, read from its syntax without running it.
  UserError: a mistake in a tree or an unusable machine, in one sentence.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shellworld.errors import UserError
    from shellworld.interpreter.record import Change, Execution, Record
    from shellworld.interpreter.result import Limits, Result
    from shellworld.interpreter.session import Session
    from shellworld.reading.permissions import first_permission_command, permission_commands
    from shellworld.sandbox.pool import Pool, Sandbox, SandboxLimits, SandboxSession
    from shellworld.world.image import Image
    from shellworld.world.tree import changed as changed_paths
    from shellworld.world.tree import load as load_tree
    from shellworld.world.tree import normalise as normalise_tree

__all__ = [
    "Change",
    "Execution",
    "Image",
    "Limits",
    "Pool",
    "Record",
    "Result",
    "Sandbox",
    "SandboxLimits",
    "SandboxSession",
    "Session",
    "UserError",
    "changed_paths",
    "first_permission_command",
    "load_tree",
    "normalise_tree",
    "permission_commands",
]
__version__ = "0.1.0"

# Public name -> the module that has it, and its name there.
_PUBLIC = {
    "Change": ("shellworld.interpreter.record", "Change"),
    "Execution": ("shellworld.interpreter.record", "Execution"),
    "Image": ("shellworld.world.image", "Image"),
    "Limits": ("shellworld.interpreter.result", "Limits"),
    "Pool": ("shellworld.sandbox.pool", "Pool"),
    "Record": ("shellworld.interpreter.record", "Record"),
    "Result": ("shellworld.interpreter.result", "Result"),
    "Sandbox": ("shellworld.sandbox.pool", "Sandbox"),
    "SandboxLimits": ("shellworld.sandbox.pool", "SandboxLimits"),
    "SandboxSession": ("shellworld.sandbox.pool", "SandboxSession"),
    "Session": ("shellworld.interpreter.session", "Session"),
    "UserError": ("shellworld.errors", "UserError"),
    "changed_paths": ("shellworld.world.tree", "changed"),
    "first_permission_command": ("shellworld.reading.permissions", "first_permission_command"),
    "load_tree": ("shellworld.world.tree", "load"),
    "normalise_tree": ("shellworld.world.tree", "normalise"),
    "permission_commands": ("shellworld.reading.permissions", "permission_commands"),
}


def __getattr__(name: str) -> Any:
    # Lazily: the sandbox's supervisor imports this package without any installed library,
    # and the simulator's parser needs tree_sitter.
    if name not in _PUBLIC:
        raise AttributeError(f"module 'shellworld' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
