"""Saved first stages: no Java behind them, except to make what is saved."""

import hashlib
import logging
import sys
from pathlib import Path
from pipes import piped
from types import SimpleNamespace

import pytest

from headrank_pipeline.files import file_sha256
from headrank_pipeline.first_stage import bm25, saved_candidates, saved_run
from headrank_pipeline.first_stage.jvm import start_jvm
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import candidate_line, write_candidates, write_run

FLEA = Query("q1", "flea")


def docids(source, *queries: Query) -> list[list[str]]:
    return [list(ranking.docids) for ranking in source.retrieve(queries or [FLEA])]


def test_a_saved_run_gives_back_what_was_retrieved(tiny_index, tiny_corpus, tmp_path):
    rankings = list(bm25(tiny_index).retrieve([FLEA, Query("q2", "dog")]))
    write_run(tmp_path / "run", rankings, "bm25")
    (tmp_path / "topics").write_text("q2\tdog\nq1\tflea\nq3\tcat\n")
    source = saved_run(tmp_path / "run", tmp_path / "topics", tiny_corpus)
    assert source.queries() == [Query("q2", "dog"), FLEA]
    again = list(source.retrieve([FLEA, Query("q2", "dog")]))
    assert [[(c.docid, c.title, c.text) for c in ranking.candidates] for ranking in again] == [
        [(c.docid, c.title, c.text) for c in ranking.candidates] for ranking in rankings
    ]
    assert docids(source % 1) == [[rankings[0].docids[0]]]


def test_a_saved_run_without_a_corpus_has_no_text(tmp_path):
    (tmp_path / "run").write_text("q1 Q0 d1 1 2.5 t\n")
    source = saved_run(tmp_path / "run", [FLEA])
    assert list(source.retrieve([FLEA])) == [Ranking(FLEA, (Candidate("d1", 2.5),))]


def test_saved_candidates_give_back_the_file(tiny_index, tmp_path):
    rankings = list(bm25(tiny_index).retrieve([Query("q2", "dog"), FLEA]))
    write_candidates(tmp_path / "cand.jsonl", rankings)
    source = saved_candidates(tmp_path / "cand.jsonl")
    assert source.queries() == [Query("q2", "dog"), FLEA]
    assert list(source.retrieve(source.queries())) == rankings
    assert list((source % 2).retrieve([FLEA])) == [rankings[1].cut(2)]
    assert ((source % 1) % 2).most() == 1
    reworded = Query("q1", "fleas")
    assert list(source.retrieve([reworded])) == [Ranking(reworded, rankings[1].candidates)]


def test_candidates_are_read_and_written_as_pyserinis_rest_server_does(tiny_index, tmp_path, monkeypatch):
    client, index = rest_server(tiny_index, monkeypatch)
    asked = [Query("007", "flea"), Query("7", "dog")]
    replies = [
        client.post(f"/v1/indexes/{index}/search", json={"query": query.text, "qid": query.qid, "hits": 3}).text
        for query in asked
    ]
    (tmp_path / "replies.jsonl").write_text("\n".join(replies) + "\n", encoding="utf-8")
    source = saved_candidates(tmp_path / "replies.jsonl")
    ours = list((bm25(tiny_index, k1=0.9, b=0.4) % 3).retrieve(asked))
    assert source.queries() == asked
    assert [[(c.docid, c.score, c.text) for c in r.candidates] for r in source.retrieve(asked)] == [
        [(c.docid, c.score, c.text) for c in r.candidates] for r in ours
    ]

    from pyserini.server.models import Hits

    for reply, ranking in zip(map(Hits.model_validate_json, replies), ours, strict=True):
        written = Hits.model_validate_json(candidate_line(ranking, "pyserini"))
        assert (written.query, [c.docid for c in written.candidates]) == (reply.query, list(ranking.docids))
        assert written.candidates[0].document_txt.endswith("\n" + reply.candidates[0].document_txt)  # below its title


def rest_server(index: Path, monkeypatch):
    """Pyserini's own server in this process, with our index in place of the one that it downloads when imported."""
    start_jvm()
    from fastapi.testclient import TestClient
    from pyserini.search.lucene import LuceneSearcher

    # It imports an encoder of images, too, that Pyserini's requirements leave out; no text goes through it.
    images = SimpleNamespace(UniIRQueryEncoder=None)
    monkeypatch.setitem(sys.modules, "pyserini.encode.optional._uniir", images)
    monkeypatch.setattr(LuceneSearcher, "from_prebuilt_index", lambda name: LuceneSearcher(str(index)))
    from pyserini.server.rest.app import app
    from pyserini.server.search_controller import DEFAULT_INDEX

    return TestClient(app), DEFAULT_INDEX


