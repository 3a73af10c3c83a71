"""What reranking can change: every measure with the candidates in the best and in the worst order.

A measure whose value is the same in both orders cannot see reranking: recall at the number of candidates, or a query
none of whose candidates is relevant. Where the first stage has the best order already a reranker can only lose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headrank_pipeline.experiment.evaluate import Evaluation, evaluated
from headrank_pipeline.records import Candidate

__all__ = ["Headroom", "headroom", "in_order_of_grades"]

_EQUAL = 1e-9  # sums of the same gains in another order


@dataclass(frozen=True, slots=True)
class Headroom:
    """How far measures can move, over the judged queries that have candidates.

    Args:
        queries: number of these queries.
        depth: candidates that were reranked.
        without_relevant: queries none of whose reranked candidates is relevant.
        best: measure -> mean over all judged queries with the reranked candidates in the best order.
        fixed: measure -> queries whose value no order of the reranked candidates changes.
        full: measure -> queries whose value the first stage's order makes as high as any order can, fixed ones apart.
    """

    queries: int
    depth: int
    without_relevant: int
    best: Mapping[str, float]
    fixed: Mapping[str, int]
    full: Mapping[str, int]

    def blind(self) -> list[str]:
        """Return the measures that cannot see reranking: no order changes them, for any query."""
        return [measure for measure, count in self.fixed.items() if count == self.queries]

    def remark(self, measure: str) -> str | None:
        """Return what must be known before a measure is read, or None where most queries can go up and down."""
        fixed, full, queries = self.fixed[measure], self.full[measure], self.queries
        none = f" ({self.without_relevant} of them have no relevant passage there)" if self.without_relevant else ""
        if fixed == queries:
            why = "" if self.without_relevant < queries else ": none of them is relevant, for any query"
            return f"{measure} cannot see reranking: no order of the {self.depth} best candidates changes it{why}"
        if fixed + full == queries:
            return (
                f"{measure} can only fall: {full} of {queries} queries have the best order of their candidates, and no "
                f"order changes the others"
            )
        if fixed > queries / 2:
            return (
                f"{measure} sees reranking in {queries - fixed} of {queries} queries only: no order of the "
                f"{self.depth} best candidates changes the others{none}"
            )
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {**asdict(self), "blind": self.blind()}


def headroom(
    first_stage: Mapping[str, Sequence[Candidate]],
    grades: Mapping[str, Mapping[str, int]],
    evaluation: Evaluation,
    depth: int,
) -> Headroom:
    """Return how far the measures of an evaluation can move.

    Args:
        first_stage: qid -> candidates, best first.
        grades: qid -> docid -> grade.
        evaluation: evaluation of the first stage, against these grades.
        depth: candidates that are reranked.
    """
    measures, level = list(evaluation.means), evaluation.relevance_level

    def ordered(*, best: bool) -> Evaluation:
        run = in_order_of_grades(first_stage, grades, depth, best=best)
        return evaluated(run, grades, measures, relevance_level=level)[0]

    best, worst = ordered(best=True), ordered(best=False)
    found = {qid: first_stage[qid] for qid in grades if first_stage.get(qid)}
    fixed, full = dict.fromkeys(measures, 0), dict.fromkeys(measures, 0)
    for qid in found:
        for measure in measures:
            low, here, high = (order.per_query[qid][measure] for order in (worst, evaluation, best))
            fixed[measure] += high - low < _EQUAL
            full[measure] += high - low >= _EQUAL > high - here
    return Headroom(
        queries=len(found),
        depth=depth,
        without_relevant=sum(
            all(grades[qid].get(candidate.docid, 0) < level for candidate in candidates[:depth])
            for qid, candidates in found.items()
        ),
        best=dict(best.means),
        fixed=fixed,
        full=full,
    )


def in_order_of_grades(
    run: Mapping[str, Sequence[Candidate]], grades: Mapping[str, Mapping[str, int]], depth: int, *, best: bool
) -> dict[str, dict[str, float]]:
    """Return a run whose first `depth` candidates are ordered by grade, highest first or lowest first.

    A passage that nobody judged counts as irrelevant, below one that was judged so; equals keep their order, and so do
    the candidates below the depth.

    Examples:
        >>> run = {"q": [Candidate("a", 3.0), Candidate("b", 2.0), Candidate("c", 1.0)]}
        >>> in_order_of_grades(run, {"q": {"b": 1, "c": 2}}, 2, best=True)
        {'q': {'b': 0.0, 'a': -1.0, 'c': -2.0}}
    """
    ordered = {}
    for qid, candidates in run.items():
        judged = grades.get(qid, {})
        docids = [candidate.docid for candidate in candidates]
        head = sorted(docids[:depth], key=lambda docid: (judged.get(docid, 0), docid in judged), reverse=best)
        ordered[qid] = {docid: float(-rank) for rank, docid in enumerate([*head, *docids[depth:]])}
    return ordered
