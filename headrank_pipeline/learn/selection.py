"""Choosing heads: one pass over graded lists scores every head of every layer, then a criterion picks some.

The paper says that it keeps heads which discriminate between grades and have low attention entropy; its formula is
not available to us. ``entropy-regularised`` is METHOD 1.4: z(discrimination) - lambda * z(entropy). The peers' criteria
stand beside it, on the same lists, prompts and weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model import LoadedModel
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.recipe import Recipe
from headrank_pipeline.learn.head_table import BINARY_MEASURES, HeadTable, has_places, measure_heads
from headrank_pipeline.learn.lists import GradedList
from headrank_pipeline.learn.scorer import ListScorer
from headrank_pipeline.learn.settings import CRITERIA, Criterion, SelectionConfig

__all__ = [
    "CRITERIA",
    "Criterion",
    "HeadTable",
    "Selection",
    "SelectionConfig",
    "TruncationCost",
    "choose_heads",
    "criterion_scores",
    "measure_heads",
    "select_heads",
    "truncation_cost",
]

logger = logging.getLogger(__name__)

_NO_ENTROPY = (
    "calibrated attention has no entropy: choose by another criterion (qrscore, ndcg, core or discrimination), "
    "or with the rule of a system that has no content-free query (headrank, core or qrranker)"
)


_NO_PLACES = (
    "flatness_weight: how attention goes by place was not measured, as isolated passages have no place and calibrated "
    "attention no shares; leave it out, or choose with causal passages and a rule without a content-free query"
)


def criterion_scores(
    table: HeadTable, criterion: Criterion, *, entropy_weight: float = 0.25, flatness_weight: float = 0.0
) -> np.ndarray:
    """Return one score per head, [H] float64, higher is better; minus infinity for constant heads.

    z-scores are taken over the heads that are not constant, whatever the depth cap. With a weight of flatness the score
    is z(criterion) - weight * z(log flatness).

    Raises:
        ValueError: a criterion that the lists or the rule do not allow.
    """
    usable = table.usable()
    if criterion == "entropy-regularised":
        if table.calibrated:
            raise ValueError(_NO_ENTROPY)
        spread = _z_scores(table.values["entropy"], usable)
        scores = _z_scores(table.values["discrimination"], usable) - entropy_weight * spread
    elif criterion == "layer-window":
        scores = table.layer_ndcg[[layer for layer, _ in table.heads]]
    else:
        scores = table.values[criterion]
    if np.isnan(scores).any():
        raise ValueError(f"{criterion}: no list has passages both at and below the relevance level; lower it, or "
                         f"choose by discrimination or ndcg")  # fmt: skip
    if flatness_weight:
        if table.places is None:
            raise ValueError(_NO_PLACES)
        flatness = _z_scores(np.log(table.values["flatness"]), usable)
        scores = _z_scores(scores, usable) - flatness_weight * flatness
    return np.where(usable, scores, -np.inf)


def choose_heads(table: HeadTable, config: SelectionConfig, *, provenance: Mapping[str, Any] | None = None) -> HeadSet:
    """Return the head set that a criterion chooses, best head first.

    Equal scores go to the lower layer, then to the lower head. Constant heads are never chosen.

    Args:
        table: table that `measure_heads` returned.
        config: criterion, number of heads, lambda, depth cap, window.
        provenance: model, revision and data, for the set; ``model`` and ``revision`` become its own fields.

    Raises:
        ValueError: fewer usable heads than asked for.
    """
    scores = _scores(table, config)
    deepest = table.layers if config.depth_cap is None else max(1, int(config.depth_cap * table.layers))
    allowed = [i for i, (layer, _) in enumerate(table.heads) if layer < deepest and np.isfinite(scores[i])]
    if config.criterion == "layer-window":
        picked = _window(table, config.window, allowed)
    else:
        order = sorted(allowed, key=lambda i: (-round(float(scores[i]), 12), table.heads[i]))
        picked = order[: config.num_heads]
        if len(picked) < config.num_heads:
            raise ValueError(
                f"{config.criterion}: {len(allowed)} usable heads within {deepest} layers, {config.num_heads} wanted "
                f"({int((~table.usable()).sum())} heads are constant on every list); ask for fewer or lift the cap"
            )
    about = dict(provenance or {})
    return HeadSet(
        f"{config.criterion}-{len(picked)}",
        tuple(table.heads[i] for i in picked),
        model=about.pop("model", None),
        revision=about.pop("revision", None),
        selection=_provenance(table, config, [float(scores[i]) for i in picked]) | about,
        places=None if table.places is None else table.places.of(picked),
    )


def _scores(table: HeadTable, config: SelectionConfig) -> np.ndarray:
    return criterion_scores(
        table, config.criterion, entropy_weight=config.entropy_weight, flatness_weight=config.flatness_weight
    )


def _provenance(table: HeadTable, config: SelectionConfig, scores: Sequence[float]) -> dict[str, Any]:
    kept: dict[str, Any] = {
        "criterion": config.criterion,
        "lambda": config.entropy_weight if config.criterion == "entropy-regularised" else None,
        "flatness_weight": config.flatness_weight or None,
        "temperature": config.temperature if config.criterion == "core" else None,
        "depth_cap": config.depth_cap,
        "order": config.order,
        "list_size": config.list_size,
        "relevance_level": config.relevance_level if config.criterion in BINARY_MEASURES else None,
        "seed": config.seed,
    }
    known = {name: value for name, value in kept.items() if value is not None}
    constant = int((~table.usable()).sum())
    return {**known, "lists": dict(table.counts), "constant_heads": constant,
            "scores": [round(score, 6) for score in scores]}  # fmt: skip


def _window(table: HeadTable, width: int, allowed: Sequence[int]) -> list[int]:
    """Return the heads of the `width` neighbouring layers whose own nDCG@10 sums highest; the lower window if equal."""
    layers = sorted({table.heads[i][0] for i in allowed})
    starts = [first for first in layers if set(range(first, first + width)) <= set(layers)]
    if not starts:
        raise ValueError(f"layer-window: no {width} neighbouring layers among the {len(layers)} usable ones")
    best = max(starts, key=lambda first: (round(float(table.layer_ndcg[first : first + width].sum()), 12), -first))
    return [i for i in allowed if best <= table.heads[i][0] < best + width]


def _z_scores(values: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Return (x - mean) / standard deviation over the usable heads; zeros where they are all equal."""
    mean, deviation = values[usable].mean(), values[usable].std()
    scores: np.ndarray = (values - mean) / deviation if deviation > 1e-12 else np.zeros_like(values)
    return scores


