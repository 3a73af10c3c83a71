from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrank_pipeline.pipeline import Failure, Reranker
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.interpolation import interpolated, normalised


class Reversing(Reranker):
    """Turns the order round; a real reranker in all but its judgement."""

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        return [replace(r, notes={"prompt_tokens": 7}).rescored([-score for score in r.scores]) for r in rankings]

    def describe(self) -> dict[str, Any]:
        return {"system": "reversing"}


class LeavingOut(Reranker):
    """Leaves the last candidate out, as a threshold does."""

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        return [r.cut(len(r) - 1) for r in rankings]

    def describe(self) -> dict[str, Any]:
        return {"system": "leaving out"}


def ranking(*scores: float) -> Ranking:
    return Ranking.from_scores(Query("q", "flea"), [Candidate(f"d{i}", score) for i, score in enumerate(scores)])


def test_weight_one_is_the_first_stage_and_weight_zero_the_reranker():
    first = ranking(30.0, 20.0, 10.0)
    assert interpolated(Reversing(), 1.0).rerank(first).docids == ("d0", "d1", "d2")
    assert interpolated(Reversing(), 0.0).rerank(first).docids == ("d2", "d1", "d0")


def test_candidates_without_a_score_are_not_mixed():
    with pytest.raises(ValueError, match=r"qid q: .* no score for d2 \(1 of 3 candidates\); leave its threshold out"):
        interpolated(LeavingOut(), 0.5).rerank(ranking(30.0, 20.0, 10.0))


def test_scores_are_mixed_on_a_common_scale():
    mixed = interpolated(Reversing(), 0.75).rerank(ranking(30.0, 20.0, 10.0))
    assert dict(zip(mixed.docids, mixed.scores, strict=True)) == {"d0": 0.75, "d1": 0.5, "d2": 0.25}
    assert mixed.notes == {"prompt_tokens": 7}


def test_z_scores_are_centred():
    assert normalised([5.0, 1.0], "z-score") == [1.0, -1.0]


@pytest.mark.parametrize("normalisation", ["min-max", "z-score"])
def test_the_largest_scores_there_are_mix_as_their_order_says(normalisation):
    first = ranking(1e308, 5e307, -1e308)
    mixed = interpolated(Reversing(), 1.0, normalisation=normalisation).rerank(first)
    small = interpolated(Reversing(), 1.0, normalisation=normalisation).rerank(ranking(1.0, 0.5, -1.0))
    assert mixed.docids == small.docids == ("d0", "d1", "d2")
    assert mixed.scores == pytest.approx(small.scores)


class Failing(Reversing):
    """Cannot rerank one of the queries, and knows which."""

    def _attempts(self, rankings: Sequence[Ranking]) -> list[Ranking | Failure]:
        first, *others = rankings
        return [Failure(first.query, ValueError("no reply"), {"prompt_tokens": 3}), *self.rerank_batch(others)]


def test_a_query_that_failed_stays_failed_and_the_others_are_mixed():
    failure, mixed = interpolated(Failing(), 0.0).attempt_batch([ranking(2.0, 1.0), ranking(3.0, 2.0)])
    assert isinstance(failure, Failure) and failure.notes == {"prompt_tokens": 3}
    assert mixed.docids == ("d1", "d0")


class Shares(Reversing):
    """Scores that span orders of magnitude, as shares of attention do."""

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        return [r.rescored([1e-4 * 10**score for score in r.scores]) for r in rankings]


def test_logarithms_keep_one_large_share_from_making_the_others_alike():
    first = ranking(4.0, 2.0, 0.0)
    plain, logs = (interpolated(Shares(), 0.0, logs=given).rerank(first).scores for given in (False, True))
    assert plain == pytest.approx((1.0, 0.0099, 0.0), abs=1e-4)
    assert logs == pytest.approx((1.0, 0.5, 0.0))


def test_a_share_of_nothing_counts_as_the_smallest_there_is():
    class Nothing(Reversing):
        def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
            return [r.rescored([0.8, 0.2, 0.0]) for r in rankings]

    assert interpolated(Nothing(), 0.0, logs=True).rerank(ranking(4.0, 2.0, 0.0)).scores == (1.0, 0.0, 0.0)


def test_logarithms_of_negative_scores_are_refused():
    with pytest.raises(ValueError, match=r"qid q: .* expected scores of at least 0, got -30\.0 for docid d0"):
        interpolated(Reversing(), 0.5, logs=True).rerank(ranking(30.0, 20.0))


def test_empty_and_single_lists_pass_through():
    assert interpolated(Reversing(), 0.5).rerank(ranking()).docids == ()
    assert interpolated(Reversing(), 0.5).rerank(ranking(4.0)).scores == (0.0,)


def test_description_names_weight_and_normalisation():
    described = interpolated(Reversing(), 0.5, normalisation="z-score").describe()
    assert described == {"system": "reversing", "first_stage_weight": 0.5, "normalisation": "z-score", "logs": False}


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_weights_outside_zero_to_one_are_refused(weight):
    with pytest.raises(ValueError, match="interpolation weight"):
        interpolated(Reversing(), weight)


@given(st.lists(st.floats(-1e6, 1e6), max_size=20), st.floats(0, 1))
def test_every_candidate_comes_back_once(scores, weight):
    mixed = interpolated(Reversing(), weight).rerank(ranking(*scores))
    assert sorted(mixed.docids) == sorted(f"d{i}" for i in range(len(scores)))


def test_only_a_reranker_can_be_mixed_in():
    with pytest.raises(TypeError, match="takes a reranker, got str 'headrank'"):
        interpolated("headrank", 0.5)
