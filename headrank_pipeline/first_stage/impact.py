"""Impact first stage (SPLADE and its kin): a Lucene index of term weights, searched with a query encoder."""

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

from headrank_pipeline.files import file_sha256
from headrank_pipeline.first_stage.index import is_index, refuse_unknown, refuse_vectors
from headrank_pipeline.first_stage.jvm import reading_index, start_jvm, versions
from headrank_pipeline.first_stage.removal import Removal
from headrank_pipeline.first_stage.texts import Lookup, passage_lookup, with_texts
from headrank_pipeline.pipeline import Queries, Source, as_queries
from headrank_pipeline.records import Candidate, Query, Ranking

__all__ = ["impact"]

_CHUNK = 32
_ONNX = "onnx:"
_FAMILIES = ("unicoil", "splade", "slim")  # by these words in its name Pyserini chooses an encoder's class

_log = logging.getLogger(__name__)


def impact(
    index: str | os.PathLike[str],
    encoder: str | os.PathLike[str] | None = None,
    *,
    texts: str | os.PathLike[str] | None = None,
    hits: int = 1000,
    threads: int = 1,
    remove_query: bool = False,
    exclude: Mapping[str, Collection[str]] | None = None,
) -> Source:
    """Return an impact first stage; Java and the encoder start when it first retrieves.

    Impact indexes store no documents: without `texts` candidates have none, and no reranker can read them.

    Args:
        index: a folder with a Lucene impact index, or the name of a prebuilt one ("beir-v1.0.0-scifact.splade-v3").
        encoder: of queries: a folder or Hugging Face name with unicoil, splade or slim in it; a JSONL file of weighted
            queries (``contents``, ``vector``); ``onnx:`` and one of Anserini's names ("onnx:SpladeV3"), which runs in
            Java; None takes the words of the query as they stand. Words that every document has are left out.
        texts: where passages come from, see `passage_lookup`.
        hits: candidates per query.
        threads: queries searched at once.
        remove_query: leave out the document whose docid is the qid.
        exclude: docids to leave out, per qid.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a folder without a Lucene index, or an encoder of no known kind.
    """
    for name, value in (("hits", hits), ("threads", threads)):
        if value < 1:
            raise ValueError(f"{name} {value}: expected at least 1")
    chosen = None if encoder is None else os.fspath(encoder)
    _check_encoder(chosen)
    place = _resolved(index)
    searcher = _Searcher(place, chosen)
    lookup = None if texts is None else passage_lookup(texts)
    texts_name = None if texts is None else os.fspath(texts)
    return _Impact(searcher, hits, threads, texts_name, Removal(remove_query, exclude or {}), lookup)


@dataclass(frozen=True)
class _Impact(Source):
    searcher: _Searcher
    hits: int
    threads: int
    texts: str | None
    removal: Removal
    lookup: Lookup | None = field(compare=False, repr=False)

    def retrieve(self, queries: Queries) -> Iterator[Ranking]:
        known = as_queries(queries)
        while chunk := list(islice(known, _CHUNK)):
            found = self._search(chunk)
            for query in chunk:
                if query.qid not in found:  # a searching thread that dies leaves its query out without an exception
                    raise RuntimeError(f"{self.searcher.index}: Pyserini returned nothing for qid {query.qid}")
                yield self._ranking(query, found[query.qid])

    def limited(self, hits: int) -> Source:
        return replace(self, hits=min(hits, self.hits))

    def most(self) -> int:
        return self.hits

    def describe(self) -> dict[str, Any]:
        return {
            "stage": "impact",
            **self.searcher.describe(),
            "hits": self.hits,
            "texts": self.texts,
            **self.removal.describe(),
            **versions(),
        }

    def _search(self, chunk: Sequence[Query]) -> dict[str, Any]:
        limit = self.hits + self.removal.spare(chunk)
        texts, qids = [query.text for query in chunk], [query.qid for query in chunk]
        searcher = self.searcher.open()
        with reading_index(self.searcher.index):
            found: dict[str, Any] = searcher.batch_search(texts, qids, k=limit, threads=self.threads)
        return found

    def _ranking(self, query: Query, found: Sequence[Any]) -> Ranking:
        removed = self.removal.of(query.qid)
        kept = islice((hit for hit in found if hit.docid not in removed), self.hits)
        candidates = [Candidate(hit.docid, float(hit.score)) for hit in kept]
        if self.lookup is None:
            return Ranking(query, tuple(candidates))
        return Ranking(query, with_texts(candidates, self.lookup, str(self.texts)))


