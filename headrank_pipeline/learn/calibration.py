"""Fitting and judging probabilities: logistic regression on training lists, reliability and ECE on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrank_pipeline.learn.lists import GradedList
from headrank_pipeline.pipeline import require_extra

__all__ = ["Bin", "expected_calibration_error", "fit_logistic", "reliability", "without_relevant"]


def without_relevant(graded: GradedList, relevance_level: int) -> GradedList | None:
    """Return the list without its relevant passages, as an example of nothing to find; None if nothing is left."""
    kept = [place for place, grade in enumerate(graded.grades) if grade < relevance_level]
    return graded.taken(kept) if kept else None


def fit_logistic(features: Sequence[Sequence[float]], outcomes: Sequence[bool]) -> tuple[float, ...]:
    """Return intercept and weights of a logistic regression by scikit-learn, with next to no regularisation.

    Args:
        features: one row per example, rows of equal length.
        outcomes: one per row; both kinds must be there.

    Raises:
        MissingPrerequisite: no scikit-learn.
        ValueError: outcomes of one kind only.
    """
    require_extra("calibrate", "fitting a calibration", "sklearn")
    from sklearn.linear_model import LogisticRegression

    if len(set(map(bool, outcomes))) < 2:
        raise ValueError(
            f"{len(outcomes)} examples of one kind only (relevant: {sum(outcomes)}): nothing can be told apart; check "
            f"the lists' grades and relevance_level"
        )
    fitted = LogisticRegression(C=100.0, max_iter=1000).fit(features, [bool(outcome) for outcome in outcomes])
    return (float(fitted.intercept_[0]), *(float(weight) for weight in fitted.coef_[0]))


@dataclass(frozen=True, slots=True)
class Bin:
    """Examples of alike probability.

    Attributes:
        probability: their mean.
        share: share of them that came true.
        count: how many.
    """

    probability: float
    share: float
    count: int


def reliability(probabilities: Sequence[float], outcomes: Sequence[bool], *, bins: int = 10) -> list[Bin]:
    """Return the filled bins of a reliability diagram, of equal width over 0 to 1, lowest first.

    Examples:
        >>> reliability([0.1, 0.3, 0.9], [False, True, True], bins=2)
        [Bin(probability=0.2, share=0.5, count=2), Bin(probability=0.9, share=1.0, count=1)]
    """
    parts: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for probability, outcome in zip(probabilities, outcomes, strict=True):
        parts[min(int(probability * bins), bins - 1)].append((probability, outcome))
    return [
        Bin(sum(p for p, _ in part) / len(part), sum(o for _, o in part) / len(part), len(part))
        for part in parts
        if part
    ]


def expected_calibration_error(probabilities: Sequence[float], outcomes: Sequence[bool], *, bins: int = 10) -> float:
    """Return the mean distance of probability and share over the bins, weighted by their examples (ECE).

    Examples:
        >>> round(expected_calibration_error([0.1, 0.3, 0.9], [False, True, True], bins=2), 4)
        0.2333
    """
    found = reliability(probabilities, outcomes, bins=bins)
    return sum(part.count * abs(part.probability - part.share) for part in found) / len(probabilities)
