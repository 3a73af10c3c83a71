"""One source for all of Pyserini's indexes: queries in chunks, documents left out before the cutoff, passages added.

What differs from index to index is a `Searcher`; `bm25`, `impact` and `dense` each make one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from headrank_pipeline.first_stage.jvm import versions
from headrank_pipeline.first_stage.texts import Lookup, passage_lookup, with_texts
from headrank_pipeline.pipeline import Queries, Source, as_queries
from headrank_pipeline.records import Candidate, Query, Ranking

__all__ = ["IndexSource", "Removal", "Searcher", "check_counts", "index_source"]

# Queries searched at once: enough to keep the threads busy, few enough that memory stays small.
_CHUNK = 32


class Searcher(Protocol):
    """An index that can be searched, opened by the first search; shared by a source and its cutoffs."""

    @property
    def index(self) -> Path | str:
        """Folder, or name of a prebuilt index."""

    def search(self, queries: Sequence[Query], limit: int, threads: int) -> Mapping[str, Iterable[Candidate]]:
        """Return qid -> the best `limit` documents, with their text where the index stores it."""

    def describe(self) -> dict[str, Any]:
        """Return what determines the scores, JSON-ready, the name of the stage first."""


@dataclass(frozen=True)
class Removal:
    """What is left out per query, before the cutoff.

    Args:
        remove_query: leave out the document whose docid is the qid.
        exclude: qid -> docids to leave out.

    Raises:
        TypeError: a string where a collection of docids belongs.

    Examples:
        >>> sorted(Removal(True, {"q1": {"d1"}}).of("q1"))
        ['d1', 'q1']
    """

    remove_query: bool
    exclude: Mapping[str, Collection[str]]

    def __post_init__(self) -> None:
        frozen = {}
        for qid, docids in self.exclude.items():
            if isinstance(docids, str):
                raise TypeError(f"exclude[{qid!r}]: expected a collection of docids, got the string {docids!r}")
            frozen[qid] = frozenset(docids)
        object.__setattr__(self, "exclude", frozen)

    def of(self, qid: str) -> frozenset[str]:
        """Return the docids that this query must not get."""
        own = frozenset({qid}) if self.remove_query else frozenset()
        return own | frozenset(self.exclude.get(qid, ()))

    def spare(self, queries: Iterable[Query]) -> int:
        """Return how many candidates more to retrieve so that enough remain for each of the queries."""
        return max((len(self.of(query.qid)) for query in queries), default=0)

    def describe(self) -> dict[str, Any]:
        """Return both as JSON-ready values; the excluded docids as a checksum."""
        pairs = sorted((qid, sorted(docids)) for qid, docids in self.exclude.items())
        digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest() if pairs else None
        return {"remove_query": self.remove_query, "exclude_sha256": digest}


@dataclass(frozen=True)
class IndexSource(Source):
    """A first stage that searches an index.

    Args:
        searcher: searches it.
        hits: candidates per query.
        threads: queries searched at once.
        removal: documents that a query must not get.
        texts: name of where passages come from, None where nothing was said.
        lookup: gives the passages that the searcher gives no text for, or None.
        states_texts: whether a manifest says so where `texts` is None.
    """

    searcher: Searcher
    hits: int
    threads: int
    removal: Removal
    texts: str | None
    lookup: Lookup | None = field(compare=False, repr=False)
    states_texts: bool = True

    def retrieve(self, queries: Queries) -> Iterator[Ranking]:
        """Yield one ranking per query, of `hits` candidates where the collection has them."""
        known = as_queries(queries)
        while chunk := list(islice(known, _CHUNK)):
            found = self.searcher.search(chunk, self.hits + self.removal.spare(chunk), self.threads)
            for query in chunk:
                if query.qid not in found:  # a searching thread that dies leaves its query out without an exception
                    raise RuntimeError(
                        f"{self.searcher.index}: Pyserini returned nothing for qid {query.qid}; see Java's message"
                    )
                removed = self.removal.of(query.qid)
                kept = islice((hit for hit in found[query.qid] if hit.docid not in removed), self.hits)
                yield Ranking(query, self._with_texts(tuple(kept)))

    def limited(self, hits: int) -> Source:
        """Return the same source with at most `hits` candidates per query."""
        return replace(self, hits=min(hits, self.hits))

    def most(self) -> int:
        """Return the number of candidates per query."""
        return self.hits

    def describe(self) -> dict[str, Any]:
        """Return the searcher's description, the cutoff, what is left out, where passages come from, and versions."""
        texts = {"texts": self.texts} if self.texts or self.states_texts else {}
        return {**self.searcher.describe(), "hits": self.hits, **texts, **self.removal.describe(), **versions()}

    def _with_texts(self, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        missing = [candidate for candidate in candidates if candidate.text is None]
        if self.lookup is None or not missing:
            return candidates
        known = {c.docid: c for c in with_texts(missing, self.lookup, str(self.texts or self.searcher.index))}
        return tuple(known.get(candidate.docid, candidate) for candidate in candidates)


def check_counts(**counts: int | None) -> None:
    """Raise ValueError for a count below 1, named."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} {value}: expected at least 1")


def index_source(
    searcher: Searcher,
    *,
    hits: int,
    threads: int,
    texts: str | os.PathLike[str] | None,
    remove_query: bool,
    exclude: Mapping[str, Collection[str]] | None,
    own_texts: Lookup | None = None,
    states_texts: bool = True,
) -> IndexSource:
    """Return the source of a searcher, with arguments as `bm25`, `impact` and `dense` take them.

    Where `texts` is None, passages that the index does not store come from `own_texts`.
    """
    check_counts(hits=hits, threads=threads)
    named = None if texts is None else os.fspath(texts)
    lookup = own_texts if texts is None else passage_lookup(texts)
    return IndexSource(searcher, hits, threads, Removal(remove_query, exclude or {}), named, lookup, states_texts)
