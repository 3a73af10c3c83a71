from __future__ import annotations

import logging
import random
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CONTROLS, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from headrank_pipeline.attention.prompt import Prompt, PromptBuilder
from headrank_pipeline.attention.recipe import (
    CORE,
    HEADRANK,
    ICR,
    LLAMA3,
    PLAIN,
    QRHEAD,
    QRRANKER,
    PromptTemplate,
    neutralised,
)
from headrank_pipeline.records import Candidate, Query, Ranking

RECIPES = [HEADRANK, ICR, QRHEAD, CORE, QRRANKER]


def ranking(*texts: str, query: str = "how do birds fly?", title: str | None = None) -> Ranking:
    candidates = (Candidate(f"d{i}", -float(i), text, title) for i, text in enumerate(texts))
    return Ranking(Query("q1", query), tuple(candidates))


def built(template: PromptTemplate, candidates: Ranking, budget: int = 4096) -> Prompt:
    return PromptBuilder(tiny_tokenizer(), template, max_prompt_tokens=budget).build(candidates)


def shown(prompt: Prompt, index: int) -> str:
    start, end = prompt.passages[index]
    return tiny_tokenizer().decode(prompt.token_ids[start:end])


def rows(prompt: Prompt) -> str:
    return tiny_tokenizer().decode(prompt.token_ids[slice(*prompt.rows)])


