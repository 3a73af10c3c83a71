import logging
import math

import ir_measures
import numpy as np
import pandas as pd
import pytest
from ir_datasets.formats import TrecQrel

from headrank_pipeline.experiment.benchmark import benchmark_of_dataset
from headrank_pipeline.experiment.evaluate import evaluate, open_qrels, parse_measure
from headrank_pipeline.experiment.sources import Dataset
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import read_candidates, read_qrels, write_run

GRADES = {"q1": {"d1": 2, "d2": 0, "d3": 1}}
RUN = {"q1": {"d1": 0.5, "d2": 0.9, "d3": 0.1}}


def test_values_equal_those_worked_out_by_hand():
    result = evaluate(RUN, GRADES, ["nDCG@10", "nDCG@2", "R@2", "P@2", "MAP", "RR", "Success@1"])
    gain, ideal = 2 / math.log2(3) + 1 / math.log2(4), 2 + 1 / math.log2(3)
    expected = {
        "nDCG@10": gain / ideal,
        "nDCG@2": (2 / math.log2(3)) / ideal,
        "R@2": 0.5,
        "P@2": 0.5,
        "MAP": (1 / 2 + 2 / 3) / 2,
        "RR": 0.5,
        "Success@1": 0.0,
    }
    assert result.per_query["q1"] == pytest.approx(expected, abs=1e-12)
    assert result.means == result.per_query["q1"]


def test_a_query_missing_from_the_run_counts_zero_and_is_listed():
    result = evaluate(RUN, {**GRADES, "q2": {"d9": 1}}, ["RR"])
    assert result.means == {"RR": 0.25}
    assert (result.queries, result.missing, result.per_query["q2"]) == (2, ("q2",), {"RR": 0.0})


def test_a_query_without_judgments_is_listed_and_counts_nothing():
    result = evaluate({**RUN, "q7": {"d1": 1.0}}, GRADES, ["RR"])
    assert (result.means, result.unjudged) == ({"RR": 0.5}, ("q7",))


def test_relevance_level_moves_binary_measures_and_leaves_ndcg_alone():
    strict = evaluate(RUN, GRADES, ["nDCG@10", "MAP", "R@3"], relevance_level=2)
    usual = evaluate(RUN, GRADES, ["nDCG@10", "MAP", "R@3"])
    assert strict.means["nDCG@10"] == usual.means["nDCG@10"]
    assert (strict.means["MAP"], usual.means["MAP"]) == pytest.approx((1 / 2, 7 / 12))


def test_reciprocal_rank_with_a_cutoff_ignores_what_lies_below_it():
    run = {"q1": {"d1": 3.0, "d2": 2.0, "d3": 1.0}}
    measures = ["MRR@2", "RR@3", "RR"]
    assert evaluate(run, {"q1": {"d3": 1}}, measures).means == pytest.approx({"MRR@2": 0, "RR@3": 1 / 3, "RR": 1 / 3})


def test_ties_are_broken_as_trec_eval_does_in_files_and_by_rank_in_rankings(tmp_path):
    tied = Ranking(Query("q1", "flea"), (Candidate("a", 1.0), Candidate("b", 1.0)))
    path = tmp_path / "run.trec"
    path.write_text("q1 Q0 a 1 1.0 t\nq1 Q0 b 2 1.0 t\n")
    qrels = {"q1": {"a": 1}}
    assert evaluate(path, qrels, ["RR"]).means == {"RR": 0.5}  # docid descending puts b first
    assert evaluate([tied], qrels, ["RR"]).means == {"RR": 1.0}


def test_rankings_evaluate_as_the_file_written_from_them(tmp_path):
    scores = [1e-7, 1e-7, 9.99e-8, 0.0, 0.0, -1e-30]
    ranking = Ranking(Query("q1", "flea"), tuple(Candidate(f"d{i}", s) for i, s in enumerate(scores)))
    path = tmp_path / "run.trec"
    write_run(path, [ranking], "t")
    qrels = {"q1": {"d1": 1, "d4": 2}}
    measures = ["nDCG@10", "MAP", "RR", "P@3"]
    assert evaluate(path, qrels, measures).per_query == evaluate([ranking], qrels, measures).per_query


