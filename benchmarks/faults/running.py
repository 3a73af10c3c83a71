"""Faults of runs: kills, disks, journals, manifests, and inputs that change before, between and while they are read."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

from faults.judging import EQUAL, REFUSED, Fault, NotHeld, NotJudged, equal_or_refused, mutated, refusal, set_somewhere
from headrank_pipeline.comparison.costs import cost_of
from headrank_pipeline.comparison.finished import read_finished
from headrank_pipeline.experiment.batches import CandidateSource, supply_from_file, supply_from_source
from headrank_pipeline.experiment.runner import RunPlan, execute
from headrank_pipeline.pipeline import Queries, Reranker, Source, as_queries
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import read_candidates, write_candidates

__all__ = ["FAULTS", "Words", "lists", "plan"]

_TEXTS = ("the flea lives", "a dog and a flea", "cats", "life of a flea and a dog", "nothing here", "a year of life")
_QUERIES, _BATCH = 8, 2


class Words(Reranker):
    """Shared words, and a share of the whole batch, so that what is in a batch shows in the scores."""

    def __init__(self, name: str = "words", before_batch: Callable[[int], object] = lambda number: None) -> None:
        self.name, self.before_batch, self.batches = name, before_batch, 0

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        """Return the rankings rescored."""
        self.before_batch(self.batches)
        self.batches += 1
        shift = sum(len(ranking.query.text) for ranking in rankings) / 1000
        return [ranking.rescored([self._score(ranking, c) + shift for c in ranking.candidates]) for ranking in rankings]

    def _score(self, ranking: Ranking, candidate: Candidate) -> float:
        words = set((candidate.text or "").split())
        return len(set(ranking.query.text.split()) & words) / 3 + len(self.name) * len(words) / 100

    def describe(self) -> dict[str, Any]:
        """Return the name, which is part of every score."""
        return {"system": self.name}


class Passages(Source):
    """A first stage that finds the same passages for every query."""

    def retrieve(self, queries: Queries) -> Any:
        """Yield a ranking per query."""
        return (replace(lists()[0], query=query) for query in as_queries(queries))

    def describe(self) -> dict[str, Any]:
        """Return a name."""
        return {"source": "passages"}


@cache
def lists() -> tuple[Ranking, ...]:
    """The queries with their candidates."""
    found = tuple(Candidate(f"d{i}", 9.0 - i, text) for i, text in enumerate(_TEXTS))
    return tuple(Ranking(Query(f"q{n}", f"life of flea number {'x' * n}"), found[: 6 - n % 2]) for n in range(_QUERIES))


def plan(folder: Path, output: Path, reranker: Reranker | None = None, **changes: Any) -> RunPlan:
    """The plan of every case: candidates from a file in the folder, or from a first stage where `supply` says so."""
    supply = changes.pop("supply", None) or supply_from_file(folder / "candidates.jsonl")
    settings = {"depth": 5, "batch_size": _BATCH} | changes
    return RunPlan(output=output, reranker=reranker or Words(), supply=supply, **settings)


def retrieved() -> CandidateSource:
    """The candidates of a first stage, which the run keeps."""
    return supply_from_source(Passages(), [ranking.query for ranking in lists()])


class _Stop(BaseException):
    """Ends a run after some batches, as Ctrl-C does."""


@cache
def _home() -> Path:
    folder = Path(mkdtemp(prefix="faults-reference-"))
    write_candidates(folder / "candidates.jsonl", lists())
    return folder


@cache
def _run(batches: int, retrieves: bool = False, name: str = "words") -> Path:
    """A run that was ended after so many batches, of 4."""
    home = _home()
    output = home / f"run-{batches}-{retrieves}-{name}"

    def stop(number: int) -> None:
        if number == batches:
            raise _Stop

    with suppress(_Stop):
        execute(plan(home, output, Words(name, stop), supply=retrieved() if retrieves else None))
    return output


def _begun(chance: Random, room: Path, *, retrieves: bool = False, batches: int | None = None) -> Path:
    """A copy of a run in the room, its candidates beside it, and how far it is drawn."""
    shutil.copyfile(_home() / "candidates.jsonl", room / "candidates.jsonl")
    done = chance.randrange(1, 5) if batches is None else batches
    return Path(shutil.copytree(_run(done, retrieves), room / "run"))


def _printed(output: Path) -> dict[str, bytes]:
    return {name: (output / name).read_bytes() for name in ("run.trec", "first_stage.trec")}


def _whole(retrieves: bool = False, name: str = "words") -> dict[str, bytes]:
    return _printed(_run(_QUERIES, retrieves, name))


def _resumed(room: Path, *, retrieves: bool = False) -> dict[str, bytes]:
    execute(plan(room, room / "run", supply=retrieved() if retrieves else None))
    return _printed(room / "run")


def _refused_then_equal(room: Path, action: Callable[[], Any], restore: Callable[[], object], *names: str) -> str:
    """The action ends equal or refused, and once what was changed is as before, the run continues to the same bytes."""
    outcome = equal_or_refused(action, _whole(), *names)
    restore()
    if outcome == REFUSED and _resumed(room) != _whole():
        raise NotHeld("refused, but the run that was continued afterwards is another")
    return outcome


# ----------------------------------------------------------------------------------------------------- kills and disks

_EVENTS = {"open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir", "shutil.rmtree", "fcntl.flock"}


def _in_child(room: Path, action: Callable[[], object], at: int, strike: Callable[[], object]) -> tuple[int, int]:
    """Run an action in a process of its own and strike at its nth touch of a file of the room; -1: only count.

    Returns:
        its status: 0, 5 where it was refused, 99 for another error, or minus the signal; and the touches counted.
    """
    counter = room.with_name(room.name + ".count")
    if (pid := os.fork()) == 0:
        touched = 0
        real_sync = os.fsync

        def touch() -> None:
            nonlocal touched
            touched += 1
            if touched - 1 == at:
                strike()

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            named = event in _EVENTS and (event == "fcntl.flock" or str(room) in str(arguments[0]))
            if named and ".count" not in str(arguments[0]):
                touch()

        def sync(handle: int) -> None:
            touch()
            real_sync(handle)

        status = 99
        try:
            os.fsync = sync
            sys.addaudithook(hook)
            action()
            status = 0
        except KeyboardInterrupt:
            status = 130
        except Exception as error:  # noqa: BLE001 - becomes a status
            status = 5 if refusal(error, [str(room), os.strerror(errno.ENOSPC), os.strerror(errno.EFBIG)]) else 99
        finally:
            if at < 0:
                counter.write_text(str(touched))
            os._exit(status)
    _, ended = os.waitpid(pid, 0)
    touches = int(counter.read_text()) if counter.exists() else 0
    counter.unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(ended), touches


@cache
def _touches(retrieves: bool, overwrite: bool) -> int:
    room = Path(mkdtemp(prefix="faults-touches-"))
    _prepared(room, overwrite)
    _, touches = _in_child(room, _call(room, retrieves, overwrite), -1, lambda: None)
    shutil.rmtree(room)
    return touches


def _prepared(room: Path, overwrite: bool) -> None:
    shutil.copyfile(_home() / "candidates.jsonl", room / "candidates.jsonl")
    if overwrite:
        shutil.copytree(_run(_QUERIES, name="another"), room / "run")


def _call(room: Path, retrieves: bool, overwrite: bool) -> Callable[[], object]:
    return lambda: execute(plan(room, room / "run", supply=retrieved() if retrieves else None), overwrite=overwrite)


def crash(chance: Random, room: Path) -> str:
    """A run is killed at any touch of a file, up to three times; or while it replaces another run."""
    retrieves, overwrite = chance.random() < 0.3, chance.random() < 0.4
    sent = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
    _prepared(room, overwrite)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(_touches(retrieves, overwrite))
        _in_child(room, _call(room, retrieves, overwrite), at, lambda: os.kill(os.getpid(), sent))
    if overwrite:
        _old_or_new(room, retrieves)
    _call(room, retrieves, overwrite)()
    return _same(room, retrieves)


def _old_or_new(room: Path, retrieves: bool) -> None:
    """Without --overwrite, the old run is refused as another's and still whole, or the new one has begun."""
    try:
        _call(room, retrieves, overwrite=False)()
    except ValueError as error:
        if "another configuration" not in str(error):
            raise NotHeld(f"neither old nor new: {error}") from error
        if _printed(room / "run") != _whole(name="another"):
            raise NotHeld("the old run is not what it was") from error


