"""Graded lists: the candidates of a query with a relevance grade each, what selection and training learn from.

A file holds one list a line, in the shape of a candidates file with a ``grade`` beside each candidate (and, for
distillation, a ``teacher`` score). `write_lists` makes one from any collection, `read_lists` refuses what it cannot
vouch for, `sublist` draws many lists from one.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from headrank_pipeline.files import atomic_writer, file_sha256, json_object_lines, numbered_lines, open_input
from headrank_pipeline.passages import read_corpus
from headrank_pipeline.records import Candidate, Ranking
from headrank_pipeline.trec import Qrels, candidate_line, check_grade, read_candidates, read_qrels

__all__ = [
    "GradedList",
    "ListCounts",
    "Order",
    "arranged",
    "describe_file",
    "graded_line",
    "lists_sha256",
    "read_lists",
    "save_lists",
    "sublist",
    "write_lists",
]

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]
Order = Literal["random", "given", "reversed"]


@dataclass(frozen=True, slots=True)
class GradedList:
    """The candidates of one query and how relevant each one is.

    Args:
        ranking: query and candidates, each with its text; at least one candidate.
        grades: one whole number from 0 per candidate, higher is more relevant.
        teacher: one finite score per candidate that another model gave (for distillation), or None.

    Raises:
        ValueError: an empty list, another number of grades than candidates, or a grade below 0.
    """

    ranking: Ranking
    grades: tuple[int, ...]
    teacher: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        qid, size = self.ranking.query.qid, len(self.ranking)
        if not size:
            raise ValueError(f"qid {qid}: an empty list, there is nothing to learn from; delete the line")
        object.__setattr__(self, "grades", tuple(self.grades))
        for docid, grade in zip(self.ranking.docids, self.grades, strict=False):
            _check_grade(grade, f"qid {qid} docid {docid}")
        if len(self.grades) != size:
            raise ValueError(f"qid {qid}: {len(self.grades)} grades for {size} candidates")
        if self.teacher is not None:
            object.__setattr__(self, "teacher", tuple(float(score) for score in self.teacher))
            assert self.teacher is not None
            if len(self.teacher) != size or not all(map(math.isfinite, self.teacher)):
                raise ValueError(f"qid {qid}: expected a finite teacher score for each of {size} candidates")

    def __len__(self) -> int:
        return len(self.grades)

    @property
    def qid(self) -> str:
        """The query's id."""
        return self.ranking.query.qid

    def taken(self, indices: Sequence[int]) -> GradedList:
        """Return the candidates at `indices`, in that order; their scores count down from 0 so that order is kept."""
        candidates = [self.ranking.candidates[index] for index in indices]
        ordered = tuple(replace(candidate, score=-float(place)) for place, candidate in enumerate(candidates))
        return replace(
            self,
            ranking=replace(self.ranking, candidates=ordered),
            grades=tuple(self.grades[index] for index in indices),
            teacher=None if self.teacher is None else tuple(self.teacher[index] for index in indices),
        )


@dataclass(slots=True)
class ListCounts:
    """What `write_lists` did.

    Attributes:
        written: lists written.
        passages: passages in them.
        judged: number of these that the qrels judge.
        added: judged passages that the first stage had missed and the corpus supplied.
        dropped: unjudged passages left out.
        without_judgements: queries with candidates but without qrels, left out.
        without_candidates: queries with qrels but without candidates, left out.
        one_grade: queries whose passages all have the same grade, left out: they order nothing.
    """

    written: int = 0
    passages: int = 0
    judged: int = 0
    added: int = 0
    dropped: int = 0
    without_judgements: int = 0
    without_candidates: int = 0
    one_grade: int = 0


# --------------------------------------------------------------------------------------------------------- reading


def read_lists(path: PathLike) -> list[GradedList]:
    """Return the graded lists of a file in file order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an empty list, a candidate without text, a grade that is missing, negative or no whole number, a
            teacher score that some candidates of a list lack, or what `read_candidates` refuses; names file and line.
    """
    opened = open_input(path, "graded lists")
    found: list[GradedList] = []
    for (where, record), ranking in zip(json_object_lines(opened), read_candidates(opened), strict=True):
        try:
            found.append(_graded(record, ranking))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if not found:
        raise ValueError(f"{path}: no lists in it; make it with: headrank lists --candidates … --qrels … --output …")
    return found


def _graded(record: Mapping[str, Any], ranking: Ranking) -> GradedList:
    grades, teacher = [], []
    for rank, (entry, candidate) in enumerate(zip(record["candidates"], ranking.candidates, strict=True), start=1):
        where = f"qid {ranking.query.qid} candidate {rank} docid {candidate.docid}"
        if "grade" not in entry:
            raise ValueError(f"{where}: no grade; headrank lists writes one beside every candidate")
        grades.append(_check_grade(entry["grade"], where))
        teacher.append(entry.get("teacher"))
        if candidate.text is None:
            raise ValueError(f"{where}: no text; pass the corpus when the lists are made")
    known = [score for score in teacher if score is not None]
    if known and len(known) != len(teacher):
        raise ValueError(f"qid {ranking.query.qid}: {len(known)} teacher scores for {len(teacher)} candidates")
    return GradedList(ranking, tuple(grades), tuple(known) if known else None)


