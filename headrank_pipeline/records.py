"""Query, Candidate, Ranking: the nouns of the package, frozen and self-checking.

Every stage takes rankings and gives rankings back, so a mistake is caught where the record is made rather than in an
evaluation weeks later. Ids are ``str`` from here on: a docid of ``"007"`` must never become the number 7.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Candidate", "NotFinite", "Query", "Ranking", "check_id"]

FRAME_COLUMNS = ("qid", "query", "docno", "title", "text", "score", "rank")


class NotFinite(ValueError):
    """A score, or the attention it is made of, that is NaN or infinite: the model's fault, not the list's."""


def check_id(kind: str, value: object) -> None:
    """Refuse an id that a run file cannot hold or an evaluator cannot read; the one place that knows which those are.

    Args:
        kind: "qid", "docid" or "run tag", for the error.
        value: the id.

    Raises:
        TypeError: anything but a string.
        ValueError: an empty id, or one with white space, a NUL character or half a surrogate pair.
    """
    if not isinstance(value, str):
        raise TypeError(
            f"{kind} {value!r}: expected str, got {type(value).__name__}; ids are strings ('007' is not 7), "
            f"convert with str() before building the record"
        )
    if value.split() != [value]:
        raise ValueError(f"{kind} {value!r}: expected a non-empty id without white space, as run files need")
    if "\0" in value:
        raise ValueError(f"{kind} {value!r}: has a NUL character, where evaluators end an id; repair or delete it")
    _check_text(f"{kind} {value!a}", value)


def _number(value: Any, what: str) -> float:
    """Numbers of numpy and torch are welcome, and strings that spell one: frames are read so to keep their ids."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{what} {value!r:.40}: expected a number, got {type(value).__name__}") from error


def _check_text(what: str, text: object) -> None:
    """Half a surrogate pair, which JSON escapes can smuggle in, breaks Java and tokenizers far from its source."""
    if text is None:
        return
    if not isinstance(text, str):
        raise TypeError(f"{what} {text!r}: expected str, got {type(text).__name__}")
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} has half a surrogate pair ({text[error.start]!a}) at character {error.start}: it is not valid "
            f"Unicode; repair or delete it"
        ) from error


@dataclass(frozen=True, slots=True)
class Query:
    """One information need.

    Args:
        qid: identifier, a non-empty string without white space.
        text: the query as the user wrote it; at least one character that is not white space.

    Raises:
        TypeError: an id or a text that is not a string.
        ValueError: an empty id, an id with white space, or an empty text.

    Examples:
        >>> Query("264014", "how long is the life cycle of a flea")
        Query(qid='264014', text='how long is the life cycle of a flea')
    """

    qid: str
    text: str

    def __post_init__(self) -> None:
        check_id("qid", self.qid)
        _check_text(f"qid {self.qid}: query text", self.text)
        if not self.text or not self.text.strip():
            raise ValueError(
                f"qid {self.qid}: query text {self.text!r} is empty; remove the query from the topics or give it text"
            )


@dataclass(frozen=True, slots=True)
class Candidate:
    """One passage that a first stage returned for a query.

    Args:
        docid: identifier, a non-empty string without white space.
        score: finite; higher is better.
        text: the passage, or None where it has not been fetched (a bare run file). An empty string is an empty passage.
        title: the title, or None where the collection has none.

    Raises:
        TypeError: an id, a text or a title that is not a string, or a score that is not a number.
        ValueError: an empty id, an id with white space, or a score that is not finite.
    """

    docid: str
    score: float
    text: str | None = None
    title: str | None = None

    def __post_init__(self) -> None:
        check_id("docid", self.docid)
        if not isinstance(self.score, float):
            object.__setattr__(self, "score", _number(self.score, f"docid {self.docid}: score"))
        if not math.isfinite(self.score):
            raise NotFinite(f"docid {self.docid}: score {self.score!r} is not finite")
        for name in ("title", "text"):
            _check_text(f"docid {self.docid}: {name}", getattr(self, name))


