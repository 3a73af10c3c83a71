import gzip
import json
import os
from pathlib import Path

import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from headrank_pipeline.files import atomic_writer, open_text
from headrank_pipeline.passages import Passage, passage_from_raw, read_corpus
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import (
    candidate_line,
    read_candidates,
    read_qrels,
    read_run,
    read_topics,
    run_lines,
    write_candidates,
    write_run,
)


def file(folder: Path, text: str, name: str = "input") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def request(qid: object = "q1", candidates: object = (), **query: object) -> str:
    return json.dumps({"query": {"qid": qid, "text": "flea", **query}, "candidates": candidates})


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("read", "content"),
    [
        (read_topics, b"q\tflea\n%s\tflea\n"),
        (read_topics, b'{"_id": "q", "text": "flea"}\n{"_id": "%s", "text": "flea"}\n'),
        (read_topics, b"<top>\n<num>q\n<title>flea\n</top><top><num>%s\n<title>flea\n</top>\n"),
        (read_qrels, b"q 0 d 1\n%s 0 d 1\n"),
        (read_qrels, b"q 0 d 1\nq 0 %s 1\n"),
        (read_run, b"q Q0 d 1 1 t\n%s Q0 d 1 1 t\n"),
        (read_run, b"q Q0 d 1 1 t\nq Q0 %s 2 0 t\n"),
        (lambda path: list(read_corpus(path)), b"d\tflea\n%s\tflea\n"),
        (lambda path: list(read_corpus(path)), b'\n{"_id": "%s", "text": "flea"}\n'),
        (lambda path: list(read_candidates(path)), b'\n{"query": {"qid": "%s", "text": "flea"}, "candidates": []}\n'),
        (
            lambda path: list(read_candidates(path)),
            b'[\n{"query": {"qid": "q", "text": "flea"}, "candidates": [{"docid": "%s", "score": 1}]}]\n',
        ),
    ],
)
def test_ids_that_cannot_be_written_are_refused_by_every_reader_with_file_and_line(tmp_path, read, content):
    path = tmp_path / "input"
    json_escapes = b'"' in content
    nul, half = (b"a\\u0000b", b"a\\ud83db") if json_escapes else (b"a\0b", None)
    path.write_bytes(content % nul)
    line = 3 if b"<top>" in content else 2
    with pytest.raises(ValueError, match=rf"input:{line}: .*id 'a.*' ?has a NUL character|id 'a.*b': has a NUL"):
        read(path)
    if half is not None:
        path.write_bytes(content % half)
        with pytest.raises(ValueError, match=rf"input:{line}: .*id 'a.*b' has half a surrogate pair"):
            read(path)


def test_gzip_is_known_by_its_bytes_not_its_name(tmp_path):
    path = tmp_path / "plainly.txt"
    path.write_bytes(gzip.compress("q1\tflöhe\n".encode()))
    assert read_topics(path) == [Query("q1", "flöhe")]


def test_a_byte_order_mark_is_not_part_of_the_first_id(tmp_path):
    path = tmp_path / "topics.tsv"
    path.write_bytes(b"\xef\xbb\xbfq1\tflea\r\n")
    assert read_topics(path) == [Query("q1", "flea")]


