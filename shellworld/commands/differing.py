"""Finds which lines of two texts differ, by the algorithm of GNU diff.

So the same of many possible answers is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

_FAR = 1 << 60


def changed_lines(
    left: Sequence[str], right: Sequence[str], tick: Callable[[int], None], minimal: bool = False
) -> tuple[list[bool], list[bool]]:
    """For each line of both sides, whether it is not part of what they share.

    Args:
      left, right: lines, as they are to be compared.
      tick: counts work.
      minimal: looks at every line; else those that hardly help are left out first.
    """
    if minimal:
        marks = [False] * len(left), [False] * len(right)
    else:
        marks = _confusing(left, Counter(right)), _confusing(right, Counter(left))
    kept = []
    for side in marks:
        kept.append([i for i, mark in enumerate(side) if not mark])
    sequences = [left[i] for i in kept[0]], [right[i] for i in kept[1]]
    _compare(sequences, kept, marks, 0, len(kept[0]), 0, len(kept[1]), tick)
    _shift(left, marks[0], marks[1])
    _shift(right, marks[1], marks[0])
    return marks


# A line that is compared; that the other text lacks; that it has too often.
_KEPT, _ALONE, _COMMON = range(3)


def _confusing(lines: Sequence[str], others: Counter[str]) -> list[bool]:
    """Finds the lines to leave out of the search.

    They are those without a partner, and among runs of them those with very many partners.
    """
    many = 5
    size = len(lines) // 64 >> 2
    while size > 0:
        many, size = many * 2, size >> 2
    kinds = [
        _ALONE if not others[line] else _COMMON if others[line] > many else _KEPT for line in lines
    ]
    at = 0
    while at < len(kinds):
        if kinds[at] != _ALONE:
            kinds[at] = (
                # a common line is left out only inside a run that starts and ends with lone ones
                _KEPT
            )
            at += 1
            continue
        end = at
        while end < len(kinds) and kinds[end] != _KEPT:
            end += 1
        while kinds[end - 1] == _COMMON:
            end -= 1
            kinds[end] = _KEPT
        kinds[at:end] = _thinned(kinds[at:end])
        at = end
    return [kind != _KEPT for kind in kinds]


def _thinned(run: list[int]) -> list[int]:
    """Returns a run of lines to leave out without those that are kept after all.

    Common lines are kept where they are too many, or too near an end of the run.
    """
    if run.count(_COMMON) * 4 > len(run):
        return [_KEPT if kind == _COMMON else kind for kind in run]
    limit, size = 1, len(run) >> 4
    while size > 0:
        limit, size = limit * 2, size >> 2
    at = 0
    while at < len(run):
        end = at
        while end < len(run) and run[end] == _COMMON:
            end += 1
        if end - at > limit:
            run[at:end] = [_KEPT] * (end - at)
        at = max(end, at + 1)
    for order in (range(len(run)), range(len(run) - 1, -1, -1)):
        alone = 0
        for steps, at in enumerate(order):
            if steps >= 8 and run[at] == _ALONE:
                break
            alone = alone + 1 if run[at] == _ALONE else 0
            if run[at] == _COMMON:
                run[at] = _KEPT
            if alone == 3:
                break
    return run


def _compare(
    lines: tuple[list[str], list[str]],
    numbers: list[list[int]],
    marks: tuple[list[bool], list[bool]],
    x: int,
    x_end: int,
    y: int,
    y_end: int,
    tick: Callable[[int], None],
) -> None:
    left, right = lines
    while x < x_end and y < y_end and left[x] == right[y]:
        x, y = x + 1, y + 1
    while x < x_end and y < y_end and left[x_end - 1] == right[y_end - 1]:
        x_end, y_end = x_end - 1, y_end - 1
    if x == x_end or y == y_end:
        for i in range(x, x_end):
            marks[0][numbers[0][i]] = True
        for i in range(y, y_end):
            marks[1][numbers[1][i]] = True
        return
    middle_x, middle_y = _middle(left, right, x, x_end, y, y_end, tick)
    _compare(lines, numbers, marks, x, middle_x, y, middle_y, tick)
    _compare(lines, numbers, marks, middle_x, x_end, middle_y, y_end, tick)


def _middle(
    left: list[str],
    right: list[str],
    x0: int,
    x1: int,
    y0: int,
    y1: int,
    tick: Callable[[int], None],
) -> tuple[int, int]:
    """Finds a point in the middle of a shortest way from one text to the other.

    It is searched for from both ends, as Myers does.
    """
    low, high = x0 - y1, x1 - y0
    forward_middle, backward_middle = x0 - y0, x1 - y1
    f_low = f_high = forward_middle
    b_low = b_high = backward_middle
    odd = (forward_middle - backward_middle) & 1
    forward, backward = {forward_middle: x0}, {backward_middle: x1}
    while True:
        tick(1)
        if f_low > low:
            f_low -= 1
            forward[f_low - 1] = -1
        else:
            f_low += 1
        if f_high < high:
            f_high += 1
            forward[f_high + 1] = -1
        else:
            f_high -= 1
        for d in range(f_high, f_low - 1, -2):
            below, above = forward[d - 1], forward[d + 1]
            x = above if below < above else below + 1
            while x < x1 and x - d < y1 and left[x] == right[x - d]:
                x += 1
            forward[d] = x
            if odd and b_low <= d <= b_high and backward[d] <= x:
                return x, x - d
        if b_low > low:
            b_low -= 1
            backward[b_low - 1] = _FAR
        else:
            b_low += 1
        if b_high < high:
            b_high += 1
            backward[b_high + 1] = _FAR
        else:
            b_high -= 1
        for d in range(b_high, b_low - 1, -2):
            below, above = backward[d - 1], backward[d + 1]
            x = below if below < above else above - 1
            while x0 < x and y0 < x - d and left[x - 1] == right[x - d - 1]:
                x -= 1
            backward[d] = x
            if not odd and f_low <= d <= f_high and x <= forward[d]:
                return x, x - d
        tick((f_high - f_low) >> 4)


def _shift(lines: Sequence[str], changed: list[bool], other: list[bool]) -> None:
    """Moves runs of changes down as far as equal lines allow.

    They go back to where they face a run in the other text, if there is one.
    """
    mine = [False, *changed, False, False]  # one more at both ends; indices are one higher
    theirs = [False, *other, False, False]
    end = len(changed)
    i = j = 0
    while True:
        while i < end and not mine[i + 1]:
            while theirs[j + 1]:
                j += 1
            j += 1
            i += 1
        if i == end:
            break
        start = i
        i += 1
        while mine[i + 1]:
            i += 1
        while theirs[j + 1]:
            j += 1
        while True:
            length = i - start
            while start and lines[start - 1] == lines[i - 1]:
                start, i = start - 1, i - 1
                mine[start + 1], mine[i + 1] = True, False
                while mine[start]:
                    start -= 1
                j -= 1
                while theirs[j + 1]:
                    j -= 1
            facing = i if theirs[j] else end
            while i != end and lines[start] == lines[i]:
                mine[start + 1], mine[i + 1] = False, True
                start, i = start + 1, i + 1
                while mine[i + 1]:
                    i += 1
                j += 1
                while theirs[j + 1]:
                    facing = i
                    j += 1
            if length == i - start:
                break
        while facing < i:
            start, i = start - 1, i - 1
            mine[start + 1], mine[i + 1] = True, False
            j -= 1
            while theirs[j + 1]:
                j -= 1
    changed[:] = mine[1 : end + 1]
