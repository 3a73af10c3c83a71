"""Lists of more tokens than a prompt may have: windows on one scale, refinement, and what is told of both."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau
from tiny_models import tiny_model

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.cli import main
from headrank_pipeline.pipeline import Failure
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.long_lists import dealt, joined, summary
from headrank_pipeline.rerank.systems import headrank, icr

HEADS = HeadSet("some", ((1, 0), (2, 3)))
WORDS = ("birds", "fly", "high", "above", "the", "sea", "where", "no", "fish", "ever", "saw", "land", "stone", "winter")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("qwen3"), layers=3)


def ranking(passages, words=30, qid="q1"):
    chance = random.Random(qid)
    texts = [" ".join(chance.choices(WORDS, k=words + i % 7)) for i in range(passages)]
    return Ranking(
        Query(qid, "how do birds fly?"), tuple(Candidate(f"d{i}", -float(i), t) for i, t in enumerate(texts))
    )


def read(folder, given, make=headrank, heads=HEADS, **settings):
    return make(folder, heads, device="cpu", dtype="float32", **settings).rerank(given)


def agreement(one, other):
    scores = dict(zip(other.docids, other.scores, strict=True))
    return kendalltau(one.scores, [scores[docid] for docid in one.docids]).statistic


# ------------------------------------------------------------------------------------------------------- arithmetic

sizes = st.lists(st.integers(1, 50), min_size=2, max_size=60)
scores = st.lists(st.integers(1, 10_000), min_size=12, max_size=40, unique=True)


@given(sizes, st.integers(60, 400))
@settings(deadline=None)
def test_windows_hold_every_passage_once_and_all_anchors_within_the_room(sizes, room):
    windows, anchors = dealt(sizes, room)
    held = Counter(index for window in windows for index in window)
    assert sorted(held) == list(range(len(sizes)))
    assert all(held[index] == (len(windows) if index in anchors else 1) for index in held)
    assert all(window == sorted(window) for window in windows)
    largest = max(sizes) + sum(sizes[index] for index in anchors)  # one passage and the anchors always go together
    assert all(sum(sizes[index] for index in window) <= max(room, largest) for window in windows)
    assert (len(windows) == 1) == (sum(sizes) <= room or len(sizes) == len(anchors) + 1)


def test_a_passage_without_text_is_no_anchor():
    windows, anchors = dealt([150, 175, 175, 1], 330)  # what a quarter of the room holds is the empty one alone
    assert anchors == [0]
    assert windows == [[0, 1, 3], [0, 2]]


@pytest.mark.parametrize("large", [3600, 9000])
def test_a_large_passage_costs_one_window_more(large):
    short, room = [40] * 800, 4000
    without, _ = dealt(short, room)
    windows, _ = dealt([*short, large], room)
    assert any(800 in window for window in windows)
    assert len(windows) == len(without) + 1


def in_windows(scores, count, anchors, distort):
    others = [index for index in range(len(scores)) if index not in anchors]
    parts = [sorted([*anchors, *others[w::count]]) for w in range(count)]
    return [{f"d{index}": distort(w, scores[index]) for index in part} for w, part in enumerate(parts)]


@given(scores, st.integers(2, 4), st.lists(st.floats(0.01, 100), min_size=4, max_size=4))
def test_windows_that_differ_by_a_factor_are_put_on_one_scale(scores, count, factors):
    windows = in_windows(scores, count, [0, 5], lambda w, score: score * factors[w])
    found = joined(windows, ["d0", "d5"], "ratio")
    assert sorted(found, key=found.get) == [f"d{index}" for index in sorted(range(len(scores)), key=scores.__getitem__)]
    shares = {docid: score / found["d0"] for docid, score in found.items()}
    assert shares == pytest.approx({f"d{i}": score / scores[0] for i, score in enumerate(scores)})


@given(
    scores,
    st.integers(2, 4),
    st.lists(st.tuples(st.floats(0.01, 100), st.floats(-1000, 1000)), min_size=4, max_size=4),
)
def test_windows_that_differ_by_a_factor_and_a_shift_are_put_on_one_scale(scores, count, changes):
    windows = in_windows(scores, count, [0, 5, 9], lambda w, score: score * changes[w][0] + changes[w][1])
    found = joined(windows, ["d0", "d5", "d9"], "affine")
    assert sorted(found, key=found.get) == [f"d{index}" for index in sorted(range(len(scores)), key=scores.__getitem__)]


@given(scores, st.permutations(range(4)), st.sampled_from(["ratio", "affine"]))
def test_the_order_of_the_windows_does_not_matter(scores, order, scale):
    windows = in_windows(scores, 4, [0, 5], lambda w, score: (score + w) / (w + 1))
    assert joined([windows[w] for w in order], ["d0", "d5"], scale) == joined(windows, ["d0", "d5"], scale)


def test_joined_shares_sum_to_what_those_of_a_window_do():
    windows = [{"a": 0.5, "b": 0.5}, {"a": 0.2, "c": 0.8}]
    assert sum(joined(windows, ["a"], "ratio").values()) == pytest.approx(1.0)


def test_anchors_of_equal_scores_shift_only():
    found = joined([{"a": 1.0, "b": 1.0, "c": 3.0}, {"a": 5.0, "b": 5.0, "d": 6.0}], ["a", "b"], "affine")
    assert found == {"a": 3.0, "b": 3.0, "c": 5.0, "d": 4.0}


# ---------------------------------------------------------------------------------------------------------- reading


def test_a_list_that_does_not_fit_is_read_in_windows_and_nothing_is_cut(folder):
    candidates = ranking(30)
    found = read(folder, candidates, max_prompt_tokens=1200)
    assert sorted(found.docids) == sorted(candidates.docids)
    assert found.notes["lists_windowed"] == 1
    assert found.notes["windows"] == found.notes["forward_passes"] > 1
    assert found.notes["passages_cut"] == found.notes["tokens_dropped"] == 0
    assert found.notes["prompt_tokens"] <= 1200 * found.notes["windows"]
    assert "windows" not in read(folder, candidates).notes


def test_whole_lists_are_cut_to_the_budget_as_they_always_were(folder):
    found = read(folder, ranking(30), max_prompt_tokens=1200, long_lists="whole")
    assert found.notes["passages_cut"] > 0
    assert found.notes["prompt_tokens"] <= 1200
    assert "windows" not in found.notes


@pytest.mark.parametrize("strategy", ["auto", "windows"])
def test_a_list_that_fits_is_read_as_without_a_strategy(folder, strategy):
    candidates = ranking(12)
    assert read(folder, candidates, long_lists=strategy) == read(folder, candidates, long_lists="whole")


def test_isolated_passages_have_no_limit_and_their_windows_agree_with_the_whole_list(folder):
    candidates = ranking(40)
    heads = HeadSet("first layer", ((0, 1), (0, 3)))  # deeper ones see what else the question has looked at
    whole = read(folder, candidates, heads=heads, passages="isolated", max_prompt_tokens=1000)
    assert "windows" not in whole.notes
    found = read(folder, candidates, heads=heads, passages="isolated", max_prompt_tokens=1000, long_lists="windows")
    assert found.notes["windows"] > 2
    assert agreement(found, whole) > 0.9
    assert sum(found.scores) == pytest.approx(sum(whole.scores), rel=1e-4)


def test_scores_that_can_be_negative_are_joined_by_mean_and_deviation(folder):
    found = read(folder, ranking(30), icr, "all", max_prompt_tokens=1200)
    assert found.notes["windows"] > 1
    assert len(set(found.docids)) == 30


@pytest.mark.parametrize("make", [headrank, icr])
def test_refinement_reads_the_best_again_and_keeps_all(folder, make):
    candidates = ranking(45, words=60)
    found = read(folder, candidates, make, HEADS, max_prompt_tokens=4000, long_lists="refine")
    assert sorted(found.docids) == sorted(candidates.docids)
    assert (found.notes["lists_refined"], found.notes["passages_refined"]) == (1, 20)
    assert found.notes["coarse_passages_cut"] == 45
    assert found.notes["passages_cut"] == 0
    best = Ranking(candidates.query, tuple(c for c in candidates.candidates if c.docid in found.docids[:20]))
    assert found.docids[:20] == read(folder, best, make, HEADS).docids


def test_heads_of_negative_weight_are_joined_by_mean_and_deviation(folder):
    heads = HeadSet("signed", ((0, 1), (0, 3)), weights=(2.0, -1.9))
    candidates = ranking(40)
    whole = read(folder, candidates, heads=heads, passages="isolated", max_prompt_tokens=1000)
    assert whole.scores[0] > 0 > whole.scores[-1]  # else there is nothing to see
    found = read(folder, candidates, heads=heads, passages="isolated", max_prompt_tokens=1000, long_lists="windows")
    assert found.notes["windows"] > 1
    assert found.scores[0] > 0 > found.scores[-1]
    assert agreement(found, whole) > 0.5


def test_the_windows_of_a_coarse_reading_are_counted_apart(folder):
    found = read(folder, ranking(45, words=60), max_prompt_tokens=1500, long_lists="refine")
    assert found.notes["coarse_windows"] > 1
    assert found.notes["windows"] > 1
    assert found.notes["lists_windowed"] == found.notes["coarse_lists_windowed"] == 1
    told = summary(found.notes, 1)
    assert f"1 in {found.notes['windows']:g} windows" in told
    assert f"1 by 48 tokens of each passage in {found.notes['coarse_windows']:g} windows, 20 of these again" in told


def test_short_lists_are_not_refined(folder):
    assert read(folder, ranking(20), long_lists="refine") == read(folder, ranking(20))


def test_windows_of_several_queries_are_joined_each_to_its_own(folder):
    reranker = headrank(folder, HEADS, device="cpu", dtype="float32", max_prompt_tokens=1200)
    lists = [ranking(30, qid="a"), Ranking(Query("none", "x")), ranking(5, qid="b"), ranking(25, qid="c")]
    for one, alone in zip(reranker.rerank_batch(lists), map(reranker.rerank, lists), strict=True):
        assert dict(zip(one.docids, one.scores, strict=True)) == pytest.approx(
            dict(zip(alone.docids, alone.scores, strict=True)), rel=1e-3
        )


def test_a_list_without_text_fails_alone(folder):
    reranker = headrank(folder, HEADS, device="cpu", max_prompt_tokens=1200)
    broken = Ranking(Query("b", "x"), (Candidate("d1", 1.0, "text"), Candidate("d2", 0.0)))
    failed, fine = reranker.attempt_batch([broken, ranking(30)])
    assert isinstance(failed, Failure)
    assert "d2" in str(failed.error)
    assert len(fine) == 30


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 40), st.integers(1, 50), st.integers(700, 1500))
def test_every_passage_is_scored_once_whatever_the_sizes(folder, passages, words, budget):
    candidates = ranking(passages, words)
    found = read(folder, candidates, max_prompt_tokens=budget)
    assert sorted(found.docids) == sorted(candidates.docids)
    assert found.notes["tokens_dropped"] == 0


# -------------------------------------------------------------------------------------------------------- duplicates


def with_copies(candidates, copies):
    """The same list with copies of passages at its end: docid of the copy -> docid of the first."""
    known = {candidate.docid: candidate for candidate in candidates.candidates}
    extra = tuple(
        Candidate(docid, -100.0 - place, known[first].text, known[first].title)
        for place, (docid, first) in enumerate(copies.items())
    )
    return Ranking(candidates.query, candidates.candidates + extra)


@pytest.mark.parametrize("strategy", ["auto", "windows", "refine"])
def test_copies_are_read_once_and_follow_their_first(folder, strategy):
    candidates = ranking(24)
    budget = {"max_prompt_tokens": 1200, "long_lists": strategy}
    alone = read(folder, candidates, **budget)
    found = read(folder, with_copies(candidates, {"z1": "d3", "a2": "d9", "c0": "d3"}), **budget)
    assert [docid for docid in found.docids if docid.startswith("d")] == list(alone.docids)
    place = found.docids.index("d3")
    assert found.docids[place : place + 3] == ("d3", "z1", "c0")
    assert found.docids[found.docids.index("d9") + 1] == "a2"
    scores = dict(zip(found.docids, found.scores, strict=True))
    assert scores["z1"] == scores["c0"] == scores["d3"] == dict(zip(alone.docids, alone.scores, strict=True))["d3"]
    assert found.notes["prompt_tokens"] == alone.notes["prompt_tokens"]
    assert found.notes["duplicates"] == 3
    assert found.notes["duplicate_tokens_saved"] > 0


def test_the_tokens_of_copies_are_what_reading_each_would_take(folder):
    candidates = with_copies(ranking(5), {"z1": "d3", "a2": "d1"})
    once, each = read(folder, candidates), read(folder, candidates, duplicates="each")
    assert "duplicates" not in each.notes
    saved = each.notes["prompt_tokens"] - once.notes["prompt_tokens"]
    assert once.notes["duplicate_tokens_saved"] == pytest.approx(saved, abs=2)  # of numbers in labels
    assert read(folder, candidates, icr, "all") == read(
        folder, candidates, icr, "all", duplicates="each"
    )  # as published


def test_another_title_is_another_passage(folder):
    candidates = (Candidate("a", 2.0, "birds", "x"), Candidate("b", 1.0, "birds", "y"), Candidate("c", 0.0, "birds"))
    assert "duplicates" not in read(folder, Ranking(Query("q", "fly"), candidates)).notes


# ---------------------------------------------------------------------------------------------------------- telling


def test_another_strategy_is_refused(folder):
    with pytest.raises(ValueError, match="long_lists 'sliding': expected one of auto, whole, windows, refine"):
        read(folder, ranking(2), options={"long_lists": "sliding"})


def test_the_command_says_how_lists_were_read(folder, tmp_path):
    lists = [ranking(30, qid="a"), ranking(3, qid="b")]
    lines = [
        {
            "query": {"qid": one.query.qid, "text": one.query.text},
            "candidates": [{"docid": c.docid, "score": c.score, "doc": {"text": c.text}} for c in one.candidates],
        }
        for one in lists
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    HEADS.save(tmp_path / "heads.json")
    told = CliRunner().invoke(
        main,
        [
            "rerank", "--candidates", str(tmp_path / "c.jsonl"), "--output", str(tmp_path / "run"), "--device", "cpu",
            "--model", str(folder), "--heads", str(tmp_path / "heads.json"),
            "--option", "max_prompt_tokens=1200", "--option", "long_lists=windows",
        ],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    assert "lists: 1 read whole, 1 in " in told.output
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["identity"]["reranker"]["long_lists"] == "windows"
    assert manifest["totals"]["notes"]["lists_windowed"] == 1
    assert manifest["totals"]["notes"]["windows"] > 1


def test_duplicates_are_told():
    told = summary({"duplicates": 3, "duplicate_tokens_saved": 120}, 2)
    assert told == "lists: 3 duplicate passages not read again, 120 tokens saved"


def test_nothing_is_told_of_lists_that_went_into_one_prompt():
    assert summary({"prompt_tokens": 9}, 3) is None