def _same(room: Path, retrieves: bool) -> str:
    if _printed(room / "run") != _whole(retrieves):
        raise NotHeld("the continued run is another")
    if litter := [path.name for path in (room / "run").iterdir() if path.name.startswith(".") and path.name != ".lock"]:
        raise NotHeld(f"left behind: {litter}")
    return EQUAL


def disk(chance: Random, room: Path) -> str:
    """No file may grow beyond some size, or an open or a flush fails as on a full disk; then there is room again."""
    retrieves, overwrite = chance.random() < 0.3, chance.random() < 0.3
    _prepared(room, overwrite)
    call = _call(room, retrieves, overwrite)
    if chance.random() < 0.5:
        limit = chance.randrange(2500)

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            call()

        status, _ = _in_child(room, limited, -1, lambda: None)
    else:

        def full() -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        status, _ = _in_child(room, call, chance.randrange(_touches(retrieves, overwrite)), full)
    if status == 99:
        raise NotHeld("a full disk ended in a traceback")
    if overwrite:
        _old_or_new(room, retrieves)
    call()
    return _same(room, retrieves)


# ---------------------------------------------------------------------------------------------- what lies on the disk


def journal(chance: Random, room: Path) -> str:
    """A journal that was damaged, edited, or is another run's."""
    output = _begun(chance, room)
    scores = output / "scores.jsonl"
    data = scores.read_bytes()
    kind = chance.randrange(8)
    if kind == 0:
        other = (_run(_QUERIES, name="another") / "scores.jsonl").read_bytes().splitlines(keepends=True)
        own = data.splitlines(keepends=True)
        changed = b"".join(own[: chance.randrange(len(own))] + chance.sample(other, chance.randrange(1, 4)))
    elif kind == 1:
        changed = _edited(chance, data)
    elif kind == 2:
        lines = data.splitlines(keepends=True)
        chance.shuffle(lines)  # whole lines of this run, in any order: they are as good as before
        changed = b"".join(lines)
    else:
        changed = mutated(chance, data)
    scores.write_bytes(changed)
    if changed == data:
        raise NotJudged
    return equal_or_refused(lambda: _resumed(room), _whole(), "scores.jsonl")


