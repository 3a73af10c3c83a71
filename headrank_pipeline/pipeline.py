"""Source, Reranker and the operators that chain them: ``bm25(index) % 100 >> headrank(model, heads)``.

| written            | means                                                                                          |
|--------------------|------------------------------------------------------------------------------------------------|
| ``source % 100``   | the best 100 candidates per query                                                              |
| ``source >> r``    | what `source` finds, reranked by `r`                                                           |
| ``r1 >> r2``       | a reranker that applies `r1`, then `r2`                                                        |
| ``pipeline ^ src`` | `pipeline`'s candidates, then those of `src` that it lacks, with continuing scores             |
| ``src1 | src2``    | the candidates of both by reciprocal rank fusion; `fuse` takes another constant than 60        |
| ``source >> t``    | what `source` finds, through the PyTerrier transformer `t`; also ``r >> t``                    |

Python binds ``%`` tighter than ``>>``, ``>>`` tighter than ``^`` and ``^`` tighter than ``|``, so
``bm25 % 20 >> headrank ^ bm25`` needs no parentheses and ``(bm25 | dense) % 100 >> headrank`` does. A composition that
makes no sense (``headrank >> bm25``) raises TypeError where it is written.
"""

from __future__ import annotations

import logging
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import islice, tee
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias

from headrank_pipeline.records import Candidate, Query, Ranking

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "RRF_K",
    "Failure",
    "MissingExtra",
    "MissingPrerequisite",
    "Queries",
    "Reranker",
    "Source",
    "Terminated",
    "all_reranked",
    "as_queries",
    "fuse",
    "require_extra",
]

# Query records, {qid: text}, or a data frame with the columns qid and query (PyTerrier's topics).
Queries: TypeAlias = "Iterable[Query] | Mapping[str, str] | pd.DataFrame"

_log = logging.getLogger(__name__)

# What may go wrong with one query (its text, its length, memory) and leave the others intact.
_RECOVERABLE = (ValueError, RuntimeError, MemoryError)

# Rankings handed to a reranker at once by Pipeline.retrieve; the runner of `experiment` chooses its own.
_RETRIEVE_BATCH = 8

# Cormack, Clarke and Buettcher, Reciprocal Rank Fusion (SIGIR 2009); also Pyserini's default.
RRF_K = 60


class Terminated(Exception):
    """A run ended early because it was asked to (SIGTERM), with all that was done on the disk: no failure."""


class MissingPrerequisite(RuntimeError):
    """Something the machine lacks (Java, a GPU that was asked for) rather than something wrong with the data."""


class MissingExtra(MissingPrerequisite, ImportError):
    """A library that an extra of this package installs; to others' code a failed import like any other."""


