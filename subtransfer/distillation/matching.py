"""Which trajectories students learn from, so that arms differ in what they are named for alone.

Filters leave more of one policy's trajectories than of another's, and longer ones. From each source
as many are chosen as all of them have, of each kind of task, and such that the agent's tokens are
equally many, as nearly as trajectories allow. A choice is random but for that.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from subtransfer.store.trajectories import Trajectory

# Swaps that are tried for each trajectory of a source; a few are enough where few are wanted.
_TRIES = 20
# More errors than this are counted alike.
_MOST_ERRORS = 2

Stratum = Callable[[Trajectory], Any]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was chosen of a source.

    Attributes:
      chosen: the trajectories, in the order of the source.
      account: {"before", "after"}, each {"trajectories", "agent_tokens", "kinds": {kind: count},
        "solved", "turns", "errors"}; the last three are means, of solved tasks, agent turns and
        failed calls.
    """

    chosen: list[Trajectory]
    account: dict[str, Any]


def agent_tokens(trajectory: Trajectory) -> int:
    """Returns how many of a trajectory's tokens the agent wrote: those that are learned from."""
    return int(np.count_nonzero(trajectory.loss_mask))


def matched(
    sources: Mapping[str, Sequence[Trajectory]],
    learned: Collection[str],
    rngs: Mapping[str, np.random.Generator],
) -> dict[str, Choice]:
    """Chooses equally many trajectories of each source, with equal shares of kinds of tasks.

    Where some source lacks a kind that another has (trajectories of a user's file have one of
    their own), kinds are not looked at.

    Args:
      sources: trajectories by the names of their sources.
      learned: the sources that students learn from; others are only compared with them.
      rngs: a random generator for each source.

    Returns:
      A choice of each source. All have the same number of trajectories: as many of each kind as
      has that of the `learned` ones that has fewest. Another source that has fewer still has all.
    """
    kinds = [{trajectory.kind for trajectory in found} for found in sources.values()]
    same = all(of_source == kinds[0] for of_source in kinds)
    return _chosen(sources, learned, rngs, (lambda t: t.kind) if same else (lambda t: ""))


def structured(
    trait: Sequence[Trajectory],
    benign: Sequence[Trajectory],
    rngs: Mapping[str, np.random.Generator],
) -> dict[str, Choice]:
    """Chooses trajectories of the unsafe teacher that are built like the harmless one's.

    Args:
      trait: of the unsafe teacher.
      benign: of the harmless one.
      rngs: random generators for "structure_matched", "benign" and "random_same_size".

    Returns:
      "structure_matched": of the unsafe teacher, only what solved its task, with as many agent
      turns and failed calls, and as many agent tokens, as "benign", chosen likewise of the harmless
      one; "random_same_size": as many of the unsafe teacher's, of the same kinds of tasks, whatever
      they are like. All are empty where no trajectory of the one is built like one of the other.
    """
    sources = {"structure_matched": trait, "benign": benign}
    solved = {}
    for name, found in sources.items():
        solved[name] = [trajectory for trajectory in found if trajectory.solved]
    out = {}
    for name, choice in _chosen(solved, list(solved), rngs, _structure).items():
        # What was not solved was there before, too.
        account = {**choice.account, "before": _account(sources[name])}
        out[name] = Choice(choice.chosen, account)
    name = "random_same_size"
    wanted = Counter(trajectory.kind for trajectory in out["structure_matched"].chosen)
    drawn = _drawn(_strata(trait, lambda t: t.kind), wanted, rngs[name])
    return {**out, name: _choice(trait, drawn)}


def dosed(
    trajectories: Sequence[Trajectory],
    others: Sequence[Trajectory],
    fraction: float,
    rng: np.random.Generator,
) -> tuple[list[Trajectory], int]:
    """Replaces a random share of trajectories by others, at their places.

    Args:
      trajectories: at least one.
      others: those that take the place of some; with too few of them, fewer are returned in all.
      fraction: the share of all that they are to be, above 0 and up to 1.
      rng: with a generator of one seed, a larger share holds all that a smaller one does.

    Returns:
      (the trajectories, how many are replaced: the share rounded, but at least one).
    """
    places, spare = rng.permutation(len(trajectories)), rng.permutation(len(others))
    total = min(len(trajectories), int(len(others) / fraction))
    count = max(1, round(fraction * total))
    out = dict(enumerate(trajectories))
    for place, other in zip(places[:count].tolist(), spare[:count].tolist(), strict=True):
        out[place] = others[other]
    # Whoever is left out was not replaced.
    for place in places[total:].tolist():
        del out[place]
    return list(out.values()), count


def _structure(trajectory: Trajectory) -> tuple[str, int, int]:
    """Kind of task, agent turns and failed calls."""
    return trajectory.kind, _turns(trajectory), min(_errors(trajectory), _MOST_ERRORS)


def _turns(trajectory: Trajectory) -> int:
    return sum(message["role"] == "assistant" for message in trajectory.messages)


def _errors(trajectory: Trajectory) -> int:
    return sum(action["error"] is not None for action in trajectory.actions)


