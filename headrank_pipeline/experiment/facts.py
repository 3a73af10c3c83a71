"""What is known about collections beforehand, and whether what was read agrees with it.

``resources/catalogue.json`` holds sizes, counts and checksums as Pyserini and ir_datasets state them;
``resources/catalogue-pins.json`` holds checksums of topics and qrels that were compared with the official ones.

What ir_datasets keeps on the disk is checked before it is read (`check_copies`), and what it gives is counted
(`check_queries`, `check_grades`): a difference is an error. Files of the user may be meant to differ: they are compared
(`compare_topics`, `compare_qrels`), and a difference is a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from headrank_pipeline.records import Query
from headrank_pipeline.trec import Qrels

__all__ = [
    "catalogue",
    "check_copies",
    "check_grades",
    "check_queries",
    "compare_qrels",
    "compare_topics",
    "datasets_home",
    "known_of",
    "pins",
    "pyserini_homes",
    "qrels_sha256",
    "topics_sha256",
]

logger = logging.getLogger(__name__)


@cache
def catalogue() -> Mapping[str, Any]:
    """Return the facts: ``indexes`` by Pyserini's name, ``datasets`` by ir_datasets' id."""
    return _resource("catalogue.json")


def known_of(kind: Literal["indexes", "datasets"], name: str | None) -> Mapping[str, Any]:
    """Return the facts of one index or collection; empty where nothing is known."""
    found: Mapping[str, Any] = catalogue()[kind].get(name, {})
    return found


@cache
def pins() -> Mapping[str, Any]:
    """Return the pinned topics and qrels by benchmark name."""
    pinned: Mapping[str, Any] = _resource("catalogue-pins.json")["benchmarks"]
    return pinned


def datasets_home() -> Path:
    """Return the folder in which ir_datasets keeps what it has downloaded."""
    return Path(os.environ.get("IR_DATASETS_HOME") or Path.home() / ".ir_datasets")


def pyserini_homes() -> list[Path]:
    """Return where Pyserini's releases keep indexes: the later ones look beside the present folder first."""
    if named := os.environ.get("PYSERINI_CACHE"):
        return [Path(named)]
    return [Path.cwd() / ".cache" / "pyserini", Path.home() / ".cache" / "pyserini"]


def check_copies(dataset: str) -> None:
    """Fail where a file that ir_datasets has kept is not the published one; files that are not there are not missed.

    ir_datasets checks what it downloads, once, and afterwards reads whatever lies there. Downloads are compared by MD5,
    topics and qrels that were unpacked from a zip by size and CRC-32 with what the archive holds.

    Raises:
        ValueError: a file differs.
    """
    facts = known_of("datasets", dataset)
    for published in facts.get("downloads", ()):
        places = [datasets_home() / "downloads" / published["md5"]]
        places += [datasets_home() / published["path"]] if published["path"] else []
        for place in filter(Path.is_file, places):
            _check_download(dataset, place, published)
            if zipfile.is_zipfile(place):
                _check_unpacked(dataset, place, [datasets_home() / name for name in facts["ready"]])


def _check_download(dataset: str, place: Path, published: Mapping[str, Any]) -> None:
    stat = place.stat()
    md5 = _md5(place, stat.st_mtime_ns)
    if md5 != published["md5"]:
        # ir_datasets calls its sizes hints, so that they explain and do not decide.
        size = "" if published["bytes"] is None else f"{published['bytes']} bytes and "
        found = f"{stat.st_size} bytes and MD5 {md5}, expected {size}MD5 {published['md5']}"
        raise _differs(dataset, place, found, published["url"])
    logger.info("%s: equals %s (MD5 %s)", place, published["url"], md5)


