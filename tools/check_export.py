"""Checks that exported directories mean the same to other versions of transformers and peft.

    python -m tools.check_export [--python=/other/environment/bin/python] [--json=FILE]

Small random models of every geometry of the tests, and adapters of every family, are exported to a
temporary folder: whole models, adapters, merged adapters. Each environment (this one, and those of
--python, which need transformers, torch and peft) then reads the directories by itself. Compared
are the logits, which tokens end a reply, what the tokenizer makes of a text, and what the chat
template makes of a conversation. The exit status is 1 where something differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from subtransfer.models import hf_export, lora, peft_adapter
from subtransfer.models.stop_tokens import stop_ids
from subtransfer.rollout.policy import Policy
from subtransfer.rollout.saved_policy import load_policy
from subtransfer.runtime.errors import UserError, exit_status

# One geometry of each family has adapters, too.
ADAPTED = (
    "llama mqa untied, llama3 rope",
    "qwen2 gqa tied",
    "qwen3 gqa, wide heads",
    "gemma3 window 4",
)
MULTIMODAL = "gemma3 multimodal"
# Float32 over three layers: what another order of sums changes is below a tenth of it.
TOLERANCE = 1e-4
TEXT = 'Where is "plan.txt"?\n\nIt  is in /notes; read it.'
MESSAGES = [
    {"role": "user", "content": "Where is plan.txt?"},
    {"role": "assistant", "content": "In /notes."},
]
# The other environment has transformers alone, so this imports nothing of the package.
READER = """
import json, sys
import numpy as np, torch, transformers
folder, cases, text, messages = sys.argv[1], *map(json.loads, sys.argv[2:5])
tokens = torch.tensor(np.load(f"{folder}/tokens.npy"), dtype=torch.long)
found = {"version": transformers.__version__}
for name, case in cases.items():
    directory = case["directory"]
    try:
        if case["base"]:
            import peft
            found["peft"] = peft.__version__
            model = transformers.AutoModelForCausalLM.from_pretrained(case["base"])
            model = peft.PeftModel.from_pretrained(model, directory)
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(directory)
        with torch.no_grad():
            logits = model.eval()(tokens).logits.float().numpy()
        np.save(f"{folder}/{case['number']}.theirs.npy", logits)
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        ends = model.generation_config.eos_token_id
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
        found[name] = {
            "ends": sorted(ends if isinstance(ends, list) else [ends]),
            "ids": tokenizer.encode(text, add_special_tokens=False),
            "rendered": rendered,
        }
    except Exception as error:
        found[name] = {"error": f"{type(error).__name__}: {error}"}
json.dump(found, open(f"{folder}/found.json", "w"))
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """What was exported, and what it is to mean.

    Attributes:
      directory: of the export.
      base: of an adapter, the directory of its base; else empty.
      number: of its files.
      logits: float32 [B, L, V], ours.
      ends, ids, rendered: stop tokens, the tokens of `TEXT`, and `MESSAGES` in the template, ours.
    """

    directory: str
    base: str
    number: int
    logits: np.ndarray
    ends: list[int]
    ids: list[int]
    rendered: str


def tokens(vocab: int) -> np.ndarray:
    """Token ids past every window and threshold of the geometries, int32 [2, 150]."""
    return np.random.default_rng(1).integers(0, vocab, (2, 150)).astype(np.int32)


def _write_source(directory: Path, name: str) -> None:
    """A random model of a geometry, as transformers writes it."""
    # The tests' geometries, tokenizers and templates; the tool is part of a checkout.
    from tests import templates
    from tests.families import GEOMETRIES, multimodal, reference

    geometry = "gemma3 window 4" if name == MULTIMODAL else name
    families = {"llama": "llama3", "gemma3_text": "gemma3"}
    family = GEOMETRIES[geometry][0]
    tokenizer = templates.tokenizer(families.get(family, family), [TEXT] * 5, vocab=300)
    model = reference(geometry, vocab=_VOCAB)
    if name == MULTIMODAL:
        model = multimodal(model)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    ends = templates.ENDS[families.get(family, family)]
    ids = {"eos_token_id": tokenizer.convert_tokens_to_ids(ends)}
    (directory / "generation_config.json").write_text(json.dumps(ids))


# Rows of the embedding: more than any of the tokenizers has tokens.
_VOCAB = 320


def _adapted(policy: Policy) -> Policy:
    """A policy with random LoRA factors on every projection."""
    factors = lora.init_factors(jax.random.key(0), policy.params, tuple(peft_adapter.MODULES), 3)
    leaves, structure = jax.tree.flatten(factors)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [
        0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)
    ]
    adapter = lora.Adapter(jax.tree.unflatten(structure, noise), 3, 5.0, 0.0)
    return dataclasses.replace(policy, adapter=adapter)


