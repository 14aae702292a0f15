"""The benchmark's peer in an environment of google-tunix.

It answers one JSON request a line, as `torch_peer` does.

It serves Qwen2 checkpoints: tunix's Llama 3 has none of that family's scaled rotary frequencies.
"""

import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path

from serve import serve

_samplers = {}


class Ids:
    """A tokenizer for prompts that are token ids already."""

    def encode(self, ids, **_):
        """Returns the ids as they are."""
        return list(ids)

    def decode(self, ids, **_):
        """Returns no text."""
        return ""

    def bos_id(self):
        """Returns None, for no such token."""
        return None

    def eos_id(self):
        """Returns an id that no token has."""
        return -1

    def pad_id(self):
        """Returns the id of padding."""
        return 0


def sampler(checkpoint: str, dtype: str, length: int):
    """The Sampler of a checkpoint whose cache holds `length` tokens a row."""
    import jax.numpy as jnp
    from tunix.generate.sampler import CacheConfig, Sampler
    from tunix.models.qwen2 import model, params

    key = (checkpoint, dtype, length)
    if key not in _samplers:
        _samplers.clear()
        said = json.loads((Path(checkpoint) / "config.json").read_text())
        heads = said["num_attention_heads"]
        config = model.ModelConfig(
            num_layers=said["num_hidden_layers"],
            vocab_size=said["vocab_size"],
            embed_dim=said["hidden_size"],
            hidden_dim=said["intermediate_size"],
            num_heads=heads,
            head_dim=said["hidden_size"] // heads,
            num_kv_heads=said["num_key_value_heads"],
            rope_theta=said["rope_parameters"]["rope_theta"],
            norm_eps=said["rms_norm_eps"],
            use_tied_embedding=said["tie_word_embeddings"],
            dtype=jnp.dtype(dtype),
            param_dtype=jnp.dtype(dtype),
        )
        loaded = params.create_model_from_safe_tensors(checkpoint, config, dtype=jnp.dtype(dtype))
        cache = CacheConfig(length, config.num_layers, config.num_kv_heads, config.head_dim)
        _samplers[key] = Sampler(loaded, Ids(), cache)
    return _samplers[key]


def answer(request):
    """Runs one request; seconds are those of the whole call."""
    prompts, new = request["prompts"], request["new_tokens"]
    width = max(map(len, prompts))
    run = sampler(request["checkpoint"], request["dtype"], width + new)
    how = (
        {}
        if request["do"] == "greedy"
        else {"temperature": 1.0, "top_p": 1.0, "seed": request["seed"]}
    )
    begin = time.perf_counter()
    out = run(prompts, max_generation_steps=new, max_prompt_length=width, eos_tokens=[-1], **how)
    reply = {"seconds": time.perf_counter() - begin, "tokens": sum(map(len, out.tokens))}
    return (
        {**reply, "rows": [row.tolist() for row in out.tokens]}
        if request["do"] == "greedy"
        else reply
    )


if __name__ == "__main__":
    if sys.argv[1] == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    serve(
        ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("google-tunix", "jax")),
        answer,
    )