def _check_grade(grade: Any, where: str) -> int:
    if isinstance(grade, bool) or not isinstance(grade, int):
        raise ValueError(f"{where}: grade {grade!r}: expected a whole number from 0")
    if grade < 0:
        raise ValueError(f"{where}: grade {grade} is negative; make it 0 (not relevant) or remove the passage")
    return check_grade(grade, where)


# --------------------------------------------------------------------------------------------------------- writing


def graded_line(graded: GradedList) -> str:
    """Return one line of a file of graded lists, without its end."""
    record = json.loads(candidate_line(graded.ranking))
    for index, entry in enumerate(record["candidates"]):
        entry["grade"] = graded.grades[index]
        if graded.teacher is not None:
            entry["teacher"] = graded.teacher[index]
    return json.dumps(record)


def save_lists(path: PathLike, lists: Iterable[GradedList]) -> int:
    """Write graded lists atomically and return how many there were."""
    written = 0
    with atomic_writer(path) as file:
        for graded in lists:
            file.write(graded_line(graded) + "\n")
            written += 1
    return written


def write_lists(
    candidates: PathLike,
    qrels: PathLike,
    output: PathLike,
    *,
    unjudged: Literal["zero", "drop"] = "zero",
    corpus: PathLike | None = None,
    cutoff: int | None = None,
) -> ListCounts:
    """Write graded lists from first-stage candidates and judgments.

    Args:
        candidates: candidates file, with texts unless `corpus` supplies them; each of these may be a pipe or ``-``.
        qrels: judgments; a query without any is left out and counted.
        output: file to write; a name ending in .gz is gzipped.
        unjudged: ``zero`` grades a passage that nobody judged 0, ``drop`` leaves it out.
        corpus: supplies missing texts, and the judged passages that the first stage missed, which are appended.
        cutoff: take that many candidates per query.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: a grade below 0, a passage that the corpus lacks, a candidate without text, or no list at all;
            names file and line.
    """
    if unjudged not in ("zero", "drop"):
        raise ValueError(f"unjudged {unjudged!r}: expected zero or drop")
    qrels, candidates = open_input(qrels, "qrels"), open_input(candidates, "candidates")
    judgements = read_qrels(qrels)
    _refuse_negative(judgements, qrels)
    counts = ListCounts()
    joined = _Join(judgements, str(qrels), str(candidates), _needed(candidates, judgements, corpus), unjudged, cutoff)
    with atomic_writer(output) as file:
        for graded in joined.lists(read_candidates(candidates), counts):
            file.write(graded_line(graded) + "\n")
        if not counts.written:  # an error inside the block leaves what an earlier call wrote
            raise ValueError(
                f"{candidates} and {qrels} make no list with two grades: {counts.without_judgements} queries are not "
                f"judged, {counts.one_grade} have one grade only; check that both belong to the same topics"
            )
    counts.without_candidates = len(judgements) - counts.written - counts.one_grade
    logger.info("%s: %s", output, counts)
    return counts


@dataclass(frozen=True, slots=True)
class _Join:
    """Candidates and judgments of the same topics, on the way to graded lists."""

    judgements: Qrels
    qrels: str
    candidates: str
    passages: Mapping[str, Candidate] | None
    unjudged: str
    cutoff: int | None

    def lists(self, rankings: Iterable[Ranking], counts: ListCounts) -> Iterator[GradedList]:
        """Yield the lists that order something, and count everything."""
        for number, ranking in enumerate(rankings, start=1):
            grades = self.judgements.get(ranking.query.qid)
            if grades is None:
                counts.without_judgements += 1
                continue
            whole = self._completed(ranking, grades, counts)
            kept = [c for c in whole.candidates if self.unjudged == "zero" or c.docid in grades]
            counts.dropped += len(whole) - len(kept)
            if len({grades.get(candidate.docid, 0) for candidate in kept}) < 2:
                counts.one_grade += 1
                continue
            texts = tuple(self._with_text(candidate, ranking.query.qid, number) for candidate in kept)
            counts.written += 1
            counts.passages += len(texts)
            counts.judged += sum(candidate.docid in grades for candidate in texts)
            yield GradedList(replace(whole, candidates=texts), tuple(grades.get(c.docid, 0) for c in texts))

    def _completed(self, ranking: Ranking, grades: Mapping[str, int], counts: ListCounts) -> Ranking:
        """Cut the ranking, and append the judged passages it lacks where a corpus supplies them, best grade first."""
        cut = ranking if self.cutoff is None else ranking.cut(self.cutoff)
        if self.passages is None:
            return cut
        present = frozenset(cut.docids)
        missed = sorted((docid for docid in grades if docid not in present), key=lambda docid: (-grades[docid], docid))
        if unknown := [docid for docid in missed if docid not in self.passages]:
            raise ValueError(
                f"{_judgement_at(self.qrels, ranking.query.qid, unknown[0])}: qid {ranking.query.qid} docid "
                f"{unknown[0]} is judged but not in the corpus; use the corpus that the qrels belong to"
            )
        counts.added += len(missed)
        tail = tuple(replace(self.passages[docid], score=-float(place)) for place, docid in enumerate(missed))
        return cut.continued_by(replace(cut, candidates=tail))

    def _with_text(self, candidate: Candidate, qid: str, number: int) -> Candidate:
        if candidate.text is not None:
            return candidate
        known = None if self.passages is None else self.passages.get(candidate.docid)
        if known is None:
            reason = (
                "has no text; pass corpus=FILE" if self.passages is None else "has no text and is not in the corpus"
            )
            raise ValueError(
                f"{_request_at(self.candidates, qid)}: request {number} qid {qid} docid {candidate.docid} {reason}"
            )
        return replace(candidate, text=known.text, title=known.title)


