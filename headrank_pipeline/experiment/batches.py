"""From a run's candidates to its journal: where they come from, which queries are reranked together, and by whom.

A `CandidateSource` gives the lists, `Batches` deals them out, `Workers` rerank them, in this process or in others, and
a `Session` writes what comes back to the journal, batch by batch.
"""

from __future__ import annotations

import hashlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count, islice
from os import PathLike
from types import TracebackType
from typing import Any, Protocol

from headrank_pipeline.experiment.directory import Entry, Journal, RunDirectory, now, usage
from headrank_pipeline.files import open_input
from headrank_pipeline.pipeline import Failure, Reranker, Source, Terminated
from headrank_pipeline.records import Query, Ranking
from headrank_pipeline.trec import read_candidates

__all__ = [
    "Batches",
    "CandidateSource",
    "Progress",
    "Session",
    "Shard",
    "ThisProcess",
    "TriedBatch",
    "Workers",
    "queries_sha256",
    "supply_from_file",
    "supply_from_source",
    "try_batch",
]

logger = logging.getLogger(__name__)

_HOPELESS = 3  # so many failures without a success are a fault of the set-up, not of the queries
_CHUNK = 32  # queries that first stages encode and search at once; last digits of vectors depend on what is in a chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateSource:
    """Candidates, and what they are determined by.

    Args:
        identity: everything that can change the candidates, JSON-ready; a run is continued only where it is equal.
        rankings: gives the candidates, in topic order.
        retrieves: whether `rankings` runs a first stage; the runner then calls it once and keeps what it gave.
        origins: input -> where it came from, for the manifest; paths stand here and not in the identity.
        queries: what the first stage is asked, in topic order; empty where candidates are read.
        search: what the first stage finds for some of the queries; None where candidates are read.
    """

    identity: Mapping[str, Any]
    rankings: Callable[[], Iterator[Ranking]]
    retrieves: bool
    origins: Mapping[str, str] = field(default_factory=dict)
    queries: Sequence[Query] = ()
    search: Callable[[Sequence[Query]], Iterator[Ranking]] | None = None

    def qids(self) -> list[str]:
        """Return every qid in topic order; a file of candidates is read to its end."""
        if self.search is not None:
            return [query.qid for query in self.queries]
        return [ranking.query.qid for ranking in self.rankings()]

    def first(self, count: int) -> CandidateSource:
        """Return the candidates of the first `count` queries only, determined by the same inputs."""
        if self.search is None:
            return replace(self, rankings=lambda: islice(self.rankings(), count))
        search, queries = self.search, self.queries[:count]
        return replace(self, queries=queries, rankings=lambda: search(queries))

    def between(self, start: int, stop: int) -> CandidateSource:
        """Return the candidates of queries `start` to `stop`, counted from 0: the same as if all were asked for.

        Where a first stage runs, it searches the whole chunks of queries that these lie in, as for all of them.
        """
        if self.search is None:
            return replace(self, rankings=lambda: islice(self.rankings(), start, stop))
        search, asked = self.search, self.queries
        before, after = start % _CHUNK, -stop % _CHUNK

        def found() -> Iterator[Ranking]:
            return islice(search(asked[start - before : stop + after]), before, before + stop - start)

        return replace(self, queries=asked[start:stop], rankings=found)


def supply_from_file(path: str | PathLike[str], *, only: Collection[str] | None = None) -> CandidateSource:
    """Return the candidates of a file.

    Args:
        path: candidates JSONL: a file, a pipe, or ``-``; opened once, and what was digested is what is read.
        only: qids to keep, or None for all of them.

    Raises:
        FileNotFoundError: no such file.
    """
    opened = open_input(path, "candidates")
    identity: dict[str, Any] = {"candidates_sha256": opened.sha256}
    if only is None:
        return CandidateSource(
            identity=identity,
            rankings=lambda: read_candidates(opened),
            retrieves=False,
            origins={"candidates": str(path)},
        )
    kept = frozenset(only)
    identity["qids_sha256"] = hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()
    return CandidateSource(
        identity=identity,
        rankings=lambda: (ranking for ranking in read_candidates(opened) if ranking.query.qid in kept),
        retrieves=False,
        origins={"candidates": str(path)},
    )


