import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrank_pipeline.records import Candidate, Query, Ranking

FLEA = Query("q1", "flea")
finite = st.floats(allow_nan=False, allow_infinity=False)


def ranking(*scores: float, names: str = "abcdefghij") -> Ranking:
    return Ranking(FLEA, tuple(Candidate(name, score) for name, score in zip(names, scores, strict=False)))


@pytest.mark.parametrize("bad", ["", "a b", "a\tb", "a\u00a0b", "\n"])
def test_ids_with_white_space_are_refused(bad):
    with pytest.raises(ValueError, match="without white space"):
        Query(bad, "flea")
    with pytest.raises(ValueError, match="without white space"):
        Candidate(bad, 1.0)


def test_a_number_is_not_an_id():
    with pytest.raises(TypeError, match="'007' is not 7"):
        Candidate(7, 1.0)
    with pytest.raises(TypeError, match="expected str, got int"):
        Query(7, "flea")


@pytest.mark.parametrize("blank", ["", "  ", "\n\t", "\u2003", None])
def test_an_empty_query_names_its_qid(blank):
    with pytest.raises(ValueError, match=r"qid q9: query text .* is empty"):
        Query("q9", blank)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_names_its_docid(score):
    with pytest.raises(ValueError, match=r"docid d1: score .* is not finite"):
        Candidate("d1", score)


def test_numpy_scores_become_floats():
    score = Candidate("d1", np.float32(0.1)).score
    assert type(score) is float and score == float(np.float32(0.1))


def test_records_are_frozen():
    for record, field in ((FLEA, "text"), (Candidate("a", 1.0), "score"), (ranking(1.0), "candidates")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, field, None)


def test_a_duplicate_docid_names_both_ranks():
    with pytest.raises(ValueError, match="qid q1: docid a occurs at ranks 1 and 3"):
        ranking(3.0, 2.0, 1.0, names="aba")


def test_a_rising_score_names_both_docids():
    with pytest.raises(ValueError, match=r"docid b at rank 2 scores 2.0, above a before it with 1.0"):
        ranking(1.0, 2.0)


def test_from_scores_sorts_and_keeps_the_order_of_ties():
    found = Ranking.from_scores(FLEA, [Candidate("a", 1.0), Candidate("b", 2.0), Candidate("c", 1.0)])
    assert found.docids == ("b", "a", "c")


def test_cut_keeps_the_best_and_refuses_zero():
    assert ranking(3.0, 2.0, 1.0).cut(2).docids == ("a", "b")
    assert ranking(3.0).cut(5).docids == ("a",)
    with pytest.raises(ValueError, match="cutoff 0"):
        ranking(3.0).cut(0)


def test_without_leaves_the_rest_in_order():
    assert ranking(3.0, 2.0, 1.0).without(["b", "z"]).docids == ("a", "c")


def test_rescored_refuses_another_number_of_scores():
    with pytest.raises(ValueError, match="1 scores for 2 candidates"):
        ranking(2.0, 1.0).rescored([1.0])


def test_rescored_names_the_passage_whose_score_is_not_finite():
    with pytest.raises(ValueError, match="docid b: score nan is not finite"):
        ranking(2.0, 1.0).rescored([1.0, math.nan])


def test_rescored_keeps_text_and_title():
    one = Ranking(FLEA, (Candidate("a", 1.0, "text", "title"),))
    assert one.rescored([5.0]).candidates == (Candidate("a", 5.0, "text", "title"),)


@given(st.lists(st.tuples(finite, finite), max_size=10))
def test_rescored_is_a_stable_permutation(pairs):
    before = ranking(*sorted((old for old, _ in pairs), reverse=True), names="hcajbegdif")  # not in docid order
    new = dict(zip(before.docids, (score for _, score in pairs), strict=True))
    after = before.rescored([new[docid] for docid in before.docids])
    assert sorted(after.docids) == sorted(before.docids)
    assert {c.docid: c.score for c in after.candidates} == new
    places = [(-new[docid], before.docids.index(docid)) for docid in after.docids]
    assert places == sorted(places)


def test_continued_by_appends_what_is_missing_one_below():
    head = ranking(0.9, 0.8, names="cb")
    tail = ranking(9.0, 8.0, 7.5, 5.0, names="abcd")
    assert [(c.docid, c.score) for c in head.continued_by(tail).candidates] == [
        ("c", 0.9),
        ("b", 0.8),
        ("a", pytest.approx(-0.2)),
        ("d", pytest.approx(-4.2)),
    ]


def test_continued_by_of_an_empty_head_is_the_tail():
    assert Ranking(FLEA).continued_by(ranking(2.0, 1.0)) == ranking(2.0, 1.0)
    assert ranking(2.0).continued_by(Ranking(FLEA)) == ranking(2.0)


@given(st.lists(finite, max_size=5), st.lists(finite, max_size=5))
def test_continued_by_holds_every_candidate_once_for_any_finite_scores(first, second):
    head = ranking(*sorted(first, reverse=True), names="abcde")
    tail = ranking(*sorted(second, reverse=True), names="cdefg")
    whole = head.continued_by(tail)
    assert whole.docids[: len(head)] == head.docids
    assert sorted(whole.docids) == sorted(set(head.docids) | set(tail.docids))


