"""Faults of what is read: ids, qrels, runs, topics, definitions of benchmarks, and names on pages."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Callable, Sequence
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import yaml

from faults.judging import DOCUMENTED, EQUAL, REFUSED, Fault, NotHeld, NotJudged, equal_or_refused, mutated, refusal
from faults.running import Words, plan
from headrank_pipeline.experiment.benchmark import load_benchmark
from headrank_pipeline.experiment.evaluate import evaluate
from headrank_pipeline.experiment.runner import execute
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import read_run, read_topics

__all__ = ["FAULTS"]

_MEASURES = ("nDCG@10", "R@5", "RR")

# ------------------------------------------------------------------------------------------------------------------ ids

_GOOD = (
    "a", "B7", "007", "ü", "東京", "\u202e", "\U0001f600", "é", "e\u0301", "../", "/etc", "<b>", "</td>", "&amp;", "%s",
    "{}", "\\", "'", '"', "#", "_", "-", "x" * 300,
)  # fmt: skip
_BAD = ("\ud800", "\udfff", "\x00", " ", "\t", "\n", "\r", "\u2028", "\u3000", "\x1f", "\x85", "\ufeff", "\u200b", "")


def ids(chance: Random, room: Path) -> str:
    """Ids of any characters, through a candidates file or from Python: the run and its evaluation keep them."""
    pieces = _GOOD if chance.random() < 0.5 else _GOOD + _BAD
    qids = [_id(chance, pieces) for _ in range(2)]
    docids = [_id(chance, pieces) for _ in range(4)]
    if len(set(qids)) < 2 or len(set(docids)) < 4:
        raise NotJudged
    path = room / "candidates.jsonl"
    if chance.random() < 0.3:
        return _ids_in_python(qids, docids)
    record = [
        {"query": {"qid": qid, "text": "a flea"}, "candidates": [
            {"docid": docid, "score": 9.0 - place, "doc": {"text": " ".join(["flea", *map(str, range(place))])}}
            for place, docid in enumerate(docids)
        ]}
        for qid in qids
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line, ensure_ascii=True) + "\n" for line in record))

    def ranked() -> Any:
        execute(plan(room, room / "run", Words()))
        found = {qid: [c.docid for c in listed] for qid, listed in read_run(room / "run" / "run.trec").items()}
        qrels = {qid: {docids[3]: 1} for qid in qids}
        return found, evaluate(room / "run" / "run.trec", qrels, ["RR"]).means["RR"]

    expected = ({qid: docids[::-1] for qid in qids}, 1.0)
    return equal_or_refused(ranked, expected, "candidates.jsonl:")


def _ids_in_python(qids: list[str], docids: list[str]) -> str:
    def built() -> Any:
        candidates = tuple(Candidate(docid, 9.0 - place, "x") for place, docid in enumerate(docids))
        rankings = [Ranking(Query(qid, "a flea"), candidates) for qid in qids]
        run = {r.query.qid: {c.docid: c.score for c in r.candidates} for r in rankings}
        return evaluate(run, {qid: {docids[0]: 1} for qid in qids}, ["RR"]).means["RR"]

    return equal_or_refused(built, 1.0, "qid", "docid")


def _id(chance: Random, pieces: Sequence[str]) -> str:
    return "".join(chance.choice(pieces) for _ in range(chance.randrange(1, 4))) or "z"


# ------------------------------------------------------------------------------------------------------ qrels and runs


def _lines(kind: str) -> list[list[str]]:
    made = Random(7)
    rows = []
    for qid in range(6):
        for place in range(8):
            if kind == "qrels":
                rows.append([f"q{qid}", "0", f"d{place}", str(made.choice((0, 0, 1, 2)) if place else 1)])
            else:
                rows.append(
                    [f"q{qid}", "Q0", f"d{made.randrange(3) * 10 + place}", str(place + 1), str(9.5 - place), "t"]
                )
    return rows


def _text(rows: list[list[str]], between: str = " ", end: str = "\n") -> bytes:
    return "".join(between.join(row) + end for row in rows).encode()


@cache
def _expected() -> dict[str, Any]:
    run = {}
    for qid, _, docid, _, score, _ in _lines("run"):
        run.setdefault(qid, {})[docid] = float(score)
    qrels: dict[str, dict[str, int]] = {}
    for qid, _, docid, grade in _lines("qrels"):
        qrels.setdefault(qid, {})[docid] = int(grade)
    return dict(evaluate(run, qrels, _MEASURES).per_query)


_HARMLESS: tuple[Callable[[Random, list[list[str]]], bytes], ...] = (
    lambda chance, rows: _text(chance.sample(rows, len(rows))),
    lambda _, rows: _text(rows, "\t"),
    lambda _, rows: _text(rows, "  \t "),
    lambda _, rows: _text(rows, end="\r\n"),
    lambda _, rows: _text(rows, end="\n\n  \n"),
    lambda _, rows: b"\xef\xbb\xbf" + _text(rows),
    lambda _, rows: gzip.compress(_text(rows)),
    lambda _, rows: _text(rows)[:-1],
)


def _harm(chance: Random, rows: list[list[str]], kind: str) -> bytes:
    """Return lines that no reader may take."""
    row = chance.choice(rows)
    harm = chance.randrange(6)
    if harm == 0:
        row.insert(chance.randrange(len(row) + 1), "x")
    elif harm == 1:
        del row[chance.randrange(len(row))]
    elif harm == 2 and kind == "qrels":
        row[3] = chance.choice(
            ("1.5", "nan", "x", "1e3", "9" * chance.choice((10, 11, 19, 20, 30, 5000)), "-" + "9" * 25)
        )
    elif harm == 2:
        row[4] = chance.choice(("nan", "inf", "-inf", "x", "1e999", "1_0x", "9" * 400, "--1"))
    elif harm == 3:
        twin = list(row)
        twin[3 if kind == "qrels" else 4] = "3"
        rows.insert(chance.randrange(len(rows)), twin)
    elif harm == 4:
        place = chance.randrange(len(rows))
        data = _text(rows)
        start = len(_text(rows[:place]))
        return data[:start] + chance.choice((b"\xff\xfe", b"\xc3\x28", b"\x80")) + data[start:]
    else:
        row[2] = "d\x007"
    return _text(rows)


def _judged(chance: Random, room: Path, kind: str) -> str:
    """Qrels or a run, harmed or only written otherwise, as a file or through a pipe."""
    rows = _lines(kind)
    for name in ("qrels", "run"):
        (room / name).write_bytes(_text(_lines(name)))
    path = room / kind
    draw = chance.random()
    expected: Any = _expected()
    if draw < 0.4:
        path.write_bytes(chance.choice(_HARMLESS)(chance, rows))
    elif draw < 0.5:
        data = gzip.compress(_text(rows))
        path.write_bytes(data[: chance.randrange(2, len(data))])
        expected = None
    else:
        path.write_bytes(_harm(chance, rows, kind))
        expected = None
    files: dict[str, str | Path] = {"qrels": room / "qrels", "run": room / "run"}
    feeding = _piped(path) if chance.random() < 0.3 else None
    if feeding:
        files[kind] = feeding[0]
    try:
        return equal_or_refused(
            lambda: dict(evaluate(files["run"], files["qrels"], _MEASURES).per_query),
            expected,
            f"{files[kind]}:",
            "NUL",
        )
    finally:
        if feeding:
            feeding[1]()


def _piped(path: Path) -> tuple[str, Callable[[], None]]:
    """The content of a file as a shell's <(…) gives it, and how to end that."""
    reading, writing = os.pipe()
    data = path.read_bytes()

    def fill() -> None:
        try:
            with os.fdopen(writing, "wb", buffering=0) as file:
                file.write(data)
        except BrokenPipeError:
            pass

    thread = threading.Thread(target=fill)
    thread.start()

    def end() -> None:
        os.close(reading)
        thread.join()

    return f"/dev/fd/{reading}", end


