"""From attention per token to one score per passage.

Published methods calibrate, sum heads, filter and pool: [H, N] -> [N] -> [P]. What looks at single heads (their own
normalisation, their own place curves) pools first: [H, N] -> [H, P] -> [P].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.recipe import PromptTemplate, ScoringRule
from headrank_pipeline.attention.tap import LEAST_SHARE
from headrank_pipeline.records import NotFinite

__all__ = [
    "calibrated",
    "check_finite",
    "check_places",
    "combined",
    "passage_mass",
    "passage_scores",
    "place_shares",
    "pool_tokens",
    "token_factors",
    "token_scores",
]


def check_places(rule: ScoringRule, template: PromptTemplate, heads: HeadSet) -> None:
    """Raise ValueError where a rule asks for places that the prompt or the head set does not have."""
    wanted = [name for name in ("both_orders", "place_profile") if getattr(rule, name)]
    if wanted and template.passages == "isolated":
        raise ValueError(f"{wanted[0]}: isolated passages have no place in the prompt; leave it out")
    if rule.place_profile is None:
        return
    if heads.places is None:
        raise ValueError(
            f"place_profile: head set {heads.name!r} carries no place curve; headrank select-heads writes one where "
            f"orders are random and passages causal; select again, or leave place_profile out"
        )
    if heads.places.support != rule.support:
        raise ValueError(
            f"place_profile: the curve of head set {heads.name!r} is that of a softmax over {heads.places.support}, "
            f"the rule's runs over {rule.support}; select heads with this rule, or leave place_profile out"
        )


def place_shares(rule: ScoringRule, heads: HeadSet, places: np.ndarray) -> np.ndarray | None:
    """Return what the rule divides by: [P] or [H, P] float64, None where it does not.

    Args:
        rule: which curves.
        heads: carries them.
        places: [P] int64, of each passage in the prompt, from 0.
    """
    if rule.place_profile is None or not len(places):
        return None
    assert heads.places is not None
    curves = heads.places.at(len(places)) if rule.place_profile == "set" else heads.places.heads_at(len(places))
    shares: np.ndarray = curves[..., places]
    return shares


def passage_scores(
    attention: Tensor,
    content_free: Tensor | None,
    passages: np.ndarray,
    places: np.ndarray,
    rule: ScoringRule,
    heads: HeadSet,
) -> np.ndarray:
    """Return one score per passage, [P] float64.

    Args:
        attention: [H, N] float32.
        content_free: [H, M] float32, same passages under the content-free query, or None.
        passages: [P, 2] int64, half-open token spans.
        places: [P] int64, of each passage in the prompt, from 0.
        rule: everything else.
        heads: [H], weights and place curves.
    """
    shares = place_shares(rule, heads, places)
    if not rule.pools_first:
        pooled = pool_tokens(token_scores(attention, content_free, rule, heads.weights), passages, rule)
        return pooled if shares is None else pooled / shares
    read = attention if content_free is None else calibrated(attention, content_free)
    divisor = None if shares is None else torch.from_numpy(shares).to(read.device)
    scores: np.ndarray = (
        combined(passage_mass(read.double(), passages, rule), rule, heads.weights, divisor).cpu().numpy()
    )
    return scores


def token_factors(
    attention: Tensor,
    content_free: Tensor | None,
    passages: np.ndarray,
    places: np.ndarray,
    rule: ScoringRule,
    heads: HeadSet,
) -> list[np.ndarray]:
    """Return what each head's attention to each token counts in the score of the token's passage.

    A passage's score is the sum of these factors times the attention, less that of the content-free query: how it
    divides among tokens and heads. Arguments as in `passage_scores`. With logarithms a score is no sum over
    heads: each has its weight's part of it, and divides that among the passage's tokens as its attention is.

    Returns:
        One [H, n] float64 array per passage, n being its tokens; 0 where the rule's filter drops a token.

    Raises:
        ValueError: a rule whose scores are no such sums.
    """
    for name, plain in (("normalise", "mass"), ("temperature", 1.0)):
        if rule.normalise != "log" and (value := getattr(rule, name)) != plain:
            raise ValueError(
                f"{name} {value!r}: scores compare each head's attention over the whole list, so they do not divide "
                f"among a passage's words; with normalise 'log', or with {name} {plain!r}, they do"
            )
    read = attention if content_free is None else calibrated(attention, content_free)
    weight = _head_weights(heads.weights, len(read), rule).numpy()
    shares = place_shares(rule, heads, places)
    divisor = np.ones((1, len(passages))) if shares is None else np.atleast_2d(shares)
    tokens, owner, lengths = _tokens_of(passages)
    kept = np.ones((1, len(tokens)))
    if rule.filter_deviations is not None and rule.pools_first:
        kept = (~_dropped_by_head(*_values_of(read.double(), passages), rule.filter_deviations)).double().cpu().numpy()
    elif rule.filter_deviations is not None:
        summed = token_scores(attention, content_free, rule, heads.weights)[tokens]
        kept = (~_dropped(summed, owner, lengths, rule.filter_deviations))[None].astype(float)
    if rule.normalise == "log":
        scores = passage_scores(attention, content_free, passages, places, rule, heads)
        mass = passage_mass(read.double(), passages, replace(rule, length_exponent=0.0)).cpu().numpy()
        part = weight[:, None] / weight.sum() * scores / np.maximum(mass, np.finfo(float).tiny)
    else:
        part = weight[:, None] / (divisor * np.maximum(lengths, 1) ** rule.length_exponent)
    factors = kept * part[:, owner]
    return np.split(factors, np.cumsum(lengths)[:-1], axis=1)


def combined(
    mass: Tensor, rule: ScoringRule, weights: Sequence[float] | None = None, shares: Tensor | None = None
) -> Tensor:
    """Return the score of each passage from every head's mass on it, differentiably.

    Args:
        mass: [H, P].
        rule: how heads are normalised and put together.
        weights: one per head, or None for equal weights.
        shares: [P] or [H, P], what `place_shares` returns; None divides by nothing.

    Returns:
        [P] in the dtype of `mass`.

    Examples:
        >>> combined(torch.tensor([[0.2, 0.8], [0.4, 0.6]]), ScoringRule(normalise="zscore")).round(decimals=3).tolist()
        [-1.0, 1.0]
        >>> combined(torch.tensor([[0.2, 0.8], [0.8, 0.2]]), ScoringRule(normalise="log")).round(decimals=3).tolist()
        [0.5, 0.5]
    """
    weight = _head_weights(weights, len(mass), rule).to(mass)
    if shares is not None and shares.dim() == 2:
        mass = mass / shares.to(mass.dtype)
    if rule.temperature != 1.0:
        mass = torch.softmax(_log_shares(mass) / rule.temperature, dim=1)
    if rule.normalise == "log":
        return torch.softmax(weight @ _log_shares(mass), dim=0)
    if rule.normalise == "zscore" and mass.shape[1]:
        centred = mass - mass.mean(1, keepdim=True)
        deviation = centred.square().mean(1, keepdim=True).sqrt()
        even = deviation <= 1e-6 * mass.abs().amax(1, keepdim=True)  # rounding, which must not become an order
        mass = torch.where(even, 0.0, centred / torch.where(even, 1.0, deviation))
    scores = weight @ mass
    return scores / shares.to(scores.dtype) if shares is not None and shares.dim() == 1 else scores


def _log_shares(mass: Tensor) -> Tensor:
    """Return [H, P], the logarithm of each passage's share of a head's mass; an even share of a head without any."""
    total = mass.sum(1, keepdim=True)
    shares = mass / total.clamp_min(torch.finfo(mass.dtype).tiny)
    return shares.clamp_min(LEAST_SHARE).log()


def calibrated(attention: Tensor, content_free: Tensor) -> Tensor:
    """Return [H, min(N, M)]; the tokens of the two queries, the last ones, are not comparable and belong to none."""
    shared = min(attention.shape[1], content_free.shape[1])
    return attention[:, :shared] - content_free[:, :shared]


def check_finite(values: Tensor, heads: Sequence[tuple[int, int]], qid: str) -> None:
    """Raise NotFinite where the attention of a head is not finite, naming the query and the lowest such head.

    Args:
        values: [H, N] attention of tokens, or [H, P] of passages.
        heads: [H], (layer, head).
        qid: id of the query.
    """
    finite = torch.isfinite(values).all(1)
    if not finite.all():
        layer, head = min(heads[index] for index in (~finite).nonzero()[:, 0].tolist())
        raise NotFinite(
            f"qid {qid}: the attention of head {layer}-{head} is not finite; an overflow in half precision is the "
            f"usual cause: try dtype float32, and if it is that already, the weights are broken"
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
    weight = _head_weights(weights, len(attention), rule).to(attention.device)
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
    tokens, owner, lengths = _tokens_of(passages)
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
    values, owner, lengths = _values_of(attention, passages)
    shape = (len(attention), len(passages))
    if rule.filter_deviations is not None:
        values = torch.where(_dropped_by_head(values, owner, lengths, rule.filter_deviations), 0.0, values)
    return values.new_zeros(shape).index_add(1, owner, values) / lengths.clamp_min(1) ** rule.length_exponent


def _head_weights(weights: Sequence[float] | None, heads: int, rule: ScoringRule) -> Tensor:
    """Return [H] float64, what each head counts: its weight, or its part of all where heads are averaged."""
    weight = torch.tensor(weights or [1.0] * heads, dtype=torch.float64)
    return weight / weight.sum() if rule.heads == "mean" or rule.normalise == "log" else weight


def _tokens_of(passages: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the places of all tokens of passages, [n]; which passage each is of, [n]; and [P], how many each has."""
    lengths = passages[:, 1] - passages[:, 0]
    owner = np.repeat(np.arange(len(passages)), lengths)
    # A passage's tokens are its first place, and as many after it as it has.
    starts = np.repeat(passages[:, 0] - np.cumsum(lengths) + lengths, lengths)
    return starts + np.arange(len(owner)), owner, lengths


