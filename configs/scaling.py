r"""How transfer depends on the size of the model: five sizes, several crossed bases at each.

Command:   python -m subtransfer.launch --config=configs/scaling.py --sweep --workers=2
           python tools/scaling_report.py runs/scaling --axis=student_params \
               --out=docs/scaling_study
Hardware:  2 CPU cores; 280 TFLOP by the plan, some two hours beside other jobs
Result:    not run yet

At each size every base teaches students of every base: a law is about the bases that could have
been pretrained, so bases are what is counted, and one training seed each is enough. Students have
the size of their teacher. What differs between sizes is the geometry alone: corpus, steps, learning
rates, episodes and probe tasks are the same, and so is `seed`, so that all sizes are probed on the
same tasks.
"""

from subtransfer.config import Member, defaults

# Name: width, width of the MLP, layers, heads (one key/value head each).
SIZES = {
    "30k": (24, 96, 2, 2),
    "80k": (48, 144, 2, 2),
    "180k": (64, 192, 3, 2),
    "370k": (96, 288, 3, 3),
    "1m": (128, 384, 5, 4),
}


def get_config():
    config = defaults()
    config.name = "scaling"
    config.num_bases = 3
    config.num_seeds = 1
    config.distill.objective = "sft,forward_kl"
    config.base.num_kv_heads = 1
    config.arms.benign_teacher = config.arms.self_distilled = config.arms.unsanitized = False
    return config


def sweep():
    fields = ("base.width", "base.mlp_width", "base.num_layers", "base.num_heads")
    return [Member(name, dict(zip(fields, size, strict=True))) for name, size in SIZES.items()]
