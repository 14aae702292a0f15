"""A base that is pretrained in the run, from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    out: Path, context: Context, *, corpus: str, sibling: str | None, model: str, part: str
) -> None:
    """Pretrains a base on the corpus.

    Args:
      corpus: its stage.
      sibling: the stage of the imported model whose geometry it has; None: the embedded one.
      model: its name, which decides its initialisation. The order of its data is that of all
        bases of the seed, so that they differ in their initialisation alone.
      part: of what makes that model, what this twin of it shares; "": it is the model itself.
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

        def draw() -> Any:
            key, other = context.key("base", model), context.key("base", model, part)
            return pretrain.twin_params(cfg, context.mesh, key, part, other)

        orders = ("order of data", "another") if part == "order" else ("order of data",)
        order = context.key("base", *orders)
        params, curves = pretrain.train_base(cfg, context.mesh, recipe, examples, draw, order, run)
    save_base(out, cfg, distributed.to_host(params), tokenizer)
    write_json(out / "training.json", {"curves": thinned(curves)})
