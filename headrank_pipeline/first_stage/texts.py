"""Titles and texts of passages by docid, for first stages whose index stores none (FAISS, impact, ``-slim``)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from headrank_pipeline.files import Input
from headrank_pipeline.first_stage.index import is_index
from headrank_pipeline.first_stage.jvm import reading_index
from headrank_pipeline.first_stage.opening import LuceneIndex, found_words
from headrank_pipeline.passages import Passage, passage_from_raw, read_corpus
from headrank_pipeline.records import Candidate

__all__ = ["PASSAGES_FILE", "Lookup", "is_stream", "passage_lookup", "stored_passages", "with_texts", "write_passages"]

PASSAGES_FILE = "passages.jsonl"
_OFFSETS_FILE = "passages.offsets.npy"
_DATASET = "ir_datasets:"

# Returns the passages of the docids that it knows.
Lookup = Callable[[Sequence[str]], Mapping[str, Passage]]


def passage_lookup(texts: str | os.PathLike[str]) -> Lookup:
    """Return a function from docids to passages; nothing is opened before it is called.

    Args:
        texts: the folder or the prebuilt name of a Lucene index that stores documents, a corpus file (kept in memory:
            for millions of passages give an index), or ``ir_datasets:ID``.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a folder that holds no Lucene index.
    """
    name, path = os.fspath(texts), Path(texts)
    if name.startswith(_DATASET):
        return lambda docids: _from_dataset(name.removeprefix(_DATASET), docids)
    if is_stream(texts):
        load = lru_cache(maxsize=1)(lambda: {passage.docid: passage for passage in read_corpus(texts)})
        return lambda docids: {docid: known for docid in docids if (known := load().get(docid)) is not None}
    if path.is_dir() and (path / PASSAGES_FILE).is_file():
        return stored_passages(path)
    if path.is_dir() and not is_index(path):
        raise ValueError(f"{path}: expected a Lucene index (segments_*) or a corpus file to take passages from")
    return _from_index(texts)


def is_stream(texts: str | os.PathLike[str]) -> bool:
    """Return whether passages come from a corpus file or a pipe; the other kinds are folders and names of indexes."""
    if isinstance(texts, Input) or os.fspath(texts) == "-":
        return True
    return Path(texts).exists() and not Path(texts).is_dir()


def with_texts(candidates: Iterable[Candidate], lookup: Lookup, where: str) -> tuple[Candidate, ...]:
    """Return the candidates with title and text.

    Raises:
        ValueError: a docid that the lookup does not know.
    """
    kept = list(candidates)
    passages = lookup([candidate.docid for candidate in kept])
    for candidate in kept:
        if candidate.docid not in passages:
            raise ValueError(f"{where}: no text for docid {candidate.docid}; are texts and index of one collection?")
    return tuple(replace(c, text=passages[c.docid].text, title=passages[c.docid].title) for c in kept)


def write_passages(folder: Path, passages: Iterable[Passage]) -> int:
    """Write passages as BEIR JSONL, with the byte offset of each line, and return how many there are."""
    offsets = [0]
    with (folder / PASSAGES_FILE).open("wb") as file:
        for passage in passages:
            record = {"_id": passage.docid, "title": passage.title, "text": passage.text}
            offsets.append(offsets[-1] + file.write(json.dumps(record).encode() + b"\n"))
    np.save(folder / _OFFSETS_FILE, np.asarray(offsets, dtype=np.int64))
    return len(offsets) - 1


def stored_passages(folder: Path) -> Lookup:
    """Return a lookup in the passages that `write_passages` left beside the docids of a dense index."""

    @lru_cache(maxsize=1)
    def places() -> tuple[dict[str, int], Any]:
        docids = (folder / "docid").read_text(encoding="utf-8").split("\n")
        try:
            return {docid: place for place, docid in enumerate(docids)}, np.load(folder / _OFFSETS_FILE)
        except (ValueError, EOFError) as error:
            raise _cut(folder / _OFFSETS_FILE, error) from error

    def lookup(docids: Sequence[str]) -> dict[str, Passage]:
        place_of, offsets = places()
        found: dict[str, Passage] = {}
        with (folder / PASSAGES_FILE).open("rb") as file:
            for docid in docids:
                if docid not in place_of:
                    continue
                try:
                    file.seek(int(offsets[place_of[docid]]))
                    record = json.loads(file.readline())
                    found[docid] = Passage(record["_id"], record["text"], record["title"])
                except (ValueError, LookupError, TypeError) as error:
                    raise _cut(folder / PASSAGES_FILE, error) from error
        return found

    return lookup


def _cut(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file}: could not be read ({error}); it is damaged or was cut off: build the index again")


def _from_index(index: str | os.PathLike[str]) -> Lookup:
    words = LuceneIndex(found_words(index, "build one with `headrank index`"))

    def lookup(docids: Sequence[str]) -> dict[str, Passage]:
        searcher = words.open()
        with reading_index(index):
            documents = searcher.batch_doc(list(docids), 1)
        found: dict[str, Passage] = {}
        for docid, document in documents.items():
            raw = document.raw()
            if raw is None:
                raise ValueError(f"{index}: stores no documents (raw); name an index that does, or a corpus file")
            title, text = passage_from_raw(raw, docid)
            found[docid] = Passage(docid, text, title)
        return found

    return lookup


def _from_dataset(name: str, docids: Sequence[str]) -> dict[str, Passage]:
    import ir_datasets

    try:
        documents = ir_datasets.load(name).docs_store().get_many(list(docids))
    except (OSError, RuntimeError, KeyError, AttributeError) as error:
        raise FileNotFoundError(f"ir_datasets could not give the documents of {name} ({error})") from error
    return {docid: Passage(docid, *_parts(document)) for docid, document in documents.items()}


def _parts(document: Any) -> tuple[str, str | None]:
    """Return text and title; collections without a field of that name give all their text at once."""
    text = getattr(document, "text", None)
    return (document.default_text() if text is None else text), getattr(document, "title", None)
