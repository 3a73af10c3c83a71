"""Head measures by hand, criteria and ties, and one pass that finds the heads which match tokens."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from graded_lists import overlap_lists
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model import load
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.recipe import HEADRANK, ICR
from headrank_pipeline.attention.scoring import passage_mass, pool_tokens, token_scores
from headrank_pipeline.experiment.evaluate import evaluate
from headrank_pipeline.learn.head_table import HeadTable, measure_heads
from headrank_pipeline.learn.lists import GradedList
from headrank_pipeline.learn.measures import contrastive_score, discrimination, normalised_entropy, qr_score
from headrank_pipeline.learn.scorer import ListScorer, ndcg
from headrank_pipeline.learn.selection import choose_heads, criterion_scores, select_heads, truncation_cost
from headrank_pipeline.learn.settings import SelectionConfig
from headrank_pipeline.records import Candidate, Query, Ranking

GRADES = torch.tensor([2, 0, 1, 0])
SCORES = torch.tensor(
    [
        [0.4, 0.1, 0.3, 0.2],  # in the order of the grades
        [0.1, 0.4, 0.2, 0.3],  # backwards
        [0.25, 0.25, 0.25, 0.25],  # constant
        [0.0, 0.0, 1.0, 0.0],
    ]
)


# -------------------------------------------------------------------------------------------------- one head, one list


def test_discrimination_by_hand():
    # five pairs: (0,1) (0,2) (0,3) (2,1) (2,3); the last head wins two, loses one, ties two
    assert discrimination(SCORES, GRADES).tolist() == pytest.approx([1.0, 0.0, 0.5, 0.6])


def test_discrimination_of_two_grades_is_the_area_under_the_curve():
    scores, grades = torch.rand(3, 40, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1] * 20)
    wins = [
        sum(float(row[i] > row[j]) for i in range(40) for j in range(40) if grades[i] > grades[j]) / 400
        for row in scores
    ]
    assert discrimination(scores, grades).tolist() == pytest.approx(wins)


def test_entropy_by_hand():
    expected = -sum(p * math.log(p) for p in (0.4, 0.1, 0.3, 0.2)) / math.log(4)
    assert normalised_entropy(SCORES).tolist() == pytest.approx([expected, expected, 1.0, 0.0])
    assert normalised_entropy(SCORES[:1] * 7.0).tolist() == pytest.approx([expected])  # whatever the scale
    below_zero = torch.tensor([[0.5, -0.5, 0.5]])  # calibrated attention may be: it counts as none
    assert normalised_entropy(below_zero).tolist() == pytest.approx([math.log(2) / math.log(3)])


def test_entropy_of_one_passage_is_finite():
    assert normalised_entropy(torch.tensor([[0.3]])).tolist() == [0.0]


def test_qr_score_by_hand():
    assert qr_score(SCORES, GRADES).tolist() == pytest.approx([0.7, 0.3, 0.5, 1.0])
    assert qr_score(SCORES, GRADES, relevance_level=2).tolist() == pytest.approx([0.4, 0.1, 0.25, 0.0])


def test_contrastive_score_by_hand():
    def softmax_at(positive, negatives, temperature):
        e = [math.exp(x / temperature) for x in (positive, *negatives)]
        return e[0] / sum(e)

    one_positive = contrastive_score(SCORES[:1], GRADES, temperature=0.1, relevance_level=2)
    assert float(one_positive) == pytest.approx(softmax_at(0.4, (0.1, 0.3, 0.2), 0.1), rel=1e-6)
    two = (softmax_at(0.4, (0.1, 0.2), 0.1) + softmax_at(0.3, (0.1, 0.2), 0.1)) / 2
    assert float(contrastive_score(SCORES[:1], GRADES, temperature=0.1)) == pytest.approx(two, rel=1e-6)
    assert contrastive_score(SCORES[:2], GRADES, temperature=0.001).tolist() == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("grades", [[0, 0], [1, 1]])
def test_measures_of_lists_that_order_nothing_are_refused(grades):
    with pytest.raises(ValueError, match="all grades are equal"):
        discrimination(torch.rand(2, 2), torch.tensor(grades))
    with pytest.raises(ValueError, match="both sides of grade 1"):
        contrastive_score(torch.rand(2, 2), torch.tensor(grades))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1, width=32)), min_size=1, max_size=15, unique_by=lambda x: x[1])
)
def test_ndcg_equals_trec_eval(pairs):
    grades = {f"d{i}": grade for i, (grade, _) in enumerate(pairs)}
    run = {f"d{i}": score for i, (_, score) in enumerate(pairs)}
    found = ndcg(torch.tensor([list(run.values())]), torch.tensor(list(grades.values())))
    assert float(found) == pytest.approx(evaluate({"q": run}, {"q": grades}, ["nDCG@10"]).means["nDCG@10"], abs=1e-9)


def test_ties_count_against_the_head():
    assert float(ndcg(torch.ones(1, 3), torch.tensor([1, 0, 0]))) == pytest.approx(1 / math.log2(4))


# ---------------------------------------------------------------------------------------------------------- choosing


def table(disc, ent, *, layers=4, per_layer=2, constant=None, **counts):
    heads = tuple((layer, head) for layer in range(layers) for head in range(per_layer))
    values = {name: np.array(disc, dtype=float) for name in ("discrimination", "ndcg", "qrscore", "core")}
    return HeadTable(
        heads=heads,
        layers=layers,
        values=values | {"entropy": np.array(ent, dtype=float)},
        layer_ndcg=np.array([0.1, 0.5, 0.5, 0.1])[:layers],
        constant=np.array(constant or [0] * len(heads)),
        counts={"used": 10, "prompt_tokens": 100, **counts},
    )


def test_entropy_regularised_scores_by_hand():
    made = table([0.5, 0.7, 0.9, 0.7], [0.2, 0.4, 0.6, 0.8], layers=2)
    disc, ent = np.array([-1.0, 0, 1, 0]) / math.sqrt(0.5), np.array([-3.0, -1, 1, 3]) / math.sqrt(5)
    assert criterion_scores(made, "entropy-regularised", entropy_weight=0.25) == pytest.approx(disc - 0.25 * ent)
    assert criterion_scores(made, "discrimination") == pytest.approx([0.5, 0.7, 0.9, 0.7])


def test_lambda_moves_the_choice_towards_concentrated_heads():
    made = table([0.8, 0.79, 0.5, 0.5], [0.9, 0.1, 0.5, 0.5], layers=2)
    chosen = [choose_heads(made, SelectionConfig(num_heads=1, entropy_weight=weight)).heads for weight in (0.0, 0.25)]
    assert chosen == [((0, 0),), ((0, 1),)]


def test_ties_go_to_the_lower_layer_then_the_lower_head():
    made = table([0.5] * 8, [0.3] * 8)
    assert choose_heads(made, SelectionConfig(num_heads=3)).heads == ((0, 0), (0, 1), (1, 0))


def test_depth_cap_keeps_to_the_lower_layers():
    made = table([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], [0.5] * 8)
    assert choose_heads(made, SelectionConfig(num_heads=2)).heads == ((3, 1), (3, 0))
    capped = choose_heads(made, SelectionConfig(num_heads=2, depth_cap=0.7))
    assert capped.heads == ((1, 1), (1, 0))
    assert capped.selection["depth_cap"] == 0.7
    with pytest.raises(ValueError, match="4 usable heads within 2 layers, 5 wanted"):
        choose_heads(made, SelectionConfig(num_heads=5, depth_cap=0.7))


def test_constant_heads_are_never_chosen_and_do_not_shift_the_others():
    best_is_constant = table([0.99, 0.7, 0.6, 0.5], [0.9, 0.5, 0.5, 0.5], layers=2, constant=[10, 0, 0, 9])
    scores = criterion_scores(best_is_constant, "entropy-regularised")
    assert scores[0] == -np.inf
    assert scores[2] == pytest.approx(0.0)  # the middle one of the three that count
    chosen = choose_heads(best_is_constant, SelectionConfig(num_heads=3))
    assert chosen.heads == ((0, 1), (1, 0), (1, 1))
    assert chosen.selection["constant_heads"] == 1
    with pytest.raises(ValueError, match="1 heads are constant on every list"):
        choose_heads(best_is_constant, SelectionConfig(num_heads=4))


def test_layer_window_takes_whole_neighbouring_layers():
    made = table([0.5] * 8, [0.5] * 8)
    window = choose_heads(made, SelectionConfig(criterion="layer-window", window=2))
    assert window.heads == ((1, 0), (1, 1), (2, 0), (2, 1))
    lower = choose_heads(made, SelectionConfig(criterion="layer-window", window=1))  # layers 1 and 2 are equal
    assert lower.heads == ((1, 0), (1, 1))
    with pytest.raises(ValueError, match="no 3 neighbouring layers among the 2 usable ones"):
        choose_heads(made, SelectionConfig(criterion="layer-window", window=3, depth_cap=0.5))


def test_criterion_without_lists_to_judge_it_by_is_refused():
    made = table([0.5] * 4, [0.5] * 4, layers=2)
    made.values["core"][:] = np.nan
    with pytest.raises(ValueError, match="core: no list has passages both at and below the relevance level"):
        choose_heads(made, SelectionConfig(criterion="core"))


def test_calibrated_attention_has_no_entropy():
    with pytest.raises(ValueError, match="calibrated attention has no entropy"):
        criterion_scores(replace(table([0.5] * 4, [0.5] * 4, layers=2), calibrated=True), "entropy-regularised")


@pytest.mark.parametrize(
    "options", [{"criterion": "best"}, {"num_heads": 0}, {"depth_cap": 1.5}, {"temperature": 0.0}, {"window": 0}]
)
def test_senseless_settings_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} .*expected"):
        SelectionConfig(**options)


def test_cost_of_a_layer_by_hand():
    class Config:
        hidden_size, intermediate_size, num_attention_heads, num_key_value_heads, head_dim = 8, 16, 4, 2, 2

    # q 64, k and v 32 each, o 64, MLP 384 parameters; attention 2 * 10^2 * 8
    layer = 2 * (64 + 64 + 64 + 384) * 10 + 1600
    cost = truncation_cost(Config, layers=4, depth=3, tokens=10)
    assert cost.whole == 4 * layer
    assert cost.flops == 2 * layer + 2 * 128 * 10
    assert str(cost) == f"3 of 4 layers, {cost.share:.0%} of the FLOPs at 10 tokens"


# ------------------------------------------------------------------------------------------------------- whole model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model whose head 1-2 looks at equal tokens: its q is a copy of its k; layer 0 does next to nothing."""
    path = tiny_model(tmp_path_factory.mktemp("selected") / "model", layers=3)
    loaded = load(path, "all", device="cpu")
    with torch.no_grad():
        lower, upper = loaded.model.layers[0], loaded.model.layers[1].self_attn
        lower.self_attn.q_proj.weight.zero_()  # even attention
        lower.self_attn.o_proj.weight.mul_(0.01)
        lower.mlp.down_proj.weight.mul_(0.01)
        upper.q_proj.weight[32:48] = upper.k_proj.weight[16:32]
    loaded.model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def scorer(folder):
    return ListScorer(AttentionReader(load(folder, "all", device="cpu")), HEADRANK)


