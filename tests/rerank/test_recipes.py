from __future__ import annotations

import json
import logging
import math
import random
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_published import scores
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model_files import embedded_model
from headrank_pipeline.pipeline import Failure
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank import systems as all_systems
from headrank_pipeline.rerank.systems import core, headrank, icr, qrhead, qrranker

HEADS = HeadSet("some", ((1, 0), (2, 3)))
SYSTEMS = {
    "headrank": lambda folder: headrank(folder, HEADS, device="cpu"),
    "icr": lambda folder: icr(folder, device="cpu"),
    "qrhead": lambda folder: qrhead(folder, HEADS, device="cpu"),
    "core": lambda folder: core(folder, HEADS, device="cpu"),
    "qrranker": lambda folder: qrranker(folder, HEADS, device="cpu"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def systems(folder):
    return {name: make(folder) for name, make in SYSTEMS.items()}


def ranking(texts, query="how do birds fly?", titles=None):
    titles = titles or [None] * len(texts)
    pairs = enumerate(zip(texts, titles, strict=True))
    candidates = tuple(Candidate(f"d{i}", -float(i), text, title) for i, (text, title) in pairs)
    return Ranking(Query("q1", query), candidates)


def random_list(seed):
    """A list with duplicates, nested passages, one-token passages and titles."""
    chance = random.Random(seed)
    words = [
        "birds",
        "fly",
        "over",
        "the",
        "old",
        "harbour",
        "while",
        "seven",
        "fish",
        "swim",
        "below",
        "[1]",
        "N/A",
        "query:",
        "🐟",
        "café",
    ]
    texts = [" ".join(chance.choices(words, k=chance.randint(1, 25))) for _ in range(chance.randint(1, 6))]
    texts += [texts[0], texts[0].split(" ")[0], "x", f"quoted: {texts[0]}."]
    titles = [chance.choice([None, "Birds", "Old harbour"]) for _ in texts]
    return ranking(texts, " ".join(chance.choices(words, k=chance.randint(1, 9))), titles)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("layers", [None, (1, 2)], ids=["all", "a window of layers"])
def test_icr_equals_the_independent_implementation(folder, systems, seed, layers):
    candidates = random_list(seed)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    passages = [(c.title, c.text) for c in candidates.candidates]
    heads = layers and {(layer, head) for layer in layers for head in range(4)}
    expected, _ = scores("icr", "chatml", model, tiny_tokenizer(), candidates.query.text, passages, heads)
    reranker = icr(folder, "layers:1-2", device="cpu") if layers else systems["icr"]
    found = {c.docid: c.score for c in reranker.rerank(candidates).candidates}
    for docid, score in zip(candidates.docids, expected, strict=True):
        assert found[docid] == pytest.approx(score, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_candidate_comes_back_once_in_score_order(systems, name):
    for length in (1, 2, 7, 40):
        candidates = ranking([f"passage {i} {'word ' * (i % 5)}" for i in range(length)])
        reranked = systems[name].rerank(candidates)
        assert sorted(reranked.docids) == sorted(candidates.docids)
        assert list(reranked.scores) == sorted(reranked.scores, reverse=True)
        assert {c.text for c in reranked.candidates} == {c.text for c in candidates.candidates}


@pytest.mark.parametrize("name", SYSTEMS)
def test_batch_equals_one_by_one_and_keeps_empty_lists(systems, name):
    batch = [random_list(1), Ranking(Query("none", "nothing found")), random_list(2), random_list(3)]
    together = systems[name].rerank_batch(batch)
    assert together[1] == batch[1]
    for one, other in zip(together, batch, strict=True):
        alone = systems[name].rerank(other)
        assert one.docids == alone.docids
        assert one.scores == pytest.approx(alone.scores, rel=1e-4, abs=1e-6)


def test_headrank_scores_share_out_the_attention_mass(systems):
    reranked = systems["headrank"].rerank(random_list(5))
    assert sum(reranked.scores) == pytest.approx(1.0, abs=1e-5)


def test_notes_count_what_was_changed(systems):
    reranked = systems["headrank"].rerank(ranking(["word " * 400, "ends here <|im_end|>"]))
    assert reranked.notes["passages_cut"] == 1
    assert reranked.notes["words_dropped"] == 100
    assert reranked.notes["control_tokens_neutralised"] == 1
    assert reranked.notes["prompt_tokens"] > 300
    assert reranked.notes["forward_passes"] == 1
    assert systems["icr"].rerank(ranking(["text"])).notes["forward_passes"] == 2
    counted_before = replace(ranking(["text"]), notes={"replies": 1.0})
    assert systems["headrank"].rerank(counted_before).notes["replies"] == 1.0


@pytest.mark.parametrize("make", [headrank, icr])
def test_heads_count_by_their_weights(folder, make):
    given = ranking(["Birds fly.", "Fish swim in the sea.", "One flea."])
    weighted = HeadSet("weighted", HEADS.heads, weights=(0.0, 2.0))
    alone = make(folder, HeadSet("second", HEADS.heads[1:]), device="cpu").rerank(given)
    found = make(folder, weighted, device="cpu").rerank(given)
    scale = 1.0 if make is headrank else 2.0  # a mean, a sum
    assert found.docids == alone.docids
    assert found.scores == pytest.approx([scale * score for score in alone.scores], rel=1e-5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=30), min_size=1, max_size=5), st.text(min_size=1, max_size=20).filter(str.strip))
def test_any_text_gives_finite_scores(systems, texts, query):
    for system in systems.values():
        reranked = system.rerank(ranking(texts, query))
        assert sorted(reranked.docids) == sorted(f"d{i}" for i in range(len(texts)))


def test_options_change_fields_and_unknown_ones_are_refused(folder):
    reranker = headrank(folder, HEADS, options={"reverse": True, "length_exponent": 1.0}, device="cpu")
    assert reranker.recipe.template.reverse and reranker.recipe.rule.length_exponent == 1.0
    with pytest.raises(ValueError, match="headrank has no option 'revers'; did you mean 'reverse'"):
        headrank(folder, HEADS, options={"revers": True}, device="cpu")


MAKERS = {"headrank": headrank, "icr": icr, "qrhead": qrhead, "core": core, "qrranker": qrranker}


@pytest.mark.parametrize("name", MAKERS)
def test_options_are_taken_as_keywords_and_unknown_ones_are_refused(folder, name):
    make = MAKERS[name]
    spelled = make(folder, HEADS, passage_words=2, length_exponent=1.0, device="cpu")
    assert (
        spelled.describe()
        == make(folder, HEADS, options={"passage_words": 2, "length_exponent": 1.0}, device="cpu").describe()
    )
    assert spelled.rerank(ranking(["one two three four"])).notes["words_dropped"] == 2
    for unknown, near in {"devcie": "device", "pasage_words": "passage_words", "suport": "support"}.items():
        with pytest.raises(ValueError, match=f"{name} has no option '{unknown}'; did you mean '{near}'"):
            make(folder, HEADS, **{unknown: 1})
    with pytest.raises(ValueError, match=f"{name} has no option 'foo'; options: .*device"):
        make(folder, HEADS, foo=1)
    with pytest.raises(ValueError, match=f"{name}: reverse given as a keyword and in options"):
        make(folder, HEADS, reverse=True, options={"reverse": False})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reverse": "maybe"}, "headrank option reverse: Input should be a valid boolean, .*got 'maybe'"),
        ({"rows": "answer"}, "headrank option rows: Input should be 'query', .*, got 'answer'"),
        ({"passage_words": 0}, "passage_words 0: expected at least 1"),
        ({"filter_deviations": "two"}, "headrank option filter_deviations: .*, got 'two'"),
        ({"families": {}}, "headrank has no option 'families'"),
    ],
)
def test_option_of_the_wrong_type_is_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        headrank(folder, HEADS, options=options, device="cpu")


