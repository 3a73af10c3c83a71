from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.recipe import ScoringRule
from headrank_pipeline.attention.scoring import passage_mass, passage_scores, pool_tokens, token_factors, token_scores

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


class MetaAsGpu(TorchDispatchMode):
    """Meta tensors, which have shapes and no values, refuse what a GPU's refuse; copies of them are ones."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        flat = [one for one in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        if func is torch.ops.aten._to_copy.default and flat[0].is_meta and kwargs.get("device") == torch.device("cpu"):
            return torch.ones(flat[0].shape, dtype=flat[0].dtype)
        mixed = {one.is_meta for one in flat if one.dim()} == {True, False}
        if mixed and func not in (torch.ops.aten.index.Tensor, torch.ops.aten.copy_.default):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("normalise", "content_free"),
    [("mass", None), ("log", None), ("zscore", None), ("mass", "N/A"), ("zscore", "N/A")],
)
@pytest.mark.parametrize("filter_deviations", [None, 2.0])
def test_attention_on_a_gpu_is_scored_and_explained(normalise, filter_deviations, content_free):
    rule = ScoringRule(normalise=normalise, filter_deviations=filter_deviations, content_free=content_free)
    passages, places, heads = np.array([[1, 4], [4, 8]]), np.arange(2), HeadSet("two", ((0, 0), (1, 1)))
    read = torch.empty(2, 9, device="meta")
    blank = None if content_free is None else torch.empty(2, 9, device="meta")
    with MetaAsGpu():
        assert passage_scores(read, blank, passages, places, rule, heads).shape == (2,)
        if normalise != "zscore":  # which are no sums over words
            factors = token_factors(read, blank, passages, places, rule, heads)
            assert [one.shape for one in factors] == [(2, 3), (2, 4)]
