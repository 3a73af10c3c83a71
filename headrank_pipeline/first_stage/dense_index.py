"""Building a dense index of a corpus, FAISS or Lucene HNSW: resumable, and complete or not there at all.

Vectors are kept shard by shard in a hidden folder beside the index. A build that was interrupted goes on after the last
whole shard, as long as corpus and encoder are the same; the index appears under its name when it is complete.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from headrank_pipeline.files import (
    atomic_path,
    empty_locked,
    locked_folder,
    open_input,
    plain,
    remove_locked,
    write_json,
)
from headrank_pipeline.first_stage.encoder import Encoder, load_encoder
from headrank_pipeline.first_stage.index import IDENTITY_FILE, IndexSummary, is_index, publish, refuse_strangers
from headrank_pipeline.first_stage.jvm import versions
from headrank_pipeline.first_stage.lucene_vectors import write_lucene_vectors
from headrank_pipeline.first_stage.texts import write_passages
from headrank_pipeline.passages import Passage, located_passages
from headrank_pipeline.pipeline import require_extra

__all__ = ["Kind", "build_dense_index"]

_SHARD = 1024  # passages encoded between two saves: about half a minute of MiniLM on a laptop's processor
Kind = Literal["flat", "hnsw", "lucene-hnsw"]

_HNSW_NEIGHBOURS = 32
_HNSW_CONSTRUCTION = 200

_log = logging.getLogger(__name__)


def build_dense_index(
    corpus: str | os.PathLike[str],
    output: str | os.PathLike[str],
    encoder: Encoder | str | os.PathLike[str],
    *,
    kind: Kind = "flat",
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> IndexSummary:
    """Build an index that Pyserini's FaissSearcher or LuceneHnswDenseSearcher reads, and return what is in it.

    Beside Pyserini's own files the folder holds the passages, so that candidates carry text, and
    ``headrank-index.json``, which says what the index was made of. The same call continues an interrupted build.

    Args:
        corpus: BEIR or ``{id, contents}`` JSONL, or TSV; plain or gzip, a file, a pipe or ``-``.
        output: the folder to make.
        encoder: encoder of the passages.
        kind: ``flat`` searches exactly; ``hnsw`` is faster on large corpora and misses some; ``lucene-hnsw`` is
            Lucene's, in Anserini's format, for vectors of length 1.
        overwrite: replace an index that is there already.
        on_progress: called with (passages done, passages in all).

    Raises:
        FileNotFoundError: no such corpus or encoder.
        FileExistsError: `output` is there already.
        MissingPrerequisite: ``lucene-hnsw`` without Java 21 or pyserini.
        RuntimeError: Anserini's indexer failed, or another process is building this index.
        ValueError: a malformed line, a docid that occurs twice, nothing to index, or an encoder whose vectors are not
            of length 1 for ``lucene-hnsw``.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind {kind!r}: expected {', '.join(map(repr, get_args(Kind)))}")
    started = time.perf_counter()
    target = Path(output)
    _check_output(target, overwrite)
    chosen = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
    if kind == "lucene-hnsw" and not chosen.l2_norm:
        raise ValueError(
            f"kind 'lucene-hnsw': Lucene compares vectors of length 1, and {chosen.name} is used without "
            f"normalisation; pass l2_norm=True if its authors do, or build kind 'hnsw'"
        )
    opened = open_input(corpus, "corpus")
    checksum = opened.sha256
    passages, empty = _passages(opened)
    plan = {"corpus_sha256": checksum, "encoder": chosen.describe(), "shard": _SHARD}
    identity = {"corpus": Path(corpus).name, "corpus_sha256": checksum, "docs": len(passages), "empty_docs": empty}
    identity |= {"kind": kind if kind == "lucene-hnsw" else f"faiss-{kind}", "encoder": chosen.describe(), **versions()}
    draft = target.with_name(f".{target.name}.building")
    with locked_folder(draft, "index"):
        _check_output(target, overwrite)  # again: another build may just have ended
        _begin(draft, target, plan)
        _encode(passages, chosen, draft, on_progress or (lambda done, total: None))
        _write_index(draft / "index", passages, draft, kind)
        _publish(draft, target, identity)
        remove_locked(draft)
    summary = IndexSummary(target, len(passages), empty, time.perf_counter() - started, checksum)
    _log.info("%s: %d vectors in %.1f s", target, summary.docs, summary.seconds)
    return summary


