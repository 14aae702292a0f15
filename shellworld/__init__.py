"""A shell for agents: bash simulated in memory, with owners, modes and access lists, and real bash
in a sandbox.

Nothing here touches the machine's own files: the simulator works in memory, the sandbox in
namespaces of its own.
"""

__version__ = "0.1.0"
