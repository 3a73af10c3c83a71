"""Whether runs may be compared: same benchmark, candidates, depth, topics and judgments, or a refusal.

A refusal names every field that differs and both values, and the flag that accepts it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from headrank_pipeline.comparison.finished import FinishedRun
from headrank_pipeline.experiment.directory import differences
from headrank_pipeline.experiment.reproduction import recorded_files
from headrank_pipeline.files import file_sha256

__all__ = ["FIELDS", "check_comparable", "find_qrels"]

# What must be equal, in the order in which it is checked; each can be allowed to differ by its name.
FIELDS = ("benchmark", "candidates", "depth", "topics", "qrels")

Conflict = tuple[str, str, str]  # dotted field, the first run's value, the other's


def check_comparable(runs: Sequence[FinishedRun], *, allow_different: Collection[str] = ()) -> list[str]:
    """Return one line per difference that was allowed.

    Every run is held against the first one.

    Raises:
        ValueError: a difference that was not allowed, with both values; or an unknown field in `allow_different`.
    """
    if unknown := sorted(set(allow_different) - set(FIELDS)):
        raise ValueError(f"no field {', '.join(map(repr, unknown))} to allow; fields: {', '.join(FIELDS)}")
    refused, allowed, fields = [], [], set()
    for other in runs[1:]:
        for field, here, there in _conflicts(runs[0], other):
            line = f"{field}: {runs[0].name} has {here}, {other.name} has {there}"
            name = next(known for known in FIELDS if field.startswith(known))  # a qid may hold dots
            if name in allow_different:
                allowed.append(line)
            else:
                refused.append(line)
                fields.add(name)
    if refused:
        flags = " ".join(f"allow_different={field}" for field in FIELDS if field in fields)
        listed = "\n".join(f"  {line}" for line in refused)
        raise ValueError(
            f"these runs cannot be compared:\n{listed}\n"
            f"compare runs of the same candidates, or accept the difference with {flags}"
        )
    return allowed


def find_qrels(runs: Sequence[FinishedRun]) -> Path:
    """Return the judgments that the first run was evaluated with, where they are still as they were.

    Raises:
        FileNotFoundError: no run says, or the file is gone or has changed; says which argument names one.
    """
    for run in runs:
        recorded = run.recorded_evaluation
        origin = run.manifest["origins"].get("qrels")
        places = [run.directory.qrels]
        if origin:
            places += recorded_files(run.manifest, origin)
        for path in places:
            if recorded and path.is_file() and file_sha256(path, "qrels") == recorded["qrels_sha256"]:
                return path
    raise FileNotFoundError(f"no judgments known for {runs[0].directory.path}; name them with qrels=FILE")


def _conflicts(first: FinishedRun, other: FinishedRun) -> Iterator[Conflict]:
    for key, here, there in differences(first.identity["benchmark"], other.identity["benchmark"], "benchmark"):
        yield key, repr(here), repr(there)
    yield from _candidate_conflicts(first, other)
    if first.depth != other.depth:
        yield "depth", str(first.depth), str(other.depth)
    here_topics, there_topics = _topics(first), _topics(other)
    if here_topics != there_topics:
        yield "topics", _lacking(here_topics, there_topics), _lacking(there_topics, here_topics)
    here_judged, there_judged = first.recorded_evaluation, other.recorded_evaluation
    for name in ("qrels_sha256", "relevance_level"):
        if here_judged and there_judged and here_judged[name] != there_judged[name]:
            yield f"qrels.{name}", str(here_judged[name]), str(there_judged[name])


def _candidate_conflicts(first: FinishedRun, other: FinishedRun) -> Iterator[Conflict]:
    """What both manifests state and state differently; else what the two first-stage runs show.

    One run may have retrieved what the other read from a file: keys that only one of them has decide nothing. Index
    paths are no difference where the contents are equal, which the files themselves show.
    """
    here, there = first.identity["candidates"], other.identity["candidates"]
    shared = here.keys() & there.keys() - {"qids_sha256"}  # which topics were kept is compared as topics
    found = False
    for key, old, new in differences({key: here[key] for key in shared}, {key: there[key] for key in shared}):
        if key.endswith("source.index"):
            continue
        found = True
        yield f"candidates.{key}", repr(old), repr(new)
    if not found:
        yield from _order_conflict(first, other)


def _order_conflict(first: FinishedRun, other: FinishedRun) -> Iterator[Conflict]:
    for qid in first.first_stage:  # in the file's order: the same difference is told every time
        if qid not in other.first_stage:
            continue
        here, there = ([c.docid for c in run.first_stage[qid][: run.depth]] for run in (first, other))
        shorter = min(len(here), len(there))
        if here[:shorter] == there[:shorter] and (len(here) == len(there) or first.depth != other.depth):
            continue
        rank = next((r for r in range(shorter) if here[r] != there[r]), shorter)
        shown = [f"{docids[rank]} at rank {rank + 1}" if rank < len(docids) else "none" for docids in (here, there)]
        yield f"candidates (qid {qid})", shown[0], shown[1]
        return


def _topics(run: FinishedRun) -> frozenset[str]:
    return frozenset(run.first_stage) | frozenset(run.totals["queries_without_candidates"])


def _lacking(mine: frozenset[str], others: frozenset[str]) -> str:
    extra = sorted(mine - others)
    more = ", …" if len(extra) > 3 else ""
    return f"{len(mine)} queries" + (f" ({', '.join(extra[:3])}{more} only here)" if extra else "")
