"""Inputs are opened once: pipes, standard input, digests, files that change under a reader."""

import gzip
import hashlib
import io
import os
import pickle
import sys
import threading
from pipes import piped

import pytest

from headrank_pipeline.files import (
    atomic_writer,
    check_input,
    check_writable,
    file_sha256,
    locked_folder,
    numbered_lines,
    open_input,
    open_text,
    remove_locked,
)

LINES = b"".join(b"line %d of a file that is longer than a pipe\n" % number for number in range(5000))


@pytest.mark.parametrize("content", [LINES, gzip.compress(LINES)])
@pytest.mark.parametrize("pieces", [1, 4])
def test_a_pipe_loses_no_line_packed_or_not(content, pieces):
    with piped(content, pieces) as path:
        assert [line for _, line in numbered_lines(path)] == LINES.decode().splitlines()


@pytest.mark.parametrize("content", [LINES, gzip.compress(LINES, mtime=0), b"", b"\x1f"])
def test_an_input_from_a_pipe_is_read_again_and_again_and_knows_its_digest(content):
    with piped(content) as path:
        opened = open_input(path)
    assert opened.sha256 == file_sha256(opened) == hashlib.sha256(content).hexdigest()
    if content != b"\x1f":
        pairs = list(zip(numbered_lines(opened), numbered_lines(opened), strict=True))  # side by side
        assert len(pairs) == len(LINES.splitlines() if content else ())
    assert open_input(opened) is opened
    assert (str(opened), os.fspath(opened)) == (path, path)


def test_standard_input_has_a_name(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(LINES))))
    assert sum(1 for _ in numbered_lines("-")) == 5000
    check_input("-")


def test_an_input_keeps_the_file_that_was_opened(tmp_path):
    path = tmp_path / "topics.tsv"
    path.write_bytes(LINES)
    opened = open_input(path, "topics")
    path.with_name("new").write_bytes(b"other\n")
    path.with_name("new").replace(path)
    assert sum(1 for _ in numbered_lines(opened)) == 5000


def test_an_input_that_is_changed_in_place_is_refused(tmp_path):
    path = tmp_path / "topics.tsv"
    path.write_bytes(LINES)
    opened = open_input(path, "topics")
    with path.open("r+b") as file:
        file.write(b"LINE")
    with pytest.raises(ValueError, match=r"topics\.tsv: the topics file was changed after it was first read"):
        list(numbered_lines(opened))
    with path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match="was changed"), open_text(opened) as text:
        text.read()


def test_a_digest_is_never_taken_of_a_pipe_that_is_read_again():
    with piped(LINES) as path, pytest.raises(ValueError, match="the qrels are read twice here"):
        file_sha256(path, "qrels")


def test_what_is_not_there_is_told_without_opening(tmp_path):
    with pytest.raises(FileNotFoundError, match="this is a folder; name the file inside it"):
        check_input(tmp_path, "qrels")
    with pytest.raises(FileNotFoundError, match="no such qrels file"):
        check_input(tmp_path / "none", "qrels")
    with piped(b"line\n") as path:
        check_input(path)
        assert list(numbered_lines(path)) == [(1, "line")]


@pytest.mark.parametrize("damage", [lambda packed: packed[:-12], lambda packed: packed[:40] + b"\0" * 30 + packed[70:]])
def test_a_damaged_gzip_is_named_line_by_line_and_as_a_whole(tmp_path, damage):
    path = tmp_path / "packed.gz"
    path.write_bytes(damage(gzip.compress(os.urandom(3000).hex().encode() + b"\n")))
    with pytest.raises(ValueError, match=r"packed\.gz:\d+: damaged gzip"):
        list(numbered_lines(path))
    with pytest.raises(ValueError, match=r"packed\.gz: damaged gzip"), open_text(path) as text:
        text.read()


def test_an_input_travels_to_another_process_by_name_and_digest(tmp_path, monkeypatch):
    path = tmp_path / "topics.tsv"
    path.write_text("1\tflea\n")
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(open_input("topics.tsv", "topics"))
    monkeypatch.chdir("/")  # another process may stand elsewhere
    again = pickle.loads(sent)
    assert (str(again), list(numbered_lines(again))) == ("topics.tsv", [(1, "1\tflea")])
    path.write_text("1\tdog\n")
    with pytest.raises(ValueError, match=r"^topics\.tsv: the topics file was changed after it was first read"):
        pickle.loads(sent)
    with piped(b"1\tflea\n") as name:
        piping = pickle.dumps(open_input(name, "topics"))
    with pytest.raises(ValueError, match=r"the topics file is read by another process here"):
        pickle.loads(piping)


# ------------------------------------------------------------------------------------------------------------- writing


def test_a_link_stays_and_the_file_that_it_names_is_written(tmp_path):
    link, named = tmp_path / "link.txt", tmp_path / "elsewhere" / "named.txt"
    link.symlink_to(named)
    for text in ("new\n", "newer\n"):  # what it names need not be there yet
        with atomic_writer(link) as file:
            file.write(text)
        assert (link.is_symlink(), named.read_text()) == (True, text)
    assert [path.name for path in named.parent.iterdir()] == ["named.txt"]
    with pytest.raises(ZeroDivisionError), atomic_writer(link) as file:
        file.write(f"{1 / 0}")
    assert named.read_text() == "newer\n"


@pytest.mark.parametrize("name", ["fifo", "fifo.gz"])
def test_a_pipe_is_written_to_and_not_replaced(tmp_path, name):
    pipe = tmp_path / name
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.daemon = True  # of a pipe that is gone it would wait for ever
    reader.start()
    with atomic_writer(pipe) as file:
        file.write("line\n")
    assert pipe.is_fifo()
    reader.join(timeout=10)
    assert [gzip.decompress(data) if name.endswith(".gz") else data for data in read] == [b"line\n"]


def test_a_link_to_standard_output_is_written_to(fresh_python, tmp_path):
    (tmp_path / "out").symlink_to("/dev/stdout")  # not by its own name: a fault would replace it, for a root user
    code = "from headrank_pipeline.files import atomic_writer\n"
    code += f"with atomic_writer({str(tmp_path / 'out')!r}) as file:\n    file.write('line')\n"
    assert fresh_python(code).stdout == "line"
    assert (tmp_path / "out").is_symlink()


def test_a_folder_that_its_owner_removed_is_locked_anew_by_one_of_those_who_waited(tmp_path):
    folder, held = tmp_path / "draft", threading.Event()
    end = threading.Event()

    def wait():
        with locked_folder(folder, "index", wait=True):
            held.set()
            end.wait(10)

    waiting = threading.Thread(target=wait)
    with locked_folder(folder, "index"):
        (folder / "part").mkdir()
        waiting.start()
        assert not held.wait(0.3)  # it has opened the lock file by now
        remove_locked(folder)
    assert held.wait(10)
    try:
        with pytest.raises(RuntimeError, match="another process"), locked_folder(folder, "index"):
            pass
    finally:
        end.set()
        waiting.join()
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_file_that_can_be_written_later_leaves_its_folder_only(tmp_path):
    check_writable(tmp_path / "new" / "page.html")
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]
    check_writable("/dev/null")
    with pytest.raises(IsADirectoryError, match="found a folder"):
        check_writable(tmp_path)
    with pytest.raises(FileExistsError, match="is a file; choose another output"):
        (tmp_path / "file").touch()
        check_writable(tmp_path / "file" / "page.html")
