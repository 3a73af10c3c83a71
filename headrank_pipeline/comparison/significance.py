"""Paired tests over queries: what a difference of two means is worth; and how far two orders agree.

All tests take differences, system minus baseline, one per query. Two cases that scipy leaves undefined (nan) are
defined here: where every difference is 0 each p-value is 1 and the effect size 0; with a single query, or none, no test
is possible and the value is nan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Interval",
    "PairedTest",
    "bootstrap_means",
    "bootstrap_ratio",
    "effect_size",
    "holm",
    "kendall_tau",
    "overlap",
    "paired_tests",
    "randomisation_p",
    "rank_biased_overlap",
    "spearman",
    "t_test_p",
    "wins_ties_losses",
]

Values = NDArray[np.float64]

SAME = 1e-9  # two values of a measure that differ by less are the same sum in another order
EXACT_UP_TO = 14  # queries that differ; 2^14 sign patterns are fewer than the draws below
DRAWS = 20_000
RESAMPLES = 10_000
_BOUNDS = (2.5, 97.5)  # percentiles that hold 95% between them
_CHUNK = 2_000_000  # random numbers held at once


@dataclass(frozen=True, slots=True)
class Interval:
    """Bounds of a percentile bootstrap interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A system against the baseline on one measure.

    Args:
        difference: mean of system minus baseline.
        interval: bootstrap interval of that mean.
        wins: queries where the system is better.
        ties: queries where both are equal.
        losses: queries where the baseline is better.
        t_test: two-sided p-value of the paired t-test.
        randomisation: two-sided p-value of the paired randomisation (sign-flip) test.
        effect_size: Cohen's d of the paired differences.
    """

    difference: float
    interval: Interval
    wins: int
    ties: int
    losses: int
    t_test: float
    randomisation: float
    effect_size: float


def paired_tests(systems: Values, baseline: Values, *, seed: int = 0) -> list[PairedTest]:
    """Return one test per system.

    Args:
        systems: [Q, S], one row per query, one column per system.
        baseline: [Q], the same queries in the same order.
        seed: seed of the bootstrap and the randomisation test.

    Raises:
        ValueError: other queries than the baseline's, or none.

    Examples:
        >>> [test] = paired_tests(np.array([[0.5], [0.7], [0.9]]), np.array([0.4, 0.7, 0.5]))
        >>> round(test.difference, 4), test.wins, test.ties, test.losses
        (0.1667, 2, 1, 0)
    """
    if systems.ndim != 2 or len(systems) != len(baseline) or not len(baseline):
        raise ValueError(f"values of shape {systems.shape} against {len(baseline)}: expected the same queries, some")
    differences = _differences(systems - baseline[:, None])
    intervals = bootstrap_means(differences, seed=seed)
    return [_test(column, interval, seed) for column, interval in zip(differences.T, intervals, strict=True)]


def _test(differences: Values, interval: Interval, seed: int) -> PairedTest:
    wins, ties, losses = wins_ties_losses(differences)
    return PairedTest(
        difference=float(differences.mean()),
        interval=interval,
        wins=wins,
        ties=ties,
        losses=losses,
        t_test=t_test_p(differences),
        randomisation=randomisation_p(differences, seed=seed),
        effect_size=effect_size(differences),
    )


def wins_ties_losses(differences: Values) -> tuple[int, int, int]:
    """Return how many differences are positive, zero and negative."""
    wins, losses = int((differences > SAME).sum()), int((differences < -SAME).sum())
    return wins, len(differences) - wins - losses, losses


def t_test_p(differences: Values) -> float:
    """Return the two-sided p-value of the paired t-test (scipy's), 1 where nothing differs, nan for one query.

    Examples:
        >>> round(t_test_p(np.array([0.1, 0.0, 0.4, 0.2])), 4)
        0.1328
        >>> t_test_p(np.zeros(4))
        1.0
    """
    from scipy import stats

    if not np.any(_differences(differences)):
        return 1.0
    if len(differences) < 2:
        return math.nan
    if np.ptp(differences) < SAME:  # the same difference everywhere: no variance, t is infinite
        return 0.0
    return float(stats.ttest_rel(differences, np.zeros_like(differences)).pvalue)


def randomisation_p(differences: Values, *, seed: int = 0) -> float:
    """Return the two-sided p-value of the paired randomisation test on the mean.

    Under the null hypothesis each query's two values could be swapped, which flips the sign of its difference. Up to 14
    queries that differ, all sign patterns are counted, which is exact; above, `DRAWS` seeded random ones, with the
    observed pattern counted among them, so that p is never 0.

    Examples:
        >>> randomisation_p(np.array([0.1, 0.0, 0.4, 0.2]))  # 2 of the 2^3 patterns are as extreme
        0.25
        >>> randomisation_p(np.zeros(4))
        1.0
    """
    sizes = np.abs(_differences(differences))
    sizes = sizes[sizes > 0]  # a zero stays zero whatever its sign
    if not len(sizes):
        return 1.0
    if len(differences) < 2:
        return math.nan
    extreme = abs(float(_differences(differences).sum())) - SAME
    if len(sizes) <= EXACT_UP_TO:
        patterns = 2 ** len(sizes)
        bits = (np.arange(patterns)[:, None] >> np.arange(len(sizes))) & 1
        return float((np.abs((2.0 * bits - 1.0) @ sizes) >= extreme).mean())
    rng = np.random.default_rng(seed)
    hits = 0
    for rows in _chunks(DRAWS, len(sizes)):
        signs = 2.0 * rng.integers(0, 2, size=(rows, len(sizes)), dtype=np.int8) - 1.0
        hits += int((np.abs(signs @ sizes) >= extreme).sum())
    return (hits + 1) / (DRAWS + 1)


def effect_size(differences: Values) -> float:
    """Return Cohen's d of paired differences: their mean in units of their standard deviation.

    0 where nothing differs, infinite where all differ by the same amount, nan for one query.

    Examples:
        >>> round(effect_size(np.array([0.1, 0.0, 0.4, 0.2])), 4)
        1.0247
    """
    differences = _differences(differences)
    if not np.any(differences):
        return 0.0
    if len(differences) < 2:
        return math.nan
    mean = float(differences.mean())
    return math.copysign(math.inf, mean) if np.ptp(differences) < SAME else mean / float(differences.std(ddof=1))


def bootstrap_means(values: Values, *, seed: int = 0) -> list[Interval]:
    """Return a percentile bootstrap interval (95%) of the mean of each column.

    Args:
        values: one row per query, one column per system; queries are drawn with replacement, seeded.
        seed: seed of the draws.
    """
    sums = np.concatenate([drawn @ values for drawn in _redrawn(len(values), seed)])
    low, high = np.percentile(sums / len(values), _BOUNDS, axis=0)
    return [Interval(float(lower), float(upper)) for lower, upper in zip(low, high, strict=True)]


def bootstrap_ratio(parts: Values, wholes: Values, *, seed: int = 0) -> Interval:
    """Return a percentile bootstrap interval (95%) of ``sum(parts) / sum(wholes)``, whole queries being drawn.

    Args:
        parts: one value per query.
        wholes: one value per query; where all are 0 the bounds are nan.
        seed: seed of the draws.
    """
    if not wholes.any():
        return Interval(math.nan, math.nan)
    both = np.column_stack([parts, wholes])
    sums = np.concatenate([drawn @ both for drawn in _redrawn(len(both), seed)])
    sums = sums[sums[:, 1] > 0]
    low, high = np.percentile(sums[:, 0] / sums[:, 1], _BOUNDS)
    return Interval(float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for testing them all (Holm 1979); nan stays nan and counts for nothing.

    Examples:
        >>> [round(p, 4) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    highest = 0.0
    for place, (p, index) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - place) * p))
        corrected[index] = highest
    return corrected


def _differences(values: Values) -> Values:
    return np.where(np.abs(values) <= SAME, 0.0, values)


def _redrawn(queries: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield how often each query occurs in each of the resamples, some of them at a time."""
    rng = np.random.default_rng(seed)
    share = np.full(queries, 1.0 / queries)
    for rows in _chunks(RESAMPLES, queries):
        yield rng.multinomial(queries, share, size=rows)


def _chunks(rows: int, width: int) -> Iterator[int]:
    size = max(1, _CHUNK // width)
    while rows > 0:
        yield min(size, rows)
        rows -= size


# --------------------------------------------------------------------------------------------- how far two orders agree


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
