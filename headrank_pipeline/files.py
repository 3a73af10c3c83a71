"""Reading and writing of text files: plain or gzip, line numbers in every error, no half-written output.

A folder that only one process may write to at a time is `held`.
"""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, TextIO, cast

__all__ = [
    "atomic_writer",
    "first_field",
    "foreign_id",
    "held",
    "json_object_lines",
    "numbered_lines",
    "open_text",
    "parse_json",
    "refuse_header",
    "string_field",
]

_GZIP_MAGIC = b"\x1f\x8b"

# How headers of TSV files call their first two columns.
_ID_COLUMNS = frozenset({"_id", "id", "qid", "query_id", "query-id", "docid", "doc_id", "docno", "pid", "corpus-id"})
_TEXT_COLUMNS = frozenset({"text", "query", "title", "contents", "passage", "body"})


def open_text(path: str | os.PathLike[str], purpose: str = "input") -> TextIO:
    """Return an open UTF-8 text file; gzip is recognised by its first two bytes, whatever the name says.

    Lines end at a line feed only: a lone carriage return or U+2028 inside a passage does not split it.

    Args:
        path: the file.
        purpose: what it was wanted for, named in the error ("topics", "qrels").

    Raises:
        FileNotFoundError: no such file, or a folder.
    """
    file = Path(path)
    if file.is_dir():
        raise FileNotFoundError(f"{path}: expected a {purpose} file, this is a folder; name the file inside it")
    if not file.exists():
        raise FileNotFoundError(f"{path}: no such {purpose} file (looked from {Path.cwd()})")
    with file.open("rb") as binary:
        compressed = binary.read(2) == _GZIP_MAGIC
    if compressed:
        return gzip.open(file, "rt", encoding="utf-8-sig", newline="\n")
    return file.open(encoding="utf-8-sig", newline="\n")


def numbered_lines(path: str | os.PathLike[str], purpose: str = "input") -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) for every line that is not blank.

    Raises:
        FileNotFoundError: no such file.
        ValueError: bytes that are not UTF-8, or a damaged gzip file, with the line they follow.
    """
    number = 0
    with open_text(path, purpose) as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 after line {number} ({error.reason}); convert the file") from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip after line {number} ({error}); fetch the file again") from error


def refuse_header(columns: Sequence[str], where: str) -> None:
    """Raise ValueError where the first line of a TSV names its columns: it would be taken for a query or a passage."""
    first, second, *_ = (column.strip().lower() for column in columns)
    if first in _ID_COLUMNS and second in _TEXT_COLUMNS:
        raise ValueError(
            f"{where}: a header line, {columns[0]!r} and {columns[1]!r}; delete it, columns go by their place"
        )


def parse_json(text: str, where: str) -> Any:
    """Return the JSON value in `text`.

    Args:
        text: one line, or a whole file.
        where: "file:line", for the error.

    Raises:
        ValueError: not valid JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error}): fix or delete the line") from error


def json_object_lines(path: str | os.PathLike[str], purpose: str = "input") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file:line", object) for every line of a JSONL file.

    Raises:
        ValueError: a line that is not a JSON object.
    """
    for number, line in numbered_lines(path, purpose):
        where = f"{path}:{number}"
        value = parse_json(line, where)
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a JSON object per line, got {type(value).__name__}")
        yield where, value


def first_field(record: Mapping[str, Any], names: tuple[str, ...], where: str) -> Any:
    """Return the first of the named fields that is there and not null.

    Raises:
        ValueError: none of them.
    """
    for name in names:
        if record.get(name) is not None:
            return record[name]
    raise ValueError(f"{where}: expected the field {' or '.join(map(repr, names))}, found {sorted(record)}")


def foreign_id(value: Any, where: str) -> str:
    """Return an id of someone else's JSON as a string: whole numbers are common, a float has lost what it was."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{where}: id {value!r}: expected a string or a whole number, got {type(value).__name__}")


def string_field(value: Any, what: str, where: str) -> str:
    """Return `value`, or raise ValueError where it is no string."""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {what} {value!r}: expected a string, got {type(value).__name__}")
    return value


@contextmanager
def atomic_writer(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """Open a UTF-8 text file that appears under its name only when the block ends without an exception.

    The text goes to a hidden file in the same folder, is flushed to the disk and renamed; on an exception nothing is
    left behind and a file that was there before stays as it was. Missing parent folders are made. A name that ends in
    ``.gz`` is gzipped, without a time stamp, so that equal text gives equal bytes.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with ExitStack() as stack:
            binary: IO[bytes] = stack.enter_context(draft.open("xb"))
            if target.suffix == ".gz":
                packed = gzip.GzipFile(filename="", mode="wb", fileobj=binary, mtime=0)
                binary = cast(IO[bytes], stack.enter_context(packed))
            yield stack.enter_context(io.TextIOWrapper(binary, encoding="utf-8", newline="\n"))
        _sync(draft)
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync(target.parent)  # the rename itself; some file systems keep it in memory otherwise


@contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Make a folder and hold it for this process; a file ``.lock`` stays in it.

    Args:
        folder: to hold.
        what: is written there, for the error.

    Raises:
        RuntimeError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The file stays: removing it would let two processes lock two different files of one name.
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise RuntimeError(
                f"{folder}: another process (id {owner}) is writing this {what}; wait for it or choose another --output"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
