"""The embedded model: small, honest about its training, and better than chance through the product itself."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from embedded_model.in_batch import Frame, shares

from headrank_pipeline.attention.model_files import embedded_first_stage_weight, embedded_model
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.attention_reranker import AttentionReranker
from headrank_pipeline.rerank.systems import core, headrank, icr, qrhead, qrranker

PASSAGES = {
    "bees": "A honey bee colony keeps its brood at about 35 degrees. Workers shiver their flight muscles to warm the "
    "comb in winter and carry drops of water to cool it in summer.",
    "bridge": "The towers of a suspension bridge stand in compression while the main cables hang in tension. Each "
    "cable is spun in place from thousands of parallel steel wires.",
    "bread": "Sourdough rises because wild yeast and bacteria ferment the flour. The bacteria produce acids that give "
    "the loaf its sharp taste and keep mould away for several days.",
    "comet": "A comet grows two tails when it nears the Sun. The dust tail curves along the orbit, and the straight "
    "blue tail consists of ionised gas that the solar wind drives away.",
    "violin": "The sound post of a violin joins the belly to the back. Moving this small stick of spruce by a "
    "millimetre changes the tone of the whole instrument.",
    "tide": "Spring tides come at new and full moon, when the pull of the Sun adds to that of the Moon. At half moon "
    "the two pulls work at right angles, and the neap tides are weak.",
    "paper": "Old newspapers turn yellow because lignin in the wood pulp oxidises in light. Paper made from cotton "
    "rags has hardly any lignin and stays white for centuries.",
    "gecko": "Geckos climb glass with millions of fine hairs under their toes. Each hair splits into tips so small "
    "that weak forces between molecules hold the animal's weight.",
}
SENTENCES = {
    "bees": "Workers shiver their flight muscles to warm the comb in winter",
    "bridge": "The towers of a suspension bridge stand in compression",
    "bread": "The bacteria produce acids that give the loaf its sharp taste",
    "comet": "the straight blue tail consists of ionised gas",
    "violin": "Moving this small stick of spruce by a millimetre changes the tone",
    "tide": "At half moon the two pulls work at right angles",
    "paper": "Old newspapers turn yellow because lignin in the wood pulp oxidises in light",
    "gecko": "Each hair splits into tips so small that weak forces between molecules hold the animal's weight",
}


@pytest.fixture(scope="module")
def reranker() -> AttentionReranker:
    return headrank(embedded_model(), device="cpu")


def ranking(docid: str) -> Ranking:
    candidates = [Candidate(name, 1.0, text) for name, text in PASSAGES.items()]
    return Ranking(Query(f"q-{docid}", SENTENCES[docid]), tuple(candidates))


def test_a_sentence_finds_the_passage_it_comes_from(reranker: AttentionReranker) -> None:
    reranked = reranker.rerank_batch([ranking(docid) for docid in SENTENCES])
    found = [docid for docid, result in zip(SENTENCES, reranked, strict=True) if result.docids[0] == docid]
    assert len(found) >= 6, f"only {found} came first; chance is 1 of 8"


def test_every_candidate_comes_back_once(reranker: AttentionReranker) -> None:
    assert sorted(reranker.rerank(ranking("comet")).docids) == sorted(PASSAGES)


def test_the_prompt_uses_the_chat_markup_of_the_tokenizer(reranker: AttentionReranker) -> None:
    chat = reranker.builder.template.chat
    assert chat is not None and chat.name == "chatml"


def test_text_outside_the_vocabulary_is_read_and_not_taken_for_a_control_token(reranker: AttentionReranker) -> None:
    candidates = (Candidate("greek", 2.0, "λόγος 文字 ☃"), Candidate("empty", 1.0, ""))
    assert set(reranker.rerank(Ranking(Query("q", "☃ λόγος"), candidates)).docids) == {"greek", "empty"}


def test_the_configuration_says_whether_the_model_was_trained() -> None:
    made = json.loads((embedded_model() / "config.json").read_text(encoding="utf-8"))["headrank"]
    assert isinstance(made["trained"], bool)
    assert made["made_by"] == "benchmarks/embedded_model.py"


def test_bm25s_weight_is_what_the_model_leaves_of_1() -> None:
    made = json.loads((embedded_model() / "config.json").read_text(encoding="utf-8"))["headrank"]
    assert embedded_first_stage_weight() + made["bm25_interpolation"]["weight"] == pytest.approx(1.0)


def test_the_model_folder_stays_under_12_mb() -> None:
    sizes = {path.name: path.stat().st_size for path in embedded_model().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "heads.json", "recipe.json", "README.md"} <= set(
        sizes
    )
    assert sum(sizes.values()) < 12_000_000


def test_the_pass_that_taught_it_scores_as_the_product_does(reranker: AttentionReranker) -> None:
    """Questions of a batch share passages and frame there; every head of the heads read must see the same."""
    model = AutoModel.from_pretrained(embedded_model(), dtype=torch.float32).eval()
    encode = reranker.reader.tokenizer.backend_tokenizer.encode
    passages = [encode(text, add_special_tokens=False).ids for text in PASSAGES.values()]
    queries = [encode(text, add_special_tokens=False).ids for text in SENTENCES.values()]
    layers = sorted({layer for layer, _ in reranker.reader.heads.heads})
    frame = Frame.of(reranker.reader.tokenizer, reranker.builder.template)
    with torch.no_grad():
        found = shares(model, frame, passages, queries, torch.arange(len(passages)), layers)
    scores = torch.stack([found[layer][:, head] for layer, head in reranker.reader.heads.heads]).mean(0)
    for row, docid in enumerate(SENTENCES):
        ours = {candidate.docid: candidate.score for candidate in reranker.rerank(ranking(docid)).candidates}
        assert scores[row].tolist() == pytest.approx([ours[name] for name in PASSAGES], abs=1e-5)


def test_every_system_reads_it_with_the_passages_that_it_was_trained_for():
    for build in (icr, partial(qrhead, heads="all"), partial(core, heads="all"), partial(qrranker, heads="all")):
        assert build(embedded_model(), device="cpu").recipe.template.passages == "isolated"
    asked = icr(embedded_model(), options={"passages": "causal"}, device="cpu")
    assert asked.recipe.template.passages == "causal"
