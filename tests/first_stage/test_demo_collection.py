"""The demo collection: well-formed, counted as its README says, and with traps in both directions."""

import csv
import json
import re
from collections import Counter, defaultdict
from importlib.resources import files

import pytest

DEMO = files("headrank_pipeline") / "resources" / "demo"
FUNCTION_WORDS = """
    a about after all an and any are as at be been but by can could do does for from had has have he her his how i if in
    into is it its me my no not of on one or our she should so some such than that the their them then there these they
    this to up us very was we were what when where which who why will with would you your
"""
STOPWORDS = set(FUNCTION_WORDS.split())


def _jsonl(name):
    return [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]


def _words(text):
    """Content words, lower-case, with a plural or verb ending taken off."""
    words = set(re.findall(r"\w+", text.lower())) - STOPWORDS
    return {re.sub(r"(?<=\w{3})(ing|ed|es|s|e)$", "", word) for word in words}


@pytest.fixture(scope="module")
def corpus():
    return _jsonl("corpus.jsonl")


@pytest.fixture(scope="module")
def queries():
    return _jsonl("queries.jsonl")


@pytest.fixture(scope="module")
def judgments():
    with (DEMO / "qrels.tsv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle, delimiter="\t"))
    assert rows[0] == ["query-id", "corpus-id", "score"]
    return [(query, doc, int(score)) for query, doc, score in rows[1:]]


@pytest.fixture(scope="module")
def overlap(corpus, queries, judgments):
    """For each query, (grade, number of query words in the passage) of each judged passage."""
    docs = {doc["_id"]: _words(f"{doc.get('title', '')} {doc['text']}") for doc in corpus}
    asked = {query["_id"]: _words(query["text"]) for query in queries}
    shared = defaultdict(list)
    for query, doc, grade in judgments:
        shared[query].append((grade, len(asked[query] & docs[doc])))
    return shared


def test_ids_and_texts_are_unique(corpus, queries, judgments):
    for rows in (corpus, queries):
        assert len({row["_id"] for row in rows}) == len(rows)
        assert len({" ".join(row["text"].lower().split()) for row in rows}) == len(rows)
        assert all(row["text"].strip() for row in rows)
    assert all(set(doc) <= {"_id", "title", "text"} for doc in corpus)
    pairs = [(query, doc) for query, doc, _ in judgments]
    assert len(set(pairs)) == len(pairs)


def test_judgments_point_to_existing_rows(corpus, queries, judgments):
    assert {doc for _, doc, _ in judgments} <= {doc["_id"] for doc in corpus}
    assert {query for query, _, _ in judgments} == {query["_id"] for query in queries}
    assert {grade for _, _, grade in judgments} == {0, 1, 2, 3}


def test_counts_are_those_of_the_readme(corpus, queries, judgments):
    grades = Counter(grade for _, _, grade in judgments)
    counted = {
        "passages": len(corpus),
        "passages without a title": sum("title" not in doc for doc in corpus),
        "passages with an empty title": sum(doc.get("title") == "" for doc in corpus),
        "topics": len({doc["_id"].split("-")[0] for doc in corpus}),
        "queries": len(queries),
        "judgments": len(judgments),
        **{f"judgments of grade {grade}": grades[grade] for grade in range(4)},
    }
    readme = (DEMO / "README.md").read_text(encoding="utf-8")
    written = {name: int(number) for name, number in re.findall(r"^\| ([^|]+) \| (\d+) \|$", readme, flags=re.M)}
    assert written == counted
    assert 280 <= counted["passages"] <= 360
    assert counted["queries"] == 60
    assert 480 <= counted["judgments"] <= 620


def test_every_query_has_an_answer_and_a_lexical_trap(overlap):
    for query, pairs in overlap.items():
        assert any(grade == 3 for grade, _ in pairs), query
        assert any(grade == 0 and shared for grade, shared in pairs), query


def test_many_answers_use_other_words_than_the_query(overlap):
    paraphrased = [
        query
        for query, pairs in overlap.items()
        if min(n for grade, n in pairs if grade >= 2) < max(n for grade, n in pairs if grade == 0)
    ]
    assert len(paraphrased) >= 0.4 * len(overlap)


def test_texts_hold_no_control_tokens_and_some_harmless_oddities(corpus):
    texts = [doc["text"] for doc in corpus]
    assert not [text for text in texts if re.search(r"<\|.*?\|>|</?s>|\[/?INST\]|<think>|[\x00-\x1f\x7f]", text)]
    assert any(re.search(r"\[\d\]", text) for text in texts)
    assert any(not text.isascii() for text in texts)
    quoted = [(quote, doc["_id"]) for doc in corpus for quote in re.findall(r'"([^"]{40,})"', doc["text"])]
    assert any(quote in doc["text"] and doc["_id"] != by for quote, by in quoted for doc in corpus)