def test_a_missing_file_names_its_purpose(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tsv: no such topics file"):
        read_topics(tmp_path / "nowhere.tsv")
    with pytest.raises(FileNotFoundError, match="expected a qrels file, this is a folder"):
        read_qrels(tmp_path)


def test_bytes_that_are_not_utf8_name_their_line(tmp_path):
    path = tmp_path / "topics.tsv"
    path.write_bytes(b"".join(b"q%d\tflea\n" % number for number in range(5000)) + b"q\tfl\xe9a\n" + b"x\tx\n" * 9)
    with pytest.raises(ValueError, match=r"topics\.tsv:5001: not UTF-8"):
        read_topics(path)


def test_a_truncated_gzip_file_is_named(tmp_path):
    path = tmp_path / "topics.tsv.gz"
    path.write_bytes(gzip.compress(os.urandom(50).hex().encode() + b"\tflea\n")[:-12])
    with pytest.raises(ValueError, match="damaged gzip"):
        read_topics(path)


def test_atomic_writer_makes_folders_and_leaves_only_the_file(tmp_path):
    with atomic_writer(tmp_path / "new" / "run.trec") as out:
        out.write("ä\n")
        assert [path.name for path in (tmp_path / "new").iterdir()] != ["run.trec"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run.trec"]
    assert (tmp_path / "new" / "run.trec").read_bytes() == "ä\n".encode()


@pytest.mark.parametrize("name", ["run.trec", "run.trec.gz"])
def test_atomic_writer_keeps_the_old_file_on_an_exception(tmp_path, name):
    path = file(tmp_path, "old", name)
    with pytest.raises(KeyboardInterrupt), atomic_writer(path) as out:
        out.write("new" * 100_000)
        raise KeyboardInterrupt
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [(name, "old")]


def test_atomic_writer_gzips_by_name_with_equal_bytes_for_equal_text(tmp_path):
    for name in ("a.gz", "b.gz"):
        with atomic_writer(tmp_path / name) as out:
            out.write("flea\n")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert (tmp_path / "a.gz").read_bytes()[4:8] == bytes(4)  # no time stamp
    with open_text(tmp_path / "a.gz") as unpacked:
        assert unpacked.read() == "flea\n"


# ------------------------------------------------------------------------------------------------------------ topics


@pytest.mark.parametrize(
    "text",
    [
        "007\tlife of a flea\n\n7\tdog\n",
        '{"_id": "007", "text": "life of a flea", "metadata": {}}\n{"_id": 7, "text": "dog"}\n',
        '{"_id": null, "qid": "007", "query": "life of a flea"}\n{"id": "7", "title": "dog"}\n',
        "<top>\n<num> 007\n<title> life of a flea\n<top>\n<num>7\n<title>dog\n",
        "<top><num>007<title>life of a flea<desc>x</top>\n<top>\n<num>7\n<title>dog\n<other>\nx\n</top>\n",
        "<top>\n<num> Number: 007 </num>\n<title> life of\n a flea\n<desc> Description: x\n</top>\n"
        "<top>\n<num>7\n<title>Topic: dog</title>\n</top>\n",
        '\n<?xml version="1.0" encoding="UTF-8"?>\n<topics><topic number="007"><query>life of\n a &#102;lea</query>'
        "<title>x</title></topic><topic number='7'><query>dog</query></topic></topics>",
        "<topics>\n<topic><number> 007 </number><title>life of a flea</title><narrative>x</narrative></topic>\n"
        '<topic id="7">dog</topic>\n</topics>',
    ],
)
def test_topics_of_every_format_keep_ids_and_order(tmp_path, text):
    assert read_topics(file(tmp_path, text)) == [Query("007", "life of a flea"), Query("7", "dog")]


@pytest.mark.parametrize("title", ["if a<b then what", "the <b> tag of <i>HTML</i>", "x < y > z", "a<title-like"])
@pytest.mark.parametrize("end", ["</title>\n</top>", "\n<desc> Description:\nmore\n</top>", "\n\n</top>"])
def test_a_trec_title_is_text_and_no_markup(tmp_path, title, end):
    assert read_topics(file(tmp_path, f"<top>\n<num> Number: 1\n<title> {title}{end}\n")) == [Query("1", title)]


@pytest.mark.parametrize(
    ("grade", "message"),
    [
        ("99999999999", "grade 99999999999: expected one from -100000 to 100000; are the columns in order"),
        ("9223372036854775808", "grade 9223372036854775808: expected one from"),
        ("123456789012345678901234567890", "grade 12345678901234567890…: expected one from"),
        ("-2000000000", "grade -2000000000: expected one from"),
        ("9" * 5000, "grade '9999.*…': expected a whole number"),
        ("1_0", "grade '1_0': expected a whole number"),
        ("0.5", "grade '0.5': expected a whole number"),
        ("\u0661", "grade .*: expected a whole number"),
    ],
)
def test_grades_are_bounded_with_file_and_line(tmp_path, grade, message):
    with pytest.raises(ValueError, match=f"input:2: {message}"):
        read_qrels(file(tmp_path, f"q 0 d 1\nq 0 e {grade}\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q1 flea\n", r"input:1: expected 'qid<tab>text', got 1 columns"),
        ("q1\tflea\nq2\t  \n", r"input:2: qid q2: query text '' is empty"),
        ("q1\tflea\n\nq1\tdog\n", r"input:3: qid q1 was given before at .*input:1"),
        ('{"_id": "q1", "text": "flea"}\n{"_id": "q2"\n', r"input:2: not valid JSON \(Expecting .*\): fix or delete"),
        ('{"_id": 1.0, "text": "flea"}\n', r"input:1: id 1.0: expected a string or a whole number, got float"),
        ('{"_id": "q1", "txt": "flea"}\n', r"input:1: expected the field 'text' or .*, found \['_id', 'txt'\]"),
        ('{"_id": "q1", "text": ["flea"]}\n', r"input:1: query text \['flea'\]: expected a string"),
        ("\n<top>\n<num>1\n</top>\n", r"input:2: <top> without <title>"),
        ("<topics><topic number='1'>\n", r"input:1: neither TREC .* nor well-formed XML: no element found"),
        ("<topics><topic><query>a</query></topic></topics>", "topic 1: no number; expected <topic number=…> or one of"),
        (
            "<t><topic id='1'>a</topic><topic id='2'><gene>b</gene></topic></t>",
            r"topic 2: expected one of <query>, <title>, got <gene>; .* TSV 'qid<tab>text'",
        ),
        ("<topics><topic number='1'/></topics>", "topic 1: qid 1: query text '' is empty"),
        ("<topics></topics>", "no topics in it"),
        ("\n\n", "no topics in it"),
    ],
)
def test_bad_topics_name_file_and_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_topics(file(tmp_path, text))


# ------------------------------------------------------------------------------------------------------------- qrels


def test_trec_and_beir_qrels_read_alike(tmp_path):
    expected = {"007": {"01": 2, "1": 0}, "7": {"d": -1}}
    trec = file(tmp_path, "007 0 01 2\n007 Q0 1 0\n\n7\t0\td\t-1\n", "trec")
    beir = file(tmp_path, "Query-ID\tcorpus-id\tscore\n007\t01\t2\n007\t1\t0\n7\td\t-1\n", "beir")
    assert read_qrels(trec) == read_qrels(beir) == expected


def test_the_same_judgement_twice_is_one(tmp_path):
    assert read_qrels(file(tmp_path, "q 0 d 1\nq 0 d 1\n")) == {"q": {"d": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q 0 d 1\nq 0 d 2\n", "input:2: qid q docid d is judged 2 here and 1 above"),
        ("q 0 d high\n", "input:1: grade 'high': expected a whole number"),
        ("q\td\t1\n", r"input:1: expected 4 columns .* BEIR qrels need their header line"),
        ("query-id\tcorpus-id\tscore\nq 0 d 1\n", r"input:2: expected 3 columns"),
        ("q 0 d 1\nquery-id\tcorpus-id\tscore\nq\td\t1\n", r"input:2: expected 4 columns"),
        ("query-id\tcorpus-id\tscore\n", "no judgements in it"),
    ],
)
def test_bad_qrels_name_file_and_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_qrels(file(tmp_path, text))


# -------------------------------------------------------------------------------------------------------------- runs


def test_a_run_is_read_by_score_and_among_ties_by_rank(tmp_path):
    run = read_run(file(tmp_path, "7 Q0 c 3 1.0 t\n7 Q0 b 2 1.0 t\n7 Q0 01 9 2e0 t\n8 Q0 x 1 -1 t\n"))
    assert [candidate.docid for candidate in run["7"]] == ["01", "b", "c"]
    assert run["8"] == [Candidate("x", -1.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 d 1 0.5\n", "input:1: expected 6 columns .*, got 5"),
        ("q Q0 d 1 nan t\n", "input:1: qid q docid d: score 'nan': scores must be finite"),
        ("q Q0 d 1 inf t\n", "input:1: qid q docid d: score 'inf': scores must be finite"),
        ("q Q0 d 1 high t\n", "input:1: qid q docid d: score 'high': expected a number"),
        ("q Q0 d first 1 t\n", "input:1: rank 'first': expected a whole number"),
        ("q Q0 d 1_0 1 t\n", "input:1: rank '1_0': expected a whole number"),
        ("q Q0 d 1 1_0 t\n", "input:1: qid q docid d: score '1_0': expected a number"),
        ("q Q0 d " + "9" * 5000 + " 1 t\n", "input:1: rank '9999.*…': expected a whole number"),
        ("q Q0 d 1 2 t\nq Q0 e 2 1 t\nq Q0 d 3 0 t\n", "input:3: qid q docid d occurs before on line 1"),
    ],
)
def test_bad_runs_name_file_and_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_run(file(tmp_path, text))


def test_run_lines_have_ranks_from_one_and_the_tag():
    ranking = Ranking(Query("007", "flea"), (Candidate("b", 2.0), Candidate("a", 2.0)))
    assert run_lines(ranking, "headrank") == ["007 Q0 b 1 2.0 headrank", "007 Q0 a 2 1.9999999 headrank"]


@pytest.mark.parametrize("tag", ["", "two words", "tab\t"])
def test_a_tag_with_white_space_is_refused_before_anything_is_written(tmp_path, tag):
    with pytest.raises(ValueError, match="without white space"):
        write_run(tmp_path / "run", [], tag)
    assert list(tmp_path.iterdir()) == []


def test_write_run_counts_the_queries_that_have_lines(tmp_path):
    rankings = [Ranking(Query("q1", "x"), (Candidate("d", 1.0),)), Ranking(Query("q2", "x"))]
    assert write_run(tmp_path / "run", rankings, "t") == 1
    assert (tmp_path / "run").read_text() == "q1 Q0 d 1 1.0 t\n"


@pytest.mark.parametrize("write", [lambda path, rankings: write_run(path, rankings, "t"), write_candidates])
def test_a_qid_given_twice_is_refused_and_nothing_is_left_behind(tmp_path, write):
    with pytest.raises(ValueError, match="qid q1 was given twice"):
        write(tmp_path / "out", [Ranking(Query("q1", "x"))] * 2)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------------- candidates

ids = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=5)
texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
candidates = st.builds(Candidate, ids, st.floats(allow_nan=False, allow_infinity=False), texts, texts)


