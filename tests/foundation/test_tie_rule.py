"""The tie rule against the real evaluator, which reads float32 and breaks ties by docid descending."""

import math
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import example, given
from hypothesis import strategies as st

from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import read_run, run_lines, run_scores, six_decimal_scores, write_run

FLOAT32_MAX = float(np.finfo(np.float32).max)
AWKWARD = [0.0, -0.0, 1.0, 1.0 + 1e-9, 16.0, 1e308, -1e308, 1e-320, -1e-320, 5e-324, 1e-45, FLOAT32_MAX, -FLOAT32_MAX]
scores = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(AWKWARD),
    st.floats(-1e-5, 1e-5),
    st.floats(15.9999, 16.0001),
    st.integers(-3, 3).map(float),
)
falling = st.lists(scores, min_size=1, max_size=12).map(lambda drawn: sorted(drawn, reverse=True))


def evaluators_order(run: dict[str, float]) -> list[str]:
    """The order in which the real evaluator ranks a run: where does it find each document?"""
    qrels = {f"q-{docid}": {docid: 1} for docid in run}
    result = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate({qid: run for qid in qrels})
    return sorted(run, key=lambda docid: -result[f"q-{docid}"]["recip_rank"])


def ascending_docids(scores: list[float]) -> Ranking:
    """Docids rise down the ranking, so that the evaluator's own tie-break would turn every tie round."""
    return Ranking(Query("q", "x"), tuple(Candidate(f"d{place:02d}", s) for place, s in enumerate(scores)))


def test_the_evaluator_does_turn_ties_round():
    assert evaluators_order({"d1": 1.0, "d2": 1.0, "d3": 0.5}) == ["d2", "d1", "d3"]
    assert evaluators_order({"d1": 1.0 + 1e-9, "d2": 1.0}) == ["d2", "d1"]


@given(falling)
@example([1e308, 1e308, 1e308])
@example([-1e308] * 4)
@example([0.0, -0.0, -0.0, -1e-320])
def test_the_evaluator_ranks_a_written_run_in_our_order(tmp_path_factory, drawn):
    path: Path = tmp_path_factory.getbasetemp() / "property.trec"
    ranking = ascending_docids(drawn)
    assert write_run(path, [ranking], "t") == 1
    read = read_run(path)["q"]
    assert tuple(candidate.docid for candidate in read) == ranking.docids
    assert [candidate.score for candidate in read] == pytest.approx(run_scores(drawn), rel=1e-6)
    assert evaluators_order({candidate.docid: candidate.score for candidate in read}) == list(ranking.docids)


@given(falling)
def test_run_scores_are_the_closest_that_fall(drawn):
    """Slow reference, one step at a time: the score itself, or the next float32 below its predecessor."""
    expected: list[np.float32] = []
    for score in drawn:
        own = np.float32(min(max(score, -FLOAT32_MAX), FLOAT32_MAX))
        with np.errstate(over="ignore"):  # the step below the smallest float32
            below = np.nextafter(expected[-1], np.float32(-np.inf)) if expected else own
        expected.append(min(own, below))
    if not np.isinf(expected[-1]):
        assert run_scores(drawn) == [float(value) for value in expected]
    result = np.float32(run_scores(drawn))
    assert np.isfinite(result).all() and (np.diff(result.astype(np.float64)) < 0).all()


def test_ties_at_the_end_of_float32_are_lifted():
    last = run_scores([-1e308] * 3)
    assert last[2] == -FLOAT32_MAX
    assert last == [
        float(np.nextafter(np.nextafter(np.float32(last[2]), 0, dtype="f"), 0, dtype="f")),
        last[1],
        last[2],
    ]


def test_scores_that_fall_already_are_written_as_they_are():
    lines = run_lines(ascending_docids([12.5, 0.1, -3e-20]), "t")
    assert [line.split()[4] for line in lines] == ["12.5", "0.1", "-3e-20"]


@pytest.mark.parametrize("rule", [run_scores, six_decimal_scores])
@pytest.mark.parametrize(("bad", "message"), [([1.0, 2.0], "is above 1.0 before it"), ([math.nan], "not finite")])
def test_scores_that_rise_or_are_not_finite_are_refused(rule, bad, message):
    with pytest.raises(ValueError, match=message):
        rule(bad)


@pytest.mark.parametrize("rule", [run_scores, six_decimal_scores])
def test_no_scores_give_none(rule):
    assert rule([]) == []


@given(falling)
@example([3.1e-07, 2.9e-07, 1e-9])
@example([16.000001, 16.000001, 16.0, 15.9999999])
@example([-1e308] * 4)
@example([2e5, 2e5, 2e5])
def test_six_decimals_keep_our_order_in_the_evaluator(drawn):
    ranking = ascending_docids(drawn)
    printed = [float(f"{score:.6f}") for score in six_decimal_scores(drawn)]
    assert (np.diff(np.float32(printed).astype(np.float64)) < 0).all()
    assert evaluators_order(dict(zip(ranking.docids, printed, strict=True))) == list(ranking.docids)


@given(falling)
def test_six_decimals_change_nothing_that_survives_the_rounding(drawn):
    clipped = [min(max(score, -FLOAT32_MAX), FLOAT32_MAX) for score in drawn]
    rounded = [float(f"{score:.6f}") for score in clipped]
    if (np.diff(np.float32(rounded).astype(np.float64)) < 0).all():
        assert six_decimal_scores(drawn) == rounded


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12).map(lambda drawn: sorted(drawn, reverse=True)))
def test_six_decimals_move_a_score_by_no_more_than_its_rank(drawn):
    for rank, (given_score, score) in enumerate(zip(drawn, six_decimal_scores(drawn), strict=True)):
        assert given_score - (rank + 1) * 1e-6 < score < given_score + 1e-6
