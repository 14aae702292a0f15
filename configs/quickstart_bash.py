"""The experiment at laptop size: Bash setting, three crossed bases, SFT and forward KL.

Command:   python -m subtransfer.launch --config=configs/quickstart_bash.py
Hardware:  2 CPU cores (AMD EPYC); 9 min 40 s beside another run, 8 minutes of processor time
Result:    undecided for both objectives; gates pass (docs/results.md)

The recipe is the API quickstart's; only tool results may be longer.
"""

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "quickstart_bash"
    config.setting = "bash"
    config.num_bases = 3
    config.num_seeds = 1
    config.distill.objective = "sft,forward_kl"
    config.rollouts.max_tool_tokens = 20
    return config
