"""The confirmatory run, Bash setting: eight crossed bases of its own, all arms, 512 probe tasks.

Command:   python -m subtransfer.launch --config=configs/bash_embedded.py
Hardware:  one of 2 CPU cores (AMD EPYC, virtual) beside other runs, 2026-11-30: 4,952 s
Result:    no transfer beyond 10 points by all three objectives (+0.3, +0.7, +0.5 points;
           docs/results.md); all gates pass; the data are not visibly different

As `api_embedded.py`, in a shell, where tool results are longer.
"""

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "bash_embedded"
    config.setting = "bash"
    config.confirmatory = True
    config.seed = 20261130  # of corpus, bases and tasks: none of the quickstart's
    config.num_bases = 8
    config.num_seeds = 1
    config.base.from_scratch = True
    config.rollouts.max_tool_tokens = 20
    config.probe.tasks = 512
    config.arms.random_teacher = True
    config.arms.structure_matched = True
    config.arms.random_same_size = True
    config.arms.raw_on_policy = True
    return config