def supply_from_source(source: Source, queries: Sequence[Query]) -> CandidateSource:
    """Return what a first stage finds for the queries."""
    return CandidateSource(
        identity={"source": source.describe(), "queries_sha256": queries_sha256(queries)},
        rankings=lambda: source.retrieve(queries),
        retrieves=True,
        queries=queries,
        search=source.retrieve,
    )


def queries_sha256(queries: Sequence[Query]) -> str:
    """Return a fingerprint of ids and texts, in order."""
    digest = hashlib.sha256()
    for query in queries:
        digest.update(f"{query.qid}\t{query.text}\n".encode())
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------- batches and who reranks them


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `number` of `count` equal parts of a run: whole batches, one after the other in topic order.

    With m batches, part i has batches (i - 1) m / n to i m / n, rounded down: what is reranked together is what one
    process would rerank together.

    Raises:
        ValueError: no such part.

    Examples:
        >>> [Shard(number, 3).bounds(queries=21, batch_size=4) for number in (1, 2, 3)]
        [(0, 8), (8, 16), (16, 21)]
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(f"shard {self}: expected I/N with I from 1 to N, for example 3/8")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that ``3/8`` means.

        Raises:
            ValueError: another form, or no such part.
        """
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal()):
            raise ValueError(f"shard {text!r}: expected I/N with I from 1 to N, for example 3/8")
        return cls(int(number), int(count))

    def bounds(self, queries: int, batch_size: int) -> tuple[int, int]:
        """Return the place of its first query and of the first one after it, counted from 0.

        Raises:
            ValueError: more shards than batches.
        """
        batches = -(-queries // batch_size)
        if self.count > batches:
            raise ValueError(
                f"shard {self}: {queries} queries make {batches} batches of {batch_size}, none of which is divided; "
                f"take at most {batches} shards, or smaller batches"
            )
        first, last = (number * batches // self.count for number in (self.number - 1, self.number))
        return first * batch_size, min(last * batch_size, queries)


@dataclass(frozen=True, slots=True)
class Batches:
    """The batches that are still to be reranked, in topic order; iterated as often as needed.

    Args:
        rankings: gives the candidates of all queries, in topic order.
        size: queries in a batch; the last one may be smaller.
        depth: candidates that are reranked.
        open: numbers of the batches to rerank, counted from 0 over all queries: what is in a batch depends neither on
            what was done before nor on who does it.
    """

    rankings: Callable[[], Iterator[Ranking]]
    size: int
    depth: int
    open: frozenset[int]

    def __iter__(self) -> Iterator[tuple[int, list[Ranking]]]:
        """Yield the number of each open batch, and its rankings cut to the depth."""
        rankings = self.rankings()
        for number in count():
            batch = list(islice(rankings, self.size))
            if not batch:
                return
            if number in self.open:
                yield number, [ranking.cut(self.depth) for ranking in batch]


@dataclass(frozen=True, slots=True)
class TriedBatch:
    """What became of a batch; without the passages, so that it is small enough to travel.

    Args:
        entries: journal lines of the queries that were reranked, or had no candidates.
        failures: the queries that could not be.
    """

    entries: tuple[Entry, ...]
    failures: tuple[Failure, ...] = ()

    @property
    def all_failed(self) -> bool:
        """Whether queries failed and none was reranked."""
        return bool(self.failures) and not any(entry.docids for entry in self.entries)


class Workers(Protocol):
    """Processes that hold equal rerankers; `experiment.scaleout` starts them."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what each of the rerankers says of itself."""
        ...

    def origins(self) -> dict[str, str]:
        """Return where what the rerankers work with lies."""
        ...

    def try_batches(self, batches: Batches) -> Generator[TriedBatch, None, None]:
        """Yield what became of each batch, as it comes; raises what `try_batch` raises."""
        ...

    def usage(self) -> dict[str, Any]:
        """Return GPU and peak memory of the process that took most, as `directory.usage` does for this one."""
        ...


