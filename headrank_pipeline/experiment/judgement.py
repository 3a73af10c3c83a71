"""Evaluation of a run directory: first stage and reranked run beside each other, and beside published scores."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from headrank_pipeline.experiment.benchmark import Reference, ReferenceCheck, check_references
from headrank_pipeline.experiment.directory import RunDirectory
from headrank_pipeline.experiment.evaluate import DEFAULT_MEASURES, Evaluation, evaluated
from headrank_pipeline.files import Input, file_sha256, open_input, write_json
from headrank_pipeline.records import Candidate
from headrank_pipeline.trec import Qrels, read_qrels, read_run

__all__ = [
    "Headroom",
    "Judged",
    "Judgement",
    "headroom",
    "in_order_of_grades",
    "judge",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What to evaluate with.

    Args:
        qrels: judgments: a file, a pipe, or ``-``; opened, digested and read here, and never again.
        measures: the same as in `evaluate`.
        relevance_level: lowest grade that counts as relevant for binary measures.
        references: published first-stage scores to check.

    Raises:
        FileNotFoundError: missing qrels.
        ValueError: a measure that is unknown or that nothing installed computes, none at all, a relevance level that
            is no grade, or malformed qrels.
    """

    qrels: str | os.PathLike[str]
    measures: Sequence[str] = DEFAULT_MEASURES
    relevance_level: int = 1
    references: Sequence[Reference] = ()
    opened: Input = field(init=False, repr=False, compare=False)
    grades: Qrels = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # One made-up query: what some library refuses only when it computes is refused before anything is reranked.
        run, grades = {"q": {"d": 2.0, "e": 1.0}}, {"q": {"d": 1, "e": 0}}
        evaluated(run, grades, [*self.measures], relevance_level=self.relevance_level)
        object.__setattr__(self, "opened", open_input(self.qrels, "qrels"))
        object.__setattr__(self, "grades", read_qrels(self.opened))

    def describe(self) -> dict[str, Any]:
        """Return everything but the judgments themselves as JSON-ready values."""
        return {
            "qrels": str(self.qrels),
            "qrels_sha256": self.opened.sha256,
            "measures": list(self.measures),
            "relevance_level": self.relevance_level,
            "references": [reference.model_dump() for reference in self.references],
        }

    def check(self, qids: Sequence[str]) -> None:
        """Fail now rather than after hours of reranking.

        Args:
            qids: the queries that will be evaluated.

        Raises:
            ValueError: judgments of other queries only.
        """
        judged = self.grades
        if not any(qid in judged for qid in qids):
            raise ValueError(
                f"{self.qrels}: judges none of the {len(qids)} queries of this run ({', '.join(qids[:3])}, …) but "
                f"{len(judged)} others ({', '.join(list(judged)[:3])}, …); check that both belong to the same topics"
            )


@dataclass(frozen=True, slots=True)
class Judged:
    """Both evaluations, and how the first stage compares with what is published.

    Args:
        checks: empty where nothing is published, or the run was asked a part of the judged queries only.
        headroom: how far any reranker of these candidates could move the measures.
        unasked: judged queries that are not among the run's topics.
    """

    first_stage: Evaluation
    reranked: Evaluation
    checks: Sequence[ReferenceCheck]
    headroom: Headroom
    unasked: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {
            "first_stage": self.first_stage.to_dict(),
            "reranked": self.reranked.to_dict(),
            "references": [check.model_dump() for check in self.checks],
            "headroom": self.headroom.to_dict(),
        }


def judge(directory: RunDirectory, judgement: Judgement, asked: Collection[str], *, depth: int) -> Judged:
    """Return the evaluations of both run files, read as they were written, and write evaluation.json.

    Args:
        directory: holds them.
        judgement: what to evaluate with.
        asked: every qid of the run's topics; published scores are not checked where a judged query is missing here.
        depth: candidates that were reranked.
    """
    grades = judgement.grades
    (first_stage, strangers), (reranked, _) = (
        evaluated(run, grades, judgement.measures, relevance_level=judgement.relevance_level)
        for run in (directory.first_stage_run, directory.run)
    )
    if strangers:  # once: both runs have the same documents
        _log.warning("%s", strangers)
    unasked = len(grades.keys() - set(asked))
    references = () if unasked else judgement.references
    room = headroom(read_run(directory.first_stage_run), grades, first_stage, depth)
    if remark := room.remark(next(iter(first_stage.means))):
        _log.warning("%s", remark)
    judged = Judged(first_stage, reranked, check_references(references, first_stage.means), room, unasked)
    record = {
        "measures": list(judgement.measures),
        "relevance_level": judgement.relevance_level,
        "qrels_sha256": judgement.opened.sha256,
        "run_sha256": file_sha256(directory.run),
        "first_stage_run_sha256": file_sha256(directory.first_stage_run),
        **judged.to_dict(),
    }
    write_json(directory.evaluation, record)
    return judged


# --------------------------------------------------------------------------------- what reranking could do to a measure
#
# A measure whose value is the same with the candidates in the best and in the worst order cannot see reranking: recall
# at the number of candidates, or a query none of whose candidates is relevant. Where the first stage has the best order
# already a reranker can only lose.


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
