import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headrank_pipeline.pipeline import Queries, Reranker, Source, as_queries, fuse
from headrank_pipeline.records import Candidate, Query, Ranking

QUERIES = [Query("q1", "one"), Query("q2", "two")]


@dataclass(frozen=True)
class Letters(Source):
    """Finds the letters of a word, first letter best; counts the rankings it made."""

    word: str = "abcde"
    made: list[int] = field(default_factory=list, compare=False)

    def retrieve(self, queries: Queries) -> Iterator[Ranking]:
        for query in as_queries(queries):
            self.made.append(len(self.word))
            candidates = [Candidate(letter, float(-place)) for place, letter in enumerate(self.word)]
            yield Ranking(query, tuple(candidates))

    def describe(self) -> dict[str, Any]:
        return {"word": self.word}


@dataclass(frozen=True)
class Limitable(Letters):
    """The same, but it can retrieve less itself."""

    def limited(self, hits: int) -> Source:
        return replace(self, word=self.word[:hits])

    def most(self) -> int:
        return len(self.word)


@dataclass(frozen=True)
class Reverse(Reranker):
    """Turns a ranking round."""

    seen: list[int] = field(default_factory=list, compare=False)

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        self.seen.extend(len(ranking) for ranking in rankings)
        return [ranking.rescored([float(place) for place in range(len(ranking))]) for ranking in rankings]

    def describe(self) -> dict[str, Any]:
        return {"reranker": "reverse"}


def found(source: Source, queries: Queries = QUERIES) -> list[str]:
    return ["".join(ranking.docids) for ranking in source.retrieve(queries)]


def test_rerank_after_a_source():
    assert found(Letters() >> Reverse()) == ["edcba", "edcba"]


def test_queries_may_be_a_mapping_and_keep_their_order():
    rankings = list((Letters() >> Reverse()).retrieve({"b": "two", "a": "one"}))
    assert [ranking.query for ranking in rankings] == [Query("b", "two"), Query("a", "one")]


@pytest.mark.parametrize("queries", [["bare string"], [("q1", "one")]])
def test_anything_else_is_no_query(queries):
    with pytest.raises(TypeError, match="expected Query records"):
        list(Letters().retrieve(queries))


def test_a_qid_given_twice_is_refused():
    with pytest.raises(ValueError, match="qid q1 occurs twice"):
        list(Letters().retrieve([Query("q1", "one"), Query("q1", "other")]))


def test_many_queries_come_back_one_each_in_order_while_others_wait():
    queries = [Query(f"q{number}", "x") for number in range(20)]
    source = Letters()
    rankings = (source >> Reverse()).retrieve(queries)
    first = next(rankings)
    assert len(source.made) < len(queries)
    assert [ranking.query for ranking in (first, *rankings)] == queries


def test_no_queries_give_no_rankings():
    assert found(Letters() % 2 >> Reverse() ^ Letters(), []) == []


def test_cutoff_of_a_source_that_cannot_limit_itself():
    source = Letters()
    assert found(source % 2) == ["ab", "ab"]
    assert source.made == [5, 5]


def test_cutoff_is_pushed_down_into_a_source_that_can():
    source = Limitable()
    assert source % 2 == Limitable("ab")
    assert found(source % 2 % 4) == ["ab", "ab"]
    assert source.made == [2, 2]


def test_cutoffs_in_a_row_keep_the_smaller():
    assert found(Letters() % 4 % 2) == ["ab", "ab"]
    assert found(Letters() % 2 % 4) == ["ab", "ab"]


def test_cutoff_binds_tighter_than_rerank():
    assert found(Letters() % 2 >> Reverse()) == ["ba", "ba"]
    assert found((Letters() >> Reverse()) % 2) == ["ed", "ed"]


def test_a_chain_of_rerankers_equals_one_after_the_other():
    assert found(Letters() >> (Reverse() >> Reverse())) == ["abcde", "abcde"]
    assert found(Letters() >> Reverse() >> Reverse()) == ["abcde", "abcde"]
    assert found(Letters() >> (Reverse() >> Reverse() % 2)) == ["ab", "ab"]


def test_a_cut_reranker_keeps_its_best():
    assert found(Letters() >> Reverse() % 2) == ["ed", "ed"]


def test_the_tail_is_appended_with_continuing_scores():
    ranking = next(((Letters() % 2 >> Reverse()) ^ Letters()).retrieve(QUERIES))
    assert ranking.docids == ("b", "a", "c", "d", "e")
    assert ranking.scores == (1.0, 0.0, -1.0, -2.0, -3.0)


def test_tail_binds_loosest():
    pipeline = Letters() % 2 >> Reverse() ^ Letters()
    assert found(pipeline) == ["bacde", "bacde"]
    assert found(pipeline % 3) == ["bac", "bac"]


def test_a_tail_of_other_candidates_is_appended_too():
    assert found(Letters("ab") >> Reverse() ^ Letters("xbya")) == ["baxy", "baxy"]