def export(folder: Path, names: list[str]) -> dict[str, Case]:
    """Exports what is to be read: by name, whole models, adapters and merged adapters."""
    cases: dict[str, Case] = {}

    def add(name: str, policy: Policy, base: str = "") -> None:
        number = len(cases)
        out = folder / f"out{number}"
        if base:
            assert policy.adapter is not None, "an adapter's case"
            peft_adapter.save_adapter(out, policy.adapter, base, policy.tokenizer)
        else:
            hf_export.save_checkpoint(out, policy.cfg, policy.merged(), policy.tokenizer)
        cases[name] = Case(
            str(out),
            base,
            number,
            np.asarray(policy.logits(tokens(_VOCAB))),
            stop_ids(policy.tokenizer),
            policy.tokenizer.encode(TEXT, add_special_tokens=False),
            policy.tokenizer.apply_chat_template(MESSAGES, tokenize=False),
        )

    for i, name in enumerate(names):
        source = folder / f"in{i}"
        _write_source(source, name)
        policy = load_policy(source)
        add(name, policy)
        if name in (*ADAPTED, MULTIMODAL):
            # The sources are written by transformers 5, whose config.json version 4 reads wrongly;
            # of the multimodal model only the language model is exported.
            base = source if name == MULTIMODAL else Path(cases[name].directory)
            add(f"{name}: adapter", _adapted(policy), str(base))
            add(f"{name}: merged adapter", _adapted(policy))
    return cases


def read(python: str, folder: Path, cases: dict[str, Case]) -> dict[str, Any]:
    """Lets an environment read the exports.

    Raises:
      UserError: the interpreter cannot be run, or has no transformers.
    """
    shown = {}
    for name, case in cases.items():
        shown[name] = {"directory": case.directory, "base": case.base, "number": case.number}
    np.save(folder / "tokens.npy", tokens(_VOCAB))
    arguments = [str(folder), json.dumps(shown), json.dumps(TEXT), json.dumps(MESSAGES)]
    (folder / "found.json").unlink(missing_ok=True)
    try:
        # In the folder, so that it does not import what lies here.
        done = subprocess.run(
            [python, "-c", READER, *arguments], capture_output=True, text=True, cwd=folder
        )
    except OSError as error:
        raise UserError(
            f"--python={python} cannot be run ({error}): give an interpreter."
        ) from None
    if done.returncode or not (folder / "found.json").is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"{python} could not read the exports ({last}): install transformers, torch and peft "
            "in its environment."
        )
    return json.loads((folder / "found.json").read_text())


def differences(case: Case, found: dict[str, Any], logits: np.ndarray | None) -> list[str]:
    """What an environment read otherwise than it was meant."""
    if "error" in found or logits is None:
        return [found.get("error", "no logits")]
    out = []
    largest = float(np.abs(logits - case.logits).max())
    if not largest <= TOLERANCE:
        out.append(f"logits differ by {largest:.2g}")
    for field, what in (("ends", "stop tokens"), ("ids", "tokens"), ("rendered", "chat template")):
        if found[field] != getattr(case, field):
            out.append(f"{what}: {found[field]!r} where {getattr(case, field)!r} was meant")
    return out


def check(pythons: list[str], names: list[str]) -> list[dict[str, Any]]:
    """Exports, lets each environment read, and compares: a record for each of them and export."""
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cases = export(folder, names)
        for python in pythons:
            found = read(python, folder, cases)
            for name, case in cases.items():
                file = folder / f"{case.number}.theirs.npy"
                logits = np.load(file) if "error" not in found[name] else None
                largest = None if logits is None else float(np.abs(logits - case.logits).max())
                records.append(
                    {
                        "transformers": found["version"],
                        "peft": found.get("peft") if case.base else None,
                        "export": name,
                        "largest_difference": largest,
                        "differences": differences(case, found[name], logits),
                    }
                )
    return records


def show(records: list[dict[str, Any]]) -> None:
    """Prints a table: one line an environment and export."""
    print(f"{'transformers':13}{'export':52}{'logits':>10}  rest")
    for record in records:
        largest = record["largest_difference"]
        number = "-" if largest is None else f"{largest:.1e}"
        rest = "; ".join(record["differences"]) or "same"
        print(f"{record['transformers']:13}{record['export']:52}{number:>10}  {rest}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 1 for a difference, 2 for a user's mistake."""
    from tests.families import GEOMETRIES

    parser = argparse.ArgumentParser(
        prog="python -m tools.check_export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        help="the interpreter of another environment; may be given several times",
    )
    parser.add_argument("--json", help="also write the figures to this file")
    given = parser.parse_args(arguments)
    records: list[dict[str, Any]] = []

    def work() -> None:
        records.extend(check([sys.executable, *given.python], [*GEOMETRIES, MULTIMODAL]))
        show(records)
        if given.json:
            Path(given.json).expanduser().write_text(json.dumps(records, indent=2) + "\n")

    status = exit_status(work)
    wrong = [record for record in records if record["differences"]]
    if status == 0:
        print(f"{len(records)} readings, {len(wrong)} differ")
    return status or (1 if wrong else 0)


if __name__ == "__main__":
    sys.exit(main())
