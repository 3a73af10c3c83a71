"""Measures that trec_eval lacks, by ir_measures' names and code; the only module that sees ir_measures."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["further_values", "is_further_measure"]


def is_further_measure(name: str) -> bool:
    """Whether ir_measures knows a measure of that name (``Judged@10``, ``RBP(p=0.8)``, ``ERR@20``)."""
    return _parsed(name) is not None


def further_values(
    scores: Mapping[str, Mapping[str, float]], grades: Mapping[str, Mapping[str, int]], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return qid -> measure -> value for the queries of the grades that the run has.

    Args:
        scores: qid -> docid -> score; equal scores go by docid, descending, as trec_eval has it.
        grades: qid -> docid -> grade.
        names: measures that `is_further_measure` knows.

    Raises:
        ValueError: ir_measures has the measure and nothing installed computes it.
    """
    import ir_measures

    qids = [qid for qid in grades if qid in scores]
    short = {qid: str(number) for number, qid in enumerate(qids, start=1)}  # gdeval takes numbers only
    qrels = [ir_measures.Qrel(short[qid], docid, grade) for qid in qids for docid, grade in grades[qid].items()]
    run = []
    for qid in qids:
        order = sorted(scores[qid], key=lambda docid: (scores[qid][docid], docid), reverse=True)
        run += [ir_measures.ScoredDoc(short[qid], docid, float(-rank)) for rank, docid in enumerate(order)]
    found: dict[str, dict[str, float]] = {qid: {} for qid in qids}
    for name in names:
        measure = _parsed(name)
        try:
            values = {metric.query_id: float(metric.value) for metric in ir_measures.iter_calc([measure], qrels, run)}
        except (ValueError, RuntimeError, OSError, subprocess.SubprocessError) as error:
            raise ValueError(
                f"measure {name!r}: nothing installed computes it ({' '.join(str(error).split())[:120]}); RBP needs "
                f"pip install cwl-eval, ERR a Perl interpreter"
            ) from error
        for qid in qids:
            found[qid][name] = values.get(short[qid], 0.0)
    return found


def _parsed(name: str) -> Any:
    import ir_measures

    try:
        return ir_measures.parse_measure(name)
    except (NameError, ValueError, SyntaxError, TypeError, AttributeError):
        return None
