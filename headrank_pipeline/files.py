"""Reading and writing of text files: plain or gzip, line numbers in every error, no half-written output.

Every input is opened once, so that a pipe loses nothing: gzip is told by the first bytes of the very stream that is
read, and ``-`` is standard input. What is needed more than once (a digest beside the lines, a second look) is opened
as an `Input`. A folder that only one process may write to at a time is a `locked_folder`.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from stat import S_ISREG
from typing import IO, TYPE_CHECKING, Any, BinaryIO, TextIO, cast

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = [
    "Input",
    "atomic_path",
    "atomic_writer",
    "begun",
    "check_input",
    "check_writable",
    "empty_locked",
    "file_sha256",
    "first_field",
    "foreign_id",
    "joined",
    "json_object_lines",
    "json_objects",
    "locked_folder",
    "made_folder",
    "next_json",
    "numbered_lines",
    "open_input",
    "open_text",
    "parse_json",
    "plain",
    "refuse_header",
    "remove_locked",
    "string_field",
    "write_json",
]

PathLike = str | os.PathLike[str]

_STDIN = "-"
_LOCK = ".lock"
_GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_CHUNK = 2**20
_LONGEST_LINE = 2**30
_DECODER = json.JSONDecoder()

# How headers of TSV files call their first two columns.
_ID_COLUMNS = frozenset({"_id", "id", "qid", "query_id", "query-id", "docid", "doc_id", "docno", "pid", "corpus-id"})
_TEXT_COLUMNS = frozenset({"text", "query", "title", "contents", "passage", "body"})


# --------------------------------------------------------------------------------------------------------- opening


class Input(os.PathLike[str]):
    """An input that was opened once and can be read any number of times; it stands wherever a path does.

    Every reading gives the bytes that were digested, or fails: a file that is replaced meanwhile is still read from
    the one that was opened, a file that is changed in place is refused at the end of the reading. What can be read
    once only (a pipe, standard input) is kept in a temporary file without a name.

    Attributes:
        name: name as it was given, for errors.
        sha256: SHA-256 of its bytes as they lie on the disk, in hexadecimal.
    """

    def __init__(self, path: PathLike, purpose: str = "input") -> None:
        """Open it, and read it to its end for the digest; see `open_input`."""
        self.name, self.purpose = os.fspath(path), purpose
        digest = hashlib.sha256()
        with (
            _opened(path, purpose) as (read, handle),
            tempfile.TemporaryFile() if handle is None else open(handle, "rb", closefd=False) as kept,
        ):
            self._handle = os.dup(kept.fileno())
            weakref.finalize(self, os.close, self._handle)
            while chunk := read(_CHUNK):
                digest.update(chunk)
                if handle is None:
                    kept.write(chunk)
        self.sha256 = digest.hexdigest()

    def __fspath__(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Input({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process by name, to be opened there; a pipe cannot."""
        return _reopened, (self.name, str(Path(self.name).absolute()), self.purpose, self.sha256)

    def _reading(self) -> Callable[[int], bytes]:
        """Return a function that reads on from the start; it checks the digest where the bytes end."""
        place, digest = 0, hashlib.sha256()

        def read(size: int) -> bytes:
            nonlocal place
            chunk = os.pread(self._handle, size, place)
            place += len(chunk)
            digest.update(chunk)
            if not chunk and digest.hexdigest() != self.sha256:
                raise _changed(self.name, self.purpose, self.sha256, digest.hexdigest())
            return chunk

        return read


def _reopened(name: str, place: str, purpose: str, sha256: str) -> Input:
    if not Path(place).is_file():
        raise ValueError(f"{name}: the {purpose} file is read by another process here, which it must be a file for")
    found = Input(place, purpose)
    found.name = name
    if found.sha256 != sha256:
        raise _changed(name, purpose, sha256, found.sha256)
    return found


def _changed(name: str, purpose: str, expected: str, got: str) -> ValueError:
    return ValueError(
        f"{name}: the {purpose} file was changed after it was first read: expected SHA-256 {expected[:12]}…, got "
        f"{got[:12]}…; run the command again when nobody writes it"
    )


