"""What a reranker does about the place of a passage in the prompt, and how heads are put together."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from graded_lists import overlap_lists
from tiny_models import tiny_model

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model import load
from headrank_pipeline.attention.places import Places, relative_places
from headrank_pipeline.attention.reader import SHORTCUTS, AttentionReader
from headrank_pipeline.attention.recipe import CORE, HEADRANK, ICR, QRHEAD, QRRANKER, ScoringRule
from headrank_pipeline.attention.scoring import combined, passage_mass
from headrank_pipeline.cli import main
from headrank_pipeline.learn.export import export
from headrank_pipeline.learn.head_table import measure_heads
from headrank_pipeline.learn.lists import GradedList, arranged, save_lists
from headrank_pipeline.learn.place_curves import PlaceSums
from headrank_pipeline.learn.scorer import ListScorer
from headrank_pipeline.learn.selection import criterion_scores, select_heads
from headrank_pipeline.learn.settings import SelectionConfig
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.attention_reranker import AttentionReranker
from headrank_pipeline.rerank.interpolation import interpolated
from headrank_pipeline.rerank.systems import headrank, icr

U = Places(
    points=(0.0, 0.5, 1.0),
    curve=(2.0, 0.5, 1.5),
    heads=((3.0, 0.5, 1.0), (1.0, 0.5, 2.0)),
    error=(0.1, 0.1, 0.1),
    support="passages",
    lists=5,
    passages=12.0,
)
HEADS = HeadSet("some", ((1, 0), (2, 3)), weights=(1.0, 3.0), places=U)
RECIPES = {recipe.name: recipe for recipe in (HEADRANK, ICR, QRHEAD, CORE, QRRANKER)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def loaded(folder):
    return load(folder, HEADS, device="cpu")


def reranker_of(loaded, recipe=HEADRANK, *, slow=False, heads=HEADS, tokens=100_000, **options):
    without = SHORTCUTS if slow else ()
    reader = AttentionReader(replace(loaded, heads=heads), without=without, batch_tokens=tokens)
    return AttentionReranker(reader, recipe.varied(options))


def ranking(count, qid="q1", query="do birds fly?"):
    texts = [f"{word} birds swim {'far ' * (n % 4)}in {n} seas." for n, word in enumerate("abcdefghij"[:count])]
    candidates = (Candidate(f"d{n}", -float(n), text) for n, text in enumerate([*texts, "", "x"][-count:]))
    return Ranking(Query(qid, query), tuple(candidates))


def by_docid(ranking):
    return {candidate.docid: candidate.score for candidate in ranking.candidates}


# ------------------------------------------------------------------------------------------------- heads put together


def test_heads_are_standardised_within_the_list_by_hand():
    mass = torch.tensor([[0.1, 0.2, 0.3], [0.6, 0.2, 0.2], [0.4, 0.4, 0.4]], dtype=torch.float64)
    rows = [(row - row.mean()) / row.std() for row in mass[:2].numpy()]
    rule = ScoringRule(normalise="zscore")
    assert combined(mass, rule, [1.0, 2.0, 1.0]).tolist() == pytest.approx(((rows[0] + 2 * rows[1]) / 4).tolist())
    assert combined(mass, replace(rule, heads="sum")).tolist() == pytest.approx((rows[0] + rows[1]).tolist())
    assert combined(mass[:, :1], rule).tolist() == [0.0]
    assert combined(mass[:, :0], rule).tolist() == []
    level = torch.full((1, 3), 0.1)  # as equal as floats are
    level[0, 1] = torch.nextafter(level[0, 1], torch.tensor(1.0))
    assert combined(level, rule).tolist() == [0.0, 0.0, 0.0]


def test_logarithms_make_a_geometric_mean_that_sums_to_one():
    mass = torch.tensor([[0.1, 0.2, 0.1], [1.2, 0.3, 0.0]], dtype=torch.float64)
    shares = np.array([[0.25, 0.5, 0.25], [0.8, 0.2, 1e-6]])
    expected = np.exp(np.log(shares).T @ [0.25, 0.75])
    for heads in ("mean", "sum"):
        found = combined(mass, ScoringRule(normalise="log", heads=heads), [1.0, 3.0])
        assert found.tolist() == pytest.approx((expected / expected.sum()).tolist())
    nothing = torch.zeros((2, 3), dtype=torch.float64)
    assert combined(nothing, ScoringRule(normalise="log")).tolist() == pytest.approx([1 / 3] * 3)


def test_temperature_sharpens_each_head():
    mass = torch.tensor([[0.1, 0.2, 0.1], [0.3, 0.3, 0.9]], dtype=torch.float64)
    squares = (mass**2 / (mass**2).sum(1, keepdim=True)).mean(0)
    assert combined(mass, ScoringRule(temperature=0.5)).tolist() == pytest.approx(squares.tolist())
    flat = combined(mass, ScoringRule(temperature=1e6))
    assert flat.tolist() == pytest.approx([1 / 3] * 3, abs=1e-5)


def test_shares_of_places_divide_the_score_or_each_head():
    mass = torch.tensor([[0.2, 0.8], [0.6, 0.4]], dtype=torch.float64)
    divisor = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    rule = ScoringRule(place_profile="heads", heads="sum")
    assert combined(mass, rule, shares=divisor).tolist() == pytest.approx([0.1 + 1.2, 1.6 + 0.4])
    rule = ScoringRule(place_profile="set", heads="sum")
    assert combined(mass, rule, shares=divisor[0]).tolist() == pytest.approx([0.4, 2.4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature 0.0: expected a number above 0"),
        ({"temperature": math.nan}, "temperature nan: expected a number above 0"),
        ({"content_free": "N/A", "temperature": 0.5}, "temperature: not with a content-free query"),
        ({"content_free": "N/A", "normalise": "log"}, "normalise 'log': not with a content-free query"),
        ({"content_free": "N/A", "place_profile": "set"}, "place_profile: not with a content-free query"),
        ({"place_profile": "set", "normalise": "zscore"}, "place_profile 'set': the set's curve is that of its plain"),
        ({"place_profile": "set", "temperature": 0.5}, "place_profile 'set': .*; with normalise or temperature divide"),
        ({"normalise": "softmax"}, "normalise: Input should be 'mass', 'zscore' or 'log'"),
        ({"place_profile": True}, "place_profile: Input should be 'set' or 'heads'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=f"headrank option {message}"):
        HEADRANK.varied(options)


# ----------------------------------------------------------------------------------------------------------- reranking

CAUSAL = [
    {"shuffle_seed": 3},
    {"both_orders": True},
    {"both_orders": True, "shuffle_seed": 3, "content_free": "N/A"},
    {"place_profile": "set"},
    {"place_profile": "set", "reverse": True, "length_exponent": 0.5},
    {"place_profile": "heads", "shuffle_seed": 3},
    {"place_profile": "heads", "normalise": "log", "both_orders": True},
    {"place_profile": "heads", "normalise": "zscore"},
]
ANYWHERE = [
    {"normalise": "zscore"},
    {"normalise": "zscore", "content_free": "N/A", "filter_deviations": 2.0},
    {"normalise": "log", "filter_deviations": 2.0},
    {"temperature": 0.5},
    {"temperature": 0.5, "normalise": "zscore", "shuffle_seed": 1},
]
ISOLATED = [{**options, "passages": "isolated"} for options in ANYWHERE]


def expected_scores(loaded, options, given):
    """Mass per head of each order from the slow path, alone, and everything else by hand."""
    reranker = reranker_of(loaded, slow=True, **{k: v for k, v in options.items() if k not in OURS})
    rule, both = replace(reranker.recipe.rule), options.get("both_orders")
    found = []
    for turned in (False, True) if both else (False,):
        prompt = reranker.builder.build(given, turned=turned)
        if rule.content_free is None:
            (read,) = reranker.reader.read([prompt], support=rule.support)
        else:
            blank = reranker.builder.with_query(prompt, rule.content_free)
            ((read, free),) = reranker.reader.read_calibrated([(prompt, blank)], support=rule.support)
            end = min(read.shape[1], free.shape[1])
            read = read[:, :end] - free[:, :end]
        mass = passage_mass(read.double(), prompt.passages, rule).numpy()
        starts = [prompt.text.index(c.text) if c.text else math.inf for c in given.candidates]
        order = list(range(len(given))) if "shuffle_seed" not in options else None
        places = prompt.places if order is None else np.array(order if not options.get("reverse") else order[::-1])
        places = places if order is None or not turned else places[::-1]
        filled = [i for i, start in enumerate(starts) if start < math.inf]
        assert sorted(filled, key=lambda i: starts[i]) == sorted(filled, key=lambda i: places[i])
        found.append(_put_together(mass, places, options))
    return np.mean(found, axis=0)


OURS = {"normalise", "temperature", "place_profile", "both_orders"}


def _put_together(mass, places, options):
    count = mass.shape[1]
    relative = places / max(1, count - 1)

    def curve(values):
        whole = np.interp(np.linspace(0, 1, count), U.points, values)
        return np.interp(relative, U.points, values) / whole.mean()

    def logs():
        return np.log(np.maximum(mass / mass.sum(1, keepdims=True), 1e-6))

    weights = np.array([0.25, 0.75])
    if options.get("place_profile") == "heads":
        mass = mass / np.stack([curve(values) for values in U.heads])
    if "temperature" in options:
        mass = np.exp(logs() / options["temperature"])
        mass = mass / mass.sum(1, keepdims=True)
    if options.get("normalise") == "log":
        scores = np.exp(weights @ logs())
        return scores / scores.sum()
    if options.get("normalise") == "zscore":
        mass = (mass - mass.mean(1, keepdims=True)) / mass.std(1, keepdims=True)
    scores = weights @ mass
    return scores / curve(U.curve) if options.get("place_profile") == "set" else scores


@pytest.mark.parametrize("options", [*CAUSAL, *ANYWHERE, *ISOLATED], ids=lambda options: "-".join(map(str, options)))
def test_every_option_fast_or_slow_batched_or_alone(loaded, options):
    given = [ranking(3), ranking(7, "q2", "which fish swim in seas?"), ranking(5, "q3"), ranking(2, "q4")]
    expected = [expected_scores(loaded, options, one) for one in given]
    for slow in (False, True):
        for tokens in (1, 100_000):
            reranker = reranker_of(loaded, slow=slow, tokens=tokens, **options)
            for one, scores, found in zip(given, expected, reranker.rerank_batch(given), strict=True):
                assert sorted(found.docids) == sorted(one.docids)
                values = [by_docid(found)[docid] for docid in one.docids]
                assert values == pytest.approx(scores.tolist(), rel=2e-3, abs=2e-5)
                orders, calibrated = 1 + options.get("both_orders", False), "content_free" in options
                assert found.notes["forward_passes"] == orders * (2 if calibrated or "passages" in options else 1)


@pytest.mark.parametrize("options", [*CAUSAL, *ANYWHERE, *ISOLATED], ids=lambda options: "-".join(map(str, options)))
def test_lists_are_scored_as_rankings_are(loaded, options):
    reranker = reranker_of(loaded, **options)
    scorer = ListScorer(reranker.reader, HEADRANK.varied(options))
    for count in (7, 1):
        given = ranking(count)
        (scores,) = scorer.scores([GradedList(given, tuple(range(count)))])
        found = by_docid(reranker.rerank(given))
        assert scores.tolist() == pytest.approx([found[docid] for docid in given.docids], rel=2e-3, abs=2e-5)


def test_both_orders_are_the_mean_of_both_and_cost_two(loaded):
    given = [ranking(6), ranking(4, "q2")]
    there, back = (reranker_of(loaded, reverse=turned).rerank_batch(given) for turned in (False, True))
    both = reranker_of(loaded, both_orders=True).rerank_batch(given)
    turned_too = reranker_of(loaded, both_orders=True, reverse=True).rerank_batch(given)
    for one, other, mean, same in zip(there, back, both, turned_too, strict=True):
        expected = {docid: (score + by_docid(other)[docid]) / 2 for docid, score in by_docid(one).items()}
        assert by_docid(mean) == pytest.approx(expected, abs=1e-6)
        assert by_docid(same) == pytest.approx(expected, abs=1e-6)
        assert mean.notes["prompt_tokens"] == one.notes["prompt_tokens"] + other.notes["prompt_tokens"]
        assert mean.notes["passages_cut"] == one.notes["passages_cut"]


def test_a_query_that_fails_in_a_batch_of_both_orders_fails_alone(loaded):
    bad = Ranking(Query("q2", "x"), (Candidate("d0", 1.0), Candidate("d1", 0.5, "text")))
    given = [ranking(3), bad, ranking(6, "q3")]
    reranker = reranker_of(loaded, both_orders=True)
    first, failure, last = reranker.attempt_batch(given)
    assert "d0" in str(failure.error)
    assert by_docid(first) == pytest.approx(by_docid(reranker.rerank(given[0])), abs=1e-6)
    assert by_docid(last) == pytest.approx(by_docid(reranker.rerank(given[2])), abs=1e-6)


def test_a_shuffled_prompt_makes_scores_that_no_order_of_candidates_changes(loaded):
    reranker, given = reranker_of(loaded, shuffle_seed=5), ranking(7)
    places = (3, 1, 6, 0, 5, 2, 4)
    other = tuple(replace(given.candidates[at], score=-float(n)) for n, at in enumerate(places))
    assert by_docid(reranker.rerank(replace(given, candidates=other))) == by_docid(reranker.rerank(given))
    assert by_docid(reranker_of(loaded, shuffle_seed=6).rerank(given)) != by_docid(reranker.rerank(given))


def test_places_that_there_are_not_are_refused(loaded, folder, tmp_path):
    plain = replace(HEADS, places=None)
    for profile in ("set", "heads"):
        with pytest.raises(ValueError, match="place_profile: head set 'some' carries no place curve; headrank select"):
            headrank(folder, plain, options={"place_profile": profile}, device="cpu")
    for options in ({"both_orders": True}, {"place_profile": "set"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: isolated passages have no place"):
            reranker_of(loaded, passages="isolated", **options)
    with pytest.raises(ValueError, match="that of a softmax over passages, the rule's runs over all"):
        icr(folder, HEADS, options={"place_profile": "set", "content_free": None}, device="cpu")
    scorer = ListScorer(reranker_of(loaded, heads=plain).reader, HEADRANK.varied({"place_profile": "set"}))
    for use in (lambda: scorer.scores([GradedList(ranking(2), (0, 1))]), lambda: scorer.forward([])):
        with pytest.raises(ValueError, match="carries no place curve"):
            use()
    with pytest.raises(ValueError, match=r"standardises heads.*train with normalise 'mass' or 'log'"):
        ListScorer(scorer.reader, HEADRANK.varied({"normalise": "zscore"})).forward([])


def test_logarithms_of_scores_work_or_are_refused(loaded):
    given = ranking(5)
    found = interpolated(reranker_of(loaded, normalise="log"), 0.5, logs=True).rerank(given)
    assert sorted(found.docids) == sorted(given.docids)
    with pytest.raises(ValueError, match="interpolation of logarithms: expected scores of at least 0, got -"):
        interpolated(reranker_of(loaded, normalise="zscore"), 0.5, logs=True).rerank(given)
    assert interpolated(reranker_of(loaded, normalise="zscore"), 0.5).rerank(given)


def test_gradients_reach_every_normalisation_that_is_trained(folder):
    loaded = load(folder, HEADS, device="cpu")
    for options in ({"normalise": "log"}, {"temperature": 0.5}, {"place_profile": "heads"}, {"place_profile": "set"}):
        loaded.model.requires_grad_(True).zero_grad()
        scorer = ListScorer(AttentionReader(loaded), HEADRANK.varied(options))
        (prompt,) = scorer.prompts([GradedList(ranking(4), (0, 1, 0, 2))])
        (scores,) = scorer.forward([prompt])
        scores[0].backward()
        gradient = loaded.model.layers[1].self_attn.q_proj.weight.grad
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
        (again,) = scorer.scores([GradedList(ranking(4), (0, 1, 0, 2))])
        assert scores.tolist() == pytest.approx(again.tolist(), rel=1e-4)


# ----------------------------------------------------------------------------------------------------------- head sets


def test_curves_follow_the_length_of_the_list_and_have_mean_one():
    assert U.ratio == 4.0
    assert U.at(3).tolist() == pytest.approx([1.5, 0.375, 1.125])
    assert U.at(5).tolist() == pytest.approx((np.array([2, 1.25, 0.5, 1, 1.5]) / 1.25).tolist())
    assert U.at(1).tolist() == [1.0]
    assert U.heads_at(20).shape == (2, 20) and U.heads_at(20).mean(1).tolist() == pytest.approx([1.0, 1.0])


def test_a_head_set_keeps_its_curves(tmp_path):
    HEADS.save(tmp_path / "heads.json")
    assert HeadSet.load(tmp_path / "heads.json") == HEADS
    assert HeadSet(**HEADS.describe()) == HEADS
    plain = replace(HEADS, places=None)
    assert "places" not in plain.describe()
    assert HEADS.digest() == plain.digest() != HEADS.digest(places=True)
    other = replace(HEADS, places=replace(U, curve=(2.0, 0.6, 1.5)))
    assert other.digest() == HEADS.digest() and other.digest(places=True) != HEADS.digest(places=True)
    assert plain.digest(places=True) == plain.digest()


def test_a_description_names_curves_only_where_they_decide(loaded):
    plain, divided = (reranker_of(loaded, **options).describe() for options in ({}, {"place_profile": "set"}))
    assert "places_sha256" not in plain["heads"]
    assert divided["heads"] == {**plain["heads"], "places_sha256": HEADS.digest(places=True)}
    assert plain["rule"].keys() == {"support", "heads", "content_free", "filter_deviations", "length_exponent"}
    assert "shuffle_seed" not in plain["template"]
    assert divided["rule"]["place_profile"] == "set"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": [0.0, 1.0]}, "places: curve has 3 values for 2 points"),
        ({"points": [0.0, 0.6, 0.5]}, "points .*: expected relative places that rise from 0 to 1"),
        ({"points": [0.1, 0.5, 1.0]}, "expected relative places that rise from 0 to 1"),
        ({"curve": [1.0, 0.0, 1.0]}, "places: curve: expected shares above 0, got 0.0"),
        ({"curve": [1.0, math.nan, 1.0]}, "places: curve: expected finite numbers"),
        ({"curve": "abc"}, "places: curve: expected finite numbers, got 'abc'"),
        ({"heads": [[1.0, 1.0, 1.0]]}, r"places holds 1 curves for 2 heads"),
        ({"heads": [[1.0, 1.0, 1.0], [1.0, 1.0]]}, r"places: heads\[1\] has 2 values for 3 points"),
        ({"heads": 3}, "places: heads 3: expected a curve for each head"),
        ({"support": "rows"}, "places: support 'rows': expected all, passages, passages-geometric"),
        ({"shape": "U"}, "places: expected the keys"),
    ],
)
def test_malformed_curves_are_refused_with_their_file(tmp_path, change, message):
    record = HEADS.describe()
    record["places"] = {**record["places"], **change}
    (tmp_path / "heads.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message) as caught:
        HeadSet.load(tmp_path / "heads.json")
    assert str(tmp_path / "heads.json") in str(caught.value)


def test_a_trained_folder_brings_its_curves_and_rule(folder, loaded, tmp_path):
    trained = tmp_path / "trained"
    shutil.copytree(folder, trained)
    HEADS.save(trained / "heads.json")
    recipe = HEADRANK.varied({"place_profile": "heads", "normalise": "log", "shuffle_seed": 2})
    template = recipe.template.describe()
    template.pop("chat")
    (trained / "recipe.json").write_text(json.dumps({"template": template, "rule": recipe.rule.describe()}))
    found = headrank(trained, device="cpu").rerank(ranking(6))
    expected = reranker_of(loaded, place_profile="heads", normalise="log", shuffle_seed=2).rerank(ranking(6))
    assert by_docid(found) == pytest.approx(by_docid(expected), rel=1e-5)


# ------------------------------------------------------------------------------------------------------------ measuring


def shape(places, kind):
    if kind == "flat":
        return np.ones_like(places)
    curve = 0.5 + places if kind == "line" else 0.6 + 1.6 * np.exp(-places / 0.06) + np.exp((places - 1) / 0.1)
    return curve / curve.mean()


def drawn(kind, lists, lengths, heads=20, seed=0):
    """Curves of heads that pick few passages, times a shape, and what no noise would leave at the last length."""
    chance, sums, whole = np.random.default_rng(seed), PlaceSums(heads), []
    for number in range(lists):
        length = lengths[number % len(lengths)]
        order = chance.permutation(length)
        mass = chance.gamma(0.5, 1.0, (heads, length)) * shape(relative_places(length)[order], kind)
        sums.add(mass, order)
        if length == lengths[-1]:
            shares = np.empty_like(mass)
            shares[:, order] = mass / mass.sum(1, keepdims=True) * length
            whole.append(shares)
    return sums.table("all"), np.mean(whole, axis=0)


@pytest.mark.parametrize(("kind", "ratio"), [("flat", 1.0), ("line", 2.7), ("U", 3.1)])
def test_fitted_curves_are_nearer_the_truth_than_means_of_places(kind, ratio):
    table, means = drawn(kind, 75, [20])
    truth = drawn(kind, 4000, [20], heads=1)[1]
    at = relative_places(20)
    fitted = np.stack([np.interp(at, table.points, curve) for curve in table.curves])
    wrong, wrong_means = (np.sqrt(((found - truth) ** 2).mean()) for found in (fitted, means))
    assert wrong < (0.9 if kind == "U" else 0.6) * wrong_means
    assert np.median(table.flatness) == pytest.approx(ratio, rel=0.15)
    assert np.median(means.max(1) / means.min(1)) > 1.2 * ratio  # noise alone makes places differ
    assert wrong / 2 < table.errors.mean() < 2 * wrong
    assert table.errors[0].tolist() != table.errors[1].tolist()


def test_lists_of_other_lengths_are_put_on_one_curve():
    table, _ = drawn("line", 600, [5, 30, 12])
    middle = np.median(table.curves, axis=0)
    assert np.diff(middle).min() > 0 and middle[10] == pytest.approx(1.0, abs=0.1)
    assert (table.lists, table.passages, table.support) == (600, 47 / 3, "all")
    short, _ = drawn("line", 30, [2])  # no more than two places are ever seen
    assert np.isfinite(short.curves).all() and np.isfinite(short.errors).all()


def test_a_sums_curve_weighs_heads_by_their_attention():
    table, _ = drawn("line", 50, [8], heads=3)
    table = replace(table, mass=np.array([1.0, 3.0, 0.0]))
    places = table.of([1, 0], [1.0, 2.0])
    assert places.curve == pytest.approx((3 * table.curves[1] + 2 * table.curves[0]) / 5, abs=1e-6)
    assert places.heads[0] == pytest.approx(table.curves[1], abs=1e-6)
    assert places.error == pytest.approx((3 * table.errors[1] + 2 * table.errors[0]) / 5, abs=1e-6)
    assert table.of([2]).curve == pytest.approx(table.curves[2], abs=1e-6)


@pytest.fixture(scope="module")
def everything(folder):
    return load(folder, "all", device="cpu")


def test_the_curve_of_a_set_is_that_of_its_scores(everything):
    """What a reranker of the chosen heads gives passages by their place, over the same lists in the same orders."""
    lists, config = overlap_lists(30, passages=8), SelectionConfig("ndcg", num_heads=3)
    chosen = select_heads(everything, HEADRANK, lists, config).heads
    scorer = ListScorer(AttentionReader(replace(everything, heads=chosen)), HEADRANK)
    shares = np.zeros(8)
    for graded in lists:
        part = arranged(graded, None, "random", seed=0)
        (scores,) = scorer.scores([part])
        shares += scores.numpy() / float(scores.sum()) * 8 / 30
    assert chosen.places.support == "passages" and (chosen.places.lists, chosen.places.passages) == (30, 8.0)
    wrong = np.abs(np.interp(relative_places(8), chosen.places.points, chosen.places.curve) - shares)
    assert (wrong <= 3 * np.interp(relative_places(8), chosen.places.points, chosen.places.error)).all()
    assert np.corrcoef(chosen.places.at(8), shares)[0, 1] > 0.8
    divided = HEADRANK.varied({"place_profile": "set"})
    flat = np.mean([s.numpy() / float(s.sum()) for s in ListScorer(scorer.reader, divided).scores(
        [arranged(graded, None, "random", seed=0) for graded in lists])], axis=0) * 8  # fmt: skip
    assert flat.max() / flat.min() < shares.max() / shares.min()


def test_places_are_those_in_the_prompt_whatever_order_candidates_have(everything):
    reader, lists = AttentionReader(everything), overlap_lists(15, passages=8)
    there, back = (
        measure_heads(ListScorer(reader, HEADRANK.varied({"reverse": turned})), lists).places.curves - 1
        for turned in (False, True)
    )
    alike, mirrored = ((there * other).sum() for other in (back, back[:, ::-1]))
    assert alike > 2 * abs(mirrored)


def test_places_are_measured_where_there_are_some(everything):
    lists, isolated = overlap_lists(3), HEADRANK.varied({"passages": "isolated"})
    for reading, config in (
        (isolated, SelectionConfig("ndcg", num_heads=2)),
        (ICR, SelectionConfig("ndcg", num_heads=2)),
        (HEADRANK, SelectionConfig("ndcg", num_heads=2, order="given")),
    ):
        found = select_heads(everything, reading, lists, config)
        assert found.heads.places is None and np.isnan(found.table.values["flatness"]).all()
    for reading in (isolated, ICR):
        with pytest.raises(ValueError, match="flatness_weight: how attention goes by place was not measured"):
            select_heads(everything, reading, lists, SelectionConfig("ndcg", num_heads=2, flatness_weight=1.0))
    with pytest.raises(ValueError, match="flatness_weight: with order 'given' a place holds what is relevant"):
        SelectionConfig(flatness_weight=1.0, order="given")
    with pytest.raises(ValueError, match="flatness_weight: a layer window takes all heads"):
        SelectionConfig("layer-window", flatness_weight=1.0)
    with pytest.raises(ValueError, match="flatness_weight -1: expected a number from 0"):
        SelectionConfig(flatness_weight=-1)


def test_heads_that_go_less_by_place_are_preferred_by_weight(everything):
    lists = overlap_lists(12, passages=8)
    table = measure_heads(ListScorer(AttentionReader(everything), HEADRANK), lists)
    logs = np.log(table.values["flatness"])
    z = {name: (v - v.mean()) / v.std() for name, v in (("flat", logs), ("ndcg", table.values["ndcg"]))}
    assert criterion_scores(table, "ndcg", flatness_weight=0.7).tolist() == pytest.approx(
        (z["ndcg"] - 0.7 * z["flat"]).tolist()
    )
    assert criterion_scores(table, "ndcg").tolist() == table.values["ndcg"].tolist()
    weighted = select_heads(everything, HEADRANK, lists, SelectionConfig("ndcg", num_heads=3, flatness_weight=50.0))
    flattest = sorted(range(16), key=lambda i: logs[i])[:3]
    assert set(weighted.heads.heads) == {table.heads[i] for i in flattest}
    assert weighted.heads.selection["flatness_weight"] == 50.0
    assert "layer-window" in weighted.candidates


def test_the_command_measures_tells_and_keeps_places(folder, tmp_path):
    save_lists(tmp_path / "lists.jsonl", overlap_lists(6))
    arguments = [
        "select-heads",
        "--model",
        folder,
        "--lists",
        tmp_path / "lists.jsonl",
        "--num-heads",
        2,
        "--no-figure",
    ]
    arguments += ["--output", tmp_path / "heads.json", "--device", "cpu", "--flatness-weight", 0.5]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    heads = HeadSet.load(tmp_path / "heads.json")
    assert f"the largest mean share of attention is {heads.places.ratio:.2f} times the smallest" in result.output
    assert heads.selection["flatness_weight"] == 0.5
    header, *rows = (tmp_path / "heads.tsv").read_text().splitlines()
    column = header.split("\t").index("flatness")
    assert len(rows) == 16 and all(float(row.split("\t")[column]) >= 1 for row in rows)
    found = headrank(folder, tmp_path / "heads.json", options={"place_profile": "set"}, device="cpu").rerank(ranking(5))
    assert len(set(found.docids)) == 5


def test_an_exported_model_keeps_curves_only_where_its_rule_divides_by_them(loaded, tmp_path):
    for options, kept in (({}, None), ({"place_profile": "heads"}, U)):
        export(loaded, reranker_of(loaded, **options).recipe, tmp_path / "model")
        assert HeadSet.load(tmp_path / "model" / "heads.json").places == kept
        assert headrank(tmp_path / "model", device="cpu").recipe.rule.place_profile == options.get("place_profile")
