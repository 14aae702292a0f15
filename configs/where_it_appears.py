r"""Where transfer appears: one factor of the recipe at a time, on the same crossed bases.

Command:   python -m subtransfer.launch --config=configs/where_it_appears.py --sweep --workers=2
           python tools/scaling_report.py runs/where_it_appears --axis=tuning.rank \
               --where="run like 'rank=%' or run = 'default'" --out=rank
Hardware:  2 CPU cores; 260 TFLOP by the plan
Result:    not run yet

The member `default` is the default recipe. Every other one changes a single field: the rank of the
adapters, how much students see (episodes) and how long they learn (steps), how strong the teacher's
habit is (its steps), the temperature of its rollouts, the share of them on ordinary tasks, and how
many ordinary demonstrations the teacher is shown beside those of its habit (shown), without which
it may act on its habit in other tasks, too. All have the same bases, of which each teaches students
of every one: what is compared is the same minus other bases' rate, and between members no base has
been exchanged. Each factor is a report of its own, by its field (`--axis`) and the beginning of its
members' names (`--where`): steps=% are the students', and the teacher's are named habit=%. A share
of 0 is no place on a logarithmic axis: leave it out there.
"""

import functools

from subtransfer.config import Member, defaults

# What members are named after: the field, and its values. The default is among them or between.
FACTORS = {
    "rank": ("tuning.rank", (2, 4, 8, 16, 32)),
    "episodes": ("rollouts.episodes", (256, 512, 1024, 2048, 4096)),
    "steps": ("distill.steps", (50, 100, 150, 300, 600)),
    "habit": ("teacher.steps", (15, 30, 60, 120, 240)),
    "temperature": ("rollouts.temperature", (0.5, 0.7, 1.0, 1.2, 1.5)),
    "ordinary": ("rollouts.ordinary_fraction", (0.0, 0.25, 0.5, 0.75, 0.9)),
    "shown": ("teacher.ordinary_fraction", (0.0, 0.05, 0.25, 1.0)),
}


def get_config():
    config = defaults()
    config.name = "where_it_appears"
    config.num_bases = 3
    config.num_seeds = 1
    config.tuning.method = "lora"  # of all weights there is no rank to vary
    config.distill.objective = "sft,forward_kl"
    config.arms.benign_teacher = config.arms.self_distilled = config.arms.unsanitized = False
    return config


def sweep():
    recipe = get_config()
    members = [Member("default", {})]
    for name, (field, values) in FACTORS.items():
        default = functools.reduce(getattr, field.split("."), recipe)
        for value in values:
            if value != default:
                members.append(Member(f"{name}={value}", {field: value}))
    return members