def require_extra(extra: str, purpose: str, *modules: str) -> None:
    """Check that what an extra of this package brings can be imported; nothing is imported.

    Args:
        extra: its name in pyproject.toml.
        purpose: what the modules are needed for; begins the message.
        modules: top-level names, as they are imported.

    Raises:
        MissingExtra: one is not installed; the message holds the pip command.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise MissingExtra(f"{purpose} needs {names}: pip install 'headrank-pipeline[{extra}]'")


@dataclass(frozen=True, slots=True)
class Failure:
    """A query that a reranker could not rerank.

    Args:
        query: which one.
        error: why.
        notes: what was counted before it failed, as in `Ranking.notes`: a failed query has its cost too.
    """

    query: Query
    error: Exception
    notes: Mapping[str, float] = field(default_factory=dict)


def all_reranked(attempts: Iterable[Ranking | Failure]) -> list[Ranking]:
    """Return what `Reranker.attempt_batch` gave, or raise the error of the first query that failed."""
    reranked = []
    for attempt in attempts:
        if isinstance(attempt, Failure):
            raise attempt.error
        reranked.append(attempt)
    return reranked


def as_queries(queries: Queries) -> Iterator[Query]:
    """Yield Query records from Query records, a ``{qid: text}`` mapping or a data frame of topics.

    Raises:
        TypeError: anything else, for example bare strings.
        ValueError: a qid that occurs twice, a frame without the columns qid and query.
    """
    if isinstance(queries, str | Query):
        raise TypeError(f"expected several queries, got one: {queries!r}; write [Query(qid, text)] or {{qid: text}}")
    records: Iterable[Query]
    if isinstance(queries, Mapping):
        records = (Query(qid, text) for qid, text in queries.items())
    elif hasattr(queries, "columns"):  # asking for a frame's type would load pandas
        frame: Any = queries
        if missing := [name for name in ("qid", "query") if name not in frame.columns]:
            raise ValueError(f"data frame of topics lacks the columns {missing}; found {list(frame.columns)}")
        records = (Query(qid, text) for qid, text in zip(frame["qid"], frame["query"], strict=True))
    else:
        records = queries
    seen: set[str] = set()
    for query in records:
        if not isinstance(query, Query):
            raise TypeError(f"expected Query records or a {{qid: text}} mapping, got {type(query).__name__} {query!r}")
        if query.qid in seen:
            raise ValueError(f"qid {query.qid} occurs twice in the queries; run files need every qid once")
        seen.add(query.qid)
        yield query


class Source(ABC):
    """Something that answers queries with candidates: a first stage, or a whole pipeline."""

    @abstractmethod
    def retrieve(self, queries: Queries) -> Iterator[Ranking]:
        """Yield one ranking per query, in the order of the queries; a query without hits yields an empty ranking."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return every parameter that can change a ranking, as JSON-ready values for the manifest."""

    def limited(self, hits: int) -> Source | None:
        """Return an equal source that retrieves only `hits` candidates itself, or None where it cannot."""
        return None

    def most(self) -> int | None:
        """Return the largest number of candidates a query can get, or None where it is not known."""
        return None

    def __mod__(self, cutoff: int) -> Source:
        hits = _checked_cutoff(cutoff)
        return self.limited(hits) or _Cutoff(self, hits)

    def __rshift__(self, other: object) -> Source:
        if isinstance(other, Reranker):
            return Pipeline(self, other)
        if _is_transformer(other):
            return Pipeline(self, _Transformed(other))
        raise TypeError(
            f">> takes a reranker on its right, got {_name(other)}; a first stage comes first: bm25(…) >> headrank(…)"
        )

    def __xor__(self, tail: object) -> Source:
        if isinstance(tail, Source):
            return _Continued(self, tail)
        raise TypeError(f"^ takes a source on its right whose candidates follow, got {_name(tail)}")

    def __or__(self, other: object) -> Source:
        if isinstance(other, Source):
            return fuse(self, other)
        raise TypeError(
            f"| takes a source on its right to fuse with, got {_name(other)}; a reranker follows with >>: "
            f"(bm25(…) | dense(…)) % 100 >> headrank(…)"
        )


def fuse(*sources: Source, k: int = RRF_K) -> Source:
    """Return the sources' candidates in one ranking by reciprocal rank fusion.

    A candidate scores the sum of 1 / (k + rank) over the sources that found it, as in Pyserini's ``fusion``; equal
    scores keep the order of the sources. Fusions of the same k are joined, so that ``a | b | c`` fuses three rankings.

    Args:
        sources: two or more.
        k: dampens the weight of the first ranks; 60 in Cormack et al. (SIGIR 2009).

    Raises:
        TypeError: anything but sources.
        ValueError: fewer than two sources, or a k below 1.
    """
    if not k >= 1:  # NaN is not below 1 either
        raise ValueError(f"k {k}: expected at least 1")
    flat: list[Source] = []
    for source in sources:
        if not isinstance(source, Source):
            raise TypeError(f"fuse takes sources, got {_name(source)}; write fuse(source, source)")
        flat += source.sources if isinstance(source, _Fused) and source.k == k else [source]
    if len(flat) < 2:
        raise ValueError(f"fuse takes two sources or more, got {len(flat)}")
    return _Fused(tuple(flat), k)


