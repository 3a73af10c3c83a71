"""Files appear whole or not at all, and leave nothing behind; a folder is held by one process."""

import signal
import subprocess
import sys
from textwrap import dedent

import pytest

from headrank_pipeline.files import atomic_writer, locked_folder


def test_what_a_killed_process_left_goes_when_the_file_is_written_again(tmp_path):
    target = tmp_path / "manifest.json"
    code = f"""
        import os, signal
        from headrank_pipeline.files import atomic_writer
        with atomic_writer({str(target)!r}) as file:
            file.write("half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", dedent(code)], check=False)
    assert killed.returncode == -signal.SIGKILL
    other = tmp_path / ".run.trec.1.0123abcd.tmp"  # of another file, and so another's
    other.touch()
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_writer(target) as first, atomic_writer(target) as second:  # neither is litter to the other
        first.write("1")
        second.write("2")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "manifest.json"]
    assert target.read_text() == "1"


@pytest.mark.parametrize("below", ["a/b/out.txt", "out.txt"])
def test_a_file_where_a_folder_should_be_is_named(tmp_path, below):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / below
    with (
        pytest.raises(FileExistsError, match=rf"expected a folder, {tmp_path}/file is a file; choose another"),
        atomic_writer(path),
    ):
        pass
    with pytest.raises(FileExistsError, match=rf"{tmp_path}/file is a file"), locked_folder(path, "run"):
        pass
