"""How much of the package one query goes through: files entered, their lines, changes of file.

    python benchmarks/trace_query.py                   # the counts; .ci/run prints them, and fails above BOUNDS
    python benchmarks/trace_query.py --files rerank    # and the files of one command, as they are entered

One query with three candidates goes through `headrank rerank --model embedded` and through `headrank run demo
--candidates`, on the CPU. A file counts as entered when one of its functions is called; what runs while modules are
imported does not count. A change of file is a call whose function lies in another file than the function called before.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import FrameType
from typing import Any

import click

import headrank_pipeline
from headrank_pipeline.cli import main as headrank

PACKAGE = Path(headrank_pipeline.__file__).parent
_PREFIX = f"{PACKAGE}{os.sep}"
# Files that one query may enter. Raise one only when a file more is worth more than a reader's time.
BOUNDS = {"rerank": 24, "run": 30}
_TEXTS = ("Fleas live for up to a year.", "The dog sleeps.", "Spies keep one flea.")


@dataclass
class Trace:
    """What a command went through.

    Args:
        files: path -> functions of it that were called, in the order in which files were entered.
        changes: calls into another file than that of the call before, in the same thread: how threads take turns is
            chance.
        last: thread -> file of its last call.
    """

    files: dict[str, set[str]] = field(default_factory=dict)
    changes: int = 0
    last: dict[int, str] = field(default_factory=dict)

    def called(self, frame: FrameType, event: str, _argument: Any) -> None:
        """Take note of a call; given to sys.settrace."""
        code = frame.f_code
        name = code.co_filename
        if event != "call" or not name.startswith(_PREFIX) or not code.co_flags & CO_OPTIMIZED or _importing(frame):
            return
        thread = threading.get_ident()
        self.changes += name != self.last.get(thread)
        self.last[thread] = name
        self.files.setdefault(name, set()).add(code.co_qualname)

    def lines(self) -> int:
        """Return how many lines the files have, read or not."""
        return sum(len(Path(name).read_text(encoding="utf-8").splitlines()) for name in self.files)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(_PREFIX):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def traced() -> Iterator[Trace]:
    """Give what is called inside the block, in all threads that begin there."""
    trace = Trace()
    threading.settrace(trace.called)
    sys.settrace(trace.called)
    try:
        yield trace
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]  # the documented way to end it


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the two commands, with their files written to `folder`."""
    docs = [{"docid": f"d{n}", "score": 3.0 - n, "doc": {"contents": text}} for n, text in enumerate(_TEXTS)]
    listed = {"query": {"qid": "q1", "text": "how long does a flea live?"}, "candidates": docs}
    (folder / "candidates.jsonl").write_text(json.dumps(listed) + "\n", encoding="utf-8")
    (folder / "qrels.txt").write_text("q1 0 d0 1\n", encoding="utf-8")
    shared = ["--candidates", "candidates.jsonl", "--model", "embedded", "--device", "cpu"]
    given = ["--qrels", "qrels.txt", "--offline"]
    return {
        "rerank": ["rerank", *shared, "--output", "one"],
        "run": ["run", "demo", *shared, *given, "--output", "two"],
    }


def trace_of(arguments: Sequence[str], folder: Path) -> Trace:
    """Run a command in `folder` and return what it went through.

    Raises:
        RuntimeError: it failed; holds what it printed.
    """
    said = io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        traced() as trace,
    ):
        status = _status(arguments)
    if status or not trace.files:
        raise RuntimeError(f"headrank {' '.join(arguments)} ended with status {status}:\n{said.getvalue()}")
    return trace


def _status(arguments: Sequence[str]) -> Any:
    try:
        headrank(list(arguments))
    except SystemExit as end:
        return end.code
    return 0


@click.command()
@click.option("--files", "shown", type=click.Choice(["rerank", "run"]), help="List the files of this command.")
def main(shown: str | None) -> None:
    """Print how many files of the package one query enters."""
    with tempfile.TemporaryDirectory() as folder:
        found = {name: trace_of(line, Path(folder)) for name, line in commands(Path(folder)).items()}
    total = sum(1 for _ in PACKAGE.rglob("*.py"))
    for name, trace in found.items():
        print(
            f"headrank {name}: {len(trace.files)} of {total} files, {trace.lines()} lines, {trace.changes} changes of "
            f"file, {sum(map(len, trace.files.values()))} functions"
        )
    for file, functions in found[shown].files.items() if shown else ():
        print(f"  {file.removeprefix(_PREFIX)}  {len(functions)}")
    for name, trace in found.items():
        if len(trace.files) > BOUNDS[name]:
            raise click.ClickException(f"headrank {name} enters {len(trace.files)} files, {BOUNDS[name]} at most")


if __name__ == "__main__":
    main()
