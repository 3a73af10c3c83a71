"""The one tie rule: scores as an evaluator will see them, in the order that we mean.

trec_eval and its relatives ignore the rank column, keep scores as float32, and break ties by docid descending
(usnistgov/trec_eval#22). Two scores that differ only beyond float32, or that a writer prints alike, therefore lose our
order without a word. The functions here lower a score by the least step that keeps it apart from its predecessor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["run_scores", "six_decimal_scores"]

_INT32_MIN = -(2**31)
_MAX_ORDINAL = 0x7F7FFFFF  # bits of the largest finite float32; the smallest has the ordinal -_MAX_ORDINAL


def _check(scores: Sequence[float]) -> None:
    previous = math.inf
    for position, score in enumerate(scores, start=1):
        if not math.isfinite(score):
            raise ValueError(f"score {score!r} at rank {position} is not finite")
        if score > previous:
            raise ValueError(f"score {score!r} at rank {position} is above {previous!r} before it; sort first")
        previous = score


def _clipped(score: float) -> float:
    limit = float(np.finfo(np.float32).max)
    return min(max(score, -limit), limit)


def _ordinal(score: float) -> int:
    """Return the place of a score among all finite float32 values, 0 for 0.0; neighbours differ by 1."""
    bits = int(np.float32(_clipped(score)).view(np.int32))
    return bits if bits >= 0 else _INT32_MIN - bits  # -0.0 and 0.0 are the same place


def _value(ordinal: int) -> float:
    bits = ordinal if ordinal >= 0 else _INT32_MIN - ordinal
    return float(np.int32(bits).view(np.float32))


def run_scores(scores: Sequence[float]) -> list[float]:
    """Return float32 values, strictly decreasing, as close to `scores` as that allows.

    Args:
        scores: finite, never rising.

    Raises:
        ValueError: a score that is not finite or that rises.

    Examples:
        >>> run_scores([3.0, 2.0, 2.0])
        [3.0, 2.0, 1.9999998807907104]
        >>> run_scores([0.5, 0.25])
        [0.5, 0.25]
    """
    _check(scores)
    limit = float(np.finfo(np.float32).max)
    bits = np.clip(np.asarray(scores, dtype=np.float64), -limit, limit).astype(np.float32).view(np.int32)
    ordinals = np.where(bits >= 0, bits, _INT32_MIN - bits.astype(np.int64))
    ranks = np.arange(len(scores))
    # o[i] = min(o[i], o[i-1] - 1), as a running minimum of o[i] + i
    ordinals = np.minimum.accumulate(ordinals + ranks) - ranks
    # Ties at the bottom of float32 would count down past its end: lift what lies too low by as little as will do.
    ordinals = np.maximum(ordinals, -_MAX_ORDINAL + len(scores) - 1 - ranks)
    values = np.where(ordinals >= 0, ordinals, _INT32_MIN - ordinals).astype(np.int32).view(np.float32)
    return [float(value) for value in values]


def six_decimal_scores(scores: Sequence[float]) -> list[float]:
    """Return scores that stay strictly decreasing when printed with ``%.6f``, and as float32 after that.

    Pyserini's ``OutputWriter`` prints six decimals; mean attention masses such as 3.1e-07 would all become 0.000000.
    Scores that survive the rounding in order are returned rounded and otherwise as they were.

    Args:
        scores: finite, never rising.

    Raises:
        ValueError: a score that is not finite or that rises.

    Examples:
        >>> six_decimal_scores([12.5, 3.1e-07, 2.9e-07])
        [12.5, 0.0, -1e-06]
    """
    _check(scores)
    printed: list[float] = []
    for score in scores:
        millionths = _millionths(_clipped(score))
        if printed and _ordinal(millionths / 10**6) >= _ordinal(printed[-1]):
            below = _value(max(_ordinal(printed[-1]) - 1, -_MAX_ORDINAL))
            # Below 16 a float32 step is finer than a millionth, above it is coarser: take the larger of the two.
            millionths = min(_millionths(printed[-1]) - 1, _millionths(below))
        printed.append(millionths / 10**6)
    lowest = -_MAX_ORDINAL + len(scores) - 1
    return [max(score, _value(lowest - rank)) for rank, score in enumerate(printed)]


def _millionths(score: float) -> int:
    return int(f"{score:.6f}".replace(".", ""))
