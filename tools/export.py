"""Exports a policy of a run to a Hugging Face directory.

    python tools/export.py --policy=runs/quickstart/student.forward_kl.seed0-HASH --out=exported

The directory holds config.json, model.safetensors, the tokenizer and its chat template; `transformers` loads it, and
`--config.base.checkpoint=exported` runs the experiment from it. LoRA factors are merged in.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from subtransfer import artifacts
from subtransfer.errors import UserError
from subtransfer.models import hf
from subtransfer.policy import load_policy

_POLICY = flags.DEFINE_string("policy", None, "A base-*, teacher.* or student.* folder of a run's workdir.")
_OUT = flags.DEFINE_string("out", None, "The new directory.")


def main(argv: list[str]) -> int:
    """Returns the exit status: 0, or 2 for a user's mistake."""
    try:
        try:
            flags.FLAGS(argv)
        except flags.Error as error:
            raise UserError(f"{error}: see python tools/export.py --help.") from error
        if not _POLICY.value or not _OUT.value:
            raise UserError("Give both --policy=FOLDER and --out=DIRECTORY.")
        policy = load_policy(_POLICY.value)
        with artifacts.os_errors(Path(_OUT.value).parent):
            hf.save_checkpoint(Path(_OUT.value), policy.cfg, policy.params, policy.tokenizer)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"exported {policy.cfg.num_params:,} parameters to {_OUT.value}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