def open_input(path: PathLike, purpose: str = "input") -> Input:
    """Return an input that was opened once, with its digest; an `Input` is returned as it is.

    Args:
        path: a file, a pipe (``/dev/fd/63``, as shells name ``<(…)``), or ``-`` for standard input.
        purpose: what it is wanted for, named in errors ("topics", "qrels").

    Raises:
        FileNotFoundError: no such file, or a folder.
    """
    return path if isinstance(path, Input) else Input(path, purpose)


def check_input(path: PathLike, purpose: str = "input") -> None:
    """Raise FileNotFoundError where there is nothing to read; opens nothing, so that a pipe keeps what it holds."""
    if isinstance(path, Input) or os.fspath(path) == _STDIN:
        return
    file = Path(path)
    if file.is_dir():
        raise FileNotFoundError(f"{path}: expected a {purpose} file, this is a folder; name the file inside it")
    if not file.exists():
        raise FileNotFoundError(f"{path}: no such {purpose} file (looked from {Path.cwd()})")


def file_sha256(path: PathLike, purpose: str = "input") -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal, as sha256sum prints it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a pipe, whose bytes would be gone; `open_input` it and read that.
    """
    if isinstance(path, Input):
        return path.sha256
    check_input(path, purpose)
    if not Path(path).is_file():
        raise ValueError(f"{path}: the {purpose} are read twice here, which a pipe cannot be; save them as a file")
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _opened(path: PathLike, purpose: str) -> Iterator[tuple[Callable[[int], bytes], int | None]]:
    """Open a path for one reading; give a function that reads on, and its handle where it can be read again."""
    check_input(path, purpose)
    if isinstance(path, Input):
        yield path._reading(), None
    elif os.fspath(path) == _STDIN:
        yield sys.stdin.buffer.read, None  # not closed: it is not ours
    else:
        with Path(path).open("rb", buffering=0) as file:
            yield file.read, file.fileno() if S_ISREG(os.fstat(file.fileno()).st_mode) else None


class _Stream(io.RawIOBase):
    """Bytes by a function that reads on, the first of which were looked at before."""

    def __init__(self, head: bytes, read: Callable[[int], bytes]) -> None:
        self._head, self._read = head, read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        chunk = self._head[: len(view)] or self._read(len(view))
        self._head = self._head[len(chunk) :]
        view[: len(chunk)] = chunk
        return len(chunk)


@contextmanager
def _open_binary(path: PathLike, purpose: str) -> Iterator[BinaryIO]:
    """Give the unpacked bytes of an input, from its start."""
    with ExitStack() as stack:
        read, _ = stack.enter_context(_opened(path, purpose))
        head = b""
        while len(head) < len(_GZIP_MAGIC) and (chunk := read(len(_GZIP_MAGIC) - len(head))):  # a pipe may give one
            head += chunk
        stream = stack.enter_context(io.BufferedReader(_Stream(head, read), _CHUNK))
        if head != _GZIP_MAGIC:
            yield stream
        else:
            yield cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=stream, mode="rb")))


@contextmanager
def open_text(path: PathLike, purpose: str = "input") -> Iterator[TextIO]:
    """Open a UTF-8 text once; gzip is recognised by its first two bytes, whatever the name says.

    Lines end at a line feed only: a lone carriage return or U+2028 inside a passage does not split it.

    Args:
        path: a file, a pipe, an `Input`, or ``-`` for standard input.
        purpose: what it was wanted for, named in the error ("topics", "qrels").

    Raises:
        FileNotFoundError: no such file, or a folder.
        ValueError: while it is read: bytes that are not UTF-8, or a damaged gzip file.
    """
    with _open_binary(path, purpose) as binary:
        file = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="\n")
        try:
            yield file
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise _damage(path, "", error) from error


def numbered_lines(path: PathLike, purpose: str = "input") -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) for every line that is not blank.

    Raises:
        FileNotFoundError: no such file.
        ValueError: bytes that are not UTF-8, a damaged gzip file, or a line of more than 1 GiB (a few megabytes of gzip
            can unpack to that), with the line.
    """
    number = 0
    with _open_binary(path, purpose) as lines:
        try:
            for number, line in enumerate(iter(partial(lines.readline, _LONGEST_LINE + 1), b""), start=1):
                if len(line) > _LONGEST_LINE:
                    raise ValueError(
                        f"{path}:{number}: a line of more than {_LONGEST_LINE >> 20} MiB; is this a {purpose} file? "
                        f"Requests are written one a line"
                    )
                text = (line.removeprefix(_BOM) if number == 1 else line).decode()
                if text.strip():
                    yield number, text.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise _damage(path, f":{number}", error) from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise _damage(path, f":{number + 1}", error) from error