@dataclass(frozen=True, slots=True)
class Selection:
    """What `select_heads` returns.

    Attributes:
        heads: the chosen set.
        scores: [H], the criterion's score of every head.
        table: every measure of every head.
        candidates: criterion -> (its set at the same number of heads and cap, the cost of reading it); criteria that
            the data do not allow are missing.
    """

    heads: HeadSet
    scores: np.ndarray
    table: HeadTable
    candidates: Mapping[str, tuple[HeadSet, TruncationCost]]


def select_heads(
    loaded: LoadedModel,
    reading: Recipe,
    lists: Iterable[GradedList],
    config: SelectionConfig | None = None,
    *,
    origin: Mapping[str, Any] | None = None,
    on_list: Callable[[int], None] | None = None,
) -> Selection:
    """Measure every head of a model on graded lists and choose by the configured criterion.

    Args:
        loaded: ``load(model, "all")``.
        reading: prompt template and rule, for example `attention.recipe.HEADRANK`.
        lists: graded lists; never those of a test set.
        config: criterion and the rest.
        origin: where the lists come from (file and checksum), for the set's provenance.
        on_list: called with the number of lists done.

    Raises:
        ValueError: see `measure_heads` and `choose_heads`.
    """
    config = config or SelectionConfig()
    _refuse_in_vain(config, loaded, reading)
    scorer = ListScorer(AttentionReader(loaded), reading, max_prompt_tokens=config.max_prompt_tokens)
    table = measure_heads(scorer, lists, config, on_list=on_list)
    source = loaded.source
    provenance = {
        "model": source.label,
        "revision": source.revision,
        "data": dict(origin or {}),
        "reading": reading.name,
        "rule": reading.rule.describe(),
    }
    scores = _scores(table, config)
    chosen = choose_heads(table, config, provenance=provenance)
    logger.info("%s: %d heads from %d lists (%s)", chosen.name, len(chosen.heads), table.counts["used"], table.counts)
    return Selection(chosen, scores, table, _candidates(table, config, loaded, provenance))


