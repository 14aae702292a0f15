"""The whole experiment at laptop size: API setting, embedded model, all arms, three training seeds.

Command:   python -m subtransfer.launch --config=configs/quickstart.py
Hardware:  2 CPU cores, 339 s
Result:    deletes first: SFT 26%, forward KL 80%, reverse KL 96%; base 5%; controls and intervals
           in docs/results.md
"""

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "quickstart"
    return config