@given(st.lists(candidates, max_size=4, unique_by=lambda c: c.docid), ids)
def test_candidates_survive_the_round_trip_exactly(tmp_path_factory, drawn, qid):
    path = tmp_path_factory.getbasetemp() / "round-trip.jsonl.gz"
    rankings = [Ranking.from_scores(Query(qid, "flea \u2028 🙂"), drawn)]
    assert write_candidates(path, rankings) == 1
    assert list(read_candidates(path)) == rankings


def test_ids_may_be_numbers_and_strings_and_texts_hold_line_separators(tmp_path):
    path = tmp_path / "c.jsonl"
    record = '{"query": {"qid": %s, "text": "a\u2028b"}, "candidates": [%s, %s]}\n'
    seven, d8 = '{"docid": 7, "score": 2, "doc": {"text": "x\u2028\u0085y"}}', '{"docid": "D8", "score": 1}'
    path.write_text(
        record % ("264014", seven, d8) + record % ('"q2"', seven.replace("7", '"007"'), d8), encoding="utf-8"
    )
    first, second = read_candidates(path)
    assert (first.query, first.docids) == (Query("264014", "a\u2028b"), ("7", "D8"))
    assert (second.query.qid, second.docids) == ("q2", ("007", "D8"))
    assert first.candidates[0].text == "x\u2028\u0085y"