@pytest.mark.parametrize("criterion", ["entropy-regularised", "discrimination", "ndcg", "qrscore", "core"])
def test_every_criterion_finds_the_head_that_matches_tokens(folder, criterion):
    config = SelectionConfig(criterion=criterion, num_heads=1)
    origin = {"file": "train.jsonl", "sha256": "abc"}
    chosen = select_heads(load(folder, "all", device="cpu"), HEADRANK, overlap_lists(12), config, origin=origin).heads
    assert chosen.heads == ((1, 2),)
    assert chosen.model == "model"
    assert chosen.selection["data"] == origin
    assert chosen.selection["lists"]["used"] == 12
    assert len(chosen.selection["scores"]) == 1


def test_measures_of_one_pass_equal_a_plain_loop(scorer):
    lists = overlap_lists(5)
    found = measure_heads(scorer, lists, SelectionConfig(order="given"))
    values = {name: np.zeros(12) for name in ("discrimination", "entropy", "ndcg", "qrscore", "core")}
    by_layer = np.zeros(3)
    for graded in lists:
        (read,) = scorer.reader.read(scorer.prompts([graded]), support="passages")
        (prompt,) = scorer.prompts([graded])
        mass = torch.stack([read[:, start:end].sum(1) for start, end in prompt.passages.tolist()], dim=1)
        grades = torch.tensor(graded.grades)
        values["discrimination"] += discrimination(mass, grades).numpy() / 5
        values["entropy"] += normalised_entropy(mass).numpy() / 5
        values["ndcg"] += ndcg(mass, grades).numpy() / 5
        values["qrscore"] += qr_score(mass, grades).numpy() / 5
        values["core"] += contrastive_score(mass, grades).numpy() / 5
        by_layer += ndcg(mass.view(3, 4, -1).sum(1), grades).numpy() / 5
    assert found.layer_ndcg == pytest.approx(by_layer, rel=1e-5)
    for name, expected in values.items():
        assert found.values[name] == pytest.approx(expected, rel=1e-5), name


