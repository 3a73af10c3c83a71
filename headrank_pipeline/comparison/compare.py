"""Several runs on the same candidates against each other: quality with paired tests, and what each cost.

Everything is computed from the files of run directories, and from run files of other tools, evaluated anew with one set
of judgments. A query that a run lacks counts 0, as everywhere in this package.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headrank_pipeline.comparison.comparable import check_comparable, find_qrels
from headrank_pipeline.comparison.costs import Cost, cost_of
from headrank_pipeline.comparison.finished import FIRST_STAGE, FinishedRun, RunFile, read_runs
from headrank_pipeline.comparison.significance import bootstrap_means, holm, paired_tests
from headrank_pipeline.experiment.evaluate import Evaluation, defaults_of, evaluate, open_qrels
from headrank_pipeline.experiment.judgement import in_order_of_grades
from headrank_pipeline.files import Input, PathLike
from headrank_pipeline.trec import read_qrels

__all__ = ["FIRST_STAGE", "Comparison", "compare", "mean_rows", "paired_rows", "per_query_rows"]

_FIRST_STAGE_NAMES = frozenset({FIRST_STAGE, "first-stage", "first_stage", "bm25"})

Folder = str | Path


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Args:
        summary: one row per system, the first stage first if there is a run directory: ``system``, a mean per measure
            with ``MEASURE low`` and ``MEASURE high`` (bootstrap, 95%), then the fields of `costs.Cost`.
        tests: one row per measure and system but the baseline: the fields of `significance.PairedTest`, with
            ``t_test_holm`` and ``randomisation_holm`` corrected over the systems of a measure. Queries that no run has
            are not tested: they would all be ties of 0.
        per_query: one row per system and judged query that some run has: ``system``, ``qid``, a value per measure.
        ceiling: the best that any reranker of these candidates could reach: ``R@depth`` of the candidates, and every
            measure with the candidates in the ideal order. Empty without a run directory: candidates are not known.
        baseline: the system that the others are tested against.
        measures: the first one is shown in figures.
        runs: what was read, the order of the rows.
        conditions: what all systems share (depth, judgments, …), JSON-ready. ``queries`` counts the judged queries,
            over which means are taken; ``tested`` those of them that some run has, over which tests are made.
            ``benchmark``, ``candidates`` and ``depth`` are those of the run directories: None without one, and where
            they were allowed to differ and do.
        notes: what a reader must know: differences that were allowed, reranking that did nothing, queries that are
            missing.
    """

    summary: pd.DataFrame
    tests: pd.DataFrame
    per_query: pd.DataFrame
    ceiling: Mapping[str, float]
    baseline: str
    measures: tuple[str, ...]
    runs: tuple[FinishedRun | RunFile, ...]
    conditions: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def systems(self) -> list[str]:
        """Names of the systems, in the order of the rows."""
        return list(self.summary["system"])

    @property
    def finished(self) -> list[FinishedRun]:
        """The run directories among the runs."""
        return [run for run in self.runs if isinstance(run, FinishedRun)]

    def values(self, measure: str) -> pd.DataFrame:
        """Return one row per query and one column per system."""
        return self.per_query.pivot(index="qid", columns="system", values=measure)[self.systems]


def compare(
    runs: Sequence[Folder],
    *,
    qrels: PathLike | None = None,
    baseline: str | None = None,
    measures: Sequence[str] = (),
    relevance_level: int | None = None,
    seed: int = 0,
    allow_different: Collection[str] = (),
) -> Comparison:
    """Return how several runs compare; the first stage of the run directories is one of the systems.

    Args:
        runs: run directories, and TREC run files of any tool.
        qrels: a qrels file or ``ir_datasets:ID``; None for what the runs were evaluated with, which a run file does not
            say.
        baseline: ``first stage`` (also ``bm25``), a run's path, a system's name or a run directory's tag. None for the
            first stage, or the first run where all are files.
        measures: the same as in `evaluate`; empty for those of the first run directory's evaluation, else the same
            defaults as in `evaluate`.
        relevance_level: lowest relevant grade for binary measures; None for that of the same evaluation, else as in
            `evaluate`.
        seed: seed of the bootstrap and the randomisation test.
        allow_different: fields of `comparable.FIELDS` in which the run directories may differ.

    Raises:
        FileNotFoundError: a directory without a run, a run file or judgments that are not there.
        ValueError: runs that differ in what must be equal, an unfinished run, an unknown baseline or measure, a run
            file without `qrels` or with nothing beside it, or a malformed one.
    """
    given = read_runs([Path(path) for path in runs])
    finished = [run for run in given if isinstance(run, FinishedRun)]
    files = [run for run in given if isinstance(run, RunFile)]
    _check_files(files, qrels, alone=len(given) == 1)
    allowed = check_comparable(finished, allow_different=allow_different)
    chosen = _baseline(baseline, given)
    judgments = open_qrels(find_qrels(finished) if qrels is None else qrels)  # may be a pipe
    names, level = _settings(finished, qrels, measures, relevance_level)
    before = {FIRST_STAGE: finished[0].directory.first_stage_run} if finished else {}
    systems = {**before, **{run.name: run.run for run in given}}
    evaluations = {name: evaluate(run, judgments, names, relevance_level=level) for name, run in systems.items()}
    asked = _asked(evaluations)
    return Comparison(
        summary=_summary(evaluations, finished, names, seed),
        tests=pd.DataFrame(paired_rows(asked, chosen, names, seed)),
        per_query=per_query_rows(asked),
        ceiling=_ceiling(finished[0], judgments, names, level) if finished else {},
        baseline=chosen,
        measures=names,
        runs=tuple(given),
        conditions=_conditions(finished, files, allowed, judgments, level, seed)
        | {"queries": evaluations[chosen].queries, "tested": asked[chosen].queries},
        notes=(
            *_file_notes(files),
            *_difference_notes(finished, files, allowed),
            *_effect_notes(finished),
            *_judgment_notes(finished, judgments),
            *_query_notes(evaluations, asked),
        ),
    )


