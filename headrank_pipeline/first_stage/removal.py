"""Documents that a query must not get back: its own, and those that a benchmark excludes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from headrank_pipeline.records import Query

__all__ = ["Removal"]


@dataclass(frozen=True)
class Removal:
    """What is left out per query, before the cutoff.

    Args:
        remove_query: leave out the document whose docid is the qid.
        exclude: qid -> docids to leave out.

    Raises:
        TypeError: a string where a collection of docids belongs.

    Examples:
        >>> sorted(Removal(True, {"q1": {"d1"}}).of("q1"))
        ['d1', 'q1']
    """

    remove_query: bool
    exclude: Mapping[str, Collection[str]]

    def __post_init__(self) -> None:
        frozen = {}
        for qid, docids in self.exclude.items():
            if isinstance(docids, str):
                raise TypeError(f"exclude[{qid!r}]: expected a collection of docids, got the string {docids!r}")
            frozen[qid] = frozenset(docids)
        object.__setattr__(self, "exclude", frozen)

    def of(self, qid: str) -> frozenset[str]:
        """Return the docids that this query must not get."""
        own = frozenset({qid}) if self.remove_query else frozenset()
        return own | frozenset(self.exclude.get(qid, ()))

    def spare(self, queries: Iterable[Query]) -> int:
        """Return how many candidates more to retrieve so that enough remain for each of the queries."""
        return max((len(self.of(query.qid)) for query in queries), default=0)

    def describe(self) -> dict[str, Any]:
        """Return both as JSON-ready values; the excluded docids as a checksum."""
        pairs = sorted((qid, sorted(docids)) for qid, docids in self.exclude.items())
        digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest() if pairs else None
        return {"remove_query": self.remove_query, "exclude_sha256": digest}
