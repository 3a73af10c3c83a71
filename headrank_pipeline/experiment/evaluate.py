"""Effectiveness of a run against judgments, with trec_eval's own code; what it lacks, with that of ir_measures.

Means are taken over every query of the qrels (``trec_eval -c``): a query that is missing from the run counts 0 and is
listed, because pytrec_eval on its own would leave it out and so reward a run that lost its hard queries.
No other module sees pytrec_eval or ir_measures.
"""

from __future__ import annotations

import logging
import math
import os
import re
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from headrank_pipeline.experiment.directory import RunDirectory, read_json
from headrank_pipeline.files import Input, open_input
from headrank_pipeline.options import nearest
from headrank_pipeline.pipeline import Reranker, Source
from headrank_pipeline.records import Ranking, check_id
from headrank_pipeline.trec import LARGEST_GRADE, check_grade, read_qrels, read_run

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "DEFAULT_MEASURES",
    "Evaluation",
    "Measure",
    "defaults_of",
    "evaluate",
    "evaluated",
    "further_values",
    "is_further_measure",
    "open_qrels",
    "parse_measure",
]

DEFAULT_MEASURES = ("nDCG@10", "R@100")

Run: TypeAlias = "str | os.PathLike[str] | Mapping[str, Mapping[str, float]] | Iterable[Ranking] | pd.DataFrame"
Qrels: TypeAlias = "str | os.PathLike[str] | Mapping[str, Mapping[str, int]] | pd.DataFrame"

_log = logging.getLogger(__name__)
_DATASETS = "ir_datasets:"

# What frames call their columns: PyTerrier's names and ir_measures'.
_QID_COLUMNS = ("qid", "query_id")
_DOCID_COLUMNS = ("docno", "doc_id", "docid")
_SCORE_COLUMNS = ("score",)
_GRADE_COLUMNS = ("label", "relevance", "grade")

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
        name: the name as the user wrote it.
        trec_name: what pytrec_eval calls it in its results, for example ``ndcg_cut_10``; empty where it has none, and
            ir_measures computes it.
        rank_limit: last rank at which a relevant passage counts for the reciprocal rank (trec_eval has none).
    """

    name: str
    trec_name: str
    rank_limit: int | None = None

    def value(self, results: Mapping[str, float]) -> float:
        """Return the value of one query from pytrec_eval's results for it."""
        value = float(results[self.trec_name or self.name])
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
        first_stage: evaluation of the candidates before they were reranked, where a reranker was evaluated.
    """

    means: Mapping[str, float]
    per_query: Mapping[str, Mapping[str, float]]
    relevance_level: int = 1
    missing: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()
    first_stage: Evaluation | None = None

    @property
    def queries(self) -> int:
        """Number of queries that the means are taken over."""
        return len(self.per_query)

    @property
    def answered(self) -> int:
        """Number of these that the run has."""
        return self.queries - len(self.missing)

    @property
    def means_of_answered(self) -> dict[str, float]:
        """Measure -> mean over the judged queries that the run has: for a run of a part of the topics."""
        lost = frozenset(self.missing)
        return _means(self.means, [values for qid, values in self.per_query.items() if qid not in lost])

    def over(self, qids: Collection[str]) -> Evaluation:
        """Return the evaluation of some of the judged queries, with means over these alone.

        Raises:
            TypeError: one qid where several are expected.
            ValueError: none of them is judged.
        """
        if isinstance(qids, str):  # qids that are parts of it would be kept
            raise TypeError(f"qids {qids!r}: expected several, got a string; write [qid]")
        kept = {qid: values for qid, values in self.per_query.items() if qid in qids}
        if not kept:
            raise ValueError(f"none of the {len(qids)} qids is judged: there is no query to take means over")
        missing = tuple(qid for qid in self.missing if qid in qids)
        before = None if self.first_stage is None else self.first_stage.over(qids)
        means = _means(self.means, kept.values())
        return replace(self, means=means, per_query=kept, missing=missing, first_stage=before)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per query: qid, then a column per measure."""
        import pandas as pd

        return pd.DataFrame([{"qid": qid, **values} for qid, values in self.per_query.items()])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {
            "means": dict(self.means),
            "queries": self.queries,
            **(
                {"means_of_answered": self.means_of_answered, "answered": self.answered}
                if 0 < self.answered < self.queries
                else {}
            ),
            "relevance_level": self.relevance_level,
            "missing": list(self.missing),
            "unjudged": list(self.unjudged),
            "per_query": {qid: dict(values) for qid, values in self.per_query.items()},
            **({} if self.first_stage is None else {"first_stage": self.first_stage.to_dict()}),
        }


