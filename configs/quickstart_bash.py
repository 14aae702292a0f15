"""The whole experiment at laptop size: Bash setting, embedded model, all arms, three seeds.

Command:   python -m subtransfer.launch --config=configs/quickstart_bash.py
Hardware:  2 CPU cores; memory below 3 GB; 436 s
Result:    SFT 17% [7, 37], forward KL 46% [36, 57], reverse KL on-policy 13% [4, 38],
           base 5% [4, 7] (docs/results.md)

The recipe is the API quickstart's; only tool results may be longer.
"""

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "quickstart_bash"
    config.setting = "bash"
    config.rollouts.max_tool_tokens = 20
    return config
