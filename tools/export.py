"""Exports a policy of a run to a Hugging Face directory, or its LoRA adapter to a PEFT directory.

    python tools/export.py --policy=runs/quickstart/student.sft_base0_to_base0.seed0-HASH
    --out=exported
    python tools/export.py --policy=runs/paper_api/student.sft_llama_8b_to_llama_8b.seed0-HASH
    --format=peft --out=adapter

The first holds config.json, model*.safetensors, the tokenizer and its chat template; `transformers`
loads it, and `--config.num_bases=1 --config.base.checkpoint=exported` runs the experiment from it.
LoRA factors are merged in. The second holds adapter_config.json and adapter_model.safetensors;
`peft` loads it over the base that it names (--base, or the checkpoint that the policy was tuned
from). `subtransfer.load_policy` reads both.
"""

from __future__ import annotations

import math
import sys

from absl import flags

from subtransfer.models import families, hf_export, peft_adapter
from subtransfer.rollout.saved_policy import load_policy
from subtransfer.runtime.errors import UserError, exit_status
from subtransfer.store.files import os_errors, user_path

_POLICY = flags.DEFINE_string(
    "policy", None, "A base*, teacher* or student* folder of a run's workdir, or a PEFT adapter."
)
_OUT = flags.DEFINE_string("out", None, "The new directory.")
_FORMAT = flags.DEFINE_enum(
    "format", "hf", ["hf", "peft"], "The whole model, or its LoRA adapter alone."
)
_BASE = flags.DEFINE_string(
    "base",
    None,
    "With --format=peft: the directory of the base model, if it is not a checkpoint's.",
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "float16", "bfloat16"],
    "With --format=hf: the dtype of the weights, if it is not the base's.",
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Where the checkpoint that a run's policy was tuned from lies now."
)
_SHARD = flags.DEFINE_float("shard_gib", 4.0, "Largest safetensors file, in GiB.", lower_bound=0.0)


def export() -> None:
    """Exports what the flags say.

    Raises:
      UserError: for every mistake.
    """
    if not _POLICY.value or not _OUT.value:
        raise UserError("Give both --policy=FOLDER and --out=DIRECTORY.")
    if not 0 < _SHARD.value < math.inf:
        raise UserError(f"--shard_gib={_SHARD.value} cannot be: it must be above 0 and finite.")
    given, out = user_path(_POLICY.value), user_path(_OUT.value)
    if not out.parent.is_dir():
        raise UserError(f"There is no folder {out.parent} for --out={_OUT.value}: make it first.")
    moved = Path(_CHECKPOINT.value).expanduser() if _CHECKPOINT.value else None
    policy = load_policy(given, checkpoint=moved)
    with os_errors(out.parent):
        if _FORMAT.value == "hf":
            size = max(int(_SHARD.value * 2**30), 1)
            hf_export.save_checkpoint(
                out, policy.cfg, policy.merged(_DTYPE.value), policy.tokenizer, shard_bytes=size
            )
            print(f"exported {policy.cfg.num_params:,} parameters to {out}")
            return
        if policy.adapter is None:
            raise UserError(f"{given} has no LoRA adapter: export it with --format=hf.")
        base = user_path(_BASE.value or policy.source)
        families.read_config(base)  # a base that is no Hugging Face directory is refused here
        peft_adapter.save_adapter(out, policy.adapter, str(base.resolve()), policy.tokenizer)
        print(f"exported an adapter of rank {policy.adapter.rank} over {base} to {out}")


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status: 0, or 2 for a user's mistake."""
    try:
        flags.FLAGS(argv)
    except flags.Error as error:
        print(f"error: {error}: see python tools/export.py --help.", file=sys.stderr)
        return 2
    return exit_status(export)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
