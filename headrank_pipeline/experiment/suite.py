"""Many benchmarks in one go: each in a run directory of its own, one summary that is rewritten after each of them.

A benchmark that cannot be run (its data is not here, its index is damaged) is reported in the summary and does not
stop the others. Called again, finished benchmarks are read and not run, unfinished ones continue.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from headrank_pipeline.experiment.benchmark import Benchmark
from headrank_pipeline.experiment.runner import Outcome
from headrank_pipeline.experiment.sources import LocalFiles, topics_beside
from headrank_pipeline.files import write_json

__all__ = ["SUMMARY", "Row", "Suite", "local_files", "run_suite"]

logger = logging.getLogger(__name__)

SUMMARY = "summary.json"
Status = Literal["done", "partial", "missing", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one benchmark came to.

    Args:
        status: ``partial`` where queries failed, ``missing`` where data is not at hand, ``failed`` for anything else.
        queries: how many were run.
        judged: queries that the means are taken over.
        missing: judged queries that the run lacks; they count 0.
        first_stage: measure -> mean.
        reranked: measure -> mean.
        best: measure -> mean with the reranked candidates in the best order.
        blind: measures that no order of the candidates changes.
        checks: measure -> verdict on the published first-stage score.
        published: measure -> published first-stage score.
        message: why it is not done, or what its run warns of.
        output: run directory.
    """

    name: str
    group: str | None
    status: Status
    queries: int = 0
    judged: int = 0
    missing: int = 0
    first_stage: Mapping[str, float] = field(default_factory=dict)
    reranked: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)
    blind: Sequence[str] = ()
    checks: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    message: str = ""
    output: str = ""

    def gain(self, measure: str) -> float:
        """Return what reranking added to the mean of a measure, to the four digits that are shown."""
        return round(self.reranked[measure] - self.first_stage[measure], 4)


