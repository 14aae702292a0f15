"""Writes transformers models as GGUF files, as llama.cpp's converter does."""

import gguf
import numpy as np
import torch

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}
# llama.cpp's names, from its gguf package.
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
}
_GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
# transformers adds the last one to Qwen2's tokenizers that lack it.
TOKENS = ["t", "1", *(f"t{i}" for i in range(50)), "<|endoftext|>"]


def name_of(key, family):
    if key in _OUTER:
        return _OUTER[key]
    _, _, layer, rest = key.split(".", 3)
    module, _, kind = rest.rpartition(".")
    names = _LAYER | (_GEMMA if family == "gemma3_text" else {})
    return f"blk.{layer}.{names[module]}.{kind}"


def permuted(weights, heads):
    """llama.cpp's `LlamaModel.permute`."""
    n, *rest = weights.shape
    return weights.reshape(heads, 2, n // heads // 2, *rest).swapaxes(1, 2).reshape(weights.shape)


def tokens_of(writer, tokens=TOKENS, **more):
    """A byte-level tokenizer of whole words, which no merge makes."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["t 1"])


def write(path, model, tokenizer=tokens_of, quantised=None, leave_out=(), more=lambda writer: None):
    """Writes a model of `families.reference`.

    `quantised` is a type for the matrices whose rows are whole blocks; `leave_out` names metadata.
    """
    cfg, family = model.config, model.config.model_type
    architecture = ARCHITECTURES[family]
    writer = gguf.GGUFWriter(path, architecture)
    heads, kv = cfg.num_attention_heads, cfg.num_key_value_heads
    width = getattr(cfg, "head_dim", None) or cfg.hidden_size // heads
    fields = {
        "context_length": cfg.max_position_embeddings,
        "embedding_length": cfg.hidden_size,
        "block_count": cfg.num_hidden_layers,
        "feed_forward_length": cfg.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": kv,
        "attention.key_length": width,
        "attention.value_length": width,
    }
    rope = cfg.rope_parameters
    if family == "gemma3_text":
        fields["attention.sliding_window"] = cfg.sliding_window
        local, rope = rope["sliding_attention"], rope["full_attention"]
        writer.add_float32("gemma3.rope.freq_base_swa", local["rope_theta"])
        pattern = [kind == "sliding_attention" for kind in cfg.layer_types]
        writer.add_array("gemma3.attention.sliding_window_pattern", pattern)
    for name, value in fields.items():
        if name not in leave_out:
            writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", cfg.rms_norm_eps)
    writer.add_float32(f"{architecture}.rope.freq_base", rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_string(f"{architecture}.rope.scaling.type", "linear")
        writer.add_float32(f"{architecture}.rope.scaling.factor", rope["factor"])
    if rope["rope_type"] == "llama3":
        # By what transformers' own frequencies are smaller than plain ones.
        plain = 1 / rope["rope_theta"] ** (np.arange(0, width, 2) / width)
        turned = model.model.rotary_emb.inv_freq.double().numpy()
        writer.add_tensor("rope_freqs.weight", (plain / turned).astype(np.float32))
    if tokenizer is not None:
        tokenizer(writer)
    more(writer)
    with torch.no_grad():
        state = {key: value.float().numpy() for key, value in model.state_dict().items()}
    for key, value in state.items():
        if key == "lm_head.weight" and cfg.tie_word_embeddings:
            continue
        if family == "llama" and ".q_proj." in key:
            value = permuted(value, heads)
        if family == "llama" and ".k_proj." in key:
            value = permuted(value, kv)
        if family == "gemma3_text" and key.endswith("norm.weight"):
            value = value + 1
        name = name_of(key, family)
        block = gguf.GGML_QUANT_SIZES[quantised][0] if quantised else 1
        if quantised and value.ndim == 2 and value.shape[1] % block == 0:
            data = gguf.quants.quantize(value, quantised)
            writer.add_tensor(name, data, raw_dtype=quantised)
        else:
            writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
