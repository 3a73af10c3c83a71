"""One run directory of the shards of a run, with the files that one process would have written.

Nothing is reranked: run files are put one after the other, the journal's lines are signed anew, and counts, warnings
and evaluation are computed as at the end of any run. The merged directory appears whole or not at all.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrank_pipeline.experiment.batches import Shard
from headrank_pipeline.experiment.benchmark import Reference
from headrank_pipeline.experiment.directory import (
    Journal,
    RunDirectory,
    differences,
    journal_key,
    read_manifest,
    rekeyed_lines,
)
from headrank_pipeline.experiment.judgement import Judged, Judgement, judge
from headrank_pipeline.experiment.reproduction import recorded_files
from headrank_pipeline.experiment.runner import Effect, Outcome, closed, totals_of
from headrank_pipeline.files import empty_locked, file_sha256, locked_folder, remove_locked, write_json
from headrank_pipeline.trec import read_run

__all__ = ["merge"]

logger = logging.getLogger(__name__)


def merge(output: Path, shards: Sequence[Path], *, qrels: Path | None = None) -> Outcome:
    """Make one run of its shards, and return what came of it.

    Args:
        output: a new run directory, or an empty folder.
        shards: the run directories of all shards, in any order.
        qrels: judgments, where those that the shards read are not at their place any more.

    Raises:
        FileExistsError: the output holds something.
        FileNotFoundError: a directory without a run, or qrels that are not there.
        RuntimeError: another process merges into the output.
        ValueError: a shard is missing, given twice, unfinished, damaged, or was run with other settings.
    """
    _refuse_output(output)
    parts = _ordered([_Part.of(path) for path in shards])
    _check_settings(parts)
    _check_whole(parts)
    judgement = _judgement(parts[0], qrels)
    work = output.with_name(f".{output.name}.merging")
    with locked_folder(work, "merged run"):
        _refuse_output(output)  # again: another merge may just have ended
        empty_locked(work)  # of a merge that was killed
        try:
            manifest, judged = _written(RunDirectory(work), parts, judgement)
            work.replace(output)
        except BaseException:
            remove_locked(work)
            raise
    logger.info("%s: %d shards, %d queries", output, len(parts), manifest["totals"]["queries"])
    return Outcome(RunDirectory(output), manifest, judged)


def _refuse_output(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(
            f"{output}: is there already; a merged run needs a new folder: choose another, or remove it"
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """A finished shard."""

    shard: Shard
    directory: RunDirectory
    manifest: Mapping[str, Any]

    def __str__(self) -> str:
        return f"shard {self.shard} ({self.directory.path})"

    @classmethod
    def of(cls, path: Path) -> _Part:
        directory = RunDirectory(path)
        manifest = read_manifest(directory.manifest)
        if manifest is None:
            raise FileNotFoundError(f"{path}: no manifest.json; expected the run directory of a shard")
        text = manifest["identity"].get("shard")
        if text is None:
            raise ValueError(f"{path}: a run of all queries, not of a shard; expected one that was run with shard=I/N")
        part = cls(Shard.parse(text), directory, manifest)
        if manifest["totals"] is None or not directory.run.exists() or manifest["status"] == "running":
            raise ValueError(
                f"{part}: not finished (status {manifest['status']}); run its command again, which continues it"
            )
        return part

    @property
    def place(self) -> Mapping[str, int]:
        place: Mapping[str, int] = self.manifest["shard"]["queries"]
        return place

    @property
    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in self.manifest["identity"].items() if name != "shard"}


# ------------------------------------------------------------------------------------------------------------- checking


def _ordered(parts: Sequence[_Part]) -> list[_Part]:
    if not parts:
        raise ValueError("no shards given; name the run directory of each")
    count = parts[0].shard.count
    known: dict[int, _Part] = {}
    for part in parts:
        if part.shard.count != count:
            raise ValueError(f"{part}: expected one of {count} shards, as {parts[0]} is; merge shards of one run")
        if part.shard.number in known:
            raise ValueError(
                f"{part}: shard {part.shard} is given twice, also as {known[part.shard.number].directory.path}"
            )
        known[part.shard.number] = part
    if missing := [f"{number}/{count}" for number in range(1, count + 1) if number not in known]:
        raise ValueError(f"shard {', '.join(missing)}: missing among the {len(parts)} given; all {count} are needed")
    return [known[number] for number in sorted(known)]


def _check_settings(parts: Sequence[_Part]) -> None:
    """What one process has once must be the same everywhere; another machine is told and not refused."""
    first = parts[0]
    for part in parts[1:]:
        kinds = (
            ("", first.settings, part.settings),
            ("judgement.", first.manifest["shard"]["judgement"], part.manifest["shard"]["judgement"]),
            ("shard.", {"of": first.place["of"]}, {"of": part.place["of"]}),
        )
        # Where the judgments lay may differ from machine to machine; their digest may not.
        changed = [
            f"{kind}{key}: expected {old!r} as in {first}, got {new!r}"
            for kind, wanted, found in kinds
            for key, old, new in differences(wanted, found)
            if f"{kind}{key}" != "judgement.qrels"
        ]
        if changed:
            raise ValueError(f"{part}: was run with other settings:\n  " + "\n  ".join(changed))
        if elsewhere := differences(first.manifest["environment"], part.manifest["environment"]):
            logger.warning(
                "%s was run in another environment than the first, which may change last digits: %s",
                part,
                "; ".join(f"{key} {old} -> {new}" for key, old, new in elsewhere),
            )


def _check_whole(parts: Sequence[_Part]) -> None:
    """Every query is in exactly one shard, and was tried there."""
    place, owners = 0, dict[str, _Part]()
    for part in parts:
        start, stop = part.place["start"], part.place["stop"]
        if start != place:
            raise ValueError(f"{part}: shard.start: expected {place}, where the shard before it ends, got {start}")
        place = stop
        _check_digests(part)
        journal = Journal(part.directory.scores, journal_key(part.manifest["identity"]))
        tried = [*journal.scored_qids(), *journal.failures]
        if len(tried) != stop - start:
            raise ValueError(
                f"{part}: {part.directory.scores.name}: expected {stop - start} queries, got {len(tried)}; run its "
                f"command again"
            )
        for qid in tried:
            if qid in owners:
                raise ValueError(f"{part}: qid {qid}: is in {owners[qid]}, too; run files need every qid once")
            owners[qid] = part
    if place != parts[-1].place["of"]:
        raise ValueError(
            f"{parts[-1]}: shard.stop: expected {parts[-1].place['of']}, the number of queries, got {place}"
        )


def _check_digests(part: _Part) -> None:
    """Files that came from another machine may have been cut short on the way."""
    recorded = {"candidates.jsonl": part.manifest.get("candidates_sha256"), **part.manifest["shard"]["sha256"]}
    for name, expected in recorded.items():
        file = part.directory.path / name
        if expected is None:
            continue
        found = file_sha256(file)
        if found != expected:
            raise ValueError(
                f"{part}: {name}: expected SHA-256 {expected[:12]}…, got {found[:12]}…; copy it again, or run the "
                f"shard's command anew (overwrite=True)"
            )


def _judgement(first: _Part, qrels: Path | None) -> Judgement | None:
    stated = first.manifest["shard"]["judgement"]
    if stated is None:
        if qrels is not None:
            raise ValueError(f"{qrels}: the shards were not run for an evaluation; leave qrels out, or use evaluate")
        return None
    # Where they were read from; ir_datasets' lie in the shard.
    places = [qrels] if qrels is not None else [*recorded_files(first.manifest, stated["qrels"]), first.directory.qrels]
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        raise FileNotFoundError(f"{stated['qrels']}: no such qrels file any more; name it with qrels=FILE")
    judgement = Judgement(
        qrels=place,
        measures=stated["measures"],
        relevance_level=stated["relevance_level"],
        references=[Reference.model_validate(reference) for reference in stated["references"]],
    )
    if judgement.opened.sha256 != stated["qrels_sha256"]:
        raise ValueError(
            f"{place}: not the judgments of {first}: expected SHA-256 {stated['qrels_sha256'][:12]}…, got "
            f"{judgement.opened.sha256[:12]}…; name them with qrels=FILE"
        )
    return judgement


# -------------------------------------------------------------------------------------------------------------- writing


def _written(
    target: RunDirectory, parts: Sequence[_Part], judgement: Judgement | None
) -> tuple[dict[str, Any], Judged | None]:
    """Write every file of the merged run; return its manifest and evaluation."""
    first = parts[0]
    key = journal_key(first.settings)
    effect = Effect(first.settings["reranker"])
    _joined(target.run, parts, lambda part: part.directory.run)
    _joined(target.first_stage_run, parts, lambda part: part.directory.first_stage_run)
    with target.scores.open("w", encoding="utf-8") as file:
        for part in parts:
            file.writelines(rekeyed_lines(part.directory.scores, journal_key(part.manifest["identity"]), key).values())
    journal = Journal(target.scores, key)
    for part in parts:
        _count(effect, part, journal)
    if first.directory.qrels.exists():
        shutil.copyfile(first.directory.qrels, target.qrels)
    asked = [*journal.scored_qids(), *journal.failures]
    judged = None if judgement is None else judge(target, judgement, asked, depth=first.settings["depth"])
    without = [qid for part in parts for qid in part.manifest["totals"]["queries_without_candidates"]]
    opened = {**first.manifest, "identity": first.settings, "sessions": [*_sessions(parts)]}
    del opened["shard"]
    if first.directory.candidates.exists():
        _joined(target.candidates, parts, lambda part: part.directory.candidates)
        opened["candidates_sha256"] = file_sha256(target.candidates)
    manifest = closed(opened, totals_of(journal, len(asked), without), effect)
    write_json(target.manifest, manifest)
    return manifest, judged


def _joined(target: Path, parts: Sequence[_Part], file: Callable[[_Part], Path]) -> None:
    with target.open("wb") as joined:
        for part in parts:
            with file(part).open("rb") as found:
                shutil.copyfileobj(found, joined)


def _count(effect: Effect, part: _Part, journal: Journal) -> None:
    depth = part.settings["depth"]
    for qid, candidates in read_run(part.directory.first_stage_run).items():
        if journal.scored(qid):
            effect.add([candidate.docid for candidate in candidates][:depth], journal.read(qid))


def _sessions(parts: Sequence[_Part]) -> Iterator[dict[str, Any]]:
    """Yield the calls of all shards; where one was made in another environment than the first, it says so."""
    for part in parts:
        changed = differences(parts[0].manifest["environment"], part.manifest["environment"])
        elsewhere = {key: {"before": old, "now": new} for key, old, new in changed}
        for session in part.manifest["sessions"]:
            yield {**session, "shard": str(part.shard), **({"environment_changes": elsewhere} if elsewhere else {})}