def test_frame_round_trip_keeps_leading_zeros_and_missing_text():
    rankings = [
        Ranking(Query("007", "flea"), (Candidate("01", 2.0, "text", "title"), Candidate("1", 1.0))),
        Ranking(Query("7", "dog"), (Candidate("01", 0.5),)),
    ]
    import pandas as pd

    frame = pd.concat([one.to_frame() for one in rankings])
    assert list(frame["rank"]) == [0, 1, 0]
    assert Ranking.from_frame(frame) == rankings


def test_from_frame_names_the_missing_columns():
    import pandas as pd

    with pytest.raises(ValueError, match=r"lacks the columns \['query', 'docno'\]"):
        Ranking.from_frame(pd.DataFrame({"qid": ["1"], "score": [1.0]}))


def test_from_frame_without_scores_follows_the_ranks_or_else_the_rows():
    import pandas as pd

    columns = {"qid": ["q1", "q1"], "query": ["flea", "flea"], "docno": ["a", "b"]}
    assert Ranking.from_frame(pd.DataFrame(columns))[0].docids == ("a", "b")
    assert Ranking.from_frame(pd.DataFrame({**columns, "rank": [1, 0]}))[0].docids == ("b", "a")
    with pytest.raises(TypeError, match="docid b: rank 'first': expected a number"):
        Ranking.from_frame(pd.DataFrame({**columns, "rank": [1, "first"]}))


def test_from_frame_refuses_ids_that_pandas_made_numbers():
    import pandas as pd

    with pytest.raises(TypeError, match="ids are strings"):
        Ranking.from_frame(pd.DataFrame({"qid": [7], "query": ["flea"], "docno": ["a"], "score": [1.0]}))


def test_notes_are_no_part_of_equality():
    assert dataclasses.replace(ranking(1.0), notes={"prompt_tokens": 9.0}) == ranking(1.0)


def test_half_a_surrogate_pair_is_refused_by_name():
    with pytest.raises(ValueError, match=r"qid q1: query text has half a surrogate pair .* at character 2"):
        Query("q1", "ab\ud800")
    with pytest.raises(ValueError, match="docid d1: title has half a surrogate pair"):
        Candidate("d1", 1.0, "text", "\udc00")
    assert Candidate("d1", 1.0, "a fish \U0001f41f").text


@pytest.mark.parametrize("text", [b"bytes", 5, ["a"], math.nan])
def test_a_text_that_is_no_string_is_refused_where_the_record_is_made(text):
    with pytest.raises(TypeError, match=r"docid d1: text .*: expected str, got"):
        Candidate("d1", 1.0, text)
    with pytest.raises(TypeError, match=r"qid q1: query text .*: expected str, got"):
        Query("q1", text)


@pytest.mark.parametrize("score", [None, "high", (), 10**400])
def test_a_score_that_is_no_number_names_its_docid(score):
    with pytest.raises(TypeError, match=r"docid d1: score .*: expected a number, got"):
        Candidate("d1", score)


def test_a_ranking_is_made_of_records():
    with pytest.raises(TypeError, match="expected a Query, got dict"):
        Ranking({"qid": "q1", "text": "flea"}, ())
    with pytest.raises(TypeError, match=r"qid q1 rank 2: expected a Candidate, got \('b', 1.0\)"):
        Ranking(FLEA, (Candidate("a", 2.0), ("b", 1.0)))


def frame(**columns):
    import pandas as pd

    base = {"qid": ["q7", "q7"], "query": ["flea", "flea"], "docno": ["a", "b"], "score": [2.0, 1.0]}
    return pd.DataFrame(base | columns)


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"score": [2.0, math.nan]}, ValueError, "qid q7: docid b: score nan is not finite"),
        ({"score": ["2.0", "high"]}, TypeError, "qid q7: docid b: score 'high': expected a number"),
        ({"text": ["a text", 5]}, TypeError, "qid q7: docid b: text 5: expected str"),
        ({"query": ["flea", "dog"]}, ValueError, "qid q7: has two query texts, 'flea' and 'dog'"),
    ],
)
def test_from_frame_names_the_query_whose_row_is_wrong(columns, error, message):
    with pytest.raises(error, match=message):
        Ranking.from_frame(frame(**columns))


def test_from_frame_reads_scores_of_a_frame_of_strings_and_cells_that_are_missing():
    import pandas as pd

    (one,) = Ranking.from_frame(frame(score=["1.0", "2.0"], text=[pd.NA, math.nan], title=[None, "Flea"]))
    assert one.candidates == (Candidate("b", 2.0, None, "Flea"), Candidate("a", 1.0))


def test_one_docid_is_not_taken_for_its_letters():
    with pytest.raises(TypeError, match=r"docids 'ab': expected several, got a string; write \[docid\]"):
        ranking(3.0, 2.0, 1.0).without("ab")
