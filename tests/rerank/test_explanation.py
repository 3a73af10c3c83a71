"""Explanations: words that add up to the scores, and what comes of deleting them."""

from __future__ import annotations

import json

import pytest
from tiny_models import tiny_model

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.places import Places
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.explanation import deletion_test
from headrank_pipeline.rerank.systems import open_system

TEXTS = {
    "plain": "Penguins are birds that swim well.\nTheir wings are fins, and no other bird dives deeper than they do.",
    "markup": "<script>alert('birds')</script> & more",
    "mixed": "鳥は泳ぐ。 Fish swim, too: 3 4 5.",
    "empty": "",
    "blank": " ",
    "again": "Penguins are birds that swim well.\nTheir wings are fins, and no other bird dives deeper than they do.",
}
BIRDS = Ranking(
    Query("q1", "which birds swim?"),
    tuple(
        Candidate(docid, -float(place), text, title="On birds" if docid in ("markup", "empty") else None)
        for place, (docid, text) in enumerate(TEXTS.items())
    ),
)
SYSTEMS = {
    "headrank": ("headrank", {}),
    "isolated": ("headrank", {"passages": "isolated"}),
    "calibrated": ("headrank", {"content_free": "N/A"}),
    "calibrated and isolated": ("headrank", {"content_free": "N/A", "passages": "isolated"}),
    "mean over tokens": ("headrank", {"length_exponent": 1.0, "filter_deviations": 0.5}),
    "geometric over rows": ("headrank", {"support": "passages-geometric"}),
    "geometric over heads": ("headrank", {"normalise": "log", "length_exponent": 0.5}),
    "geometric over both": ("headrank", {"support": "passages-geometric", "normalise": "log", "passages": "isolated"}),
    "icr": ("icr", {}),
    "qrhead": ("qrhead", {}),
    "core": ("core", {}),
    "qrranker": ("qrranker", {}),
    "both orders": ("core", {"both_orders": True, "columns": "label+text"}),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


def opened(model, system="headrank", heads="layers:1-3", **options):
    return open_system(system, model, heads, device="cpu", **options)


@pytest.mark.parametrize("name", SYSTEMS)
def test_words_and_heads_add_up_to_the_scores(model, name):
    system, options = SYSTEMS[name]
    reranker = opened(model, system, **options)
    reranked = reranker.rerank(BIRDS)
    explanation = reranker.explain(BIRDS, by_query_word=True)
    assert [passage.docid for passage in explanation.passages] == list(reranked.docids)
    for candidate in reranked.candidates:
        passage = explanation.of(candidate.docid)
        assert passage.score == pytest.approx(candidate.score, abs=1e-6)
        assert sum(word.contribution for word in passage.words) == pytest.approx(candidate.score, abs=1e-6)
        assert sum(passage.heads) == pytest.approx(candidate.score, abs=1e-6)
        for word in passage.words:
            assert sum(word.by_query_word) == pytest.approx(word.contribution, abs=1e-6)
            assert len(word.by_query_word) == len(explanation.query_words)


@pytest.mark.parametrize("profile", ["set", "heads"])
def test_place_curves_divide_words_as_they_divide_scores(model, profile):
    places = Places((0.0, 1.0), (1.5, 0.5), ((1.8, 0.2), (1.2, 0.8)), (0.0, 0.0), "passages", lists=9, passages=6.0)
    heads = HeadSet("two", ((1, 0), (2, 3)), weights=(1.0, 3.0), places=places)
    reranker = opened(model, heads=heads, place_profile=profile, filter_deviations=1.0)
    explanation = reranker.explain(BIRDS)
    for candidate in reranker.rerank(BIRDS).candidates:
        words = explanation.of(candidate.docid).words
        assert sum(word.contribution for word in words) == pytest.approx(candidate.score, abs=1e-6)
    assert explanation.curve == pytest.approx([1.5, 1.25, 1.0, 0.75, 0.5])  # a copy is read once


def test_words_are_those_of_the_text_with_every_token_in_one(model):
    explanation = opened(model).explain(BIRDS)
    assert [word.text for word in explanation.of("markup").words if word.start >= 0] == TEXTS["markup"].split()
    plain = explanation.of("plain")
    assert "".join(word.text + word.after for word in plain.words) == TEXTS["plain"]
    assert all(plain.text[word.start :].startswith(word.text) for word in plain.words)
    mixed = [word.text for word in explanation.of("mixed").words if word.start >= 0]
    assert mixed[:2] == ["鳥", "は"]
    assert mixed[-6:] == ["Fish", "swim,", "too:", "3", "4", "5."]
    assert [word.text for word in explanation.of("empty").words] == ["On", "birds"]  # its title


def test_query_words_are_named_and_the_content_free_query_is_subtracted(model):
    explanation = opened(model, "icr").explain(BIRDS, by_query_word=True)
    before, *words, after, less = explanation.query_words
    assert (before, words, after) == ("words before the query", ["which", "birds", "swim?"], "end of the prompt")
    assert less == "less that of 'N/A'"
    looked = [word.by_query_word for word in explanation.of("plain").words]
    assert all(part >= 0 for parts in looked for part in parts[:-1])
    assert all(parts[-1] <= 0 for parts in looked)


def test_record_is_json_and_holds_all_words(model):
    explanation = opened(model).explain(BIRDS)
    record = json.loads(json.dumps(explanation.to_dict()))
    assert record["heads"][0] == "1-0"
    assert [len(passage["words"]) for passage in record["passages"]] == [len(p.words) for p in explanation.passages]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"normalise": "zscore"}, "normalise 'zscore': scores compare"),
        ({"temperature": 0.5}, "temperature 0.5: scores compare"),
        ({"max_prompt_tokens": 150}, "read in . prompts, whose scores are put on one scale"),
    ],
)
def test_scores_that_are_no_sums_are_refused_with_the_reason(model, options, reason):
    reranker = opened(model, **options)
    reranker.rerank(BIRDS)
    with pytest.raises(ValueError, match=reason):
        reranker.explain(BIRDS)


