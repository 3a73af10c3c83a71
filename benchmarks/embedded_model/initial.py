"""The model before any gradient step: three layers whose attention is set by hand.

Layer 0 pools: each head takes a mean of the tokens before it, over windows of 4 to 160 tokens, rare words counting
more, and adds it to the residual stream. Its queries and keys are constants (the projections' biases): on the fast
RoPE pairs they make a window that falls off with distance; on one slow pair the key holds the word's rarity.

Layers 1 and 2 match: the query projection starts as a copy of the key projection, and only the slow RoPE pairs count,
which hardly turn over a whole prompt. So a word finds its like from the first step on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

__all__ = ["LAYERS", "configuration", "initial_model"]

HIDDEN, HEADS, HEAD_DIM, LAYERS, INNER = 256, 4, 128, 3, 192
PAIRS = HEAD_DIM // 2
ROPE_THETA = 1e20
FAST_PAIRS = PAIRS // 4  # slower ones turn by less than half a radian over a whole prompt
RARITY = HIDDEN - 1  # the hidden dimension that holds a piece's rarity
RARITY_PAIR = PAIRS - 1
WINDOWS = (4, 10, 40, 160)  # tokens, per pooling head
SHARPNESS = (16.0, 22.0)  # of the matching layers: logits start within this
RARITY_POWER = 2.0


def configuration(vocabulary_size: int) -> Qwen3Config:
    """Return the configuration: 5.6 M parameters at 14,000 pieces."""
    return Qwen3Config(
        vocab_size=vocabulary_size,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD_DIM,
        attention_bias=True,
        max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=2,
    )


def initial_model(vectors: Tensor, rarity: Tensor, *, seed: int) -> Qwen3Model:
    """Return the model.

    Args:
        vectors: [V, 384], the encoder's vector of each piece; zeros for control tokens.
        rarity: [V], the weight of each piece in a pooled window, above 0.
        seed: of what is random: the subspaces of the matching heads and the MLPs.
    """
    torch.manual_seed(seed)
    model = Qwen3Model(configuration(len(vectors)))
    with torch.no_grad():
        model.embed_tokens.weight.copy_(_embeddings(vectors, rarity))
        for layer in model.layers:
            layer.mlp.down_proj.weight.mul_(0.1)
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                getattr(layer.self_attn, name).bias.zero_()
        _pooling(model.layers[0].self_attn)
        for layer, sharpness in zip(model.layers[1:], SHARPNESS, strict=True):
            _matching(layer.self_attn, sharpness)
            layer.self_attn.o_proj.weight.mul_(0.2)
    return model


def _embeddings(vectors: Tensor, rarity: Tensor) -> Tensor:
    """Half-whitened principal components of the vectors, and the logarithm of the rarity in the last dimension."""
    words = vectors.abs().sum(-1) > 0
    centred = (vectors - vectors[words].mean(0)) * words[:, None]
    _, scales, directions = torch.linalg.svd(centred[words], full_matrices=False)
    semantic = centred @ directions[:RARITY].T / scales[:RARITY].sqrt()
    semantic = torch.nn.functional.normalize(semantic, dim=-1) * HIDDEN**0.5
    return torch.cat([semantic, rarity.log()[:, None]], dim=-1)


def _pooling(attention: torch.nn.Module) -> None:
    """Set q and k to constants that make a window, and let v and o carry the normalised hidden state."""
    amplitudes = torch.stack([_window(width) for width in WINDOWS])  # [heads, FAST_PAIRS]
    # A spare slow pair keeps the queries of all heads equally long; the keys are zero there.
    lengths = amplitudes.square().sum(-1) + RARITY_POWER**2
    query_bias = torch.zeros(HEADS, HEAD_DIM)
    query_bias[:, :FAST_PAIRS] = amplitudes
    query_bias[:, RARITY_PAIR] = RARITY_POWER
    query_bias[:, RARITY_PAIR - 1] = (lengths.max() - lengths).sqrt()
    key_bias = torch.zeros(HEADS, HEAD_DIM)
    key_bias[:, :FAST_PAIRS] = 1.0
    key_bias[:, RARITY_PAIR - 2] = 16.0  # the queries are zero here: the key's length hardly depends on the word
    for projection, bias in ((attention.q_proj, query_bias), (attention.k_proj, key_bias)):
        projection.weight.zero_()
        projection.bias.copy_(bias.flatten())
    for head in range(HEADS):
        attention.k_proj.weight[head * HEAD_DIM + RARITY_PAIR, RARITY] = 1.0
    gain = (lengths.max().sqrt() * key_bias[0].norm() / HEAD_DIM**0.5).sqrt()
    attention.q_norm.weight.fill_(float(gain))
    attention.k_norm.weight.fill_(float(gain))
    _carry(attention)


def _carry(attention: torch.nn.Module) -> None:
    """Each head carries half of the hidden state, so that two windows, a short and a long one, carry each half."""
    part = HIDDEN // 2
    attention.v_proj.weight.zero_()
    attention.o_proj.weight.zero_()
    for head in range(HEADS):
        rows = slice(head * HEAD_DIM, head * HEAD_DIM + part)
        columns = slice((head % 2) * part, (head % 2 + 1) * part)
        attention.v_proj.weight[rows, columns] = torch.eye(part)
        attention.o_proj.weight[columns, rows] = torch.eye(part)


def _window(width: int) -> Tensor:
    """Return [FAST_PAIRS] amplitudes of cosines whose softmax over distance is close to exp(-distance / width)."""
    distance = torch.cat([torch.arange(512), torch.arange(512, 32768, 8)]).double()
    stands_for = torch.where(distance < 512, 1.0, 8.0).double().log()
    speeds = ROPE_THETA ** (-torch.arange(FAST_PAIRS).double() / PAIRS)
    cosines = torch.cos(distance[:, None] * speeds)
    wanted = torch.softmax(-distance / width + stands_for, dim=0)
    amplitudes = torch.ones(FAST_PAIRS, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([amplitudes], lr=0.1)
    with torch.enable_grad():
        for _ in range(600):
            optimiser.zero_grad()
            found = torch.log_softmax(cosines @ amplitudes + stands_for, dim=0)
            (-(wanted * found).sum()).backward()
            optimiser.step()
    return amplitudes.detach().float()


def _matching(attention: torch.nn.Module, sharpness: float) -> None:
    """Give each head a random subspace of the hidden state, on the slow pairs, with q equal to k."""
    slow = (torch.arange(PAIRS) >= FAST_PAIRS).repeat(2)
    weight = torch.zeros(HEADS, HEAD_DIM, HIDDEN)
    for head in range(HEADS):
        basis = torch.nn.init.orthogonal_(torch.empty(RARITY, int(slow.sum())))
        weight[head, slow, :RARITY] = basis.T
    attention.k_proj.weight.copy_(weight.flatten(0, 1))
    attention.q_proj.weight.copy_(attention.k_proj.weight)
    scale = torch.where(slow, math.sqrt(sharpness) / HEAD_DIM**0.25, 0.05)
    attention.q_norm.weight.copy_(scale)
    attention.k_norm.weight.copy_(scale)