@pytest.mark.parametrize("source", [Letters, Limitable])
@pytest.mark.parametrize(
    "head",
    [
        lambda source: source % 2 >> Reverse(),
        lambda source: source >> Reverse(),
        lambda source: source % 3 >> Reverse() >> Reverse() % 1,
        lambda source: (source % 4 >> Reverse()) % 2 >> Reverse(),
        lambda source: source % 2,
    ],
)
def test_a_shared_first_stage_is_searched_once_with_the_same_result(source, head):
    shared = source()
    once = list((head(shared) ^ shared).retrieve(QUERIES))
    # the slow reference: head and tail each search for themselves
    heads, tails = head(source()).retrieve(QUERIES), source().retrieve(QUERIES)
    assert once == [first.continued_by(tail) for first, tail in zip(heads, tails, strict=True)]
    assert shared.made == [5, 5]


def test_a_first_stage_that_only_looks_alike_is_searched_for_itself():
    head, tail = Limitable("abc"), Limitable("cdefg")
    assert found(head % 2 >> Reverse() ^ tail) == ["bacdefg", "bacdefg"]
    assert (head.made, tail.made) == ([2, 2], [5, 5])


@pytest.mark.parametrize(
    ("compose", "message"),
    [
        (lambda: Reverse() >> Letters(), "a reranker needs candidates before it; write Letters >> Reverse"),
        (lambda: Letters() >> Letters(), ">> takes a reranker on its right, got Letters"),
        (lambda: Letters() >> "headrank", "got 'headrank'"),
        (lambda: Reverse() >> 5, ">> takes a reranker on its right, got 5"),
        (lambda: Letters() ^ Reverse(), r"\^ takes a source on its right whose candidates follow, got Reverse"),
        (lambda: Reverse() ^ Letters(), "unsupported operand"),
        (lambda: Letters() % 2.0, "% takes a whole number of candidates, got 2.0"),
        (lambda: Letters() % True, "% takes a whole number"),
        (lambda: Reverse() % "2", "% takes a whole number"),
    ],
)
def test_wrong_compositions_fail_where_they_are_written(compose, message):
    with pytest.raises(TypeError, match=message):
        compose()


@pytest.mark.parametrize("stage", [Letters(), Limitable()])
def test_a_cutoff_may_be_an_integer_of_numpy(stage):
    cut = stage % np.int64(2)
    assert found(cut) == found(stage % 2)
    json.dumps(cut.describe())


@pytest.mark.parametrize("stage", [Letters(), Limitable(), Reverse()])
@pytest.mark.parametrize("cutoff", [0, -1])
def test_a_cutoff_below_one_is_refused(stage, cutoff):
    with pytest.raises(ValueError, match="expected at least 1 candidate"):
        stage % cutoff


def test_describe_names_every_stage():
    pipeline = (Letters() % 2 >> (Reverse() >> Reverse() % 3)) ^ Limitable() % 4
    assert pipeline.describe() == {
        "head": {
            "source": {"word": "abcde", "cutoff": 2},
            "reranker": {
                "first": {"reranker": "reverse"},
                "second": {"reranker": "reverse", "output_cutoff": 3},
            },
        },
        "tail": {"word": "abcd"},
    }


@dataclass(frozen=True)
class Placed(Reverse):
    """The same, with a model that lies somewhere."""

    place: str = ""

    def origins(self) -> dict[str, str]:
        return {"model": self.place}


def test_the_models_of_a_chain_keep_their_places_apart():
    assert (Placed(place="a") >> Placed(place="b") % 2).origins() == {"first.model": "a", "second.model": "b"}


@pytest.mark.parametrize("one", ["what do fleas eat", Query("q1", "flea")])
def test_a_single_query_is_not_taken_for_many(one):
    with pytest.raises(TypeError, match="expected several queries, got one"):
        list(as_queries(one))


def test_topics_may_be_a_data_frame():
    topics = pd.DataFrame({"qid": ["007", "7"], "query": ["one", "two"], "narrative": ["", ""]})
    assert list(as_queries(topics)) == [Query("007", "one"), Query("7", "two")]
    with pytest.raises(ValueError, match=r"lacks the columns \['query'\]; found \['qid', 'text'\]"):
        list(as_queries(topics.rename(columns={"query": "text"})[["qid", "text"]]))
    with pytest.raises(TypeError, match="qid 7"):
        list(as_queries(pd.DataFrame({"qid": [7], "query": ["one"]})))  # '007' would have become 7 unnoticed


@pytest.mark.parametrize(
    ("sources", "k", "error", "message"),
    [
        ((Letters(), Reverse()), 60, TypeError, "fuse takes sources, got Reverse"),
        (([Letters(), Letters()],), 60, TypeError, r"fuse takes sources, got \[Letters"),
        ((Letters(), Letters()), float("nan"), ValueError, "k nan: expected at least 1"),
    ],
)
def test_what_cannot_be_fused_is_refused_before_anything_is_retrieved(sources, k, error, message):
    with pytest.raises(error, match=message):
        fuse(*sources, k=k)
