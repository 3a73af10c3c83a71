"""Scores with a meaning: the probability that a passage is relevant, and that none of the list is.

Shares of attention say which passage of a list is looked at most, not whether any is relevant. So one more passage is
read along that says nothing: what attention it draws is what any passage draws. The logarithm of a passage's share over
that of nothing is comparable across queries; two logistic regressions, fitted on training lists (learn/calibration.py),
make probabilities of it. They are plain numbers in a JSON file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from headrank_pipeline.files import write_json
from headrank_pipeline.pipeline import Failure, Reranker, all_reranked
from headrank_pipeline.records import Candidate, Ranking
from headrank_pipeline.rerank.attention_reranker import AttentionReranker

__all__ = [
    "NOTHING",
    "Calibration",
    "Lifts",
    "calibrated",
    "check_threshold",
    "lifts",
    "reading_of",
]

# The passage that says nothing. Its id cannot be that of a passage in any collection we know.
NOTHING = Candidate("headrank:nothing", 0.0, "None of these paragraphs is relevant to the query.")

_LEAST = 1e-12  # a share below this counts as this where logarithms are taken


@dataclass(frozen=True, slots=True)
class Lifts:
    """What one list says without a scale: the features of both regressions.

    Attributes:
        passages: [P], logarithm of each passage's share over that of nothing.
    """

    passages: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the list."""
        return math.fsum(self.passages) / len(self.passages)

    def of_passage(self, place: int) -> tuple[float, float]:
        """Return the features of a passage: its own lift, and the list's mean."""
        return self.passages[place], self.mean

    def of_list(self) -> tuple[float, float]:
        """Return the features of the list: those of the passage that stands out most."""
        return max(self.passages), self.mean


