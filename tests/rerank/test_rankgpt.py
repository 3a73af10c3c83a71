"""RankGPT and first-token reranking with tiny chat models in this process."""

import json

import pytest
from chat_models import CHAT, chat_model, numbered, tokenizer_with
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.baselines.conversation import ChatFormat, Conversation
from headrank_pipeline.rerank.baselines.decoding import Decoding, Reasoning
from headrank_pipeline.rerank.baselines.first_token import first_token
from headrank_pipeline.rerank.baselines.generation import CausalModel, Generated, ModelSettings
from headrank_pipeline.rerank.baselines.passage_text import PassageText, fitted_words
from headrank_pipeline.rerank.baselines.rankgpt import RankGPT, conversation_of, rankgpt
from headrank_pipeline.rerank.baselines.replies import NOTES, Reply, parse_reply
from headrank_pipeline.rerank.baselines.windows import Window, Windowing

# Texts short enough that the tiny model is quick; windows small enough that lists need several.
QUICK = {"device": "cpu", "max_new_tokens": 8, "window_size": 8, "stride": 4}

ALWAYS_THINKING = CHAT.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}").replace("not enable_thinking", "false")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def reranker(folder):
    return rankgpt(folder, **QUICK)


def prompt_text(system, ranking):
    """What the model reads of a list that is one window."""
    shown = system.passages.shown(ranking, system.writer.controls)
    texts = [shown.text(docid, shown.longest(ranking.docids)) for docid in ranking.docids]
    conversation = system.writer.conversation("q1", conversation_of(shown.query, texts))
    return system.writer._model.tokenizer.decode(conversation.token_ids)


def test_every_candidate_comes_back_once_in_score_order(reranker):
    lengths = [0, 1, 2, 9, 20, 21, 37, 120]
    together = reranker.rerank_batch([numbered(length, f"q{length}") for length in lengths])
    for length, reranked in zip(lengths, together, strict=True):
        assert sorted(reranked.docids) == sorted(numbered(length).docids)
        assert reranked.scores == tuple(float(n) for n in range(length, 0, -1))


def test_batch_equals_one_by_one(reranker):
    batch = [numbered(9, "q1"), Ranking(Query("q2", "nothing")), numbered(4, "q3", "fleas?"), numbered(13, "q4")]
    together = reranker.rerank_batch(batch)
    alone = [reranker.rerank(ranking) for ranking in batch]
    assert together == alone
    assert [ranking.notes for ranking in together] == [ranking.notes for ranking in alone]
    assert together[3].docids != batch[3].docids  # the model did say something


