"""Small randomly initialised transformers models of every family, in several geometries, for the
parity tests.
"""

import torch
import transformers

# Head widths 8 and 10 have, over 64 positions, frequencies in all three bands: kept, in the smooth
# passage, divided.
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
DEFAULT = {"rope_type": "default", "rope_theta": 5000.0}
GEMMA = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
GEMMA_LINEAR = {
    **GEMMA,
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
}
PATTERN = ["sliding_attention"] * 2 + ["full_attention"]

# name -> (family, heads, kv heads, head width, tied, what else)
GEOMETRIES = {
    "llama mha tied": ("llama", 4, 4, 8, True, {"rope_parameters": DEFAULT}),
    "llama mqa untied, llama3 rope": ("llama", 4, 1, 8, False, {"rope_parameters": LLAMA3}),
    "llama odd heads, own head width": ("llama", 9, 3, 10, True, {"rope_parameters": LLAMA3, "head_dim": 10, "hidden_size": 36}),
    "qwen2 gqa tied": ("qwen2", 6, 2, 8, True, {"rope_parameters": DEFAULT}),
    "qwen2 odd heads untied": ("qwen2", 7, 7, 4, False, {"rope_parameters": DEFAULT}),
    "qwen2 sliding upper layers": ("qwen2", 5, 1, 8, True, {
        "rope_parameters": DEFAULT, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    "qwen3 gqa, wide heads": ("qwen3", 4, 2, 16, True, {"rope_parameters": DEFAULT, "head_dim": 16, "hidden_size": 48}),
    "qwen3 odd heads untied": ("qwen3", 5, 5, 6, False, {"rope_parameters": DEFAULT, "head_dim": 6}),
    "qwen3 mqa": ("qwen3", 6, 1, 8, False, {"rope_parameters": DEFAULT, "head_dim": 8}),
    "gemma3 window 4": ("gemma3_text", 4, 2, 8, True, {
        "rope_parameters": GEMMA, "head_dim": 8, "sliding_window": 4, "layer_types": PATTERN, "query_pre_attn_scalar": 8}),
    "gemma3 window 7, linear rope": ("gemma3_text", 3, 1, 16, True, {
        "rope_parameters": GEMMA_LINEAR, "head_dim": 16, "sliding_window": 7, "layer_types": PATTERN, "query_pre_attn_scalar": 24,
        "hidden_size": 24}),
    "gemma3 window wider than the text": ("gemma3_text", 5, 5, 8, True, {
        "rope_parameters": GEMMA_LINEAR, "head_dim": 8, "sliding_window": 512, "layer_types": PATTERN, "query_pre_attn_scalar": 8}),
}  # fmt: skip

CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "gemma3_text": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
}


def reference(name, dtype=torch.float32, vocab=53, layers=3, scale=0.2, seed=0):
    """A transformers model of `GEOMETRIES[name]` with weights far from their constant starts."""
    family, heads, kv, head_width, tied, more = GEOMETRIES[name]
    common = dict(
        vocab_size=vocab, hidden_size=heads * head_width, intermediate_size=40, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv, tie_word_embeddings=tied, rms_norm_eps=1e-5, max_position_embeddings=4096,
        pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    config_class, model_class = CLASSES[family]
    torch.manual_seed(seed)
    model = model_class(config_class(**{**common, **more})).eval()
    with torch.no_grad():
        for (
            key,
            p,
        ) in (
            model.named_parameters()
        ):  # norms and biases start at constants, which would hide mistakes
            centre = 1.0 if "norm" in key and family != "gemma3_text" else 0.0
            p.copy_(torch.randn_like(p) * scale + centre)
    return model.to(dtype)


def multimodal(language_model):
    """A multimodal Gemma 3 around a model of `reference`, with a small random vision tower."""
    vision = transformers.SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
    )  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=language_model.config, vision_config=vision, mm_tokens_per_image=1,
        boi_token_index=1, eoi_token_index=2, image_token_index=3,
    )  # fmt: skip
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.model.language_model.load_state_dict(language_model.model.state_dict())
    return model
