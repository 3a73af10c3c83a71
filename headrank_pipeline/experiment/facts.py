"""What is known about collections beforehand, and whether what was read agrees with it.

``resources/catalogue.json`` holds sizes, counts and checksums as Pyserini and ir_datasets state them;
``resources/catalogue-pins.json`` holds checksums of topics and qrels that were compared with the official ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from headrank_pipeline.records import Query
from headrank_pipeline.trec import Qrels

__all__ = ["catalogue", "check_grades", "check_queries", "compare_with_pin", "pins", "qrels_sha256", "topics_sha256"]

logger = logging.getLogger(__name__)


@cache
def catalogue() -> Mapping[str, Any]:
    """Return the facts: ``indexes`` by Pyserini's name, ``datasets`` by ir_datasets' id."""
    return _resource("catalogue.json")


@cache
def pins() -> Mapping[str, Any]:
    """Return the pinned topics and qrels by benchmark name."""
    pinned: Mapping[str, Any] = _resource("catalogue-pins.json")["benchmarks"]
    return pinned


def check_queries(dataset: str, count: int) -> None:
    """Fail where a collection that was fetched has another number of queries than is known.

    Raises:
        ValueError: the numbers differ.
    """
    facts = catalogue()["datasets"].get(dataset)
    if facts is not None and facts["queries"] != count:
        raise ValueError(
            f"ir_datasets {dataset}: gave {count} queries, expected {facts['queries']}; the copy is damaged or of "
            f"another version: remove it from ir_datasets' home and run again, or pass --topics FILE"
        )


def check_grades(dataset: str, grades: Iterable[int]) -> None:
    """Fail where judgments that were fetched are not as many of each grade as is known.

    Raises:
        ValueError: the numbers differ.
    """
    facts = catalogue()["datasets"].get(dataset)
    found = {str(grade): count for grade, count in sorted(Counter(grades).items())}
    if facts is not None and facts["grades"] != found:
        raise ValueError(
            f"ir_datasets {dataset}: gave judgments {found} (grade: count), expected {facts['grades']}; the copy is "
            f"damaged or of another version: remove it from ir_datasets' home and run again, or pass --qrels FILE"
        )


def compare_with_pin(benchmark: str, what: str, sha256: str, where: str) -> None:
    """Say whether topics or qrels are the official ones; where nothing is pinned there is nothing to say.

    Args:
        benchmark: its name.
        what: "topics" or "qrels".
        sha256: of what was read, by `topics_sha256` or `qrels_sha256`.
        where: it was read from.
    """
    pinned = pins().get(benchmark, {}).get(what)
    if pinned is None:
        return
    if pinned["sha256"] == sha256:
        logger.info("%s: %s equal the pinned ones of %s (sha256 %s…)", where, what, benchmark, sha256[:12])
    else:
        logger.warning(
            "%s: %s differ from the pinned ones of %s (sha256 %s… here, %s… from %s): scores do not compare with "
            "published ones",
            *(where, what, benchmark, sha256[:12], pinned["sha256"][:12], pinned["source"]),
        )


def topics_sha256(queries: Iterable[Query]) -> str:
    """Return a fingerprint of ids and texts that depends neither on order nor on the file's format.

    Examples:
        >>> topics_sha256([Query("q1", "flea")]) == topics_sha256([Query("q1", " flea ")])
        True
    """
    return _sha256(f"{query.qid}\t{' '.join(query.text.split())}" for query in queries)


def qrels_sha256(qrels: Qrels) -> str:
    """Return a fingerprint of all judgments that depends neither on order nor on the file's format."""
    return _sha256(f"{qid}\t{docid}\t{grade}" for qid, judged in qrels.items() for docid, grade in judged.items())


def _sha256(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in sorted(lines)).encode()).hexdigest()


def _resource(name: str) -> dict[str, Any]:
    file = Path(str(resources.files("headrank_pipeline"))) / "resources" / name
    facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return facts
