"""The files of a run directory, and the lock that keeps a second process out of it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from headrank_pipeline.files import held

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

    def locked(self) -> AbstractContextManager[None]:
        """Make the directory and hold it for this process while the context is open.

        Raises:
            FileExistsError: it is a file.
            RuntimeError: another process holds it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path}: a run is a folder, this is a file; choose another --output")
        return held(self.path, "run")

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
