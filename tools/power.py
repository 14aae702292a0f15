r"""Says how likely a crossed experiment is to find an effect, and which effect it would find.

    python -m tools.power [RUN] [--bases=3,5,8] [--seeds=1,3] [--tasks=256] [--objectives=2]
        [--rate=0.05] [--pair_icc=0.1] [--icc=0.15] [--share=1] [--effect=0.1,0.2,0.5]
        [--margin=0.1] [--confidence=0.95] [--reps=400] [--out=power.md]

Simulated crossings (tools/crossings.py) are judged by the functions and the rule that judge a run:
`crossed.effect`, Holm's adjustment over --objectives (as the first of so many), `effects.verdict`.
RUN is the workdir of a finished crossed run (results.json, results.jsonl): its first objective's
rate, correlations and share of bases with the effect are taken from there, where no option says
otherwise.

Prints a table in markdown, a line a design: how often the verdict is "transfer" without an effect
and at each effect, "no transfer" without an effect, and at one as large as the margin; and the
least effect that is found in 80% of experiments. --out writes the same into a file.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from subtransfer.analysis import crossed, effects, statistics
from subtransfer.analysis.outcomes import by_arm
from subtransfer.report import files
from subtransfer.runtime.errors import UserError, exit_status
from subtransfer.store.files import atomic_write, user_path
from subtransfer.studies import runs
from tools.crossings import Crossing

_POWER = 0.8  # at the least effect that counts as found
# Effects between which the least one is sought, by a line.
_LADDER = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
_HIGHEST = 0.99  # the rate of bases with an effect ends here
_AT_ONCE = 6400  # pairs of bases that are judged at once, which bounds memory


@dataclasses.dataclass(frozen=True)
class Variances:
    """What decides how well an effect is seen, beside the design.

    Attributes:
      rate: where teacher and student have two bases.
      pair_icc: the share of an outcome's variance that belongs to the pair of bases.
      icc: the share of the rest that belongs to the training.
      share: of bases that have the effect; in these it is the mean effect / share.
    """

    rate: float = 0.05
    pair_icc: float = 0.1
    icc: float = 0.15
    share: float = 1.0


@dataclasses.dataclass(frozen=True)
class Rule:
    """How experiments are judged.

    Attributes:
      confidence: of the run.
      margin: of equivalence.
      objectives: in the family of p-values.
    """

    confidence: float = 0.95
    margin: float = 0.1
    objectives: int = 2


def observed(outcomes: np.ndarray) -> Variances:
    """Estimates the variances of a crossing's outcomes [K, K, S, T], by moments.

    The share of bases with the effect is the one whose mixture of effects scatters as the bases do.
    """
    bases, _, seeds, tasks = outcomes.shape
    rates = outcomes.mean(-1)  # [K, K, S]
    episodes = rates * (1 - rates) / max(tasks - 1, 1)
    pairs = rates.mean(-1)
    possible = pairs * (1 - pairs)
    icc = 0.0
    if seeds > 1 and possible.sum() > 0:
        within = rates.var(-1, ddof=1) - episodes.mean(-1)
        icc = float(np.clip(within.sum() / possible.sum(), 0, 0.9))
    apart = ~np.eye(bases, dtype=bool)
    other = float(pairs[apart].mean())
    between = pairs[apart].var(ddof=1) - icc * possible[apart].mean() / seeds
    between -= episodes[apart].mean() / seeds
    pair_icc = float(np.clip(between / max(other * (1 - other), 1e-9), 0, 0.9))
    found = crossed.effect(outcomes)
    # What pairs and trainings scatter is no difference of the effect.
    same = float(found.same.value)
    noise = (pair_icc + (1 - pair_icc) * icc / seeds) * same * (1 - same)
    scatter = max(float(np.diagonal(pairs).var(ddof=1)) - noise, 0.0)
    effect = max(float(found.interaction.value), 0.0)
    share = effect**2 / (effect**2 + scatter) if effect else 1.0
    rate = float(np.clip(other, 1 / (2 * tasks), 0.98))
    return Variances(rate, pair_icc, icc, share)


def of_run(workdir: Path) -> Variances:
    """Reads the variances of a finished run's first objective.

    Raises:
      UserError: there is no finished run, or it has no complete crossing of 3 bases or more.
    """
    for folder in runs.folders(workdir):
        found = files.read(folder)
        crossings = effects.crossings(found.bundle["arms"])
        if crossings and len(crossings[0].bases) >= crossed.LEAST_BASES:
            return observed(crossings[0].outcomes(by_arm(found.episodes)))
    raise UserError(
        f"{workdir} has no complete crossing of {crossed.LEAST_BASES} bases or more: name a run "
        "with num_bases, or give --rate, --pair_icc, --icc and --share."
    )


def verdicts(world: Crossing, rule: Rule, reps: int) -> dict[str, float]:
    """Judges simulated experiments of a kind; returns the share of each verdict."""
    found = []
    at_once = max(20, _AT_ONCE // world.bases**2)
    for number, begin in enumerate(range(0, reps, at_once)):
        outcomes = world.simulate(min(at_once, reps - begin), number)["crossing"]
        judged = crossed.effect(outcomes, rule.confidence, rule.margin)
        values, met = judged.interaction, judged.p_met
        # Other objectives may show nothing: the first of Holm's steps is the hardest.
        others = [1.0] * (rule.objectives - 1)
        for value, p, p_met in zip(values.value, values.p, met, strict=True):
            p_holm = statistics.holm([p, *others])[0]
            known = None if np.isnan(p_met) else float(p_met)
            p_larger = effects.larger([known, *others], [world.bases] * rule.objectives)[0]
            found.append(effects.verdict(float(value), p_holm, p_larger, rule.confidence))
    return {verdict: found.count(verdict) / len(found) for verdict in effects.VERDICTS}


def least_effect(powers: dict[float, float]) -> float | None:
    """The least effect with enough power, by a line between effects; None: none has it."""
    before = (0.0, 0.0)
    for effect in sorted(powers):
        power = powers[effect]
        if power >= _POWER:
            step = (_POWER - before[1]) / (power - before[1])
            return before[0] + step * (effect - before[0])
        before = (effect, power)
    return None


def lines(
    designs: Sequence[tuple[int, int, int]],
    variances: Variances,
    rule: Rule,
    shown: Sequence[float],
    reps: int,
) -> Iterator[list[str]]:
    """Yields a heading and a line of cells for each (bases, seeds, tasks), shares in per cent."""
    heading = ["bases", "seeds", "tasks", "students", "false transfer"]
    heading += [f"transfer at {effect:g}" for effect in shown]
    heading += ["no transfer at 0", f"false, at {rule.margin:g}", "least effect"]
    yield heading
    for design in designs:
        judge = functools.partial(_at, design, variances, rule, reps)
        none, margin = judge(0.0), judge(rule.margin)
        ladder = [effect for effect in _LADDER if variances.rate + effect < _HIGHEST]
        powers = {effect: judge(effect)[effects.TRANSFER] for effect in {*ladder, *shown}}
        least = least_effect(powers)
        bases, seeds, tasks = design
        cells = [str(bases), str(seeds), str(tasks), str(bases**2 * seeds)]
        cells.append(_percent(none[effects.TRANSFER]))
        cells += [_percent(powers[effect]) for effect in shown]
        cells += [_percent(none[effects.NO_TRANSFER]), _percent(margin[effects.NO_TRANSFER])]
        cells.append("none" if least is None else f"{least:.2f}")
        yield cells


def _at(
    design: tuple[int, int, int], variances: Variances, rule: Rule, reps: int, effect: float
) -> dict[str, float]:
    """The share of each verdict at an effect."""
    bases, seeds, tasks = design
    # Where few bases had all of a large effect, their rate would be above 1.
    share = min(max(variances.share, effect / (_HIGHEST - variances.rate)), 1.0)
    world = Crossing(
        bases, seeds, variances.icc, variances.rate, effect, share, tasks, variances.pair_icc
    )
    return verdicts(world, rule, reps)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _list(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def values(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a user's mistake."""
    summary, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", type=user_path, metavar="RUN", help="a crossed run")
    parser.add_argument("--bases", type=_list(int), default=[3, 5, 8])
    parser.add_argument("--seeds", type=_list(int), default=[1, 3])
    parser.add_argument("--tasks", type=_list(int), default=[256])
    for field in dataclasses.fields(Variances):
        default = f"default: RUN's, or {field.default:g}"
        parser.add_argument(f"--{field.name}", type=float, help=default)
    parser.add_argument("--effect", type=_list(float), default=[0.1, 0.2, 0.5], help="shown")
    parser.add_argument("--objectives", type=int, default=2, help="in the family of p-values")
    parser.add_argument("--margin", type=float, default=0.1, help="of equivalence")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--reps", type=int, default=400, help="experiments of each kind")
    parser.add_argument("--out", type=Path, help="a file for the same")
    options = parser.parse_args(arguments)

    def run() -> None:
        variances = of_run(options.run) if options.run else Variances()
        for field in dataclasses.fields(Variances):
            given = getattr(options, field.name)
            if given is not None:
                variances = dataclasses.replace(variances, **{field.name: given})
        _check(variances, options)
        rule = Rule(options.confidence, options.margin, options.objectives)
        designs = []
        for bases in options.bases:
            for seeds in options.seeds:
                designs += [(bases, seeds, tasks) for tasks in options.tasks]
        printed = [
            f"Rate {variances.rate:.3f}, correlation of pairs {variances.pair_icc:.3f}, of "
            f"trainings {variances.icc:.3f}; effects in {100 * variances.share:.0f}% of bases; "
            f"margin {rule.margin:g}, confidence {rule.confidence:g}, {rule.objectives} "
            f"objectives, {options.reps} experiments a kind.",
            "",
        ]
        print("\n".join(printed))
        for number, cells in enumerate(
            lines(designs, variances, rule, options.effect, options.reps)
        ):
            printed.append("| " + " | ".join(cells) + " |")
            print(printed[-1], flush=True)
            if number == 0:
                printed.append("| " + " | ".join(["---"] * len(cells)) + " |")
                print(printed[-1])
        if options.out:
            atomic_write(options.out, "\n".join(printed) + "\n")

    return exit_status(run)


def _check(variances: Variances, options: argparse.Namespace) -> None:
    for name, value, low, high in (
        ("rate", variances.rate, 0.001, 0.98),
        ("pair_icc", variances.pair_icc, 0.0, 0.95),
        ("icc", variances.icc, 0.0, 0.95),
        ("share", variances.share, 0.01, 1.0),
        ("confidence", options.confidence, 0.5, 0.999),
        ("margin", options.margin, 0.001, 0.9),
    ):
        if not low <= value <= high:
            raise UserError(f"--{name}={value:g} is not from {low:g} to {high:g}.")
    for effect in options.effect:
        if not 0 < effect < _HIGHEST - variances.rate:
            raise UserError(f"--effect={effect:g} is not from 0 to {_HIGHEST - variances.rate:g}.")
    if min(*options.bases, 2) < 2 or min(*options.seeds, *options.tasks, options.reps) < 1:
        raise UserError("--bases are at least 2; --seeds, --tasks and --reps at least 1.")


if __name__ == "__main__":
    sys.exit(main())
