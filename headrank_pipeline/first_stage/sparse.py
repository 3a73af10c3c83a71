"""Impact first stage (SPLADE and its kin): a Lucene index of term weights, searched with a query encoder."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrank_pipeline.files import file_sha256
from headrank_pipeline.first_stage.jvm import reading_index, start_jvm
from headrank_pipeline.first_stage.opening import found_words, open_prebuilt
from headrank_pipeline.first_stage.search import index_source
from headrank_pipeline.pipeline import Source
from headrank_pipeline.records import Candidate, Query

__all__ = ["impact"]

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
        encoder: encoder of queries: a folder or Hugging Face name with unicoil, splade or slim in it; a JSONL file of
            weighted queries (``contents``, ``vector``); or ``onnx:`` and one of Anserini's names ("onnx:SpladeV3"),
            which runs in Java. None takes the words of the query as they stand. Words that every document has are left
            out.
        texts: where passages come from, see `passage_lookup`.
        hits: candidates per query.
        threads: queries searched at once.
        remove_query: leave out the document whose docid is the qid.
        exclude: docids to leave out, per qid.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a folder without a Lucene index, or an encoder of no known kind.
    """
    chosen = None if encoder is None else os.fspath(encoder)
    _check_encoder(chosen)
    searcher = _Impact(found_words(index, "give the folder of an impact index"), chosen)
    return index_source(searcher, hits=hits, threads=threads, texts=texts, remove_query=remove_query, exclude=exclude)


@dataclass
class _Impact:
    """An index of term weights."""

    index: Path | str
    encoder: str | None
    _opened: Any = field(default=None, init=False, compare=False, repr=False)

    def search(self, queries: Sequence[Query], limit: int, threads: int) -> Mapping[str, Iterator[Candidate]]:
        texts, qids = [query.text for query in queries], [query.qid for query in queries]
        searcher = self.open()
        with reading_index(self.index):
            found = searcher.batch_search(texts, qids, k=limit, threads=threads)
        return {qid: (Candidate(hit.docid, float(hit.score)) for hit in hits) for qid, hits in found.items()}

    def describe(self) -> dict[str, Any]:
        """Return what determines its scores; a file of weighted queries by its checksum."""
        file = self.encoder is not None and Path(self.encoder).is_file()
        return {
            "stage": "impact",
            "index": str(self.index),
            "encoder": self.encoder,
            "encoder_sha256": file_sha256(str(self.encoder)) if file else None,
        }

    def open(self) -> Any:
        """Return the searcher; the first call starts Java and loads the encoder."""
        start_jvm()
        if self._opened is None:
            from jnius import JavaException
            from pyserini.prebuilt_index_info import IMPACT_INDEX_INFO
            from pyserini.search.lucene import LuceneImpactSearcher

            settings = _settings(self.encoder)
            try:
                if isinstance(self.index, Path):
                    self._opened = LuceneImpactSearcher(str(self.index), *settings)
                else:
                    self._opened = open_prebuilt(
                        self.index,
                        IMPACT_INDEX_INFO,
                        "an impact index",
                        lambda name: LuceneImpactSearcher.from_prebuilt_index(name, *settings),
                    )
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