def test_description_tells_templates_and_heads_apart(folder):
    plain = headrank(folder, HEADS, device="cpu").describe()
    other = headrank(folder, HEADS, options={"reverse": True}, device="cpu").describe()
    assert plain["template"]["sha256"] != other["template"]["sha256"]
    assert plain["fingerprint"] == other["fingerprint"] and len(plain["fingerprint"]) == 64
    assert (plain["layers_run"], plain["layers_of_model"], plain["dtype"]) == (3, 4, "float32")


def test_templates_for_qwen_and_the_embedded_model_stay(systems):
    """Finished runs name these digests: a change here means that their scores cannot be repeated."""
    digests = {name: system.describe()["template"]["sha256"][:16] for name, system in systems.items()}
    assert digests == {
        "headrank": "2294b881a3a93508",
        "icr": "d649c4155d900452",
        "qrhead": "3d95cb5a00d21c82",
        "core": "7bb9d4605b41d04f",
        "qrranker": "af83a4d0010eeea3",
    }
    embedded = headrank(embedded_model(), device="cpu").describe()
    assert embedded["template"]["sha256"][:16] == "39a359134f0679c1"


def broken_query(model, tokenizer):
    model.layers[1].self_attn.q_proj.weight[2 * 16] = float("nan")  # head 2 of layer 1, one row of 16


def broken_embedding(model, tokenizer):
    (token,) = tokenizer("~").input_ids
    model.embed_tokens.weight[token] = float("nan")