@dataclass(frozen=True, slots=True)
class Calibration:
    """Two logistic regressions over `Lifts`, each (intercept, weight of the lift, weight of the list's mean).

    Args:
        passage: coefficients of the probability that a passage is relevant; the second one is above 0, so that
            probabilities keep the order of the scores.
        nothing: coefficients of the probability that no passage of the list is relevant.
        relevance_level: lowest grade that counted as relevant.
        reading: what the numbers belong to, as `reading_of` gives it. A fingerprint of None stands for the weights
            that the file lies beside: each machine makes those of a packaged model, maybe with other last digits.
        fitted: what it was fitted on, for the record.

    Raises:
        ValueError: not three finite numbers each, or passages whose probability falls with their score.
    """

    passage: tuple[float, float, float]
    nothing: tuple[float, float, float]
    relevance_level: int
    reading: Mapping[str, str | None]
    fitted: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name in ("passage", "nothing"):
            numbers = tuple(getattr(self, name))
            object.__setattr__(self, name, numbers)
            if len(numbers) != 3 or not all(isinstance(n, float | int) and math.isfinite(n) for n in numbers):
                raise ValueError(f"calibration, {name}: expected 3 finite numbers, got {list(numbers)}")
        if self.passage[1] <= 0:
            raise ValueError(
                f"calibration, passage: the weight of a passage's score is {self.passage[1]}, expected above 0: on "
                f"these lists relevant passages score no higher; fit on more lists, or choose other heads"
            )

    def of_passages(self, found: Lifts) -> list[float]:
        """Return the probability that each passage is relevant; none is above one of a passage with a larger lift.

        Of two lifts a digit apart, rounding may give the smaller one the larger probability; it then gets the other's.
        """
        rising = sorted(range(len(found.passages)), key=found.passages.__getitem__)
        probabilities = [0.0] * len(rising)
        largest = 0.0
        for place in rising:
            largest = probabilities[place] = max(largest, _probability(self.passage, found.of_passage(place)))
        return probabilities

    def of_nothing(self, found: Lifts) -> float:
        """Return the probability that no passage of the list is relevant."""
        return _probability(self.nothing, found.of_list())

    def check_reading(self, reranker: AttentionReranker) -> None:
        """Raise ValueError unless the numbers belong to what a reranker reads."""
        reading = reading_of(reranker)
        free = {"model"} if self.reading.get("fingerprint", "") is not None else {"model", "fingerprint"}
        if differ := [name for name in reading if name not in free and self.reading.get(name) != reading[name]]:
            raise ValueError(
                f"the calibration was fitted for another reading: {', '.join(differ)} differ (model "
                f"{self.reading.get('model')!r} with fingerprint {self.reading.get('fingerprint')!r} there, "
                f"{reading['model']!r} with {reading['fingerprint']!r} here); fit one with headrank calibrate"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the numbers as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Return the calibration in a file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a calibration.
        """
        place = Path(path)
        try:
            record = json.loads(place.read_text(encoding="utf-8"))
            return cls(**{**record, "passage": tuple(record["passage"]), "nothing": tuple(record["nothing"])})
        except FileNotFoundError:
            raise FileNotFoundError(f"{place}: no such calibration; headrank calibrate writes one") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{place}: not a calibration ({error}); write it anew with headrank calibrate") from error


def _probability(weights: Sequence[float], features: Sequence[float]) -> float:
    """Return the logistic function of a weighted sum.

    Examples:
        >>> _probability((0.0, 1.0), (0.0,))
        0.5
    """
    total = weights[0] + math.fsum(w * x for w, x in zip(weights[1:], features, strict=True))
    return 1.0 / (1.0 + math.exp(-total)) if total >= 0 else math.exp(total) / (1.0 + math.exp(total))


def reading_of(reranker: AttentionReranker) -> dict[str, str]:
    """Return what a calibration belongs to: model, heads, prompt and rule.

    A model on the hub has no fingerprint. It goes by its name and commit.
    """
    told = reranker.describe()
    return {
        "model": str(told["model"]),
        "fingerprint": str(told["fingerprint"] or f"{told['model']}@{told['revision']}"),
        "heads": str(told["heads"]["sha256"]),
        "template": str(told["template"]["sha256"]),
        "rule": json.dumps(told["rule"], sort_keys=True),
    }


def calibrated(
    reranker: AttentionReranker, calibration: Calibration | str | Path, *, threshold: float | None = None
) -> Reranker:
    """Return a reranker whose scores are probabilities; the note ``nothing_relevant`` is that of no relevant passage.

    Args:
        reranker: one whose scores are shares of attention, as `headrank`'s are.
        calibration: fitted for this model, heads and prompt, or its file.
        threshold: leave out passages below this probability; None keeps all.

    Raises:
        FileNotFoundError: no such file.
        TypeError: a reranker that reads no attention.
        ValueError: a calibration of another model, heads, prompt or rule; scores that are no shares; lists that are
            refined, whose scores come from two readings; a threshold outside 0 to 1.
    """
    if not isinstance(reranker, AttentionReranker):
        raise TypeError(f"calibrated takes a reranker that reads attention, got {type(reranker).__name__}")
    check_threshold(threshold)
    _check_shares(reranker)
    found = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
    found.check_reading(reranker)
    return _Calibrated(reranker, found, threshold)


def check_threshold(threshold: Any) -> None:
    """Raise ValueError unless it is a probability, or None."""
    number = isinstance(threshold, float | int) and not isinstance(threshold, bool)
    if threshold is not None and not (number and 0.0 <= threshold <= 1.0):
        raise ValueError(f"threshold {threshold!r}: expected a probability, 0 to 1")


def _check_shares(reranker: AttentionReranker) -> None:
    if reranker.scale != "ratio":
        raise ValueError(
            f"{reranker.recipe.name}: its scores can be negative, which are no shares of attention; calibrate a "
            f"reading without content-free query, z-scores and negative weights of heads, such as headrank's"
        )
    if reranker.long_lists.strategy == "refine":
        raise ValueError("long_lists refine: scores of two readings are not comparable; choose auto, whole or windows")


def lifts(reranker: AttentionReranker, rankings: Sequence[Ranking]) -> list[tuple[Ranking, Lifts] | Failure]:
    """Return each ranking reranked, with its lifts in the new order; rankings have candidates.

    Raises:
        ValueError: scores that are no shares, or a candidate that has the id of the passage that says nothing.
    """
    _check_shares(reranker)
    return [_without_nothing(attempt) for attempt in reranker.attempt_batch([_with_nothing(r) for r in rankings])]


def _with_nothing(ranking: Ranking) -> Ranking:
    if NOTHING.docid in ranking.docids:
        raise ValueError(f"qid {ranking.query.qid}: docid {NOTHING.docid} is kept for calibration; rename the passage")
    least = math.nextafter(ranking.scores[-1], -math.inf)
    return replace(ranking, candidates=(*ranking.candidates, replace(NOTHING, score=least)))


def _without_nothing(attempt: Ranking | Failure) -> tuple[Ranking, Lifts] | Failure:
    if isinstance(attempt, Failure):
        return attempt
    place = attempt.docids.index(NOTHING.docid)
    level = math.log(max(attempt.scores[place], _LEAST))
    kept = attempt.without([NOTHING.docid])
    return kept, Lifts(tuple(math.log(max(score, _LEAST)) - level for score in kept.scores))


@dataclass(frozen=True)
class _Calibrated(Reranker):
    reranker: AttentionReranker
    calibration: Calibration
    threshold: float | None

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        return all_reranked(self._attempts(rankings))

    def _attempts(self, rankings: Sequence[Ranking]) -> list[Ranking | Failure]:
        found = iter(lifts(self.reranker, [ranking for ranking in rankings if ranking.candidates]))
        return [self._with_meaning(next(found)) if ranking.candidates else ranking for ranking in rankings]

    def _with_meaning(self, found: tuple[Ranking, Lifts] | Failure) -> Ranking | Failure:
        if isinstance(found, Failure):
            return found
        ranking, own = found
        scores = self.calibration.of_passages(own)
        candidates = [replace(c, score=score) for c, score in zip(ranking.candidates, scores, strict=True)]
        kept = [c for c in candidates if self.threshold is None or c.score >= self.threshold]
        notes = {**ranking.notes, "nothing_relevant": self.calibration.of_nothing(own)}
        return replace(ranking, candidates=tuple(kept), notes=notes)

    def describe(self) -> dict[str, Any]:
        calibration = {"passage": list(self.calibration.passage), "nothing": list(self.calibration.nothing)}
        return {**self.reranker.describe(), "calibration": calibration, "threshold": self.threshold}

    def origins(self) -> dict[str, str]:
        return self.reranker.origins()