@dataclass(frozen=True, slots=True)
class Suite:
    """All rows, in the order of the benchmarks."""

    rows: Sequence[Row]

    def means(self) -> dict[str, dict[str, Any]]:
        """Return means over finished benchmarks: one over those without a group, one per group.

        A measure is averaged over the benchmarks that have it; ``sets`` says how many these are, ``lost`` and ``blind``
        which of them lost by reranking and which cannot see it. ``benchmarks``: how many of how many are finished.

        Examples:
            >>> first = Row(name="a", group=None, status="done", reranked={"nDCG@10": 0.2})
            >>> second = Row(name="b", group=None, status="done", reranked={"nDCG@10": 0.4})
            >>> round(Suite([first, second]).means()["all"]["reranked"]["nDCG@10"], 4)
            0.3
        """
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.group or "all", []).append(row)
        return {name: _mean_of(rows) for name, rows in groups.items()}

    def remarks(self) -> list[str]:
        """Return what means hide, as sentences: sets that lost or cannot see reranking, queries that count 0."""
        done = [row for row in self.rows if row.status == "done"]
        found = []
        for measure in dict.fromkeys(measure for row in done for measure in row.first_stage):
            sets = [row for row in done if measure in row.first_stage]
            if blind := [row.name for row in sets if measure in row.blind]:
                found.append(
                    f"{measure} cannot see reranking on {len(blind)} of {len(sets)} sets, where no order of the "
                    f"candidates changes it: {', '.join(blind)}"
                )
            if seeing := [row for row in sets if measure not in row.blind]:
                lost = [f"{row.name} {row.gain(measure):+.4f}" for row in seeing if row.gain(measure) < 0]
                named = f": {', '.join(lost)}" if lost else ""
                found.append(f"{measure} fell on {len(lost) or 'none'} of {len(seeing)} sets{named}")
        if missing := [f"{row.missing} of {row.judged} in {row.name}" for row in self.rows if row.missing]:
            found.append(f"judged queries that the run lacks count 0: {', '.join(missing)}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return rows, means and remarks as JSON-ready values."""
        rows = [
            {**asdict(row), "gain": {measure: row.gain(measure) for measure in row.first_stage}} for row in self.rows
        ]
        return {"schema": 1, "benchmarks": rows, "means": self.means(), "remarks": self.remarks()}


def run_suite(
    benchmarks: Sequence[tuple[Benchmark, Path]], summary: Path, run_one: Callable[[Benchmark], Outcome]
) -> Suite:
    """Run benchmarks one after the other and return their rows.

    Args:
        benchmarks: each definition with its run directory; every name once.
        summary: JSON file with all rows and means; up to date after each benchmark.
        run_one: runs one benchmark in its directory.
    """
    rows: list[Row] = []
    for number, (benchmark, directory) in enumerate(benchmarks, start=1):
        logger.info("%s (%d of %d)", benchmark.name, number, len(benchmarks))
        try:
            rows.append(_row(benchmark, run_one(benchmark)))
        except FileNotFoundError as error:
            rows.append(_unfinished(benchmark, "missing", error, directory))
        except (OSError, ValueError, KeyError, RuntimeError, MemoryError) as error:
            rows.append(_unfinished(benchmark, "failed", error, directory))
        write_json(summary, Suite(rows).to_dict())
    return Suite(rows)


def local_files(folder: Path | None, name: str, *, offline: bool) -> LocalFiles:
    """Return the files of a benchmark in a folder of collections; those that are not there stay open.

    Args:
        folder: holds one folder per benchmark, named as the benchmark with or without ``beir-``, in BEIR's layout
            (``corpus.jsonl``, ``queries.jsonl``, ``qrels/test.tsv``) or with ``candidates.jsonl`` and ``qrels.txt``;
            each may be gzipped.
        name: the benchmark's name.
        offline: passed on.

    Raises:
        FileNotFoundError: no such folder.
    """
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of collections (looked from {Path.cwd()})")
    places = [] if folder is None else [folder / name, folder / name.removeprefix("beir-")]
    home = next((place for place in places if place.is_dir()), None)
    if home is None:
        return LocalFiles(offline=offline)
    qrels = _first(home, "qrels/test.tsv", "qrels.txt")
    corpus = _first(home, "corpus.jsonl")
    if corpus is not None:
        return LocalFiles(corpus=corpus, topics=topics_beside(corpus), qrels=qrels, offline=offline)
    return LocalFiles(candidates=_first(home, "candidates.jsonl"), qrels=qrels, offline=offline)


def _first(home: Path, *names: str) -> Path | None:
    paths = [home / f"{name}{suffix}" for name in names for suffix in ("", ".gz")]
    return next((path for path in paths if path.is_file()), None)


def _row(benchmark: Benchmark, outcome: Outcome) -> Row:
    judged = outcome.judged
    assert judged is not None  # every benchmark has measures
    failed = outcome.failed
    remark = judged.headroom.remark(next(iter(judged.first_stage.means)))
    return Row(
        name=benchmark.name,
        group=benchmark.group,
        status="partial" if failed else "done",
        queries=outcome.manifest["totals"]["queries"],
        judged=judged.reranked.queries,
        missing=len(judged.reranked.missing),
        first_stage=dict(judged.first_stage.means),
        reranked=dict(judged.reranked.means),
        best=dict(judged.headroom.best),
        blind=judged.headroom.blind(),
        checks={check.measure: check.verdict for check in judged.checks},
        published={check.measure: check.published for check in judged.checks},
        message="; ".join(
            [
                *([f"{len(failed)} queries failed"] if failed else []),
                *outcome.manifest["totals"]["warnings"],
                *([remark] if remark else []),
            ]
        ),
        output=str(outcome.directory.path),
    )


def _unfinished(benchmark: Benchmark, status: Status, error: Exception, directory: Path) -> Row:
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    logger.warning("%s: %s: %s", benchmark.name, status, message)
    return Row(name=benchmark.name, group=benchmark.group, status=status, message=message, output=str(directory))


def _mean_of(rows: Sequence[Row]) -> dict[str, Any]:
    done = [row for row in rows if row.status == "done"]
    first_stage, reranked, best = (
        _means(getattr(row, name) for row in done) for name in ("first_stage", "reranked", "best")
    )
    return {
        "benchmarks": f"{len(done)} of {len(rows)}",
        "sets": {measure: sum(measure in row.first_stage for row in done) for measure in first_stage},
        "first_stage": first_stage,
        "reranked": reranked,
        "best": best,
        "lost": {
            measure: [row.name for row in done if measure in row.first_stage and row.gain(measure) < 0]
            for measure in first_stage
        },
        "blind": {measure: [row.name for row in done if measure in row.blind] for measure in first_stage},
    }


def _means(records: Iterable[Mapping[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for record in records:
        for measure, value in record.items():
            values.setdefault(measure, []).append(value)
    return {measure: fmean(found) for measure, found in values.items()}