def test_run_and_qrels_of_other_topics_are_refused():
    with pytest.raises(ValueError, match=r"no query in common: the run has 1 queries \(q1\).*\(PLAIN-2\)"):
        evaluate(RUN, {"PLAIN-2": {"d1": 1}})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nDCG@0", "cutoff 0 is outside 1"),
        ("ndcg_cut_0", "cutoff 0 is outside 1"),
        ("R@99999999999999999999", "is outside 1"),
        ("NDGC@10", "did you mean 'nDCG@10'"),
        ("recal_100", "did you mean 'recall_100' or 'Recall@100'"),
        ("num_q", "unknown measure 'num_q'"),
        ("P", "unknown measure 'P'"),
        ("map@", "unknown measure 'map@'"),
    ],
)
def test_a_wrong_measure_is_refused_with_the_nearest_known_one(name, message):
    with pytest.raises(ValueError, match=message):
        parse_measure(name)


def test_trec_eval_names_and_ours_agree():
    both = {"nDCG@10": "ndcg_cut_10", "R@2": "recall_2", "MAP@2": "map_cut.2", "AP": "map", "MRR": "recip_rank"}
    for ours, raw in both.items():
        means = evaluate(RUN, GRADES, [ours, raw]).means
        assert means[ours] == means[raw]


def test_scores_that_are_not_finite_and_empty_requests_are_refused():
    with pytest.raises(ValueError, match="qid q1 docid d1: score nan"):
        evaluate({"q1": {"d1": math.nan}}, GRADES)
    with pytest.raises(ValueError, match="no measures"):
        evaluate(RUN, GRADES, [])
    with pytest.raises(ValueError, match="relevance level 0"):
        evaluate(RUN, GRADES, relevance_level=0)


def test_numpy_scores_are_taken_and_the_frame_has_a_row_per_query():
    numpy = pytest.importorskip("numpy")
    run = {qid: {docid: numpy.float32(score) for docid, score in scores.items()} for qid, scores in RUN.items()}
    frame = evaluate(run, GRADES, ["RR"]).to_frame()
    assert frame.to_dict("records") == [{"qid": "q1", "RR": 0.5}]


@pytest.mark.shared_data
def test_published_bm25_score_of_dl19_is_reproduced_from_its_candidates(shared_data):
    rankings = list(read_candidates(shared_data / "dl19" / "candidates.jsonl.gz"))
    result = evaluate(rankings, shared_data / "dl19" / "qrels.txt", ["nDCG@10"], relevance_level=2)
    assert (f"{result.means['nDCG@10']:.4f}", result.queries) == ("0.5058", 43)


def test_one_measure_may_be_given_bare():
    assert evaluate({"q": {"a": 1.0}}, {"q": {"a": 1}}, "nDCG@10").means == {"nDCG@10": 1.0}


# ----------------------------------------------------------------------------------------- numbers and ids at the edge


@pytest.mark.parametrize(
    ("grade", "message"),
    [
        (0.5, r"qid q1 docid d1: grade 0\.5: expected a whole number, got float"),
        (np.float32(1.5), "grade .*1.5.*: expected a whole number"),
        (float("nan"), "grade nan: expected a whole number"),
        (None, "grade None: expected a whole number, got NoneType"),
        ("one", "grade 'one': expected a whole number"),
        (99_999_999_999, "grade 99999999999: expected one from -100000 to 100000"),
        (-99_999_999_999, "grade -99999999999: expected one from"),
        (2**63 - 1, "grade 9223372036854775807: expected one from"),
        (2**63, "grade 9223372036854775808: expected one from"),
        (2e9, "grade 2000000000.0: expected one from"),
        (100_001, "grade 100001: expected one from"),
    ],
)
def test_a_grade_that_is_no_whole_number_or_too_large_is_refused(grade, message):
    with pytest.raises(ValueError, match=message):
        evaluate(RUN, {"q1": {"d1": grade, "d2": 1}}, ["RR"])


@pytest.mark.parametrize("grade", [2, 2.0, np.int64(2), np.float32(2), "2", 100_000])
def test_a_grade_that_is_whole_is_taken_whatever_its_type(grade):
    assert evaluate(RUN, {"q1": {"d1": grade}}, ["RR"]).means == {"RR": 0.5}