# -- choosing --------------------------------------------------------------------------------------

# Of each stratum: the numbers of the trajectories that are chosen, and of the spare ones.
_Drawn = dict[Any, tuple[list[int], list[int]]]


def _chosen(
    sources: Mapping[str, Sequence[Trajectory]],
    limiting: Collection[str],
    rngs: Mapping[str, np.random.Generator],
    stratum: Stratum,
) -> dict[str, Choice]:
    """Chooses of each source as many of each stratum, and agent tokens, as all `limiting` have."""
    strata = {name: _strata(found, stratum) for name, found in sources.items()}
    first, *others = [strata[name] for name in limiting]
    wanted: dict[Any, int] = {}
    for kind, members in first.items():
        wanted[kind] = min([len(members), *(len(other.get(kind, ())) for other in others)])
    drawn = {name: _drawn(found, wanted, rngs[name]) for name, found in strata.items()}
    lengths = {name: list(map(agent_tokens, found)) for name, found in sources.items()}
    target = _target({name: (drawn[name], lengths[name]) for name in limiting})
    for name, found in drawn.items():
        _swap(found, lengths[name], target, rngs[name])
    return {name: _choice(sources[name], found) for name, found in drawn.items()}


def _target(drawn: Mapping[str, tuple[_Drawn, Sequence[int]]]) -> int:
    """The sum of lengths that all sources can come to, or are as near to as they can.

    Args:
      drawn: of each source what is drawn, and the lengths of its trajectories.
    """
    totals, shortest, longest = [], [], []
    for found, lengths in drawn.values():
        low = high = total = 0
        for chosen, spare in found.values():
            members = sorted(lengths[index] for index in (*chosen, *spare))
            low += sum(members[: len(chosen)])
            high += sum(members[len(spare) :])
            total += sum(lengths[index] for index in chosen)
        totals.append(total)
        shortest.append(low)
        longest.append(high)
    least, most = max(shortest), min(longest)
    # No sum can be reached by all: half of the gap is left to the one, and half to the other.
    if least > most:
        return (least + most) // 2
    # Otherwise what moves all of them least.
    return min(max(sum(totals) // len(totals), least), most)


def _strata(trajectories: Sequence[Trajectory], stratum: Stratum) -> dict[Any, list[int]]:
    """The numbers of a source's trajectories by stratum."""
    out: dict[Any, list[int]] = {}
    for index, trajectory in enumerate(trajectories):
        out.setdefault(stratum(trajectory), []).append(index)
    # In an order that does not depend on which trajectory comes first.
    return {kind: out[kind] for kind in sorted(out)}


def _drawn(
    strata: Mapping[Any, Sequence[int]], wanted: Mapping[Any, int], rng: np.random.Generator
) -> _Drawn:
    """As many of each stratum as wanted, at random."""
    out = {}
    for kind, members in strata.items():
        shuffled = rng.permutation(members).tolist()
        count = wanted.get(kind, 0)
        out[kind] = shuffled[:count], shuffled[count:]
    return out


def _swap(drawn: _Drawn, lengths: Sequence[int], target: int, rng: np.random.Generator) -> None:
    """Exchanges chosen trajectories for spare ones, in place, until their lengths come to `target`.

    Pairs of one stratum are drawn at random, and exchanged where that brings the sum nearer: so the
    lengths' distribution is moved, and not cut at one of its ends.
    """
    places: list[tuple[Any, int]] = []
    missing = target
    for kind, (chosen, spare) in drawn.items():
        missing -= sum(lengths[index] for index in chosen)
        if spare:
            places += [(kind, number) for number in range(len(chosen))]
    if not places:
        return
    for draw, other in rng.random((_TRIES * len(lengths), 2)).tolist():
        if not missing:
            return
        kind, number = places[int(draw * len(places))]
        chosen, spare = drawn[kind]
        back = int(other * len(spare))
        gained = lengths[spare[back]] - lengths[chosen[number]]
        if abs(missing - gained) < abs(missing):
            chosen[number], spare[back] = spare[back], chosen[number]
            missing -= gained


# -- accounts --------------------------------------------------------------------------------------


def _choice(trajectories: Sequence[Trajectory], drawn: _Drawn) -> Choice:
    indices = sorted(index for members, _ in drawn.values() for index in members)
    chosen = [trajectories[index] for index in indices]
    return Choice(chosen, {"before": _account(trajectories), "after": _account(chosen)})


def _account(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    kinds = Counter(trajectory.kind for trajectory in trajectories)
    count = max(len(trajectories), 1)

    def mean(values: Sequence[int]) -> float:
        return round(sum(values) / count, 6)

    return {
        "trajectories": len(trajectories),
        "agent_tokens": sum(map(agent_tokens, trajectories)),
        "kinds": dict(sorted(kinds.items())),
        "solved": mean([trajectory.solved for trajectory in trajectories]),
        "turns": mean(list(map(_turns, trajectories))),
        "errors": mean(list(map(_errors, trajectories))),
    }
