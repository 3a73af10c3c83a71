"""GGUF files for tests: a tiny model's weights as llama.cpp's converter writes them, and the same weights unpacked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tiny_models import tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

# llama.cpp's names; norms and biases stay float32 in every file.
_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
CONTROL, NORMAL = 3, 1


def write_gguf(
    folder: Path, file: Path, kind: str = "F32", *, also: dict[str, Any] | None = None, leave_out: tuple[str, ...] = ()
) -> Path:
    """Write a tiny model's folder as a GGUF file of one type; return a second folder with the weights of that file.

    Args:
        folder: as `tiny_model` makes it.
        file: to write.
        kind: F32, F16, Q8_0, Q4_1, …
        also: more tensors, or under keys with a colon (``uint32:qwen3.x``) more metadata.
        leave_out: metadata that is not written.
    """
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    family = config.model_type
    writer = gguf.GGUFWriter(file, family)
    facts = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
    }
    for key, value in facts.items():
        if key not in leave_out:
            writer.add_uint32(f"{family}.{key}", value)
    writer.add_float32(f"{family}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32(f"{family}.rope.freq_base", config.rope_parameters["rope_theta"])
    _add_tokenizer(writer)
    unpacked = {}
    for name, weight in model.state_dict().items():
        called = _called(name)
        values = weight.numpy()
        if called.endswith(("attn_q.weight", "attn_k.weight")) and family == "llama":
            values = _permuted(values, config.head_dim)
        type_ = gguf.GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        packed = gguf.quants.quantize(values, type_)
        writer.add_tensor(called, packed, raw_dtype=type_)
        back = gguf.quants.dequantize(packed, type_)
        if called.endswith(("attn_q.weight", "attn_k.weight")) and family == "llama":
            back = _unpermuted(back, config.head_dim)
        unpacked[name] = torch.from_numpy(np.array(back))
    for name, value in (also or {}).items():
        kind_of, _, key = name.rpartition(":")
        if kind_of:
            getattr(writer, f"add_{kind_of}")(key, value)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.load_state_dict(unpacked)
    twin = file.with_suffix("")
    model.save_pretrained(twin)
    tiny_tokenizer().save_pretrained(twin)
    return twin


def _called(name: str) -> str:
    module, _, end = name.rpartition(".")
    if module in _OUTSIDE:
        return f"{_OUTSIDE[module]}.{end}"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{_PARTS[part]}.{end}"


def _permuted(values: np.ndarray, width: int) -> np.ndarray:
    """As convert_hf_to_gguf.py does for Llama: the two halves of a head's dimensions in turns."""
    rows, columns = values.shape
    return values.reshape(rows // width, 2, width // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _unpermuted(values: np.ndarray, width: int) -> np.ndarray:
    rows, columns = values.shape
    return values.reshape(rows // width, width // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokenizer = tiny_tokenizer()
    stated = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    controls = set(tokenizer.get_added_vocab())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([CONTROL if token in controls else NORMAL for token, _ in tokens])
    writer.add_token_merges([" ".join(pair) for pair in stated["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