def test_the_relevance_level_is_a_grade():
    for level in (0, 1.5, 2**63, 100_001):
        with pytest.raises(ValueError, match=f"relevance level {level}: expected a grade from 1 to 100000"):
            evaluate(RUN, GRADES, ["RR"], relevance_level=level)


@pytest.mark.parametrize("docid", ["d\0", "d\ud83d"])
def test_ids_that_an_evaluator_cannot_read_are_refused_in_runs_and_judgments(docid):
    with pytest.raises(ValueError, match=r"run: qid q1: docid 'd.* has "):
        evaluate({"q1": {docid: 1.0}}, {"q1": {"d1": 1}}, ["RR"])
    with pytest.raises(ValueError, match=r"qrels: qid q1: docid 'd.* has "):
        evaluate({"q1": {"d1": 1.0}}, {"q1": {docid: 1}}, ["RR"])


def test_numbers_as_ids_are_taken_where_nothing_is_lost_and_else_refused_by_name():
    expected = {"RR": 0.5}
    assert evaluate({1: {7: 2.0, 8: 1.0}}, {"1": {"8": 1}}, ["RR"]).means == expected
    assert evaluate({"1": {"7": 2.0, "8": 1.0}}, {np.int64(1): {8: 1}}, ["RR"]).means == expected
    with pytest.raises(TypeError, match=r"run: qid 1\.0: expected str, got float"):
        evaluate({1.0: {"d1": 1.0}}, {"1": {"d1": 1}}, ["RR"])
    with pytest.raises(TypeError, match=r"qrels: qid q1: docid \('d', 1\): expected str, got tuple"):
        evaluate(RUN, {"q1": {("d", 1): 1}}, ["RR"])
    with pytest.raises(ValueError, match="run: qid 1 occurs twice, once as '1'"):
        evaluate({1: {"d1": 1.0}, "1": {"d2": 1.0}}, {"1": {"d1": 1}}, ["RR"])
    with pytest.raises(ValueError, match="run: qid q1 docid 7 occurs twice"):
        evaluate({"q1": {7: 1.0, "7": 2.0}}, {"q1": {"7": 1}}, ["RR"])


@pytest.mark.parametrize(
    ("run_names", "grade_names"), [(("qid", "docno"), ("qid", "docno", "label")),
                                   (("query_id", "doc_id"), ("query_id", "doc_id", "relevance"))],
)  # fmt: skip
def test_frames_are_runs_and_judgments(run_names, grade_names):
    run = pd.DataFrame([("q1", "d1", 0.5), ("q1", "d2", 0.9)], columns=[*run_names, "score"])
    qrels = pd.DataFrame([("q1", "d1", 1)], columns=grade_names)
    assert evaluate(run, qrels, ["RR"]).means == {"RR": 0.5}
    numbered = pd.DataFrame([(1, 10, 0.5), (1, 20, 0.9)], columns=[*run_names, "score"])
    assert evaluate(numbered, {"1": {"10": 1}}, ["RR"]).means == {"RR": 0.5}


def test_frames_that_cannot_be_read_say_what_they_lack():
    frame = pd.DataFrame([("q1", "d1", 0.5)], columns=["qid", "docno", "score"])
    with pytest.raises(ValueError, match=r"run: data frame lacks a column score; found \['qid', 'docno'\]"):
        evaluate(frame[["qid", "docno"]], GRADES, ["RR"])
    with pytest.raises(ValueError, match="run: qid q1 docid d1 occurs twice"):
        evaluate(pd.concat([frame, frame]), GRADES, ["RR"])
    with pytest.raises(TypeError, match=r"run: qid 1\.0: expected str, got float"):
        evaluate(frame.assign(qid=1.0), GRADES, ["RR"])
    with pytest.raises(TypeError, match="qid q1 docid d1: score 'high': expected a number, got str"):
        evaluate(frame.assign(score="high"), GRADES, ["RR"])


@pytest.mark.parametrize("run", [["q1"], 3, [{"d1": 1.0}], {"q1": ["d1"]}])
def test_what_is_no_run_is_refused_by_its_type(run):
    with pytest.raises(TypeError, match=r"run: .*expected"):
        evaluate(run, GRADES, ["RR"])