def test_nothing_to_explain_and_unknown_docids_are_refused(model):
    reranker = opened(model)
    with pytest.raises(ValueError, match="qid q1: no candidates"):
        reranker.explain(Ranking(BIRDS.query))
    with pytest.raises(KeyError, match="no docid 'other' among the 6 passages"):
        reranker.explain(BIRDS).of("other")


def test_deleted_words_are_those_with_the_largest_contributions(model):
    reranker = opened(model)
    explanation = reranker.explain(BIRDS)
    found = {deletion.docid: deletion for deletion in deletion_test(reranker, BIRDS, 3)}
    assert set(found) == {"plain", "mixed"}  # the others have too few words
    plain, mean = explanation.of("plain"), 1 / 5  # shares sum to 1, and the copy is not read
    top = {word.start for word in plain.top(3)}
    left = "".join(word.text + word.after for word in plain.words if word.start not in top)
    first, *rest, _ = BIRDS.candidates
    reread = reranker.rerank(Ranking(BIRDS.query, (Candidate("plain", first.score, left), *rest)))
    after = dict(zip(reread.docids, reread.scores, strict=True))["plain"]
    assert found["plain"].top == pytest.approx((plain.score - after) / mean, abs=1e-6)
    assert found == {deletion.docid: deletion for deletion in deletion_test(reranker, BIRDS, 3)}


def test_top_words_matter_more_than_random_ones_to_a_trained_model():
    texts = [
        "A flea lives for about a hundred days when it finds a host, and much less without one.",
        "Dogs sleep for half of the day, and older ones for longer; puppies need even more rest than that.",
        "The life cycle of the flea has four stages: egg, larva, pupa and adult, and takes some weeks in all.",
    ]
    candidates = tuple(Candidate(f"d{place}", -float(place), text) for place, text in enumerate(texts))
    fleas = Ranking(Query("q2", "how long does a flea live"), candidates)
    found = deletion_test(open_system("headrank", "embedded", device="cpu"), fleas, 3)
    assert len(found) == 3
    assert sum(deletion.top for deletion in found) > sum(deletion.random for deletion in found)
