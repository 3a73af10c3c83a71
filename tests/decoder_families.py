"""A tiny seeded model of every decoder family of transformers that one can be made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_models import tiny_tokenizer
from transformers import CONFIG_MAPPING, AutoModel

LAYERS = 3

_USUAL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,  # attention that differs clearly from uniform
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SHARED_KEYS = {"num_key_value_heads": 2, "head_dim": 16}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
_LATENT = {  # multi-head latent attention: values are narrower than keys
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "head_dim": 8,
}

_DENSE = """
    apertus arcee aria_text bitnet cohere cohere2 diffllama ernie4_5 exaone4 gemma gemma2 gemma3_text glm glm4 granite
    granite_swa helium hunyuan_v1_dense internlm3 jais2 lfm2 llama ministral mistral nanochat nemotron olmo olmo2 olmo3
    persimmon phi phi3 qwen2 qwen3 seed_oss smollm3 stablelm starcoder2 vaultgemma
"""
_SPARSE = """
    afmoe dots1 doge ernie4_5_moe exaone_moe flex_olmo glm4_moe gpt_oss granitemoe granitemoeshared hunyuan_v1_moe
    laguna llama4_text mellum minimax minimax_m2 mixtral olmoe phimoe qwen2_moe qwen3_moe qwen3_next solar_open
"""


def _each(families: str, made_of: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {family: made_of for family in families.split()}


FAMILIES: dict[str, dict[str, Any]] = {
    **_each(_DENSE, _SHARED_KEYS),
    **_each(_SPARSE, {**_SHARED_KEYS, **_EXPERTS}),
    **_each("deepseek_v2 deepseek_v3 glm4_moe_lite longcat_flash", {**_LATENT, **_EXPERTS}),
    **_each("minicpm3 youtu", _LATENT),
    **_each("biogpt falcon gpt_neox opt", {}),
    "bloom": {"n_layer": LAYERS, "n_head": 4},
    "codegen": {"n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_positions": 2048, "rotary_dim": 8},
    "gpt2": {"n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_positions": 2048},
    "gpt_bigcode": {"n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_positions": 2048},
    "gptj": {"n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_positions": 2048, "rotary_dim": 8},
    "mpt": {"d_model": 64, "n_layers": LAYERS, "n_heads": 4, "max_seq_len": 2048},
}
_LAYER_KINDS = {"lfm2": ["conv", "full_attention", "full_attention"]}  # it must have one of the others


def family_folder(folder: Path, family: str, *, seed: int = 0, **changes: Any) -> Path:
    """Save a model of a family, full attention in every layer where it has a choice, with the tiny tokenizer."""
    made_of = {**_USUAL, **FAMILIES[family], "vocab_size": len(tiny_tokenizer()), **changes}
    configuration = CONFIG_MAPPING[family]
    config = configuration(**made_of)
    if getattr(config, "layer_types", None) and "layer_types" not in made_of:
        kinds = _LAYER_KINDS.get(family, ["full_attention"] * LAYERS)
        config = configuration(**made_of, layer_types=kinds)
    elif getattr(config, "sliding_window", None) and "sliding_window" not in made_of:
        config = configuration(**made_of, sliding_window=None)
    torch.manual_seed(seed)
    model = AutoModel.from_config(config)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
