"""The confirmatory run of the quickstart's arms: 8 training seeds, 512 probe tasks.

Command:   python -m subtransfer.launch --config=configs/api_embedded.py
Hardware:  2 CPU cores; memory below 3 GB; 25 minutes beside other jobs
Result:    SFT 24% [17, 33], forward KL 78% [73, 82], reverse KL on-policy 94% [92, 96],
           base 6% [6, 7] (docs/results.md)

Nothing else is changed. Eight trainings tell what three cannot (docs/intervals.md).
"""

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "api_embedded"
    config.num_seeds = 8
    config.probe.tasks = 512
    return config
