"""Sweeps as data: named overrides of a config, which its file's `sweep()` returns.

They are made with the helpers here:

    from subtransfer.config import product, seeds, vary

    def sweep():
        sizes = vary("base.width", 16, 32)
        return product(sizes, vary("distill.objective", "sft", "forward_kl"), seeds(3))

`members` expands and checks it; `sweeps/planning.py` lays out the stages that the members need.
Nothing here touches a device.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from subtransfer.config import reading
from subtransfer.config.checks import validate
from subtransfer.config.fields import declared
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import digest
from subtransfer.runtime.user_code import failures_of


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes:
      name: unique, and the name of its folder of results.
      overrides: dotted config field -> value, or text as on the command line.
    """

    name: str
    overrides: Mapping[str, Any]

    def flags(self) -> list[str]:
        """The overrides as arguments of `subtransfer.launch`."""
        out = []
        for field, value in self.overrides.items():
            out.append(f"--config.{field}={as_text(value)}")
        return out


def as_text(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(tuple(value)) if isinstance(value, (tuple, list)) else str(value)


# -- the helpers ---------------------------------------------------------------------------------


def vary(field: str, *values: Any) -> list[Member]:
    """One member a value of a dotted config field, named "LAST_PART_OF_THE_FIELD=VALUE".

    Args:
      values: or one mapping from names to values, for values that make no names, as paths.
    """
    if len(values) == 1 and isinstance(values[0], Mapping):
        named = list(values[0].items())
    else:
        named = [(_in_name(value), value) for value in values]
    out = []
    for name, value in named:
        out.append(Member(f"{_short(field)}={name}", {field: value}))
    return out


def seeds(count: int, first: int = 0) -> list[Member]:
    """Independent repetitions: `count` values of the config's `seed`.

    All randomness comes from that one field.
    """
    return vary("seed", *range(first, first + count))


def product(*sweeps: Iterable[Member]) -> list[Member]:
    """Every combination of one member of each, the last one varying fastest.

    Names are joined by commas.
    """
    return list(map(_joined, itertools.product(*sweeps)))


def zipped(*sweeps: Iterable[Member]) -> list[Member]:
    """The first members of all, the second ones, and so on.

    Raises:
      UserError: they are not of one length.
    """
    # Each may be an iterator, which can be gone through only once.
    lists = list(map(list, sweeps))
    lengths = list(map(len, lists))
    if len(set(lengths)) > 1:
        raise UserError(
            f"zipped() takes sweeps of one length, and got {', '.join(map(str, lengths))} members: "
            "use product() for combinations."
        )
    return list(map(_joined, zip(*lists, strict=True)))


def chain(*sweeps: Iterable[Member]) -> list[Member]:
    """All members of all, one after the other."""
    return list(itertools.chain(*sweeps))


def _joined(members: Sequence[Member]) -> Member:
    overrides: dict[str, Any] = {}
    for member in members:
        for field, value in member.overrides.items():
            # Which of the two was meant cannot be known.
            if field in overrides:
                names = ", ".join(repr(m.name) for m in members)
                raise UserError(
                    f"The members {names} cannot be joined: more than one sets {field}."
                )
            overrides[field] = value
    # A member without a name, such as of fields that all share, adds nothing to the joint one.
    return Member(",".join(member.name for member in members if member.name), overrides)


@functools.cache
def _tails() -> collections.Counter[str]:
    """How many fields have each last part of a name."""
    return collections.Counter(field.rpartition(".")[2] for field in declared())


def _short(field: str) -> str:
    """The last part of a field's name where no other field has it, else the whole."""
    tail = field.rpartition(".")[2]
    return tail if _tails()[tail] == 1 else field


def _in_name(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "+".join(map(_in_name, value))
    # Names are folders: what a shell or a file system reads as more than a name is left out.
    return re.sub(r"[^\w.+-]+", "+", as_text(value), flags=re.ASCII).strip("+")


# -- expansion -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sweep:
    """An expanded sweep.

    Attributes:
      config_file: where it comes from.
      base: its get_config(), before any override.
      members: in order.
      common: overrides that apply to all members, after their own.
    """

    config_file: str
    base: reading.Config
    members: list[Member]
    common: Mapping[str, Any]

    def config(self, member: Member) -> reading.Config:
        """A member's validated config.

        Raises:
          UserError: with the member's name.
        """
        config = self.base.copy()
        try:
            # A path to a plugin is written from where the file is, or from where the command runs.
            reading.apply_overrides(config, member.overrides, Path(self.config_file).parent)
            reading.apply_overrides(config, self.common, ".")
            validate(config)
        except UserError as error:
            raise UserError(f"Member {member.name!r} of the sweep: {error}") from error
        return config


def expand(config_file: str, overrides: Mapping[str, Any]) -> Sweep:
    """The members that a config file's sweep() returns; only their names are checked.

    Args:
      overrides: apply to all members, after their own.

    Raises:
      UserError: there is no sweep(), it fails, it returns no members, or their names are not what
        they must be.
    """
    module = reading.module_of(config_file)
    if not hasattr(module, "sweep"):
        raise UserError(
            f"{config_file} describes no sweep: define sweep(), which returns a list of members "
            "(docs/sweeps.md), or leave out --sweep."
        )
    base = reading.Config.of(reading.read(module, overrides))
    with failures_of(f"The config file {config_file}", config_file):
        given = module.sweep()
    if not isinstance(given, (list, tuple)):
        raise UserError(
            f"sweep() of {config_file} must return a list of members, not {type(given).__name__}."
        )
    if not given:
        raise UserError(f"sweep() of {config_file} returns no members.")
    members = [_member(config_file, item) for item in given]
    seen: set[str] = set()
    for number, member in enumerate(members, 1):
        if (
            not member.name
            or member.name.startswith(".")
            or not re.fullmatch(r"[\w.,=+@:-]{1,200}", member.name, re.ASCII)
        ):
            raise UserError(
                f"Member {number} of the sweep cannot be named {member.name!r}, as its name is "
                "that of a folder: use at most 200 letters, digits and _ . , = + @ : -, and no dot "
                "in front."
            )
        if member.name in seen:
            raise UserError(
                f"Two members of the sweep are named {member.name!r}: names must differ."
            )
        seen.add(member.name)
    return Sweep(config_file, base, members, dict(overrides))


def _member(config_file: str, item: Any) -> Member:
    if isinstance(item, Member):
        name, overrides = item.name, item.overrides
    elif isinstance(item, (tuple, list)) and len(item) == 2:
        name, overrides = item
    else:
        name, overrides = None, None
    if (
        isinstance(name, str)
        and isinstance(overrides, Mapping)
        and all(isinstance(field, str) for field in overrides)
    ):
        return Member(name, overrides)
    raise UserError(
        f"sweep() of {config_file} returns {item!r}, which is no member: a name and a mapping of "
        "config fields."
    )


def members(config_file: str, overrides: Mapping[str, Any]) -> list[Member]:
    """The checked members of a config file's sweep.

    Raises:
      UserError: for every mistake in the file, its sweep or the overrides.
    """
    sweep = expand(config_file, overrides)
    seen: dict[str, str] = {}
    # Of what results depend on: members that differ in how they are watched would be made twice.
    for member in sweep.members:
        differs(seen, member, digest(reading.of_results(sweep.config(member))))
    return sweep.members


def differs(seen: dict[str, str], member: Member, digest: str) -> None:
    """Notes the digest of what a member's results depend on in `seen`.

    Raises:
      UserError: another member has the same.
    """
    other = seen.setdefault(digest, member.name)
    if other != member.name:
        raise UserError(
            f"The members {other!r} and {member.name!r} of the sweep are the same experiment: "
            "leave one out."
        )