@dataclass(frozen=True, slots=True)
class ThisProcess:
    """One worker, which is the process that asks: no other is started."""

    reranker: Reranker
    count: int = 1

    def describe(self) -> dict[str, Any]:
        """Return what the reranker says of itself."""
        return self.reranker.describe()

    def origins(self) -> dict[str, str]:
        """Return where what the reranker works with lies."""
        return self.reranker.origins()

    def try_batches(self, batches: Batches) -> Generator[TriedBatch, None, None]:
        """Yield what became of each batch, one after the other."""
        for _, batch in batches:
            yield try_batch(self.reranker, batch)

    def usage(self) -> dict[str, Any]:
        """Return GPU and peak memory of this process."""
        return usage()


def try_batch(reranker: Reranker, batch: Sequence[Ranking]) -> TriedBatch:
    """Return what became of the queries of a batch; those without candidates never reach the reranker.

    Raises:
        ValueError: the reranker returned other queries than it was given.
        MissingPrerequisite: no query would fare better.
    """
    started = time.perf_counter()
    empty = tuple(Entry(ranking.query.qid) for ranking in batch if not ranking.candidates)
    live = [ranking for ranking in batch if ranking.candidates]
    if not live:
        return TriedBatch(empty)
    attempts = _checked(live, reranker.attempt_batch(live))
    share = (time.perf_counter() - started) / len(live)
    entries = tuple(Entry.of(attempt, share) for attempt in attempts if isinstance(attempt, Ranking))
    return TriedBatch(empty + entries, tuple(attempt for attempt in attempts if isinstance(attempt, Failure)))


def _checked(given: Sequence[Ranking], attempts: Sequence[Ranking | Failure]) -> list[Ranking | Failure]:
    """A reranker that loses a query or a candidate must not do so quietly."""
    if [attempt.query.qid for attempt in attempts] != [ranking.query.qid for ranking in given]:
        raise ValueError(f"the reranker returned {len(attempts)} rankings in another order than the {len(given)} given")
    return [_complete(before, after) for before, after in zip(given, attempts, strict=True)]


def _complete(before: Ranking, after: Ranking | Failure) -> Ranking | Failure:
    if isinstance(after, Failure):
        return after
    lost, added = set(before.docids) - set(after.docids), set(after.docids) - set(before.docids)
    if not lost and not added:
        return after
    error = ValueError(
        f"qid {before.query.qid}: the reranker lost {sorted(lost)} and added {sorted(added)}; it must return every "
        f"candidate once"
    )
    return Failure(before.query, error, after.notes)


# ---------------------------------------------------------------------------------------------------- one call of a run


