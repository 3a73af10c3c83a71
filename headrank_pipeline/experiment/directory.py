"""The files of a run directory, and the lock that keeps a second process out of it."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from headrank_pipeline.files import locked_folder

__all__ = ["RunDirectory"]

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
        """Bring to an end what a killed call left half done: its old run comes back, unless the new one had begun."""
        shutil.rmtree(self.path / _DISCARDED, ignore_errors=True)
        if (self.path / _MOVING).is_dir():
            self._put_back()
        if self.has_aside:
            if self.scores.exists() and b"\n" in self.scores.read_bytes():
                self.discard()
            else:
                self.restore()

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