@dataclass(frozen=True, slots=True)
class Ranking:
    """The candidates of one query, best first.

    Every docid occurs once and scores never rise from one candidate to the next; rank 1 is ``candidates[0]``.

    Args:
        query: what was asked.
        candidates: best first; may be empty.
        notes: what the last stage counted while it worked (``prompt_tokens``, ``passages_cut``, …), for the run's
            manifest; not part of equality.

    Raises:
        TypeError: anything but a Query and Candidates.
        ValueError: a docid that occurs twice, or a score above its predecessor's.

    Examples:
        >>> ranking = Ranking(Query("q1", "flea"), (Candidate("d1", 2.0), Candidate("d2", 1.0)))
        >>> ranking.rescored([0.1, 0.9]).docids
        ('d2', 'd1')
    """

    query: Query
    candidates: tuple[Candidate, ...] = ()
    notes: Mapping[str, float] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(self.candidates))
        if not isinstance(self.query, Query):
            raise TypeError(f"ranking of {self.query!r}: expected a Query, got {type(self.query).__name__}")
        first_rank: dict[str, int] = {}
        previous: Candidate | None = None
        for rank, candidate in enumerate(self.candidates, start=1):
            if not isinstance(candidate, Candidate):
                raise TypeError(f"qid {self.query.qid} rank {rank}: expected a Candidate, got {candidate!r}")
            if candidate.docid in first_rank:
                raise ValueError(
                    f"qid {self.query.qid}: docid {candidate.docid} occurs at ranks {first_rank[candidate.docid]} and "
                    f"{rank}; every candidate must occur once, remove the duplicate from the first stage's results"
                )
            first_rank[candidate.docid] = rank
            if previous is not None and candidate.score > previous.score:
                raise ValueError(
                    f"qid {self.query.qid}: docid {candidate.docid} at rank {rank} scores {candidate.score!r}, above "
                    f"{previous.docid} before it with {previous.score!r}; order must equal score order, "
                    f"use Ranking.from_scores to sort"
                )
            previous = candidate

    def __len__(self) -> int:
        return len(self.candidates)

    @property
    def docids(self) -> tuple[str, ...]:
        """Docids, best first."""
        return tuple(candidate.docid for candidate in self.candidates)

    @property
    def scores(self) -> tuple[float, ...]:
        """Scores, never rising."""
        return tuple(candidate.score for candidate in self.candidates)

    def first_with_text(self) -> tuple[int, ...]:
        """Return for each candidate the index of the first one with its title and text: its own if there is no other.

        Examples:
            >>> ranking = Ranking(Query("q", "flea"), tuple(Candidate(d, 0.0, t) for d, t in zip("abc", "xyx")))
            >>> ranking.first_with_text()
            (0, 1, 0)
        """
        first: dict[tuple[str | None, str], int] = {}
        return tuple(
            index if candidate.text is None else first.setdefault((candidate.title, candidate.text), index)
            for index, candidate in enumerate(self.candidates)
        )

    @classmethod
    def from_scores(cls, query: Query, candidates: Iterable[Candidate]) -> Ranking:
        """Return a ranking with the candidates sorted by score; equal scores keep the order they came in."""
        return cls(query, tuple(sorted(candidates, key=lambda candidate: -candidate.score)))

    def cut(self, cutoff: int) -> Ranking:
        """Return the best `cutoff` candidates.

        Raises:
            ValueError: a cutoff below 1.
        """
        if cutoff < 1:
            raise ValueError(f"cutoff {cutoff}: expected at least 1")
        return replace(self, candidates=self.candidates[:cutoff])

    def without(self, docids: Collection[str]) -> Ranking:
        """Return the ranking less the given docids (the query's own document, judged-out passages).

        Raises:
            TypeError: one docid where several are expected.
        """
        if isinstance(docids, str):  # its letters would be the docids
            raise TypeError(f"docids {docids!r}: expected several, got a string; write [docid]")
        excluded = frozenset(docids)
        return replace(self, candidates=tuple(c for c in self.candidates if c.docid not in excluded))

    def rescored(self, scores: Sequence[float]) -> Ranking:
        """Return the same candidates with new scores, sorted; equal scores keep the present order.

        Args:
            scores: one finite float per candidate, in the present order.

        Raises:
            ValueError: another number of scores than candidates, or a score that is not finite.
        """
        if len(scores) != len(self.candidates):
            raise ValueError(f"qid {self.query.qid}: {len(scores)} scores for {len(self.candidates)} candidates")
        for candidate, score in zip(self.candidates, scores, strict=True):
            if not math.isfinite(score):
                raise NotFinite(
                    f"qid {self.query.qid} docid {candidate.docid}: score {score!r} is not finite; "
                    f"a half-precision overflow is the usual cause, try dtype float32"
                )
        pairs = zip(self.candidates, scores, strict=True)
        rescored = sorted((replace(c, score=float(s)) for c, s in pairs), key=lambda candidate: -candidate.score)
        return replace(self, candidates=tuple(rescored))

    def continued_by(self, tail: Ranking) -> Ranking:
        """Return these candidates followed by those of `tail` that are missing here, with continuing scores.

        The first one appended scores 1 below the last one here, and the differences inside the tail are kept.
        """
        head = frozenset(self.docids)
        rest = [candidate for candidate in tail.candidates if candidate.docid not in head]
        if not rest or not self.candidates:
            return replace(self, candidates=self.candidates + tuple(rest))
        last, first = self.candidates[-1].score, rest[0].score
        lowest = -1.7e308
        appended = [replace(c, score=max(last - 1.0 - (first - c.score), lowest)) for c in rest]
        if appended[0].score > last:  # last lies below `lowest`: nothing is left to count down to
            appended = [replace(c, score=last) for c in rest]
        return replace(self, candidates=self.candidates + tuple(appended))

    def to_frame(self) -> pd.DataFrame:
        """Return a frame with PyTerrier's columns (qid, query, docno, title, text, score, rank); rank starts at 0."""
        import pandas as pd

        rows = [
            (self.query.qid, self.query.text, c.docid, c.title, c.text, c.score, rank)
            for rank, c in enumerate(self.candidates)
        ]
        return pd.DataFrame(rows, columns=list(FRAME_COLUMNS))

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> list[Ranking]:
        """Return one ranking per qid of a PyTerrier-shaped frame, in order of first appearance.

        Needs qid, query and docno; takes title and text where the columns are there. Without score, candidates follow
        the ranks, or where there are none the rows, and score 0, -1, -2, …

        Raises:
            TypeError: ids or texts that are not strings, scores that are not numbers.
            ValueError: a missing column, two query texts of one qid, or what the records refuse.
        """
        missing = [name for name in ("qid", "query", "docno") if name not in frame.columns]
        if missing:
            raise ValueError(f"data frame lacks the columns {missing}; found {list(frame.columns)}")
        rankings: dict[str, tuple[Query, list[Candidate]]] = {}
        for row in frame.to_dict("records"):
            qid = row["qid"]
            check_id("qid", qid)
            if qid not in rankings:
                rankings[qid] = (Query(qid, row["query"]), [])
            query, candidates = rankings[qid]
            if row["query"] != query.text:
                raise ValueError(f"qid {qid}: has two query texts, {query.text!r} and {row['query']!r}; expected one")
            try:
                score = _frame_score(row, len(candidates))
                candidates.append(Candidate(row["docno"], score, _cell(row, "text"), _cell(row, "title")))
            except (TypeError, ValueError) as error:
                raise type(error)(f"qid {qid}: {error}") from error
        return [cls.from_scores(query, candidates) for query, candidates in rankings.values()]


def _frame_score(row: Mapping[Any, Any], place: int) -> Any:
    if "score" in row:
        return row["score"]
    return -_number(row.get("rank", place), f"docid {row['docno']}: rank")


def _cell(row: Mapping[Any, Any], column: str) -> Any:
    """A missing cell is None, NaN or pandas' NA, depending on the frame's history; all mean that there is no text."""
    import pandas as pd

    value = row.get(column)
    if isinstance(value, str):
        return value
    return None if pd.api.types.is_scalar(value) and pd.isna(value) else value
