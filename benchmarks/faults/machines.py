"""Faults of runs on several workers: some are killed at a query, or the process that writes is stopped; then again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

if __name__ == "__main__":  # one run of a case, see `_in_a_process`
    sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.judging import EQUAL, Fault, NotHeld
from faults.running import Words, lists, plan
from headrank_pipeline.experiment.batches import Batches, TriedBatch
from headrank_pipeline.experiment.runner import execute
from headrank_pipeline.experiment.scaleout import RayWorkers, workers
from headrank_pipeline.records import Ranking
from headrank_pipeline.trec import write_candidates

__all__ = ["FAULTS", "DyingWords"]

_FILES = ("run.trec", "first_stage.trec")
_SECONDS = 180  # after which a run hangs


class DyingWords(Words):
    """Kills its worker at some queries, each once: a file is left where it was done."""

    def __init__(self, folder: Path, qids: Sequence[str]) -> None:
        super().__init__()
        self.folder, self.qids = folder, qids

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        """Return the rankings rescored, if this process lives that long."""
        for qid in (ranking.query.qid for ranking in rankings):
            marker = self.folder / f"died-{qid}"
            if qid in self.qids and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().rerank_batch(rankings)


class _Stop(BaseException):
    """Ends the process that writes, as Ctrl-C does."""


@dataclass
class _Stopping:
    """Workers whose results end after some batches."""

    inner: RayWorkers
    after: int

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def try_batches(self, batches: Batches) -> Generator[TriedBatch, None, None]:
        with closing(self.inner.try_batches(batches)) as stream:
            for number, tried in enumerate(stream):
                if number == self.after:
                    raise _Stop
                yield tried


def machines(chance: Random, room: Path) -> str:
    """One worker or two, up to two of them killed; perhaps stopped after a batch; continued by as many or others."""
    write_candidates(room / "candidates.jsonl", lists())
    execute(plan(room, room / "one"))
    qids = chance.sample([ranking.query.qid for ranking in lists()], chance.randrange(3))
    for stop_after in (chance.choice((0, 1, 2, 3)), 0):
        _in_a_process(room, chance.choice((1, 2, 2)), stop_after, qids)
        if not stop_after:
            break
    found, wanted = ([(room / run / name).read_bytes() for name in _FILES] for run in ("run", "one"))
    if found != wanted:
        raise NotHeld("the files of workers differ from those of one process")
    if undone := [qid for qid in qids if not (room / f"died-{qid}").exists()]:
        raise NotHeld(f"queries {undone} never reached a worker")
    return EQUAL


def _in_a_process(room: Path, count: int, stop_after: int, qids: Sequence[str]) -> None:
    command = [sys.executable, __file__, str(room), str(count), str(stop_after), *qids]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise NotHeld(f"hung for {_SECONDS} s with {count} workers") from error
    if done.returncode:
        raise NotHeld(f"ended with {done.returncode}: {done.stderr[-300:]}")


def _run(room: Path, count: int, stop_after: int, qids: Sequence[str]) -> None:
    with suppress(_Stop), workers(partial(DyingWords, room, qids), count, device="cpu") as started:
        execute(plan(room, room / "run", _Stopping(started, stop_after) if stop_after else started))


FAULTS: dict[str, Fault] = {"machines": machines}

if __name__ == "__main__":
    from faults.machines import _run as run  # its classes travel to the workers under this name

    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