def test_a_query_that_is_ranked_twice_is_refused():
    ranking = Ranking(Query("q1", "flea"), (Candidate("d1", 1.0),))
    with pytest.raises(ValueError, match="qid q1 is ranked twice"):
        evaluate([ranking, ranking], GRADES, ["RR"])


def test_a_run_of_a_part_of_the_queries_has_both_means():
    result = evaluate(RUN, {**GRADES, "q2": {"d9": 1}, "q3": {"d9": 1}}, ["RR"])
    assert result.means == {"RR": pytest.approx(0.5 / 3)}
    assert (result.means_of_answered, result.answered) == ({"RR": 0.5}, 1)
    assert result.to_dict()["means_of_answered"] == {"RR": 0.5}
    assert "means_of_answered" not in evaluate(RUN, GRADES, ["RR"]).to_dict()


def test_a_run_and_judgments_that_share_no_document_are_told_with_examples(caplog):
    with caplog.at_level(logging.WARNING):
        assert evaluate(RUN, {"q1": {"x:d1": 1, "x:d\u00e9": 1, "x:d3": 1}}, ["RR"]).means == {"RR": 0.0}
    (told,) = caplog.messages
    assert "the run: none of its documents is judged, for any of 1 queries" in told
    assert "it has the docids 'd1', 'd2', the qrels 'x:d1', 'x:d\\xe9'; check" in told
    caplog.clear()
    evaluate(RUN, {"q1": {"d3": 0}}, ["RR"])
    assert not caplog.messages


def test_a_benchmark_of_ir_datasets_brings_its_measures_and_level(monkeypatch):
    judged = [TrecQrel("q1", "d1", 1, "0"), TrecQrel("q1", "d2", 2, "0")]  # what would be downloaded
    monkeypatch.setattr(Dataset, "records", lambda _: iter(judged))
    monkeypatch.setattr("headrank_pipeline.experiment.facts.check_grades", lambda *_: None)
    run = {"q1": {"d1": 2.0, "d2": 1.0}}
    known = evaluate(run, "ir_datasets:msmarco-passage/trec-dl-2019/judged")
    assert known.relevance_level == 2
    assert list(known.means) == list(benchmark_of_dataset("msmarco-passage/trec-dl-2019/judged").measures)
    assert evaluate(run, "ir_datasets:vaswani").relevance_level == 1
    assert evaluate(run, "ir_datasets:vaswani", ["RR"], relevance_level=2).means == {"RR": 0.5}
    opened = open_qrels("ir_datasets:vaswani")
    assert str(opened) == "ir_datasets:vaswani"
    for _ in range(2):  # as often as one likes
        assert read_qrels(opened) == {"q1": {"d1": 1, "d2": 2}}
    assert evaluate(run, opened, ["RR"], relevance_level=2).means == {"RR": 0.5}


def test_measures_of_ir_measures_go_by_their_names():
    grades, run = {"q1": {"d2": 1}}, {"q1": {"d1": 2.0, "d2": 1.0}}
    assert evaluate(run, grades, [ir_measures.RR, ir_measures.P @ 2]).means == {"RR": 0.5, "P@2": 0.5}
    assert evaluate(run, grades, ir_measures.RR).means == {"RR": 0.5}


def test_a_query_without_any_judgment_is_none_of_the_qrels_as_in_a_file():
    run, qrels = {"q1": {"d1": 1.0}, "q2": {"d1": 1.0}}, {"q1": {"d1": 1}, "q2": {}}
    found = evaluate(run, qrels, ["nDCG@10", "Judged@10"])
    assert (found.means, found.unjudged) == ({"nDCG@10": 1.0, "Judged@10": 1.0}, ("q2",))
    with pytest.raises(ValueError, match="the qrels are empty"):
        evaluate(run, {"q1": {}})


def test_means_over_no_query_are_refused_and_left_out():
    found = evaluate({"q1": {"d1": 1.0}}, {"q1": {"d1": 1}, "q2": {"d1": 1}}, ["RR"])
    lost = found.over(["q2"]).to_dict()
    assert (lost["means"], lost["missing"], "means_of_answered" in lost) == ({"RR": 0.0}, ["q2"], False)
    with pytest.raises(ValueError, match="none of the 1 qids is judged"):
        found.over(["q9"])
    with pytest.raises(TypeError, match=r"qids 'q12': expected several, got a string; write \[qid\]"):
        found.over("q12")
