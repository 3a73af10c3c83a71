"""scores.jsonl: the append-only journal of a run, from which everything else is made.

One JSON line per query tried, ``{"qid", "docids", "scores", "notes", "seconds", "digest"}`` or ``{"qid", "error",
"notes", "digest"}``, flushed to the disk batch by batch. Scores are the reranker's own float64 values. The last line of
a qid wins, so that a query can be tried again; a last line that a crash tore is dropped when the journal is opened. The
digest is of the line's other bytes and of the run's identity: a line that was changed, or that another run wrote, is
refused. Lines of before there were digests are taken as they are, and that is told.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrank_pipeline.records import Ranking

__all__ = ["Entry", "Journal", "journal_key", "read_journal", "rekeyed_lines"]

logger = logging.getLogger(__name__)

_DIGEST = re.compile(r', "digest": "([0-9a-f]{16})"\}')
_SCORED = {"qid", "docids", "scores", "notes", "seconds"}
_FAILED = {"qid", "error", "notes"}
_CHANGED = "the file was changed, start anew with overwrite=True"


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one query.

    Args:
        qid: the query.
        docids: the reranked candidates, best first; empty where it failed or had no candidates.
        scores: their raw scores.
        notes: what the reranker counted; of a failed query, until it failed.
        seconds: the batch's time divided by its queries.
        error: why it failed, or None.
    """

    qid: str
    docids: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    notes: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None

    @classmethod
    def of(cls, ranking: Ranking, seconds: float) -> Entry:
        """Return the entry of a reranked query."""
        return cls(ranking.query.qid, ranking.docids, ranking.scores, dict(ranking.notes), seconds)

    def line(self, key: str = "") -> str:
        """Return the JSON line, with its end; floats are written so that they read back exactly.

        Args:
            key: key of the run, as `journal_key` gives it.
        """
        record: dict[str, Any]
        if self.error is not None:
            record = {"qid": self.qid, "error": self.error, "notes": dict(self.notes)}
        else:
            record = {
                "qid": self.qid,
                "docids": self.docids,
                "scores": self.scores,
                "notes": dict(self.notes),
                "seconds": round(self.seconds, 6),
            }
        body = json.dumps(record, ensure_ascii=False, allow_nan=False)
        return _signed(body, key)

    @classmethod
    def parse(cls, line: str, where: str, key: str = "") -> Entry:
        """Return the entry that a line holds.

        Args:
            line: a line, without or with its end.
            where: "file:line", for the error.
            key: key of the run, as `journal_key` gives it.

        Raises:
            ValueError: not an entry, or not as this run wrote it; names file and line.
        """
        text = line.rstrip("\n")
        found = _digest_at_end(text)
        if found is not None:
            text = f"{text[: found.start()]}}}"
            if _digest(text, key) != found[1]:
                raise ValueError(f"{where}: not as this run wrote it, its digest is another; {_CHANGED}")
        try:
            return cls._of_record(json.loads(text))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError(f"{where}: not a line of a run's journal ({error}); {_CHANGED}") from error

    @classmethod
    def _of_record(cls, record: Any) -> Entry:
        if not isinstance(record, dict) or set(record) not in (_SCORED, _FAILED):
            raise ValueError(f"expected an object of {sorted(_SCORED)} or {sorted(_FAILED)}")
        qid, notes = record["qid"], record["notes"]
        if not isinstance(qid, str):
            raise ValueError(f"qid {qid!r}: expected a string")
        if not isinstance(notes, dict):
            raise ValueError(f"notes {notes!r}: expected an object")
        counted = {name: _number(value, f"note {name}") for name, value in notes.items()}
        if "error" in record:
            if not isinstance(record["error"], str):
                raise ValueError(f"error {record['error']!r}: expected a string")
            return cls(qid, notes=counted, error=record["error"])
        docids, scores = record["docids"], record["scores"]
        if not isinstance(docids, list) or not isinstance(scores, list) or not all(isinstance(d, str) for d in docids):
            raise ValueError("expected lists of docids, which are strings, and of scores")
        if len(docids) != len(scores) or len(docids) != len(set(docids)):
            raise ValueError(f"{len(docids)} docids, {len(set(docids))} of them different, and {len(scores)} scores")
        numbers = tuple(_number(score, "score") for score in scores)
        return cls(qid, tuple(docids), numbers, counted, _number(record["seconds"], "seconds"))


