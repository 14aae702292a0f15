"""Models of the Hugging Face hub, by their id: `org/name` or `org/name@revision`.

Its own cache is used: what has once been fetched needs no network.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from subtransfer.runtime.errors import UserError

_FORM = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?", flags=re.ASCII)
# What is read of a repository; others hold the same weights in other formats.
_WEIGHTS = "*.safetensors"
_BESIDE = ("*.json", "*.jinja", "tokenizer.model", "*.txt")


def is_id(text: str) -> bool:
    """Whether a text has the form of a hub id."""
    return _FORM.fullmatch(text) is not None and not text.startswith((".", "/", "~"))


def fetched(text: str, *, weights: bool = True) -> Path:
    """The directory of a model of the hub, in the hub's cache.

    A revision that is not given is the newest one; without network, the newest that is cached.

    Args:
      text: the id.
      weights: false fetches what a plan reads, and says how large the weights are that are not
        there yet.

    Raises:
      UserError: there is no such model, no permission, or no network.
    """
    # Imported here, as it takes a second that most commands need not spend.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match = _FORM.fullmatch(text)
    assert match is not None, "is_id has been asked"
    repository, revision = match["repository"], match["revision"]
    snapshot = functools.partial(snapshot_download, repository, revision=revision)
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        # A commit never changes: what is cached whole needs no question.
        try:
            return Path(snapshot(allow_patterns=[_WEIGHTS, *_BESIDE], local_files_only=True))
        except LocalEntryNotFoundError:
            pass
    try:
        if waiting := _waiting(snapshot):
            what = "fetching" if weights else "a run will fetch"
            print(
                f"  {text}: {what} {waiting / 1e9:.2f} GB of weights from the Hugging Face hub",
                file=sys.stderr,
                flush=True,
            )
        return Path(snapshot(allow_patterns=[*_BESIDE, _WEIGHTS] if weights else [*_BESIDE]))
    except GatedRepoError:
        reason = "its terms must be accepted first"
        remedy = "accept them there and log in (hf auth login)"
    except RepositoryNotFoundError:
        reason = "there is no such model, or it is private"
        remedy = "check the name, or log in (hf auth login)"
    except RevisionNotFoundError:
        reason, remedy = f"it has no revision {revision}", "give another one"
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = f"the hub cannot be reached ({type(error).__name__})"
        remedy = "try again with a network, or give a local Hugging Face directory or GGUF file"
    raise UserError(f"{text} cannot be fetched from the Hugging Face hub: {reason}; {remedy}.")


def _waiting(snapshot: Callable[..., Any]) -> int:
    """How many bytes of weights are not cached yet; 0 where nobody can be asked."""
    from huggingface_hub.errors import DryRunError

    try:
        files = snapshot(allow_patterns=[_WEIGHTS], dry_run=True)
    except DryRunError:
        return 0  # without network, what is cached may do
    return sum(file.file_size or 0 for file in files if file.will_download)