@overload
def evaluate(
    run: Run, qrels: Qrels, measures: str | Sequence[str] | None = None, *, relevance_level: int | None = None
) -> Evaluation: ...


@overload
def evaluate(
    run: Reranker | Source,
    qrels: str,
    measures: str | Sequence[str] | None = None,
    *,
    relevance_level: int | None = None,
    candidates: str | os.PathLike[str] | Source | None = None,
    depth: int | None = None,
    output: str | os.PathLike[str] | None = None,
) -> Evaluation: ...


def evaluate(
    run: Run | Reranker | Source,
    qrels: Qrels,
    measures: str | Sequence[str] | None = None,
    *,
    relevance_level: int | None = None,
    candidates: str | os.PathLike[str] | Source | None = None,
    depth: int | None = None,
    output: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """Return the effectiveness of a run, a reranker or a pipeline, per query and as means over all judged queries.

    A reranker or a pipeline is evaluated on a benchmark, which gives queries, judgments, measures and relevance level:
    ``evaluate(icr(model), "beir-scifact")``. A reranker needs candidates: those that are given, else what the
    benchmark's BM25 finds (Pyserini's index where a definition names one, else one of ir_datasets' documents).

    As in trec_eval, scores are compared as float32 and ties broken by docid descending, whatever the rank column says;
    `trec.write_run` writes scores that survive it. Rankings are evaluated in their own order.

    Args:
        run: a run file, a run directory, ``{qid: {docid: score}}``, rankings, or a data frame with qid, docno and score
            (or query_id and doc_id). Ids that are whole numbers become strings; a file keeps '007' apart from '7',
            numbers do not. Or a reranker, or a pipeline.
        qrels: a qrels file (TREC or BEIR form), ``{qid: {docid: grade}}``, a data frame with qid, docno and label (or
            relevance), or ``ir_datasets:ID``. For a reranker or a pipeline: a benchmark as `headrank run` takes it,
            or an id of ir_datasets such as ``msmarco-passage/trec-dl-2019/judged``.
        measures: one or several of nDCG@k, R@k, P@k, MAP, MAP@k, RR, RR@k (also MRR), Success@k, trec_eval's names
            (``ndcg_cut_10``), and for what it lacks ir_measures' (``Judged@10``, ``RBP(p=0.8)``, ``ERR@20``). None for
            the benchmark's (``ir_datasets:ID`` names one), or nDCG@10 and R@100.
        relevance_level: the lowest grade that counts as relevant; nDCG uses the grades themselves and ignores it. None
            for that of the run directory's evaluation, the benchmark's, or 1.
        candidates: what a reranker gets: a file of candidates, or a first stage that is asked the benchmark's queries.
        depth: how many of them are reranked; None for the benchmark's.
        output: run directory of a reranker, as `headrank run` writes it; the same call continues an interrupted one.
            None keeps nothing, an index that had to be built included.

    Raises:
        TypeError: an id that is neither a string nor a whole number, a score that is no number, anything but a run.
        ValueError: an unknown measure, no query in common, a score that is not finite, a grade that is no whole number
            or too large, a query or a document that occurs twice.
        FileNotFoundError: a missing file.

    Examples:
        >>> evaluate({"q1": {"d1": 2.0, "d2": 1.0}}, {"q1": {"d2": 1}, "q2": {"d9": 1}}, ["RR", "R@1"]).means
        {'RR': 0.25, 'R@1': 0.0}
    """
    given: dict[str, Any] = {"candidates": candidates, "depth": depth, "output": output}
    if isinstance(run, Reranker | Source):
        from headrank_pipeline.experiment.on_benchmark import evaluate_on  # it evaluates with what is defined here

        return evaluate_on(run, qrels, measures=measures, relevance_level=relevance_level, **given)
    if any(value is not None for value in given.values()):
        raise TypeError("candidates, depth and output are for a reranker; a run has its candidates, in its own order")
    wanted, level = _settings(run, qrels, measures, relevance_level)
    if isinstance(run, str | os.PathLike) and Path(run).is_dir():
        run = RunDirectory(Path(run)).run  # absent until every query was tried; the error then names it
    result, strangers = evaluated(run, qrels, wanted, relevance_level=level)
    if strangers:
        _log.warning("%s", strangers)
    return result


def evaluated(
    run: Run, qrels: Qrels, measures: str | Sequence[str] = DEFAULT_MEASURES, *, relevance_level: int = 1
) -> tuple[Evaluation, str | None]:
    """Return what `evaluate` does, and its warning where run and qrels share no docid, for a caller that tells it."""
    # An ir_measures measure is taken by the name that it prints.
    one = isinstance(measures, str) or not isinstance(measures, Iterable)
    parsed = [parse_measure(str(name)) for name in ([measures] if one else measures)]
    if not parsed:
        raise ValueError("no measures given; name at least one, for example nDCG@10")
    if not isinstance(relevance_level, Integral) or not 1 <= relevance_level <= LARGEST_GRADE:
        raise ValueError(f"relevance level {relevance_level!r}: expected a grade from 1 to {LARGEST_GRADE}")
    grades = _grades(qrels)
    scores = _scores(run)
    name = str(run) if isinstance(run, str | os.PathLike) else "the run"
    _check_common(name, scores, grades)
    results = _results(scores, grades, parsed, relevance_level)
    per_query = {
        qid: {measure.name: measure.value(results[qid]) if qid in results else 0.0 for measure in parsed}
        for qid in grades
    }
    result = Evaluation(
        means=_means([measure.name for measure in parsed], per_query.values()),
        per_query=per_query,
        relevance_level=relevance_level,
        missing=tuple(qid for qid in grades if qid not in scores),
        unjudged=tuple(qid for qid in scores if qid not in grades),
    )
    return result, _strangers(name, scores, grades)


def _means(names: Iterable[str], values: Collection[Mapping[str, float]]) -> dict[str, float]:
    return {name: math.fsum(found[name] for found in values) / len(values) for name in names}


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
    if not _is_trec(base) and is_further_measure(name):
        return Measure(name, "")
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


def _is_trec(base: str) -> bool:
    raw = base in _RAW_WITH_CUTOFF or base in _RAW_WHOLE
    return raw or _spelled(base, _WITH_CUTOFF) is not None or _spelled(base, _WHOLE) is not None


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
    known = "known: nDCG@k, R@k, P@k, MAP, MAP@k, RR, RR@k, Success@k and trec_eval's names"
    wanted = name if cutoff is not None else base
    return f"unknown measure {name!r}; {nearest(wanted, [*raw, *ours], otherwise=known, most=2)}"


def _grades(qrels: Qrels) -> dict[str, dict[str, int]]:
    if isinstance(qrels, str | os.PathLike):
        return read_qrels(open_qrels(qrels))
    return {
        qid: {docid: check_grade(grade, f"qid {qid} docid {docid}") for docid, grade in judged.items()}
        for qid, judged in _by_query(qrels, "qrels", _GRADE_COLUMNS).items()
        if judged  # a query without judgments, which a file cannot hold; trec_eval leaves it out
    }


def _settings(
    run: Run, qrels: Qrels, measures: str | Sequence[str] | None, level: int | None
) -> tuple[str | Sequence[str], int]:
    """Return measures and relevance level: those given, else those of the run directory, the benchmark, or all."""
    own = defaults_of(qrels)
    if isinstance(run, str | os.PathLike) and (recorded := RunDirectory(Path(run)).evaluation).is_file():
        own = own[0], read_json(recorded)["relevance_level"]
    return own[0] if measures is None else measures, own[1] if level is None else level


def defaults_of(qrels: Qrels | None) -> tuple[Sequence[str], int]:
    """Return measures and relevance level for judgments: those of the benchmark that ``ir_datasets:ID`` names."""
    if not _is_dataset(qrels):
        return DEFAULT_MEASURES, 1
    from headrank_pipeline.experiment.benchmark import benchmark_of_dataset

    benchmark = benchmark_of_dataset(str(qrels).removeprefix(_DATASETS))
    return benchmark.measures, benchmark.relevance_level


def open_qrels(qrels: str | os.PathLike[str]) -> Input:
    """Return judgments that were opened once: a file's or a pipe's, or those of ``ir_datasets:ID`` in TREC's layout.

    Raises:
        FileNotFoundError: no such file, or no such collection or no network.
        ValueError: a collection's judgments that are not as many as is known.
    """
    if not _is_dataset(qrels):
        return open_input(qrels, "qrels")
    from headrank_pipeline.experiment.sources import Dataset  # whose inputs end in an evaluation

    with TemporaryDirectory() as folder:
        written = Dataset("qrels", str(qrels).removeprefix(_DATASETS), offline=False).open(Path(folder) / "qrels.txt")
        found = open_input(written, "qrels")
    found.name = str(qrels)  # what stays readable has no other
    return found


def _is_dataset(qrels: Qrels | None) -> bool:
    opened = isinstance(qrels, Input)
    return isinstance(qrels, str | os.PathLike) and not opened and str(qrels).startswith(_DATASETS)


def _scores(run: Run) -> dict[str, dict[str, float]]:
    if isinstance(run, str | os.PathLike):
        return {qid: {c.docid: c.score for c in candidates} for qid, candidates in read_run(run).items()}
    if isinstance(run, Mapping) or hasattr(run, "columns"):
        return {
            qid: {docid: _score(score, qid, docid) for docid, score in scores.items()}
            for qid, scores in _by_query(run, "run", _SCORE_COLUMNS).items()
        }
    found: dict[str, dict[str, float]] = {}
    for ranking in run if isinstance(run, Iterable) else [run]:
        if not isinstance(ranking, Ranking):
            raise TypeError(
                f"run: expected a file, {{qid: {{docid: score}}}}, rankings or a data frame, got "
                f"{type(ranking).__name__} {ranking!r}"
            )
        if ranking.query.qid in found:
            raise ValueError(f"qid {ranking.query.qid} is ranked twice; a run holds every qid once, delete one of them")
        # By rank: whole numbers are exact in float32, so that close scores and ties keep the order of the ranking.
        found[ranking.query.qid] = {docid: float(len(ranking) - rank) for rank, docid in enumerate(ranking.docids)}
    return found


def _by_query(given: Any, what: str, columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return qid -> docid -> value of a mapping or a frame, with ids as strings."""
    found: dict[str, dict[str, Any]] = {}
    if isinstance(given, Mapping):
        for qid, values in given.items():
            known = _known(found, _id("qid", qid, what), qid, what)
            if not isinstance(values, Mapping):
                raise TypeError(
                    f"{what}: qid {qid}: expected {{docid: number}}, got {type(values).__name__} {values!r}"
                )
            for docid, value in values.items():
                _put(known, _id("docid", docid, f"{what}: qid {qid}"), value, f"{what}: qid {qid}")
        return found
    if not hasattr(given, "columns"):
        raise TypeError(f"{what}: expected a file, a mapping or a data frame, got {type(given).__name__} {given!r}")
    names = [_column(given, known, what) for known in (_QID_COLUMNS, _DOCID_COLUMNS, columns)]
    for qid, docid, value in zip(*(given[name] for name in names), strict=True):
        name = _id("qid", qid, what)
        _put(found.setdefault(name, {}), _id("docid", docid, f"{what}: qid {name}"), value, f"{what}: qid {name}")
    return found


def _known(found: dict[str, dict[str, Any]], name: str, qid: object, what: str) -> dict[str, Any]:
    if name in found:
        raise ValueError(f"{what}: qid {name} occurs twice, once as {qid!r}; give every query one id")
    found[name] = {}
    return found[name]


def _put(known: dict[str, Any], docid: str, value: Any, where: str) -> None:
    if docid in known:
        raise ValueError(f"{where} docid {docid} occurs twice; a document is ranked or judged once, delete one of them")
    known[docid] = value


def _column(frame: Any, names: Sequence[str], what: str) -> str:
    name = next((name for name in names if name in frame.columns), None)
    if name is None:
        raise ValueError(f"{what}: data frame lacks a column {' or '.join(names)}; found {list(frame.columns)}")
    return name


def _id(kind: str, value: Any, where: str) -> str:
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    try:
        check_id(kind, value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error
    return str(value)


def _score(score: Any, qid: str, docid: str) -> float:
    where = f"qid {qid} docid {docid}"
    try:
        value = float(score)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{where}: score {score!r}: expected a number, got {type(score).__name__}") from error
    if not math.isfinite(value):
        raise ValueError(f"{where}: score {score!r} is not finite, evaluation needs finite scores")
    return value


def _check_common(name: str, scores: Mapping[str, object], grades: Mapping[str, object]) -> None:
    if not grades:
        raise ValueError("the qrels are empty: there is no query to evaluate")
    if not scores.keys() & grades.keys():
        raise ValueError(
            f"{name} and the qrels have no query in common: the run has {_sample(scores)}, the qrels have "
            f"{_sample(grades)}; check that both belong to the same topics"
        )


def _sample(ids: Iterable[str]) -> str:
    known = list(ids)
    return f"{len(known)} queries ({', '.join(known[:3])}{', …' if len(known) > 3 else ''})"


def _strangers(
    name: str, scores: Mapping[str, Mapping[str, float]], grades: Mapping[str, Mapping[str, int]]
) -> str | None:
    """Return a warning where the run found something for judged queries, but no document that is judged for them."""
    common = [qid for qid in grades if scores.get(qid)]
    if not common or any(scores[qid].keys() & grades[qid].keys() for qid in common):
        return None
    qid = common[0]
    found, judged = (", ".join(map(ascii, islice(side[qid], 2))) for side in (scores, grades))
    return (
        f"{name}: none of its documents is judged, for any of {len(common)} queries: every measure is 0. For qid {qid} "
        f"it has the docids {found}, the qrels {judged}; check prefixes, the Unicode form and the order of columns"
    )


def _results(
    scores: Mapping[str, Mapping[str, float]],
    grades: Mapping[str, Mapping[str, int]],
    measures: Sequence[Measure],
    relevance_level: int,
) -> dict[str, dict[str, float]]:
    """Return qid -> name of a measure in its library -> value, for the judged queries that the run has."""
    import pytrec_eval

    found: dict[str, dict[str, float]] = {qid: {} for qid in grades if qid in scores}
    if names := {measure.trec_name for measure in measures if measure.trec_name}:
        judge = pytrec_eval.RelevanceEvaluator(grades, names, relevance_level=relevance_level)
        for qid, values in judge.evaluate(scores).items():
            found[qid] |= values
    if others := [measure.name for measure in measures if not measure.trec_name]:
        for qid, values in further_values(scores, grades, others).items():
            found[qid] |= values
    return found


# ---------------------------------------------------------------------------------------- measures that trec_eval lacks


# What ir_measures raises for a measure that it cannot compute: no library, no Perl, a parameter that the measure does
# not have or may not have this value (AssertionError, KeyError), a query without an irrelevant passage (Accuracy).
_UNCOMPUTABLE = (
    ValueError, RuntimeError, OSError, subprocess.SubprocessError, AssertionError, KeyError, ZeroDivisionError
)  # fmt: skip


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
        ValueError: ir_measures has the measure, and nothing installed computes it with these parameters.
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
        except _UNCOMPUTABLE as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())[:140]
            raise ValueError(
                f"measure {name!r}: nothing installed computes it ({told}); check its parameters; RBP needs pip "
                f"install cwl-eval, ERR a Perl interpreter"
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
