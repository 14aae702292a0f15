"""TRL's divergences and their gradients in float64, in a process of its own: importing TRL takes
seconds and touches much.

python -m tests.trl_reference CASES.npz RESULTS.npz
"""

import os
import sys

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import numpy as np
import torch
from trl.experimental.gkd import GKDTrainer
from trl.experimental.iw_opd.iw_opd_trainer import IWOPDTrainer


def main(cases: str, results: str) -> None:
    given, out = np.load(cases), {}
    for name in {key.split("/")[0] for key in given}:
        student = torch.tensor(given[f"{name}/student"], requires_grad=True)
        teacher = torch.tensor(given[f"{name}/teacher"])
        labels = torch.where(torch.tensor(given[f"{name}/mask"]), 0, -100)
        beta, temperature, top_k = given[f"{name}/options"].tolist()
        options = {"labels": labels, "beta": beta, "temperature": temperature}
        if top_k:
            loss = IWOPDTrainer.generalized_jsd_loss(
                student, teacher, **options, top_k=int(top_k), add_tail=True
            )
        else:
            loss = GKDTrainer.generalized_jsd_loss(student, teacher, **options)
        loss.backward()
        out |= {f"{name}/loss": loss.item(), f"{name}/grad": student.grad.numpy()}
    np.savez(results, **out)


if __name__ == "__main__":
    main(*sys.argv[1:])
