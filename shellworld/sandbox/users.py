"""A user namespace with many users, none of whom is anybody outside."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shellworld.errors import UserError

_COUNT = 65535  # users 0..65534 inside
# of the outside numbers that root takes; far from those of people and of /etc/subuid
_FIRST = 0x70000000


@contextlib.contextmanager
def namespace() -> Iterator[tuple[int, dict[str, Any]]]:
    """Makes a user namespace: an open descriptor of it, and the identity that owns it.

    The identity is given as keywords of Popen. As root, the namespace belongs to a number outside
    that nobody has. Otherwise it takes the range that /etc/subuid and /etc/subgid give to the
    caller, through newuidmap.

    Raises:
      UserError: the machine allows no user namespaces, or gives the caller no range of users.
    """
    root = os.geteuid() == 0
    identity: dict[str, Any] = {"user": _FIRST, "group": _FIRST, "extra_groups": []} if root else {}
    ranges = [first_outside(kind) for kind in ("uid", "gid")]
    holder = subprocess.Popen(
        ["unshare", "--user", "sh", "-c", "echo ready; read -r end"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env={"PATH": os.environ.get("PATH", os.defpath)},
        **identity,
    )
    assert holder.stdin is not None and holder.stdout is not None and holder.stderr is not None
    try:
        if holder.stdout.readline() != b"ready\n":
            complaint = holder.stderr.read().decode(errors="replace").strip()
            raise UserError(
                "The sandbox needs user namespaces, which this machine does not allow "
                f"({complaint}): set "
                "user.max_user_namespaces above 0, or use the simulator (--backend=sim)."
            )
        try:
            for at, kind in enumerate(("uid", "gid")):
                if root:
                    Path(f"/proc/{holder.pid}/{kind}_map").write_text(f"0 {ranges[at]} {_COUNT}")
                else:
                    # The caller must be somebody inside, too: a number above all others.
                    own = [_COUNT, os.geteuid() if kind == "uid" else os.getegid(), 1]
                    words = [f"new{kind}map", holder.pid, 0, ranges[at], _COUNT, *own]
                    subprocess.run(
                        [str(word) for word in words], check=True, capture_output=True, text=True
                    )
        except (OSError, subprocess.CalledProcessError) as error:
            complaint = getattr(error, "stderr", None) or str(error)
            raise UserError(
                f"The sandbox cannot map users on this machine ({complaint.strip()})."
            ) from error
        descriptor = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor, identity
        finally:
            os.close(descriptor)
    finally:
        holder.kill()
        holder.wait()
        for stream in (holder.stdin, holder.stdout, holder.stderr):
            with contextlib.suppress(OSError):
                stream.close()


def first_outside(kind: str) -> int:
    """The number outside ("uid" or "gid") of the namespace's root, from which the others count."""
    if os.geteuid() == 0:
        return _FIRST
    name = pwd.getpwuid(os.geteuid()).pw_name
    remedy = (
        f"add the line {name}:100000:65536 to /etc/sub{kind} "
        "(without a range, a tree could have one owner only)"
    )
    if shutil.which(f"new{kind}map") is None:
        raise UserError(
            f"The sandbox needs new{kind}map to have more than one user: install the package "
            "uidmap."
        )
    try:
        lines = Path(f"/etc/sub{kind}").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        owner, _, numbers = line.partition(":")
        first, _, count = numbers.partition(":")
        if (
            owner in (name, str(os.geteuid()))
            and first.isdigit()
            and count.isdigit()
            and int(count) >= _COUNT
        ):
            return int(first)
    raise UserError(f"The sandbox needs a range of users for {name}: {remedy}.")