def test_the_order_is_that_of_the_reply_written_token_by_token(folder, reranker):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    given = numbered(5)
    messages = conversation_of(given.query.text, [candidate.text for candidate in given.candidates])
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    ids = tokenizer.encode(text, add_special_tokens=False)
    written = []
    with torch.inference_mode():
        while len(written) < 8 and tokenizer.eos_token_id not in written:
            written.append(int(model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    parsed = parse_reply(tokenizer.decode([token for token in written if token != tokenizer.eos_token_id]), 5)
    reranked = reranker.rerank(given)
    assert reranked.docids == tuple(given.docids[index] for index in parsed.order)
    assert reranked.notes["prompt_tokens"] == len(ids)
    assert reranked.notes["generated_tokens"] == reranked.notes["forward_passes"] == len(written)


def test_notes_are_counted_and_named(reranker):
    notes = reranker.rerank(numbered(9)).notes
    assert notes["replies"] == 2  # ranks 2 to 9, then 1 to 5
    assert notes["replies_well_formed"] + notes["replies_repaired"] == 2
    assert 0 < notes["generated_tokens"] <= 16
    assert set(notes) <= set(NOTES)


def test_a_query_without_any_identifier_fails_and_names_itself(tmp_path):
    babbling = rankgpt(chat_model(tmp_path, liked="abcdef"), **QUICK)
    with pytest.raises(
        ValueError, match=r"qid q7: none of the 2 replies named a passage \(2 of them ended at the limit"
    ):
        babbling.rerank_batch([numbered(9, "q7")])


class Scripted:
    """A writer whose replies are known beforehand."""

    controls = None

    def __init__(self, *replies):
        self.replies = list(replies)

    def conversation(self, qid, messages):
        return Conversation(qid, tuple(messages))

    def fits(self, conversation):
        return True

    def write(self, conversations):
        return [Reply(self.replies.pop(0)) for _ in conversations]


def test_a_query_of_which_one_reply_names_a_passage_is_reranked():
    given = numbered(9)
    reranked = RankGPT(Scripted("sorry", "[5] > [1]"), Windowing(8, 4), PassageText()).rerank(given)
    assert reranked.docids == tuple(given.docids[place] for place in (4, 0, 1, 2, 3, 5, 6, 7, 8))
    assert (reranked.notes["replies"], reranked.notes["replies_without_identifier"]) == (2, 1)


@pytest.mark.parametrize("room", range(1, 12))
def test_as_many_words_are_kept_as_fit(room):
    window = Window(0, Query("q1", "birds"), numbered(2).candidates)
    assert fitted_words(window, 10, lambda words: words <= room) == min(room, 10)


def test_what_ends_a_turn_is_counted_and_not_kept(folder, tmp_path):
    [whole] = CausalModel(folder, ModelSettings(device="cpu")).generate([[5, 6, 7]], 8, Decoding())
    assert whole.cut and whole.count == len(whole.token_ids) == 8
    end = whole.token_ids.index(whole.token_ids[3])  # where that token is written first
    chat_model(tmp_path)
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    settings["eos_token_id"] = [whole.token_ids[3]]
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    [ended] = CausalModel(tmp_path, ModelSettings(device="cpu")).generate([[5, 6, 7]], 8, Decoding())
    assert ended == Generated(whole.token_ids[:end], end + 1, cut=False)


def test_a_batch_has_room_for_its_answers(folder):
    model = CausalModel(folder, ModelSettings(device="cpu", batch_tokens=40))
    rows = []
    model._model.register_forward_pre_hook(
        lambda _, given, named: rows.append(len(named["input_ids"])), with_kwargs=True
    )
    model.generate([[5] * 10] * 4, 10, Decoding())
    assert max(rows) == 2  # twice 10 read and 10 to be written


def test_the_prompt_is_the_published_conversation(reranker):
    text = prompt_text(reranker, numbered(2))
    assert text == (
        "<|im_start|>system\nYou are RankGPT, an intelligent assistant that can rank passages based on their relevancy "
        "to the query.<|im_end|>\n<|im_start|>user\nI will provide you with 2 passages, each indicated by number "
        "identifier []. \nRank the passages based on their relevance to query: how do birds fly.<|im_end|>\n"
        "<|im_start|>assistant\nOkay, please provide the passages.<|im_end|>\n"
        "<|im_start|>user\n[1] number 1 birds<|im_end|>\n<|im_start|>assistant\nReceived passage [1].<|im_end|>\n"
        "<|im_start|>user\n[2] number 2 birds<|im_end|>\n<|im_start|>assistant\nReceived passage [2].<|im_end|>\n"
        "<|im_start|>user\nSearch Query: how do birds fly. \nRank the 2 passages above based on their relevance to the "
        "search query. The passages should be listed in descending order using identifiers. The most relevant passages "
        "should be listed first. The output format should be [] > [], e.g., [1] > [2]. Only response the ranking "
        "results, do not say any word or explain.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_titles_brackets_and_control_tokens_of_passages(reranker):
    candidates = (Candidate("d1", 2.0, "see [12]\n and <|im_end|> [B]", "Birds"), Candidate("d2", 1.0, ""))
    given = Ranking(Query("q1", "is it <think> ?"), candidates)
    text = prompt_text(reranker, given)
    assert "[1] Title: Birds Content: see (12) and < |im_end|> (B)<|im_end|>" in text
    assert reranker.rerank(given).notes["control_tokens_neutralised"] == 2


def test_brackets_stay_where_told_so(folder):
    system = rankgpt(folder, rewrite_brackets=False, **QUICK)
    assert "see [12]" in prompt_text(system, Ranking(Query("q1", "birds"), (Candidate("d1", 1.0, "see [12]"),)))


def test_words_are_cut_to_the_limit_and_then_to_the_budget(folder):
    given = Ranking(Query("q1", "birds"), tuple(Candidate(f"d{i}", 0.0, "bird " * 400) for i in range(2)))
    limited = rankgpt(folder, **QUICK).rerank(given)
    assert (limited.notes["passages_cut"], limited.notes["words_dropped"]) == (2, 200)
    fitted = rankgpt(folder, max_prompt_tokens=500, **QUICK).rerank(given)
    assert 480 <= fitted.notes["prompt_tokens"] <= 500
    assert fitted.notes["words_dropped"] > 600
    with pytest.raises(ValueError, match="qid q1: a window of 2 passages does not fit the model with a single word"):
        rankgpt(folder, max_prompt_tokens=100, **QUICK).rerank(given)


def test_a_passage_without_text_is_refused(reranker):
    given = Ranking(Query("q1", "birds"), (Candidate("d1", 2.0, "text"), Candidate("d2", 1.0)))
    with pytest.raises(ValueError, match="qid q1 docid d2: the passage has no text"):
        reranker.rerank(given)


# ---------------------------------------------------------------------------------------------- thinking and templates


def test_thinking_is_switched_by_the_template(folder):
    system = rankgpt(folder, thinking=True, **QUICK)
    assert prompt_text(system, numbered(2)).endswith("<|im_start|>assistant\n")
    assert system.describe()["chat"]["enable_thinking"] is True
    assert Reasoning(thinking=True).limit(20) > 8000 > Reasoning().limit(20) > 120


def test_thinking_that_cannot_be_switched_on_is_refused(tmp_path):
    plain = chat_model(tmp_path, template=CHAT.replace("enable_thinking", "other"))
    with pytest.raises(ValueError, match="knows no enable_thinking"):
        rankgpt(plain, thinking=True, **QUICK)


def test_a_reply_that_never_stops_thinking_has_no_answer(tmp_path):
    opened = chat_model(tmp_path, template=ALWAYS_THINKING)
    with pytest.raises(ValueError, match="none of the 1 replies named a passage"):
        rankgpt(opened, **QUICK).rerank(numbered(5))


def test_without_a_chat_template_turns_are_written_plainly(tmp_path):
    system = rankgpt(chat_model(tmp_path, template=None), **QUICK)
    text = prompt_text(system, numbered(1))
    assert text.startswith("system: You are RankGPT")
    assert text.endswith("do not say any word or explain.\n\nassistant:")
    assert system.describe()["chat"]["form"] == "plain"


def test_a_template_without_a_system_turn_gets_its_words_in_the_first_user_turn(tmp_path):
    refusing = "{%- if messages[0].role == 'system' -%}{{ raise_exception('no system') }}{%- endif -%}" + CHAT
    system = rankgpt(chat_model(tmp_path, template=refusing), **QUICK)
    assert prompt_text(system, numbered(1)).startswith("<|im_start|>user\nYou are RankGPT, an intelligent assistant")


# ------------------------------------------------------------------------------------------------- settings, decoding


def test_sampling_repeats_itself_and_follows_the_seed(folder):
    given = numbered(13)
    orders = [rankgpt(folder, temperature=1.0, top_k=9, seed=seed, **QUICK).rerank(given).docids for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_generation_settings_of_the_model_folder_do_not_count(folder, tmp_path, reranker):
    chat_model(tmp_path)
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 9.0, "repetition_penalty": 5.0}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    assert rankgpt(tmp_path, **QUICK).rerank(numbered(13)) == reranker.rerank(numbered(13))


def test_description_tells_settings_apart(folder, reranker):
    here = reranker.describe()
    assert (here["system"], here["windows"]) == ("rankgpt", {"window_size": 8, "stride": 4, "num_passes": 1})
    assert len(here["fingerprint"]) == len(here["prompt_sha256"]) == len(here["chat"]["template_sha256"]) == 64
    assert here["generation"]["max_new_tokens"] == 8
    assert json.loads(json.dumps(here)) == here
    for change in ({"rewrite_brackets": False}, {"temperature": 0.5}, {"num_passes": 2}, {"thinking": True}):
        assert rankgpt(folder, **QUICK, **change).describe() != here


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 8}, "rankgpt option stride 8: expected less than the window_size 8"),
        ({"passage_words": "many"}, "rankgpt option passage_words: .*got 'many'"),
        ({"windowsize": 5}, "rankgpt has no option 'windowsize'; did you mean 'window_size'?"),
        ({"timeout": 5}, "rankgpt has no option 'timeout'"),
        ({"max_new_tokens": 9000}, "max_new_tokens 9000: .* was made for 8192 positions"),
        ({"max_prompt_tokens": 9000}, "max_prompt_tokens 9000: .* was made for 8192 positions"),
        ({"temperature": -1}, "temperature -1.0: expected 0"),
    ],
)
def test_wrong_options_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        rankgpt(folder, **(QUICK | options))


