"""Batches of a run: which queries are reranked together, and what becomes of them, in this process or in another."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, Protocol

from headrank_pipeline.experiment.journal import Entry
from headrank_pipeline.experiment.manifest import usage
from headrank_pipeline.pipeline import Failure, Reranker
from headrank_pipeline.records import Ranking

__all__ = ["Batches", "Shard", "ThisProcess", "TriedBatch", "Workers", "try_batch"]


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
        """Return GPU and peak memory of the process that took most, as `manifest.usage` does for this one."""
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
