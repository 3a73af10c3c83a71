"""How far two orders of the same things agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["kendall_tau", "overlap", "rank_biased_overlap", "spearman"]


def kendall_tau(one: Sequence[str], other: Sequence[str]) -> float:
    """Return Kendall's tau of two orders of the same docids: 1 for equal orders, -1 for opposite ones.

    Examples:
        >>> kendall_tau(["a", "b", "c"], ["a", "c", "b"])
        0.3333333333333333
    """
    if len(one) < 2:
        return 1.0
    place = {docid: rank for rank, docid in enumerate(other)}
    ranks = np.array([place[docid] for docid in one])
    later = np.sign(ranks[None, :] - ranks[:, None])[np.triu_indices(len(ranks), 1)]
    return float(later.mean())


def rank_biased_overlap(one: Sequence[str], other: Sequence[str], persistence: float = 0.9) -> float:
    """Return extrapolated rank-biased overlap (Webber et al. 2010, equation 32): agreement with weight on the top.

    Args:
        one: best first.
        other: the same number of docids.
        persistence: chance that a reader goes on to the next rank; 0.9 puts 86% of the weight on the first 10.

    Examples:
        >>> round(rank_biased_overlap(["a", "b", "c"], ["a", "b", "c"]), 12)
        1.0
        >>> rank_biased_overlap(["a", "b"], ["c", "d"])
        0.0
    """
    shared = 0
    seen: set[str] = set()
    total = 0.0
    for depth, pair in enumerate(zip(one, other, strict=True), start=1):
        for docid in pair:
            shared += docid in seen
            seen.add(docid)
        total += shared / depth * persistence**depth
    agreement = shared / len(one) if one else 1.0
    return agreement * persistence ** len(one) + (1.0 - persistence) / persistence * total


def overlap(one: Sequence[str], other: Sequence[str], depth: int) -> float:
    """Return the share of docids that the first `depth` ranks of both have in common.

    Examples:
        >>> overlap(["a", "b", "c"], ["b", "a", "d"], 2)
        1.0
    """
    size = min(depth, len(one), len(other))
    return len(set(one[:depth]) & set(other[:depth])) / size if size else 1.0


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Spearman's rank correlation, ties sharing their ranks; nan where one side is constant.

    Examples:
        >>> round(spearman([1, 2, 3, 3], [10, 20, 30, 40]), 4)
        0.9487
    """
    from scipy import stats

    ranks = [stats.rankdata(values) for values in (one, other)]
    if any(len(values) < 2 or np.ptp(values) == 0 for values in ranks):
        return math.nan
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
