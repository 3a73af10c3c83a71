"""Dense first stage: a FAISS index, flat or HNSW, or a Lucene HNSW one, searched through Pyserini with an encoder."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from headrank_pipeline.first_stage.encoder import Encoder, load_encoder
from headrank_pipeline.first_stage.index import index_identity, is_index, refuse_unknown
from headrank_pipeline.first_stage.jvm import start_jvm, versions
from headrank_pipeline.first_stage.lucene_vectors import LuceneVectors
from headrank_pipeline.first_stage.removal import Removal
from headrank_pipeline.first_stage.texts import PASSAGES_FILE, Lookup, passage_lookup, stored_passages, with_texts
from headrank_pipeline.pipeline import Queries, Source, as_queries, require_extra
from headrank_pipeline.records import Candidate, Query, Ranking

__all__ = ["dense"]

_CHUNK = 32  # queries encoded and searched at once

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
        encoder: for the queries; default is the one that the folder was built with, or that Pyserini's reproductions
            use with a prebuilt index (BGE, Contriever).
        texts: where passages come from (see `passage_lookup`); default is what `build_dense_index` stored in the
            folder, or the Lucene index that Pyserini names for a prebuilt one.
        hits: candidates per query.
        threads: of FAISS; Lucene answers one query after the other.
        ef_search: breadth of the search in an HNSW index, at least `hits`; default is the index's own, or 100 for
            Lucene's.
        remove_query: leave out the document whose docid is the qid.
        exclude: docids to leave out, per qid.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a folder without a dense index, no encoder, or another one than the folder was built with.
    """
    for name, value in (("hits", hits), ("threads", threads), ("ef_search", ef_search)):
        if value is not None and value < 1:
            raise ValueError(f"{name} {value}: expected at least 1")
    place = _resolved(index)
    chosen = _encoder(place, encoder)
    lookup = passage_lookup(texts) if texts is not None else _own_texts(place)
    searcher = _Searcher(place, chosen, ef_search)
    texts_name = None if texts is None else os.fspath(texts)
    removal = Removal(remove_query, exclude or {})
    return _Dense(place, chosen, hits, threads, ef_search, texts_name, removal, lookup, searcher)


@dataclass(frozen=True)
class _Dense(Source):
    index: Path | str
    encoder: Encoder
    hits: int
    threads: int
    ef_search: int | None
    texts: str | None
    removal: Removal
    lookup: Lookup | None = field(compare=False, repr=False)
    searcher: _Searcher = field(compare=False, repr=False)

    def retrieve(self, queries: Queries) -> Iterator[Ranking]:
        known = as_queries(queries)
        while chunk := list(islice(known, _CHUNK)):
            found = self._search(chunk)
            yield from (self._ranking(query, found[query.qid]) for query in chunk)

    def limited(self, hits: int) -> Source:
        return replace(self, hits=min(hits, self.hits))

    def most(self) -> int:
        return self.hits

    def describe(self) -> dict[str, Any]:
        identity = None if isinstance(self.index, str) else index_identity(self.index)
        return {
            "stage": "dense",
            "index": str(self.index),
            "index_identity": identity,
            "encoder": self.encoder.describe(),
            "hits": self.hits,
            "ef_search": self.ef_search,
            "texts": self.texts,
            **self.removal.describe(),
            **versions(),
        }

    def _search(self, chunk: Sequence[Query]) -> dict[str, Any]:
        searcher = self.searcher.open()
        vectors = self.encoder.queries([query.text for query in chunk])
        if vectors.shape[1] != searcher.dimension:
            raise ValueError(
                f"{self.index}: holds vectors of {searcher.dimension} dimensions, encoder {self.encoder.name} makes "
                f"{vectors.shape[1]}; give the encoder that the index was built with"
            )
        limit = min(self.hits + self.removal.spare(chunk), searcher.num_docs)
        qids = [query.qid for query in chunk]
        found: dict[str, Any] = searcher.batch_search(vectors, qids, k=limit, threads=self.threads)
        return found

    def _ranking(self, query: Query, found: Sequence[Any]) -> Ranking:
        removed = self.removal.of(query.qid)
        kept = islice((hit for hit in found if hit.docid not in removed), self.hits)
        candidates = [Candidate(hit.docid, float(hit.score)) for hit in kept]
        if self.lookup is None:
            return Ranking(query, tuple(candidates))
        return Ranking(query, with_texts(candidates, self.lookup, str(self.texts or self.index)))


class _Searcher:
    """One open index, shared by a source and its cutoffs: Pyserini's FaissSearcher, or what looks like it."""

    def __init__(self, index: Path | str, encoder: Encoder, ef_search: int | None) -> None:
        self.index = index
        self.encoder = encoder
        self.ef_search = ef_search
        self._opened: Any = None

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


def _resolved(index: str | os.PathLike[str]) -> Path | str:
    path, name = Path(index), os.fspath(index)
    advice = f"build one with `headrank index --dense --corpus CORPUS --encoder ENCODER --output {path}`"
    if path.is_dir():
        if is_index(path):
            if "collection" in (index_identity(path) or {}):
                raise ValueError(f"{path}: holds a BM25 index; search it with bm25, or {advice}")
            return path
        missing = [file for file in ("index", "docid") if not (path / file).is_file()]
        if missing:
            raise ValueError(
                f"{path}: holds neither a FAISS index (no file {' and no file '.join(missing)}) nor a Lucene index; "
                f"{advice}"
            )
        return path
    if isinstance(index, Path) or os.sep in name or name.startswith((".", "~")):
        raise FileNotFoundError(f"{path}: no such index folder; {advice}, or give the name of a Pyserini index")
    return name


def _encoder(place: Path | str, given: Encoder | str | os.PathLike[str] | None) -> Encoder:
    identity = (None if isinstance(place, str) else index_identity(place)) or {}
    built_with: dict[str, Any] = dict(identity.get("encoder") or {})
    weights = built_with.pop("weights_sha256", None)
    if given is None and isinstance(place, str):
        return _published_encoder(place)
    if given is None:
        if not built_with:
            raise ValueError(f"{place}: does not say which encoder it was built with; name it (--encoder, encoder=)")
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
        f"(--encoder, encoder=)"
    )


def _own_texts(place: Path | str) -> Lookup | None:
    if isinstance(place, str):
        opened = lru_cache(maxsize=1)(lambda: passage_lookup(_catalogued(place)["texts"]))
        return lambda docids: opened()(docids)
    return stored_passages(place) if (place / PASSAGES_FILE).is_file() else None


def _catalogued(name: str) -> dict[str, Any]:
    start_jvm()
    from pyserini.prebuilt_index_info import FAISS_INDEX_INFO, LUCENE_HNSW_INDEX_INFO

    known = {**FAISS_INDEX_INFO, **LUCENE_HNSW_INDEX_INFO}
    refuse_unknown(name, known, "a FAISS or Lucene HNSW index")
    info: dict[str, Any] = known[name]
    return info


def _downloaded(name: str) -> str:
    _catalogued(name)
    from pyserini.util import download_prebuilt_index

    try:
        with contextlib.redirect_stdout(sys.stderr):
            folder: str = download_prebuilt_index(name)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"prebuilt index {name!r}: Pyserini could not download it ({error}); on a machine without network build an "
            f"index from a corpus with `headrank index --dense` and give its folder"
        ) from error
    return folder
