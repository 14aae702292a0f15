"""Makes the bases that come with the package, by the stages that a run trains its own with.

    python -m tools.make_bases --setting=api [--first=0] [--count=8] [--out=subtransfer/bases]
        [--config=FILE] [--workdir=runs/bases-SETTING]

Trains base FIRST, FIRST + 1, ... with the config's fields (default: those of the setting's
quickstart), writes their weights, the tokenizer and the manifest, and prints the SHA-256 of each.
Base N is the model "baseN" of `--config.num_bases=... --config.seed=0 --config.base.from_scratch`.
A killed command goes on where it was. Bases of other fields than those that are there are refused:
remove these first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from subtransfer import settings
from subtransfer.config import reading as configuration
from subtransfer.experiment import names
from subtransfer.experiment.graph import Experiment
from subtransfer.experiment.shipped import deciding_fields
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError, exit_status
from subtransfer.store import artifacts, provenance, seals, shipped
from subtransfer.store.files import atomic_write

ROOT = Path(__file__).parent.parent
QUICKSTARTS = {"api": "quickstart.py", "bash": "quickstart_bash.py"}
SEED = 0  # of corpus, order of data and initialisations
# What of the records of a process says on which kind of machine the same bytes are to be expected.
_MADE_BY = ("package_version", "jax_version", "platform", "device_kind", "device_count")


def made_by() -> dict[str, object]:
    """The versions and the device of this process, and the processor's flags for XLA."""
    facts = provenance.facts()
    found: dict[str, object] = {name: facts[name] for name in _MADE_BY}
    found["processor"] = processor()
    found["xla_flags"] = os.environ.get("XLA_FLAGS", "")
    return found


def processor() -> str:
    """The processor's name, where Linux says it; "" elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return ""


def make(config, first: int, count: int, out: Path, workdir: Path) -> list[str]:
    """Trains bases and writes them as shipped ones; returns the SHA-256 of each one's weights.

    Args:
      config: a config of one setting; its seed, bases and arms are set here.
      first: number of the first one.
      count: how many.
      out: the folder of all settings' bases.
      workdir: of the training; may hold some of it already.

    Raises:
      UserError: these cannot stand beside what is there.
    """
    config = configuration.Config.of(config)
    last = first + count
    changes = {
        "seed": SEED,
        # One alone would have another name, and with it another initialisation.
        "num_bases": max(last, 2),
        "pairs": (),
        "base.from_scratch": True,
        "base.checkpoint": "",
        "arms.init_parts": False,
    }
    for name, value in changes.items():
        room, _, field = name.rpartition(".")
        config.replace(room, field, value)
    fields = deciding_fields(config)
    folder = out / config.setting
    known = _known(folder, fields, first)
    mesh = sharding.make_mesh(**config.mesh)
    experiment = Experiment(config, workdir, mesh)
    made = [names.base_stage(f"base{number}") for number in range(first, last)]
    with artifacts.Store(workdir) as store:
        for name in (names.CORPUS, *made):
            stage = experiment.plan[name]
            store.stage(stage.name, stage.key, stage.build, log=print, facts=stage.facts())
    shutil.rmtree(folder / shipped.TOKENIZER, ignore_errors=True)
    shutil.copytree(experiment.path(made[0]) / "tokenizer", folder / shipped.TOKENIZER)
    tokenizer = {}
    for path in sorted((folder / shipped.TOKENIZER).iterdir()):
        tokenizer[path.name] = seals.sha256(path)
    digests = []
    for number, name in enumerate(made, first):
        place = folder / str(number) / shipped.PARAMS
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(experiment.path(name) / "params.safetensors", place)
        digests.append(seals.sha256(place))
    manifest = {
        "fields": fields,
        "seed": SEED,
        "bases": [*known[:first], *digests, *known[last:]],
        "tokenizer": tokenizer,
        "made_by": made_by(),
    }
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    # Last: what it names is there then.
    atomic_write(folder / shipped.MANIFEST, text)
    return digests


def _known(folder: Path, fields: dict[str, object], first: int) -> list[str]:
    """The digests of the bases that are there, beside which others are to stand."""
    known = shipped.read(folder)
    if known is None:
        have: list[str] = []
    else:
        have = list(known.bases)
        different = {name for name in fields if known.fields.get(name) != fields[name]}
        if different:
            raise UserError(
                f"The bases of {folder} were made with another {min(different)}: remove the folder "
                "first."
            )
    if first > len(have):
        raise UserError(f"{folder} has {len(have)} bases: --first can be {len(have)} at most.")
    return have


def main(argv: Sequence[str] | None = None) -> int:
    """Makes what the command line asks for, and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setting", choices=settings.NAMES, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--out", type=Path, default=shipped.FOLDER)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--workdir", type=Path)
    given = parser.parse_args(argv)
    return exit_status(lambda: _make(given))


def _make(given: argparse.Namespace) -> None:
    if given.first < 0 or given.count < 1:
        raise UserError("--first must be at least 0 and --count at least 1.")
    path = given.config or ROOT / "configs" / QUICKSTARTS[given.setting]
    config = configuration.load(path, {})
    if config.setting != given.setting:
        raise UserError(f"{path} is of the setting {config.setting}, not of {given.setting}.")
    workdir = given.workdir or Path("runs") / f"bases-{given.setting}"
    jax.config.update("jax_compilation_cache_dir", str(workdir / ".compiled"))
    digests = make(config, given.first, given.count, given.out, workdir)
    for number, digest in enumerate(digests, given.first):
        print(f"{given.setting} {number}: SHA-256 {digest}")


if __name__ == "__main__":
    sys.exit(main())
