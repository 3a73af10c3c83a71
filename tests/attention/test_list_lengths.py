"""Every system, whatever the length of the list: each candidate comes back once, in the order of finite scores."""

import math
from itertools import pairwise

import pytest
from chat_models import chat_model, numbered
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_models import tiny_model

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.rerank.baselines.first_token import first_token
from headrank_pipeline.rerank.baselines.pointwise import qwen3_reranker
from headrank_pipeline.rerank.baselines.rankgpt import rankgpt
from headrank_pipeline.rerank.interpolation import interpolated
from headrank_pipeline.rerank.systems import core, headrank, icr, qrhead, qrranker

HEADS = HeadSet("some", ((1, 0), (2, 3)))
FAMILY = {"headrank": headrank, "icr": icr, "qrhead": qrhead, "core": core, "qrranker": qrranker}
BASELINES = {
    "rankgpt": lambda folder: rankgpt(folder, device="cpu", max_new_tokens=6),
    "first-token": lambda folder: first_token(folder, device="cpu"),
    "qwen3-reranker": lambda folder: qwen3_reranker(folder, device="cpu"),
}


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    attention, chat = tiny_model(tmp_path_factory.mktemp("qwen3")), chat_model(tmp_path_factory.mktemp("chat"))
    made = {name: build(attention, HEADS, device="cpu") for name, build in FAMILY.items()}
    made |= {name: build(chat) for name, build in BASELINES.items()}
    made["interpolated"] = interpolated(made["icr"], 0.5)
    return made


@pytest.mark.parametrize("name", [*FAMILY, *BASELINES, "interpolated"])
@given(length=st.integers(1, 120))
@example(length=1)
@example(length=21)
@example(length=120)
@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_candidate_comes_back_once_in_score_order(systems, name, length):
    candidates = numbered(length)
    reranked = systems[name].rerank(candidates)
    assert reranked.query == candidates.query
    assert sorted(reranked.docids) == sorted(candidates.docids)
    assert all(math.isfinite(score) for score in reranked.scores)
    assert all(above >= below for above, below in pairwise(reranked.scores))
