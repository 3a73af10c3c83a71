"""Many questions over the same isolated passages in one differentiable pass.

The product's reader answers one question per list. For distillation, every question of a batch is asked of every
passage of the batch: passages run once, and so does the frame of the prompt. What comes out for one question equals
what the product reads (`embedded_model.py` checks it before it trains), up to one thing: below the deepest layer,
questions see only a few of the passages, drawn anew in every step, which keeps the pass short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedTokenizerFast, Qwen3Model

from headrank_pipeline.attention.recipe import CHATML, PromptTemplate

__all__ = ["Frame", "shares"]

KeyValues = list[tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Frame:
    """Token ids of what stands around passages and query: opening, instruction, end of the turn."""

    opening: list[int]
    instruction: list[int]
    end: list[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, template: PromptTemplate) -> Frame:
        """Return the frame of HeadRank's prompt; the tokenizer drops white space, so pieces may be cut apart freely."""
        texts = (
            CHATML.user + template.opening + template.separator,
            template.instruction + template.separator + template.query_label,
            CHATML.assistant,
        )
        return cls(*(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids for text in texts))


def shares(
    model: Qwen3Model,
    frame: Frame,
    passages: Sequence[list[int]],
    queries: Sequence[list[int]],
    seen: Tensor,
    layers: Sequence[int],
) -> dict[int, Tensor]:
    """Return the attention mass of every head of some layers, for every question and passage.

    Args:
        model: with at least ``max(layers) + 1`` layers; the deepest one ends at its attention.
        frame: of the prompt.
        passages: token ids, P of them.
        queries: token ids, Q of them.
        seen: indices of the passages that questions see below the deepest layer.
        layers: where to read.

    Returns:
        Layer -> [Q, A, P] float32: mean over the rows (query and end of the turn), softmax over passage tokens.
    """
    ids, filled = _padded([frame.opening + passage for passage in passages])
    columns = filled.clone()
    columns[:, : len(frame.opening)] = False
    kept = _run_passages(model, ids, max(layers))
    rows, weights = _padded([query + frame.end for query in queries])
    asked = _run_questions(model, frame, rows, kept, columns, seen, layers, start=ids.shape[1])
    return {layer: _mass(asked[layer], weights, kept[layer][0], columns) for layer in layers}


def _padded(rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]


def _run_passages(model: Qwen3Model, ids: Tensor, last: int) -> KeyValues:
    """Run opening and passage as one row each, [P, T]; return keys and values of each layer."""
    hidden, kept = model.embed_tokens(ids), []
    turn = model.rotary_emb(hidden, torch.arange(ids.shape[1])[None])
    for index, layer in enumerate(model.layers[: last + 1]):
        query, key, value = _projected(layer, hidden, turn)
        kept.append((key, value))
        if index < last:
            hidden = _after(layer, hidden, scaled_dot_product_attention(query, key, value, is_causal=True))
    return kept


def _run_questions(
    model: Qwen3Model,
    frame: Frame,
    ids: Tensor,
    kept: KeyValues,
    columns: Tensor,
    seen: Tensor,
    layers: Sequence[int],
    *,
    start: int,
) -> dict[int, Tensor]:
    """Run opening and instruction once and the questions [Q, U] after them; return their queries at `layers`."""
    before = torch.tensor(frame.opening + frame.instruction)
    opening, length = len(frame.opening), len(before)
    positions = torch.cat([torch.arange(opening), start + torch.arange(length - opening + ids.shape[1])])
    context, hidden = model.embed_tokens(before[None]), model.embed_tokens(ids)
    cosines, sines = model.rotary_emb(hidden, positions[None])
    context_turn = cosines[:, :length], sines[:, :length]
    turn = cosines[:, length:], sines[:, length:]
    passage, token = columns[seen].nonzero(as_tuple=True)
    context_mask = torch.cat([torch.ones(length, len(passage), dtype=torch.bool), _causal(length)], dim=1)
    context_mask[:opening, : len(passage)] = False
    mask = torch.cat([torch.ones(ids.shape[1], len(passage) + length, dtype=torch.bool), _causal(ids.shape[1])], dim=1)
    asked, last = {}, max(layers)
    for index, layer in enumerate(model.layers[: last + 1]):
        query, key, value = _projected(layer, hidden, turn)
        if index in layers:
            asked[index] = query
        if index < last:
            own = _projected(layer, context, context_turn)
            past = [part[seen].transpose(1, 2)[passage, token].transpose(0, 1)[None] for part in kept[index]]
            past = [torch.cat([old.to(new.dtype), new], dim=2) for old, new in zip(past, own[1:], strict=True)]
            context = _after(layer, context, scaled_dot_product_attention(own[0], *past, attn_mask=context_mask))
            key, value = (
                torch.cat([old.expand(len(ids), -1, -1, -1), new], dim=2)
                for old, new in zip(past, (key, value), strict=True)
            )
            hidden = _after(layer, hidden, scaled_dot_product_attention(query, key, value, attn_mask=mask))
    return asked


def _causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def _projected(layer: torch.nn.Module, hidden: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v [B, A, T, D], q and k after their norms and RoPE."""
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    shape = (*hidden.shape[:2], -1, attention.head_dim)
    query = _turned(attention.q_norm(attention.q_proj(normed).view(shape)).transpose(1, 2), turn)
    key = _turned(attention.k_norm(attention.k_proj(normed).view(shape)).transpose(1, 2), turn)
    return query, key, attention.v_proj(normed).view(shape).transpose(1, 2)


def _turned(vectors: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    half = vectors.shape[-1] // 2
    rotated = torch.cat([-vectors[..., half:], vectors[..., :half]], dim=-1)
    return vectors * turn[0][:, None] + rotated * turn[1][:, None]


def _after(layer: torch.nn.Module, hidden: Tensor, attended: Tensor) -> Tensor:
    batch, _, length, _ = attended.shape
    hidden = hidden + layer.self_attn.o_proj(attended.transpose(1, 2).reshape(batch, length, -1))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def _mass(query: Tensor, rows: Tensor, keys: Tensor, columns: Tensor) -> Tensor:
    """Return [Q, A, P] from queries [Q, A, U, D], row mask [Q, U], keys [P, A, T, D], column mask [P, T]."""
    asker, row = rows.nonzero(as_tuple=True)
    owner, token = columns.nonzero(as_tuple=True)
    wanted = query.transpose(1, 2)[asker, row].float().transpose(0, 1) * query.shape[-1] ** -0.5  # [A, R, D]
    offered = keys.transpose(1, 2)[owner, token].float().transpose(0, 1)  # [A, K, D]
    logits = torch.bmm(wanted, offered.transpose(1, 2))
    strength = (logits - logits.detach().amax(-1, keepdim=True)).exp()
    by_passage = strength @ torch.nn.functional.one_hot(owner, len(columns)).float()  # [A, R, P]
    by_passage = by_passage / by_passage.sum(-1, keepdim=True)
    mean = torch.zeros(len(rows), len(row))
    mean[asker, torch.arange(len(row))] = 1.0 / rows.sum(1)[asker]
    return torch.einsum("qr,arp->qap", mean, by_passage)
