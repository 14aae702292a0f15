"""The benchmark's peer in an environment of torch and transformers.

It answers one JSON request a line.

Requests and answers are those of `environment.Peer`; "generate" is `model.generate`, "continuous"
is transformers' continuous batching, "greedy" returns the tokens themselves.
"""

import time

import torch
import transformers
from serve import serve

_models = {}


def load(checkpoint: str, dtype: str, device: str):
    """A checkpoint's model without any token that ends a row, and without filters."""
    key = (checkpoint, dtype, device)
    if key not in _models:
        _models.clear()
        model = (
            transformers.AutoModelForCausalLM.from_pretrained(
                checkpoint, dtype=getattr(torch, dtype), trust_remote_code=False
            )
            .to(device)
            .eval()
        )
        model.generation_config = transformers.GenerationConfig(pad_token_id=0, do_sample=False)
        _models[key] = model
    return _models[key]


def padded(prompts, device):
    """Prompts padded on the left, and which tokens are real: int64 [B, L] both."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)
    real = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return {"input_ids": ids, "attention_mask": real}


def generate(model, request, **options):
    """New tokens [B, T] of `model.generate`.

    On an accelerator, it has a static cache, which lets it compile its step.
    """
    static = {"cache_implementation": "static"} if model.device.type != "cpu" else {}
    batch = padded(request["prompts"], model.device)
    with torch.inference_mode():
        out = model.generate(**batch, max_new_tokens=request["new_tokens"], **static, **options)
    return out[:, batch["input_ids"].shape[1] :].tolist()


def continuous(model, request):
    """New tokens of continuous batching, `rows` requests at a time.

    On a CPU its cache must be given its size.
    """
    config = None
    if model.device.type == "cpu":
        rows, page = request["rows"], 32
        longest = max(map(len, request["prompts"])) + request["new_tokens"]
        config = transformers.ContinuousBatchingConfig(
            page_size=page,
            num_blocks=rows * -(-longest // page) + 1,
            max_batch_tokens=1024,
            max_requests_per_batch=rows,
            allow_block_sharing=False,
        )
    sampled = transformers.GenerationConfig(
        max_new_tokens=request["new_tokens"],
        do_sample=True,
        top_k=0,
        eos_token_id=-1,
        pad_token_id=0,
    )
    out = model.generate_batch(
        request["prompts"], generation_config=sampled, continuous_batching_config=config
    )
    return [result.generated_tokens for result in out.values()]


def answer(request):
    """Runs one request.

    Seconds are those of the whole call, with the way from and to lists of tokens.
    """
    torch.set_num_threads(request["threads"])
    model = load(request["checkpoint"], request["dtype"], request["device"])
    begin = time.perf_counter()
    if request["do"] == "continuous":
        rows = continuous(model, request)
    elif request["do"] == "greedy":
        rows = generate(model, request)
    else:
        torch.manual_seed(request["seed"])
        rows = generate(model, request, do_sample=True, top_k=0, temperature=1.0)
    reply = {"seconds": time.perf_counter() - begin, "tokens": sum(map(len, rows))}
    return {**reply, "rows": rows} if request["do"] == "greedy" else reply


if __name__ == "__main__":
    serve(f"torch {torch.__version__}, transformers {transformers.__version__}", answer)