@dataclass
class _Searcher:
    """One open LuceneImpactSearcher, shared by a source and its cutoffs."""

    index: Path | str
    encoder: str | None
    _opened: Any = field(default=None, compare=False, repr=False)

    def describe(self) -> dict[str, Any]:
        """Return what determines its scores; a file of weighted queries by its checksum."""
        file = self.encoder is not None and Path(self.encoder).is_file()
        return {
            "index": str(self.index),
            "encoder": self.encoder,
            "encoder_sha256": file_sha256(str(self.encoder)) if file else None,
        }

    def open(self) -> Any:
        """Return the searcher; the first call starts Java and loads the encoder."""
        start_jvm()
        if self._opened is None:
            from jnius import JavaException
            from pyserini.search.lucene import LuceneImpactSearcher

            settings = _settings(self.encoder)
            try:
                if isinstance(self.index, Path):
                    self._opened = LuceneImpactSearcher(str(self.index), *settings)
                else:
                    self._opened = self._prebuilt(self.index, LuceneImpactSearcher, settings)
            except JavaException as error:
                if "onnx" not in settings:
                    with reading_index(self.index):
                        raise
                raise FileNotFoundError(
                    f"encoder {self.encoder!r}: Anserini could not start it; expected a name it knows, and a network "
                    f"where the model was not fetched before: {error}"
                ) from error
            _log.info("opened %s: %d documents", self.index, self._opened.num_docs)
        return self._opened

    def _prebuilt(self, name: str, searcher: Any, settings: tuple[Any, ...]) -> Any:
        from pyserini.prebuilt_index_info import IMPACT_INDEX_INFO

        refuse_unknown(name, IMPACT_INDEX_INFO, "an impact index")
        with contextlib.redirect_stdout(sys.stderr):  # it prints, download errors included, and then returns None
            opened = searcher.from_prebuilt_index(name, *settings)
        if opened is None:
            raise FileNotFoundError(
                f"prebuilt index {name!r}: Pyserini could not download it, its message is above; give the folder of an "
                f"impact index that is here"
            )
        return opened


def _settings(encoder: str | None) -> tuple[str | None, float, str]:
    """Return Pyserini's own: encoder, least idf of a word of the query (its default), and what runs the encoder."""
    if encoder is not None and encoder.startswith(_ONNX):
        return encoder.removeprefix(_ONNX), 0.0, "onnx"
    return encoder, 0.0, "pytorch"


def _check_encoder(encoder: str | None) -> None:
    if encoder == _ONNX:
        raise ValueError(f"encoder {encoder!r}: expected a name of Anserini's after it, for example 'onnx:SpladeV3'")
    if encoder is None or encoder.startswith(_ONNX) or Path(encoder).is_file():
        return
    if not any(family in encoder.lower() for family in _FAMILIES):
        raise ValueError(
            f"encoder {encoder!r}: neither a file of weighted queries nor a name with {', '.join(_FAMILIES)} in it, by "
            f"which Pyserini knows how to run it"
        )


def _resolved(index: str | os.PathLike[str]) -> Path | str:
    path, name = Path(index), os.fspath(index)
    if path.is_dir():
        refuse_vectors(path)
        if not is_index(path):
            raise ValueError(f"{path}: holds no Lucene index (no file segments_*)")
        return path
    if isinstance(index, Path) or os.sep in name or name.startswith((".", "~")):
        raise FileNotFoundError(f"{path}: no such index folder; give one, or the name of a Pyserini impact index")
    return name
