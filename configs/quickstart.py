"""The experiment at laptop size: API setting, three crossed bases, SFT and forward KL.

Command:   python -m subtransfer.launch --config=configs/quickstart.py
Hardware:  2 quiet CPU cores (AMD EPYC, virtual), 2026-12-01; 250 s, 5 min with installation
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