def qrels(chance: Random, room: Path) -> str:
    """Judgments."""
    return _judged(chance, room, "qrels")


def runs(chance: Random, room: Path) -> str:
    """TREC runs."""
    return _judged(chance, room, "run")


# --------------------------------------------------------------------------------------------------------------- topics

_ASKED = {f"{number}": f"what is flea {number}" for number in range(1, 6)}


def _topics(form: str) -> str:
    rows = _ASKED.items()
    if form == "tsv":
        return "".join(f"{qid}\t{text}\n" for qid, text in rows)
    if form == "jsonl":
        return "".join(json.dumps({"_id": qid, "text": text}) + "\n" for qid, text in rows)
    if form == "trec":
        return "".join(f"<top>\n<num> Number: {q}\n<title> {t}\n<desc> no\n</top>\n" for q, t in rows)
    inner = "".join(f'<topic number="{qid}"><query>{text}</query></topic>\n' for qid, text in rows)
    return f"<topics>\n{inner}</topics>\n"


def topics(chance: Random, room: Path) -> str:
    """Topics in four formats: written otherwise, cut off, of bad bytes, or with a line that is no topic."""
    form = chance.choice(("tsv", "jsonl", "trec", "xml"))
    path, data = room / "topics", _topics(form).encode()
    expected: Any = [Query(qid, text) for qid, text in _ASKED.items()]
    harmless = (b"\xef\xbb\xbf" + data, gzip.compress(data), data.replace(b"\n", b"\r\n"), data[:-1])
    if chance.random() < 0.5:
        path.write_bytes(chance.choice(harmless))
    else:
        path.write_bytes(_harmed_topics(chance, form, data))
        expected = None
    source: Any = path
    feeding = _piped(path) if chance.random() < 0.3 else None
    if feeding:
        source = feeding[0]
    try:
        return equal_or_refused(lambda: read_topics(source), expected, f"{source}")
    finally:
        if feeding:
            feeding[1]()


