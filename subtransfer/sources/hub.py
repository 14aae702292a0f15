"""Models of the Hugging Face hub, by their id: `org/name` or `org/name@revision`.

Its own cache is used: what has once been fetched needs no network.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from subtransfer.runtime.errors import UserError

_FORM = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?", flags=re.ASCII)
# What is read of a repository; others hold the same weights in other formats.
_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt")


def is_id(text: str) -> bool:
    """Whether a text has the form of a hub id."""
    return _FORM.fullmatch(text) is not None and not text.startswith((".", "/", "~"))


def fetched(text: str) -> Path:
    """The directory of a model of the hub, in the hub's cache.

    A revision that is not given is the newest one; without network, the newest that is cached.

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

    def snapshot(local: bool) -> Path:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=list(_FILES), local_files_only=local
            )
        )

    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        # A commit never changes: what is cached needs no question.
        try:
            return snapshot(local=True)
        except LocalEntryNotFoundError:
            pass
    print(f"  fetching {text} from the Hugging Face hub", file=sys.stderr, flush=True)
    try:
        return snapshot(local=False)
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