def test_lists_that_order_nothing_are_counted(scorer):
    (first, second) = overlap_lists(2)
    flat = GradedList(first.ranking, (1,) * 6)
    positive = GradedList(second.ranking, (2, 1, 1, 1, 1, 1))
    found = measure_heads(scorer, [flat, first, positive])
    counts = found.counts
    assert (counts["used"], counts["one_grade"], counts["no_negative"], counts["no_positive"]) == (2, 1, 1, 0)
    alone = measure_heads(scorer, [first])  # the one list that has both kinds
    assert found.values["qrscore"] == pytest.approx(alone.values["qrscore"])
    level = SelectionConfig(relevance_level=3)
    assert measure_heads(scorer, [first], level).counts["no_positive"] == 1
    with pytest.raises(ValueError, match="none of the 1 lists has passages of two grades"):
        measure_heads(scorer, [flat])
    assert measure_heads(scorer, [first, second], SelectionConfig(max_lists=1)).counts["used"] == 1


def test_what_cannot_be_met_is_refused_before_the_pass(folder):
    loaded = load(folder, "all", device="cpu")
    with pytest.raises(ValueError, match="calibrated attention has no entropy"):
        select_heads(loaded, ICR, [])
    with pytest.raises(ValueError, match="13 heads wanted, the model has 12"):
        select_heads(loaded, HEADRANK, [], SelectionConfig(num_heads=13))


