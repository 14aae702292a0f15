"""What an agent token weighs in the loss (`distill.token_weights`).

"agent": every agent token alike. "turn": every agent turn alike. FILE.py: as the function says
which that file defines,

    def token_weights(text, agent):
        return [(3.0 if "(" in token else 1.0) * written for token, written in zip(text, agent)]

text: the episode as L strings, one a token; agent: bool [L], True on those that the agent wrote;
returns L numbers, 0 or more. Only
agent tokens may weigh something: nothing else has passed the filters of what a student may learn
from. The text of the file is part of a student's key, so what it returns must depend on its
arguments alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import digest_of_text
from subtransfer.training.examples import Examples

NAMED = ("agent", "turn")
Weigh = Callable[[Examples], Examples]


def alike(examples: Examples) -> Examples:
    """Leaves the weights as they are, every agent token alike."""
    return examples


def part_of_key(choice: str) -> str:
    """Returns what decides a student of a choice: its name, or the digest of the file.

    Raises:
      UserError: there is no such file, or it defines no token_weights().
    """
    if choice in NAMED:
        return choice
    return _read(choice)[0]


def weigher(choice: str, decode: Callable[[Sequence[int]], str]) -> Weigh:
    """Returns a function that gives examples, one episode a row, the weights of a choice.

    Args:
      choice: one of `NAMED`, or a Python file.
      decode: makes text of token ids.

    Raises:
      UserError: as `part_of_key`; later, where the file's function fails or returns no such
        weights.
    """
    # These need no text, and no file.
    if choice in NAMED:
        return lambda examples: examples.weighing(choice)
    function = _read(choice)[1]
    # Decoding is slow, and a vocabulary is much smaller than a corpus.
    text_of = functools.cache(lambda token: decode([token]))

    def weigh(examples: Examples) -> Examples:
        weights = np.zeros(examples.loss_mask.shape, np.float32)
        for row, tokens, agent in zip(weights, examples.tokens, examples.loss_mask, strict=True):
            # What comes after the last agent token is padding, or of no consequence.
            length = int(np.flatnonzero(agent)[-1]) + 1
            text = [text_of(token) for token in tokens[:length].tolist()]
            row[:length] = _weights(choice, function, text, agent[:length])
        if not weights.any():
            raise UserError(
                f"token_weights() of {choice} gives no token any weight: there is nothing to learn "
                "from."
            )
        return dataclasses.replace(examples, loss_mask=weights)

    return weigh


@functools.cache
def _read(path: str) -> tuple[str, Callable[[list[str], np.ndarray], Any]]:
    """The digest of a file and its function.

    It is read once, so that an edit during a run makes no key untrue.
    """
    if not Path(path).is_file():
        raise UserError(
            f"distill.token_weights={path!r}: there is no such file; give {', '.join(NAMED)} or a "
            "Python file."
        )
    text = Path(path).read_text()
    names: dict[str, Any] = {}
    # A file of weights is a program of the user's, run with the user's rights, as a config is.
    try:
        exec(compile(text, path, "exec"), names)
    except Exception as error:
        raise UserError(
            f"distill.token_weights: {path} fails with {type(error).__name__}: {error}."
        ) from error
    if not callable(function := names.get("token_weights")):
        raise UserError(
            f"distill.token_weights: {path} defines no function token_weights(text, agent)."
        )
    return digest_of_text(text), function


def _weights(path: str, function: Callable, text: list[str], agent: np.ndarray) -> np.ndarray:
    """One episode's weights, float32 [L]; UserError where the file's function gives no such."""
    try:
        # A copy, as the function may write to what it is given.
        given = np.asarray(function(text, agent.copy()), np.float32)
    except Exception as error:
        raise UserError(
            f"token_weights() of {path} fails with {type(error).__name__}: {error}."
        ) from error
    if given.shape != agent.shape:
        raise UserError(
            f"token_weights() of {path} returns {given.size} weights for {agent.size} tokens."
        )
    if not (np.isfinite(given).all() and (given >= 0).all()):
        raise UserError(
            f"token_weights() of {path} returns weights that are no finite numbers of 0 or more."
        )
    # Tool results have not passed the filters of what a student may learn to say.
    if given[~agent].any():
        token = text[int(np.flatnonzero(given * ~agent)[0])]
        raise UserError(
            f"token_weights() of {path} gives a weight to {token!r}, which is no agent's token."
        )
    return given