@dataclass(slots=True)
class Session:
    """The loop of one call: what it reranks goes to the journal batch by batch."""

    directory: RunDirectory
    journal: Journal
    workers: Workers
    qids: Sequence[str]
    batch_size: int
    depth: int
    failures: int = 0
    last_error: Exception | None = field(default=None, repr=False)
    seconds: float = 0.0
    queries: int = 0

    @property
    def total(self) -> int:
        """How many queries the run has."""
        return len(self.qids)

    def record(self) -> dict[str, Any]:
        """Return what the manifest says of this call when it has come to its end."""
        timing = {"workers": self.workers.count, "queries": self.queries, "seconds": round(self.seconds, 3)}
        return {"finished": now(), **timing, **self.workers.usage()}

    def run(self, rankings: Callable[[], Iterator[Ranking]]) -> None:
        """Rerank what is open."""
        done = self.journal.scored_count
        if done < self.total:
            self.directory.retract_results()
        if done:
            logger.info("%s: %d of %d queries are done already", self.directory.path, done, self.total)
        batches = Batches(rankings, self.batch_size, self.depth, self._open())
        started = time.perf_counter()
        try:
            # Closed at once when something goes wrong, rather than some time later: workers must not go on.
            with (
                Progress(self.total, done) as progress,
                _termination() as asked_to_end,
                closing(self.workers.try_batches(batches)) as stream,
            ):
                for tried in stream:
                    failed = [self._failed(failure, alone=tried.all_failed) for failure in tried.failures]
                    entries = [*tried.entries, *failed]
                    fresh = sum(not self.journal.scored(entry.qid) for entry in entries)
                    self.journal.append(entries)
                    if self.journal.scored_count and self.directory.has_aside:
                        self.directory.discard()
                    # A query that failed after the model had read it took its time, too.
                    self.queries += sum(bool(entry.docids or entry.notes) for entry in entries)
                    progress.advance(fresh)
                    if asked_to_end() and self._tried < self.total:
                        raise Terminated(
                            f"{self.directory.path}: ended on SIGTERM with {self.journal.scored_count} of {self.total} "
                            f"queries done; the same command continues the run"
                        )
        except KeyboardInterrupt:
            count = self.journal.scored_count
            logger.warning(
                "interrupted with %d of %d queries done; the same command continues the run", count, self.total
            )
            raise
        if self.last_error is not None and not self.journal.scored_count:
            raise self.last_error
        self.seconds = time.perf_counter() - started

    @property
    def _tried(self) -> int:
        return self.journal.scored_count + len(self.journal.failures)

    def _open(self) -> frozenset[int]:
        """Numbers of the batches with a query that has no scores yet."""
        size = self.batch_size
        return frozenset(n // size for n, qid in enumerate(self.qids) if not self.journal.scored(qid))

    def _failed(self, failure: Failure, *, alone: bool) -> Entry:
        qid, error = failure.query.qid, failure.error
        logger.warning("failed: %s", error if qid in str(error) else f"qid {qid}: {error}")
        self.failures += 1
        self.last_error = error
        if self.failures >= _HOPELESS and alone and not self.journal.scored_count:
            logger.error("the first %d queries all failed; stopping", self.failures)
            raise error
        told = f"{type(error).__name__}: {error}".encode(errors="backslashreplace").decode()  # half a surrogate pair
        return Entry(qid, notes=dict(failure.notes), error=told)


@contextmanager
def _termination() -> Iterator[Callable[[], bool]]:
    """Give what tells whether SIGTERM came; until the context ends it does nothing else.

    Python hands signals to the main thread only: a run in another thread ends as the process does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = threading.Event()

    def note(*_: Any) -> None:
        came.set()
        logger.warning("SIGTERM: the run ends when the batch is done")

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


# ------------------------------------------------------------------------------------------------------------- progress


_LOG_EVERY_SECONDS = 30.0


class Progress:
    """Counts queries, or whatever a job is made of; use as a context manager.

    Args:
        total: queries in the whole run.
        done: queries that an earlier session finished; they count in the total but not in the rate.
        log_every: seconds between log lines where standard error is no terminal.
        unit: what is counted, singular and plural.
        what: the job's name on the bar.
    """

    def __init__(
        self,
        total: int,
        done: int,
        *,
        log_every: float = _LOG_EVERY_SECONDS,
        unit: tuple[str, str] = ("query", "queries"),
        what: str = "rerank",
    ) -> None:
        self.total = total
        self.done = done
        self.log_every = log_every
        self.unit, self.units = unit
        self.what = what
        self._new = 0
        self._bar: Any = None
        self._started = self._logged = time.monotonic()

    def __enter__(self) -> Progress:
        self._started = self._logged = time.monotonic()
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, initial=self.done, unit=self.unit, desc=self.what, file=sys.stderr)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, queries: int) -> None:
        """Count queries as done."""
        self.done += queries
        self._new += queries
        if self._bar is not None:
            self._bar.update(queries)
        elif time.monotonic() - self._logged >= self.log_every:
            self._logged = time.monotonic()
            logger.info("%s", self.line())

    def line(self) -> str:
        """Return one line with done, total, rate and the time still to go."""
        rate = self._new / max(time.monotonic() - self._started, 1e-9)
        left = f"{_duration((self.total - self.done) / rate)} to go" if rate else "time to go unknown"
        return f"{self.done}/{self.total} {self.units}, {rate:.2f} {self.units}/s, {left}"


def _duration(seconds: float) -> str:
    """Return hours:minutes:seconds.

    Examples:
        >>> _duration(3725.4)
        '1:02:05'
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
