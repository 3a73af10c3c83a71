"""Many questions over the same isolated passages in one differentiable pass through a Llama model.

The product's reader answers one question per list. For distillation every question of a batch is asked of every passage
of the batch: passages run once. What comes out for one question equals what the product reads
(`tests/learn/test_smollm2_benchmark.py`), up to one thing: below the layers that are read, questions see a few of the
passages, drawn anew in every step, which keeps the pass short.

Shapes are few on purpose (passages and questions are padded to fixed lengths): oneDNN compiles each product of a new
shape anew, which costs as much as running it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import LlamaModel

from headrank_pipeline.attention.prompt import Prompt, PromptBuilder
from headrank_pipeline.attention.tap import LEAST_SHARE
from headrank_pipeline.records import Candidate, Query, Ranking

__all__ = ["RULE", "Frame", "InBatch", "LowRank", "with_low_rank"]

# What `InBatch` computes, as the product's options say it.
RULE = {"support": "passages-geometric", "normalise": "log", "rows": "query"}
_HIDDEN = -1e9


class LowRank(torch.nn.Module):
    """A frozen projection with a trainable low-rank update."""

    def __init__(self, base: torch.nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.down = torch.nn.Parameter(torch.empty(rank, base.in_features))
        self.up = torch.nn.Parameter(torch.zeros(base.out_features, rank))
        torch.nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, hidden: Tensor) -> Tensor:
        inner = F.linear(hidden, self.down.to(hidden.dtype))
        return self.base(hidden) + F.linear(inner, (self.scale * self.up).to(hidden.dtype))

    def set(self, update: Tensor) -> None:
        """Take up an update [out, in] of no larger rank; both factors get an equal share, ranks to spare stay new."""
        left, strength, right = torch.linalg.svd(update / self.scale, full_matrices=False)
        kept = min(len(self.down), int((strength > 1e-5 * strength[0]).sum()))
        root = strength[:kept].sqrt()
        self.down.data[:kept] = root[:, None] * right[:kept]
        self.up.data[:, :kept] = left[:, :kept] * root

    def update(self) -> Tensor:
        """Return what is added to the weight, [out, in]."""
        return self.scale * (self.up.detach() @ self.down.detach())


def with_low_rank(model: LlamaModel, rank: int, *, first: int, deepest: int) -> dict[str, LowRank]:
    """Put updates into every projection of the layers `first` to `deepest` that attention there depends on."""
    updates = {}
    for index in range(first, deepest + 1):
        layer = model.layers[index]
        names = ["self_attn.q_proj", "self_attn.k_proj"]
        if index < deepest:
            names += ["self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
        for name in names:
            room, _, child = name.rpartition(".")
            updates[f"layers.{index}.{name}"] = LowRank(layer.get_submodule(name), rank, scale=2.0)
            setattr(layer.get_submodule(room), child, updates[f"layers.{index}.{name}"])
    return updates


@dataclass(frozen=True)
class Frame:
    """The pieces of the product's own prompt: opening, passages and questions as token ids."""

    builder: PromptBuilder

    @property
    def end(self) -> int:
        """Number of tokens after the query, which are the same for every question and no rows."""
        prompt = self._built("x", "x")
        return len(prompt) - int(prompt.rows[1])

    @property
    def opening(self) -> list[int]:
        """Token ids before the passages."""
        return self._pieces("x", "x")[0]

    def passage(self, text: str) -> list[int]:
        """Return a passage's token ids; the last one belongs to the separator."""
        return self._pieces("x", text)[1]

    def question(self, text: str) -> tuple[list[int], int]:
        """Return a question's token ids and where its rows begin; all before are the same in every question."""
        return self._pieces(text, "x")[2:]

    def _pieces(self, query: str, passage: str) -> tuple[list[int], list[int], list[int], int]:
        prompt = self._built(query, passage)
        assert prompt.boundaries is not None
        start, end = prompt.boundaries.tolist()
        ids = prompt.token_ids.tolist()
        return ids[:start], ids[start:end], ids[end:], int(prompt.rows[0]) - end

    def _built(self, query: str, passage: str) -> Prompt:
        return self.builder.build(Ranking(Query("q", query), (Candidate("d", 1.0, passage),)))


