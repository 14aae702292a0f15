"""A base that is pretrained in the run, from scratch."""

from __future__ import annotations

from pathlib import Path

from subtransfer.experiment import geometry, policies, trainings
from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.experiment.output import thinned, write_json
from subtransfer.models import hf_load
from subtransfer.rollout.saved_policy import save_base
from subtransfer.runtime import distributed
from subtransfer.training import loop, pretrain


@reads(*geometry.FIELDS, "base.steps", "base.batch_size", "base.learning_rate", "optimizer")
def pretrained(
    out: Path, context: Context, *, corpus: str, sibling: str | None, label: str
) -> None:
    """Pretrains a base on the corpus.

    Args:
      corpus: its stage.
      sibling: the stage of the imported model whose geometry it has; None: the embedded one.
      label: decides its initialisation and the order of its data.
    """
    base, folder = context.config.base, context.input(corpus)
    if sibling:
        one = policies.policy(context, sibling)
        cfg, tokenizer = one.cfg, one.tokenizer
    else:
        tokenizer = hf_load.load_tokenizer(folder / "tokenizer", None)
        cfg = geometry.embedded_geometry(context.config, len(tokenizer))
    loss = loop.Loss("sft", optimizer=trainings.optimizer(context))
    schedule = trainings.schedule(context)
    recipe = loop.Recipe(loss, base.steps, base.batch_size, base.learning_rate, schedule)
    examples = pretrain.load_examples(folder / "corpus.safetensors")
    with trainings.monitored(context, base.steps) as run:
        params, curves = pretrain.train_base(
            cfg, context.mesh, recipe, examples, context.key("base", label), run
        )
    save_base(out, cfg, distributed.to_host(params), tokenizer)
    write_json(out / "training.json", {"curves": thinned(curves)})
