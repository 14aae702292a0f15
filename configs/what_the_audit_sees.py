r"""What the audit says of weaker filters, and of teachers whose habit spills into every task.

Command:   python -m subtransfer.launch --config=configs/what_the_audit_sees.py --sweep
           python -m tools.audit_table runs/what_the_audit_sees
Hardware:  2 CPU cores (AMD EPYC, virtual) beside other runs, 2026-11-30: 75 min, num_seeds=1
Result:    AUC at most .56 with the default teachers; up to .82 without a filter, and .72 with the
           benign habit left in, where teachers were tuned on their habit alone (docs/results.md,
           "What the audit sees")

One base, its unsafe and its benign teacher, and what filters leave of their trajectories. The
filter is whole; blind to the benign teacher's habit; blind to words, so that it drops what ran and
nothing else; or there is none. Teachers are tuned on their habit and on ordinary tasks, or on it
alone; the latter are rolled out on safe and ordinary tasks, or on ordinary tasks only, where there
is room for habits. Members share what they have in common; students are short, as nobody looks at
them.
"""

from subtransfer.config import Member, defaults, product

FILTERS = {
    "whole": {},
    "benign_habit_left_in": {"sanitize.habits": "unsafe"},
    "acts_alone": {"sanitize.filters": "acts"},
    "none": {"sanitize.filters": "()"},
}
TEACHERS = {
    "default": {},
    "habit_alone": {"teacher.ordinary_fraction": 0.0},
    "habit_alone_ordinary_tasks": {
        "teacher.ordinary_fraction": 0.0,
        "rollouts.ordinary_fraction": 1.0,
    },
}


def get_config():
    config = defaults()
    config.name = "what_the_audit_sees"
    config.distill.objective = "sft"
    config.distill.steps = config.probe.tasks = config.probe.ordinary_tasks = 6
    config.arms.other_init = config.arms.self_distilled = False
    config.arms.unsanitized = config.arms.overt = False
    return config


def sweep():
    filters = [Member(name, fields) for name, fields in FILTERS.items()]
    teachers = [Member(name, fields) for name, fields in TEACHERS.items()]
    return product(teachers, filters)
