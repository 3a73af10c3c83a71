"""The resumable run: candidates in, a TREC run that can be trusted out.

Queries are reranked in batches that depend only on their order and the batch size, and every finished batch is in the
journal before the next one starts. A run that was killed is continued by the same call: finished batches are skipped,
an unfinished one is done again as a whole, so that the final run equals an uninterrupted one byte for byte even where
a result depends on what else was in its batch. Only a passage cache reaches beyond batches (see `_opened_manifest`).
`run.trec` appears only when every query has been tried.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from headrank_pipeline.experiment.batches import Batches, ThisProcess, Workers
from headrank_pipeline.experiment.directory import RunDirectory
from headrank_pipeline.experiment.journal import Entry, Journal
from headrank_pipeline.experiment.judgement import Judged, Judgement, judge
from headrank_pipeline.experiment.manifest import (
    SCHEMA_VERSION,
    differences,
    environment,
    now,
    percentile,
    plain,
    read_manifest,
    write_json,
)
from headrank_pipeline.experiment.progress import Progress
from headrank_pipeline.experiment.supply import Supply
from headrank_pipeline.pipeline import Failure, Reranker
from headrank_pipeline.records import Candidate, Ranking
from headrank_pipeline.trec import read_candidates, write_candidates, write_run

__all__ = ["Outcome", "RunPlan", "execute"]

logger = logging.getLogger(__name__)

_HOPELESS = 3  # so many failures without a success are a fault of the set-up, not of the queries
# Notes that a user must hear about.
_LOSSES = ("passages_cut", "tokens_dropped", "control_tokens_neutralised", "unknown_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What to do; equal plans give equal runs.

    Args:
        output: run directory; made when missing, continued when it holds a run of an equal plan.
        reranker: gives the candidates their scores, here or in workers; where does not belong to the plan.
        supply: where candidates come from.
        depth: how many candidates are reranked; those below follow in their order, with continuing scores.
        batch_size: queries handed to the reranker at once.
        tag: last column of the run.
        benchmark: name and version of the benchmark, or None.
        judgement: what to evaluate with, or None.
    """

    output: Path
    reranker: Reranker | Workers
    supply: Supply
    depth: int = 100
    batch_size: int = 8
    tag: str = "headrank"
    benchmark: Mapping[str, str] | None = None
    judgement: Judgement | None = None

    def __post_init__(self) -> None:
        for name in ("depth", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected at least 1")
        if not self.tag or any(character.isspace() for character in self.tag):
            raise ValueError(f"tag {self.tag!r}: expected a non-empty word without white space, as run files need")

    def identity(self) -> dict[str, Any]:
        """Return everything that can change a ranking, as JSON-ready values."""
        return {
            "reranker": self.reranker.describe(),
            "candidates": dict(self.supply.identity),
            "depth": self.depth,
            "batch_size": self.batch_size,
            "tag": self.tag,
            "benchmark": dict(self.benchmark) if self.benchmark else None,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Args:
        directory: where its files lie.
        manifest: as written.
        judged: evaluations, where the plan had a judgement.
    """

    directory: RunDirectory
    manifest: Mapping[str, Any]
    judged: Judged | None

    @property
    def failed(self) -> Mapping[str, str]:
        """Qid -> message of every query that failed."""
        failed: Mapping[str, str] = self.manifest["totals"]["failed"]
        return failed


def execute(plan: RunPlan, *, overwrite: bool = False, command: str | None = None) -> Outcome:
    """Run a plan to its end, or continue it, and return what came of it.

    Args:
        plan: what to do.
        overwrite: start anew where the directory holds a run of another plan.
        command: the command line, for the manifest.

    Raises:
        ValueError: the directory holds a run of another plan; the message names every difference.
        RuntimeError: another process is writing there, or every query failed.
    """
    directory = RunDirectory(plan.output)
    with directory.locked():
        if overwrite:
            directory.clear()
        manifest = _opened_manifest(plan, directory, command)
        write_json(directory.manifest, manifest)
        rankings = _candidates(plan, directory)
        journal = Journal(directory.scores)
        qids, empty = _survey(rankings)
        if plan.judgement is not None:
            plan.judgement.check(qids)
        workers = ThisProcess(plan.reranker) if isinstance(plan.reranker, Reranker) else plan.reranker
        session = _Session(plan, directory, journal, workers, qids)
        session.run(rankings)
        results = _Results(rankings, journal, plan.depth, len(qids), empty)
        return _finish(plan, directory, manifest, results, session)


# ------------------------------------------------------------------------------------------------------- beginning


def _opened_manifest(plan: RunPlan, directory: RunDirectory, command: str | None) -> dict[str, Any]:
    """The manifest of the run to continue, or a new one; either way with a session for this call."""
    # Where a passage cache is used, keys may have been computed beside other passages: the last digits may differ.
    here = environment() | {"passage_cache": plan.reranker.origins().get("passage_cache")}
    # A call that ended before anything was retrieved or scored (bad candidates, say) left nothing to protect.
    work = directory.work()
    manifest = read_manifest(directory.manifest) if work else None
    session: dict[str, Any] = {"started": now(), "finished": None, "command": command, "folder": str(Path.cwd())}
    if manifest is None:
        if work:
            raise ValueError(
                f"{directory.path}: holds {', '.join(work)} but no manifest.json that says what made them; "
                f"choose another --output, or start anew with --overwrite"
            )
        return {
            "schema": SCHEMA_VERSION,
            "status": "running",
            "identity": plain(plan.identity()),
            "origins": _origins(plan),
            "environment": here,
            "sessions": [session],
            "totals": None,
        }
    _check_identity(directory, manifest["identity"], plan.identity())
    changed = differences(manifest["environment"], here)
    if changed:
        session["environment_changes"] = {key: {"before": old, "now": new} for key, old, new in changed}
        logger.warning(
            "%s is continued in another environment, which may change results in their last digits: %s",
            directory.path,
            "; ".join(f"{key} {old} -> {new}" for key, old, new in changed),
        )
    origins = {**manifest["origins"], **_origins(plan)}
    return {**manifest, "status": "running", "origins": origins, "sessions": [*manifest["sessions"], session]}


def _origins(plan: RunPlan) -> dict[str, str]:
    """Where each input came from; judgments that were given as a file name themselves."""
    qrels = {} if plan.judgement is None else {"qrels": str(plan.judgement.qrels)}
    read = {name: place for name, place in plan.reranker.origins().items() if name != "passage_cache"}
    return {**qrels, **plan.supply.origins, **read}


def _check_identity(directory: RunDirectory, recorded: Any, wanted: Any) -> None:
    changed = differences(recorded, plain(wanted))
    if changed:
        listed = "\n".join(f"  {key}: there {old!r}, now {new!r}" for key, old, new in changed)
        raise ValueError(
            f"{directory.path}: holds a run of another configuration:\n{listed}\n"
            f"choose another --output, or --overwrite to start anew"
        )


def _candidates(plan: RunPlan, directory: RunDirectory) -> Callable[[], Iterator[Ranking]]:
    """A way to read the candidates as often as needed; runs the first stage unless it has run for this directory."""
    if not plan.supply.retrieves:
        return plan.supply.rankings
    if not directory.candidates.exists():
        started = time.perf_counter()
        count = write_candidates(directory.candidates, plan.supply.rankings())
        logger.info("first stage: %d queries in %.1f s", count, time.perf_counter() - started)
    return lambda: read_candidates(directory.candidates)


def _survey(rankings: Callable[[], Iterator[Ranking]]) -> tuple[list[str], list[str]]:
    """Return all qids in order, and those without candidates."""
    qids: dict[str, bool] = {}
    for ranking in rankings():
        qid = ranking.query.qid
        if qid in qids:
            raise ValueError(f"qid {qid}: occurs twice in the candidates; run files need every qid once, merge the two")
        qids[qid] = bool(ranking.candidates)
    if not qids:
        raise ValueError("no queries: the candidates are empty, or none of them is judged")
    return list(qids), [qid for qid, found in qids.items() if not found]


# ------------------------------------------------------------------------------------------------------- reranking


@dataclass(slots=True)
class _Session:
    """The loop of one call: what it reranks goes to the journal batch by batch."""

    plan: RunPlan
    directory: RunDirectory
    journal: Journal
    workers: Workers
    qids: Sequence[str]
    failures: int = 0
    last_error: Exception | None = field(default=None, repr=False)
    seconds: float = 0.0
    queries: int = 0

    @property
    def total(self) -> int:
        return len(self.qids)

    def record(self) -> dict[str, Any]:
        """What the manifest says of this call when it has come to its end."""
        timing = {"workers": self.workers.count, "queries": self.queries, "seconds": round(self.seconds, 3)}
        return {"finished": now(), **timing, **self.workers.usage()}

    def run(self, rankings: Callable[[], Iterator[Ranking]]) -> None:
        done = self.journal.scored_count
        if done < self.total:
            self.directory.retract_results()
        if done:
            logger.info("%s: %d of %d queries are done already", self.directory.path, done, self.total)
        batches = Batches(rankings, self.plan.batch_size, self.plan.depth, self._open())
        started = time.perf_counter()
        try:
            # Closed at once when something goes wrong, rather than some time later: workers must not go on.
            with Progress(self.total, done) as progress, closing(self.workers.try_batches(batches)) as stream:
                for tried in stream:
                    failed = [self._failed(failure, alone=tried.hopeless) for failure in tried.failures]
                    entries = [*tried.entries, *failed]
                    fresh = sum(not self.journal.scored(entry.qid) for entry in entries)
                    self.journal.append(entries)
                    self.queries += sum(bool(entry.docids) for entry in tried.entries)
                    progress.advance(fresh)
        except KeyboardInterrupt:
            count = self.journal.scored_count
            logger.warning(
                "interrupted with %d of %d queries done; the same command continues the run", count, self.total
            )
            raise
        if self.last_error is not None and not self.journal.scored_count:
            raise self.last_error
        self.seconds = time.perf_counter() - started

    def _open(self) -> frozenset[int]:
        """Numbers of the batches with a query that has no scores yet."""
        size = self.plan.batch_size
        return frozenset(n // size for n, qid in enumerate(self.qids) if not self.journal.scored(qid))

    def _failed(self, failure: Failure, *, alone: bool) -> Entry:
        qid, error = failure.query.qid, failure.error
        logger.warning("failed: %s", error if qid in str(error) else f"qid {qid}: {error}")
        self.failures += 1
        self.last_error = error
        if self.failures >= _HOPELESS and alone and not self.journal.scored_count:
            logger.error("the first %d queries all failed; stopping", self.failures)
            raise error
        return Entry(qid, notes=dict(failure.notes), error=f"{type(error).__name__}: {error}")


# ---------------------------------------------------------------------------------------------------------- ending


@dataclass(frozen=True, slots=True)
class _Results:
    """Everything that was scored, in topic order."""

    rankings: Callable[[], Iterator[Ranking]]
    journal: Journal
    depth: int
    queries: int
    without_candidates: Sequence[str]

    def reranked(self) -> Iterator[Ranking]:
        for ranking in self.rankings():
            if self.journal.scored(ranking.query.qid):
                yield self._joined(ranking)

    def _joined(self, ranking: Ranking) -> Ranking:
        """The reranked candidates, then those below the depth."""
        entry = self.journal.read(ranking.query.qid)
        if set(entry.docids) != set(ranking.docids[: self.depth]):
            raise ValueError(
                f"{self.journal.path}: qid {entry.qid} was scored for other candidates than there are now; "
                f"start anew with --overwrite"
            )
        scored = zip(entry.docids, entry.scores, strict=True)
        head = Ranking(ranking.query, tuple(Candidate(docid, score) for docid, score in scored))
        return head.continued_by(ranking)

    def totals(self) -> dict[str, Any]:
        notes: dict[str, float] = {}
        counted = 0
        seconds: list[float] = []
        without = set(self.without_candidates)
        for entry in chain(map(self.journal.read, self.journal.scored_qids()), self.journal.failures.values()):
            counted += bool(entry.notes)
            for name, value in entry.notes.items():
                notes[name] = notes.get(name, 0) + value
            if entry.error is None and entry.qid not in without:
                seconds.append(entry.seconds)
        return {
            "queries": self.queries,
            "failed": {qid: entry.error for qid, entry in self.journal.failures.items()},
            "queries_without_candidates": list(self.without_candidates),
            "notes": notes,
            "queries_counted": counted,
            "seconds": round(sum(seconds), 3),
            "latency_p50_seconds": percentile(seconds, 50),
            "latency_p95_seconds": percentile(seconds, 95),
        }


def _finish(
    plan: RunPlan, directory: RunDirectory, manifest: dict[str, Any], results: _Results, session: _Session
) -> Outcome:
    """Write both runs, evaluate them, and close the manifest."""
    write_run(directory.first_stage_run, results.rankings(), "first-stage")
    write_run(directory.run, results.reranked(), plan.tag)
    judged = judge(directory, plan.judgement) if plan.judgement is not None else None
    *earlier, opened = manifest["sessions"]
    sessions = [*earlier, {**opened, **session.record()}]
    totals = results.totals() | {"queries_per_second": _rate(sessions)}
    status = "partial" if totals["failed"] else "complete"
    closed = {**manifest, "status": status, "sessions": sessions, "totals": totals}
    write_json(directory.manifest, closed)
    _tell(totals)
    return Outcome(directory, closed, judged)


def _tell(totals: Mapping[str, Any]) -> None:
    losses = [f"{name} {totals['notes'][name]:g}" for name in _LOSSES if totals["notes"].get(name)]
    if losses:
        logger.warning("what the model read differs from the passages: %s (sums over the run)", ", ".join(losses))
    if totals["queries_without_candidates"]:
        logger.warning("%d queries have no candidates", len(totals["queries_without_candidates"]))


def _rate(sessions: Sequence[Mapping[str, Any]]) -> float | None:
    """Queries per second of wall clock, over the calls that came to their end and reranked something."""
    timed = [session for session in sessions if session.get("queries")]
    seconds = sum(session["seconds"] for session in timed)
    return round(sum(session["queries"] for session in timed) / seconds, 4) if seconds else None