def _refuse_in_vain(config: SelectionConfig, loaded: LoadedModel, reading: Recipe) -> None:
    """Raise ValueError before a long pass whose criterion or number of heads cannot be met at its end."""
    if config.criterion == "entropy-regularised" and reading.rule.content_free is not None:
        raise ValueError(_NO_ENTROPY)
    if config.flatness_weight and not has_places(reading, config):
        raise ValueError(_NO_PLACES)
    if config.criterion != "layer-window" and config.num_heads > len(loaded.heads.heads):
        raise ValueError(f"{config.num_heads} heads wanted, the model has {len(loaded.heads.heads)}")


def _candidates(
    table: HeadTable, config: SelectionConfig, loaded: LoadedModel, provenance: Mapping[str, Any]
) -> dict[str, tuple[HeadSet, TruncationCost]]:
    found: dict[str, tuple[HeadSet, TruncationCost]] = {}
    for criterion in CRITERIA:
        try:
            weight = 0.0 if criterion == "layer-window" else config.flatness_weight
            other = replace(config, criterion=criterion, flatness_weight=weight)
            chosen = choose_heads(table, other, provenance=provenance)
        except ValueError as error:
            logger.warning("no candidate set: %s", error)
            continue
        cost = truncation_cost(
            loaded.model.config, layers=table.layers, depth=chosen.depth, tokens=table.counts["prompt_tokens"]
        )
        found[criterion] = (chosen, cost)
    return found


# ------------------------------------------------------------------------------------------------ what a head set costs


@dataclass(frozen=True, slots=True)
class TruncationCost:
    """Cost of one prompt on a model cut off after its deepest head.

    Attributes:
        depth: layers kept.
        layers: layers of the whole model.
        tokens: length of the prompt.
        flops: floating-point operations of the truncated pass.
        whole: operations of a pass through all layers, without a language-model head.
    """

    depth: int
    layers: int
    tokens: int
    flops: float
    whole: float

    @property
    def share(self) -> float:
        """Share of the whole model's operations, between 0 and 1."""
        return self.flops / self.whole

    def __str__(self) -> str:
        return f"{self.depth} of {self.layers} layers, {self.share:.0%} of the FLOPs at {self.tokens} tokens"


def truncation_cost(config: Any, *, layers: int, depth: int, tokens: int) -> TruncationCost:
    """Return the cost of reading heads down to `depth` layers.

    A layer costs 2 * parameters * N for its projections and MLP and 2 * N^2 * (heads * head_dim) for causal attention;
    of the deepest layer only q, k and v are computed. The few rows that are read add nothing that counts.

    Args:
        config: configuration of the model (Qwen3, Qwen2, Llama: hidden_size, num_attention_heads, …).
        layers: number of layers of the whole model.
        depth: layers kept.
        tokens: length of the prompt, N.

    Examples:
        >>> from types import SimpleNamespace
        >>> sizes = dict(hidden_size=1024, intermediate_size=3072, num_attention_heads=16, num_key_value_heads=8)
        >>> str(truncation_cost(SimpleNamespace(head_dim=128, **sizes), layers=28, depth=14, tokens=2000))
        '14 of 28 layers, 47% of the FLOPs at 2000 tokens'
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    width = getattr(config, "head_dim", None) or hidden // heads
    queries, keys = hidden * heads * width, hidden * config.num_key_value_heads * width
    projections = queries + 2 * keys
    rest = queries + 3 * hidden * config.intermediate_size  # output projection and MLP
    layer = 2.0 * (projections + rest) * tokens + 2.0 * tokens**2 * heads * width
    flops = (depth - 1) * layer + 2.0 * projections * tokens
    return TruncationCost(depth, layers, tokens, flops, layers * layer)
