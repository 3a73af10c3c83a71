import math

import pytest

from headrank_pipeline.experiment.evaluate import evaluate, parse_measure
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import read_candidates, write_run

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
