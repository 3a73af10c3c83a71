"""RerankingSearcher: a Pyserini searcher whose hits come back reranked.

Pyserini has no interface for rerankers that read text; what its code relies on is the searcher's methods and hits with
``docid`` and ``score``, and often ``lucene_document``. They are kept here, so that code that searches with a
``LuceneSearcher`` runs unchanged. What sets a searcher up (``set_bm25``, ``set_rm3``) is called on the first stage.

Importing Pyserini takes Java 21. Where the machine has none, the runtime that comes with this package serves:

    from headrank_pipeline.first_stage import start_jvm
    start_jvm()
    from pyserini.search.lucene import LuceneSearcher
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from os import PathLike
from typing import Any, Protocol

from headrank_pipeline.passages import passage_from_raw
from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import six_decimal_scores

__all__ = ["Hit", "RerankingSearcher", "Searcher"]


_TEXTS_HINT = "pass texts=LuceneSearcher(INDEX) with an index of the same collection that stores passages"


class Searcher(Protocol):
    """What is used of a Pyserini searcher; hits need ``docid`` and ``score``, documents ``raw()``."""

    num_docs: int

    def search(self, q: str, k: int = ..., *arguments: Any, **options: Any) -> Iterable[Any]:
        """Return hits, best first."""

    def batch_search(
        self, queries: list[str], qids: list[str], k: int = ..., threads: int = ..., *arguments: Any, **options: Any
    ) -> Mapping[str, Iterable[Any]]:
        """Return hits per qid."""

    def doc(self, docid: str | int) -> Any:
        """Return a document, or None."""

    def batch_doc(self, docids: list[str], threads: int) -> Mapping[str, Any]:
        """Return the documents that exist, by docid."""

    def close(self) -> None:
        """Close the index."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One hit after reranking; ``docid`` and ``score`` are what Pyserini's output writer reads.

    Args:
        docid: identifier.
        score: strictly decreasing from hit to hit, also once printed with six decimals, so that a run written by
            Pyserini evaluates in this order.
        raw_score: what the reranker said, or the continued first-stage score below the depth.
        text: the passage; None below the depth, where it was not fetched.
        title: the title, or None.
        first_score: the first stage's score.
        first_rank: the first stage's rank, from 1.
        first_hit: the first stage's own hit.
    """

    docid: str
    score: float
    raw_score: float
    text: str | None
    title: str | None
    first_score: float
    first_rank: int
    first_hit: Any = field(repr=False, compare=False)

    @property
    def lucene_document(self) -> Any:
        """Lucene's document, as Pyserini's hits have it; AttributeError where the first stage's have none."""
        return self.first_hit.lucene_document