def test_one_id_as_number_and_as_string_is_one_id(tmp_path):
    path = tmp_path / "c.jsonl"
    line = '{"query": {"qid": 1, "text": "a"}, "candidates": [{"docid": 7, "score": 2}, {"docid": "7", "score": 1}]}\n'
    path.write_text(line, encoding="utf-8")
    with pytest.raises(ValueError, match="docid 7 occurs at ranks 1 and 2"):
        list(read_candidates(path))


def test_what_is_not_known_is_left_out_of_the_line():
    line = json.loads(candidate_line(Ranking(Query("q", "x"), (Candidate("d", 1.0), Candidate("e", 0.5, "", None)))))
    assert line["candidates"] == [
        {"docid": "d", "score": 1.0, "rank": 1},
        {"docid": "e", "score": 0.5, "rank": 2, "doc": {"text": ""}},
    ]


@pytest.mark.parametrize(
    ("doc", "expected"),
    [
        ({"title": "T", "text": "A"}, ("T", "A")),
        ({"contents": "A", "id": "d"}, (None, "A")),
        ({"title": None, "segment": "A", "url": "u", "headings": "h"}, (None, "A")),
        ({"title": "T", "contents": "B", "text": "A"}, ("T", "A")),
        ("A", (None, "A")),
        ('{"_id": "d", "title": "T", "text": "A"}', ("T", "A")),
        ({}, (None, None)),
        (None, (None, None)),
    ],
)
def test_docs_of_other_tools_are_understood(tmp_path, doc, expected):
    path = file(tmp_path, request(candidates=[{"docid": "d", "score": 1, "rank": 7, "doc": doc}]))
    (candidate,) = next(read_candidates(path)).candidates
    assert (candidate.title, candidate.text) == expected


