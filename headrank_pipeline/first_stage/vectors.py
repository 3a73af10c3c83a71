"""Dense first stage: a FAISS index, flat or HNSW, or a Lucene HNSW one, searched through Pyserini with an encoder."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from headrank_pipeline.first_stage.encoder import Encoder, load_encoder
from headrank_pipeline.first_stage.index import index_identity, is_index, refuse_unknown
from headrank_pipeline.first_stage.jvm import start_jvm
from headrank_pipeline.first_stage.lucene_vectors import LuceneVectors
from headrank_pipeline.first_stage.opening import found_index, open_prebuilt
from headrank_pipeline.first_stage.search import check_counts, index_source
from headrank_pipeline.first_stage.texts import PASSAGES_FILE, Lookup, passage_lookup, stored_passages
from headrank_pipeline.pipeline import Source, require_extra
from headrank_pipeline.records import Candidate, Query

__all__ = ["dense"]

_KIND = "a FAISS or Lucene HNSW index"
# Encoders of Pyserini's prebuilt indexes by the end of their names, with the settings of its own reproductions
# (2cr/beir.yaml and msmarco-v1-passage.yaml of 1.6.0); queries are cut where the models' positions end.
_BGE_PREFIX = "Represent this sentence for searching relevant passages:"
_PREBUILT = {
    ".bge-base-en-v1.5": Encoder("BAAI/bge-base-en-v1.5", "cls", True, query_prefix=_BGE_PREFIX, max_length=512),
    ".contriever": Encoder("facebook/contriever", "mean", False, max_length=512),
    ".contriever-msmarco": Encoder("facebook/contriever-msmarco", "mean", False, max_length=512),
}
_LUCENE_HNSW = (".hnsw", ".hnsw-int8")  # follow the encoder in the names of Lucene's prebuilt indexes
_WITHOUT_PREFIX = ("beir-v1.0.0-quora.", "beir-v1.0.0-arguana.")  # their queries are passages themselves

_log = logging.getLogger(__name__)


def dense(
    index: str | os.PathLike[str],
    encoder: Encoder | str | os.PathLike[str] | None = None,
    *,
    texts: str | os.PathLike[str] | None = None,
    hits: int = 1000,
    threads: int = 1,
    ef_search: int | None = None,
    remove_query: bool = False,
    exclude: Mapping[str, Collection[str]] | None = None,
) -> Source:
    """Return a dense first stage; Java and the encoder start when it first retrieves.

    Args:
        index: a folder of FAISS (``index`` and ``docid``) or of Lucene HNSW, as `build_dense_index`, Pyserini and
            Anserini make them, or the name of a prebuilt one.
        encoder: encoder of queries; default is the one that the folder was built with, or that Pyserini's reproductions
            use with a prebuilt index (BGE, Contriever).
        texts: where passages come from (see `passage_lookup`); default is what `build_dense_index` stored in the
            folder, or the Lucene index that Pyserini names for a prebuilt one.
        hits: candidates per query.
        threads: search threads of FAISS; Lucene answers one query after the other.
        ef_search: breadth of the search in an HNSW index, at least `hits`; default is the index's own, or 100 for
            Lucene's.
        remove_query: leave out the document whose docid is the qid.
        exclude: docids to leave out, per qid.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a folder without a dense index, no encoder, or another one than the folder was built with.
    """
    check_counts(ef_search=ef_search)
    place = _found(index)
    return index_source(
        _Vectors(place, _encoder(place, encoder), ef_search),
        hits=hits,
        threads=threads,
        texts=texts,
        remove_query=remove_query,
        exclude=exclude,
        own_texts=_own_texts(place),
    )


@dataclass
class _Vectors:
    """An index of vectors: Pyserini's FaissSearcher, or what looks like it, with the encoder of queries."""

    index: Path | str
    encoder: Encoder
    ef_search: int | None
    _opened: Any = field(default=None, init=False, compare=False, repr=False)

    def search(self, queries: Sequence[Query], limit: int, threads: int) -> Mapping[str, Iterator[Candidate]]:
        searcher = self.open()
        vectors = self.encoder.queries([query.text for query in queries])
        if vectors.shape[1] != searcher.dimension:
            raise ValueError(
                f"{self.index}: holds vectors of {searcher.dimension} dimensions, encoder {self.encoder.name} makes "
                f"{vectors.shape[1]}; give the encoder that the index was built with"
            )
        qids, most = [query.qid for query in queries], min(limit, searcher.num_docs)
        found = searcher.batch_search(vectors, qids, k=most, threads=threads)
        return {qid: (Candidate(hit.docid, float(hit.score)) for hit in hits) for qid, hits in found.items()}

    def describe(self) -> dict[str, Any]:
        return {
            "stage": "dense",
            "index": str(self.index),
            "index_identity": None if isinstance(self.index, str) else index_identity(self.index),
            "encoder": self.encoder.describe(),
            "ef_search": self.ef_search,
        }

    def open(self) -> Any:
        """Return the searcher; the first call starts Java, which importing pyserini's searchers needs."""
        start_jvm()
        if self._opened is None:
            folder = _downloaded(self.index) if isinstance(self.index, str) else str(self.index)
            opened: Any = LuceneVectors(folder, self.ef_search) if is_index(folder) else self._faiss(folder)
            _log.info("opened %s: %d vectors of %d dimensions", self.index, opened.num_docs, opened.dimension)
            self._opened = opened
        return self._opened

    def _faiss(self, folder: str) -> Any:
        require_extra("retrieval", "a FAISS index", "faiss")
        from pyserini.search.faiss import FaissSearcher

        try:
            opened = FaissSearcher(folder, self.encoder)  # searched with vectors: it never calls the encoder
        except (RuntimeError, AssertionError, UnicodeDecodeError, MemoryError) as error:
            told = str(error) or "vectors and docids are not equally many"
            raise ValueError(
                f"{self.index}: FAISS could not read this index: {told.splitlines()[-1]}; it is damaged or was cut "
                f"off: copy or build it again"
            ) from error
        if opened.index.metric_type != 0:
            raise ValueError(f"{self.index}: ranks by distance; expected a FAISS index of inner products")
        if self.ef_search is not None:
            if not hasattr(opened.index, "hnsw"):
                raise ValueError(f"{self.index}: ef_search is for HNSW indexes, this one is flat; drop it")
            opened.set_hnsw_ef_search(self.ef_search)
        return opened