def test_a_model_without_its_head_is_refused(tmp_path):
    chat_model(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights \(lm_head.weight"):
        rankgpt(tmp_path, **QUICK)


# --------------------------------------------------------------------------------------------------------- first token

FIRST = {"device": "cpu", "window_size": 20, "stride": 10}


@pytest.fixture(scope="module")
def first(folder):
    return first_token(folder, **FIRST)


def test_first_token_returns_every_candidate_once(first):
    passes = {0: 0, 1: 0, 2: 1, 9: 1, 20: 1, 21: 2, 37: 3, 120: 11}
    together = first.rerank_batch([numbered(length, f"q{length}") for length in passes])
    for length, reranked in zip(passes, together, strict=True):
        assert sorted(reranked.docids) == sorted(numbered(length).docids)
        assert reranked.scores == tuple(float(n) for n in range(length, 0, -1))
        assert reranked.notes.get("forward_passes", 0) == passes[length]


def test_first_token_orders_by_the_full_models_logits(folder, first):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    given = numbered(7)
    body = "".join(f"[{name}] number {i} birds\n" for i, name in enumerate("ABCDEFG", start=1))
    user = (
        "I will provide you with 7 passages, each indicated by a alphabetical identifier []. Rank the passages based "
        f"on their relevance to the search query: how do birds fly.\n\n{body}Search Query: how do birds fly.\nRank the "
        "7 passages above based on their relevance to the search query. All the passages should be included and listed "
        "using identifiers, in descending order of relevance. The output format should be [] > [], e.g., [B] > [A], "
        "Only respond with the ranking results, do not say any word or explain."
    )
    text = (
        "<|im_start|>system\nYou are RankLLM, an intelligent assistant that can rank passages based on their relevancy "
        f"to the query<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n["
    )
    with torch.inference_mode():
        logits = model(torch.tensor([tokenizer.encode(text)])).logits[0, -1]
    letters = [float(logits[tokenizer.convert_tokens_to_ids(name)]) for name in "ABCDEFG"]
    expected = sorted(range(7), key=lambda index: -letters[index])
    assert first.rerank(given).docids == tuple(given.docids[index] for index in expected)


def test_first_token_logits_that_are_not_finite_name_their_query(folder):
    broken = first_token(folder, **FIRST)
    broken.model._model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"qid q7: an identifier's logit is not finite; .*dtype float32"):
        broken.rerank(numbered(3, "q7"))


@pytest.mark.parametrize("batch_tokens", [16384, 1])
def test_first_token_batch_equals_one_by_one(folder, first, batch_tokens):
    batch = [numbered(25, "q1"), numbered(3, "q2", "fleas?"), Ranking(Query("q3", "none")), numbered(21, "q4")]
    together = first_token(folder, batch_tokens=batch_tokens, **FIRST).rerank_batch(batch)
    assert together == [first.rerank(ranking) for ranking in batch]


def test_first_token_with_digits_names_at_most_nine(folder):
    reranked = first_token(folder, identifiers="digits", window_size=9, stride=4, device="cpu").rerank(numbered(12))
    assert sorted(reranked.docids) == sorted(numbered(12).docids)
    with pytest.raises(ValueError, match="window_size 20: there are 9 digits to call passages by"):
        first_token(folder, identifiers="digits", device="cpu")


def test_a_vocabulary_without_single_token_identifiers_is_refused_by_name(tmp_path):
    chat_model(tmp_path)
    words = {word: index for index, word in enumerate(["<unk>", "A", "B", "fleas"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"tokenizer of {tmp_path} has no single token for C, D, E"):
        first_token(tmp_path, device="cpu", window_size=5, stride=2)


def test_first_token_of_a_model_that_always_thinks_is_refused(tmp_path):
    opened = chat_model(tmp_path, template=ALWAYS_THINKING)
    with pytest.raises(ValueError, match="begins every reply with thinking"):
        first_token(opened, **FIRST)


def test_an_opening_token_is_written_once(tmp_path):
    tokenizer = tokenizer_with("opening")
    opening = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = opening
    for template, text in (("<|endoftext|>" + CHAT, "chat"), (None, "plain")):
        opened = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>")
        opened.chat_template = template
        chat = ChatFormat(opened, text, thinking=False)
        ids = chat.ids(chat.text([{"role": "user", "content": "fleas"}]))
        assert (ids[0], ids.count(0)) == (0, 1)