def _values_of(attention: Tensor, passages: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Return each head's attention to the tokens of passages, [H, n]; the owner [n] and lengths [P] of `_tokens_of`.

    All three are on the attention's device.
    """
    tokens, owner, lengths = (torch.from_numpy(part).to(attention.device) for part in _tokens_of(passages))
    return attention[:, tokens], owner, lengths


def _dropped_by_head(values: Tensor, owner: Tensor, lengths: Tensor, deviations: float) -> Tensor:
    """Return [H, n] bool: the tokens that the filter drops from each head's attention."""
    counts, nothing = lengths.clamp_min(1), values.new_zeros((len(values), len(lengths)))
    mean = nothing.index_add(1, owner, values) / counts
    squares = nothing.index_add(1, owner, (values - mean[:, owner]) ** 2)
    floor = mean - deviations * (squares / (counts - 1).clamp_min(1)).sqrt()
    return (values <= floor[:, owner]) & (lengths[owner] > 1)  # NaN is not dropped: it must be seen


def _dropped(values: np.ndarray, owner: np.ndarray, lengths: np.ndarray, deviations: float) -> np.ndarray:
    mean = np.bincount(owner, weights=values, minlength=len(lengths)) / np.maximum(lengths, 1)
    squares = np.bincount(owner, weights=(values - mean[owner]) ** 2, minlength=len(lengths))
    deviation = np.sqrt(squares / np.maximum(lengths - 1, 1))
    # NaN is not dropped: it must be seen.
    dropped: np.ndarray = (values <= (mean - deviations * deviation)[owner]) & (lengths[owner] > 1)
    return dropped
