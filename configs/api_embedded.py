"""The confirmatory run, API setting: eight crossed bases of its own, all arms, 512 probe tasks.

Command:   python -m subtransfer.launch --config=configs/api_embedded.py
Hardware:  one of 2 CPU cores (AMD EPYC, virtual) beside other runs, 2026-11-30: 4,221 s
Result:    no transfer beyond 10 points by all three objectives (+1.6, +3.0, +2.7 points;
           docs/results.md); all gates pass; the data of two of eight bases are visibly different

What is asked is registered before the first stage (`prereg.json`). Its bases are pretrained in the
run: nobody has looked at them. Less than eight could not show that there is no transfer: an effect
that one base in three has may be in none of them (docs/intervals.md).
"""

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "api_embedded"
    config.confirmatory = True
    config.seed = 20261130  # of corpus, bases and tasks: none of the quickstart's
    config.num_bases = 8
    config.num_seeds = 1
    config.base.from_scratch = True
    config.probe.tasks = 512
    config.arms.random_teacher = True
    config.arms.structure_matched = True
    config.arms.random_same_size = True
    config.arms.raw_on_policy = True
    return config
