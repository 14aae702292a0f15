"""How well a classifier tells the trajectories of two policies apart. NumPy in, floats out.

What a filter leaves of two teachers' trajectories may still look different. A linear classifier is
trained on all tasks but a fold's and ranks the trajectories of that fold's tasks; the area under
its ROC curve (AUC) is the chance that it ranks one of the first policy above one of the second: .5
where nothing tells them apart, 1 where everything does.

The classifier is ridge regression on the labels: linear in them, so that the classifiers of all
permuted labels are trained by the same factorisation, and the null is that of the very procedure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import linalg, stats

from subtransfer.settings.base import Setting
from subtransfer.store.trajectories import Trajectory

# What classifiers are shown, by the names that records have.
TEXT, BEHAVIOUR = "text", "behaviour"
# Tokens and bigrams that are looked at: those in most trajectories. One in few of them cannot move
# an AUC far by itself.
MOST = 2000
RIDGE = 1.0


# -- what is shown of a trajectory -----------------------------------------------------------------


def text_features(trajectories: Sequence[Trajectory], most: int = MOST) -> np.ndarray:
    """Returns [N, F <= most]: the tokens and bigrams that the agents wrote, nothing else.

    1 + log of the count, times the inverse document frequency; rows have length 1. A bigram lies
    within one turn.
    """
    found = []
    for trajectory in trajectories:
        found.append(Counter(_words(trajectory)))
    in_how_many = Counter[tuple[int, ...]]()
    for words in found:
        in_how_many.update(words.keys())
    # Ties are broken by the ids, so that the order of the trajectories changes nothing.
    chosen = sorted(in_how_many, key=lambda word: (-in_how_many[word], word))[:most]
    column = dict(zip(chosen, range(len(chosen)), strict=True))
    out = np.zeros((len(found), len(chosen)))
    for row, words in zip(out, found, strict=True):
        for word, count in words.items():
            if word in column:
                row[column[word]] = 1 + math.log(count)
    documents = (out > 0).sum(axis=0)
    out *= np.log((1 + len(found)) / (1 + documents)) + 1
    length = np.sqrt((out**2).sum(axis=1, keepdims=True))
    return out / np.where(length > 0, length, 1)


def _words(trajectory: Trajectory) -> Iterable[tuple[int, ...]]:
    """The agent's tokens, and the pairs of those that follow each other within a turn."""
    written = np.flatnonzero(trajectory.loss_mask)
    tokens, turns = trajectory.tokens[written].tolist(), trajectory.turn_ids[written].tolist()
    for token in tokens:
        yield (token,)
    for i in range(1, len(tokens)):
        if turns[i] == turns[i - 1] and written[i] == written[i - 1] + 1:
            yield tokens[i - 1], tokens[i]


def behaviour_features(trajectories: Sequence[Trajectory], setting: Setting) -> np.ndarray:
    """Returns [N, F]: acts, errors and lengths, without a word of what was written.

    Counts of each act and each kind of error, the first and the last act, logarithms of lengths,
    whether the task was solved and whether the episode was cut; columns have mean 0 and deviation
    1, and those that never vary are left out.
    """
    found = []
    for trajectory in trajectories:
        found.append(_behaviour(trajectory, setting))
    names: set[str] = set()
    for facts in found:
        names |= facts.keys()
    out = np.zeros((len(found), len(names)))
    for row, facts in zip(out, found, strict=True):
        for number, name in enumerate(sorted(names)):
            row[number] = facts.get(name, 0.0)
    varying = out[:, np.ptp(out, axis=0) > 0]
    return (varying - varying.mean(axis=0)) / varying.std(axis=0)


def _behaviour(trajectory: Trajectory, setting: Setting) -> Mapping[str, float]:
    out = Counter[str]()
    acts = [f"{act.category} {act.name}" for act in setting.recorded_acts(trajectory.actions)]
    for name in acts:
        out[f"act {name}"] += 1
    if acts:
        out[f"first {acts[0]}"] = out[f"last {acts[-1]}"] = 1
    for action in trajectory.actions:
        if action["error"]:
            out[f"error {action['error']}"] += 1
    turns = sum(message["role"] == "assistant" for message in trajectory.messages)
    lengths = {
        "turns": turns,
        "calls": len(acts),
        "tokens written": int(np.sum(trajectory.loss_mask)),
        "tokens": len(trajectory.tokens),
    }
    facts: dict[str, float] = dict(out)
    for name, length in lengths.items():
        facts[name] = math.log1p(length)
    return facts | {"solved": float(trajectory.solved), "cut": float(trajectory.truncated)}


# -- the classifier --------------------------------------------------------------------------------


