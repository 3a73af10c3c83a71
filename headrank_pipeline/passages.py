"""Passages as collections and indexes store them: corpus files, and the ``raw`` field of a Lucene document."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from headrank_pipeline.files import (
    begun,
    first_field,
    foreign_id,
    json_objects,
    numbered_lines,
    refuse_header,
    string_field,
)
from headrank_pipeline.records import Candidate

__all__ = ["Passage", "located_passages", "passage_from_raw", "read_corpus", "text_of", "title_and_text"]

# The field that holds a passage, in rank_llm's order (inference_handler.py).
TEXT_FIELDS = ("text", "segment", "contents", "content", "body", "passage")
_ID_FIELDS = ("_id", "id", "docid")


@dataclass(frozen=True, slots=True)
class Passage:
    """One entry of a corpus.

    Args:
        docid: identifier, a non-empty string without white space.
        text: the passage; may be empty.
        title: the title, or None where the corpus has no such field.
    """

    docid: str
    text: str
    title: str | None = None

    def __post_init__(self) -> None:
        # The same rules as for candidates. Of a document with half a surrogate pair Lucene would index no word.
        Candidate(self.docid, 0.0, self.text, self.title)


def read_corpus(path: str | os.PathLike[str]) -> Iterator[Passage]:
    """Yield the passages of a corpus file in file order; does not check for docids that occur twice.

    Args:
        path: BEIR JSONL, ``{id, contents}`` JSONL or TSV ``docid<tab>text``; plain or gzip, a file or a pipe.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed line; names file and line.
    """
    for _, passage in located_passages(path):
        yield passage


def located_passages(path: str | os.PathLike[str]) -> Iterator[tuple[str, Passage]]:
    """Yield ("file:line", passage) for every passage of a corpus file; raises as `read_corpus` does."""
    first, lines = begun(numbered_lines(path, "corpus"))
    if not first.startswith("{"):
        yield from _tsv_corpus(path, lines)
        return
    for where, record in json_objects(path, lines):
        docid = foreign_id(first_field(record, _ID_FIELDS, where), where)
        try:
            title, text = title_and_text(record, docid)
            if text is None:
                raise ValueError(f"docid {docid}: no text; expected one of the fields {', '.join(TEXT_FIELDS)}")
            passage = Passage(docid, text, title)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        yield where, passage


def passage_from_raw(raw: str, docid: str) -> tuple[str | None, str]:
    """Return (title, text) of the ``raw`` string that a Lucene index stores for a document.

    JSON objects give their ``title`` and the first of the fields text, segment, contents, content, body, passage
    (BEIR, MS MARCO v1 and v2); anything else (plain text, TREC SGML, JSON that is itself the passage) is the text as it
    stands, without a title. A JSON object is the document's record where it has such a field or bears its id.

    Args:
        raw: what the index stored.
        docid: id of the document, for the error.

    Raises:
        ValueError: the record of this document, without any of these fields.

    Examples:
        >>> passage_from_raw('{"_id": "d1", "title": "Flea", "text": "Fleas live long."}', "d1")
        ('Flea', 'Fleas live long.')
        >>> passage_from_raw('{"id": "d2", "contents": "Fleas live long."}', "d2")
        (None, 'Fleas live long.')
        >>> passage_from_raw("Fleas live long.", "d3")
        (None, 'Fleas live long.')
        >>> passage_from_raw('{"flea": {"lives": "long"}}', "d4")
        (None, '{"flea": {"lives": "long"}}')
    """
    if not raw.lstrip().startswith("{"):
        return None, raw
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):
        return None, raw  # a plain text that happens to begin with a brace
    title = record.get("title")
    for name in TEXT_FIELDS:
        if isinstance(record.get(name), str):
            return (title if isinstance(title, str) else None), record[name]
    if docid in (str(record.get(name)) for name in _ID_FIELDS):
        raise ValueError(f"docid {docid}: raw holds no text; expected one of the fields {', '.join(TEXT_FIELDS)}")
    return None, raw


def text_of(qid: str, candidate: Candidate) -> str:
    """Return the text of a candidate, to be read by a reranker.

    Raises:
        ValueError: it has none.
    """
    if candidate.text is None:
        raise ValueError(
            f"qid {qid} docid {candidate.docid}: the passage has no text; take candidates from an index that stores "
            f"passages, or say where texts are: headrank retrieve --texts, bm25(…, texts=…), saved_run(…, corpus=…)"
        )
    return candidate.text


def _tsv_corpus(path: str | os.PathLike[str], lines: Iterator[tuple[int, str]]) -> Iterator[tuple[str, Passage]]:
    for place, (number, line) in enumerate(lines):
        where = f"{path}:{number}"
        docid, tab, text = line.partition("\t")
        if not tab:
            raise ValueError(f"{where}: expected 'docid<tab>text' or one JSON object a line, got {line[:80]!r}")
        if place == 0:
            refuse_header(line.split("\t"), where)
        try:
            passage = Passage(docid.strip(), text)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        yield where, passage


def title_and_text(record: Any, docid: str) -> tuple[str | None, str | None]:
    """Return both, None where the record has no such field; an unknown field instead of the text is an error."""
    if not isinstance(record, dict):
        raise ValueError(f"docid {docid}: doc {record!r}: expected an object or a string")
    title, where = record.get("title"), f"docid {docid}"
    known_title = None if title is None else string_field(title, "title", where)
    for name in TEXT_FIELDS:
        if record.get(name) is not None:
            return known_title, string_field(record[name], name, where)
    if unknown := [name for name in record if name not in (*_ID_FIELDS, *TEXT_FIELDS, "title", "metadata")]:
        raise ValueError(f"{where}: found the fields {unknown}; expected the text in one of {', '.join(TEXT_FIELDS)}")
    return known_title, None
