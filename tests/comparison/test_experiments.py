"""Pipelines, run files and rankings against each other in one call."""

import json

import pytest

from headrank_pipeline import Candidate, Query, Ranking, evaluate, run_experiment, saved_candidates
from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.trec import write_candidates, write_run

QUERIES = {"q1": "flea", "q2": "dog", "q03": "cat"}
QRELS = {"q1": {"d2": 1}, "q2": {"d1": 1}, "q03": {"d3": 2}}


def rankings():
    docs = [Candidate(f"d{i}", 9.0 - i, f"text {i}") for i in range(4)]
    return [Ranking(Query(qid, text), tuple(docs)) for qid, text in QUERIES.items()]


class Backwards(Reranker):
    """The last candidate first; may fail at a query, and says which it saw."""

    def __init__(self, fails_at: str | None = None):
        self.fails_at, self.seen = fails_at, []

    def rerank_batch(self, batch):
        for ranking in batch:
            if ranking.query.qid == self.fails_at:
                raise KeyboardInterrupt
            self.seen.append(ranking.query.qid)
        return [ranking.rescored([float(rank) for rank in range(len(ranking))]) for ranking in batch]

    def describe(self):
        return {"system": "backwards"}


@pytest.fixture
def source(tmp_path):
    write_candidates(tmp_path / "candidates.jsonl", rankings())
    return saved_candidates(tmp_path / "candidates.jsonl")


def test_a_pipeline_a_run_file_and_rankings_are_systems(source, tmp_path):
    write_run(tmp_path / "run.trec", rankings(), "given")
    found = run_experiment(
        {"first": source, "backwards": source % 4 >> Backwards(), "file": tmp_path / "run.trec", "list": rankings()},
        QUERIES,
        QRELS,
        ["RR", "Judged@2"],
    )
    means = found.summary.set_index("system")["RR"]
    assert means["first"] == means["file"] == means["list"] == evaluate(rankings(), QRELS, "RR").means["RR"]
    assert means["backwards"] == pytest.approx((1 / 2 + 1 / 3 + 1) / 3)
    assert list(found.summary["Judged@2"]) == pytest.approx(
        [(0 + 1 / 2 + 0) / 3, (1 / 2 + 0 + 1 / 2) / 3] + [1 / 6] * 2
    )
    assert found.summary["RR p"].isna().tolist() == [True, False, False, False]
    assert found.tests.set_index(["measure", "system"]).loc[("RR", "file"), "ties"] == 3
    assert len(found.per_query) == 12
    assert "<table" in found._repr_html_() and "p against first" in found._repr_html_()


def test_a_query_that_a_system_lacks_counts_nothing_and_is_listed(source):
    found = run_experiment({"all": rankings(), "part": rankings()[:1]}, QUERIES, QRELS, "RR", baseline="part")
    assert found.evaluations["part"].missing == ("q2", "q03")
    assert found.summary["RR"][1] == pytest.approx(1 / 9)


def test_with_output_it_goes_on_query_by_query(source, tmp_path, monkeypatch):
    monkeypatch.setattr("headrank_pipeline.comparison.experiments._CHUNK", 1)
    with pytest.raises(KeyboardInterrupt):
        run_experiment({"b": source % 4 >> Backwards("q2")}, QUERIES, QRELS, "RR", output=tmp_path / "kept")
    with (tmp_path / "kept/b.jsonl").open("a") as file:
        file.write('{"torn')
    again = Backwards()
    found = run_experiment({"b": source % 4 >> again}, QUERIES, QRELS, "RR", output=tmp_path / "kept")
    assert again.seen == ["q2", "q03"]
    whole = run_experiment({"b": source % 4 >> Backwards()}, QUERIES, QRELS, "RR")
    assert found.per_query.equals(whole.per_query)
    assert json.loads((tmp_path / "kept/b.json").read_text())["made_by"]["packages"]
    with pytest.raises(ValueError, match=r"b\.json: 'b' was made by another pipeline or with other topics"):
        run_experiment({"b": source % 4 >> Backwards()}, {"q1": "louse"}, QRELS, "RR", output=tmp_path / "kept")


@pytest.mark.parametrize(
    ("systems", "changes", "message"),
    [
        ({}, {}, "systems: none given"),
        ({"a": []}, {"baseline": "b"}, "baseline 'b': no such system; systems: a"),
        ({"a/b": None}, {"output": "x"}, r"system 'a/b': with output, a name must be letters"),
    ],
)
def test_what_makes_no_experiment_is_refused(systems, changes, message, source, tmp_path):
    systems = {name: source if value is None else value for name, value in systems.items()}
    changes = {key: tmp_path / value if key == "output" else value for key, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        run_experiment(systems, QUERIES, QRELS, **changes)


def test_a_system_of_another_kind_is_refused():
    with pytest.raises(TypeError, match=r"system 'a': expected a pipeline, .* or rankings, got \[1\]"):
        run_experiment({"a": [1]}, QUERIES, QRELS)


def test_measures_that_trec_eval_lacks_come_from_ir_measures():
    run = {"q1": {"d1": 2.0, "d2": 1.0, "d9": 0.5}, "q2": {"d1": 1.0}}
    found = evaluate(run, {"q1": {"d1": 1, "d2": 0}, "q2": {"d7": 1}, "q3": {"d1": 1}}, ["Judged@3", "nDCG@10"])
    assert [values["Judged@3"] for values in found.per_query.values()] == pytest.approx([2 / 3, 0, 0])
    with pytest.raises(ValueError, match="unknown measure 'Jugded@3'"):
        evaluate(run, {"q1": {"d1": 1}}, "Jugded@3")


@pytest.mark.parametrize(
    ("systems", "changes", "error", "message"),
    [
        ({}, {"measures": "nDGC@10"}, ValueError, "unknown measure"),
        ({}, {"qrels": "nowhere.txt"}, FileNotFoundError, "no such qrels"),
        ({}, {"relevance_level": 0}, ValueError, "relevance level 0"),
        ({"b": Backwards()}, {}, TypeError, "system 'b': expected a pipeline, .* got <.*Backwards"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_retrieved(systems, changes, error, message, source):
    reranker = Backwards()
    given = {"topics": QUERIES, "qrels": QRELS, "measures": ["RR", "Judged@2", "ERR@20"], **changes}
    with pytest.raises(error, match=message):
        run_experiment({"a": source >> reranker, **systems}, **given)
    assert not reranker.seen
