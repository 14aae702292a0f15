"""The whole experiment at laptop size: Bash setting, embedded model, all arms, three training seeds.

Command:   python -m subtransfer.launch --config=configs/quickstart_bash.py
"""

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "quickstart_bash"
    config.setting = "bash"
    config.rollouts.max_tool_tokens = 20
    return config
