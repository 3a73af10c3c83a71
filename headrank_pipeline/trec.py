"""Topics, qrels, runs and candidates: the only reader and writer of each; corpora are read by `passages`.

Every reader takes plain or gzipped files, pipes, ``-`` for standard input or a `files.Input`, opens it once, keeps ids
as strings ('007' stays '007') and names file and line in its errors. Every writer is atomic. Scores are written under
the one tie rule (`run_scores`).

| what       | read                                                              | written                          |
|------------|-------------------------------------------------------------------|----------------------------------|
| topics     | TSV ``qid<tab>text``, BEIR JSONL, TREC ``<top><num><title>``, XML |                                  |
| qrels      | TREC four columns, BEIR TSV with its header                       |                                  |
| run        | ``qid Q0 docid rank score tag``                                   | the same                         |
| candidates | JSONL of Pyserini's REST server or rank_llm, or one JSON array    | JSONL of either                  |
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np

from headrank_pipeline.files import (
    atomic_writer,
    begun,
    first_field,
    foreign_id,
    joined,
    json_objects,
    next_json,
    numbered_lines,
    refuse_header,
    string_field,
)
from headrank_pipeline.passages import passage_from_raw, title_and_text
from headrank_pipeline.records import Candidate, Query, Ranking, check_id

__all__ = [
    "LARGEST_GRADE",
    "CandidateLayout",
    "Qrels",
    "candidate_line",
    "check_grade",
    "read_candidates",
    "read_qrels",
    "read_run",
    "read_topics",
    "run_lines",
    "run_scores",
    "run_writer",
    "six_decimal_scores",
    "write_candidates",
    "write_run",
]

Qrels = dict[str, dict[str, int]]
CandidateLayout = Literal["rank_llm", "pyserini"]
PathLike = str | os.PathLike[str]
_Lines = Iterator[tuple[int, str]]

_BEIR_QRELS_HEADER = ["query-id", "corpus-id", "score"]
_TREC_TOPIC = re.compile(r"<top>(.*?)(?=</top>|<top>|\Z)", re.DOTALL | re.IGNORECASE)
_TREC_NUMBER = re.compile(r"<num>\s*(?:number:)?\s*([^\s<]+)", re.IGNORECASE)
# What the XML of TREC-COVID, the Web, Clinical Trials and Touché tracks calls a topic's number and its query.
_XML_NUMBERS = ("number", "num", "id", "qid", "identifier")
_XML_QUERIES = ("query", "title")
# A title ends at a tag of a topic, or at any other that begins a line; "if a<b then" and "the <b> tag" are its text.
_TREC_TITLE = re.compile(
    r"<title>\s*(?:topic:)?(.*?)(?=</?(?:title|num|dom|desc|smry|narr|con|fac|def|nat|time|query|question|type|top)\b"
    r"[^<>]*>|\n\s*</?[a-z][\w-]*>|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_WHOLE = re.compile(r"[+-]?[0-9]+")
_SPACE = re.compile(r"[ \t\n\r]*")

# trec_eval counts the documents of every grade up to the largest.
LARGEST_GRADE = 100_000


# ---------------------------------------------------------------------------------------------------------- topics


def read_topics(path: PathLike) -> list[Query]:
    """Return the queries of a topics file in file order; its format is recognised from its content.

    Of a TREC topic the title is read; of an XML topic the query, else the title, else its own text.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed line, an empty query text, or a qid that occurs twice; names file and line.
    """
    first, lines = begun(numbered_lines(path, "topics"))
    if first.startswith("{"):
        found = _jsonl_topics(path, lines)
    elif first.startswith("<") and "\t" not in first:
        content = joined(lines)
        found = _trec_topics(path, content) if _TREC_TOPIC.search(content) else _xml_topics(path, content)
    else:
        found = _tsv_topics(path, lines)
    queries: list[Query] = []
    places: dict[str, str] = {}
    for where, qid, text in found:
        try:
            query = Query(qid, text)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if qid in places:
            raise ValueError(
                f"{where}: qid {qid} was given before at {places[qid]}; every qid once, delete one of them"
            )
        places[qid] = where
        queries.append(query)
    if not queries:
        raise ValueError(f"{path}: no topics in it; expected TSV 'qid<tab>text', BEIR JSONL, TREC <top> or XML <topic>")
    return queries


def _tsv_topics(path: PathLike, lines: _Lines) -> Iterator[tuple[str, str, str]]:
    for place, (number, line) in enumerate(lines):
        columns = line.split("\t")
        if len(columns) != 2:
            raise ValueError(f"{path}:{number}: expected 'qid<tab>text', got {len(columns)} columns: {line[:80]!r}")
        if place == 0:
            refuse_header(columns, f"{path}:{number}")
        yield f"{path}:{number}", columns[0].strip(), columns[1].strip()


def _jsonl_topics(path: PathLike, lines: _Lines) -> Iterator[tuple[str, str, str]]:
    for where, record in json_objects(path, lines):
        qid = foreign_id(first_field(record, ("_id", "qid", "id"), where), where)
        yield where, qid, string_field(first_field(record, ("text", "query", "title"), where), "query text", where)


def _trec_topics(path: PathLike, content: str) -> Iterator[tuple[str, str, str]]:
    line, counted = 1, 0
    for topic in _TREC_TOPIC.finditer(content):
        line, counted = line + content.count("\n", counted, topic.start()), topic.start()
        where = f"{path}:{line}"
        number, title = _TREC_NUMBER.search(topic[1]), _TREC_TITLE.search(topic[1])
        if number is None or title is None:
            raise ValueError(f"{where}: <top> without {'<num>' if number is None else '<title>'}; expected both")
        yield where, number[1], " ".join(title[1].split())


def _xml_topics(path: PathLike, content: str) -> Iterator[tuple[str, str, str]]:
    if "<!ENTITY" in content:
        raise ValueError(f"{path}: declares entities, which could unpack to any size; write the topics without them")
    try:
        root = ElementTree.fromstring(content.lstrip())
    except ElementTree.ParseError as error:
        line = error.position[0] + content[: len(content) - len(content.lstrip())].count("\n")
        raise ValueError(f"{path}:{line}: neither TREC <top> records nor well-formed XML: {error}") from error
    for place, topic in enumerate(root.iter("topic"), start=1):
        where = f"{path}: topic {place}"
        number = next(filter(None, (topic.get(name) or topic.findtext(name) for name in _XML_NUMBERS)), None)
        if number is None:
            raise ValueError(f"{where}: no number; expected <topic number=…> or one of {_listed(_XML_NUMBERS)} in it")
        text = next(filter(None, map(topic.findtext, _XML_QUERIES)), None)
        if text is None and len(topic):
            raise ValueError(
                f"{where}: expected one of {_listed(_XML_QUERIES)}, got {_listed(child.tag for child in topic)}; "
                "write the field that is the query as TSV 'qid<tab>text'"
            )
        yield where, number.strip(), " ".join((text or topic.text or "").split())


def _listed(tags: Iterable[str]) -> str:
    return ", ".join(f"<{tag}>" for tag in tags)


# ----------------------------------------------------------------------------------------------------------- qrels


def read_qrels(path: PathLike) -> Qrels:
    """Return ``{qid: {docid: grade}}`` from TREC qrels (four columns) or BEIR qrels (three columns and a header).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed line, or two judgements of one document that differ; names file and line.
    """
    qrels: Qrels = {}
    beir = False
    for number, line in numbered_lines(path, "qrels"):
        columns = line.split()
        where = f"{path}:{number}"
        if not qrels and not beir and [name.lower() for name in columns] == _BEIR_QRELS_HEADER:
            beir = True
            continue
        if len(columns) != (3 if beir else 4):
            expected = " ".join(_BEIR_QRELS_HEADER) if beir else "qid 0 docid grade"
            raise ValueError(
                f"{where}: expected {3 if beir else 4} columns '{expected}', got {len(columns)}: {line[:80]!r}; "
                f"BEIR qrels need their header line"
            )
        qid, docid = columns[0], columns[-2]
        _check_ids(qid, docid, where)
        grade = check_grade(columns[-1], where)
        known = qrels.setdefault(qid, {}).setdefault(docid, grade)
        if known != grade:
            raise ValueError(
                f"{where}: qid {qid} docid {docid} is judged {grade} here and {known} above; delete one of the lines"
            )
    if not qrels:
        raise ValueError(f"{path}: no judgements in it; expected TREC qrels 'qid 0 docid grade' or BEIR TSV")
    return qrels


def check_grade(grade: object, where: str) -> int:
    """Return a grade as the whole number it is, whether it stands in a file, a mapping or a frame.

    Args:
        grade: a whole number, or text that spells one; 2.0 is one, 0.5 is not.
        where: "file:line", or qid and docid, for the error.

    Raises:
        ValueError: no whole number, or one beyond `LARGEST_GRADE`, for which trec_eval takes memory by the grade.
    """
    value: int | None = None
    if isinstance(grade, str):
        value = _whole(grade, "grade", where)
    elif isinstance(grade, Integral):
        value = int(grade)
    elif isinstance(grade, Real) and float(grade).is_integer():
        value = int(float(grade))
    if value is None:
        raise ValueError(f"{where}: grade {grade!r}: expected a whole number, got {type(grade).__name__}")
    if abs(value) > LARGEST_GRADE:
        shown = str(grade) if len(str(grade)) <= 20 else f"{str(grade)[:20]}…"
        raise ValueError(
            f"{where}: grade {shown}: expected one from {-LARGEST_GRADE} to {LARGEST_GRADE}; are the columns in order "
            f"(qid 0 docid grade)?"
        )
    return value


def _check_ids(qid: str, docid: str, where: str) -> None:
    try:
        check_id("qid", qid)
        check_id("docid", docid)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


# ------------------------------------------------------------------------------------------------------------ runs


def read_run(path: PathLike) -> dict[str, list[Candidate]]:
    """Return the candidates per qid of a TREC run, best first, without text.

    Order is by score, and by the rank column among equal scores (an evaluator would break those by docid).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed line, a score that is not finite, or a docid that occurs twice in a qid.
    """
    rows: dict[str, dict[str, tuple[float, int, int]]] = {}
    for number, line in numbered_lines(path, "run"):
        columns = line.split()
        where = f"{path}:{number}"
        if len(columns) != 6:
            raise ValueError(
                f"{where}: expected 6 columns 'qid Q0 docid rank score tag', got {len(columns)}: {line[:80]!r}"
            )
        qid, _, docid, rank, score, _ = columns
        _check_ids(qid, docid, where)
        known = rows.setdefault(qid, {})
        if docid in known:
            raise ValueError(f"{where}: qid {qid} docid {docid} occurs before on line {known[docid][2]}; delete one")
        known[docid] = (_finite(score, f"{where}: qid {qid} docid {docid}"), _whole(rank, "rank", where), number)
    return {
        qid: [
            Candidate(docid, score)
            for docid, (score, _, _) in sorted(found.items(), key=lambda item: (-item[1][0], item[1][1]))
        ]
        for qid, found in rows.items()
    }


def run_lines(ranking: Ranking, tag: str) -> list[str]:
    """Return the lines ``qid Q0 docid rank score tag`` of one ranking, without line ends.

    Scores are those of `run_scores`, so that an evaluator sees this order; the raw values belong elsewhere.

    Raises:
        ValueError: a tag that is empty or holds white space.

    Examples:
        >>> run_lines(Ranking(Query("q1", "flea"), (Candidate("d2", 1.0), Candidate("d1", 1.0))), "bm25")
        ['q1 Q0 d2 1 1.0 bm25', 'q1 Q0 d1 2 0.99999994 bm25']
    """
    _check_tag(tag)
    scores = run_scores(ranking.scores)
    return [
        f"{ranking.query.qid} Q0 {docid} {rank} {_printed(score)} {tag}"
        for rank, (docid, score) in enumerate(zip(ranking.docids, scores, strict=True), start=1)
    ]


def write_run(path: PathLike, rankings: Iterable[Ranking], tag: str) -> int:
    """Write a TREC run atomically and return how many queries have lines in it; an empty ranking has none.

    Raises:
        ValueError: a tag with white space, or a qid that occurs twice.
    """
    with run_writer(path, tag) as write:
        return sum(map(write, rankings))


@contextmanager
def run_writer(path: PathLike, tag: str) -> Iterator[Callable[[Ranking], bool]]:
    """Give what adds a ranking to a TREC run and returns whether it has lines; the run appears when the block ends.

    Raises:
        ValueError: a tag with white space, or a qid that occurs twice.
    """
    _check_tag(tag)
    seen: set[str] = set()
    with atomic_writer(path) as file:

        def write(ranking: Ranking) -> bool:
            if ranking.query.qid in seen:
                raise ValueError(f"{path}: qid {ranking.query.qid} was given twice; a run holds every qid once")
            seen.add(ranking.query.qid)
            lines = run_lines(ranking, tag)
            file.writelines(line + "\n" for line in lines)
            return bool(lines)

        yield write


def _check_tag(tag: str) -> None:
    check_id("run tag", tag)


def _printed(score: float) -> str:
    """Return the shortest decimal that reads back as this float32, through float64 too, as atof does."""
    value = np.float32(score)
    short = str(value)
    return short if np.float32(float(short)) == value else repr(score)


# ------------------------------------------------------------------------------------------------------ candidates


def read_candidates(path: PathLike) -> Iterator[Ranking]:
    """Yield one ranking per request of a candidates file, in file order.

    A request is ``{"query": {"qid", "text"}, "candidates": [{"docid", "score", "doc": {"title", "text"}}]}`` (rank_llm,
    Anserini's REST server) or ``{"query": {"qid", "query_txt"}, "candidates": [{"docid", "score", "document_txt"}]}``
    (the reply of Pyserini's REST server); one a line, or all of them in one JSON array. ``doc`` may be a string; the
    passage may be absent; ``rank`` is not read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed request, candidates that are not in score order, a docid or a qid that occurs twice;
            names file and line.
    """
    places: dict[str, str] = {}
    for where, request in _requests(path):
        try:
            ranking = _ranking(request)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        qid = ranking.query.qid
        if qid in places:
            raise ValueError(
                f"{where}: qid {qid} was given before at {places[qid]}; every qid once, delete one of them"
            )
        places[qid] = where
        yield ranking


def candidate_line(ranking: Ranking, layout: CandidateLayout = "rank_llm") -> str:
    """Return one line of a candidates file, without its end; floats survive exactly.

    Args:
        ranking: the candidates of one query.
        layout: ``rank_llm`` keeps title and text apart and leaves out what is None; ``pyserini`` is the reply of
            Pyserini's REST server, which has one text per passage: the title goes before it, on a line of its own.

    Raises:
        ValueError: a candidate without text, in Pyserini's layout.

    Examples:
        >>> ranking = Ranking(Query("q1", "flea"), (Candidate("d1", 0.5, "Fleas."),))
        >>> candidate_line(ranking)[52:]
        '": [{"docid": "d1", "score": 0.5, "rank": 1, "doc": {"text": "Fleas."}}]}'
        >>> candidate_line(ranking, "pyserini")[57:]
        '": [{"docid": "d1", "score": 0.5, "document_txt": "Fleas."}]}'
    """
    query, candidates = ranking.query, ranking.candidates
    if layout == "pyserini":
        return json.dumps(
            {
                "query": {"qid": query.qid, "query_txt": query.text},
                "candidates": [_server_record(candidate, query.qid) for candidate in candidates],
            }
        )
    return json.dumps(
        {
            "query": {"qid": query.qid, "text": query.text},
            "candidates": [_candidate_record(candidate, rank) for rank, candidate in enumerate(candidates, start=1)],
        }
    )


def write_candidates(path: PathLike, rankings: Iterable[Ranking], layout: CandidateLayout = "rank_llm") -> int:
    """Write a candidates file atomically and return the number of queries; a query without candidates is kept.

    Raises:
        ValueError: a qid that occurs twice, or what `candidate_line` refuses.
    """
    seen: set[str] = set()
    with atomic_writer(path) as file:
        for ranking in rankings:
            if ranking.query.qid in seen:
                raise ValueError(f"{path}: qid {ranking.query.qid} was given twice; every qid once")
            seen.add(ranking.query.qid)
            file.write(candidate_line(ranking, layout) + "\n")
    return len(seen)


def _candidate_record(candidate: Candidate, rank: int) -> dict[str, Any]:
    record: dict[str, Any] = {"docid": candidate.docid, "score": float(candidate.score), "rank": rank}
    doc = {"title": candidate.title, "text": candidate.text}
    if known := {name: value for name, value in doc.items() if value is not None}:
        record["doc"] = known
    return record


def _server_record(candidate: Candidate, qid: str) -> dict[str, Any]:
    if candidate.text is None:
        raise ValueError(
            f"qid {qid} docid {candidate.docid}: no text, which Pyserini's layout requires; write rank_llm's, or take "
            f"candidates from an index that stores passages"
        )
    text = f"{candidate.title}\n{candidate.text}" if candidate.title else candidate.text
    return {"docid": candidate.docid, "score": float(candidate.score), "document_txt": text}


def _requests(path: PathLike) -> Iterator[tuple[str, Any]]:
    first, lines = begun(numbered_lines(path, "candidates"))
    if first.startswith("["):
        yield from _array(path, joined(lines))
        return
    if first and not first.startswith("{"):
        raise ValueError(
            f"{path}: expected one JSON object with query and candidates a line, got {first.rstrip()[:80]!r}; a TREC "
            f"run gets queries and texts by: headrank retrieve --run RUN --topics T --texts CORPUS --output C.jsonl"
        )
    yield from json_objects(path, lines)


def _array(path: PathLike, text: str) -> Iterator[tuple[str, Any]]:
    """Yield ("file:line: request n", value) for every value of a JSON array, one in memory at a time."""
    place, line, counted, number = text.index("[") + 1, 1, 0, 0
    while True:
        place = _SPACE.match(text, place).end()  # type: ignore[union-attr]
        if number == 0 and text[place : place + 1] == "]":
            break
        line, counted, number = line + text.count("\n", counted, place), place, number + 1
        where = f"{path}:{line}: request {number}"
        value, place = next_json(text, place, where)
        yield where, value
        place = _SPACE.match(text, place).end()  # type: ignore[union-attr]
        if text[place : place + 1] == "]":
            break
        if text[place : place + 1] != ",":
            raise ValueError(f"{where}: not valid JSON: expected ',' or ']' after it, got {text[place : place + 20]!r}")
        place += 1
    if rest := text[place + 1 :].strip():
        raise ValueError(f"{path}: not valid JSON: {rest[:20]!r} follows the array; expected nothing after it")


def _ranking(request: Any) -> Ranking:
    if not isinstance(request, dict) or not isinstance(request.get("query"), dict):
        raise ValueError('expected {"query": {"qid", "text"}, "candidates": [...]}, found no query object')
    query, found = request["query"], request.get("candidates")
    if not isinstance(found, list):
        raise ValueError("'candidates': expected a list of {docid, score, doc}")
    qid = foreign_id(first_field(query, ("qid",), "query"), "query")
    if qid == "":
        raise ValueError("query: the qid is empty; a REST server echoes the qid that it is asked with: send one")
    text = string_field(first_field(query, ("text", "query_txt"), "query"), "query text", "query")
    return Ranking(Query(qid, text), tuple(_candidate(record, rank) for rank, record in enumerate(found, start=1)))


def _candidate(record: Any, rank: int) -> Candidate:
    where = f"candidate {rank}"
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected an object {{docid, score, doc}}, got {type(record).__name__}")
    docid = foreign_id(first_field(record, ("docid",), where), where)
    score = first_field(record, ("score",), where)
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise ValueError(f"{where} docid {docid}: score {score!r}: expected a number")
    doc, served = record.get("doc"), record.get("document_txt")
    if doc is None and served is not None:
        return Candidate(docid, _finite(score, where), string_field(served, "document_txt", f"{where} docid {docid}"))
    if doc is None:
        return Candidate(docid, _finite(score, where))
    title, text = passage_from_raw(doc, docid) if isinstance(doc, str) else title_and_text(doc, docid)
    return Candidate(docid, _finite(score, where), text, title)


def _whole(value: str, what: str, where: str) -> int:
    try:
        if not _WHOLE.fullmatch(value):  # int() takes 1_0 for 10, and digits of every script
            raise ValueError
        return int(value)
    except ValueError:  # int() also refuses thousands of digits
        raise ValueError(f"{where}: {what} {_short(value)!r}: expected a whole number") from None


def _finite(value: str | float, where: str) -> float:
    try:
        if isinstance(value, str) and ("_" in value or not value.isascii()):  # float() takes 1_0 for 10
            raise ValueError
        score = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{where}: score {_short(str(value))!r}: expected a number") from None
    if not math.isfinite(score):
        shown = repr(_short(value) if isinstance(value, str) else value)
        raise ValueError(f"{where}: score {shown}: scores must be finite; produce the run again")
    return score


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


# ----------------------------------------------------------------------------------------------------- the one tie rule
#
# trec_eval and its relatives ignore the rank column, keep scores as float32, and break ties by docid descending
# (usnistgov/trec_eval#22). Two scores that differ only beyond float32, or that a writer prints alike, therefore lose
# our order without a word. A score is lowered by the least step that keeps it apart from its predecessor.


_INT32_MIN = -(2**31)
_MAX_ORDINAL = 0x7F7FFFFF  # bits of the largest finite float32; the smallest has the ordinal -_MAX_ORDINAL


def _check(scores: Sequence[float]) -> None:
    previous = math.inf
    for position, score in enumerate(scores, start=1):
        if not math.isfinite(score):
            raise ValueError(f"score {score!r} at rank {position} is not finite")
        if score > previous:
            raise ValueError(f"score {score!r} at rank {position} is above {previous!r} before it; sort first")
        previous = score


def _clipped(score: float) -> float:
    limit = float(np.finfo(np.float32).max)
    return min(max(score, -limit), limit)


def _ordinal(score: float) -> int:
    """Return the place of a score among all finite float32 values, 0 for 0.0; neighbours differ by 1."""
    bits = int(np.float32(_clipped(score)).view(np.int32))
    return bits if bits >= 0 else _INT32_MIN - bits  # -0.0 and 0.0 are the same place


def _value(ordinal: int) -> float:
    bits = ordinal if ordinal >= 0 else _INT32_MIN - ordinal
    return float(np.int32(bits).view(np.float32))


def run_scores(scores: Sequence[float]) -> list[float]:
    """Return float32 values, strictly decreasing, as close to `scores` as that allows.

    Args:
        scores: finite, never rising.

    Raises:
        ValueError: a score that is not finite or that rises.

    Examples:
        >>> run_scores([3.0, 2.0, 2.0])
        [3.0, 2.0, 1.9999998807907104]
        >>> run_scores([0.5, 0.25])
        [0.5, 0.25]
    """
    _check(scores)
    limit = float(np.finfo(np.float32).max)
    bits = np.clip(np.asarray(scores, dtype=np.float64), -limit, limit).astype(np.float32).view(np.int32)
    ordinals = np.where(bits >= 0, bits, _INT32_MIN - bits.astype(np.int64))
    ranks = np.arange(len(scores))
    # o[i] = min(o[i], o[i-1] - 1), as a running minimum of o[i] + i
    ordinals = np.minimum.accumulate(ordinals + ranks) - ranks
    # Ties at the bottom of float32 would count down past its end: lift what lies too low by as little as will do.
    ordinals = np.maximum(ordinals, -_MAX_ORDINAL + len(scores) - 1 - ranks)
    values = np.where(ordinals >= 0, ordinals, _INT32_MIN - ordinals).astype(np.int32).view(np.float32)
    return [float(value) for value in values]


def six_decimal_scores(scores: Sequence[float]) -> list[float]:
    """Return scores that stay strictly decreasing when printed with ``%.6f``, and as float32 after that.

    Pyserini's ``OutputWriter`` prints six decimals; mean attention masses such as 3.1e-07 would all become 0.000000.
    Scores that survive the rounding in order are returned rounded and otherwise as they were.

    Args:
        scores: finite, never rising.

    Raises:
        ValueError: a score that is not finite or that rises.

    Examples:
        >>> six_decimal_scores([12.5, 3.1e-07, 2.9e-07])
        [12.5, 0.0, -1e-06]
    """
    _check(scores)
    printed: list[float] = []
    for score in scores:
        millionths = _millionths(_clipped(score))
        if printed and _ordinal(millionths / 10**6) >= _ordinal(printed[-1]):
            below = _value(max(_ordinal(printed[-1]) - 1, -_MAX_ORDINAL))
            # Below 16 a float32 step is finer than a millionth, above it is coarser: take the larger of the two.
            millionths = min(_millionths(printed[-1]) - 1, _millionths(below))
        printed.append(millionths / 10**6)
    lowest = -_MAX_ORDINAL + len(scores) - 1
    return [max(score, _value(lowest - rank)) for rank, score in enumerate(printed)]


def _millionths(score: float) -> int:
    return int(f"{score:.6f}".replace(".", ""))
