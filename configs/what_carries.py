"""What of a base carries a transfer? Students from three bases, and from twins that share a part.

Command:   python -m subtransfer.launch --config=configs/what_carries.py
Hardware:  not run yet
Result:    not run yet

Each trait teacher teaches students of its own base, of two bases of another initialisation, and of
four twins of its base that were pretrained like it: from the same initial weights in another order
of data, from its initial body with another embedding, from its initial embedding with another body,
and from its initial weights with the embedding's rows permuted. The embedded model's output head is
its embedding. SFT on sampled tokens and forward KL, three training seeds.
"""

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "what_carries"
    config.num_bases = 3
    config.distill.objective = "sft,forward_kl"
    config.arms.init_parts = True
    # Twins share what bases were before their training, which shipped ones are not known by.
    config.base.from_scratch = True
    config.arms.self_distilled = config.arms.unsanitized = False
    return config
