"""Isolated passages against the same model run eagerly over the whole sequence with an explicit block mask."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from graded_lists import overlap_lists
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model import load
from headrank_pipeline.attention.prompt import PromptBuilder
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.recipe import CORE, HEADRANK, ICR, PLAIN, QRRANKER, Support
from headrank_pipeline.cli import main
from headrank_pipeline.learn.lists import save_lists
from headrank_pipeline.learn.movable import checkpointed_activations
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.systems import core, headrank, icr, qrhead, qrranker
from headrank_pipeline.trec import write_candidates

TOLERANCE = 1e-5
ISOLATED = {"passages": "isolated"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: tiny_model(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def builder_of(recipe=HEADRANK, budget=4096, **changes):
    return PromptBuilder(tiny_tokenizer(), recipe.varied(ISOLATED | changes).template, max_prompt_tokens=budget)


def ranking(texts, query="do birds swim", qid="q"):
    return Ranking(Query(qid, query), tuple(Candidate(f"d{i}", -float(i), text) for i, text in enumerate(texts)))


def rankings(count=3):
    """Lists of different sizes with duplicates, a passage of one letter and an empty one."""
    made = []
    for n in range(count):
        texts = [f"Passage {i} about birds and {i * n} fish. " * (1 + (i + n) % 4) for i in range(2 + n)]
        made.append(ranking([*texts, texts[0], "x", ""], "do birds swim " * (n + 1), f"q{n}"))
    return made


def reader_of(folder, heads="all", **options):
    return AttentionReader(load(folder, heads, device="cpu"), **options)


def block_mask(prompt):
    """[N, N] bool from the definition: passages see the opening and themselves, the question sees all; causal."""
    first, *_, question = prompt.boundaries.tolist()
    owner = np.searchsorted(prompt.boundaries, np.arange(len(prompt)), side="right")  # 0: opening, P + 1: question
    row, column = np.indices((len(prompt), len(prompt)))
    seen = (column < first) | (owner[row] == owner[column]) | (row >= question)
    return torch.from_numpy(seen & (column <= row))


def positions(prompt):
    first, question = prompt.boundaries[0], prompt.boundaries[-1]
    sizes = np.diff(prompt.boundaries)
    parts = [np.arange(first), *(first + np.arange(size) for size in sizes)]
    return torch.from_numpy(np.concatenate([*parts, first + sizes.max() + np.arange(len(prompt) - question)]))


def eager_model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def eager_rows(model, prompt, support="all"):
    """[L * A, N]: mean over the rows of the whole model's attention under the block mask."""
    bias = torch.zeros(len(prompt), len(prompt)).masked_fill(~block_mask(prompt), torch.finfo(torch.float32).min)
    output = model(
        torch.tensor(prompt.token_ids)[None], attention_mask=bias[None, None], position_ids=positions(prompt)[None],
        output_attentions=True,
    )  # fmt: skip
    attention = torch.stack([layer[0] for layer in output.attentions])[:, :, slice(*prompt.rows)]
    if support == "all":
        return attention.mean(2).flatten(0, 1)
    columns = torch.zeros(len(prompt))
    for start, end in prompt.passages:
        columns[start:end] = 1
    attention = attention * columns
    attention = attention / attention.sum(-1, keepdim=True)
    if support == "passages":
        return attention.mean(2).flatten(0, 1)
    shares = [attention[..., start:end].sum(-1, keepdim=True) for start, end in prompt.passages]
    together = torch.softmax(torch.stack([share.clamp_min(1e-6).log().mean(2) for share in shares]), 0)
    parts = [torch.zeros_like(attention[:, :, 0])] * len(prompt)
    for (start, end), share, scaled in zip(prompt.passages, shares, together, strict=True):
        for token in range(start, end):
            parts[token] = (attention[..., token, None] / share).mean(2) * scaled
    return torch.stack([part.flatten(0, 1)[:, -1] for part in parts], -1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("support", get_args(Support))
def test_equals_eager_attention_under_a_block_mask(folders, family, support):
    builder, model = builder_of(), eager_model(folders[family])
    made = [builder.build(one) for one in rankings()]
    reads = reader_of(folders[family], batch_tokens=100).read(made, support=support)
    with torch.no_grad():
        for prompt, read in zip(made, reads, strict=True):
            assert (read - eager_rows(model, prompt, support)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("heads", [((0, 1),), ((2, 3), (0, 1), (1, 2))])
def test_truncated_model_equals_whole_model(folders, heads):
    made, index = [builder_of().build(one) for one in rankings()], [layer * 4 + head for layer, head in heads]
    truncated = reader_of(folders["qwen3"], HeadSet("some", heads)).read(made)
    for few, every in zip(truncated, reader_of(folders["qwen3"]).read(made), strict=True):
        assert (few - every[index]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("support", get_args(Support))
def test_calibration_equals_two_readings(folders, family, support):
    builder, model = builder_of(ICR), eager_model(folders[family])
    pairs = [(prompt, builder.with_query(prompt, "N/A")) for prompt in map(builder.build, rankings())]
    reads = reader_of(folders[family]).read_calibrated(pairs, support=support)
    with torch.no_grad():
        for pair, read in zip(pairs, reads, strict=True):
            for prompt, one in zip(pair, read, strict=True):
                assert (one - eager_rows(model, prompt, support)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("support", ["passages", "passages-geometric"])
def test_gradients_equal_those_of_the_reference(folders, checkpointed, support):
    builder, reference = builder_of(), eager_model(folders["qwen3"])
    made = [builder.build(one) for one in rankings(2)]
    chosen = HeadSet("some", ((2, 3), (0, 1), (1, 2)))
    reader = reader_of(folders["qwen3"], chosen)
    reader.model.train().requires_grad_(True)
    index = [layer * 4 + head for layer, head in chosen.heads]
    weights = [torch.randn(len(index), len(prompt), generator=torch.manual_seed(1)) for prompt in made]
    with checkpointed_activations(reader.model, enabled=checkpointed):
        reads = reader.forward(made, support=support)
        sum((read * weight).sum() for read, weight in zip(reads, weights, strict=True)).backward()
    expected = [eager_rows(reference, prompt, support)[index] for prompt in made]
    sum((read * weight).sum() for read, weight in zip(expected, weights, strict=True)).backward()
    theirs = dict(reference.model.named_parameters())
    moved = 0
    for name, weight in reader.model.named_parameters():
        gradient = theirs[name].grad
        if weight.grad is None or gradient is None:
            assert weight.grad is None or not weight.grad.any()
            assert gradient is None or not gradient.any()
            continue
        moved += 1
        assert (weight.grad - gradient).abs().max() <= 1e-4 * (1 + gradient.abs().max()), name
    assert moved > 20


@pytest.mark.parametrize("support", get_args(Support))
def test_batch_of_lists_equals_one_by_one(folders, support):
    made = [builder_of().build(one) for one in rankings(5)]
    batched = reader_of(folders["qwen3"]).read(made, support=support)
    single = reader_of(folders["qwen3"], batch_tokens=1).read(made, support=support)
    for one, other in zip(batched, single, strict=True):
        assert (one - other).abs().max() <= TOLERANCE


def test_single_and_empty_passages(folders):
    model = eager_model(folders["qwen3"])
    bare = {"separator": "", "opening": "", "instruction": "Which?"}
    for texts, changes in ((["birds"], {}), ([""], {}), (["", "b", ""], bare), (["birds"], bare)):
        builder = builder_of(**changes)
        prompt = builder.build(ranking(texts))
        (read,) = reader_of(folders["qwen3"]).read([prompt])
        with torch.no_grad():
            assert (read - eager_rows(model, prompt)).abs().max() <= TOLERANCE


def test_no_tokens_before_the_question(folders):
    template = replace(builder_of(separator="", opening="", instruction="Which?").template, chat=PLAIN)
    prompt = PromptBuilder(tiny_tokenizer(), template, max_prompt_tokens=100).build(ranking(["", ""]))
    assert prompt.boundaries.tolist() == [0, 0, 0]
    (read,) = reader_of(folders["qwen3"]).read([prompt])
    with torch.no_grad():
        assert (read - eager_rows(eager_model(folders["qwen3"]), prompt)).abs().max() <= TOLERANCE


@pytest.fixture(scope="module")
def reranker(folders):
    return headrank(folders["qwen3"], HeadSet("some", ((1, 0), (2, 3))), options=ISOLATED, device="cpu")


words = st.lists(st.sampled_from(["birds", "fly", "x", "over the sea", "", "[1] fish."]), max_size=6).map(" ".join)


@given(texts=st.lists(words, min_size=1, max_size=6), data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scores_do_not_depend_on_the_order_of_candidates(reranker, texts, data):
    given_order = ranking(texts)
    places = data.draw(st.permutations(range(len(texts))))
    shuffled = Ranking(
        given_order.query, tuple(Candidate(f"d{at}", -float(n), texts[at]) for n, at in enumerate(places))
    )
    scores = [{hit.docid: hit.score for hit in reranker.rerank(one).candidates} for one in (given_order, shuffled)]
    assert scores[0] == scores[1]  # to the last bit


def test_passages_of_one_length_score_alike_to_the_last_bit_in_any_order(reranker):
    texts = [f"{digit} birds fly over the sea" for digit in range(10)]
    found = []
    for order in (range(10), range(9, -1, -1), (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)):
        candidates = tuple(Candidate(f"d{at}", -float(place), texts[at]) for place, at in enumerate(order))
        hits = reranker.rerank(Ranking(Query("q1", "do birds fly?"), candidates)).candidates
        found.append({hit.docid: hit.score for hit in hits})
    assert found[0] == found[1] == found[2]


SYSTEMS = {"headrank": headrank, "icr": icr, "qrhead": qrhead, "core": core, "qrranker": qrranker}


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_reads_isolated_passages(folders, system):
    reranker = SYSTEMS[system](folders["qwen3"], HeadSet("some", ((1, 0), (2, 3))), options=ISOLATED, device="cpu")
    texts = ["Birds fly.", "x", "Fish swim. " * 9, "Birds fly."]
    (one, other) = reranker.rerank_batch([ranking(texts), ranking(texts[::-1])])
    by_text = [{texts[int(hit.docid[1:])]: hit.score for hit in one.candidates}]
    by_text += [{texts[::-1][int(hit.docid[1:])]: hit.score for hit in other.candidates}]
    assert by_text[0] == by_text[1]
    assert len(set(by_text[0].values())) == 3


@given(texts=st.lists(words, min_size=1, max_size=5), system=st.sampled_from([HEADRANK, ICR, CORE, QRRANKER]))
@settings(max_examples=40, deadline=None)
def test_spans_stay_inside_their_pieces(texts, system):
    prompt = builder_of(system, separator="").build(ranking(texts))  # CoRe's token after the text would be another's
    order = range(len(texts))[::-1] if system.template.reverse else range(len(texts))
    starts, ends = prompt.boundaries[:-1], prompt.boundaries[1:]
    for place, index in enumerate(order):
        start, end = prompt.passages[index]
        assert starts[place] <= start <= end <= ends[place]
        assert prompt.shown[index].text in tiny_tokenizer().decode(prompt.token_ids[starts[place] : ends[place]])
    assert prompt.rows[0] >= prompt.boundaries[-1]


def test_place_in_the_label_is_refused_or_left_out(reranker):
    assert reranker.recipe.template.label == ""
    assert ICR.varied(ISOLATED | {"label": "* "}).template.label == "* "
    with pytest.raises(ValueError, match=r"label '\[\{rank\}\] ': with isolated passages nothing may depend"):
        HEADRANK.varied(ISOLATED | {"label": "[{rank}] "})


def test_causal_and_isolated_prompts_are_not_read_together(folders):
    isolated = builder_of().build(ranking(["birds"]))
    causal = PromptBuilder(tiny_tokenizer(), HEADRANK.template, max_prompt_tokens=100).build(ranking(["birds"]))
    other = builder_of(opening="Read these:").build(ranking(["birds"]))
    for pair, message in (
        ((isolated, causal), "a causal prompt among"),
        ((isolated, other), "differ in their opening"),
    ):
        with pytest.raises(ValueError, match=message):
            reader_of(folders["qwen3"]).read(pair)
    with pytest.raises(ValueError, match="differ before their questions"):
        reader_of(folders["qwen3"]).read_calibrated([(isolated, builder_of().build(ranking(["fish"])))])


def test_budget_bounds_positions_not_the_whole_list():
    texts = ["birds fly over the sea " * 20, "fish"] * 10
    prompt = builder_of(budget=90).build(ranking(texts))
    sizes = np.diff(prompt.boundaries)
    assert len(prompt) > 400 and len(prompt) - sizes.sum() + sizes.max() == 90
    assert prompt.counts["passages_cut"] == 10
    assert prompt.shown[1].text == "fish"
    with pytest.raises(ValueError, match=r"leaves fewer than 8 per passage; raise max_prompt_tokens"):
        builder_of(budget=40).build(ranking(texts))


def test_tokens_never_cross_the_borders_of_pieces():
    prompt = builder_of().build(ranking(["It ends.", "Birds"]))
    assert not builder_of().template.chat.user.startswith("\n")
    texts = [tiny_tokenizer().decode(part) for part in np.split(prompt.token_ids, prompt.boundaries)]
    assert texts[1:3] == ["It ends.\n\n", "Birds\n\n"]
    assert texts[3].startswith("Please find")
    assert tiny_tokenizer().decode(prompt.token_ids[slice(*prompt.passages[1])]) == "Birds"


@pytest.fixture
def process_settings():
    """The command line sets up logging for the process."""
    package = logging.getLogger("headrank_pipeline")
    handlers, level = list(package.handlers), package.level
    yield
    package.handlers, package.level, package.propagate = handlers, level, True


def invoke(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def test_a_model_is_trained_and_reranks_with_isolated_passages(folders, tmp_path, process_settings):
    heads, model, candidates = tmp_path / "heads.json", tmp_path / "trained", tmp_path / "candidates.jsonl"
    save_lists(tmp_path / "lists.jsonl", overlap_lists(3))
    write_candidates(candidates, rankings(2))
    both = ["--lists", tmp_path / "lists.jsonl", "--option", "passages=isolated", "--option",
            "support=passages-geometric", "--no-figure", "--device", "cpu"]  # fmt: skip
    invoke("select-heads", "--model", folders["qwen3"], "--output", heads, "--num-heads", 2, *both)
    invoke("train", "--model", folders["qwen3"], "--heads", heads, "--output", model, "--epochs", 1, *both)
    trained = json.loads((model / "recipe.json").read_text())
    assert (trained["template"]["passages"], trained["template"]["label"]) == ("isolated", "")
    measured = json.loads(heads.read_text())["selection"]["rule"]
    assert measured["support"] == trained["rule"]["support"] == "passages-geometric"
    invoke("rerank", "--candidates", candidates, "--model", model, "--output", tmp_path / "run", "--device", "cpu")
    made_by = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert made_by["identity"]["reranker"]["template"]["passages"] == "isolated"
    other = ["rerank", "--candidates", candidates, "--model", folders["qwen3"], "--heads", heads, "--device", "cpu"]
    invoke(*other, "--option", "passages=isolated", "--output", tmp_path / "other")
    made_by = json.loads((tmp_path / "other" / "manifest.json").read_text())
    assert made_by["identity"]["reranker"]["template"]["passages"] == "isolated"


@pytest.mark.parametrize("command", ["select-heads", "train"])
@pytest.mark.parametrize(
    ("typed", "status", "told"),
    [
        (["--option", "support=nowhere"], 5, "option support: Input should be"),
        (["--option", "passage_word=9"], 5, "did you mean 'passage_words'?"),
        (["--passages", "isolated"], 2, "write --option passages=isolated"),
    ],
)
def test_options_that_cannot_work_are_refused_before_a_model_is_loaded(command, typed, status, told, tmp_path):
    save_lists(tmp_path / "lists.jsonl", overlap_lists(3))
    named = [command, "--model", tmp_path, "--lists", tmp_path / "lists.jsonl", "--output", tmp_path / "out" / "x.json"]
    heads = ["--heads", "all"] if command == "train" else []
    result = CliRunner().invoke(main, [str(argument) for argument in (*named, *heads, "--no-figure", *typed)])
    assert (result.exit_code, told in result.output) == (status, True)
