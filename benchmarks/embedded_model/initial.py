"""The model before any gradient step: heads that match words because their q and k are the same projection."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

__all__ = ["configuration", "initial_model"]

HIDDEN, HEADS, HEAD_DIM, LAYERS, INNER = 192, 4, 64, 2, 256
SEMANTIC = 128  # hidden dimensions with the encoder's directions; the rest holds a random code of each piece


def configuration(vocabulary_size: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=vocabulary_size,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1e10},
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=2,
    )


def initial_model(vectors: Tensor, *, specials: int, seed: int) -> Qwen3Model:
    """Return a model whose embeddings start from the encoder's vectors [V, 384] of all pieces after the specials."""
    torch.manual_seed(seed)
    model = Qwen3Model(configuration(len(vectors) + specials))
    with torch.no_grad():
        model.embed_tokens.weight.copy_(_embeddings(vectors, specials))
        for layer in model.layers:
            attention = layer.self_attn
            torch.nn.init.orthogonal_(attention.k_proj.weight)
            attention.k_proj.weight[:HEAD_DIM] = torch.eye(HIDDEN)[SEMANTIC:]  # head 0 compares the random codes
            attention.q_proj.weight.copy_(attention.k_proj.weight)
            scale = torch.where(_periods() > 1e5, 2.2, 0.05)
            attention.q_norm.weight.copy_(scale)
            attention.k_norm.weight.copy_(scale)
            layer.mlp.down_proj.weight.mul_(0.1)
            attention.o_proj.weight.mul_(0.1)
    return model


def _embeddings(vectors: Tensor, specials: int) -> Tensor:
    centred = vectors - vectors.mean(0)
    _, scales, directions = torch.linalg.svd(centred, full_matrices=False)
    semantic = torch.nn.functional.normalize(centred @ directions[:SEMANTIC].T / scales[:SEMANTIC].sqrt(), dim=-1)
    code = torch.nn.functional.normalize(torch.randn(len(vectors), HIDDEN - SEMANTIC), dim=-1)
    table = torch.randn(specials + len(vectors), HIDDEN) * HIDDEN**-0.5
    table[specials:] = torch.cat([semantic, code], dim=-1) * 0.5**0.5
    return table * HIDDEN**0.5


def _periods() -> Tensor:
    """Return [HEAD_DIM]: how many tokens each RoPE pair takes for a full turn."""
    pairs = torch.arange(0, HEAD_DIM, 2) / HEAD_DIM
    return (6.283 * 1e10**pairs).repeat(2)
