"""The names that Hugging Face's files give to a decoder's parameters."""

from __future__ import annotations

import dataclasses

from subtransfer.models.decoder import DecoderConfig

# The file that says which of several safetensors files holds a tensor.
INDEX = "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of the parameter tree and the tensors that hold it in Hugging Face's files.

    Attributes:
      path: where it is in the parameter tree.
      name: the tensor's name; "{}" stands for the layer's number where the leaf stacks all layers.
      shape: of one tensor as the files have it.
      transposed: the files have [out, in] where the tree has [in, out].
    """

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def stacked(self) -> bool:
        """Whether the leaf stacks one tensor of each layer."""
        return "{}" in self.name


def leaves(cfg: DecoderConfig) -> tuple[Leaf, ...]:
    """Lists every parameter of a decoder."""
    d, f = cfg.width, cfg.mlp_width
    q, kv = cfg.num_heads * cfg.head_width, cfg.num_kv_heads * cfg.head_width
    out = [Leaf(("embedding",), "model.embed_tokens.weight", (cfg.vocab_size, d))]
    out.append(Leaf(("final_norm", "scale"), "model.norm.weight", (d,)))
    if not cfg.tied_embeddings:
        out.append(Leaf(("lm_head",), "lm_head.weight", (cfg.vocab_size, d), True))

    def layer(path, name, shape, transposed=False):
        out.append(Leaf(("layers", *path), "model.layers.{}." + name, shape, transposed))

    layer(("attn_norm", "scale"), "input_layernorm.weight", (d,))
    # With norms after attention too (Gemma 3), the name "post_attention" is theirs.
    before_mlp = "pre_feedforward_layernorm" if cfg.post_norms else "post_attention_layernorm"
    layer(("mlp_norm", "scale"), f"{before_mlp}.weight", (d,))
    if cfg.post_norms:
        layer(("attn_post_norm", "scale"), "post_attention_layernorm.weight", (d,))
        layer(("mlp_post_norm", "scale"), "post_feedforward_layernorm.weight", (d,))
    for p, shape in {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}.items():
        layer((p, "kernel"), f"self_attn.{p}_proj.weight", shape, True)
        if cfg.qkv_bias and p != "o":
            layer((p, "bias"), f"self_attn.{p}_proj.bias", shape[:1])
    if cfg.qk_norm:
        layer(("q_norm", "scale"), "self_attn.q_norm.weight", (cfg.head_width,))
        layer(("k_norm", "scale"), "self_attn.k_norm.weight", (cfg.head_width,))
    for p, shape in {"gate": (f, d), "up": (f, d), "down": (d, f)}.items():
        layer((p, "kernel"), f"mlp.{p}_proj.weight", shape, True)
    return tuple(out)