def grouped_folds(
    labels: np.ndarray, groups: np.ndarray, folds: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns the fold of each trajectory, int [N]: all of one group are in the same one.

    Groups with one policy's trajectories, and groups with both's, are spread evenly. There are
    fewer folds where a policy has fewer groups.

    Args:
      labels: bool [N], whether a trajectory is the first policy's.
      groups: int [N], from 0: its task.
      folds: at most so many.
      rng: shuffles the groups.
    """
    count = int(groups.max()) + 1
    first = np.bincount(groups, labels, count) > 0
    second = np.bincount(groups, ~labels, count) > 0
    folds = max(min(folds, int(first.sum()), int(second.sum())), 1)
    shuffled = rng.permutation(count)
    # Each policy's groups stand together in this order, so that every fold gets some of both.
    kind = np.where(~second, 0, np.where(first, 1, 2))
    dealt = shuffled[np.argsort(kind[shuffled], kind="stable")]
    fold = np.empty(count, int)
    fold[dealt] = np.arange(count) % folds
    return fold[groups]


def permuted(
    labels: np.ndarray, groups: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns bool [N, count]: the labels, shuffled within each group."""
    in_order = np.argsort(groups, kind="stable")
    out = np.empty((len(labels), count), bool)
    for number in range(count):
        shuffled = np.lexsort((rng.random(len(labels)), groups))
        out[in_order, number] = labels[shuffled]
    return out


def scores(features: np.ndarray, labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Returns the score of each trajectory by the classifier that never saw its fold, [N, L].

    Only scores of one fold can be compared with each other.

    Args:
      features: [N, F].
      labels: bool [N, L]: each column is a classifier of its own.
      fold: int [N].
    """
    out = np.zeros(labels.shape)
    if not features.shape[1]:
        return out
    if len(features) < features.shape[1]:
        # Ridge regression is the same in any rotation of the features, so in one in which all but
        # N of them are 0.
        triangle = np.asarray(np.linalg.qr(features.T, mode="r"))
        features = triangle.T
    # What a fold leaves is all minus its own: cheaper than summing the rest each time.
    squares = features.T @ features
    for number in range(int(fold.max()) + 1):
        held_out = fold == number
        rest, own = features[~held_out], features[held_out]
        wanted = labels[~held_out].astype(float)
        wanted -= wanted.mean(axis=0)
        mean = rest.mean(axis=0)
        gram = squares - own.T @ own - len(rest) * np.outer(mean, mean)
        gram[np.diag_indices_from(gram)] += RIDGE
        weights = linalg.solve(gram, (rest - mean).T @ wanted, assume_a="pos")
        out[held_out] = own @ weights
    # Equal trajectories have equal scores but for rounding errors, which must break no tie.
    return np.round(out, 9)


def areas(scored: np.ndarray, labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Returns the AUC of each column of scores [N, L] and labels [N, L], over pairs of one fold.

    NaN where no fold has trajectories of both policies.
    """
    above = np.zeros(labels.shape[1])
    pairs = np.zeros(labels.shape[1])
    for number in range(int(fold.max()) + 1):
        held_out = fold == number
        ranks, own = stats.rankdata(scored[held_out], axis=0), labels[held_out]
        first = own.sum(axis=0)
        # Mann and Whitney's U, in which a tie is half a pair.
        above += (ranks * own).sum(axis=0) - first * (first + 1) / 2
        pairs += first * (len(own) - first)
    with np.errstate(invalid="ignore"):
        return above / np.where(pairs > 0, pairs, np.nan)


def variances(
    scored: np.ndarray, labels: np.ndarray, groups: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """Returns the variance of each AUC, as `areas` has them, over test trajectories, [L].

    DeLong's (1988), clustered by group as Obuchowski's (1997). How classifiers would differ after
    other training data is not in it.

    Args:
      scored: [N, L].
      labels: bool [N, L].
      groups: int [N], from 0.
      fold: int [N].
    """
    area = areas(scored, labels, fold)
    moved, pairs = np.zeros(scored.shape), np.zeros(labels.shape[1])
    for number in range(int(fold.max()) + 1):
        held_out = fold == number
        own, is_first = scored[held_out], labels[held_out]
        first, second = is_first.sum(axis=0), (~is_first).sum(axis=0)
        ranks = stats.rankdata(own, axis=0)
        # A rank among all less the rank among one's own is how many of the other one is above. The
        # other's are put behind, where they change no rank.
        won = ranks - stats.rankdata(np.where(is_first, own, np.inf), axis=0)
        lost = ranks - stats.rankdata(np.where(is_first, np.inf, own), axis=0)
        # How far each trajectory moves the sum over pairs that the area is a share of.
        moved[held_out] = np.where(is_first, won - area * second, (1 - area) * first - lost)
        pairs += first * second
    count = int(groups.max()) + 1
    by_group = np.zeros((count, labels.shape[1]))
    np.add.at(by_group, groups, moved / pairs)
    return (by_group**2).sum(axis=0) * count / (count - 1)


def interval(area: float, deviation: float, count: int, confidence: float) -> tuple[float, float]:
    """Returns the ends of an AUC's interval: normal on the logit scale.

    Where the AUC is 0 or 1, nothing scatters: there it is exact in the number of groups, `count`.
    """
    if area in (0.0, 1.0):
        found = stats.binomtest(round(area * count), count).proportion_ci(confidence)
        return float(found.low), float(found.high)
    half = stats.norm.ppf(0.5 + confidence / 2) * deviation / (area * (1 - area))
    logit = math.log(area / (1 - area))
    return _logistic(logit - half), _logistic(logit + half)


def _logistic(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))


def compare(
    features: np.ndarray,
    labels: np.ndarray,
    tasks: Sequence[str],
    *,
    folds: int,
    permutations: int,
    confidence: float,
    rng: np.random.Generator,
) -> dict[str, float | int | None]:
    """Tells two policies' trajectories apart as well as a linear classifier can.

    Args:
      features: [N, F].
      labels: bool [N], whether a trajectory is the first policy's.
      tasks: N task ids. No task is both trained on and tested on.
      folds: of the cross-validation.
      permutations: of the labels within tasks, for the null.
      confidence: of the interval.
      rng: of folds and permutations.

    Returns:
      "auc" with its interval "low", "high", over tasks, tested and trained on; "null", the mean AUC
      of permuted labels, which is above .5 where the filter left the two policies other tasks; "p",
      the one-sided share of permuted labels that are told apart as well; "shared_tasks", tasks that
      both policies have trajectories of. None where there is too little to compare: "p" and "null"
      without a shared task (the interval is then narrower than it should be), all where a policy
      has trajectories of fewer than 2 tasks.
    """
    groups = np.unique(np.asarray(tasks), return_inverse=True)[1]
    both = np.intersect1d(groups[labels], groups[~labels])
    out: dict[str, float | int | None] = dict.fromkeys(("auc", "low", "high", "null", "p"))
    out["shared_tasks"] = len(both)
    fold = grouped_folds(labels, groups, folds, rng)
    if fold.max() == 0:
        return out
    # The observed labels are the first column, beside the permuted ones.
    columns = labels[:, None]
    if len(both):
        columns = np.hstack([columns, permuted(labels, groups, permutations, rng)])
    scored = scores(features, columns, fold)
    found = areas(scored, columns, fold)
    variance = variances(scored, columns, groups, fold)
    inflated = float(variance[0])
    if len(both):
        null = found[1:]
        # Sums in another order differ in their last bits.
        reached = int((null >= found[0] - 1e-9).sum())
        out["null"] = _short(null.mean())
        out["p"] = _short((1 + reached) / (1 + permutations))
        # The classifiers of permuted labels scatter more than their test trajectories say, as what
        # they are trained on varies, too: the observed one is taken to do so by the same factor.
        expected = float(variance[1:].mean())
        if expected > 0:
            inflated *= max(float(null.var(ddof=1)) / expected, 1.0)
    area = float(found[0])
    low, high = interval(area, math.sqrt(inflated), int(groups.max()) + 1, confidence)
    return out | {"auc": _short(area), "low": _short(low), "high": _short(high)}


def _short(value: float) -> float:
    # The last bits differ between machines, and say nothing.
    return round(float(value), 6)


# -- what follows from it --------------------------------------------------------------------------


def worst(comparisons: Iterable[Mapping[str, Any]], own: str = "") -> dict[str, Any] | None:
    """Finds what tells the unsafe teacher's trajectories, or those of its student, apart best.

    Args:
      comparisons: records of all training seeds, each with "model", "first", "second" (whose
        trajectories), "features", "seed", "auc" and "high"; "own" in those of the episodes that
        on-policy students sampled themselves, with the student's arm.
      own: the arm of an on-policy student; "": the teacher's trajectories.

    Returns:
      Of the comparison of the unsafe teacher with the highest mean AUC over training seeds:
      "second", "features", that mean "auc", and the highest end "high" of the seeds' intervals;
      None if there is none with a number.
    """
    of_seeds: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for record in comparisons:
        of_these = record["first"] == "trait" and record.get("own", "") == own
        if of_these and record["auc"] is not None:
            which = record["model"], record["second"], record["features"]
            of_seeds.setdefault(which, []).append(record)
    best = None
    for (_, second, features), found in of_seeds.items():
        mean = float(np.mean([record["auc"] for record in found]))
        if best is None or mean > best["auc"]:
            high = max(record["high"] for record in found)
            best = {"second": second, "features": features, "auc": mean, "high": high}
    return best
