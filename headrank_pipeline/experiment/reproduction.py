"""Whether a run that was made again is equal to, near, or different from the first one, and why it may differ."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from headrank_pipeline.experiment.directory import RunDirectory, differences, read_json, read_manifest
from headrank_pipeline.trec import read_run

__all__ = ["Reproduction", "compare_runs", "recorded_command", "recorded_files", "recorded_folder"]

Verdict = Literal["equal", "near", "different"]

# As for published scores: two figures that round to the same third decimal or nearly so.
_NEAR = 0.0005
_DROPPED = {"--overwrite", "--json", "--dry-run"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """Two runs side by side.

    Args:
        verdict: ``equal`` runs are the same bytes; ``near`` ones rank the same queries with every measure within
            0.0005; everything else is ``different``.
        queries: number of queries in the first run.
        reordered: qids whose candidates come in another order, or that only one of the runs has.
        means: measure -> (first, again).
        configuration: (key, first, again) of what determines a ranking; empty where both runs were given the same.
        environment: (key, first, again) of versions, machine and commit.
    """

    verdict: Verdict
    queries: int
    reordered: tuple[str, ...]
    means: Mapping[str, tuple[float, float]]
    configuration: tuple[tuple[str, Any, Any], ...]
    environment: tuple[tuple[str, Any, Any], ...]


def recorded_folder(run: Path) -> Path:
    """Return the folder in which the command that made a run was called, which its relative paths start from.

    Raises:
        FileNotFoundError: no manifest there, or no such folder on this machine.
    """
    named = next((s.get("folder") for s in _manifest(run)["sessions"] if s["command"]), None)
    if named is not None and not Path(named).is_dir():
        raise FileNotFoundError(
            f"{run}: was made in {named}, which is not on this machine; go to a folder that holds the same files and "
            f"pass here=True"
        )
    return Path(named or ".")


def recorded_files(manifest: Mapping[str, Any], name: str) -> list[Path]:
    """Return the files that a path in a manifest may mean, the likeliest first; empty where there is no such file.

    A relative path starts in the folder of the call that gave it, the latest call first. The present folder comes last:
    a run may have been copied here together with its files. Digests tell whether a file is the one that was read.

    Args:
        manifest: manifest of a run.
        name: path as it was given to one of the run's calls.
    """
    folders = [session.get("folder", "") for session in reversed(manifest["sessions"])]
    places = dict.fromkeys(Path(folder) / name for folder in (*folders, ""))
    return [place for place in places if place.is_file()]


def recorded_command(run: Path) -> list[str]:
    """Return the arguments of the command that made a run, less where it wrote and how it reported.

    Raises:
        FileNotFoundError: no manifest there.
        ValueError: a run that is not complete, or that was made without the command line.
    """
    manifest = _manifest(run)
    command = next((s["command"] for s in manifest["sessions"] if s["command"]), None)
    words = shlex.split(command or "")
    if words[:2] not in (["headrank", "run"], ["headrank", "rerank"]) or {"--all", "--suite", "--data"} & set(words):
        raise ValueError(
            f"{run}: was made by {command!r}; only runs of `headrank run BENCHMARK` and `headrank rerank` can be made "
            f"again from their manifest"
        )
    # A merged run was made by the commands of its shards; one command without the shard gives the same.
    valued = ("--output",) if "shard" in manifest["identity"] else ("--output", "--shard")
    kept: list[str] = []
    skip = False
    for word in words[1:]:
        if not skip and word.partition("=")[0] not in valued and word not in _DROPPED:
            kept.append(word)
        skip = word in valued
    return kept


def compare_runs(first: Path, again: Path) -> Reproduction:
    """Return how the run in `again` compares with the one in `first`.

    Raises:
        FileNotFoundError: a directory without a finished run.
    """
    old, new = _manifest(first), _manifest(again)
    before, after = RunDirectory(first), RunDirectory(again)
    means = _means(before, after)
    reordered = _reordered(before.run, after.run)
    near = all(abs(a - b) <= _NEAR + 1e-9 for a, b in means.values())
    if before.run.read_bytes() == after.run.read_bytes():
        verdict: Verdict = "equal"
    else:
        verdict = "near" if near and (means or not reordered) else "different"
    return Reproduction(
        verdict=verdict,
        queries=old["totals"]["queries"],
        reordered=tuple(reordered),
        means=means,
        configuration=tuple(differences(old["identity"], new["identity"])),
        environment=tuple(differences(old["environment"], new["environment"])),
    )


def _manifest(run: Path) -> dict[str, Any]:
    directory = RunDirectory(run)
    manifest = read_manifest(directory.manifest)
    if manifest is None:
        raise FileNotFoundError(f"{directory.manifest}: no such manifest; name the directory of a run")
    if not directory.run.is_file():
        raise ValueError(f"{run}: holds no run.trec, so it is not finished; the command that began it continues it")
    return manifest


def _means(before: RunDirectory, after: RunDirectory) -> dict[str, tuple[float, float]]:
    if not before.evaluation.is_file() or not after.evaluation.is_file():
        return {}
    old, new = (read_json(directory.evaluation)["reranked"]["means"] for directory in (before, after))
    return {measure: (old[measure], new[measure]) for measure in old if measure in new}


def _reordered(before: Path, after: Path) -> list[str]:
    old, new = (
        {qid: [candidate.docid for candidate in candidates] for qid, candidates in read_run(path).items()}
        for path in (before, after)
    )
    return [qid for qid in dict.fromkeys([*old, *new]) if old.get(qid) != new.get(qid)]