def test_headrank_prompt_is_the_documented_text():
    prompt = built(HEADRANK.template, ranking("Birds fly.", title="Flight"))
    assert prompt.text == (
        "<|im_start|>user\nHere are some paragraphs:\n\n[1] Flight\nBirds fly.\n\nPlease find information that are "
        "relevant to the following query in the paragraphs above.\n\nQuery: how do birds fly?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_duplicate_and_quoted_passages_get_their_own_spans():
    prompt = built(HEADRANK.template, ranking("Birds fly.", "He said: Birds fly. Well", "Birds fly."))
    starts = [start for start, _ in prompt.passages.tolist()]
    assert starts == sorted(set(starts))
    assert [shown(prompt, i).strip() for i in range(3)] == ["Birds fly.", "He said: Birds fly. Well", "Birds fly."]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_reversed_order_keeps_spans_in_candidate_order(recipe):
    prompt = built(replace(recipe.template, reverse=True), ranking("First here", "Second here"))
    assert "First here" in shown(prompt, 0)
    assert prompt.passages[0, 0] > prompt.passages[1, 0]
    assert prompt.text.index("Second here") < prompt.text.index("First here")
    assert prompt.text.index("1] Second") < prompt.text.index("2] First")  # labels count places in the prompt


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_shuffled_order_follows_seed_query_and_docids_alone(recipe):
    texts = [f"Passage number {word}" for word in ("one", "two", "six", "ten", "red", "tan")]
    given_order = ranking(*texts)

    def order_of(candidates, seed, *, reverse=False, turned=False):
        template = replace(recipe.template, shuffle_seed=seed, reverse=reverse)
        builder = PromptBuilder(tiny_tokenizer(), template, max_prompt_tokens=4096)
        prompt = builder.build(candidates, turned=turned)
        order = sorted(range(6), key=lambda index: prompt.text.index(candidates.candidates[index].text))
        assert prompt.order == tuple(order)
        assert [order[place] for place in prompt.places] == list(range(6))
        assert all(candidates.candidates[i].text in shown(prompt, i) for i in range(6))
        blank = builder.with_query(prompt, "N/A")
        assert blank.order == prompt.order and blank.passages.tolist() == prompt.passages.tolist()
        return [candidates.candidates[index].docid for index in order]

    drawn = order_of(given_order, 1)
    other_query = replace(given_order, query=Query("q2", given_order.query.text))
    assert len({tuple(order_of(given_order, seed)) for seed in range(4)}) == 4
    assert order_of(other_query, 1) != drawn != list(given_order.docids)
    turned_round = tuple(replace(c, score=-float(n)) for n, c in enumerate(given_order.candidates[::-1]))
    assert order_of(replace(given_order, candidates=turned_round), 1) == drawn
    assert order_of(given_order, 1, reverse=True) == order_of(given_order, 1, turned=True) == drawn[::-1]
    assert order_of(given_order, 1, reverse=True, turned=True) == drawn
    assert order_of(given_order, None, turned=True) == order_of(given_order, None, reverse=True)


def test_rows_of_each_recipe():
    please = "Please find information that are relevant to the following query in the paragraphs above."
    question, suffix = " how do birds fly?", "<|im_end|>\n<|im_start|>assistant\n"
    expected = {
        "headrank": question + suffix,
        "icr": f"{please} \n\nQuery:{question}{suffix}",
        "qrhead": f"{please}\n\nQuery:{question}{suffix.rstrip()}",
        "core": f"{please}\n\nQuery:{question}<|im_end|>",
        "qrranker": f"Use the retrieved chunks to answer the user's query.\n\nQuery:{question}",
    }
    assert {recipe.name: rows(built(recipe.template, ranking("Birds fly"))) for recipe in RECIPES} == expected


def test_rows_may_be_the_query_alone_as_in_selective_icr():
    assert rows(built(replace(ICR.template, rows="query"), ranking("Birds fly"))) == " how do birds fly?"


def test_columns_of_each_recipe():
    spans = {recipe.name: shown(built(recipe.template, ranking("Birds fly", title="T")), 0) for recipe in RECIPES}
    assert spans["icr"] == spans["qrhead"] == "[1] T\nBirds fly"
    assert spans["core"].startswith(" Birds fly")  # no title, no label, and one token more
    assert spans["core"] == " Birds fly\n\n"
    assert spans["qrranker"] == "[1] Title: T: Birds fly\n\n"
    assert spans["headrank"].strip() == "T\nBirds fly"


def test_full_stop_merged_with_the_blank_line_counts_for_the_passage():
    prompt = built(HEADRANK.template, ranking("Birds fly.", "Fish swim."))
    merged = tiny_tokenizer().decode(prompt.token_ids[prompt.passages[0, 1] - 1 : prompt.passages[0, 1]])
    assert merged == ".\n\n"


@pytest.mark.parametrize(("keep", "expected"), [(False, "[1] text"), (True, "[1] \ntext")])
def test_empty_title_is_left_out_unless_the_template_keeps_it(keep, expected):
    template = replace(ICR.template, keep_empty_title=keep)
    assert shown(built(template, ranking("text", title="")), 0) == expected


@pytest.mark.parametrize("place", ["text", "title", "query"])
@pytest.mark.parametrize("control", CONTROLS)
def test_control_tokens_in_content_are_neutralised_and_counted(place, control):
    texts = {"text": "plain", "title": "plain", "query": "plain", place: f"a{control}b{control}"}
    candidates = Ranking(Query("q", texts["query"]), (Candidate("d", 1.0, texts["text"], texts["title"]),))
    prompt = built(HEADRANK.template, candidates)
    assert prompt.counts["control_tokens_neutralised"] == 2
    clean = built(HEADRANK.template, Ranking(Query("q", "plain"), (Candidate("d", 1.0, "plain", "plain"),)))
    special = list(tiny_tokenizer().get_added_vocab().values())
    assert np.isin(prompt.token_ids, special).sum() == np.isin(clean.token_ids, special).sum()


def test_a_control_token_that_the_tokenizer_itself_makes_of_a_text_is_refused():
    backend = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    backend.normalizer = normalizers.NFKC()
    backend.add_special_tokens([AddedToken("<|stop|>", normalized=True)])
    builder = PromptBuilder(
        PreTrainedTokenizerFast(tokenizer_object=backend), HEADRANK.template, max_prompt_tokens=4096
    )
    with pytest.raises(ValueError, match="a control token survived in a passage or query"):
        builder.build(ranking("full width: \uff1c|stop|\uff1e"))


def test_words_beyond_the_limit_are_dropped_and_counted():
    prompt = built(replace(HEADRANK.template, passage_words=3), ranking("one two  three four five", "one two"))
    assert shown(prompt, 0).strip() == "one two  three"
    assert (prompt.counts["passages_cut"], prompt.counts["words_dropped"]) == (1, 2)


def test_tokens_beyond_the_limit_are_dropped_and_counted():
    whole = built(HEADRANK.template, ranking("alpha beta gamma delta epsilon zeta eta theta"))
    prompt = built(
        replace(HEADRANK.template, passage_tokens=5), ranking("alpha beta gamma delta epsilon zeta eta theta")
    )
    assert np.diff(prompt.passages[0]) <= 5 + 1  # the full text's last token may merge with what follows
    assert prompt.counts["tokens_dropped"] == np.diff(whole.passages[0])[0] - 5
    assert prompt.counts["passages_cut"] == 1


def test_a_passage_longer_than_the_whole_budget_is_cut_to_fit():
    prompt = built(HEADRANK.template, ranking("long " * 5000, "short text"), budget=300)
    assert len(prompt) <= 300
    assert prompt.counts["passages_cut"] == 1
    assert prompt.counts["words_dropped"] == 4700
    assert prompt.counts["tokens_dropped"] > 0
    assert "short text" in shown(prompt, 1)


@pytest.mark.parametrize("seed", [0, 5, 9, 10])
@pytest.mark.parametrize("budget", [900, 1500])
def test_budget_is_kept_where_cut_words_split_into_more_pieces(seed, budget):
    chance = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyzéß🐟"
    texts = []
    for _ in range(40):
        words = ("".join(chance.choices(letters, k=chance.randint(1, 14))) for _ in range(chance.randint(5, 60)))
        texts.append(" ".join(words))
    prompt = built(PromptTemplate("plain"), ranking(*texts, query="birds"), budget)
    assert budget * 0.8 < len(prompt) <= budget


def test_a_token_across_two_passages_belongs_to_the_earlier_one():
    template = replace(HEADRANK.template, label="", separator="", trailing_columns=1)
    prompt = built(template, ranking("query: birds are", "are some para", "graphs are"))
    taken = [token for start, end in prompt.passages.tolist() for token in range(start, end)]
    assert len(taken) == len(set(taken))


@pytest.mark.parametrize("passages", ["causal", "isolated"])
def test_a_prompt_that_fits_is_tokenised_once(monkeypatch, passages):
    builder = PromptBuilder(
        tiny_tokenizer(), replace(QRRANKER.template, passages=passages, label=""), max_prompt_tokens=999
    )
    encoded = []

    class Noting:
        def encode(self, text, **options):
            encoded.append(text)
            return tiny_tokenizer().backend_tokenizer.encode(text, **options)

    monkeypatch.setattr(builder, "_encode", Noting())
    prompt = builder.build(ranking("Birds fly.", "Fish swim."))
    assert "".join(encoded) == prompt.text


def test_more_passages_than_the_budget_holds_are_refused_by_name():
    candidates = ranking(*(f"number {i} " * 20 for i in range(50)))
    with pytest.raises(ValueError, match=r"qid q1: 50 passages do not fit: .* rerank fewer or raise max_prompt_tokens"):
        built(HEADRANK.template, candidates, budget=400)


def test_candidate_without_text_is_refused_by_name():
    with pytest.raises(ValueError, match="qid q docid d: the passage has no text"):
        built(HEADRANK.template, Ranking(Query("q", "x"), (Candidate("d", 1.0),)))


def test_template_for_another_family_is_refused():
    with pytest.raises(ValueError, match=r"control tokens .*start_header_id.* choose chat='plain'"):
        PromptBuilder(tiny_tokenizer(), replace(HEADRANK.template, chat=LLAMA3), max_prompt_tokens=100)


def test_other_query_over_the_same_passages_shares_the_prefix():
    builder = PromptBuilder(tiny_tokenizer(), ICR.template, max_prompt_tokens=200)
    prompt = builder.build(ranking("word " * 400, "Birds fly."))
    blank = builder.with_query(prompt, "N/A")
    shared = min(prompt.prefix, blank.prefix)
    assert np.array_equal(prompt.token_ids[:shared], blank.token_ids[:shared])
    assert np.array_equal(prompt.passages, blank.passages)
    assert shared == prompt.rows[0]


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    ["Birds fly.", "[1] Birds fly.", "🐟🐠", "e\u0301\u0301", "<|im_end|>", " ", "\n\n", "word"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(texts, min_size=1, max_size=5), texts, st.sampled_from(RECIPES), st.booleans())
def test_spans_cover_exactly_the_passages_for_any_text(passages, title, recipe, plain):
    template = replace(recipe.template, trailing_columns=0, columns="text", title="", chat=PLAIN if plain else None)
    prompt = built(template, ranking(*passages, title=title))
    chat = PromptBuilder(tiny_tokenizer(), template, max_prompt_tokens=10).template.chat
    offsets = tiny_tokenizer().backend_tokenizer.encode(prompt.text, add_special_tokens=False).offsets
    order = range(len(passages))[::-1] if template.reverse else range(len(passages))
    cursor, taken = len(chat.user + template.opening + template.separator), set()
    for rank, index in enumerate(order, start=1):
        start = cursor + len(template.label.format(rank=rank))
        end = start + len(prompt.shown[index].text)
        assert prompt.text[start:end] == prompt.shown[index].text
        overlapping = {i for i, (a, b) in enumerate(offsets) if a < end and b > start} if end > start else set()
        assert set(range(*prompt.passages[index])) == overlapping - taken
        taken |= overlapping
        cursor = end + len(template.separator)


# ---------------------------------------------------------------------------------- tokenizers of other makes


def with_tokens(*tokens: str | AddedToken, special: bool = False, **named: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with tokens added to it."""
    copied = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str()),
        eos_token="<|im_end|>",
        **named,
    )
    copied.add_tokens(list(tokens), special_tokens=special)
    return copied


def words_tokenizer() -> PreTrainedTokenizerFast:
    """One that knows words only and writes <unk> for all else, as SentencePiece does without byte fallback."""
    words = ["<unk>", "Birds", "fly", "Query", ":", "how", "do", "birds", "?"]
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def test_an_added_word_is_left_whole_and_markup_is_not(caplog):
    tokenizer = with_tokens("COVID-19", "<think2>", "[TOOL]")
    prompt = PromptBuilder(tokenizer, HEADRANK.template, max_prompt_tokens=4096).build(
        ranking("COVID-19 spreads <think2> and [TOOL]", query="what is COVID-19?")
    )
    assert "COVID-19 spreads < think2> and [ TOOL]" in prompt.text
    assert prompt.counts["control_tokens_neutralised"] == 2
    assert (prompt.token_ids == tokenizer.convert_tokens_to_ids("COVID-19")).sum() == 2


def test_an_added_token_that_begins_with_a_space_ends(request):
    tokenizer = with_tokens(" <sep>", " - -", special=True)
    prompt = PromptBuilder(tokenizer, HEADRANK.template, max_prompt_tokens=4096).build(ranking("a <sep> b - - c"))
    assert "a < sep> b -  - c" in prompt.text
    assert prompt.counts["control_tokens_neutralised"] == 2


@settings(max_examples=60)
@given(st.text(alphabet="a <-", max_size=12), st.lists(st.text(alphabet="a <-", min_size=2, max_size=4), max_size=3))
def test_breaking_up_control_tokens_ends_and_leaves_none(text, tokens):
    tokens = [token for token in tokens if len(token.strip()) > 1]
    pattern = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))) if tokens else None
    left, found = neutralised(text, pattern)
    assert not any(token in left for token in tokens)
    assert (left == text) == (found == 0)


def test_characters_that_a_tokenizer_cannot_spell_are_counted_and_said(caplog):
    builder = PromptBuilder(words_tokenizer(), HEADRANK.template, max_prompt_tokens=4096)
    assert "unknown_tokens" not in builder.build(ranking("Birds fly")).counts
    with caplog.at_level(logging.WARNING):
        prompt = builder.build(ranking("Birds fly \u6771\u4eac", "Birds <unk>"))
    assert prompt.counts["unknown_tokens"] == 1 + 3  # "<unk>" is broken up: three signs that are no words
    assert prompt.counts["control_tokens_neutralised"] == 1
    assert caplog.text.count("are unknown to the tokenizer (<unk>)") == 1


def test_plain_markup_begins_as_the_tokenizer_does():
    begins = with_tokens("<s>", special=True, bos_token="<s>")
    silent = PromptBuilder(begins, HEADRANK.template, max_prompt_tokens=4096).build(ranking("Birds fly."))
    assert begins.bos_token_id not in silent.token_ids
    begins.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begins.bos_token_id)]
    )
    plain = replace(HEADRANK.template, chat=PLAIN)
    builder = PromptBuilder(begins, plain, max_prompt_tokens=4096)
    prompt = builder.build(ranking("Birds fly."))
    assert prompt.token_ids[0] == begins.bos_token_id and (prompt.token_ids == begins.bos_token_id).sum() == 1
    assert prompt.text.startswith("<s>Here are some paragraphs:")
    assert builder.template.describe()["chat"]["user"] == "<s>"
    chatml = PromptBuilder(begins, HEADRANK.template, max_prompt_tokens=4096).build(ranking("Birds fly."))
    assert begins.bos_token_id not in chatml.token_ids


CHINESE = "\u6771\u4eac\u662f\u65e5\u672c\u7684\u9996\u90fd" * 700


@pytest.mark.parametrize("recipe", [HEADRANK, ICR, QRHEAD, CORE], ids=lambda recipe: recipe.name)
def test_text_without_spaces_is_cut_by_tokens(recipe):
    words = recipe.template.passage_words
    prompt = PromptBuilder(tiny_tokenizer(), recipe.template, max_prompt_tokens=100_000).build(
        ranking(CHINESE, "Birds fly.")
    )
    assert len(prompt.shown[0].text) < len(CHINESE) / 3
    assert prompt.counts["passages_cut"] == 1 and prompt.counts["tokens_dropped"] > 1000
    start, end = prompt.passages[0]
    assert end - start <= 4 * words + 20  # label and title come on top


def test_a_budget_of_tokens_per_passage_may_be_given_or_none():
    few = PromptBuilder(tiny_tokenizer(), replace(HEADRANK.template, passage_tokens=50), max_prompt_tokens=100_000)
    assert len(few.build(ranking(CHINESE)).shown[0].text) <= 50
    whole = replace(HEADRANK.template, passage_words=None)
    everything = PromptBuilder(tiny_tokenizer(), whole, max_prompt_tokens=100_000).build(ranking(CHINESE))
    assert everything.shown[0].text == CHINESE and everything.counts["tokens_dropped"] == 0


def test_english_at_its_word_limit_loses_no_token():
    text = "Immunohistochemistry, 2-deoxy-D-glucose (2-DG), p<0.05; " * 60
    prompt = PromptBuilder(tiny_tokenizer(), replace(HEADRANK.template, passage_words=240), max_prompt_tokens=100_000)
    counts = prompt.build(ranking("Birds fly over the old harbour. " * 80, text[:300])).counts
    assert counts["words_dropped"] == 240 and counts["tokens_dropped"] == 0


@pytest.mark.parametrize(
    "label", ["{doc} ", "{} ", "{0} ", "[{rank ", "{rank!x} ", "{rank:q}", "{rank.name}", "{rank[0]}"]
)
def test_a_label_that_cannot_be_filled_in_is_refused_before_anything_is_read(label):
    with pytest.raises(
        ValueError, match=rf"option label '{re.escape(label)}': \{{rank\}}, a passage's place, is all that"
    ):
        HEADRANK.varied({"passages": "causal", "label": label})


def test_a_label_may_write_ranks_and_braces_in_any_form():
    prompt = built(replace(HEADRANK.template, label="{{{rank:02}}} "), ranking("Birds fly."))
    assert "{01} " in prompt.text
    with pytest.raises(ValueError, match="nothing may depend on a passage's place"):
        replace(HEADRANK.template, passages="isolated", label="{rank:02} ")