class Reranker(ABC):
    """Something that gives the candidates of a ranking new scores."""

    @abstractmethod
    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        """Return the rankings rescored, in the same order, every candidate once; an empty ranking stays empty."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return every parameter that can change a ranking, as JSON-ready values for the manifest."""

    def origins(self) -> dict[str, str]:
        """Return where what it works with lies (``model``, ``passage_cache``): input -> place, for the manifest.

        A model that moved is the same, and a cache changes the last digits only: neither belongs to `describe`.
        """
        return {}

    def attempt_batch(self, rankings: Sequence[Ranking]) -> list[Ranking | Failure]:
        """Return what became of each query, in the same order: its ranking rescored, or why it failed.

        Where a batch fails and nobody knows whose fault it is, its queries are tried one by one.

        Raises:
            MissingPrerequisite: no query would fare better.
        """
        try:
            return self._attempts(rankings)
        except MissingPrerequisite:
            raise
        except _RECOVERABLE as error:
            if len(rankings) == 1:
                return [Failure(rankings[0].query, error)]
            _log.warning("a batch of %d queries failed (%s); trying them one by one", len(rankings), error)
        return [attempt for ranking in rankings for attempt in self.attempt_batch([ranking])]

    def _attempts(self, rankings: Sequence[Ranking]) -> list[Ranking | Failure]:
        """As `attempt_batch`, in one go; a reranker that knows which query failed overrides it: no other is redone."""
        return [*self.rerank_batch(rankings)]

    def rerank(self, ranking: Ranking) -> Ranking:
        """Return one ranking rescored."""
        return self.rerank_batch([ranking])[0]

    def __rshift__(self, other: object) -> Reranker:
        if isinstance(other, Reranker):
            return _Chain(self, other)
        if _is_transformer(other):
            return _Chain(self, _Transformed(other))
        if isinstance(other, Source):
            raise TypeError(
                f"{_name(self)} >> {_name(other)}: a reranker needs candidates before it; "
                f"write {_name(other)} >> {_name(self)}"
            )
        raise TypeError(f">> takes a reranker on its right, got {_name(other)}")

    def __mod__(self, cutoff: int) -> Reranker:
        return _CutReranker(self, _checked_cutoff(cutoff))


@dataclass(frozen=True)
class Pipeline(Source):
    """A source and the reranker that follows it; made by ``>>``."""

    source: Source
    reranker: Reranker

    def retrieve(self, queries: Queries) -> Iterator[Ranking]:
        """Yield one reranked ranking per query, in the order of the queries."""
        yield from self.reranked(self.source.retrieve(queries))

    def reranked(self, rankings: Iterator[Ranking]) -> Iterator[Ranking]:
        """Yield the rankings after the reranker, in the same order."""
        while batch := list(islice(rankings, _RETRIEVE_BATCH)):
            yield from self.reranker.rerank_batch(batch)

    def describe(self) -> dict[str, Any]:
        """Return the descriptions of both stages."""
        return {"source": self.source.describe(), "reranker": self.reranker.describe()}


@dataclass(frozen=True)
class _Cutoff(Source):
    source: Source
    cutoff: int

    def retrieve(self, queries: Queries) -> Iterator[Ranking]:
        for ranking in self.source.retrieve(queries):
            yield ranking.cut(self.cutoff)

    def limited(self, hits: int) -> Source | None:
        return _Cutoff(self.source, min(hits, self.cutoff))

    def most(self) -> int:
        return self.cutoff

    def describe(self) -> dict[str, Any]:
        return {**self.source.describe(), "cutoff": self.cutoff}


@dataclass(frozen=True)
class _Continued(Source):
    head: Source
    tail: Source

    def retrieve(self, queries: Queries) -> Iterator[Ranking]:
        known = list(as_queries(queries))
        tails, shared = tee(self.tail.retrieve(known))
        heads = _reuse_tail(self.head, self.tail, shared)
        if heads is None:
            del shared  # it would keep every ranking that the tail yields
            heads = self.head.retrieve(known)
        for head, tail in zip(heads, tails, strict=True):
            yield head.continued_by(tail)

    def describe(self) -> dict[str, Any]:
        return {"head": self.head.describe(), "tail": self.tail.describe()}


@dataclass(frozen=True)
class _Fused(Source):
    sources: tuple[Source, ...]
    k: int

    def retrieve(self, queries: Queries) -> Iterator[Ranking]:
        known = list(as_queries(queries))
        for rankings in zip(*(source.retrieve(known) for source in self.sources), strict=True):
            yield self._fused(rankings)

    def most(self) -> int | None:
        most = [source.most() for source in self.sources]
        return None if None in most else sum(limit for limit in most if limit is not None)

    def describe(self) -> dict[str, Any]:
        return {"stage": "rrf", "k": self.k, "sources": [source.describe() for source in self.sources]}

    def _fused(self, rankings: Sequence[Ranking]) -> Ranking:
        scores: dict[str, float] = {}
        found: dict[str, Candidate] = {}
        for ranking in rankings:
            for rank, candidate in enumerate(ranking.candidates, start=1):
                scores[candidate.docid] = scores.get(candidate.docid, 0.0) + 1 / (self.k + rank)
                if candidate.docid not in found or found[candidate.docid].text is None:
                    found[candidate.docid] = candidate  # a dense index may know no text where BM25 does
        candidates = (replace(found[docid], score=score) for docid, score in scores.items())
        return Ranking.from_scores(rankings[0].query, candidates)


