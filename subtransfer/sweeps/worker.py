"""A worker of a sweep: one process that makes stage after stage.

It keeps what it has compiled and loaded.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
from pathlib import Path

from subtransfer.runtime import preemption
from subtransfer.runtime.errors import UserError


def main(argv: list[str]) -> int:
    """Serves as a worker: `python -m subtransfer.sweeps.worker SETTINGS`, as `command.py` says it.

    Args:
      argv: the program's name, and the settings as JSON.

    Returns:
      The exit status.
    """
    settings = json.loads(argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    preemption.listen(at_once=True)
    workdir = Path(settings["workdir"])
    channel = socket.socket(fileno=settings["channel"])
    try:
        # Only now, as these take seconds.
        import jax

        from subtransfer.store import artifacts
        from subtransfer.sweeps.building import StageBuilder
        from subtransfer.sweeps.service import serve

        jax.config.update("jax_compilation_cache_dir", str(workdir / ".compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
        builder = StageBuilder(settings["config"], settings["overrides"], workdir)
        preemption.listen()
        with artifacts.Store(workdir, settings["lease"], settings["stall"]) as store:
            serve(channel, store, builder)
    except preemption.Preempted as notice:
        print(str(notice) or preemption.sentence(), file=sys.stderr)
        return preemption.status()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
