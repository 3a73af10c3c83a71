"""Where a run's candidates come from: a file, or a first stage that runs once per run directory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from headrank_pipeline.files import open_input
from headrank_pipeline.pipeline import Source
from headrank_pipeline.records import Query, Ranking
from headrank_pipeline.trec import read_candidates

__all__ = ["CandidateSource", "queries_sha256", "supply_from_file", "supply_from_source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateSource:
    """Candidates, and what they are determined by.

    Args:
        identity: everything that can change the candidates, JSON-ready; a run is continued only where it is equal.
        rankings: gives the candidates, in topic order.
        retrieves: whether `rankings` runs a first stage; the runner then calls it once and keeps what it gave.
        origins: input -> where it came from, for the manifest; paths stand here and not in the identity.
    """

    identity: Mapping[str, Any]
    rankings: Callable[[], Iterator[Ranking]]
    retrieves: bool
    origins: Mapping[str, str] = field(default_factory=dict)


def supply_from_file(path: str | PathLike[str], *, only: Collection[str] | None = None) -> CandidateSource:
    """Return the candidates of a file.

    Args:
        path: candidates JSONL: a file, a pipe, or ``-``; opened once, and what was digested is what is read.
        only: qids to keep, or None for all of them.

    Raises:
        FileNotFoundError: no such file.
    """
    opened = open_input(path, "candidates")
    identity: dict[str, Any] = {"candidates_sha256": opened.sha256}
    if only is None:
        return CandidateSource(
            identity=identity,
            rankings=lambda: read_candidates(opened),
            retrieves=False,
            origins={"candidates": str(path)},
        )
    kept = frozenset(only)
    identity["qids_sha256"] = hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()
    return CandidateSource(
        identity=identity,
        rankings=lambda: (ranking for ranking in read_candidates(opened) if ranking.query.qid in kept),
        retrieves=False,
        origins={"candidates": str(path)},
    )


def supply_from_source(source: Source, queries: Sequence[Query]) -> CandidateSource:
    """Return what a first stage finds for the queries."""
    return CandidateSource(
        identity={"source": source.describe(), "queries_sha256": queries_sha256(queries)},
        rankings=lambda: source.retrieve(queries),
        retrieves=True,
    )


def queries_sha256(queries: Sequence[Query]) -> str:
    """Return a fingerprint of ids and texts, in order."""
    digest = hashlib.sha256()
    for query in queries:
        digest.update(f"{query.qid}\t{query.text}\n".encode())
    return digest.hexdigest()