def _reuse_tail(stage: Source, tail: Source, rankings: Iterator[Ranking]) -> Iterator[Ranking] | None:
    """Return what `stage` yields, made from the rankings of `tail`; None where `stage` does not start from `tail`.

    In ``bm25 % 20 >> headrank ^ bm25`` both sides search the same index: once is enough.
    """
    if isinstance(stage, Pipeline):
        fed = _reuse_tail(stage.source, tail, rankings)
        return None if fed is None else stage.reranked(fed)
    if stage == tail:
        return rankings
    cutoff = stage.most()
    if cutoff is None:
        return None
    if stage == tail % cutoff:
        return (ranking.cut(cutoff) for ranking in rankings)
    fed = _reuse_tail(stage.source, tail, rankings) if isinstance(stage, _Cutoff) else None
    return None if fed is None else (ranking.cut(cutoff) for ranking in fed)


@dataclass(frozen=True)
class _Chain(Reranker):
    first: Reranker
    second: Reranker

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        return self.second.rerank_batch(self.first.rerank_batch(rankings))

    def describe(self) -> dict[str, Any]:
        return {"first": self.first.describe(), "second": self.second.describe()}

    def origins(self) -> dict[str, str]:
        stages = {"first": self.first.origins(), "second": self.second.origins()}
        return {f"{stage}.{name}": place for stage, found in stages.items() for name, place in found.items()}


@dataclass(frozen=True)
class _CutReranker(Reranker):
    reranker: Reranker
    cutoff: int

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        return [ranking.cut(self.cutoff) for ranking in self.reranker.rerank_batch(rankings)]

    def describe(self) -> dict[str, Any]:
        return {**self.reranker.describe(), "output_cutoff": self.cutoff}

    def origins(self) -> dict[str, str]:
        return self.reranker.origins()


def _is_transformer(stage: object) -> bool:
    """Return whether a stage is PyTerrier's; nobody has one without having imported PyTerrier."""
    pyterrier = sys.modules.get("pyterrier")
    return pyterrier is not None and isinstance(stage, pyterrier.Transformer)


@dataclass(frozen=True)
class _Transformed(Reranker):
    """A PyTerrier transformer of results: what it returns for a query, in the order of its scores.

    It may drop candidates, and bring new ones. Texts that it leaves out of its frame are those that came in.
    """

    transformer: Any

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        import pandas as pd

        frames = [ranking.to_frame() for ranking in rankings if ranking.candidates]
        if not frames:
            return list(rankings)
        returned = self.transformer.transform(pd.concat(frames, ignore_index=True))
        found = {ranking.query.qid: ranking.candidates for ranking in Ranking.from_frame(returned)}
        return [self._with_texts(ranking, found.get(ranking.query.qid, ())) for ranking in rankings]

    def _with_texts(self, before: Ranking, after: Sequence[Candidate]) -> Ranking:
        known = {candidate.docid: candidate for candidate in before.candidates}
        kept = [
            replace(known[candidate.docid], score=candidate.score)
            if candidate.text is None and candidate.docid in known
            else candidate
            for candidate in after
        ]
        return replace(before, candidates=tuple(kept))

    def describe(self) -> dict[str, Any]:
        """Return what the transformer says of itself, which may be its class only."""
        return {"pyterrier": re.sub(r" at 0x[0-9a-f]+", "", repr(self.transformer))}


def _checked_cutoff(cutoff: object) -> int:
    if isinstance(cutoff, bool) or not isinstance(cutoff, Integral):
        raise TypeError(f"% takes a whole number of candidates, got {cutoff!r}")
    if cutoff < 1:
        raise ValueError(f"% {cutoff}: expected at least 1 candidate")
    return int(cutoff)  # NumPy's integers cannot be written into manifests


def _name(stage: object) -> str:
    return type(stage).__name__.lstrip("_") if isinstance(stage, Source | Reranker) else repr(stage)
