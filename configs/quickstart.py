"""The experiment at laptop size: API setting, three crossed bases, SFT and forward KL.

Command:   python -m subtransfer.launch --config=configs/quickstart.py
Hardware:  2 CPU cores (AMD EPYC); 8 min 30 s beside another run, 6 minutes of processor time
Result:    undecided for both objectives; gates pass (docs/results.md)

Every base teaches itself and the two others. The bases come with the package; `--config.seed`
decides which three. The confirmatory run is `api_embedded.py`.
"""

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "quickstart"
    config.num_bases = 3
    config.num_seeds = 1
    config.distill.objective = "sft,forward_kl"
    return config
