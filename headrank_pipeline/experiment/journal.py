"""scores.jsonl: the append-only journal of a run, from which everything else is made.

One JSON line per query tried, ``{"qid", "docids", "scores", "notes", "seconds"}`` or ``{"qid", "error", "notes"}``,
flushed to the disk batch by batch. Scores are the reranker's own float64 values. The last line of a qid wins, so that a
query can be tried again; a last line that a crash tore is dropped when the journal is opened.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrank_pipeline.records import Ranking

__all__ = ["Entry", "Journal"]

logger = logging.getLogger(__name__)


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

    def line(self) -> str:
        """Return the JSON line, with its end; floats are written so that they read back exactly."""
        if self.error is not None:
            failed = {"qid": self.qid, "error": self.error, "notes": dict(self.notes)}
            return json.dumps(failed, ensure_ascii=False, allow_nan=False) + "\n"
        record = {
            "qid": self.qid,
            "docids": self.docids,
            "scores": self.scores,
            "notes": dict(self.notes),
            "seconds": round(self.seconds, 6),
        }
        return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def parse(cls, line: str, where: str) -> Entry:
        """Return the entry that a line holds.

        Raises:
            ValueError: not an entry; names file and line.
        """
        try:
            record: dict[str, Any] = json.loads(line)
            if "error" in record:
                return cls(record["qid"], notes=record.get("notes", {}), error=record["error"])
            docids, scores = tuple(record["docids"]), tuple(float(score) for score in record["scores"])
            entry = cls(record["qid"], docids, scores, record["notes"], float(record["seconds"]))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{where}: not a line of a run's journal ({error}); the file was changed, start anew with --overwrite"
            ) from error
        if len(entry.docids) != len(entry.scores):
            raise ValueError(f"{where}: {len(docids)} docids and {len(scores)} scores; start anew with --overwrite")
        return entry


class Journal:
    """The journal of one run directory; keeps in memory where each query's last line starts, and the failures.

    Args:
        path: scores.jsonl; made when it is missing.

    Raises:
        ValueError: a damaged line before the last one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
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
        with self.path.open("ab") as file:
            for entry in entries:
                self._register(entry, file.tell())
                file.write(entry.line().encode())
            file.flush()
            os.fsync(file.fileno())

    def read(self, qid: str) -> Entry:
        """Return the scores of a query.

        Raises:
            KeyError: a query without scores.
        """
        with self.path.open("rb") as file:
            file.seek(self._starts[qid])
            return Entry.parse(file.readline().decode(), f"{self.path} qid {qid}")

    def _register(self, entry: Entry, start: int) -> None:
        if entry.error is None:
            self._starts[entry.qid] = start
            self.failures.pop(entry.qid, None)
        else:
            self._starts.pop(entry.qid, None)
            self.failures[entry.qid] = entry

    def _load(self) -> None:
        whole = 0  # bytes up to the end of the last intact line
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                self._register(Entry.parse(line.decode(errors="replace"), f"{self.path}:{number}"), whole)
                whole += len(line)
        torn = self.path.stat().st_size - whole
        if torn:
            logger.info("%s: dropped a last line of %d bytes that was not finished", self.path, torn)
            os.truncate(self.path, whole)
