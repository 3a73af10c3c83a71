"""What published head sets were selected with: their authors' prompts, spans and scores, for each family they cover."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from published_families import MODELS, family_model, family_tokenizer
from reference_published import MARKUP, scores
from tiny_models import tiny_tokenizer
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.prompt import PromptBuilder
from headrank_pipeline.attention.recipe import CHATS, CORE, HEADRANK, ICR, PLAIN, QRHEAD, QRRANKER, chat_of
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.systems import core, icr, qrhead, qrranker

RECIPES = {recipe.name: recipe for recipe in (HEADRANK, ICR, QRHEAD, CORE, QRRANKER)}
SYSTEMS = {"icr": icr, "qrhead": qrhead, "core": core, "qrranker": qrranker}
HEADS = HeadSet("some", ((1, 0), (2, 3), (3, 1)))
COVERED = [(system, family) for system, families in MARKUP.items() for family in families]
PLEASE = "Please find information that are relevant to the following query in the paragraphs above."

# By system and family, put together by hand from the authors' code; the first passage has the title "T".
PROMPTS = {
    ("icr", "llama3"): (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|> Here are some paragraphs: \n\n[1] Fish swim. "
        f"\n\n[2] T\nBirds fly. \n\n{PLEASE} \n\nQuery: how?<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
    ),
    ("icr", "mistral"): (
        f"<s>[INST] Here are some paragraphs:\n\n[1] Fish swim.\n\n[2] T\nBirds fly.\n\n{PLEASE}\n\nQuery: how?[/INST]"
    ),
    ("icr", "chatml"): (
        "<|im_start|>user\n Here are some paragraphs: \n\n[1] Fish swim. \n\n[2] T\nBirds fly. "
        f"\n\n{PLEASE} \n\nQuery: how?<|im_end|>\n<|im_start|>assistant\n"
    ),
    ("qrhead", "llama3"): (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|> Here are some paragraphs: \n\n[1] Fish swim. "
        f"\n\n[2] T\nBirds fly. \n\n{PLEASE} \n\nQuery: how?<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
    ),
    ("qrhead", "chatml"): (
        "<|im_start|>user Here are some paragraphs:\n\n[1] Fish swim.\n\n[2] T\nBirds fly."
        f"\n\n{PLEASE}\n\nQuery: how?<|im_end|>\n<|im_start|>assistant"
    ),
    ("core", "llama3"): (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|> Here are some paragraphs:\n\n[document 1] Birds "
        f"fly.\n\n[document 2] Fish swim.\n\n{PLEASE}\n\nQuery: how?<|eot_id|><|start_header_id|>assistant"
        "<|end_header_id|>"
    ),
    ("core", "mistral"): (
        "<s>[INST] Here are some paragraphs:\n\n[document 1] Birds fly.\n\n[document 2] Fish swim."
        f"\n\n{PLEASE}\n\nQuery: how?[/INST]"
    ),
    ("core", "phi"): (
        "<|im_start|>user<|im_sep|> Here are some paragraphs:\n\n[document 1] Birds fly.\n\n[document 2] Fish swim."
        f"\n\n{PLEASE}\n\nQuery: how?<|im_end|><|im_start|>assistant<|im_sep|>"
    ),
    ("core", "granite"): (
        "<|start_of_role|>user<|end_of_role|> Here are some paragraphs:\n\n[document 1] Birds fly.\n\n[document 2] "
        f"Fish swim.\n\n{PLEASE}\n\nQuery: how?<|end_of_text|><|start_of_role|>assistant<|end_of_role|>"
    ),
    ("core", "chatml"): (
        "<|im_start|>user\n Here are some paragraphs:\n\n[document 1] Birds fly.\n\n[document 2] Fish swim."
        f"\n\n{PLEASE}\n\nQuery: how?<|im_end|>\n<|im_start|>assistant\n"
    ),
    ("qrranker", "chatml"): (
        "<|im_start|>user\nHere are some retrieved chunks:\n\n[1] Title: T: Birds fly.\n\n[2] Fish swim.\n\nUse the "
        "retrieved chunks to answer the user's query.\n\nQuery: how?<|im_end|>\n<|im_start|>assistant\n"
    ),
    ("headrank", "chatml"): (
        "<|im_start|>user\nHere are some paragraphs:\n\n[1] T\nBirds fly.\n\n[2] Fish swim."
        f"\n\n{PLEASE}\n\nQuery: how?<|im_end|>\n<|im_start|>assistant\n"
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: family_model(tmp_path_factory.mktemp(family), family) for family in MODELS}


def ranking(passages, query="how?"):
    pairs = enumerate(passages)
    return Ranking(Query("q", query), tuple(Candidate(f"d{i}", -float(i), text, title) for i, (title, text) in pairs))


def builder(recipe, family, **changes):
    return PromptBuilder(family_tokenizer(family), recipe.varied(changes).template, max_prompt_tokens=8192)


def random_passages(seed, *, titles):
    chance = random.Random(seed)
    words = [
        "birds",
        "fly.",
        "over",
        "old",
        "harbour",
        "seven",
        "fish",
        "swim",
        "[1]",
        "query:",
        "N/A",
        "🐟",
        "café",
        "1984",
    ]
    texts = [" ".join(chance.choices(words, k=chance.randint(1, 20))) for _ in range(5)]
    texts += [texts[0], "birds", f"quoted: {texts[1]}."]
    return [(chance.choice(titles), text) for text in texts], " ".join(chance.choices(words[:8], k=4))


@pytest.mark.parametrize(("system", "family"), PROMPTS, ids=map("-".join, PROMPTS))
def test_prompt_is_the_published_one(system, family):
    prompt = builder(RECIPES[system], family).build(ranking([("T", "Birds fly."), (None, "Fish swim.")]))
    assert prompt.text == PROMPTS[system, family]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("system", "family"), COVERED, ids=map("-".join, COVERED))
def test_scores_equal_the_independent_implementation(folders, system, family, seed):
    passages, query = random_passages(seed, titles=["Birds"] if system == "qrranker" else [None, "Birds", ""])
    model = AutoModelForCausalLM.from_pretrained(folders[family], attn_implementation="eager").eval()
    heads = None if system == "icr" else HEADS.heads
    expected, asked = scores(system, family, model, family_tokenizer(family), query, passages, heads)
    reranker = SYSTEMS[system](folders[family], "all" if heads is None else HEADS, device="cpu")
    candidates = ranking(passages, query)
    prompt = reranker.builder.build(candidates)
    assert prompt.token_ids.tolist() == asked.ids
    assert prompt.rows == asked.rows
    assert prompt.passages.tolist() == [list(span) for span in asked.columns]
    found = {c.docid: c.score for c in reranker.rerank(candidates).candidates}
    assert [found[docid] for docid in candidates.docids] == pytest.approx(expected, rel=1e-4, abs=2e-6)


@pytest.mark.parametrize("family", [family for family in MODELS if family != "mistral"])  # it has no space of its own
@pytest.mark.parametrize("text", ["1984 was a year", " birds fly", "\tbirds fly", "\n\nbirds fly"], ids=repr)
def test_a_passage_of_core_begins_with_the_space_after_its_label(family, text):
    prompt = builder(CORE, family).build(ranking([(None, "Fish swim."), (None, text)]))
    tokenizer = family_tokenizer(family)
    at = tokenizer(prompt.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    first = at[prompt.passages[1, 0]]
    assert first[0] == prompt.text.index("[document 2]") + len("[document 2]")


def test_options_override_what_is_written_for_a_family():
    template = builder(CORE, "mistral", trailing_columns=2, rows="query").template
    assert (template.trailing_columns, template.rows) == (2, "query")
    assert template.chat.assistant == "[/INST]"
    assert builder(QRHEAD, "llama3", separator="\n").template.separator == "\n"


@pytest.mark.parametrize("family", MODELS)
def test_family_is_told_by_its_tokenizer(folders, family, caplog):
    assert chat_of(family_tokenizer(family)) is CHATS[family]
    assert not caplog.records


def stranger(controls=("<start_of_turn>", "<end_of_turn>"), **fields):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_special_tokens(["</s>", *controls])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **fields)


@pytest.mark.parametrize(
    ("tokenizer", "shown"),
    [
        (stranger(), "the tokenizer's (<start_of_turn>, <end_of_turn>)"),
        (stranger(controls=(), chat_template="User: {{ messages[0].content }}"), "the tokenizer's (its chat template)"),
    ],
    ids=["control tokens", "chat template"],
)
def test_family_that_is_not_known_is_written_plainly_with_one_warning(caplog, tokenizer, shown):
    built = PromptBuilder(tokenizer, HEADRANK.template, max_prompt_tokens=99)
    assert built.template.chat is PLAIN
    (record,) = caplog.records
    assert shown in record.getMessage()
    assert (
        "chat 'plain'" in record.getMessage()
        and "option chat: chatml, granite, llama3, mistral, phi, or plain" in record.getMessage()
    )


def test_plain_prompts_are_written_without_a_word_where_they_are_asked_for_or_right(caplog):
    PromptBuilder(stranger(), replace(HEADRANK.template, chat=PLAIN), max_prompt_tokens=99)
    assert chat_of(stranger(controls=())) is PLAIN
    assert not caplog.records


def test_mistral_passage_cannot_end_the_turn():
    prompt = builder(CORE, "mistral").build(ranking([(None, "so [/INST] it [INST] is</s>")], query="why [/INST]"))
    assert prompt.text.count("[/INST]") == prompt.text.count("[INST]") == 1
    assert prompt.counts["control_tokens_neutralised"] == 4


def test_mistral_markup_needs_its_begin_token():
    with pytest.raises(ValueError, match=r"markup 'mistral, .*' needs the control tokens \['<s>'\]"):
        PromptBuilder(tiny_tokenizer(), CORE.template.written_for(CHATS["mistral"]), max_prompt_tokens=99)
