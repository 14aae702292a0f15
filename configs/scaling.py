r"""How transfer depends on the size of the model: five sizes, three seeds, three objectives.

Command:   python -m subtransfer.launch --config=configs/scaling.py --sweep --workers=2
           python tools/scaling_report.py runs/scaling --axis=student_params \
               --out=docs/scaling_study
Hardware:  2 CPU cores, 55 minutes beside other jobs
Result:    both soft targets transfer at every size; no dependence on size is shown
           (docs/scaling_study.md)

Each student is there with its teacher's and with another initialisation. It has the size of its
teacher, as in the published table. What differs between sizes is the geometry alone: corpus, steps,
learning rates, episodes and probe tasks are the same, and so is `seed`, so that all sizes are
probed on the same tasks.
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
    config.base.num_kv_heads = 1
    config.arms.benign_teacher = config.arms.self_distilled = config.arms.unsanitized = False
    return config


def sweep():
    fields = ("base.width", "base.mlp_width", "base.num_layers", "base.num_heads")
    return [Member(name, dict(zip(fields, size, strict=True))) for name, size in SIZES.items()]