def test_saved_sources_need_no_java(tmp_path, fresh_python):
    (tmp_path / "run").write_text("q1 Q0 d1 1 2.5 t\n")
    result = fresh_python(f"""
        import sys
        from headrank_pipeline import first_stage, records
        source = first_stage.saved_run({str(tmp_path / "run")!r}, [records.Query("q1", "flea")])
        print(*[ranking.docids for ranking in source.retrieve(source.queries())], "jnius" in sys.modules)
    """)
    assert result.stdout == "('d1',) False\n", result.stderr


@pytest.fixture
def one_query(tmp_path: Path) -> Path:
    write_candidates(tmp_path / "cand.jsonl", [Ranking(FLEA, (Candidate("d1", 1.0, "A"),))])
    return tmp_path / "cand.jsonl"


def test_a_qid_that_the_file_lacks_is_an_error_unless_allowed(one_query):
    with pytest.raises(ValueError, match=r"cand.jsonl: no candidates for qid q7 among its 1 queries"):
        docids(saved_candidates(one_query), Query("q7", "dog"))
    assert docids(saved_candidates(one_query, allow_missing=True), Query("q7", "dog"), FLEA) == [[], ["d1"]]


def test_a_passage_missing_from_the_corpus_is_an_error(tiny_corpus, tmp_path):
    (tmp_path / "run").write_text("q1 Q0 d1 1 2 t\nq1 Q0 gone 2 1 t\n")
    source = saved_run(tmp_path / "run", [FLEA], tiny_corpus)
    with pytest.raises(ValueError, match=r"qid q1 docid gone is not in .*corpus.jsonl; is it another corpus"):
        docids(source)
    assert docids(source % 1) == [["d1"]]


def test_topics_of_another_run_are_an_error(tmp_path):
    (tmp_path / "run").write_text("q1 Q0 d1 1 2 t\n")
    with pytest.raises(ValueError, match=r"none of its qids \(q1, …\) is among the topics"):
        docids(saved_run(tmp_path / "run", [Query("q7", "dog")]), Query("q7", "dog"))


def test_queries_of_a_run_without_topics_are_counted(tmp_path, caplog):
    (tmp_path / "run").write_text("q1 Q0 d1 1 2 t\nq2 Q0 d1 1 2 t\n")
    with caplog.at_level(logging.WARNING):
        assert docids(saved_run(tmp_path / "run", [FLEA])) == [["d1"]]
    assert "1 of its 2 queries are not among the topics" in caplog.text


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: saved_candidates(folder / "gone"),
        lambda folder: saved_run(folder / "gone", [FLEA]),
        lambda folder: saved_run(folder / "cand.jsonl", folder / "gone"),
        lambda folder: saved_run(folder / "cand.jsonl", [FLEA], folder / "gone"),
    ],
)
def test_a_missing_file_is_named_when_the_source_is_made(one_query, make):
    with pytest.raises(FileNotFoundError, match=r"gone: no such"):
        make(one_query.parent)


def test_describe_changes_with_the_file_and_the_cutoff(one_query):
    source = saved_candidates(one_query)
    before, cut = source.describe(), (source % 1).describe()
    assert (before["stage"], before["sha256"], before["hits"]) == ("saved_candidates", file_sha256(one_query), None)
    assert cut == {**before, "hits": 1}
    write_candidates(one_query, [Ranking(FLEA, (Candidate("d2", 1.0, "A"),))])
    assert saved_candidates(one_query).describe()["sha256"] != before["sha256"]


def test_describe_changes_with_the_words_of_the_topics(tmp_path):
    (tmp_path / "run").write_text("q1 Q0 d1 1 2.5 t\n")
    one, other = (saved_run(tmp_path / "run", [Query("q1", text)]).describe() for text in ("flea", "fleas"))
    assert one != other


def test_a_saved_run_its_topics_and_texts_may_come_through_pipes():
    run, topics, corpus = b"q1 Q0 d1 1 2.0 t\n", b"q1\tflea\n", b"d1\tFleas live long.\n"
    with piped(run) as first, piped(topics) as second, piped(corpus) as third:
        source = saved_run(first, second, third)
    (found,) = (source % 5).retrieve(source.queries())
    assert found == Ranking(FLEA, (Candidate("d1", 2.0, "Fleas live long."),))
    assert source.describe()["corpus_sha256"] == hashlib.sha256(corpus).hexdigest()


def test_saved_candidates_may_come_through_a_pipe():
    line = candidate_line(Ranking(FLEA, (Candidate("d1", 2.0, "Fleas live long."),))).encode()
    with piped(line) as path:
        source = saved_candidates(path)
    assert [len(ranking) for ranking in (source % 5).retrieve(source.queries())] == [1]
    assert source.describe()["sha256"] == hashlib.sha256(line).hexdigest()


def test_a_saved_run_that_is_changed_after_it_was_opened_is_refused(tmp_path):
    run = tmp_path / "run.trec"
    run.write_text("q1 Q0 d1 1 2.0 t\n")
    source = saved_run(run, [FLEA])
    run.write_text("q1 Q0 d2 1 2.0 t\n")
    with pytest.raises(ValueError, match="the run file was changed after it was first read"):
        source.queries()
