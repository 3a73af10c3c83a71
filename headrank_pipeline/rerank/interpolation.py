"""A reranker's scores mixed with those of the first stage: what either misses, the other may know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import Any, Literal

from headrank_pipeline.pipeline import Failure, Reranker
from headrank_pipeline.records import Ranking

__all__ = ["Normalisation", "interpolated", "normalised"]

_LARGEST = 1e150

Normalisation = Literal["min-max", "z-score"]


def interpolated(
    reranker: Reranker, weight: float, *, normalisation: Normalisation = "min-max", logs: bool = False
) -> Reranker:
    """Return a reranker that scores ``weight * first stage + (1 - weight) * reranker``, both normalised per list.

    Args:
        reranker: the one to mix in.
        weight: share of the first stage, 0 to 1; choose it on training queries, never on those that are reported.
        normalisation: how scores of different scales are made comparable within a list.
        logs: take logarithms of the reranker's scores first. Shares of attention, as `headrank` gives them, span orders
            of magnitude, and without it one passage that draws most of them leaves the others alike. A score of 0
            counts as the list's smallest above it.

    Raises:
        TypeError: not a reranker.
        ValueError: a weight outside 0 to 1, or an unknown normalisation; while reranking: logarithms of scores below
            0, or a reranker that leaves candidates out.
    """
    if not isinstance(reranker, Reranker):
        raise TypeError(f"interpolated takes a reranker, got {type(reranker).__name__} {reranker!r}")
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"interpolation weight {weight}: expected 0 (reranker alone) to 1 (first stage alone)")
    if normalisation not in ("min-max", "z-score"):
        raise ValueError(f"normalisation {normalisation!r}: expected min-max or z-score")
    return _Interpolated(reranker, weight, normalisation, logs)


def normalised(scores: Sequence[float], normalisation: Normalisation = "min-max") -> list[float]:
    """Return scores on a common scale; equal scores all become 0.

    Examples:
        >>> normalised([30.0, 20.0, 10.0])
        [1.0, 0.5, 0.0]
        >>> normalised([7.0, 7.0], "z-score")
        [0.0, 0.0]
        >>> normalised([1e308, 0.0, -1e308])
        [1.0, 0.5, 0.0]
    """
    if not scores:
        return []
    largest = max(map(abs, scores))
    if largest > _LARGEST:  # the difference of two such scores, or its square, would be infinite
        scores = [score / largest for score in scores]
    if normalisation == "min-max":
        base, scale = min(scores), max(scores) - min(scores)
    else:
        base, scale = fmean(scores), pstdev(scores)
    return [(score - base) / scale if scale else 0.0 for score in scores]


@dataclass(frozen=True)
class _Interpolated(Reranker):
    reranker: Reranker
    weight: float
    normalisation: Normalisation
    logs: bool

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        reranked = self.reranker.rerank_batch(rankings)
        return [self._mixed(first, second) for first, second in zip(rankings, reranked, strict=True)]

    def _attempts(self, rankings: Sequence[Ranking]) -> list[Ranking | Failure]:
        attempts = self.reranker.attempt_batch(rankings)
        return [
            after if isinstance(after, Failure) else self._mixed(before, after)
            for before, after in zip(rankings, attempts, strict=True)
        ]

    def _mixed(self, first: Ranking, second: Ranking) -> Ranking:
        theirs = _logarithms(second) if self.logs else second.scores
        found = dict(zip(second.docids, normalised(theirs, self.normalisation), strict=True))
        if left_out := [docid for docid in first.docids if docid not in found]:
            raise ValueError(
                f"qid {first.query.qid}: interpolation: the reranker gave no score for {', '.join(left_out[:3])} "
                f"({len(left_out)} of {len(first)} candidates); leave its threshold out"
            )
        known = normalised(first.scores, self.normalisation)
        scores = [
            self.weight * score + (1.0 - self.weight) * found[docid]
            for docid, score in zip(first.docids, known, strict=True)
        ]
        return replace(first, notes=second.notes).rescored(scores)

    def describe(self) -> dict[str, Any]:
        return {
            **self.reranker.describe(),
            "first_stage_weight": self.weight,
            "normalisation": self.normalisation,
            "logs": self.logs,
        }

    def origins(self) -> dict[str, str]:
        return self.reranker.origins()


def _logarithms(ranking: Ranking) -> list[float]:
    if ranking.scores and min(ranking.scores) < 0:
        worst = ranking.candidates[-1]
        raise ValueError(
            f"qid {ranking.query.qid}: interpolation of logarithms: expected scores of at least 0, got {worst.score} "
            f"for docid {worst.docid}; mix the scores themselves (calibrated or standardised ones can be negative)"
        )
    least = min((score for score in ranking.scores if score > 0), default=1.0)
    return [math.log(max(score, least)) for score in ranking.scores]