def _digest_at_end(line: str) -> re.Match[str] | None:
    return _DIGEST.fullmatch(line, max(0, len(line) - len(', "digest": "0123456789abcdef"}')))


def _signed(body: str, key: str) -> str:
    return f'{body[:-1]}, "digest": "{_digest(body, key)}"}}\n'


def _digest(body: str, key: str) -> str:
    return hashlib.sha256(f"{key}\n{body}".encode()).hexdigest()[:16]


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{what} {value!r}: expected a finite number")
    return float(value)


def journal_key(identity: Mapping[str, Any]) -> str:
    """Return what the lines of a run's journal are bound to: a digest of the identity in its manifest."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def rekeyed_lines(path: Path, key: str, new_key: str) -> dict[str, str]:
    """Return qid -> the line that holds, with its end, as a run with another key would have written it.

    Raises:
        ValueError: what `read_journal` refuses.
    """
    found: dict[str, str] = {}
    with path.open("rb") as file:
        for start, end, entry in read_journal(path, key):
            file.seek(start)
            line = file.read(end - start).decode().rstrip("\n")
            digest = _digest_at_end(line)
            body = line if digest is None else f"{line[: digest.start()]}}}"
            found[entry.qid] = _signed(body, new_key)
    return found


def read_journal(path: Path, key: str) -> Iterator[tuple[int, int, Entry]]:
    """Yield (start, end, entry) of every line, places in bytes; a last line that was torn is left alone.

    Raises:
        ValueError: a damaged line before the last one, a line that another run wrote, or one without a digest after one
            that has one.
    """
    place, digested, without = 0, False, 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                break
            line, where = raw.decode(errors="replace"), f"{path}:{number}"
            if _digest_at_end(line.rstrip("\n")):
                digested = True
            elif digested:
                raise ValueError(f"{where}: has no digest, and the lines before it do; {_CHANGED}")
            else:
                without += 1
            yield place, place + len(raw), Entry.parse(line, where, key)
            place += len(raw)
    if without:
        logger.warning(
            "%s: %d lines were written before lines had digests; they are taken as they are, unchecked", path, without
        )


class Journal:
    """The journal of one run directory; keeps in memory where each query's last line starts, and the failures.

    Args:
        path: scores.jsonl; made when it is missing.
        key: key of the run, as `journal_key` gives it.

    Raises:
        ValueError: a damaged line before the last one, or a line that another run wrote.
    """

    def __init__(self, path: Path, key: str = "") -> None:
        self.path, self._key = path, key
        self._starts: dict[str, int] = {}
        self.failures: dict[str, Entry] = {}
        path.touch()
        self._load()

    def scored(self, qid: str) -> bool:
        """Return whether the query has scores (a failed one has none)."""
        return qid in self._starts

    @property
    def scored_count(self) -> int:
        """Number of queries that have scores."""
        return len(self._starts)

    def scored_qids(self) -> list[str]:
        """Return the queries that have scores."""
        return list(self._starts)

    def append(self, entries: Iterable[Entry]) -> None:
        """Write entries and return when they are on the disk."""
        lines = [(entry, entry.line(self._key).encode()) for entry in entries]
        with self.path.open("ab") as file:
            for entry, line in lines:
                self._register(entry, file.tell())
                file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def read(self, qid: str) -> Entry:
        """Return the scores of a query.

        Raises:
            KeyError: a query without scores.
            ValueError: the file was changed since it was opened.
        """
        where = f"{self.path} qid {qid}"
        with self.path.open("rb") as file:
            file.seek(self._starts[qid])
            entry = Entry.parse(file.readline().decode(errors="replace"), where, self._key)
        if entry.qid != qid:
            raise ValueError(f"{where}: holds the line of {entry.qid} there; {_CHANGED}")
        return entry

    def _register(self, entry: Entry, start: int) -> None:
        if entry.error is None:
            self._starts[entry.qid] = start
            self.failures.pop(entry.qid, None)
        else:
            self._starts.pop(entry.qid, None)
            self.failures[entry.qid] = entry

    def _load(self) -> None:
        whole = 0  # bytes up to the end of the last intact line
        for start, end, entry in read_journal(self.path, self._key):
            self._register(entry, start)
            whole = end
        torn = self.path.stat().st_size - whole
        if torn:
            logger.info("%s: dropped a last line of %d bytes that was not finished", self.path, torn)
            os.truncate(self.path, whole)
