"""From attention per token to one score per passage: calibrate, sum heads, filter, pool. [H, N] -> [N] -> [P]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from headrank_pipeline.attention.tap import Support

__all__ = ["ScoringRule", "check_finite", "passage_mass", "pool_tokens", "token_scores"]


@dataclass(frozen=True, slots=True)
class ScoringRule:
    """How passages are scored; the fields are the columns of the table in docs/method.md.

    Args:
        support: what the softmax of each row is normalised over.
        heads: sum or mean over heads (equal order; the scale of scores differs).
        content_free: the query whose attention is subtracted (``"N/A"`` in ICR), or None for no calibration.
        filter_deviations: drop a passage's tokens at or below mean - k * standard deviation (ICR: k = 2), or None.
        length_exponent: divide a passage's sum by its number of tokens to this power; 0 is the sum, 1 the mean.
    """

    support: Support = "passages"
    heads: Literal["sum", "mean"] = "mean"
    content_free: str | None = None
    filter_deviations: float | None = None
    length_exponent: float = 0.0

    def describe(self) -> dict[str, Any]:
        """Return the rule as JSON-ready values."""
        return asdict(self)


def check_finite(values: Tensor, heads: Sequence[tuple[int, int]], qid: str) -> None:
    """Raise ValueError where the attention of a head is not finite, naming the query and the lowest such head.

    Args:
        values: [H, N] attention of tokens, or [H, P] of passages.
        heads: [H], (layer, head).
        qid: of the query.
    """
    finite = torch.isfinite(values).all(1)
    if not finite.all():
        layer, head = min(heads[index] for index in (~finite).nonzero()[:, 0].tolist())
        raise ValueError(
            f"qid {qid}: the attention of head {layer}-{head} is not finite; the usual cause is an overflow in half "
            f"precision: try --dtype float32, and if it is that already, the weights are broken"
        )


def token_scores(
    attention: Tensor, content_free: Tensor | None, rule: ScoringRule, weights: Sequence[float] | None = None
) -> np.ndarray:
    """Return one score per token: the heads' sum or mean, less that of the content-free query.

    Args:
        attention: [H, N] float32.
        content_free: [H, M] float32, same passages under the content-free query, or None.
        rule: sum or mean.
        weights: one per head, or None for equal weights.

    Returns:
        [N] float64, or [min(N, M)] with calibration: all passages lie before the two queries, where the prompts are
        equal; the query's own tokens, the last ones, are not comparable.

    Examples:
        >>> token_scores(torch.tensor([[0.2, 0.8], [0.4, 0.6]]), None, ScoringRule(heads="sum")).round(3).tolist()
        [0.6, 1.4]
    """
    weight = torch.tensor(weights or [1.0] * len(attention), dtype=torch.float64, device=attention.device)
    if rule.heads == "mean":
        weight = weight / weight.sum()
    scores = weight @ attention.double()
    if content_free is not None:
        shared = min(attention.shape[1], content_free.shape[1])
        scores = scores[:shared] - weight @ content_free[:, :shared].double()
    values: np.ndarray = scores.cpu().numpy()
    return values


def pool_tokens(scores: np.ndarray, passages: np.ndarray, rule: ScoringRule) -> np.ndarray:
    """Return one score per passage.

    Args:
        scores: [N] float64.
        passages: [P, 2] int64, half-open token spans that do not overlap.
        rule: filter and length exponent.

    Returns:
        [P] float64; an empty passage scores 0. The filter uses the unbiased standard deviation, as the published code
        does, and keeps every token of a passage of one token, whose deviation is undefined.

    Examples:
        >>> pool_tokens(np.array([9.0, 1.0, 2.0, 4.0]), np.array([[1, 3], [3, 4]]), ScoringRule()).tolist()
        [3.0, 4.0]
    """
    lengths = passages[:, 1] - passages[:, 0]
    owner = np.repeat(np.arange(len(passages)), lengths)
    tokens = np.concatenate([np.arange(start, end) for start, end in passages]) if len(owner) else owner
    values = scores[tokens]
    if rule.filter_deviations is not None:
        values = np.where(_dropped(values, owner, lengths, rule.filter_deviations), 0.0, values)
    sums = np.bincount(owner, weights=values, minlength=len(passages))
    pooled: np.ndarray = sums / np.maximum(lengths, 1) ** rule.length_exponent
    return pooled


def passage_mass(attention: Tensor, passages: np.ndarray, rule: ScoringRule | None = None) -> Tensor:
    """Return the attention mass of every head on every passage, differentiably and on the attention's device.

    What `pool_tokens` does to the sum of the heads, this does to each head: for choosing heads and for training.

    Args:
        attention: [H, N], calibrated or not.
        passages: [P, 2] int64, half-open token spans that do not overlap.
        rule: filter and length exponent; None for neither.

    Returns:
        [H, P] in the dtype of `attention`; an empty passage has mass 0.

    Examples:
        >>> passage_mass(torch.tensor([[9.0, 1.0, 2.0, 4.0]]), np.array([[1, 3], [3, 4]])).tolist()
        [[3.0, 4.0]]
    """
    rule = rule or ScoringRule()
    lengths = torch.from_numpy(passages[:, 1] - passages[:, 0]).to(attention.device)
    owner = torch.repeat_interleave(torch.arange(len(passages), device=attention.device), lengths)
    tokens = np.concatenate([np.arange(start, end) for start, end in passages] or [np.arange(0)])
    values = attention[:, torch.from_numpy(tokens).to(attention.device)]
    shape = (len(attention), len(passages))
    if rule.filter_deviations is not None:
        counts = lengths.clamp_min(1)
        mean = values.new_zeros(shape).index_add(1, owner, values) / counts
        squares = values.new_zeros(shape).index_add(1, owner, (values - mean[:, owner]) ** 2)
        floor = mean - rule.filter_deviations * (squares / (counts - 1).clamp_min(1)).sqrt()
        dropped = (values <= floor[:, owner]) & (lengths[owner] > 1)  # NaN is not dropped: it must be seen
        values = torch.where(dropped, 0.0, values)
    return values.new_zeros(shape).index_add(1, owner, values) / lengths.clamp_min(1) ** rule.length_exponent


def _dropped(values: np.ndarray, owner: np.ndarray, lengths: np.ndarray, deviations: float) -> np.ndarray:
    mean = np.bincount(owner, weights=values, minlength=len(lengths)) / np.maximum(lengths, 1)
    squares = np.bincount(owner, weights=(values - mean[owner]) ** 2, minlength=len(lengths))
    deviation = np.sqrt(squares / np.maximum(lengths - 1, 1))
    # NaN is not dropped: it must be seen.
    dropped: np.ndarray = (values <= (mean - deviations * deviation)[owner]) & (lengths[owner] > 1)
    return dropped
