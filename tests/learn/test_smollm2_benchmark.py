"""benchmarks/smollm2: what is distilled is what the product reads, and an adapter is the change it was made of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from transformers import LlamaModel

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model import load
from headrank_pipeline.attention.prompt import PromptBuilder
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.recipe import HEADRANK
from headrank_pipeline.learn.scorer import ListScorer
from headrank_pipeline.records import Candidate, Query, Ranking

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from smollm2.adapter import factored
from smollm2.in_batch import Frame, InBatch, with_low_rank

ISOLATED = HEADRANK.varied({"passages": "isolated"})
HEADS = ((3, 1), (3, 2), (2, 0))
# None ends with a full stop: this tokenizer, unlike SmolLM2's, makes one token of it and the separator.
TEXTS = ("Birds fly south", "The query is about paragraphs that are relevant", "Fish swim", "Please find information")
QUERIES = ("Where do birds fly?", "paragraphs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("llama"), "llama")


def test_shares_in_a_batch_are_those_that_the_product_reads(folder):
    frame = Frame(PromptBuilder(tiny_tokenizer(), ISOLATED.template, max_prompt_tokens=8192))
    questions = [frame.question(query) for query in QUERIES]
    start = questions[0][1]
    shares = InBatch(LlamaModel.from_pretrained(folder), HEADS).shares(
        frame.opening,
        [frame.passage(text) for text in TEXTS],
        questions[0][0][:start],
        [ids[start:] for ids, _ in questions],
        torch.arange(len(TEXTS)),
        row_length=60,
        question_length=48,
    )
    scorer = ListScorer(AttentionReader(load(folder, HeadSet("some", HEADS), device="cpu")), ISOLATED)
    candidates = tuple(Candidate(f"d{place}", -float(place), text) for place, text in enumerate(TEXTS))
    for place, query in enumerate(QUERIES):
        (read,) = scorer.masses([scorer.builder.build(Ranking(Query("q", query), candidates))])
        torch.testing.assert_close(shares[:, place], read, atol=1e-6, rtol=1e-5)


def test_the_end_of_the_turn_is_what_all_questions_end_with(folder):
    frame = Frame(PromptBuilder(tiny_tokenizer(), ISOLATED.template, max_prompt_tokens=8192))
    ids, start = frame.question("birds")
    assert tiny_tokenizer().decode(ids[-frame.end :]) == "<|im_end|>\n<|im_start|>assistant\n"
    assert tiny_tokenizer().decode(ids[start : -frame.end]) == " birds"


def test_only_layers_that_are_trained_get_gradients(folder):
    model = LlamaModel.from_pretrained(folder).requires_grad_(False)
    updates = with_low_rank(model, 2, first=2, deepest=3)
    frame = Frame(PromptBuilder(tiny_tokenizer(), ISOLATED.template, max_prompt_tokens=8192))
    ids, start = frame.question("birds")
    shares = InBatch(model, HEADS, 2).shares(
        frame.opening, [frame.passage(text) for text in TEXTS], ids[:start], [ids[start:]], torch.tensor([1]),
        row_length=60, question_length=48,
    )  # fmt: skip
    shares.mean(0)[0, 0].log().backward()
    assert {name for name, update in updates.items() if update.up.grad is not None and update.up.grad.any()} == {
        *(f"layers.2.self_attn.{name}_proj" for name in "qkvo"),
        *(f"layers.2.mlp.{name}_proj" for name in ("gate", "up", "down")),
        *(f"layers.3.self_attn.{name}_proj" for name in "qk"),
    }


def test_factors_of_enough_rank_are_the_change_and_fewer_leave_some_out():
    torch.manual_seed(0)
    before = {"layers.0.mlp.up_proj.weight": torch.randn(8, 6), "norm.weight": torch.randn(6)}
    change = torch.randn(8, 3) @ torch.randn(3, 6)
    after = {**before, "layers.0.mlp.up_proj.weight": before["layers.0.mlp.up_proj.weight"] + change}
    factors, lost = factored(before, after, 3)
    assert lost < 1e-3
    product = (
        factors["layers.0.mlp.up_proj.lora_B.weight"].float() @ factors["layers.0.mlp.up_proj.lora_A.weight"].float()
    )
    torch.testing.assert_close(product, change, atol=5e-3, rtol=5e-3)
    assert 0.05 < factored(before, after, 2)[1] < 1
    with pytest.raises(ValueError, match=r"norm.weight changed"):
        factored(before, {**before, "norm.weight": before["norm.weight"] + 1}, 2)