def _found(index: str | os.PathLike[str]) -> Path | str:
    advice = f"build one with `headrank index --dense --corpus CORPUS --encoder ENCODER --output {index}`"
    place = found_index(index, advice)
    if isinstance(place, str):
        return place
    if is_index(place):
        if "collection" in (index_identity(place) or {}):
            raise ValueError(f"{place}: holds a BM25 index; search it with bm25, or {advice}")
        return place
    missing = [file for file in ("index", "docid") if not (place / file).is_file()]
    if missing:
        raise ValueError(
            f"{place}: holds neither a FAISS index (no file {' and no file '.join(missing)}) nor a Lucene index; "
            f"{advice}"
        )
    return place


def _encoder(place: Path | str, given: Encoder | str | os.PathLike[str] | None) -> Encoder:
    identity = (None if isinstance(place, str) else index_identity(place)) or {}
    built_with: dict[str, Any] = dict(identity.get("encoder") or {})
    weights = built_with.pop("weights_sha256", None)
    if given is None and isinstance(place, str):
        return _published_encoder(place)
    if given is None:
        if not built_with:
            raise ValueError(f"{place}: does not say which encoder it was built with; name it (encoder=FOLDER)")
        chosen = Encoder(**built_with)
    elif isinstance(given, Encoder):
        chosen = given
    else:
        # The folder may have moved; the settings of the index hold, its weights are compared below.
        chosen = replace(Encoder(**built_with), name=os.fspath(given)) if built_with else load_encoder(given)
    if built_with and chosen.describe()["weights_sha256"] != weights:
        raise ValueError(
            f"{place}: was built with the encoder {built_with['name']}, and {chosen.name} has other weights or is not "
            f"there; give that encoder's folder, or build the index anew"
        )
    return chosen


def _published_encoder(name: str) -> Encoder:
    stem = next((name.removesuffix(ending) for ending in _LUCENE_HNSW if name.endswith(ending)), name)
    for ending, encoder in _PREBUILT.items():
        if stem.endswith(ending):
            return replace(encoder, query_prefix=None) if name.startswith(_WITHOUT_PREFIX) else encoder
    raise ValueError(
        f"{name}: which encoder its queries need is not known here (known: *{', *'.join(_PREBUILT)}); name it "
        f"(encoder=FOLDER)"
    )


def _own_texts(place: Path | str) -> Lookup | None:
    if isinstance(place, Path):
        return stored_passages(place) if (place / PASSAGES_FILE).is_file() else None

    @lru_cache(maxsize=1)
    def opened() -> Lookup:
        known = _catalogue()
        refuse_unknown(place, known, _KIND)
        return passage_lookup(known[place]["texts"])

    return lambda docids: opened()(docids)


def _catalogue() -> dict[str, Any]:
    start_jvm()
    from pyserini.prebuilt_index_info import FAISS_INDEX_INFO, LUCENE_HNSW_INDEX_INFO

    return {**FAISS_INDEX_INFO, **LUCENE_HNSW_INDEX_INFO}


def _downloaded(name: str) -> str:
    from pyserini.util import download_prebuilt_index

    folder: str = open_prebuilt(name, _catalogue(), _KIND, download_prebuilt_index)
    return folder
