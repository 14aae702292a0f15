"""The confirmatory run of the quickstart's arms: 8 training seeds, 512 probe tasks, nothing else changed.

Command:   python -m subtransfer.launch --config=configs/api_embedded.py
Hardware:  2 CPU cores; memory below 3 GB; 19 minutes
Result:    SFT 30% [22, 40], forward KL 76% [73, 79], reverse KL on-policy 91% [88, 94], base 7% [6, 8] (docs/results.md)

Three seeds against three cannot reach p < 0.1 in a permutation over seeds; eight against eight can reach 0.00016.
"""

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "api_embedded"
    config.num_seeds = 8
    config.probe.tasks = 512
    return config
