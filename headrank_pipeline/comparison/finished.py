"""Finished runs as a reader sees them, run directories and run files: nothing is locked, repaired or written."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.recipe import prompt_order
from headrank_pipeline.experiment.directory import (
    Entry,
    RunDirectory,
    journal_key,
    read_journal,
    read_json,
    read_manifest,
)
from headrank_pipeline.experiment.reproduction import recorded_files
from headrank_pipeline.files import Input, check_input, file_sha256, open_input
from headrank_pipeline.records import Candidate, Ranking
from headrank_pipeline.trec import read_candidates, read_run

__all__ = ["FIRST_STAGE", "FinishedRun", "RunFile", "read_finished", "read_finished_runs", "read_runs"]

FIRST_STAGE = "first stage"  # what tables call the system before reranking


@dataclass(frozen=True)
class FinishedRun:
    """What a run wrote; files are read when they are first asked for.

    Args:
        name: what tables and figures call it.
        directory: where its files lie.
        manifest: what made it.
    """

    name: str
    directory: RunDirectory
    manifest: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """What the user names it by."""
        return self.directory.path

    @property
    def run(self) -> Path:
        """The run that is evaluated."""
        return self.directory.run

    @property
    def origin(self) -> str:
        """Where it comes from, in words."""
        return f"{self.path}, tag {self.identity['tag']}, commit {self.commit}, status {self.manifest['status']}"

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that could change a ranking."""
        identity: Mapping[str, Any] = self.manifest["identity"]
        return identity

    @property
    def totals(self) -> Mapping[str, Any]:
        """Counts and times of the whole run."""
        totals: Mapping[str, Any] = self.manifest["totals"]
        return totals

    @property
    def depth(self) -> int:
        """How many candidates were reranked."""
        return int(self.identity["depth"])

    @property
    def template(self) -> Mapping[str, Any]:
        """What the prompt was written by; empty for systems without one prompt template."""
        reranker = self.identity["reranker"]
        template = reranker.get("template") if isinstance(reranker, Mapping) else None
        return template if isinstance(template, Mapping) else {}

    @property
    def order(self) -> str:
        """The order in which the prompt gives the candidates, in words."""
        seed, reranker = self.template.get("shuffle_seed"), self.identity["reranker"]
        order = "as given" if seed is None else f"shuffled, seed {seed}"
        rule = reranker.get("rule") if isinstance(reranker, Mapping) else None
        if isinstance(rule, Mapping) and rule.get("both_orders"):
            return f"{order}, and its reverse"
        return f"{order}, reversed" if self.template.get("reverse") else order

    @property
    def commit(self) -> str:
        """Short commit of the code that made the run, ``+`` where the checkout had changes, ``?`` where unknown."""
        git = self.manifest["environment"].get("git") or {}
        commit = git.get("commit")
        return f"{commit[:7]}{'+' if git.get('dirty') else ''}" if commit else "?"

    @cached_property
    def first_stage(self) -> Mapping[str, Sequence[Candidate]]:
        """Qid -> candidates in first-stage order, all of them."""
        return read_run(self.directory.first_stage_run)

    @cached_property
    def scored(self) -> Mapping[str, Entry]:
        """Qid -> raw scores of the reranked candidates, best first; failed and empty queries are left out."""
        lines = read_journal(self.directory.scores, journal_key(self.identity))
        entries = {entry.qid: entry for _, _, entry in lines}  # the last line of a query wins
        return {qid: entry for qid, entry in entries.items() if entry.docids}

    @cached_property
    def recorded_evaluation(self) -> Mapping[str, Any] | None:
        """evaluation.json, or None where the run was not evaluated."""
        return read_json(self.directory.evaluation) if self.directory.evaluation.exists() else None

    @cached_property
    def heads_file(self) -> Path | None:
        """The head set that the run read, from its command or its model's folder, or None.

        A file that holds other heads by now, and a published set, which is no file, are None.
        """
        reranker = self.identity["reranker"]
        recorded = reranker.get("heads", {}).get("sha256")
        if recorded is None:
            return None
        # Manifests of before 0.1.0 have the model's folder in the identity.
        model = self.manifest["origins"].get("model", reranker.get("model"))
        known = [str(Path(str(model)) / "heads.json")]
        for session in self.manifest["sessions"]:
            words = shlex.split(session["command"] or "")
            known += [after for word, after in pairwise(words) if word == "--heads"]
            known += [word.removeprefix("--heads=") for word in words if word.startswith("--heads=")]
        files = (path for name in known for path in recorded_files(self.manifest, name))
        return next((path for path in files if HeadSet.load(path).digest() == recorded), None)

    def prompt_candidates(self, qid: str) -> list[Candidate]:
        """Return the reranked candidates of a query, with first-stage scores, in the order of the prompt.

        That is the first order of a system that reads two.
        """
        read = self.first_stage[qid][: self.depth]
        docids = [candidate.docid for candidate in read]
        template = self.template
        order = prompt_order(
            qid, docids, reverse=bool(template.get("reverse")), shuffle_seed=template.get("shuffle_seed")
        )
        return [read[index] for index in order]

    def prompt_order(self, qid: str) -> list[str]:
        """Return the docids of `prompt_candidates`."""
        return [candidate.docid for candidate in self.prompt_candidates(qid)]

    def rankings(self, candidates: Path | None = None) -> Iterator[Ranking]:
        """Yield the candidates with their texts, from the run directory, `candidates`, or where the run read them.

        Raises:
            FileNotFoundError: no such file; says which flag names another.
            ValueError: a file with another checksum than the run's candidates had.
        """
        if self.directory.candidates.exists():
            return read_candidates(self.directory.candidates)
        path = candidates or Path(self.manifest["origins"].get("candidates", ""))
        if candidates is None:
            path = next(iter(recorded_files(self.manifest, str(path))), path)
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.directory.path}: passage texts are needed, but candidates {path} are not there; "
                f"name the file with candidates=FILE"
            )
        recorded, found = self.identity["candidates"].get("candidates_sha256"), file_sha256(path, "candidates")
        if recorded != found:
            raise ValueError(
                f"{path}: not the candidates of {self.directory.path}: SHA-256 {found[:12]}…, the run's had "
                f"{str(recorded)[:12]}…; name the right file with candidates=FILE"
            )
        return read_candidates(path)


