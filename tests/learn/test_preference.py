"""Pairs, losses and regularisers: values worked out by hand, gradients against finite differences, invariances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrank_pipeline.learn.preference import (
    distillation_loss,
    grade_divergence,
    group_contrastive_loss,
    list_loss,
    listwise_loss,
    log_scores,
    middle_zone,
    negative_variance,
    pair_loss,
    pair_margins,
    preference_pairs,
)
from headrank_pipeline.learn.settings import Objective

GRADES = torch.tensor([3, 1, 0, 1, 2])
LOGS = torch.tensor([0.5, 0.9, 0.1, 0.2, 0.4])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


# ----------------------------------------------------------------------------------------------------------- pairs


def test_pairs_are_one_grade_apart_violations_first_then_the_narrowest():
    # differences: 3>2 (0,4) 0.1; 2>1 (4,1) -0.5, (4,3) 0.2; 1>0 (1,2) 0.8, (3,2) 0.1
    assert preference_pairs(GRADES, LOGS).tolist() == [[4, 1], [0, 4], [3, 2], [4, 3], [1, 2]]
    assert preference_pairs(GRADES, LOGS, limit=2).tolist() == [[4, 1], [0, 4]]


def test_equal_differences_stay_in_index_order():
    pairs = preference_pairs(torch.tensor([1, 0, 0, 1]), torch.zeros(4))
    assert pairs.tolist() == [[0, 1], [0, 2], [3, 1], [3, 2]]


def test_a_missing_grade_is_no_neighbour_unless_asked_for():
    grades, logs = torch.tensor([3, 1, 0]), torch.zeros(3)
    assert preference_pairs(grades, logs).tolist() == [[1, 2]]
    assert preference_pairs(grades, logs, steps="adjacent-present").tolist() == [[0, 1], [1, 2]]
    assert preference_pairs(grades, logs, steps="any").tolist() == [[0, 1], [0, 2], [1, 2]]


def test_identical_texts_are_never_paired():
    grades, logs, texts = torch.tensor([1, 0, 0]), torch.zeros(3), torch.tensor([0, 0, 2])
    assert preference_pairs(grades, logs).tolist() == [[0, 1], [0, 2]]
    assert preference_pairs(grades, logs, texts=texts).tolist() == [[0, 2]]
    assert list_loss(Objective(), torch.tensor([0.2, 0.5, 0.3]), grades, texts=texts).pairs == 1


def test_one_grade_gives_no_pairs():
    assert preference_pairs(torch.tensor([2, 2]), torch.zeros(2)).shape == (0, 2)


def test_random_pairs_ignore_the_scores_and_repeat_with_the_seed():
    def drawn(logs, seed):
        generator = torch.Generator().manual_seed(seed)
        return preference_pairs(GRADES, logs, limit=3, steps="any", hard=False, generator=generator).tolist()

    assert drawn(LOGS, 1) == drawn(-LOGS, 1)
    assert drawn(LOGS, 1) != drawn(LOGS, 2)


@given(
    grades=st.lists(st.integers(0, 4), min_size=2, max_size=12),
    limit=st.integers(1, 20),
    steps=st.sampled_from(["one", "adjacent-present", "any"]),
    seed=st.integers(0, 9),
)
@settings(max_examples=60)
def test_the_first_of_a_pair_is_better_and_left_out_pairs_are_easier(grades, limit, steps, seed):
    levels = torch.tensor(grades)
    logs = torch.rand(len(grades), generator=torch.Generator().manual_seed(seed))
    every = preference_pairs(levels, logs, limit=None, steps=steps)
    kept = preference_pairs(levels, logs, limit=limit, steps=steps)
    assert len(kept) == min(limit, len(every))
    assert all(grades[i] > grades[j] for i, j in kept.tolist())
    if steps == "one":
        assert all(grades[i] - grades[j] == 1 for i, j in kept.tolist())
    kept_pairs = {tuple(pair) for pair in kept.tolist()}
    hardness = {(i, j): float(logs[i] - logs[j]) for i, j in map(tuple, every.tolist())}
    assert kept_pairs <= hardness.keys()
    easiest = max((hardness[pair] for pair in kept_pairs), default=0.0)
    assert all(hardness[pair] >= easiest for pair in hardness.keys() - kept_pairs)


# ---------------------------------------------------------------------------------------------------------- losses


def test_pair_loss_by_hand():
    # differences 0.5 - 0.2 and 0.2 - 0.3, beta 2, margin 0.1
    logs = torch.tensor([0.5, 0.2, 0.3])
    pairs = torch.tensor([[0, 1], [1, 2]])
    expected = (softplus(-0.6 + 0.1) + softplus(0.2 + 0.1)) / 2
    assert float(pair_loss(logs, pairs, beta=2.0, margins=0.1)) == pytest.approx(expected, rel=1e-6)


def test_margins_belong_to_the_better_passages_grade():
    pairs = torch.tensor([[0, 4], [4, 1], [1, 2]])
    assert pair_margins(GRADES, pairs, (0.1, 0.2, 0.3)).tolist() == pytest.approx([0.3, 0.2, 0.1])
    assert pair_margins(GRADES, pairs, ()).tolist() == [0.0, 0.0, 0.0]


def test_no_pairs_cost_nothing_and_still_have_a_gradient():
    logs = torch.zeros(3, requires_grad=True)
    loss = pair_loss(logs, torch.zeros((0, 2), dtype=torch.int64))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logs.grad.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("passages", "zone"), [(4, [1, 2]), (8, [2, 3, 4, 5]), (5, [1, 2, 3]), (3, [0, 1, 2])])
def test_middle_zone_is_the_second_and_third_quarter(passages, zone):
    assert middle_zone(passages).nonzero()[:, 0].tolist() == zone


def test_grade_divergence_by_hand():
    # zone: grades 2, 0 -> target e^2 : 1; scores 0.1, 0.3 -> 0.25, 0.75
    logs, grades = torch.tensor([0.6, 0.1, 0.3]).log(), torch.tensor([0, 2, 0])
    p = math.exp(2) / (math.exp(2) + 1)
    expected = p * math.log(p / 0.25) + (1 - p) * math.log((1 - p) / 0.75)
    zone = torch.tensor([False, True, True])
    assert float(grade_divergence(logs, grades, zone)) == pytest.approx(expected, rel=1e-6)
    assert float(grade_divergence(logs, grades, torch.tensor([True, False, True]))) == 0.0  # one grade in the zone
    assert float(grade_divergence(logs, grades, torch.zeros(3, dtype=torch.bool))) == 0.0


def test_grade_divergence_is_zero_at_its_target():
    grades = torch.tensor([2, 0, 1])
    logs = torch.log_softmax(grades / 0.5, dim=0)
    everywhere = torch.ones(3, dtype=torch.bool)
    assert float(grade_divergence(logs, grades, everywhere, grade_temperature=0.5)) == pytest.approx(0.0, abs=1e-6)


def test_negative_variance_by_hand():
    zone = torch.tensor([True, True, True, False])
    assert float(negative_variance(torch.tensor([1.0, 2.0, 6.0, 99.0]), zone)) == pytest.approx(-14 / 3)


def test_group_contrastive_loss_by_hand():
    # max-min to [0, 8]: 0.5 -> 8, 0.3 -> 4, 0.2 -> 2, 0.1 -> 0; positives 8 and 2, negatives 4 and 0
    scores, grades = torch.tensor([0.5, 0.3, 0.2, 0.1]), torch.tensor([2, 0, 1, 0])
    negatives = math.exp(4) + 1
    expected = -sum(math.log(math.exp(x) / (math.exp(x) + negatives)) for x in (8, 2)) / 2
    assert float(group_contrastive_loss(scores, grades)) == pytest.approx(expected, rel=1e-5)
    only_best = -math.log(math.exp(8) / (math.exp(8) + math.exp(4) + math.exp(2) + 1))
    assert float(group_contrastive_loss(scores, grades, relevance_level=2)) == pytest.approx(only_best, rel=1e-4)


@pytest.mark.parametrize("grades", [[0, 0], [1, 2]])
def test_group_contrastive_loss_without_both_kinds_is_zero(grades):
    assert float(group_contrastive_loss(torch.tensor([0.4, 0.6]), torch.tensor(grades))) == 0.0


def test_group_contrastive_loss_of_equal_scores_is_finite():
    assert float(group_contrastive_loss(torch.full((2,), 0.5), torch.tensor([1, 0]))) == pytest.approx(math.log(2))


def test_listwise_loss_by_hand():
    scores, grades = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([1, 0, 3])
    expected = -0.25 * math.log(0.2) - 0.75 * math.log(0.3)
    assert float(listwise_loss(scores.log(), grades)) == pytest.approx(expected, rel=1e-6)
    assert float(listwise_loss(scores.log(), torch.zeros(3, dtype=torch.int64))) == 0.0


def test_distillation_loss_by_hand():
    p = 1 / (1 + math.exp(-2))  # teacher 0.4 and 0.2 at temperature 0.1
    expected = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    loss = distillation_loss(torch.zeros(2), torch.tensor([0.4, 0.2]), teacher_temperature=0.1)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    q = 1 / (1 + math.exp(-4))  # scores 2 and 0 at temperature 0.5
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    loss = distillation_loss(torch.tensor([2.0, 0.0]), torch.tensor([0.4, 0.2]), teacher_temperature=0.1,
                             score_temperature=0.5)  # fmt: skip
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, g, z: pair_loss(log_scores(s), torch.tensor([[0, 1], [4, 3], [1, 2]]), beta=3.0, margins=0.2),
        lambda s, g, z: grade_divergence(log_scores(s), g, z, score_temperature=0.7),
        lambda s, g, z: negative_variance(log_scores(s), z),
        lambda s, g, z: group_contrastive_loss(s, g, relevance_level=2),
        lambda s, g, z: listwise_loss(log_scores(s), g, temperature=0.5),
        lambda s, g, z: distillation_loss(log_scores(s), torch.linspace(0, 1, 5)),
        lambda s, g, z: list_loss(Objective(margins=(0.1,)), s, g).loss,
    ],
)
def test_gradients_equal_finite_differences(loss):
    scores = torch.tensor([0.3, 0.25, 0.1, 0.2, 0.15], dtype=torch.float64, requires_grad=True)
    zone = torch.tensor([True, True, False, True, False])
    assert torch.autograd.gradcheck(lambda s: loss(s, GRADES, zone), (scores,))


# ------------------------------------------------------------------------------------------------------- objective


@pytest.mark.parametrize("kind", ["preference", "group-contrastive", "listwise", "distillation"])
@given(factor=st.floats(1e-3, 1e3), seed=st.integers(0, 20))
@settings(max_examples=20)
def test_multiplying_all_attention_by_a_constant_changes_no_loss(kind, factor, seed):
    scores = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.01
    teacher = torch.linspace(0, 1, 5)
    objective = Objective(kind=kind)
    plain = list_loss(objective, scores, GRADES, teacher=teacher).loss
    scaled = list_loss(objective, scores * factor, GRADES, teacher=teacher).loss
    assert float(scaled) == pytest.approx(float(plain), rel=1e-9, abs=1e-12)


def test_objective_is_pair_loss_plus_weighted_regulariser():
    scores = torch.softmax(LOGS, dim=0)
    logs = scores.log()
    pairs = preference_pairs(GRADES, logs)
    extra = grade_divergence(logs, GRADES, middle_zone(5))
    found = list_loss(Objective(weight=0.3), scores, GRADES)
    assert float(found.loss) == pytest.approx(float(pair_loss(logs, pairs) + 0.3 * extra))
    assert (found.pairs, found.violations) == (5, 1)
    assert found.regulariser == pytest.approx(float(extra))
    assert float(list_loss(Objective(regulariser="none"), scores, GRADES).loss) == pytest.approx(found.main)
    variance = list_loss(Objective(regulariser="variance", zone="all"), scores, GRADES).regulariser
    assert variance == pytest.approx(-float(logs.var(unbiased=False)))


def test_every_setting_reaches_the_loss_that_it_is_of():
    scores, teacher = torch.softmax(LOGS, dim=0), torch.linspace(0, 1, 5)
    logs = scores.log()

    def of(**settings) -> float:
        return float(list_loss(Objective(**settings), scores, GRADES, teacher=teacher).loss)

    contrastive = {"scale": 3.0, "relevance_level": 2}
    assert of(kind="group-contrastive", **contrastive) == float(group_contrastive_loss(scores, GRADES, **contrastive))
    assert of(kind="listwise", score_temperature=0.5) == float(listwise_loss(logs, GRADES, temperature=0.5))
    temperatures = {"teacher_temperature": 0.2, "score_temperature": 0.5}
    assert of(kind="distillation", **temperatures) == float(distillation_loss(logs, teacher, **temperatures))
    pairs = preference_pairs(GRADES, logs, limit=3, steps="any")
    margins = pair_margins(GRADES, pairs, (0.1, 0.4))
    temperatures = {"grade_temperature": 0.5, "score_temperature": 0.7}
    extra = grade_divergence(logs, GRADES, middle_zone(5), **temperatures)
    expected = pair_loss(logs, pairs, beta=4.0, margins=margins) + 0.3 * extra
    assert of(beta=4.0, margins=(0.1, 0.4), pairs=3, steps="any", weight=0.3, **temperatures) == float(expected)


def test_the_defaults_are_those_that_are_documented():
    found = Objective()
    assert (found.beta, found.margins, found.pairs, found.steps, found.hard) == (2.0, (), 64, "one", True)
    assert (found.regulariser, found.weight, found.zone) == ("grades", 0.1, "middle")
    assert found.grade_temperature == found.score_temperature == 1.0


def test_random_pairs_follow_the_seed():
    objective = Objective(hard=False, pairs=2, steps="any", regulariser="none")
    scores = torch.softmax(LOGS, dim=0)
    values = {float(list_loss(objective, scores, GRADES, seed=seed).loss) for seed in range(8)}
    assert float(list_loss(objective, scores, GRADES, seed=3).loss) in values
    assert len(values) > 1


def test_distillation_without_teacher_is_refused():
    with pytest.raises(ValueError, match="needs a 'teacher' score"):
        list_loss(Objective(kind="distillation"), torch.ones(2), torch.tensor([1, 0]))


def test_objective_refuses_senseless_numbers():
    with pytest.raises(ValueError, match=r"beta 0\.0: expected a number above 0"):
        Objective(beta=0.0)