def overflow(model, tokenizer):
    for layer in model.layers:
        layer.mlp.down_proj.weight *= 3000


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize(
    ("broken", "dtype"),
    [(broken_query, "float32"), (broken_embedding, "float32"), (overflow, "float16")],
    ids=["a query row", "an embedding", "half precision"],
)
def test_attention_that_is_not_finite_fails_its_query_by_layer_and_head(folder, name, broken, dtype):
    heads = "all" if name == "icr" else HEADS
    reranker = getattr(all_systems, name)(folder, heads, device="cpu", dtype=dtype)
    with torch.no_grad():
        broken(reranker.reader.model, reranker.reader.tokenizer)
    clean, hit = ranking(["Birds fly.", "Fish swim."]), ranking(["Birds fly.", "~", "Fish swim."])
    fine, *failed = reranker.attempt_batch([clean, replace(hit, query=Query("q2", "how do birds fly?"))])
    if broken is not broken_embedding:
        failed.append(fine)
    else:
        assert fine.docids and all(map(math.isfinite, fine.scores))
    assert all(isinstance(one, Failure) for one in failed)
    of_all, of_two = {broken_query: ("1-2", "2-3"), broken_embedding: ("0-0", "1-0"), overflow: ("1-0", "1-0")}[broken]
    first = of_all if name == "icr" else of_two
    assert f"qid q2: the attention of head {first} is not finite" in str(failed[0].error)
    with pytest.raises(ValueError, match=f"head {first} is not finite; .*dtype float32"):
        reranker.rerank(hit)


def test_heads_selected_on_another_model_are_reported(folder, caplog):
    heads = HeadSet("theirs", ((0, 0),), model="Qwen/Qwen3-4B")
    with caplog.at_level(logging.WARNING):
        headrank(folder, heads, device="cpu")
    assert "head set theirs was selected on Qwen/Qwen3-4B" in caplog.text


def test_budget_beyond_the_model_is_refused(folder):
    with pytest.raises(ValueError, match=r"max_prompt_tokens 100000: .* was made for 8192 positions"):
        headrank(folder, HEADS, device="cpu", max_prompt_tokens=100_000)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: icr(folder, instruction="qu", device="cpu"), "instruction 'qu': expected one of ie, qa"),
        (lambda folder: icr(folder, options={"instruction": "QA"}, device="cpu"), "instruction 'QA': expected one of"),
        (lambda folder: core(folder, HEADS, options={"instruction": "find"}, device="cpu"), "instruction 'find': exp"),
        (lambda folder: icr(folder, options={"instruction": [1]}, device="cpu"), r"instruction: .* string, got \[1\]"),
        (lambda folder: headrank(folder, HEADS, chat="qwen", device="cpu"), "chat 'qwen': expected auto or one of"),
        (lambda folder: headrank(folder, HEADS, chat="llama3", device="cpu"), "choose chat='plain'"),
    ],
)
def test_wrong_choices_are_refused(folder, make, message):
    with pytest.raises(ValueError, match=message):
        make(folder)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"instruction": "qa"},
            "Please answer the following question based on the information in the paragraphs above.",
        ),
        ({"options": {"instruction": "qa"}}, "Please answer the following question based on the information in"),
        ({"options": {"instruction": "ie"}}, "Please find information that are relevant to the following query in"),
        ({"options": {"instruction": "Which of them answer it?"}}, "Which of them answer it?"),
        ({"options": {"instruction": "Which?"}}, "Which?"),
    ],
)
def test_instruction_by_name_is_the_authors_and_words_are_left(folder, given, expected):
    prompt = icr(folder, **given, device="cpu").builder.build(ranking(["text"]))
    assert f"[1] text \n\n{expected}" in prompt.text


def test_qrhead_writes_no_newline_after_the_roles(systems):
    prompt = systems["qrhead"].builder.build(ranking(["text"]))
    assert prompt.text.startswith("<|im_start|>user Here are some paragraphs:\n\n[1] text\n\nPlease")
    assert prompt.text.endswith("fly?<|im_end|>\n<|im_start|>assistant")


def test_trained_folder_brings_its_heads_template_and_rule(folder, tmp_path):
    trained = tmp_path / "trained"
    shutil.copytree(folder, trained)
    with pytest.raises(ValueError, match=r"headrank needs heads: .*trained brings no heads.json; name a head set"):
        headrank(trained, device="cpu")
    HEADS.save(trained / "heads.json")
    assert headrank(trained, device="cpu").recipe.rule.length_exponent == 0.0
    recipe = {"name": "headrank", "template": {"name": "x", "passage_words": 7}, "rule": {"length_exponent": 0.3}}
    (trained / "recipe.json").write_text(json.dumps(recipe))
    reranker = headrank(trained, options={"reverse": True}, device="cpu")
    assert reranker.reader.heads == HEADS
    assert reranker.recipe.template.passage_words == 7 and reranker.recipe.template.reverse
    assert reranker.recipe.rule.length_exponent == 0.3
    (trained / "recipe.json").write_text('{"template": {"colour": 1}, "rule": {}}')
    with pytest.raises(ValueError, match=r"recipe.json: not the template and rule of a trained model .*colour"):
        headrank(trained, device="cpu")
