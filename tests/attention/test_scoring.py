from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrank_pipeline.attention.recipe import ScoringRule
from headrank_pipeline.attention.scoring import passage_mass, pool_tokens, token_scores

ICR_RULE = ScoringRule(support="all", heads="sum", content_free="N/A", filter_deviations=2.0)


def test_heads_are_summed_or_averaged_with_their_weights():
    attention = torch.tensor([[0.2, 0.8], [0.6, 0.4]])
    assert np.allclose(token_scores(attention, None, ScoringRule(heads="sum"), [3.0, 1.0]), [1.2, 2.8])
    assert np.allclose(token_scores(attention, None, ScoringRule(heads="mean"), [3.0, 1.0]), [0.3, 0.7])


def test_content_free_attention_is_subtracted_where_the_prompts_are_equal():
    query, blank = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.4, 0.6]])
    assert np.allclose(token_scores(query, blank, ICR_RULE), [0.1, -0.3])


def test_passages_are_pooled_by_sum_mean_or_between():
    scores, passages = np.array([1.0, 2.0, 3.0, 6.0]), np.array([[0, 3], [3, 4]])
    assert pool_tokens(scores, passages, ScoringRule()).tolist() == [6.0, 6.0]
    assert pool_tokens(scores, passages, ScoringRule(length_exponent=1.0)).tolist() == [2.0, 6.0]
    assert np.allclose(pool_tokens(scores, passages, ScoringRule(length_exponent=0.5)), [6 / 3**0.5, 6.0])


def test_filter_drops_tokens_far_below_the_mean_with_the_unbiased_deviation():
    # mean 0.8, unbiased std 0.6325: -1.0 lies below 0.8 - 2 * 0.6325; the biased std (0.6) would drop it as well,
    # so the second passage pins which one it is: -0.55 lies between the two bounds
    values = [1.0] * 9 + [-1.0]
    assert np.isclose(pool_tokens(np.array(values), np.array([[0, 10]]), ICR_RULE)[0], 9.0)
    tight = np.array([1.0, 1.0, 1.0, 1.0, 0.0])  # mean .8, biased std .4 -> bound 0: dropped; unbiased .447 -> kept
    assert pool_tokens(tight - 1.0, np.array([[0, 5]]), ICR_RULE)[0] == -1.0
    level = np.array([0.5, 0.5])  # a token at the bound is dropped, in the published code as well
    assert pool_tokens(level, np.array([[0, 2]]), ICR_RULE)[0] == 0.0
    assert passage_mass(torch.from_numpy(level)[None], np.array([[0, 2]]), ICR_RULE).tolist() == [[0.0]]


def test_the_filter_keeps_what_is_not_a_number():
    values = np.array([0.5, np.nan, 0.1, 0.2, 0.3])
    spans = np.array([[0, 3], [3, 5]])
    assert np.isnan(pool_tokens(values, spans, ICR_RULE)).tolist() == [True, False]
    assert passage_mass(torch.from_numpy(values)[None], spans, ICR_RULE).isnan().tolist() == [[True, False]]


def test_one_token_and_empty_passages_have_defined_scores():
    scores = np.array([0.7, -0.2])
    assert pool_tokens(scores, np.array([[0, 1], [1, 1], [1, 2]]), ICR_RULE).tolist() == [0.7, 0.0, -0.2]


def test_tokens_outside_all_passages_do_not_count():
    assert pool_tokens(np.array([9.0, 1.0, 9.0]), np.array([[1, 2]]), ScoringRule()).tolist() == [1.0]


@given(st.lists(st.lists(st.floats(-1, 1, width=32), max_size=12), min_size=1, max_size=6), st.floats(0, 3))
def test_filter_equals_torch_per_passage(passages, deviations):
    spans = np.cumsum([0, *map(len, passages)])
    rule = ScoringRule(filter_deviations=deviations)
    pooled = pool_tokens(
        np.array([v for p in passages for v in p], dtype=float), np.stack([spans[:-1], spans[1:]], 1), rule
    )
    for values, score in zip(passages, pooled, strict=True):
        tensor = torch.tensor(values, dtype=torch.float64)
        if len(values) > 1:
            bound = tensor.mean() - deviations * tensor.std()
            if ((tensor - bound).abs() < 1e-9).any():  # on the edge, rounding decides
                continue
            tensor = tensor[tensor > bound]
        assert abs(float(tensor.sum()) - score) < 1e-9
