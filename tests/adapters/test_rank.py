"""One call from texts to an order."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny_models import tiny_model

from headrank_pipeline import headrank, rank
from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank import one_call
from headrank_pipeline.rerank.one_call import RankedPassage, kept_reranker

QUERY = "how long does a flea live"
TEXTS = ["The dog sleeps in the sun.", "A flea can live up to a year.", "Paris is the capital of France."]


class Length(Reranker):
    """Longer texts first; remembers what it was given."""

    def __init__(self, notes: dict[str, float] | None = None) -> None:
        self.notes = notes or {}
        self.given: list[Ranking] = []

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        self.given += rankings
        noted = [dataclasses.replace(ranking, notes=self.notes) for ranking in rankings]
        return [one.rescored([float(len(c.text or "")) for c in one.candidates]) for one in noted]

    def describe(self) -> dict[str, Any]:
        return {}


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    one_call._kept.clear()


def test_it_gives_what_the_reranker_of_the_same_name_gives():
    candidates = tuple(Candidate(str(place), -float(place), text) for place, text in enumerate(TEXTS))
    expected = headrank("embedded").rerank(Ranking(Query("q", QUERY), candidates))
    results = rank(QUERY, TEXTS, model="embedded")
    assert [(str(one.index), one.score) for one in results] == [(c.docid, c.score) for c in expected.candidates]
    assert results[0].text == TEXTS[1]
    assert sum(one.score for one in results) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "passages",
    [
        [("a", "no"), ("b", "longest"), ("a", "longer")],
        [{"id": "a", "text": "no"}, {"docid": "b", "contents": "longest", "kept": 1}, {"_id": "a", "text": "longer"}],
        pd.DataFrame(
            {"docno": ["a", "b", "a"], "text": ["no", "longest", "longer"], "mine": [1, 2, 3]}, index=[7, 7, 9]
        ),
        (pair for pair in [("a", "no"), ["b", "longest"], ("a", "longer")]),
    ],
)
def test_pairs_dictionaries_and_frames_keep_their_ids(passages):
    assert rank(QUERY, passages, model=Length()) == [
        RankedPassage(1, "b", 7.0, "longest"),
        RankedPassage(2, "a", 6.0, "longer"),
        RankedPassage(0, "a", 2.0, "no"),
    ]


def test_a_mapping_is_id_to_text_and_texts_alone_have_their_index_as_id():
    assert [one.id for one in rank(QUERY, {"a b": "no", "b": "longer"}, model=Length())] == ["b", "a b"]
    assert [one.id for one in rank(QUERY, ["no", "longer"], model=Length())] == ["1", "0"]


def test_equal_scores_keep_the_given_order_and_titles_reach_the_reranker():
    reranker = Length()
    frame = pd.DataFrame({"text": ["aa", "bb"], "title": ["A", None]})
    assert [one.index for one in rank(QUERY, frame, model=reranker)] == [0, 1]
    assert [candidate.title for candidate in reranker.given[0].candidates] == ["A", None]


def test_no_passages_give_no_results():
    assert rank(QUERY, [], model="embedded") == []


@pytest.mark.parametrize(
    ("passages", "error", "message"),
    [
        ("one text", TypeError, r"passages 'one text': expected several passages, got one; write \[passage\]"),
        (
            {"text": "a", "id": "1"},
            TypeError,
            r"passages \{'text': 'a', 'id': '1'\}: expected several passages, got one",
        ),
        ({"a", "b"}, TypeError, "expected a list or another order of passages, got set"),
        (None, TypeError, "passages None: expected a list .* got NoneType"),
        (["a", None], TypeError, "passage 1: text None: expected str, got NoneType"),
        ([(7, "a")], TypeError, "passage 0: id 7: expected str, got int; give str"),
        ([{"id": "a", "abstract": "b"}], ValueError, r"passage 0: no text; .*found \['id', 'abstract'\]"),
        (pd.DataFrame({"text": ["a", None]}), ValueError, "passage 1: no text"),
        ([{"text": "a", "title": 5}], TypeError, "passage 0: title 5: expected str"),
    ],
)
def test_what_is_wrong_with_a_passage_is_said_with_its_place(passages, error, message):
    with pytest.raises(error, match=message):
        rank(QUERY, passages, model=Length())


def test_an_empty_query_and_a_missing_or_doubly_described_model_are_refused():
    with pytest.raises(ValueError, match="query text ' ' is empty"):
        rank(" ", TEXTS, model=Length())
    with pytest.raises(TypeError, match=r"no model named; .*model='embedded' ships"):
        rank(QUERY, TEXTS)
    with pytest.raises(ValueError, match="model '': expected a folder"):
        rank(QUERY, TEXTS, model="")
    with pytest.raises(TypeError, match=r"model 5: expected a folder, .* got int"):
        rank(QUERY, TEXTS, model=5)
    with pytest.raises(TypeError, match="a Reranker is complete"):
        rank(QUERY, TEXTS, model=Length(), passage_words=3)
    with pytest.raises(TypeError, match="no first_stage_weight here"):
        rank(QUERY, TEXTS, model="embedded", first_stage_weight=0.5)
    with pytest.raises(ValueError, match="did you mean 'passage_words'"):
        rank(QUERY, TEXTS, model="embedded", passage_word=3)


def test_a_named_model_is_kept_and_the_one_not_used_for_longest_goes():
    first = kept_reranker("embedded")
    assert kept_reranker("embedded") is first
    second = kept_reranker("embedded", passage_words=9)
    assert second is not first
    assert kept_reranker("embedded") is first
    kept_reranker("embedded", passage_words=8)
    assert len(one_call._kept) == one_call.KEPT
    assert kept_reranker("embedded") is first
    assert kept_reranker("embedded", passage_words=9) is not second


def test_a_model_whose_files_changed_is_loaded_again(tmp_path: Path):
    model = tiny_model(tmp_path / "model")
    first = kept_reranker(model, "all")
    assert kept_reranker(model, "all") is first
    os.utime(model / "model.safetensors", ns=(1, 1))
    assert kept_reranker(model, "all") is not first
    assert len(one_call._kept) == 1


def test_passages_that_were_cut_are_told(caplog: pytest.LogCaptureFixture):
    rank(QUERY, TEXTS, model=Length({"passages_cut": 2}))
    assert caplog.record_tuples == [
        ("headrank_pipeline.rerank.one_call", logging.WARNING, "qid query: 2 of 3 passages were cut to fit")
    ]