def test_a_passage_of_pyserinis_server_is_its_text_as_it_stands(tmp_path):
    served = {"query": {"qid": "q1", "query_txt": "flea"}}
    served["candidates"] = [{"docid": "d", "score": 1.5, "document_txt": '{"text": "A"}', "document_img_path": None}]
    found = Ranking(Query("q1", "flea"), (Candidate("d", 1.5, '{"text": "A"}'),))
    assert list(read_candidates(file(tmp_path, json.dumps(served)))) == [found]
    assert write_candidates(tmp_path / "again", [found], "pyserini") == 1
    assert list(read_candidates(tmp_path / "again")) == [found]
    titled = candidate_line(Ranking(Query("q1", "flea"), (Candidate("d", 1.0, "A", "T"),)), "pyserini")
    assert json.loads(titled)["candidates"][0]["document_txt"] == "T\nA"
    with pytest.raises(ValueError, match="qid q1 docid d: no text, which Pyserini's layout requires"):
        candidate_line(Ranking(Query("q1", "flea"), (Candidate("d", 1.0),)), "pyserini")
    served["candidates"][0]["doc"] = {"title": "T", "text": "A"}  # which says more
    (candidate,) = next(read_candidates(file(tmp_path, json.dumps(served)))).candidates
    assert (candidate.title, candidate.text) == ("T", "A")


def test_whole_number_ids_of_other_tools_become_strings(tmp_path):
    path = file(tmp_path, request(264014, [{"docid": 7, "score": 2.0}, {"docid": "007", "score": 1.0}]))
    assert next(read_candidates(path)) == Ranking(Query("264014", "flea"), (Candidate("7", 2.0), Candidate("007", 1.0)))