class RerankingSearcher:
    """A Pyserini searcher and a reranker behind the searcher's own methods.

    Args:
        first_stage: a searcher of Pyserini: ``LuceneSearcher``, ``LuceneImpactSearcher``, …; it is not changed.
        reranker: gives the best `depth` hits new scores.
        depth: how many hits are reranked; those below follow in their order, with continuing scores. What a reranker
            with a threshold leaves out of them is no hit.
        texts: the searcher whose documents hold the text, for a first stage whose index does not (SPLADE, dense,
            ``-slim``); default is the first stage.

    Raises:
        TypeError: a path or name in place of a searcher or reranker, or a depth that is no whole number.
        ValueError: a depth below 1, or a searcher without documents (FAISS) and no `texts`.
    """

    def __init__(
        self, first_stage: Searcher, reranker: Reranker, *, depth: int = 100, texts: Searcher | None = None
    ) -> None:
        if not isinstance(reranker, Reranker) or isinstance(first_stage, str | PathLike):
            raise TypeError(f"expected a searcher and a reranker, got {first_stage!r} and {reranker!r}")
        _check_hits("depth", depth)
        self.first_stage = first_stage
        self.reranker = reranker
        self.depth = depth
        self.texts = first_stage if texts is None else texts
        if not hasattr(self.texts, "batch_doc"):
            raise ValueError(
                f"{type(self.texts).__name__} has no documents (no batch_doc) to take texts from; {_TEXTS_HINT}"
            )

    @property
    def num_docs(self) -> int:
        """Documents in the first stage's index."""
        return self.first_stage.num_docs

    def search(self, q: str, k: int = 10, *arguments: Any, **options: Any) -> list[Hit]:
        """Return the best `k` hits after reranking.

        Args:
            q: the query's text.
            k: hits to return.
            *arguments: handed to the first stage's ``search``.
            **options: handed to the first stage's ``search`` (``fields``, ``query_generator``, …).

        Raises:
            TypeError: a Lucene query object, which has no text to rerank with.
            ValueError: an empty query, a `k` below 1, or a hit whose text cannot be had.
        """
        _check_text(q)
        _check_hits("k", k)
        found = self.first_stage.search(q, max(k, self.depth), *arguments, **options)
        return self._reranked([(Query("search", q), list(found))], k, threads=1)[0]

    def batch_search(
        self,
        queries: Sequence[str],
        qids: Sequence[str],
        k: int = 10,
        threads: int = 1,
        *arguments: Any,
        **options: Any,
    ) -> dict[str, list[Hit]]:
        """Return the best `k` hits after reranking, per qid and in the order of the qids.

        Args:
            queries: texts.
            qids: their ids, strings.
            k: hits to return.
            threads: search threads of the first stage.
            *arguments: handed to the first stage's ``batch_search``.
            **options: handed to the first stage's ``batch_search``.

        Raises:
            TypeError: a Lucene query object or an id that is not a string.
            ValueError: another number of queries than of qids, a qid given twice, an empty query, a `k` below 1, or a
                hit whose text cannot be had.
        """
        _check_hits("k", k)
        if len(queries) != len(qids) or len(set(qids)) != len(qids):
            raise ValueError(
                f"{len(queries)} queries and {len(set(qids))} different qids of {len(qids)}: expected equal"
            )
        for text in queries:
            _check_text(text)
        asked = [Query(qid, text) for qid, text in zip(qids, queries, strict=True)]
        depth = max(k, self.depth)
        found = self.first_stage.batch_search(list(queries), list(qids), depth, threads, *arguments, **options)
        if lost := [qid for qid in qids if qid not in found]:
            raise RuntimeError(f"the first stage returned nothing for qid {lost[0]} and {len(lost) - 1} more")
        answers = [(query, list(found[query.qid])) for query in asked]
        return dict(zip(qids, self._reranked(answers, k, threads), strict=True))

    def doc(self, docid: str | int) -> Any:
        """Return Pyserini's document: a string is the collection's docid, a number Lucene's internal one."""
        return self.texts.doc(docid)

    def batch_doc(self, docids: Sequence[str], threads: int) -> Mapping[str, Any]:
        """Return Pyserini's documents by docid; docids that do not exist are left out."""
        return self.texts.batch_doc(list(docids), threads)

    def close(self) -> None:
        """Close the first stage."""
        self.first_stage.close()

    def _reranked(self, answers: Sequence[tuple[Query, list[Any]]], k: int, threads: int) -> list[list[Hit]]:
        firsts = [_ranking(query, found) for query, found in answers]
        heads = self._with_text([first.cut(self.depth) for first in firsts], threads)
        reranked = self.reranker.rerank_batch(heads)
        return [
            _hits(head, first, found, self.depth)[:k]
            for head, first, (_, found) in zip(reranked, firsts, answers, strict=True)
        ]

    def _with_text(self, heads: Sequence[Ranking], threads: int) -> list[Ranking]:
        docids = list(dict.fromkeys(docid for head in heads for docid in head.docids))
        documents = self.texts.batch_doc(docids, threads) if docids else {}
        passages = {docid: _passage(documents.get(docid), docid) for docid in docids}
        return [
            replace(head, candidates=tuple(_with_passage(c, *passages[c.docid]) for c in head.candidates))
            for head in heads
        ]


def _ranking(query: Query, found: Iterable[Any]) -> Ranking:
    return Ranking(query, tuple(Candidate(hit.docid, float(hit.score)) for hit in found))


def _hits(head: Ranking, first: Ranking, found: Sequence[Any], depth: int) -> list[Hit]:
    # What the reranker left out of the head, below its threshold, stays out.
    below = replace(first, candidates=first.candidates[depth:])
    places = {docid: place for place, docid in enumerate(first.docids)}
    whole = head.continued_by(below)
    hits = []
    for c, score in zip(whole.candidates, six_decimal_scores(whole.scores), strict=True):
        place = places[c.docid]
        hits.append(Hit(c.docid, score, c.score, c.text, c.title, first.scores[place], place + 1, found[place]))
    return hits


def _with_passage(candidate: Candidate, title: str | None, text: str) -> Candidate:
    return replace(candidate, title=title, text=text)


def _passage(document: Any, docid: str) -> tuple[str | None, str]:
    raw = None if document is None else document.raw()
    if raw is None:
        problem = "is not in the index" if document is None else "has no stored text (raw) in the index"
        raise ValueError(
            f"docid {docid} {problem} that texts come from; SPLADE, dense and -slim indexes store none: {_TEXTS_HINT}"
        )
    return passage_from_raw(raw, docid)


def _check_hits(name: str, hits: object) -> None:
    """A slice to -1 would leave out the last hit without a word; Lucene refuses such a number."""
    if isinstance(hits, bool) or not isinstance(hits, Integral):
        raise TypeError(f"{name} {hits!r}: expected a whole number of hits, got {type(hits).__name__}")
    if hits < 1:
        raise ValueError(f"{name} {hits}: expected at least 1 hit")


def _check_text(q: object) -> None:
    if not isinstance(q, str):
        raise TypeError(f"query {q!r}: expected its text, got {type(q).__name__}; a reranker reads the words")
