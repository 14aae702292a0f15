"""The whole experiment at laptop size: API setting, embedded model, all arms, three training seeds.

Command:   python -m subtransfer.launch --config=configs/quickstart.py
"""

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "quickstart"
    return config


def sweep():
    from subtransfer.sweep import product, seeds, vary

    return product(vary("distill.objective", "sft", "forward_kl"), seeds(2))