def _edited(chance: Random, data: bytes) -> bytes:
    """A valid line with another content."""
    lines = data.splitlines(keepends=True)
    place = chance.randrange(len(lines))
    record = json.loads(lines[place])
    change = chance.choice(("score", "docids", "qid", "notes", "seconds"))
    if change == "score":
        record["scores"][chance.randrange(len(record["scores"]))] += chance.choice((1e-9, 1.0, -3.0))
    elif change == "docids":
        chance.shuffle(record["docids"])
    else:
        record[change] = {"qid": f"q{chance.randrange(_QUERIES)}", "notes": {"prompt_tokens": 3}, "seconds": 9.5}[
            change
        ]
    lines[place] = json.dumps(record).encode() + b"\n"
    return b"".join(lines)


_ODD: tuple[Any, ...] = (None, True, 0, -1, 1e308, "", "x", [], ["x"], {}, {"x": [1]}, "\u0000", 10**40)


def manifest(chance: Random, room: Path) -> str:
    """A manifest that was damaged or edited, before the run is continued, and before it is read as a finished one."""
    finished = chance.random() < 0.5
    output = _begun(chance, room, batches=_QUERIES if finished else None)
    path = output / "manifest.json"
    if chance.random() < 0.5:
        path.write_bytes(mutated(chance, path.read_bytes()))
    else:
        record = json.loads(path.read_bytes())
        set_somewhere(chance, record, _ODD, deeper=0.7)
        path.write_text(json.dumps(record))
    if not finished or chance.random() < 0.3:
        return equal_or_refused(lambda: _resumed(room), _whole(), "manifest.json", str(output))
    expected = read_finished(_run(_QUERIES))

    def read() -> Any:
        run = read_finished(output)
        cost_of(run)
        return run.scored, run.first_stage

    return equal_or_refused(read, (expected.scored, expected.first_stage), "manifest.json", str(output))


# --------------------------------------------------------------------------------------------------------------- inputs


def _other_candidates(chance: Random, path: Path) -> bytes:
    """The same file with other texts, fewer queries, another order, or an accident in it."""
    kind, rankings = chance.randrange(4), list(read_candidates(path))
    if kind == 0:
        return mutated(chance, path.read_bytes())
    if kind == 1:
        rankings = [replace(r, candidates=tuple(replace(c, text="a flea") for c in r.candidates)) for r in rankings]
    elif kind == 2:
        rankings = rankings[: chance.randrange(1, len(rankings))]
    else:
        chance.shuffle(rankings)
    other = path.with_name("other.jsonl")
    write_candidates(other, rankings)
    data = other.read_bytes()
    other.unlink()
    if data == path.read_bytes():
        raise NotJudged
    return data


def _put(chance: Random, path: Path, data: bytes | None) -> None:
    """Change a file: delete it, replace it, or write into it."""
    if data is None:
        path.unlink()
    elif chance.random() < 0.5:
        path.with_name("new").write_bytes(data)
        path.with_name("new").replace(path)
    else:
        path.write_bytes(data)


def inputs(chance: Random, room: Path) -> str:
    """Candidates that are changed between two calls, or while a run reads them; those a first stage gave, too."""
    when = chance.choice(("between", "between", "during", "during", "retrieved"))
    if when == "retrieved":
        output = _begun(chance, room, retrieves=True)
        kept = output / "candidates.jsonl"
        kept.write_bytes(_other_candidates(chance, kept))
        return equal_or_refused(lambda: _resumed(room, retrieves=True), _whole(True), "candidates.jsonl")
    output = _begun(chance, room)
    path = room / "candidates.jsonl"
    before = path.read_bytes()
    data = None if chance.random() < 0.15 else _other_candidates(chance, path)
    names = ("candidates", "qid", str(output))
    if when == "between":
        _put(chance, path, data)
        return _refused_then_equal(room, lambda: _resumed(room), lambda: path.write_bytes(before), *names)
    shutil.rmtree(output)
    at = chance.randrange(4)
    reranker = Words(before_batch=lambda number: _put(chance, path, data) if number == at else None)

    def interrupted() -> dict[str, bytes]:
        execute(plan(room, output, reranker))
        return _printed(output)

    return _refused_then_equal(room, interrupted, lambda: path.write_bytes(before), *names)


FAULTS: dict[str, Fault] = {
    "crash": crash,
    "disk": disk,
    "journal": journal,
    "manifest": manifest,
    "inputs": inputs,
}