def begun(lines: Iterator[tuple[int, str]]) -> tuple[str, Iterator[tuple[int, str]]]:
    """Return the first line, stripped, and all lines: a format is told by it, and a pipe gives it once only."""
    first = next(lines, None)
    return ("", lines) if first is None else (first[1].strip(), chain([first], lines))


def joined(lines: Iterator[tuple[int, str]]) -> str:
    """Return numbered lines as one text, each where its number says."""
    text, last = io.StringIO(), 1
    for number, line in lines:
        text.write("\n" * (number - last) + line)
        last = number
    return text.getvalue()


def _damage(path: PathLike, line: str, error: Exception) -> ValueError:
    if isinstance(error, UnicodeDecodeError):
        return ValueError(f"{path}{line}: not UTF-8 ({error.reason}); convert the file")
    return ValueError(f"{path}{line}: damaged gzip ({error}); fetch the file again")


# --------------------------------------------------------------------------------------------------------- reading


def refuse_header(columns: Sequence[str], where: str) -> None:
    """Raise ValueError where the first line of a TSV names its columns: it would be taken for a query or a passage."""
    first, second, *_ = (column.strip().lower() for column in columns)
    if first in _ID_COLUMNS and second in _TEXT_COLUMNS:
        raise ValueError(
            f"{where}: a header line, {columns[0]!r} and {columns[1]!r}; delete it, columns go by their place"
        )


def parse_json(text: str, where: str) -> Any:
    """Return the JSON value in `text`, one line or a whole file.

    Args:
        text: the value.
        where: "file:line", for the error.

    Raises:
        ValueError: not valid JSON.
    """
    with _json_errors(where):
        return json.loads(text)


def next_json(text: str, place: int, where: str) -> tuple[Any, int]:
    """Return the JSON value that begins at `place` of `text`, and where it ends; raises as `parse_json` does."""
    with _json_errors(where):
        return _DECODER.raw_decode(text, place)


@contextmanager
def _json_errors(where: str) -> Iterator[None]:
    try:
        yield
    except RecursionError as error:
        raise ValueError(f"{where}: JSON nested too deeply to be read; fix or delete it") from error
    except ValueError as error:  # a number of thousands of digits is one that is no JSONDecodeError
        raise ValueError(f"{where}: not valid JSON ({error}): fix or delete the line") from error


def json_object_lines(path: PathLike, purpose: str = "input") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file:line", object) for every line of a JSONL file.

    Raises:
        ValueError: a line that is not a JSON object.
    """
    yield from json_objects(path, numbered_lines(path, purpose))


def json_objects(path: PathLike, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield as `json_object_lines` does, from the lines of a file that was opened already."""
    for number, line in lines:
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


# --------------------------------------------------------------------------------------------------------- writing