@cache
def _md5(path: Path, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _check_unpacked(dataset: str, archive: Path, files: Sequence[Path]) -> None:
    with zipfile.ZipFile(archive) as packed:
        members = {(member.file_size, member.CRC) for member in packed.infolist()}
    for path in filter(Path.is_file, files):
        data = path.read_bytes()
        if (len(data), zlib.crc32(data)) not in members:
            raise _differs(dataset, path, f"{len(data)} bytes that are no file of the archive", str(archive))


def _differs(dataset: str, place: Path, found: str, source: str) -> ValueError:
    return ValueError(
        f"ir_datasets {dataset}: {place} has {found}; it is not what {source} gives: remove it and run again"
    )


def check_queries(dataset: str, count: int) -> None:
    """Fail where a collection that was fetched has another number of queries than is known.

    Raises:
        ValueError: the numbers differ.
    """
    facts = known_of("datasets", dataset)
    if facts and facts["queries"] != count:
        raise ValueError(
            f"ir_datasets {dataset}: gave {count} queries, expected {facts['queries']}; the copy is damaged or of "
            f"another version: remove it from ir_datasets' home and run again, or pass topics=FILE"
        )


def check_grades(dataset: str, grades: Iterable[int]) -> None:
    """Fail where judgments that were fetched are not as many of each grade as is known.

    Raises:
        ValueError: the numbers differ.
    """
    facts = known_of("datasets", dataset)
    found = _grades(grades)
    if facts and facts["grades"] != found:
        raise ValueError(
            f"ir_datasets {dataset}: gave judgments {found} (grade: count), expected {facts['grades']}; the copy is "
            f"damaged or of another version: remove it from ir_datasets' home and run again, or pass qrels=FILE"
        )


def compare_topics(benchmark: str, dataset: str | None, queries: Sequence[Query], where: str) -> None:
    """Say whether judged topics are the official ones, as far as that is known.

    Args:
        benchmark: its name.
        dataset: its id in ir_datasets.
        queries: the judged ones.
        where: they were read from.
    """
    known = known_of("datasets", dataset).get("queries")
    _compare(
        benchmark, "topics", topics_sha256(queries), where, f"{len(queries)} queries", known and f"{known} queries"
    )


def compare_qrels(
    benchmark: str, dataset: str | None, qrels: Qrels, where: str, *, without_grade: int | None = None
) -> None:
    """Say whether judgments are the official ones, as far as that is known.

    Args:
        benchmark: its name.
        dataset: its id in ir_datasets.
        qrels: all judgments.
        where: they were read from.
        without_grade: judgments that a file may leave out (documents that are excluded).
    """

    def counted(grades: Mapping[str, int]) -> str:
        return f"judgments { {grade: n for grade, n in grades.items() if grade != str(without_grade)} } (grade: count)"

    known = known_of("datasets", dataset).get("grades")
    found = _grades(grade for judged in qrels.values() for grade in judged.values())
    _compare(benchmark, "qrels", qrels_sha256(qrels), where, counted(found), known and counted(known))


def _compare(benchmark: str, what: str, sha256: str, where: str, found: str, known: str | None) -> None:
    pinned = pins().get(benchmark, {}).get(what)
    if pinned is not None and pinned["sha256"] == sha256:
        logger.info("%s: %s equal the pinned ones of %s (sha256 %s…)", where, what, benchmark, sha256[:12])
    elif pinned is not None:
        logger.warning(
            "%s: %s differ from the pinned ones of %s (sha256 %s… here, %s… from %s): scores do not compare with "
            "published ones",
            *(where, what, benchmark, sha256[:12], pinned["sha256"][:12], pinned["source"]),
        )
    elif known is not None and known != found:
        logger.warning(
            "%s: %s of %s: found %s, the official ones have %s: scores do not compare with published ones",
            *(where, what, benchmark, found, known),
        )
    elif known is not None:
        logger.info("%s: %s of %s: %s, as many as the official ones", where, what, benchmark, found)


def _grades(grades: Iterable[int]) -> dict[str, int]:
    return {str(grade): count for grade, count in sorted(Counter(grades).items())}


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
