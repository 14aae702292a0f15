"""The whole experiment at laptop size: Bash setting, embedded model, all arms, three training seeds.

Command:   python -m subtransfer.launch --config=configs/quickstart_bash.py
Hardware:  2 CPU cores; memory below 3 GB; 990 s while they were shared with other work
Result:    SFT 6% [2, 17], forward KL 25% [10, 49], reverse KL on-policy 32% [5, 80], base 4% [3, 6] (docs/results.md)

The recipe is the API quickstart's; only tool results may be longer.
"""

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "quickstart_bash"
    config.setting = "bash"
    config.rollouts.max_tool_tokens = 20
    return config
