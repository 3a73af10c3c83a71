"""The files of a run directory, and the lock that keeps a second process out of it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RunDirectory"]


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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the directory and hold it for this process.

        Raises:
            RuntimeError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        # The file stays: removing it would let two processes lock two different files of one name.
        with (self.path / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                owner = file.read().strip() or "unknown"
                raise RuntimeError(
                    f"{self.path}: another process (id {owner}) is writing this run; wait for it or choose "
                    f"another --output"
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def work(self) -> list[str]:
        """Return the names of the files that hold something retrieved, scored or printed."""
        files = (self.candidates, self.scores, self.first_stage_run, self.run)
        return [file.name for file in files if file.exists() and file.stat().st_size > 0]

    def clear(self) -> None:
        """Remove what an earlier run left, but neither the index nor files that are not ours."""
        for file in (self.run, self.evaluation, self.first_stage_run, self.scores, self.candidates, self.manifest):
            file.unlink(missing_ok=True)

    def retract_results(self) -> None:
        """Remove what must not be there while queries are open: the run and everything derived from it."""
        for file in (self.run, self.evaluation, self.first_stage_run):
            file.unlink(missing_ok=True)
