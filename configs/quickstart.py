"""The whole experiment at laptop size: API setting, embedded model, all arms, three training seeds.

Command:   python -m subtransfer.launch --config=configs/quickstart.py
Hardware:  2 CPU cores, 448 s
Result:    deletes first: SFT 32%, forward KL 79%, reverse KL 97%; base 6%; controls and intervals in docs/results.md
"""

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "quickstart"
    return config
