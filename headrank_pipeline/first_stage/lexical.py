"""BM25 through Pyserini: a local index or one of Pyserini's prebuilt ones."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from headrank_pipeline.first_stage.index import (
    ENGLISH,
    check_language,
    index_identity,
    index_language,
    is_index,
    refuse_unknown,
    refuse_vectors,
)
from headrank_pipeline.first_stage.jvm import reading_index, start_jvm, versions
from headrank_pipeline.first_stage.removal import Removal
from headrank_pipeline.first_stage.texts import Lookup, passage_lookup, with_texts
from headrank_pipeline.passages import passage_from_raw
from headrank_pipeline.pipeline import Queries, Source, as_queries
from headrank_pipeline.records import Candidate, Query, Ranking

__all__ = ["bm25"]

# Queries handed to one batch_search call: enough to keep the threads busy, few enough that memory stays small.
_CHUNK = 32
_MOST_WORDS = 2**16

_log = logging.getLogger(__name__)


def bm25(
    index: str | os.PathLike[str],
    *,
    k1: float = 0.9,
    b: float = 0.4,
    texts: str | os.PathLike[str] | None = None,
    hits: int = 1000,
    threads: int = 1,
    fields: Mapping[str, float] | None = None,
    language: str | None = None,
    remove_query: bool = False,
    exclude: Mapping[str, Collection[str]] | None = None,
) -> Source:
    """Return a BM25 first stage; Java starts when it first retrieves, not here.

    Candidates carry title and text where the index stores them (``raw``), else from `texts`. Documents are removed
    before the cutoff, so that `hits` candidates remain where the collection has them.

    Args:
        index: a folder with a Lucene index, or the name of a prebuilt one ("beir-v1.0.0-scifact.flat"), which Pyserini
            downloads on first use.
        k1: term frequency saturation. Pyserini's command line uses other values for some MS MARCO indexes.
        b: length normalisation.
        texts: where passages come from that the index does not store (``-slim``), see `passage_lookup`.
        hits: candidates per query.
        threads: queries searched at once.
        fields: field boosts of a multifield index, ``{"contents": 1.0, "title": 1.0}``; default is ``contents`` alone.
        language: of the analyzer ("de", "zh"). None: the one that `build_index` noted; English for all other indexes,
            Pyserini's prebuilt ones included, which do not say what they were built for.
        remove_query: leave out the document whose docid is the qid (ArguAna, Quora). Pyserini itself never does.
        exclude: docids to leave out, per qid (BRIGHT).

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a folder without a Lucene index, a parameter out of range, a language that has no analyzer or is
            not the index's.
    """
    for name, value in (("hits", hits), ("threads", threads)):
        if value < 1:
            raise ValueError(f"{name} {value}: expected at least 1")
    if not (k1 >= 0 and 0 <= b <= 1):
        raise ValueError(f"k1 {k1}, b {b}: expected k1 of at least 0 and b between 0 and 1")
    removal = Removal(remove_query, exclude or {})
    boosts = tuple((fields or {}).items())
    resolved = _resolved(index)
    spoken = _language(resolved, language)
    searcher = _Searcher(resolved, spoken)
    lookup = None if texts is None else passage_lookup(texts)
    named = None if texts is None else os.fspath(texts)
    return _Bm25(searcher.index, float(k1), float(b), hits, threads, boosts, spoken, removal, named, lookup, searcher)


@dataclass(frozen=True)
class _Bm25(Source):
    index: Path | str
    k1: float
    b: float
    hits: int
    threads: int
    fields: tuple[tuple[str, float], ...]
    language: str
    removal: Removal
    texts: str | None
    lookup: Lookup | None = field(compare=False, repr=False)
    searcher: _Searcher = field(compare=False, repr=False)

    def retrieve(self, queries: Queries) -> Iterator[Ranking]:
        known = as_queries(queries)
        while chunk := list(islice(known, _CHUNK)):
            found = self._search(chunk)
            for query in chunk:
                if query.qid not in found:  # a searching thread that dies leaves its query out without an exception
                    raise RuntimeError(
                        f"{self.index}: Pyserini returned nothing for qid {query.qid}; see Java's message"
                    )
                yield self._ranking(query, found[query.qid])

    def limited(self, hits: int) -> Source:
        return replace(self, hits=min(hits, self.hits))

    def most(self) -> int:
        return self.hits

    def describe(self) -> dict[str, Any]:
        identity = None if isinstance(self.index, str) else index_identity(self.index)
        docs = identity["docs"] if identity else int(self.searcher.open().num_docs)
        return {
            "stage": "bm25",
            "index": str(self.index),
            "index_identity": identity,
            "docs": docs,
            "k1": self.k1,
            "b": self.b,
            "hits": self.hits,
            "fields": dict(self.fields),
            **({} if self.language == ENGLISH else {"language": self.language}),
            **self.removal.describe(),
            **({"texts": self.texts} if self.texts else {}),
            **versions(),
        }

    def _search(self, chunk: Sequence[Query]) -> dict[str, Any]:
        searcher = self.searcher.open()
        searcher.set_bm25(self.k1, self.b)
        limit = self.hits + self.removal.spare(chunk)
        texts, qids = [query.text for query in chunk], [query.qid for query in chunk]
        from jnius import JavaException

        try:
            found: dict[str, Any] = searcher.batch_search(
                texts, qids, k=limit, threads=self.threads, fields=dict(self.fields)
            )
        except JavaException as error:
            raise RuntimeError(f"{self.index}: Java failed on a qid of {', '.join(qids)}: {error}") from error
        return found

    def _ranking(self, query: Query, found: Sequence[Any]) -> Ranking:
        removed = self.removal.of(query.qid)
        kept = islice((hit for hit in found if hit.docid not in removed), self.hits)
        candidates = [_candidate(hit) for hit in kept]
        if self.lookup is not None:
            stored = {candidate.docid: candidate for candidate in candidates if candidate.text is not None}
            missing = [candidate for candidate in candidates if candidate.text is None]
            stored |= {known.docid: known for known in with_texts(missing, self.lookup, str(self.texts))}
            candidates = [stored[candidate.docid] for candidate in candidates]
        return Ranking(query, tuple(candidates))


class _Searcher:
    """One open LuceneSearcher, shared by a source and its cutoffs."""

    def __init__(self, index: Path | str, language: str) -> None:
        self.index, self.language = index, language
        self._opened: Any = None

    def open(self) -> Any:
        """Return the searcher; the first call starts Java, and every call checks that this is no forked child."""
        start_jvm()
        if self._opened is None:
            import jnius

            if isinstance(self.index, str):
                self._opened = _prebuilt(self.index)
            else:
                from pyserini.search.lucene import LuceneSearcher

                with reading_index(self.index):
                    self._opened = LuceneSearcher(str(self.index))
            if self.language != ENGLISH:
                self._opened.set_language(self.language)
            # Lucene refuses queries of more than 1024 different words; a long question as a query has more.
            jnius.autoclass("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(_MOST_WORDS)
            _log.info("opened %s: %d documents", self.index, self._opened.num_docs)
        return self._opened


def _candidate(hit: Any) -> Candidate:
    """Return the candidate of a Pyserini hit; the one place that knows the hit classes of 1.x and 2.x.

    Both give ``io.anserini.search.ScoredDoc`` with a Lucene document; releases before 0.25 gave ``.raw`` instead. An
    index without stored documents (``-slim``) leaves the text unknown.
    """
    document = getattr(hit, "lucene_document", None)
    raw = document.get("raw") if document is not None else getattr(hit, "raw", None)
    if raw is None:
        return Candidate(hit.docid, float(hit.score))
    title, text = passage_from_raw(raw, hit.docid)
    return Candidate(hit.docid, float(hit.score), text, title)


def _resolved(index: str | os.PathLike[str]) -> Path | str:
    """Return a folder that holds an index, or the name of a prebuilt one, which is not checked yet."""
    path = Path(index)
    if path.is_dir():
        refuse_vectors(path)
        if not is_index(path):
            raise ValueError(
                f"{path}: holds no Lucene index (no file segments_*); build one with "
                f"`headrank index --corpus CORPUS --output {path}`"
            )
        return path
    name = os.fspath(index)
    if isinstance(index, Path) or os.sep in name or name.startswith((".", "~")):
        raise FileNotFoundError(
            f"{path}: no such index folder; build one with `headrank index --corpus CORPUS --output {path}`, "
            f"or give the name of a Pyserini index"
        )
    return name


def _language(index: Path | str, asked: str | None) -> str:
    known = None if isinstance(index, str) else index_language(index)
    if asked is None:
        return known or ENGLISH
    check_language(asked)
    if known not in (None, asked):
        raise ValueError(
            f"{index}: built for the language {known!r}, asked for {asked!r}; leave it out, or build an index of the "
            f"corpus with `headrank index --language {asked}`"
        )
    return asked


def _prebuilt(name: str) -> Any:
    from pyserini.prebuilt_index_info import TF_INDEX_INFO
    from pyserini.search.lucene import LuceneSearcher

    refuse_unknown(name, TF_INDEX_INFO, "a BM25 index")
    with contextlib.redirect_stdout(sys.stderr):  # it prints, download errors included, and then returns None
        searcher = LuceneSearcher.from_prebuilt_index(name)
    if searcher is None:
        raise FileNotFoundError(
            f"prebuilt index {name!r}: Pyserini could not download it, its message is above; on a machine without "
            f"network build an index from a corpus with `headrank index` and give its folder"
        )
    return searcher