def test_a_json_array_of_requests_is_read_too(tmp_path):
    path = file(tmp_path, "[\n" + request("q1") + ",\n" + request("q2", [{"docid": "d"}]) + "\n]")
    found = read_candidates(path)
    assert next(found) == Ranking(Query("q1", "flea"))
    with pytest.raises(ValueError, match="request 2: candidate 1: expected the field 'score', found"):
        next(found)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"query": ', r"input:2: not valid JSON \(Expecting value.*\): fix or delete the line"),
        ("[1, 2]", "input:2: expected a JSON object per line, got list"),
        ('{"candidates": []}', "input:2: .*found no query object"),
        (request("q2", None), "input:2: 'candidates': expected a list"),
        (request("q0"), "input:2: qid q0 was given before at .*input:1"),
        (request("q2", text=" "), "input:2: qid q2: query text ' ' is empty"),
        (request(""), "input:2: query: the qid is empty; a REST server echoes the qid that it is asked with"),
        (request(1.5), "input:2: query: id 1.5: expected a string or a whole number"),
        (request(True), "input:2: query: id True: expected a string or a whole number"),
        (request("q2", ["d"]), "input:2: candidate 1: expected an object"),
        (request("q2", [{"docid": "d", "score": "1"}]), "input:2: candidate 1 docid d: score '1': expected a number"),
        (request("q2", [{"docid": "d", "score": float("nan")}]), "input:2: candidate 1: score nan"),
        (request("q2", [{"docid": "d", "score": 1, "doc": 5}]), "input:2: docid d: doc 5: expected an object"),
        (
            request("q2", [{"docid": "d", "score": 1, "doc": {"abstract": "A"}}]),
            r"input:2: docid d: found the fields \['abstract'\]; expected the text in one of text, segment",
        ),
        (
            request("q2", [{"docid": "d", "score": 1}, {"docid": "e", "score": 2}]),
            "input:2: qid q2: docid e at rank 2 scores 2.0, above d before it",
        ),
        (
            request("q2", [{"docid": "d", "score": 1}] * 2),
            "input:2: qid q2: docid d occurs at ranks 1 and 2",
        ),
    ],
)
def test_bad_candidates_name_file_and_line(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        list(read_candidates(file(tmp_path, request("q0") + "\n" + line + "\n")))


def test_an_array_of_requests_names_the_line_of_a_bad_one_and_what_follows_it(tmp_path):
    good = request("q0")
    for text, message in [
        (f"[\n{good},\n\n{{]", r"input:4: request 2: not valid JSON"),
        (f"[{good}\n {good}]", r"input:1: request 1: not valid JSON: expected ',' or '\]' after it, got '{"),
        (f"[{good},\n]", r"input:2: request 2: not valid JSON"),
        (f"[{good}", "input:1: request 1: not valid JSON: expected ',' or '\\]' after it, got ''"),
        (f"[{good}]\n{good}", "input: not valid JSON: .* follows the array"),
        ("[" + "[" * 100_000, "input:1: request 1: JSON nested too deeply"),
        (f"[{good},\n{good}]", r"input:2: request 2: qid q0 was given before at .*input:1: request 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            list(read_candidates(file(tmp_path, text)))
    assert list(read_candidates(file(tmp_path, " [ ] \n"))) == []


@pytest.mark.parametrize(
    "passage", ['{"flea": "lives"}', '{"id": 5, "n": [1]}', '{"text": 3}', "[1]", '{"a":' * 100_000]
)
def test_a_passage_that_is_itself_json_is_text(tmp_path, passage):
    line = request("q", [{"docid": "d", "score": 1, "doc": passage}])
    (ranking,) = read_candidates(file(tmp_path, line))
    assert (ranking.candidates[0].text, ranking.candidates[0].title) == (passage, None)


# ------------------------------------------------------------------------------------------------------------ corpus


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"_id": "007", "title": "T", "text": "A", "metadata": {}}\n', Passage("007", "A", "T")),
        ('{"id": "007", "contents": "A"}\n', Passage("007", "A")),
        ("007 \tA\twith a tab\n", Passage("007", "A\twith a tab")),
        ("007\tA\rone line\n", Passage("007", "A\rone line")),
        ('{"_id": "007", "title": "", "text": ""}\n', Passage("007", "", "")),
    ],
)
def test_corpora_of_every_format(tmp_path, text, expected):
    assert list(read_corpus(file(tmp_path, text))) == [expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"_id": "d", "text": "A"}\n{"_id": "e", "title": "T"}\n', "input:2: docid e: no text; expected one of"),
        ('{"_id": "d", "text": "A"}\n{"text": "A"}\n', "input:2: expected the field '_id' or 'id' or 'docid'"),
        ('{"_id": "d", "title": 5, "text": "A"}\n', "input:1: docid d: title 5: expected a string, got int"),
        ('{"_id": "a b", "text": "A"}\n', "input:1: docid 'a b': expected a non-empty id without white space"),
        ("d\tA\nno tab\n", "input:2: expected 'docid<tab>text'"),
        ("\tA\n", "input:1: docid '': expected a non-empty id"),
        ('{"_id": "d", "text": "A \\ud83d"}\n', "input:1: docid d: text has half a surrogate pair .* at character 2"),
        ('{"_id": "d", "title": "\\ude00", "text": "A"}\n', "input:1: docid d: title has half a surrogate"),
    ],
)
def test_bad_corpora_name_file_and_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        list(read_corpus(file(tmp_path, text)))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("<DOC>\n<TEXT> flea </TEXT>", (None, "<DOC>\n<TEXT> flea </TEXT>")),
        ("{not json", (None, "{not json")),
        ("", (None, "")),
    ],
)
def test_raw_that_is_not_json_is_the_text(raw, expected):
    assert passage_from_raw(raw, "d") == expected