def _needed(candidates: PathLike, judgements: Qrels, corpus: PathLike | None) -> dict[str, Candidate] | None:
    """Return the passages of the corpus that are judged or lack their text; the rest is not kept in memory."""
    if corpus is None:
        return None
    wanted = {docid for judged in judgements.values() for docid in judged}
    for ranking in read_candidates(candidates):
        wanted.update(candidate.docid for candidate in ranking.candidates if candidate.text is None)
    return {p.docid: Candidate(p.docid, 0.0, p.text, p.title) for p in read_corpus(corpus) if p.docid in wanted}


def _refuse_negative(judgements: Qrels, qrels: PathLike) -> None:
    for qid, judged in judgements.items():
        for docid, grade in judged.items():
            _check_grade(grade, f"{_judgement_at(qrels, qid, docid)}: qid {qid} docid {docid}" if grade < 0 else "")


def _judgement_at(qrels: PathLike, qid: str, docid: str) -> str:
    """Return "file:line" of a judgment; files are read again only to word an error."""
    for number, line in numbered_lines(qrels, "qrels"):
        columns = line.split()
        if len(columns) >= 3 and columns[0] == qid and columns[-2] == docid:
            return f"{qrels}:{number}"
    return str(qrels)


def _request_at(candidates: PathLike, qid: str) -> str:
    """Return "file:line" of a query's candidates, or the file alone where it is one JSON array."""
    for number, line in numbered_lines(candidates, "candidates"):
        if line.startswith("{") and str(json.loads(line)["query"]["qid"]) == qid:
            return f"{candidates}:{number}"
    return str(candidates)


# ------------------------------------------------------------------------------------------------------ resampling


def sublist(graded: GradedList, size: int | None, *, seed: int, epoch: int = 0, draw: int = 0) -> GradedList:
    """Return a random part of a list in random order; equal arguments give an equal list, whatever else was drawn.

    One passage of every grade is kept, the highest grades first where `size` is too small for all of them, so that a
    list with relevant passages never becomes one without; the other places are filled at random.

    Args:
        graded: the whole list.
        size: passages to keep; None, or more than there are, keeps all of them.
        seed: seed of the experiment.
        epoch: counts passes over the data.
        draw: counts the lists drawn from the same list in one epoch.

    Raises:
        ValueError: a size below 2.
    """
    if size is not None and size < 2:
        raise ValueError(f"list size {size}: expected at least 2 passages, or None for whole lists")
    chance = random.Random(f"{seed}/{epoch}/{draw}/{graded.qid}")  # seeded by SHA-512 of the text: stable over runs
    shuffled = list(range(len(graded)))
    chance.shuffle(shuffled)
    if size is None or size >= len(shuffled):
        return graded.taken(shuffled)
    first_of_grade: dict[int, int] = {}
    for index in shuffled:
        first_of_grade.setdefault(graded.grades[index], index)
    one_of_each = {first_of_grade[grade] for grade in sorted(first_of_grade, reverse=True)[:size]}
    others = [index for index in shuffled if index not in one_of_each][: size - len(one_of_each)]
    kept = one_of_each.union(others)
    return graded.taken([index for index in shuffled if index in kept])


def arranged(
    graded: GradedList, size: int | None, order: Order, *, seed: int, epoch: int = 0, draw: int = 0
) -> GradedList:
    """Return a part of a list as `sublist` draws it, in ``random`` order, as ``given`` in the file, or ``reversed``."""
    part = sublist(graded, size, seed=seed, epoch=epoch, draw=draw)
    if order == "random":
        return part
    if order not in ("given", "reversed"):
        raise ValueError(f"order {order!r}: expected random, given or reversed")
    kept = frozenset(part.ranking.docids)
    places = [index for index, docid in enumerate(graded.ranking.docids) if docid in kept]
    return graded.taken(places if order == "given" else places[::-1])


def lists_sha256(lists: Iterable[GradedList]) -> str:
    """Return a SHA-256 over queries, passages, grades and teacher scores, in order."""
    digest = sha256()
    for graded in lists:
        digest.update(f"{graded_line(graded)}\n".encode())
    return digest.hexdigest()


def describe_file(path: PathLike) -> dict[str, Any]:
    """Return name and SHA-256 of a data file, for manifests; the folder it lies in says nothing about it."""
    return {"file": Path(path).name, "sha256": file_sha256(path, "graded lists")}