@contextmanager
def atomic_writer(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """Open a UTF-8 text file that appears under its name only when the block ends without an exception.

    It is an `atomic_path`, but a device or a pipe (``/dev/null``, ``/dev/stdout``) is written to as it is, and keeps
    what was written before an exception. A name that ends in ``.gz`` is gzipped, without a time stamp, so that equal
    text gives equal bytes.

    Raises:
        FileExistsError: where the folder should be there is a file.
    """
    place = Path(path)
    packed = place.suffix == ".gz"
    if place.exists() and not place.is_file() and not place.is_dir():
        with place.open("wb") as special, _text(special, packed=packed) as text:
            yield text
        return
    with atomic_path(place) as draft, draft.open("wb") as binary, _text(binary, packed=packed) as text:
        yield text


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[Path]:
    """Give a hidden, empty file to write to; it takes its own name when the block ends without an exception.

    The hidden file lies in the same folder, is flushed to the disk and renamed; on an exception nothing is left behind
    and a file that was there before stays as it was. What a killed process left of the same file is removed. Missing
    parent folders are made. A symbolic link stays, and the file that it names is written.

    Args:
        path: the file to be.
        sync: wait for the disk; False where a reader finds out by itself that a crash left the file torn.

    Raises:
        FileExistsError: where the folder should be there is a file.
    """
    target = Path(path).resolve()
    made_folder(target.parent)
    _remove_drafts(target)
    draft, handle = _new_draft(target)
    try:
        yield draft
        if sync:
            _sync(draft)
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)  # and not before the rename: until then it is locked
    if sync:
        _sync(target.parent)  # the rename itself; some file systems keep it in memory otherwise


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write indented JSON; the file appears whole or not at all.

    Raises:
        ValueError: a number that is not finite.
    """
    with atomic_writer(path) as file:
        json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def plain(value: Any) -> Any:
    """Return a value as it reads back from JSON: tuples become lists, keys strings."""
    return json.loads(json.dumps(value, allow_nan=False))


@contextmanager
def _text(binary: IO[bytes], *, packed: bool) -> Iterator[TextIO]:
    with ExitStack() as stack:
        if packed:
            zipped = gzip.GzipFile(filename="", mode="wb", fileobj=binary, mtime=0)
            binary = cast(IO[bytes], stack.enter_context(zipped))
        yield stack.enter_context(io.TextIOWrapper(binary, encoding="utf-8", newline="\n"))


def check_writable(path: str | os.PathLike[str]) -> None:
    """Make the folder of a file that is written after long work, and check that the file can be made in it.

    Raises:
        IsADirectoryError: the path is a folder.
        FileExistsError: where its folder should be is a file.
        PermissionError: no file can be made in its folder.
    """
    target = Path(path).resolve()
    if target.is_dir():
        raise IsADirectoryError(f"{path}: expected the name of a file, found a folder; name a file in it")
    if target.exists() and not target.is_file():
        return  # a device or a pipe
    made_folder(target.parent)
    draft, handle = _new_draft(target)
    draft.unlink()
    os.close(handle)


def made_folder(folder: Path) -> Path:
    """Make a folder and its parents unless they are there, and return it.

    Raises:
        FileExistsError: it, or a parent, is a file; names the file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        raise FileExistsError(f"{folder}: expected a folder, {file} is a file; choose another output") from error
    return folder


def _new_draft(target: Path) -> tuple[Path, int]:
    """Return a new hidden file beside the target and its handle; locked, so that nobody takes it for litter."""
    while True:
        draft = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if draft.exists():  # else it was taken for litter before it was locked
            return draft, handle
        os.close(handle)


def _remove_drafts(target: Path) -> None:
    """Remove drafts of the target that no process holds: those who wrote them were killed."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.\d+\.[0-9a-f]{{8}}\.tmp")
    for draft in target.parent.iterdir():
        if ours.fullmatch(draft.name):
            with suppress(OSError), draft.open("rb") as file:  # another process may have been faster
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                draft.unlink(missing_ok=True)


@contextmanager
def locked_folder(folder: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Make a folder and hold it for this process; a file ``.lock`` stays in it.

    Who holds it may move it away or `remove_locked` it; who waited for it then makes a new one.

    Args:
        folder: the folder to lock.
        what: is written there, for the error.
        wait: wait until another process lets it go, instead of raising the error.

    Raises:
        FileExistsError: it, or a folder above it, is a file.
        RuntimeError: another process holds it.
    """
    with ExitStack() as stack:
        while (file := _lock(folder, what, wait=wait)) is None:
            pass
        stack.enter_context(file)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _lock(folder: Path, what: str, *, wait: bool) -> TextIO | None:
    """Return the locked file of a folder, or None where the folder went before the file was locked."""
    lock = made_folder(folder) / _LOCK
    try:
        file = lock.open("a+")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise RuntimeError(
            f"{folder}: another process (id {owner}) is writing this {what}; wait for it or choose another output"
        ) from error
    with suppress(FileNotFoundError):
        if os.path.samestat(lock.stat(), os.fstat(file.fileno())):
            return file
    file.close()  # two processes must not lock two different files of one name
    return None


def empty_locked(folder: Path) -> None:
    """Remove everything from a folder that this process holds but its lock."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def remove_locked(folder: Path) -> None:
    """Remove a folder that this process holds, unless another process takes it over meanwhile."""
    empty_locked(folder)
    (folder / _LOCK).unlink()
    with suppress(OSError):  # not empty: it has a new owner
        folder.rmdir()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