def test_raw_without_a_text_field_names_the_docid():
    with pytest.raises(ValueError, match="docid d: raw holds no text"):
        passage_from_raw('{"id": "d"}', "d")


# ------------------------------------------------------------------------------------------------------- shared data


@pytest.mark.shared_data
def test_dl19_candidates_evaluate_to_the_published_figure(shared_data, tmp_path):
    folder = shared_data / "dl19"
    write_run(tmp_path / "run", read_candidates(folder / "candidates.jsonl.gz"), "bm25")
    qrels = read_qrels(folder / "qrels.txt")
    run = {qid: {c.docid: c.score for c in found} for qid, found in read_run(tmp_path / "run").items()}
    result = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    mean = sum(result.get(qid, {}).get("ndcg_cut_10", 0.0) for qid in qrels) / len(qrels)
    assert round(mean, 4) == 0.5058


@pytest.mark.shared_data
def test_real_collections_read_completely(shared_data):
    scifact = shared_data / "scifact"
    assert len(read_topics(scifact / "queries.jsonl")) == 1109
    assert sum(map(len, read_qrels(scifact / "qrels" / "test.tsv").values())) == 339
    assert sum(1 for _ in read_corpus(scifact / "corpus.jsonl.gz")) == 5183
    assert len(list(read_candidates(shared_data / "dl19" / "candidates.jsonl.gz"))) == 43


@pytest.mark.parametrize("read", [read_topics, lambda path: list(read_corpus(path))])
@pytest.mark.parametrize("header", ["qid\tquery", "ID\tText", "docno\ttext"])
def test_the_header_of_a_tsv_is_no_query_and_no_passage(tmp_path, read, header):
    path = tmp_path / "file.tsv"
    path.write_text(f"\n{header}\n1\tflea\n")
    with pytest.raises(ValueError, match=r"file.tsv:2: a header line, .*; delete it"):
        read(path)
    path.write_text("id\tego and super-ego\n1\ttext\n")
    assert len(read(path)) == 2
