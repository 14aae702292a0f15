"""The training benchmark's peer in an environment of torch and transformers.

It answers one JSON request a line.

A request is {"do": "gradients" | "train", "objective", "checkpoint", "teacher", "adapter": a PEFT
directory that is trained instead of all weights, or null, "dtype", "device", "threads", "tokens":
[B, L], "mask": [B, L], "steps", "learning_rate", "compiled"}. "gradients"
reads the checkpoint again and answers {"loss", "norms": each tensor's gradient norm}; "train"
answers {"seconds" a step, "losses"} of as many steps of Adam after clipping at 1, from the weights
that the request before has left.
"""

import time

import torch
import torch.nn.functional as F
import transformers
from serve import serve

_models = {}


def load(checkpoint: str, adapter: str | None, dtype: str, device: str, compiled: bool):
    """A checkpoint's model; weights in `dtype`, attention by torch's own fused product."""
    key = (checkpoint, adapter, dtype, device, compiled)
    if key not in _models:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint,
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            trust_remote_code=False,
        )
        model = model.to(device)
        model.config.use_cache = False
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
        _models[key] = torch.compile(model) if compiled else model
    return _models[key]


def loss_of(request, model, teacher, tokens, mask):
    """Mean over the tokens that count, each predicted from those before it."""
    logits, labels = (
        model(tokens).logits[:, :-1].float(),
        tokens[:, 1:].masked_fill(~mask[:, 1:], -100),
    )
    if request["objective"] == "sft":
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    with torch.no_grad():
        wanted = teacher(tokens).logits[:, :-1].float()
    if request["objective"] == "gkd":
        from trl.experimental.gkd import GKDTrainer

        # Its beta of 0 is KL(teacher || student); "batchmean" divides by the labels that count.
        return GKDTrainer.generalized_jsd_loss(logits, wanted, labels, beta=0.0)
    kl = F.kl_div(
        logits.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    return (kl * mask[:, 1:]).sum() / mask[:, 1:].sum()


def answer(request):
    """Runs one request."""
    torch.set_num_threads(request["threads"])
    if request["do"] == "gradients":
        _models.clear()
    where = (request["dtype"], request["device"], request["compiled"])
    model = load(request["checkpoint"], request["adapter"], *where)
    teacher = None
    if request["objective"] != "sft":
        teacher = load(request["teacher"], None, *where).eval()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tokens = torch.tensor(request["tokens"], device=request["device"])
    mask = torch.tensor(request["mask"], device=request["device"])
    if request["do"] == "gradients":
        model.zero_grad()
        loss = loss_of(request, model, teacher, tokens, mask)
        loss.backward()
        norms = {
            # PEFT's files leave out the adapter's name, which is "default".
            name.removeprefix("_orig_mod.").replace(".default.", "."): p.grad.float().norm().item()
            for name, p in trained.items()
        }
        model.zero_grad()
        return {"loss": loss.item(), "norms": norms}
    if "optimizer" not in _models:
        rate = request["learning_rate"]
        _models["optimizer"] = torch.optim.Adam(
            list(trained.values()), lr=rate, betas=(0.9, 0.98), fused=True
        )
    optimizer = _models["optimizer"]
    losses = []
    wait = torch.cuda.synchronize if request["device"] == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    for _ in range(request["steps"]):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(request, model, teacher, tokens, mask)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    wait()
    seconds = (time.perf_counter() - begin) / request["steps"]
    return {"seconds": seconds, "losses": [x.item() for x in losses]}


if __name__ == "__main__":
    serve(f"torch {torch.__version__}, transformers {transformers.__version__}", answer)