def _check_files(files: Sequence[RunFile], qrels: PathLike | None, *, alone: bool) -> None:
    if files and qrels is None:
        raise ValueError(f"{files[0].path}: a run file does not say what judges it; name the judgments with qrels=FILE")
    if files and alone:
        raise ValueError(f"{files[0].path}: one run file has nothing to be compared with; name another run beside it")


def _settings(
    finished: Sequence[FinishedRun], qrels: PathLike | None, measures: Sequence[str], level: int | None
) -> tuple[tuple[str, ...], int]:
    """Return measures and relevance level: those given, else those of the first run directory, else the judgments'."""
    recorded = (finished[0].recorded_evaluation if finished else None) or {}
    usual_measures, usual_level = defaults_of(qrels)
    names = measures or recorded.get("measures", usual_measures)
    return tuple(names), level or recorded.get("relevance_level", usual_level)


def _baseline(wanted: str | None, runs: Sequence[FinishedRun | RunFile]) -> str:
    """A run's own name, path or tag goes before the names of the first stage, which run files alone do not have."""
    finished = [run for run in runs if isinstance(run, FinishedRun)]
    if wanted is None:
        return FIRST_STAGE if finished else runs[0].name
    for matches in (
        [run.name for run in runs if run.name == wanted],
        [run.name for run in runs if Path(wanted).resolve() == run.path.resolve()][:1],
        [run.name for run in finished if run.identity["tag"] == wanted],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise ValueError(f"baseline {wanted!r}: the tag of {', '.join(matches)}; name one of them")
    stages = {run.identity["candidates"].get("source", {}).get("stage") for run in finished} - {None}
    if wanted in stages or (finished and wanted in _FIRST_STAGE_NAMES and not (wanted == "bm25" and stages)):
        return FIRST_STAGE
    known = ", ".join([FIRST_STAGE] * bool(finished) + [run.name for run in runs])
    hint = "" if finished else "; only run directories bring a first stage"
    raise ValueError(f"baseline {wanted!r}: no such system; systems: {known}{hint}")


def _summary(
    evaluations: Mapping[str, Evaluation], runs: Sequence[FinishedRun], measures: Sequence[str], seed: int
) -> pd.DataFrame:
    costs: dict[str, Cost] = {run.name: cost_of(run) for run in runs}
    nothing = dict.fromkeys(Cost.__dataclass_fields__)
    rows = mean_rows(evaluations, measures, seed)
    for row in rows:
        row |= asdict(costs[row["system"]]) if row["system"] in costs else nothing
    return pd.DataFrame(rows)


def mean_rows(evaluations: Mapping[str, Evaluation], measures: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Return one row per system: its name, and for each measure the mean and its bootstrap interval."""
    rows: list[dict[str, Any]] = [{"system": name} for name in evaluations]
    for measure in measures:
        intervals = bootstrap_means(_matrix(evaluations, measure), seed=seed)
        for row, evaluation, interval in zip(rows, evaluations.values(), intervals, strict=True):
            row[measure] = evaluation.means[measure]
            row[f"{measure} low"], row[f"{measure} high"] = interval.low, interval.high
    return rows


def paired_rows(
    evaluations: Mapping[str, Evaluation], baseline: str, measures: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """Return one row per measure and system but the baseline; p-values are corrected over a measure's systems."""
    against = {name: evaluation for name, evaluation in evaluations.items() if name != baseline}
    rows: list[dict[str, Any]] = []
    for measure in measures if against else ():
        base = _matrix({baseline: evaluations[baseline]}, measure)[:, 0]
        tests = paired_tests(_matrix(against, measure), base, seed=seed)
        t_test = holm([test.t_test for test in tests])
        randomisation = holm([test.randomisation for test in tests])
        for name, test, corrected_t, corrected_r in zip(against, tests, t_test, randomisation, strict=True):
            values = asdict(test)
            bounds = values.pop("interval")
            rows.append(
                {
                    "measure": measure,
                    "system": name,
                    **values,
                    **bounds,
                    "t_test_holm": corrected_t,
                    "randomisation_holm": corrected_r,
                }
            )
    return rows


def per_query_rows(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """Return one row per system and query, with a value per measure."""
    frames = [evaluation.to_frame().assign(system=name) for name, evaluation in evaluations.items()]
    frame = pd.concat(frames, ignore_index=True)
    return frame[["system", *(column for column in frame.columns if column != "system")]]


def _matrix(evaluations: Mapping[str, Evaluation], measure: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[Q, S]: every evaluation has the queries of the qrels, in their order."""
    columns = [[values[measure] for values in evaluation.per_query.values()] for evaluation in evaluations.values()]
    return np.array(columns, dtype=np.float64).T


def _ceiling(run: FinishedRun, qrels: Input, measures: Sequence[str], level: int) -> dict[str, float]:
    grades = read_qrels(qrels)
    ideal = in_order_of_grades(run.first_stage, grades, run.depth, best=True)
    candidates = {
        qid: {candidate.docid: candidate.score for candidate in found[: run.depth]}
        for qid, found in run.first_stage.items()
    }
    recall = f"R@{run.depth}"
    reached = evaluate(candidates, grades, [recall], relevance_level=level).means
    return {**evaluate(ideal, grades, measures, relevance_level=level).means, recall: reached[recall]}


def _conditions(
    runs: Sequence[FinishedRun],
    files: Sequence[RunFile],
    allowed: Sequence[str],
    qrels: Input,
    level: int,
    seed: int,
) -> dict[str, Any]:
    shared = {name: not any(line.startswith(name) for line in allowed) for name in ("benchmark", "candidates", "depth")}
    return {
        **{name: runs[0].identity[name] if runs and same else None for name, same in shared.items()},
        "qrels": str(qrels),
        "qrels_sha256": qrels.sha256,
        "relevance_level": level,
        "seed": seed,
        "directories": {run.name: str(run.directory.path) for run in runs},
        "commits": {run.name: run.commit for run in runs},
        "files": {run.name: {"path": str(run.path), "sha256": run.run.sha256} for run in files},
    }


def _judgment_notes(runs: Sequence[FinishedRun], qrels: Input) -> list[str]:
    other = [r.name for r in runs if r.recorded_evaluation and r.recorded_evaluation["qrels_sha256"] != qrels.sha256]
    return [f"{qrels} is not the file that {', '.join(other)} were evaluated with"] if other else []


def _difference_notes(finished: Sequence[FinishedRun], files: Sequence[RunFile], allowed: Sequence[str]) -> list[str]:
    """What was allowed to differ, and whose first stage stands where there could be several."""
    notes = [f"allowed to differ: {line}" for line in allowed]
    if finished and (files or any(line.startswith("candidates") for line in allowed)):
        notes.append(f"first stage and ideal order of the candidates are those of {finished[0].name}")
    return notes


def _file_notes(files: Sequence[RunFile]) -> list[str]:
    names = ", ".join(run.name for run in files)
    told = "benchmark, candidates, depth and topics of a run file are not known, and were not checked"
    return [f"{names}: {told}"] if files else []


def _effect_notes(runs: Sequence[FinishedRun]) -> list[str]:
    """What runs told of reranking that did nothing."""
    return [f"{run.name}: {warning}" for run in runs for warning in run.totals.get("warnings", ())]


def _asked(evaluations: Mapping[str, Evaluation]) -> Mapping[str, Evaluation]:
    """The evaluations without the judged queries that no run has: who tries a part of the topics did not ask them."""
    unasked = set.intersection(*(set(evaluation.missing) for evaluation in evaluations.values()))
    if not unasked:
        return evaluations
    return {name: found.over(found.per_query.keys() - unasked) for name, found in evaluations.items()}


def _query_notes(evaluations: Mapping[str, Evaluation], asked: Mapping[str, Evaluation]) -> list[str]:
    """What is missing: for all runs, with means over what is there, or for some of them."""
    lost = {name: evaluation.missing for name, evaluation in asked.items() if evaluation.missing}
    first, part = next(iter(evaluations.values())), next(iter(asked.values()))
    notes = []
    if unasked := first.queries - part.queries:
        means = "; ".join(
            f"{name} {', '.join(f'{measure} {value:.4f}' for measure, value in found.means.items())}"
            for name, found in asked.items()
        )
        notes.append(
            f"no run has {unasked} of the {first.queries} judged queries: the means in the table count them 0, as "
            f"trec_eval does, tests leave them out; means over the other {part.queries}: {means}"
        )
    return notes + [
        f"{name} lacks {len(missing)} of the judged queries, which count 0: "
        f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}"
        for name, missing in lost.items()
    ]
