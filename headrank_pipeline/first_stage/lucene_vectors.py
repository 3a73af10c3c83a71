"""Lucene's HNSW indexes of vectors: built by Anserini's indexer, searched through Pyserini.

Anserini's own format: vectors of length 1 in a field ``vector``, compared by dot product. Lucene gives (1 + cosine) / 2
as scores; here they are cosines again, as FAISS gives them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headrank_pipeline.first_stage.index import run_indexer
from headrank_pipeline.first_stage.jvm import anserini_jar, find_java, reading_index

__all__ = ["CONSTRUCTION", "NEIGHBOURS", "LuceneVectors", "write_lucene_vectors"]

NEIGHBOURS = 16  # M and efC of Anserini's published HNSW indexes
CONSTRUCTION = 100
_NARROWEST = 100  # Pyserini's default breadth of a search
_FIELD = "vector"
_UNIT = 1e-3  # how far from 1 the length of a vector may be: half precision, not another convention


@dataclass(frozen=True, slots=True)
class _Hit:
    """One vector found.

    Args:
        docid: whose.
        score: cosine.
    """

    docid: str
    score: float


def write_lucene_vectors(folder: Path, docids: Sequence[str], shards: Iterable[np.ndarray], scratch: Path) -> None:
    """Index vectors with Anserini; `folder` must not be there yet.

    Args:
        folder: folder of the index.
        docids: one per vector.
        shards: [N, D] float32 each, in the order of `docids`; every vector of length 1.
        scratch: an empty folder for the vectors as JSON, about 10 bytes per number.

    Raises:
        MissingPrerequisite: no Java 21, or no pyserini.
        RuntimeError: the indexer failed; ends with the last lines of its log.
        ValueError: a vector of another length, whose dot products Lucene would cut off at 0.
    """
    start = 0
    for number, vectors in enumerate(shards):
        own = docids[start : start + len(vectors)]
        start += len(vectors)
        with gzip.open(scratch / f"vectors-{number:05d}.jsonl.gz", "wt", compresslevel=1) as file:
            for docid, vector, length in zip(own, vectors.tolist(), np.linalg.norm(vectors, axis=1), strict=True):
                if not abs(length - 1) <= _UNIT:  # true for NaN as well
                    raise ValueError(
                        f"docid {docid}: a vector of length {length:.4f}; Lucene compares vectors of length 1: build "
                        f"with l2_norm=True, or build kind 'hnsw', which is FAISS's"
                    )
                file.write(json.dumps({"docid": docid, "vector": vector}) + "\n")
    command = [str(find_java().home / "bin" / "java"), "-cp", str(anserini_jar())]
    command += ["io.anserini.index.IndexHnswDenseVectors", "-collection", "JsonDenseVectorCollection"]
    # With one thread equal vectors give equal graphs.
    command += ["-generator", "DenseVectorDocumentGenerator", "-threads", "1"]
    command += ["-M", str(NEIGHBOURS), "-efC", str(CONSTRUCTION), "-input", str(scratch), "-index", str(folder)]
    run_indexer(command, len(docids))


class LuceneVectors:
    """An open index with the face of Pyserini's FaissSearcher; the JVM must run.

    Args:
        folder: folder of the index.
        ef_search: breadth of a search; None for Pyserini's 100.

    Raises:
        ValueError: an index without vectors, or one that compares them otherwise.
    """

    def __init__(self, folder: str, ef_search: int | None) -> None:
        self._folder, self._ef_search = folder, ef_search or _NARROWEST
        self._searchers: dict[int, Any] = {}
        with reading_index(folder):
            reader = self._searcher(self._ef_search).reader
            self.num_docs = int(reader.numDocs())
            self.dimension = _dimension(reader, folder)

    def batch_search(self, vectors: np.ndarray, qids: Sequence[str], *, k: int, threads: int) -> dict[str, list[_Hit]]:
        """Return qid -> the `k` nearest documents that the graph leads to, one query after the other."""
        # Lucene gives no more hits than the search is broad.
        searcher = self._searcher(max(k, self._ef_search))
        return {qid: self._search(searcher, qid, vector, k) for qid, vector in zip(qids, vectors, strict=True)}

    def _search(self, searcher: Any, qid: str, vector: np.ndarray, k: int) -> list[_Hit]:
        length = float(np.linalg.norm(vector))
        if not abs(length - 1) <= _UNIT:
            raise ValueError(
                f"qid {qid}: the encoder made a vector of length {length:.4f}; {self._folder} holds vectors of length "
                f"1: give the encoder that it was built with, normalised"
            )
        with reading_index(self._folder):
            found = searcher.search(vector.tolist(), k)
        return [_Hit(str(hit.docid), 2.0 * float(hit.score) - 1.0) for hit in found]

    def _searcher(self, breadth: int) -> Any:
        """Anserini fixes the breadth when it opens an index; sources and their cutoffs need few different ones."""
        if breadth not in self._searchers:
            from pyserini.search.lucene import LuceneHnswDenseSearcher

            self._searchers[breadth] = LuceneHnswDenseSearcher(self._folder, ef_search=breadth).searcher
        return self._searchers[breadth]


def _dimension(reader: Any, folder: str) -> int:
    leaves = reader.leaves()
    field: Any = leaves.get(0).reader().getFieldInfos().fieldInfo(_FIELD) if leaves.size() else None
    if field is None or not field.getVectorDimension():
        raise ValueError(
            f"{folder}: a Lucene index without vectors; search it with bm25, or build one of vectors with "
            f"`headrank index --dense --hnsw lucene`"
        )
    if (similarity := str(field.getVectorSimilarityFunction().toString())) != "DOT_PRODUCT":
        raise ValueError(f"{folder}: compares vectors by {similarity}; expected DOT_PRODUCT, as Anserini builds them")
    return int(field.getVectorDimension())