def _publish(draft: Path, target: Path, identity: dict[str, Any]) -> None:
    """Put the finished index where it belongs, with what it was made of."""
    folder, replaced = draft / "index", draft / "replaced"
    (folder / IDENTITY_FILE).write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(replaced, ignore_errors=True)  # of a build that was killed here
    publish(folder, target, replaced)


def _check_output(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / "docid").is_file() or not ((target / "index").is_file() or is_index(target)):
        raise FileExistsError(f"{target}: exists and is no dense index, so it is never replaced; name another folder")
    if not overwrite:
        raise FileExistsError(f"{target}: holds an index already; pass overwrite=True to replace it")
    refuse_strangers(target)


def _passages(corpus: str | os.PathLike[str]) -> tuple[list[Passage], int]:
    """Return the passages that have words, in the order of the corpus, and how many have none."""
    places: dict[str, str] = {}
    kept: list[Passage] = []
    for where, passage in located_passages(corpus):
        if passage.docid in places:
            first = places[passage.docid]
            raise ValueError(f"{where}: docid {passage.docid} was given before at {first}; delete one of the two")
        places[passage.docid] = where
        if passage.text.strip() or (passage.title or "").strip():
            kept.append(passage)
    if not kept:
        raise ValueError(f"{corpus}: no passages to index; expected BEIR JSONL, {{id, contents}} JSONL or TSV")
    empty = len(places) - len(kept)
    if empty:
        _log.warning("%s: %d passages have neither title nor text; they can never be found", corpus, empty)
    return kept, empty


def _begin(draft: Path, target: Path, plan: dict[str, Any]) -> None:
    """Keep in the folder what an unfinished build of the same plan left there, or nothing."""
    note = draft / "plan.json"
    if note.is_file():
        if json.loads(note.read_text(encoding="utf-8")) == plain(plan):
            _log.info("%s: continuing an interrupted build", target)
        else:
            _log.warning("%s: the interrupted build was of another corpus or encoder; starting anew", target)
            empty_locked(draft)
    write_json(note, plan)


def _encode(passages: list[Passage], encoder: Encoder, draft: Path, on_progress: Callable[[int, int], None]) -> None:
    done = 0
    remaining = iter(passages)
    number = 0
    while shard := list(islice(remaining, _SHARD)):
        path = _shard_file(draft, number)
        if not path.exists():
            with atomic_path(path) as half, half.open("wb") as file:
                np.save(file, encoder.passages(shard))
        done += len(shard)
        number += 1
        on_progress(done, len(passages))


def _write_index(folder: Path, passages: list[Passage], draft: Path, kind: Kind) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shards = _shards(draft, -(-len(passages) // _SHARD))
    if kind == "lucene-hnsw":
        scratch = draft / "json"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        write_lucene_vectors(folder, [passage.docid for passage in passages], shards, scratch)
    else:
        _write_faiss(folder, shards, kind)
    (folder / "docid").write_text("".join(f"{passage.docid}\n" for passage in passages), encoding="utf-8")
    write_passages(folder, passages)


def _write_faiss(folder: Path, shards: Iterable[np.ndarray], kind: Kind) -> None:
    require_extra("retrieval", "a FAISS index", "faiss")
    import faiss

    folder.mkdir()
    index: Any = None
    for vectors in shards:
        if index is None:
            index = _empty_index(vectors.shape[1], kind)
        index.add(vectors)
    faiss.write_index(index, str(folder / "index"))


def _empty_index(dimension: int, kind: Kind) -> Any:
    import faiss

    if kind == "flat":
        return faiss.IndexFlatIP(dimension)
    index = faiss.IndexHNSWFlat(dimension, _HNSW_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _HNSW_CONSTRUCTION
    return index


def _shards(draft: Path, count: int) -> Iterator[np.ndarray]:
    for number in range(count):
        yield np.load(_shard_file(draft, number))


def _shard_file(draft: Path, number: int) -> Path:
    return draft / f"vectors-{number:05d}.npy"
