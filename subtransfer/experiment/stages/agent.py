"""An agent: a checkpoint that is tuned to act in the setting, before teachers are made of it."""

from __future__ import annotations

from pathlib import Path

import jax

from subtransfer.experiment import policies, trainings
from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.experiment.output import thinned, write_json
from subtransfer.models import lora
from subtransfer.rollout.saved_policy import save_base
from subtransfer.runtime import distributed
from subtransfer.training import loop, population, pretrain
from subtransfer.training.population import Learner


@reads("agent", "base.unsafe_rate", "distill.max_tokens", *trainings.FIELDS)
def agent(out: Path, context: Context, *, checkpoint: str, model: str) -> None:
    """Tunes a checkpoint on scripted episodes, and writes it whole, adapters merged.

    The episodes are those that an embedded model is pretrained on: they show all that is probed.

    Args:
      checkpoint: its stage.
      model: its name, which decides the order of data and the initial adapters.
    """
    a, setting = context.config.agent, context.setting
    start = policies.policy(context, checkpoint)
    demos = pretrain.demonstrations(
        setting, a.episodes, context.config.base.unsafe_rate, context.config.seed
    )
    examples = pretrain.encode(list(demos), policies.chat(context, start))
    examples = examples.fitted_to(context.config.distill.max_tokens)
    loss = loop.Loss(
        "sft",
        tuning=trainings.tuning(context),
        accumulate=a.accumulate,
        optimizer=trainings.optimizer(context),
    )
    schedule, share = trainings.schedule(context), context.config.share_prefix
    recipe = loop.Recipe(loss, a.steps, a.batch_size, a.learning_rate, schedule, share)
    learner = Learner(context.stage, recipe, start.params, examples, context.key("agent", model))
    with trainings.monitored(context, a.steps) as run:
        state, curves = population.train_alone(start.cfg, context.mesh, learner, run)
    trained = state.trainable
    if recipe.loss.tuning.method == "lora":
        # In float32, in which merging loses nothing.
        base = jax.tree.map(lambda x: x.astype("float32"), start.params)
        adapter = lora.Adapter(trained, recipe.loss.tuning.rank, recipe.loss.tuning.alpha)
        trained = lora.merge(base, adapter)
    save_base(out, start.cfg, distributed.to_host(trained), start.tokenizer)
    write_json(out / "training.json", {"curves": thinned(curves)})
