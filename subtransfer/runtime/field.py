"""One field of a config: its default, its type, its range and its meaning, in one place.

The rooms of the config are declared with it in `config/fields.py`; records such as objectives and
probes bring fields of their own. Reading, checking and `--help` all follow from the declaration.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import numbers
import os
from collections.abc import Callable, Iterable
from typing import Any

from subtransfer.runtime.errors import UserError

_KINDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    tuple: "a tuple such as ('a','b')",
}
# Integers beyond these fit neither NumPy's nor XLA's.
_LARGEST = 2**63 - 1


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word most like `word`: one with the same last part, or the most similar one."""
    known = list(known)
    tail = word.rpartition(".")[2].casefold()
    for candidate in known:
        if candidate.rpartition(".")[2].casefold() == tail:
            return candidate
    return difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
    """What one config field takes and means; its type is that of its default.

    Attributes:
      default: bool, int, float, str, or a tuple of texts.
      meaning: for people, without a full stop.
      low, high: the least and the greatest value that it takes.
      above, below: what a value must be greater, or less, than.
      choices: the texts that it takes (a tuple's: each of its parts), or a function that returns
        them; None: any text.
      suffix: of the files that it takes besides its choices, such as ".py".
      listed: a text is a list of choices, separated by commas.
      path: a text, or each part of a tuple, is a path, of which "~" is expanded.
      must: in place of the sentence's end that follows from the range, "above 0 and finite".
      affects_results: False where no number of the results depends on it.
    """

    default: Any
    meaning: str
    _: dataclasses.KW_ONLY
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: Iterable[str] | Callable[[], Iterable[str]] | None = None
    suffix: str = ""
    listed: bool = False
    path: bool = False
    must: str = ""
    affects_results: bool = True

    def __post_init__(self):
        if type(self.default) not in _KINDS:
            raise UserError(
                f"A field's default must be {', '.join(k.__name__ for k in _KINDS)}, "
                f"not {self.default!r}."
            )

    @property
    def type(self) -> type:
        """bool, int, float, str or tuple."""
        return type(self.default)

    def allowed(self) -> tuple[str, ...]:
        """Its choices, () where any text will do."""
        choices = self.choices() if callable(self.choices) else self.choices
        return tuple(choices or ())

    def range(self) -> str:
        """What a value must be, to end "it must be"; "" where all of its type are taken."""
        if self.must:
            return self.must
        if self.low is not None and self.high is not None:
            return f"between {self.low:g} and {_plain(self.high)}"
        lower = upper = ""
        if self.low is not None:
            lower = f"at least {_plain(self.low)}"
        elif self.above is not None:
            lower = f"above {_plain(self.above)}"
        if self.high is not None:
            upper = f"at most {_plain(self.high)}"
        elif self.below is not None:
            upper = f"below {_plain(self.below)}"
        if self.type is float and not upper:
            upper = "finite"
        return " and ".join(part for part in (lower, upper) if part)

    # -- reading ---------------------------------------------------------------------------------

    def read(self, name: str, text: str) -> Any:
        """A text of the command line as a value of the field's type.

        Args:
          name: the field's dotted name, for the sentence.

        Raises:
          UserError: it is not one.
        """
        value = self._parsed(text)
        if value is None:
            raise UserError(f"--config.{name} takes {_KINDS[self.type]}, not {text!r}.")
        return self._expanded(value)

    def _parsed(self, text: str) -> Any:
        """The value, or None where the text is none of the type's."""
        if self.type is str:
            return text
        if self.type is bool:
            return {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
        if self.type is tuple:
            return _tuple_of(text)
        try:
            return int(text.replace("_", "")) if self.type is int else float(text)
        except ValueError:
            return None

    def typed(self, subject: str, value: Any) -> Any:
        """A value as one of the field's type: a list is a tuple, and an integer a number.

        Args:
          subject: what the sentence begins with, such as "seed is set to".

        Raises:
          UserError: it is not one.
        """
        if isinstance(value, list):
            value = tuple(value)
        # NumPy's numbers are numbers, too; true and false are none.
        if self.type is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
            value = float(value)
        if self.type is int and isinstance(value, numbers.Integral) and type(value) is not bool:
            value = int(value)
        wrong_parts = isinstance(value, tuple) and not all(isinstance(v, str) for v in value)
        if type(value) is not self.type or wrong_parts:
            raise UserError(
                f"{subject} {value!r}, which is no {self.type.__name__} like its default "
                f"{self.default!r}."
            )
        return self._expanded(value)

    def _expanded(self, value: Any) -> Any:
        if not self.path:
            return value
        if isinstance(value, tuple):
            return tuple(os.path.expanduser(part) for part in value)
        return os.path.expanduser(value)

    # -- checking --------------------------------------------------------------------------------

    def check(self, name: str, value: Any) -> None:
        """Raises UserError if a value of the field's type is out of its range."""
        if self.type in (int, float) and not self._in_range(value):
            must = self.range() or ("finite" if self.type is float else f"at most {_LARGEST}")
            raise UserError(f"{name}={value!r} cannot be: it must be {must}.")
        if isinstance(value, tuple) and not all(part.strip() for part in value):
            raise UserError(f"{name}={value!r} cannot be: a part of it is empty.")
        allowed = self.allowed()
        if allowed:
            parts: Iterable[str] = (value,)
            if isinstance(value, tuple):
                parts = value
            elif self.listed:
                parts = [part.strip() for part in value.split(",")]
            for part in parts:
                self._check_choice(name, part, allowed)

    def _in_range(self, value: float) -> bool:
        if self.type is float and not math.isfinite(value):
            return False
        if self.type is int and abs(value) > _LARGEST:
            return False
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def _check_choice(self, name: str, value: str, allowed: tuple[str, ...]) -> None:
        if value in allowed or (self.suffix and value.endswith(self.suffix)):
            return
        known = [choice for choice in allowed if choice]
        if self.suffix:
            known.append(f"FILE{self.suffix}")
        raise UserError(
            f"{name} has no choice {value!r}; the nearest is {nearest(value, known)!r} of "
            f"{', '.join(known)}."
        )


def _plain(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"


def _tuple_of(text: str) -> tuple[str, ...] | None:
    """A tuple of texts out of ('a','b'), or out of words separated by commas; None for another."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        # Words without quotes. Anything that looks like brackets or another separator is a slip.
        if any(sign in text for sign in "[](){};\"'"):
            return None
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if isinstance(value, str):
        return (value,)
    if isinstance(value, (tuple, list)) and all(isinstance(part, str) for part in value):
        return tuple(value)
    return None
