"""BM25 through Pyserini: a local index or one of Pyserini's prebuilt ones."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrank_pipeline.first_stage.index import ENGLISH, check_language, index_identity, index_language
from headrank_pipeline.first_stage.opening import LuceneIndex, found_words
from headrank_pipeline.first_stage.search import index_source
from headrank_pipeline.passages import passage_from_raw
from headrank_pipeline.pipeline import Source
from headrank_pipeline.records import Candidate, Query

__all__ = ["bm25"]


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
        language: language of the analyzer ("de", "zh"). None takes what `build_index` noted, and English for all other
            indexes, Pyserini's prebuilt ones included, which do not say what they were built for.
        remove_query: leave out the document whose docid is the qid (ArguAna, Quora). Pyserini itself never does.
        exclude: docids to leave out, per qid (BRIGHT).

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a folder without a Lucene index, a parameter out of range, a language that has no analyzer or is
            not the index's.
    """
    if not (0 <= k1 < math.inf and 0 <= b <= 1):
        raise ValueError(f"k1 {k1}, b {b}: expected a finite k1 of at least 0 and b between 0 and 1")
    for name, boost in (fields or {}).items():
        if not 0 < boost < math.inf:
            raise ValueError(f"fields: {name} has the boost {boost}; expected a number above 0")
    place = found_words(index, f"build one with `headrank index --corpus CORPUS --output {index}`")
    searcher = _Bm25(LuceneIndex(place, _language(place, language)), float(k1), float(b), fields or {})
    return index_source(
        searcher,
        hits=hits,
        threads=threads,
        texts=texts,
        remove_query=remove_query,
        exclude=exclude,
        states_texts=False,  # most indexes of words store their documents
    )


def _check_fields(fields: Mapping[str, float], called: str, folder: str) -> None:
    """Raise ValueError for a field that an index lacks: Lucene would find nothing there, and say nothing."""
    from jnius import autoclass
    from pyserini.index.lucene import LuceneIndexReader

    reader = LuceneIndexReader(folder).reader
    indexed = autoclass("org.apache.lucene.index.FieldInfos").getIndexedFields(reader).toArray()
    reader.close()
    known = sorted({str(name) for name in indexed} - {"id"})
    if unknown := [name for name in fields if name not in known]:
        raise ValueError(
            f"{called}: no field {unknown[0]!r} to search, it has {', '.join(known)}; headrank index --multifield "
            f"makes a field of the titles"
        )


@dataclass
class _Bm25:
    """An index of words, searched with BM25."""

    words: LuceneIndex
    k1: float
    b: float
    fields: Mapping[str, float]

    @property
    def index(self) -> Path | str:
        return self.words.index

    def open(self) -> Any:
        return self.words.open()

    def search(self, queries: Sequence[Query], limit: int, threads: int) -> Mapping[str, Iterator[Candidate]]:
        searcher = self.open()
        if self.fields:
            _check_fields(self.fields, str(self.index), searcher.index_dir)
        searcher.set_bm25(self.k1, self.b)
        texts, qids = [query.text for query in queries], [query.qid for query in queries]
        from jnius import JavaException

        try:
            found = searcher.batch_search(texts, qids, k=limit, threads=threads, fields=dict(self.fields))
        except JavaException as error:
            raise RuntimeError(f"{self.index}: Java failed on a qid of {', '.join(qids)}: {error}") from error
        return {qid: map(_candidate, hits) for qid, hits in found.items()}

    def describe(self) -> dict[str, Any]:
        identity = None if isinstance(self.index, str) else index_identity(self.index)
        language = self.words.language
        return {
            "stage": "bm25",
            "index": str(self.index),
            "index_identity": identity,
            "docs": identity["docs"] if identity else int(self.open().num_docs),
            "k1": self.k1,
            "b": self.b,
            "fields": dict(self.fields),
            **({} if language == ENGLISH else {"language": language}),
        }


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