def _harmed_topics(chance: Random, form: str, data: bytes) -> bytes:
    """Return topics that no reader may take."""
    lines, harm = data.splitlines(keepends=True), chance.randrange(4)
    place = chance.randrange(1, len(lines))
    if harm == 0:
        packed = gzip.compress(data)
        return packed[: chance.randrange(2, len(packed))]
    if harm == 1:
        return b"".join([*lines[:place], b"\xff\xfe" + lines[place], *lines[place + 1 :]])
    if form in ("trec", "xml"):
        return chance.choice((b"", b"\n\n", b"<top>\n<title> x\n</top>\n", b"<topics><topic>x</topic></topics>", b"<a"))
    if harm == 2:
        return data.replace(_ASKED["3"].encode(), b"")
    bad = (b"x\n", b"{}\n", b'{"_id": "9"}\n', b"9\t\n", b"a b\tc\n", b"9\tx\ty\n", lines[place - 1])
    return b"".join([*lines[:place], chance.choice(bad), *lines[place + 1 :]])


# ------------------------------------------------------------------------------------------------ definitions and pages


def definitions(chance: Random, room: Path) -> str:
    """Benchmark definitions with wrong values, unknown keys, aliases, tags, or an accident in their bytes."""
    shipped = load_benchmark(_shipped())
    text = _shipped().read_text(encoding="utf-8")
    path = room / "definition.yaml"
    draw = chance.randrange(5)
    if draw == 0:
        bomb = "a0: &a0 [x, x]\n" + "".join(
            f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, chance.choice((8, 30)))
        )
        path.write_text(bomb + text)
    elif draw == 1:
        tag = chance.choice(
            ("!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!!binary x", "!x y")
        )
        path.write_text(text.replace("depth: 100", f"depth: {tag}"))
    elif draw == 2:
        path.write_text("[" * chance.choice((10, 5000, 100000)))
    elif draw == 3:
        record = yaml.safe_load(text)
        key = chance.choice([key for key in record if key not in ("notes", "references")])
        record[key] = chance.choice((None, [], {}, {"x": 1}, -5, "\ud800"[:0] + "no such", [1], True))
        if chance.random() < 0.3:
            record[key + "x"] = record.pop(key)
        path.write_text(yaml.safe_dump(record))
    else:
        path.write_bytes(mutated(chance, _shipped().read_bytes()))
    try:
        found = load_benchmark(path)
    except Exception as error:
        if refusal(error, ["definition.yaml"]):
            return REFUSED
        raise NotHeld(f"not by name: {type(error).__name__}: {str(error)[:300]}") from error
    if draw in (0, 1, 2):
        raise NotHeld(f"taken: {path.read_text()[:100]}")
    if found == shipped:
        return EQUAL
    raise NotJudged  # another definition, and a valid one


def _shipped() -> Path:
    return Path(__file__).parents[2] / "pipelines" / "beir-scifact.yaml"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(sorted(name for name, _ in attrs))))


def pages(chance: Random, room: Path) -> str:
    """Names that are markup, anywhere on a page: it has the tags of a page with plain names, and no others."""
    from headrank_pipeline.comparison.report import Section, html_page
    from headrank_pipeline.comparison.tables import Column, Table

    nasty = ('<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "</table><b>", "&lt;i&gt;", "' onload='x",
             "<!--", "]]>", "</style><script>", "javascript:alert(1)", "\u202e<b>", "{{7*7}}")  # fmt: skip

    def page(word: Callable[[], str]) -> str:
        table = Table(
            word(), [Column("system"), Column(word(), ".4f", word())], [[word(), 0.5], [word(), None]], word()
        )
        sections = [Section(word(), word(), tables=[table])]
        return html_page(word(), word(), facts=[(word(), word())], notes=[word()], sections=sections)

    plain, tried = _Tags(), _Tags()
    plain.feed(page(lambda: "x"))
    text = page(lambda: chance.choice(nasty))
    tried.feed(text)
    if plain.tags != tried.tags:
        raise NotHeld(f"other tags: {[tag for tag in tried.tags if tag not in plain.tags][:3]}")
    return DOCUMENTED


FAULTS: dict[str, Fault] = {
    "ids": ids,
    "qrels": qrels,
    "runs": runs,
    "topics": topics,
    "yaml": definitions,
    "pages": pages,
}
