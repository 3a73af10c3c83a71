"""Effectiveness of a run against judgments, with trec_eval's own code; the only module that sees pytrec_eval.

Means are taken over every query of the qrels (``trec_eval -c``): a query that is missing from the run counts 0 and is
listed, because pytrec_eval on its own would leave it out and so reward a run that lost its hard queries.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrank_pipeline.records import Ranking
from headrank_pipeline.trec import read_qrels, read_run

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DEFAULT_MEASURES", "Evaluation", "Measure", "evaluate", "parse_measure"]

DEFAULT_MEASURES = ("nDCG@10", "R@100")

Run = str | os.PathLike[str] | Mapping[str, Mapping[str, float]] | Iterable[Ranking]
Qrels = str | os.PathLike[str] | Mapping[str, Mapping[str, int]]

# What people write -> trec_eval's name, with and without a cutoff.
_WITH_CUTOFF = {
    "nDCG": "ndcg_cut",
    "R": "recall",
    "Recall": "recall",
    "P": "P",
    "MAP": "map_cut",
    "AP": "map_cut",
    "RR": "recip_rank",
    "MRR": "recip_rank",
    "Success": "success",
}
_WHOLE = {"nDCG": "ndcg", "MAP": "map", "AP": "map", "RR": "recip_rank", "MRR": "recip_rank"}

# trec_eval's own names. Left out: counts and geometric means, whose mean over queries is not what trec_eval prints, and
# runid, num_q and relstring, which are no measures.
_RAW_WITH_CUTOFF = frozenset({"ndcg_cut", "map_cut", "recall", "P", "success", "relative_P"})
_RAW_WHOLE = frozenset(
    {"ndcg", "map", "recip_rank", "Rprec", "bpref", "infAP", "11pt_avg", "set_P", "set_recall", "set_map", "set_F"}
    | {"ndcg_rel", "Rndcg", "binG", "G"}
)
_LARGEST_CUTOFF = 1_000_000  # pytrec_eval ends the process on a cutoff of 0 and overflows on huge ones


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure as written and as trec_eval computes it.

    Args:
        name: as the user wrote it.
        trec_name: what pytrec_eval calls it in its results, for example ``ndcg_cut_10``.
        rank_limit: last rank at which a relevant passage counts for the reciprocal rank (trec_eval has none).
    """

    name: str
    trec_name: str
    rank_limit: int | None = None

    def value(self, results: Mapping[str, float]) -> float:
        """Return the value of one query from pytrec_eval's results for it."""
        value = float(results[self.trec_name])
        if self.rank_limit is not None and value > 0.0 and round(1.0 / value) > self.rank_limit:
            return 0.0
        return value


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate` found.

    Args:
        means: measure -> mean over the queries of the qrels.
        per_query: qid -> measure -> value, for every query of the qrels.
        relevance_level: the lowest grade that counts as relevant for binary measures.
        missing: queries of the qrels that the run lacks; they count 0.
        unjudged: queries of the run that the qrels lack; they count nothing.
    """

    means: Mapping[str, float]
    per_query: Mapping[str, Mapping[str, float]]
    relevance_level: int = 1
    missing: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()

    @property
    def queries(self) -> int:
        """Number of queries that the means are taken over."""
        return len(self.per_query)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per query: qid, then a column per measure."""
        import pandas as pd

        return pd.DataFrame([{"qid": qid, **values} for qid, values in self.per_query.items()])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {
            "means": dict(self.means),
            "queries": self.queries,
            "relevance_level": self.relevance_level,
            "missing": list(self.missing),
            "unjudged": list(self.unjudged),
            "per_query": {qid: dict(values) for qid, values in self.per_query.items()},
        }


def evaluate(
    run: Run, qrels: Qrels, measures: str | Sequence[str] = DEFAULT_MEASURES, *, relevance_level: int = 1
) -> Evaluation:
    """Return the effectiveness of a run, per query and as means over all queries of the qrels.

    Scores are compared as float32 and ties broken by docid descending, whatever the rank column says: that is
    trec_eval, and `trec.write_run` writes scores that survive it. Rankings are evaluated in their own order.

    Args:
        run: a run file, ``{qid: {docid: score}}``, or rankings.
        qrels: a qrels file (TREC or BEIR form) or ``{qid: {docid: grade}}``.
        measures: one or several of nDCG@k, R@k, P@k, MAP, MAP@k, RR, RR@k (also MRR), Success@k, and trec_eval's names
            (``ndcg_cut_10``).
        relevance_level: the lowest grade that counts as relevant; nDCG uses the grades themselves and ignores it.

    Raises:
        ValueError: an unknown measure, no query in common, a score that is not finite.
        FileNotFoundError: a missing file.

    Examples:
        >>> result = evaluate({"q1": {"d1": 2.0, "d2": 1.0}}, {"q1": {"d2": 1}, "q2": {"d9": 1}}, ["RR", "R@1"])
        >>> result.means
        {'RR': 0.25, 'R@1': 0.0}
        >>> result.missing
        ('q2',)
    """
    parsed = [parse_measure(name) for name in ([measures] if isinstance(measures, str) else measures)]
    if not parsed:
        raise ValueError("no measures given; name at least one, for example nDCG@10")
    if relevance_level < 1:
        raise ValueError(f"relevance level {relevance_level}: expected a grade of at least 1")
    grades = _grades(qrels)
    scores = _scores(run)
    _check_common(scores, grades)
    results = _trec_eval(scores, grades, parsed, relevance_level)
    per_query = {
        qid: {measure.name: measure.value(results[qid]) if qid in results else 0.0 for measure in parsed}
        for qid in grades
    }
    means = {m.name: math.fsum(values[m.name] for values in per_query.values()) / len(per_query) for m in parsed}
    return Evaluation(
        means=means,
        per_query=per_query,
        relevance_level=relevance_level,
        missing=tuple(qid for qid in grades if qid not in scores),
        unjudged=tuple(qid for qid in scores if qid not in grades),
    )


def parse_measure(name: str) -> Measure:
    """Return the measure that a name means.

    Raises:
        ValueError: an unknown name, with the nearest known ones, or a cutoff outside 1..1,000,000.

    Examples:
        >>> parse_measure("nDCG@10")
        Measure(name='nDCG@10', trec_name='ndcg_cut_10', rank_limit=None)
        >>> parse_measure("MRR@10")
        Measure(name='MRR@10', trec_name='recip_rank', rank_limit=10)
        >>> parse_measure("ndgc@10")
        Traceback (most recent call last):
        ValueError: unknown measure 'ndgc@10'; did you mean 'nDCG@10'?
    """
    base, cutoff = _split(name)
    if cutoff is None:
        whole = _spelled(base, _WHOLE) or (base if base in _RAW_WHOLE else None)
        if whole is None:
            raise ValueError(_unknown(name, base, cutoff))
        return Measure(name, whole)
    trec_base = _spelled(base, _WITH_CUTOFF) or (base if base in _RAW_WITH_CUTOFF else None)
    if trec_base is None:
        raise ValueError(_unknown(name, base, cutoff))
    if not 1 <= cutoff <= _LARGEST_CUTOFF:
        raise ValueError(f"measure {name!r}: cutoff {cutoff} is outside 1..{_LARGEST_CUTOFF}")
    if trec_base == "recip_rank":
        return Measure(name, trec_base, rank_limit=cutoff)
    return Measure(name, f"{trec_base}_{cutoff}")


def _split(name: str) -> tuple[str, int | None]:
    """``nDCG@10`` and ``ndcg_cut.10`` and ``ndcg_cut_10`` are a base and a cutoff; ``MAP`` is a base."""
    matched = re.fullmatch(r"(.+?)(?:@|_|\.)(\d+)", name)
    return (matched[1], int(matched[2])) if matched else (name, None)


def _spelled(base: str, table: Mapping[str, str]) -> str | None:
    """Look a name up; capitals do not matter in our own spellings (ndcg@10), they do in trec_eval's (P, G)."""
    return {key.lower(): value for key, value in table.items()}.get(base.lower())


def _unknown(name: str, base: str, cutoff: int | None) -> str:
    cut = 10 if cutoff is None else cutoff
    ours = {**{f"{key}@{cut}": key for key in _WITH_CUTOFF}, **{key: key for key in _WHOLE}}
    raw = [f"{key}_{cut}" for key in _RAW_WITH_CUTOFF] + sorted(_RAW_WHOLE)
    folded = {known.lower(): known for known in [*raw, *ours]}
    wanted = name.lower() if cutoff is not None else base.lower()
    near = [folded[match] for match in difflib.get_close_matches(wanted, folded, n=2, cutoff=0.6)]
    if near:
        return f"unknown measure {name!r}; did you mean {' or '.join(repr(match) for match in near)}?"
    return f"unknown measure {name!r}; known: nDCG@k, R@k, P@k, MAP, MAP@k, RR, RR@k, Success@k and trec_eval's names"


def _grades(qrels: Qrels) -> dict[str, dict[str, int]]:
    if isinstance(qrels, str | os.PathLike):
        return read_qrels(qrels)
    return {qid: {docid: int(grade) for docid, grade in judged.items()} for qid, judged in qrels.items()}


def _scores(run: Run) -> dict[str, dict[str, float]]:
    if isinstance(run, str | os.PathLike):
        return {qid: {c.docid: c.score for c in candidates} for qid, candidates in read_run(run).items()}
    if isinstance(run, Mapping):
        return {qid: _finite(qid, scores) for qid, scores in run.items()}
    # By rank: whole numbers are exact in float32, so that close scores and ties keep the order of the ranking.
    return {r.query.qid: {docid: float(len(r) - rank) for rank, docid in enumerate(r.docids)} for r in run}


def _finite(qid: str, scores: Mapping[str, float]) -> dict[str, float]:
    for docid, score in scores.items():
        if not math.isfinite(score):
            raise ValueError(f"qid {qid} docid {docid}: score {score!r} is not finite, evaluation needs finite scores")
    return {docid: float(score) for docid, score in scores.items()}


def _check_common(scores: Mapping[str, object], grades: Mapping[str, object]) -> None:
    if not grades:
        raise ValueError("the qrels are empty: there is no query to evaluate")
    if not scores.keys() & grades.keys():
        raise ValueError(
            f"run and qrels have no query in common: the run has {_sample(scores)}, the qrels have {_sample(grades)}; "
            f"check that both belong to the same topics"
        )


def _sample(ids: Iterable[str]) -> str:
    known = list(ids)
    return f"{len(known)} queries ({', '.join(known[:3])}{', …' if len(known) > 3 else ''})"


def _trec_eval(
    scores: Mapping[str, Mapping[str, float]],
    grades: Mapping[str, Mapping[str, int]],
    measures: Iterable[Measure],
    relevance_level: int,
) -> Mapping[str, Mapping[str, float]]:
    import pytrec_eval

    names = {measure.trec_name for measure in measures}
    judge = pytrec_eval.RelevanceEvaluator(grades, names, relevance_level=relevance_level)
    results: Mapping[str, Mapping[str, float]] = judge.evaluate(scores)
    return results