@dataclass(frozen=True)
class InBatch:
    """Reads heads of a model for all questions and passages of a batch.

    Args:
        model: at least as deep as the deepest head.
        heads: (layer, head) pairs.
        trained_from: layers below run without gradients.
    """

    model: LlamaModel
    heads: Sequence[tuple[int, int]]
    trained_from: int = 0

    def log_shares(
        self,
        opening: list[int],
        passages: Sequence[list[int]],
        prefix: list[int],
        questions: Sequence[list[int]],
        seen: Tensor,
        *,
        row_length: int,
        question_length: int,
        end: int = 0,
    ) -> Tensor:
        """Return the logarithm of the share of every passage in the attention of every head, up to a constant of each.

        Args:
            opening: token ids before the passages.
            passages: token ids, P of them.
            prefix: token ids of the question before its rows, the same for all.
            questions: token ids of the rows, Q of them.
            seen: indices of the passages that questions see below the layers that are read.
            row_length: opening and passage are padded to it.
            question_length: questions are padded to it.
            end: number of tokens at the end of each question that are no rows.

        Returns:
            [H, Q, P] float32: mean over the rows of the logarithm of each passage's share of attention to passage
            tokens.
        """
        first, deepest = len(opening), max(layer for layer, _ in self.heads)
        ids, lengths = _padded([opening + passage for passage in passages], row_length)
        tokens = torch.arange(row_length)
        filled = (tokens >= first) & (tokens < lengths[:, None])
        columns = filled & (tokens < lengths[:, None] - 1)  # the separator is seen, but is no passage
        rows, row_lengths = _padded(questions, question_length)
        context = torch.tensor(opening + prefix)
        places = torch.cat([torch.arange(first), int(lengths.max()) + torch.arange(len(prefix) + question_length)])
        turn = self._turn(places)
        context_turn, question_turn = ((part[: len(context)] for part in turn), (part[len(context) :] for part in turn))
        passage_turn, context_turn, question_turn = self._turn(tokens), tuple(context_turn), tuple(question_turn)
        x, c, y = (self.model.embed_tokens(part) for part in (ids, context[None], rows))
        bias = _Bias.of(filled[seen, first:].reshape(-1), len(context), first, row_length, question_length, x.dtype)
        mass = _Mass.of(columns, torch.arange(question_length) < row_lengths[:, None] - end)
        found: dict[tuple[int, int], Tensor] = {}
        for index, layer in enumerate(self.model.layers[: deepest + 1]):
            with torch.set_grad_enabled(torch.is_grad_enabled() and index >= self.trained_from):
                (xq, xk), (yq, yk) = self._queried(layer, x, passage_turn), self._queried(layer, y, question_turn)
                for head in (head for at, head in self.heads if at == index):
                    group = xq.shape[1] // xk.shape[1]
                    found[index, head] = mass.of_head(yq[:, head], xk[:, head // group])
                if index == deepest:
                    break
                cq, ck = self._queried(layer, c, context_turn)
                xv, yv, cv = (self._values(layer, hidden) for hidden in (x, y, c))
                keys, values = (
                    torch.cat([part[seen][:, :, first:].transpose(0, 1).flatten(1, 2), own[0]], 1)
                    for part, own in ((xk, ck), (xv, cv))
                )
                x = self._after(layer, x, _attend_alone(xq, xk, xv, bias.row))
                c = self._after(layer, c, _attend_shared(cq, keys, values, bias.context))
                y = self._after(layer, y, _attend_both(yq, yk, yv, keys, values, bias.question, bias.before))
        return torch.stack([found[head] for head in map(tuple, self.heads)])

    def _turn(self, places: Tensor) -> tuple[Tensor, Tensor]:
        angles = places[:, None].float() * self.model.rotary_emb.inv_freq.float()
        both = torch.cat([angles, angles], -1)
        return both.cos(), both.sin()

    def _queried(self, layer: torch.nn.Module, hidden: Tensor, turn: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return q [B, A, T, D] and k [B, K, T, D] after RoPE."""
        normed = _normed(layer.input_layernorm, hidden)
        return _turned(self._heads(layer.self_attn.q_proj(normed)), turn), _turned(
            self._heads(layer.self_attn.k_proj(normed)), turn
        )

    def _values(self, layer: torch.nn.Module, hidden: Tensor) -> Tensor:
        return self._heads(layer.self_attn.v_proj(_normed(layer.input_layernorm, hidden)))

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:2], -1, self.model.config.head_dim).transpose(1, 2)

    def _after(self, layer: torch.nn.Module, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = hidden + layer.self_attn.o_proj(attended.transpose(1, 2).reshape(*hidden.shape[:2], -1))
        return hidden + layer.mlp(_normed(layer.post_attention_layernorm, hidden))


@dataclass(frozen=True)
class _Bias:
    """What is added to attention logits: 0 where a token may look, a large negative number elsewhere."""

    row: Tensor  # [T, T]
    context: Tensor  # [C, S + C]
    question: Tensor  # [U, U]
    before: Tensor  # [S + C], what questions may see of passages and context

    @classmethod
    def of(cls, seen: Tensor, context: int, opening: int, row: int, question: int, dtype: torch.dtype) -> _Bias:
        before = torch.cat([_hidden(~seen, dtype), torch.zeros(context, dtype=dtype)])
        looking = torch.cat([_hidden(~seen, dtype).expand(context, -1), _causal(context, dtype)], 1)
        looking = looking.clone()
        looking[:opening, : len(seen)] = _HIDDEN
        return cls(_causal(row, dtype), looking, _causal(question, dtype), before)


@dataclass(frozen=True)
class _Mass:
    """Sums attention over the tokens of each passage and takes the logarithms' mean over the rows of each question."""

    owner: Tensor  # [P * T, P]
    bias: Tensor  # [P * T]
    weight: Tensor  # [Q * U, 1]
    questions: int

    @classmethod
    def of(cls, columns: Tensor, asked: Tensor) -> _Mass:
        passages = torch.eye(len(columns))[:, None] * columns[..., None]
        weight = asked / asked.sum(1, keepdim=True)
        hidden = _hidden(~columns.reshape(-1), torch.float32)
        return cls(passages.flatten(0, 1), hidden, weight.reshape(-1, 1), len(asked))

    def of_head(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return [Q, P] from one head's queries [Q, U, D] and keys [P, T, D]."""
        width = queries.shape[-1]
        logits = ((queries * width**-0.5).reshape(-1, width) @ keys.reshape(-1, width).T).float() + self.bias
        strength = (logits - logits.detach().amax(-1, keepdim=True)).exp() @ self.owner
        logs = (strength / strength.sum(-1, keepdim=True)).clamp_min(LEAST_SHARE).log()
        return (logs * self.weight).view(self.questions, -1, logs.shape[-1]).sum(1)


def _attend_alone(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Causal attention of short rows. For their gradient PyTorch's own CPU kernel took 40 ms a layer."""
    (batch, heads, length, width), keys = q.shape, k.shape[1]
    q, k, v = ((part.reshape(batch * keys, -1, width)) for part in (q * width**-0.5, k, v))
    weight = (q @ k.transpose(1, 2)).view(batch * keys, -1, length, length) + bias
    return (torch.softmax(weight, -1).view(batch * keys, -1, length) @ v).view(batch, heads, length, width)


def _attend_shared(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Attention of one row's queries [1, A, C, D] to keys [K, S, D]."""
    (_, heads, length, width), kinds = q.shape, len(keys)
    offered = bias.shape[1]
    weight = ((q[0] * width**-0.5).reshape(kinds, -1, width) @ keys.transpose(1, 2)).view(kinds, -1, length, offered)
    return (torch.softmax(weight + bias, -1).view(kinds, -1, offered) @ values).view(1, heads, length, width)


def _attend_both(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, bias: Tensor, before: Tensor) -> Tensor:
    """Attention of questions [Q, A, U, D] to shared keys [K, S, D] and to their own [Q, K, U, D]."""
    (batch, heads, length, width), kinds = q.shape, k.shape[1]
    group, shared = heads // kinds, keys.shape[1]
    q = q * width**-0.5
    by_kind = q.view(batch, kinds, group, length, width).transpose(0, 1).reshape(kinds, -1, width)
    outer = (by_kind @ keys.transpose(1, 2)).view(kinds, batch, group, length, shared) + before
    own = q.reshape(batch * kinds, -1, width) @ k.reshape(batch * kinds, length, width).transpose(1, 2)
    own = own.view(batch, kinds, group, length, length).transpose(0, 1) + bias
    weight = torch.softmax(torch.cat([outer, own], -1), -1)
    first = (weight[..., :shared].reshape(kinds, -1, shared) @ values).view(kinds, batch, group, length, width)
    second = weight[..., shared:].transpose(0, 1).reshape(batch * kinds, -1, length) @ v.reshape(-1, length, width)
    second = second.view(batch, kinds, group, length, width).transpose(0, 1)
    return (first + second).transpose(0, 1).reshape(batch, heads, length, width)


def _padded(rows: Sequence[list[int]], length: int) -> tuple[Tensor, Tensor]:
    return torch.tensor([row + [0] * (length - len(row)) for row in rows]), torch.tensor([len(row) for row in rows])


def _hidden(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(mask, _HIDDEN)


def _causal(length: int, dtype: torch.dtype) -> Tensor:
    return _hidden(~torch.ones(length, length, dtype=torch.bool).tril(), dtype)


def _normed(norm: torch.nn.Module, hidden: Tensor) -> Tensor:
    return F.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)


def _turned(vectors: Tensor, turn: tuple[Tensor, ...]) -> Tensor:
    half = vectors.shape[-1] // 2
    rotated = torch.cat([-vectors[..., half:], vectors[..., :half]], -1)
    return (vectors.float() * turn[0] + rotated.float() * turn[1]).to(vectors.dtype)
