"""Evaluation of a run directory: first stage and reranked run beside each other, and beside published scores."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrank_pipeline.experiment.benchmark import Reference, ReferenceCheck, check_references
from headrank_pipeline.experiment.directory import RunDirectory, file_sha256, write_json
from headrank_pipeline.experiment.evaluate import DEFAULT_MEASURES, Evaluation, evaluated, parse_measure
from headrank_pipeline.experiment.headroom import Headroom, headroom
from headrank_pipeline.files import Input, open_input
from headrank_pipeline.trec import Qrels, read_qrels, read_run

__all__ = ["Judged", "Judgement", "judge"]

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
        ValueError: an unknown measure, or malformed qrels.
    """

    qrels: str | os.PathLike[str]
    measures: Sequence[str] = DEFAULT_MEASURES
    relevance_level: int = 1
    references: Sequence[Reference] = ()
    opened: Input = field(init=False, repr=False, compare=False)
    grades: Qrels = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for measure in self.measures:
            parse_measure(measure)
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
