"""Where a run's candidates come from: a file, or a first stage that runs once per run directory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from os import PathLike
from typing import Any

from headrank_pipeline.files import open_input
from headrank_pipeline.pipeline import Source
from headrank_pipeline.records import Query, Ranking
from headrank_pipeline.trec import read_candidates

_CHUNK = 32  # queries that first stages encode and search at once; last digits of vectors depend on what is in a chunk

__all__ = ["CandidateSource", "queries_sha256", "supply_from_file", "supply_from_source"]


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
