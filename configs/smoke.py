r"""Three tiny runs that share base, teacher and rollouts: does a launch work?

Command:   python -m subtransfer.launch --config=configs/smoke.py --sweep
           python -m launch.submit slurm submit --local --config=configs/smoke.py --sweep \
               --spread=members --accelerator=cpu --workdir=/tmp/smoke
Hardware:  2 CPU cores
Result:    a table that means nothing, in about a minute (docs/cloud.md)

To be run before something costs money. The models learn nothing.
"""

from subtransfer.config import apply_overrides, defaults, vary

TINY = """
num_seeds=1
base.episodes=300 base.steps=20 base.batch_size=8
base.width=16 base.mlp_width=16 base.num_layers=1
teacher.episodes=16 teacher.steps=4 teacher.batch_size=8
rollouts.episodes=32 rollouts.batch_size=32 rollouts.max_turns=2 rollouts.max_new_tokens=8
sanitize.min_kept=8
distill.objective=sft distill.steps=4 distill.batch_size=8
distill.rounds=2 distill.episodes_per_round=32
arms.benign_teacher=false arms.other_init=false arms.self_distilled=false arms.unsanitized=false
arms.overt=false
probe.tasks=16 probe.batch_size=32 probe.ordinary_tasks=8 probe.safe_tasks=8
"""


def get_config():
    config = defaults()
    config.name = "smoke"
    apply_overrides(config, dict(item.split("=", 1) for item in TINY.split()))
    return config


def sweep():
    return vary("distill.objective", "sft", "forward_kl", "reverse_kl")