@dataclass(frozen=True)
class RunFile:
    """A TREC run of any tool: an order of passages for each query, and nothing about what made it.

    Args:
        name: what tables and figures call it.
        run: the file, opened once; it may be gzipped or a pipe.
    """

    name: str
    run: Input

    @property
    def path(self) -> Path:
        """What the user names it by."""
        return Path(self.run)

    @property
    def commit(self) -> str:
        """``?``: what made it is not known."""
        return "?"

    @property
    def origin(self) -> str:
        """Where it comes from, in words."""
        return f"{self.path}, a run file, SHA-256 {self.run.sha256[:16]}…"


def read_runs(paths: Sequence[Path]) -> list[FinishedRun | RunFile]:
    """Return the runs of some directories and files, each named by the shortest end of its path that no other shares.

    Raises:
        FileNotFoundError: a directory without a run, or nothing there.
        ValueError: no path, or a run that is not finished.
    """
    return [_read(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def read_finished_runs(paths: Sequence[Path]) -> list[FinishedRun]:
    """Return the runs of some directories, named as `read_runs` names them.

    Raises:
        FileNotFoundError: a directory without a run.
        ValueError: no directory, a run file, or a run that is not finished.
    """
    return [read_finished(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def _read(path: Path, name: str) -> FinishedRun | RunFile:
    if path.is_dir():
        return read_finished(path, name)
    check_input(path, "run directory or TREC run")
    return RunFile(name, open_input(path, "run"))


def read_finished(path: Path, name: str | None = None) -> FinishedRun:
    """Return the run of a directory.

    Raises:
        FileNotFoundError: a directory without a run.
        ValueError: a run file, or a run that is not finished.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(
            f"{path}: a file, which does not say which candidates were reranked, and how; expected a directory that "
            f"headrank run wrote (headrank compare takes run files, too)"
        )
    directory = RunDirectory(path)
    manifest = read_manifest(directory.manifest) if path.is_dir() else None
    if manifest is None:
        below = sorted(path.glob("*/manifest.json")) if path.is_dir() else []
        hint = f"; there are runs below it, {path}/*/ names them" if below else ""
        raise FileNotFoundError(f"{path}: no manifest.json; expected a directory that headrank run wrote{hint}")
    if not directory.run.exists() or manifest["totals"] is None:
        raise ValueError(
            f"{path}: the run is not finished (status {manifest['status']}, no run.trec); "
            f"give its command again to continue it"
        )
    return FinishedRun(name or path.resolve().name, directory, manifest)


def _names(paths: Sequence[Path]) -> list[str]:
    """The same run may be given twice; the second one gets a number."""
    if not paths:
        raise ValueError("no runs given; name at least one, for example runs/dl19/*/")
    whole = [_parts(path) for path in paths]
    stems = [parts if path.is_dir() else _stem(parts) for path, parts in zip(paths, whole, strict=True)]
    parts = stems if len(set(stems)) == len(set(whole)) else whole
    different = set(parts)
    length = 1
    while len({part[-length:] for part in different}) < len(different):
        length += 1
    names = ["/".join(part[-length:]) for part in parts]
    seen = Counter([FIRST_STAGE])
    for index, name in enumerate(names):
        seen[name] += 1
        names[index] = f"{name} ({seen[name]})" if seen[name] > 1 else name
    return names


def _parts(path: Path) -> tuple[str, ...]:
    """A directory may be named by ``.`` or a link; a link to a file, or a pipe, has the name that it is given."""
    return path.resolve().parts if path.is_dir() else (path.parent.resolve() / path.name).parts


def _stem(parts: tuple[str, ...]) -> tuple[str, ...]:
    return (*parts[:-1], Path(parts[-1].removesuffix(".gz")).stem)
