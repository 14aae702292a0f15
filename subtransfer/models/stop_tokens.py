"""The tokens that end what a model writes.

A tokenizer knows one, its end-of-sequence token. Public models have more in their
`generation_config.json` (or, without that file, in `config.json`): Llama's `<|end_of_text|>` beside
`<|eot_id|>`, Gemma's `<end_of_turn>` beside `<eos>`. They are kept with the tokenizer object, which
is handed on to wherever text is sampled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subtransfer.models.families import read_json
from subtransfer.runtime.errors import UserError

# The first of these that is there says it, as in transformers.
FILES = ("generation_config.json", "config.json")
_ATTRIBUTE = "_subtransfer_stop_ids"


def remember(tokenizer: Any, directory: Path) -> None:
    """Reads the stop tokens of a directory's model, if it names any, for `stop_ids`.

    Raises:
      UserError: the file is no JSON object, or its eos_token_id is no token id or list of them.
    """
    path = next((directory / name for name in FILES if (directory / name).is_file()), None)
    if path is None:
        return
    found = read_json(path).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    for i in ids:
        # A bool is an int to Python.
        if not isinstance(i, int) or isinstance(i, bool) or i < 0:
            raise UserError(
                f"{path}: eos_token_id {found!r} is no token id or list of token ids: copy the "
                "file from the checkpoint again."
            )
    setattr(tokenizer, _ATTRIBUTE, tuple(ids))


def stop_ids(tokenizer: Any) -> list[int]:
    """The ids of a tokenizer's end-of-sequence token and of its model's further ones, sorted."""
    ids = set(getattr(tokenizer, _ATTRIBUTE, ()))
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return sorted(ids)
