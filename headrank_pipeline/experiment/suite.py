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
from headrank_pipeline.experiment.manifest import write_json
from headrank_pipeline.experiment.runner import Outcome
from headrank_pipeline.experiment.sources import LocalFiles, topics_beside

__all__ = ["SUMMARY", "Row", "Suite", "local_files", "run_suite"]

logger = logging.getLogger(__name__)

SUMMARY = "summary.json"
Status = Literal["done", "partial", "missing", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one benchmark came to.

    Args:
        status: ``partial`` where queries failed, ``missing`` where data is not at hand, ``failed`` for anything else.
        queries: that were run.
        first_stage: measure -> mean.
        reranked: measure -> mean.
        checks: measure -> verdict on the published first-stage score.
        published: measure -> published first-stage score.
        message: why it is not done, or what its run warns of.
        output: run directory.
    """

    name: str
    group: str | None
    status: Status
    queries: int = 0
    first_stage: Mapping[str, float] = field(default_factory=dict)
    reranked: Mapping[str, float] = field(default_factory=dict)
    checks: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    message: str = ""
    output: str = ""


@dataclass(frozen=True, slots=True)
class Suite:
    """All rows, in the order of the benchmarks."""

    rows: Sequence[Row]

    def means(self) -> dict[str, dict[str, Any]]:
        """Return means over finished benchmarks: one over those without a group, one per group.

        A measure is averaged over the benchmarks that have it; ``benchmarks`` says how many of how many are in.

        Examples:
            >>> first = Row(name="a", group=None, status="done", reranked={"nDCG@10": 0.2})
            >>> second = Row(name="b", group=None, status="done", reranked={"nDCG@10": 0.4})
            >>> round(Suite([first, second]).means()["all"]["reranked"]["nDCG@10"], 4)
            0.3
        """
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.group or "all", []).append(row)
        return {
            name: {
                "benchmarks": f"{sum(row.status == 'done' for row in rows)} of {len(rows)}",
                "first_stage": _means(row.first_stage for row in rows if row.status == "done"),
                "reranked": _means(row.reranked for row in rows if row.status == "done"),
            }
            for name, rows in groups.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return rows and means as JSON-ready values."""
        return {"schema": 1, "benchmarks": [asdict(row) for row in self.rows], "means": self.means()}


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
        name: of the benchmark.
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
    return Row(
        name=benchmark.name,
        group=benchmark.group,
        status="partial" if failed else "done",
        queries=outcome.manifest["totals"]["queries"],
        first_stage=dict(judged.first_stage.means),
        reranked=dict(judged.reranked.means),
        checks={check.measure: check.verdict for check in judged.checks},
        published={check.measure: check.published for check in judged.checks},
        message="; ".join(
            [*([f"{len(failed)} queries failed"] if failed else []), *outcome.manifest["totals"]["warnings"]]
        ),
        output=str(outcome.directory.path),
    )


def _unfinished(benchmark: Benchmark, status: Status, error: Exception, directory: Path) -> Row:
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    logger.warning("%s: %s: %s", benchmark.name, status, message)
    return Row(name=benchmark.name, group=benchmark.group, status=status, message=message, output=str(directory))


def _means(records: Iterable[Mapping[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for record in records:
        for measure, value in record.items():
            values.setdefault(measure, []).append(value)
    return {measure: fmean(found) for measure, found in values.items()}