def test_calibrated_rules_measure_the_difference_of_two_queries(folder):
    found = select_heads(load(folder, "all", device="cpu"), ICR, overlap_lists(2), SelectionConfig("ndcg", num_heads=1))
    assert "ndcg" in found.candidates and "entropy-regularised" not in found.candidates
    scorer = ListScorer(AttentionReader(load(folder, "all", device="cpu")), ICR)
    (prompt,) = scorer.prompts(overlap_lists(1))
    (mass,) = scorer.masses([prompt])
    for index, head in enumerate(scorer.reader.heads.heads):
        ((read, blank),) = AttentionReader(load(folder, HeadSet("one", (head,)), device="cpu")).read_calibrated(
            [(prompt, scorer.builder.with_query(prompt, "N/A"))]
        )
        expected = pool_tokens(token_scores(read, blank, ICR.rule), prompt.passages, ICR.rule)
        assert mass[index].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_broken_scores_are_named_by_list_and_head(folder):
    loaded = load(folder, "all", device="cpu")
    with torch.no_grad():
        loaded.model.layers[2].self_attn.q_proj.weight[:16] = float("nan")
    for reading in (HEADRANK, ICR):
        scorer = ListScorer(AttentionReader(loaded), reading)
        with pytest.raises(ValueError, match="qid q0: the attention of head 2-0 is not finite"):
            measure_heads(scorer, overlap_lists(1))
        with pytest.raises(ValueError, match="qid q0: the attention of head 2-0 is not finite"):
            scorer.scores(overlap_lists(1))


def test_table_and_candidate_sets(folder, tmp_path):
    config = SelectionConfig(num_heads=2, depth_cap=0.7, window=2)
    selection = select_heads(load(folder, "all", device="cpu"), HEADRANK, overlap_lists(4), config)
    selection.table.save(tmp_path / "heads.tsv", scores=selection.scores, chosen=selection.heads)
    with (tmp_path / "heads.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 12
    assert {(int(r["layer"]), int(r["head"])) for r in rows if r["chosen"] == "1"} == set(selection.heads.heads)
    best = max(rows, key=lambda row: float(row["score"]) if int(row["layer"]) < 2 else -math.inf)
    assert (int(best["layer"]), int(best["head"])) == selection.heads.heads[0]
    assert set(selection.candidates) == {
        "entropy-regularised", "discrimination", "qrscore", "ndcg", "core", "layer-window"
    }  # fmt: skip
    for chosen, cost in selection.candidates.values():
        assert cost.depth == chosen.depth <= 2
        assert 0 < cost.share < 1
    assert HeadSet(**(selection.heads.describe())) == selection.heads


def test_passage_mass_equals_pooling_one_head_at_a_time():
    attention = torch.rand(3, 30, generator=torch.Generator().manual_seed(1))
    passages = np.array([[2, 9], [9, 9], [20, 28], [12, 13]])
    for rule in (HEADRANK.rule, ICR.rule, replace(HEADRANK.rule, length_exponent=1.0)):
        found = passage_mass(attention, passages, rule)
        for row, one in zip(attention, found, strict=True):
            assert one.tolist() == pytest.approx(pool_tokens(row.numpy(), passages, rule).tolist(), rel=1e-5)


def test_passage_order_is_random_unless_asked(scorer):
    graded = overlap_lists(1, passages=8)
    found = [
        measure_heads(scorer, graded, SelectionConfig(order=order, seed=seed)).values["qrscore"].tolist()
        for order, seed in (("random", 0), ("random", 1), ("given", 0), ("given", 1), ("reversed", 0))
    ]
    assert found[0] != found[1]
    assert found[2] == found[3]
    assert found[2] != found[4]


def test_queries_without_candidates_cannot_be_lists():
    with pytest.raises(ValueError, match="an empty list"):
        GradedList(Ranking(Query("q", "x")), ())
    with pytest.raises(ValueError, match="grade -1 is negative"):
        GradedList(Ranking(Query("q", "x"), (Candidate("d", 1.0, "t"),)), (-1,))
