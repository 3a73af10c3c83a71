"""The tap and the reader against plain eager attention of the whole model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from typing import get_args

import pytest
import torch
from tiny_models import FAMILIES, tiny_model, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, AutoModelForCausalLM

from headrank_pipeline.attention import tap as tap_module
from headrank_pipeline.attention.contexts import shared_prefix
from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model import load
from headrank_pipeline.attention.prompt import PromptBuilder
from headrank_pipeline.attention.reader import SHORTCUTS, AttentionReader
from headrank_pipeline.attention.recipe import CORE, HEADRANK, ICR, QRHEAD, QRRANKER, Support
from headrank_pipeline.attention.tap import mean_attention
from headrank_pipeline.pipeline import MissingPrerequisite
from headrank_pipeline.records import Candidate, Query, Ranking

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: tiny_model(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def prompts(recipe=HEADRANK, count=3, last=("x", "")):
    builder = PromptBuilder(tiny_tokenizer(), recipe.template, max_prompt_tokens=4096)
    made = []
    for n in range(count):
        texts = [f"Passage {i} about birds and {i * n} fish. " * (1 + (i + n) % 4) for i in range(2 + n)] + [*last]
        candidates = tuple(Candidate(f"d{i}", -float(i), text) for i, text in enumerate(texts))
        query = Query(f"q{n}", "do birds swim " * (n + 1))
        made.append(builder.build(Ranking(query, candidates)))
    return builder, made


def reader_of(folder, heads="all", **options):
    return AttentionReader(load(folder, heads, device="cpu"), **options)


def passes_of(reader, read):
    """[B, T] of every pass that `read` makes."""
    shapes = []
    hook = reader.model.embed_tokens.register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape))
    read()
    hook.remove()
    return shapes


@cache
def whole_model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def eager_attention(folder, prompt):
    """[L, A, N, N] of the untouched whole model."""
    with torch.no_grad():
        output = whole_model(folder)(torch.tensor(prompt.token_ids)[None], output_attentions=True)
    return torch.stack([layer[0] for layer in output.attentions])


def eager_rows(folder, prompt):
    """[L * A, N], mean over the rows."""
    return eager_attention(folder, prompt)[:, :, slice(*prompt.rows)].mean(2).flatten(0, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_tap_equals_eager_attention(folders, family):
    _, made = prompts()
    for prompt, read in zip(made, reader_of(folders[family]).read(made), strict=True):
        assert (read - eager_rows(folders[family], prompt)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_passages_support_equals_renormalised_eager_attention(folders, family):
    _, (prompt, *_) = prompts()
    attention = eager_attention(folders[family], prompt)[:, :, slice(*prompt.rows)]
    columns = torch.zeros(len(prompt), dtype=torch.bool)
    for start, end in prompt.passages:
        columns[start:end] = True
    attention = attention * columns
    expected = (attention / attention.sum(-1, keepdim=True)).mean(2).flatten(0, 1)
    (read,) = reader_of(folders[family]).read([prompt], support="passages")
    assert (read - expected).abs().max() <= TOLERANCE
    assert torch.allclose(read.sum(1), torch.ones(len(read)), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_truncated_model_equals_whole_model(folders, family):
    _, made = prompts()
    chosen = HeadSet("some", ((2, 3), (0, 1), (1, 2)))
    truncated, whole = reader_of(folders[family], chosen), reader_of(folders[family])
    assert len(truncated.model.layers) == 3
    index = [layer * 4 + head for layer, head in chosen.heads]  # listed order, not layer order
    for few, every in zip(truncated.read(made), whole.read(made), strict=True):
        assert (few - every[index]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("support", get_args(Support))
def test_batched_equals_one_by_one(folders, support):
    _, made = prompts(count=5)
    batched = reader_of(folders["qwen3"], batch_tokens=100_000).read(made, support=support)
    single = reader_of(folders["qwen3"], batch_tokens=1).read(made, support=support)
    for one, other in zip(batched, single, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= TOLERANCE


def test_prompts_share_what_comes_before_their_first_difference():
    _, (prompt, *_) = prompts(ICR, 1)
    other = replace(prompt, token_ids=prompt.token_ids.copy())
    assert shared_prefix(prompt, other) == prompt.prefix
    other.token_ids[2] += 1
    assert shared_prefix(prompt, other) == 2


def test_questions_that_share_nothing_are_read_as_two_prompts(folders):
    builder, (prompt, *_) = prompts(ICR, 1)
    other = builder.with_query(prompt, "N/A")
    other.token_ids[0] += 1
    assert shared_prefix(prompt, other) == 0
    reader = reader_of(folders["qwen3"])
    [pair] = reader.read_calibrated([(prompt, other)])
    for found, alone in zip(pair, reader.read([prompt, other]), strict=True):
        assert (found - alone).abs().max() <= TOLERANCE


def test_no_pass_that_prompts_share_is_larger_than_the_budget(folders):
    builder, made = prompts(ICR, 6)
    budget = 3 * max(map(len, made)) // 2  # two of the longest do not fit, two of the shortest do
    reader = reader_of(folders["qwen3"], batch_tokens=budget)
    shared = [shape for shape in passes_of(reader, lambda: reader.read(made)) if shape[0] > 1]
    assert shared and max(shape.numel() for shape in shared) <= budget
    pairs = [(prompt, builder.with_query(prompt, "N/A")) for prompt in made]
    budget = 2 * max(len(first) + len(second) - shared_prefix(first, second) for first, second in pairs) - 1
    reader = reader_of(folders["qwen3"], batch_tokens=budget)
    shared = [shape for shape in passes_of(reader, lambda: reader.read_calibrated(pairs)) if shape[0] > 1]
    assert shared and max(shape.numel() for shape in shared) <= budget


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("support", get_args(Support))
def test_calibration_on_the_shared_prefix_equals_two_full_passes(folders, family, support):
    builder, made = prompts(ICR, count=4)
    pairs = [(prompt, builder.with_query(prompt, "N/A")) for prompt in made]
    reader = reader_of(folders[family])
    whole = [reader.read(list(pair), support=support) for pair in pairs]
    for (query, blank), (full_query, full_blank) in zip(
        reader.read_calibrated(pairs, support=support), whole, strict=True
    ):
        assert (query - full_query).abs().max() <= TOLERANCE
        assert (blank - full_blank).abs().max() <= TOLERANCE


RECIPES = {recipe.name: recipe for recipe in (HEADRANK, ICR, QRHEAD, CORE, QRRANKER)}


def renormalised(attention, prompt, support):
    """[L * A, N] of eager attention over the passages' columns alone; rows that see none read zero.

    For the geometric mean of the rows every token is one of its passage's share, as in the rows' mean.
    """
    columns = torch.zeros(len(prompt))
    for start, end in prompt.passages:
        columns[start:end] = 1.0
    seen = attention[:, :, slice(*prompt.rows)] * columns
    seen = (seen / seen.sum(-1, keepdim=True).clamp_min(1e-30)).flatten(0, 1)
    if support == "passages":
        return seen.mean(1)
    spans = [(start, end) for start, end in prompt.passages if start < end]
    shares = [seen[..., start:end].sum(-1) for start, end in spans]
    logs = torch.stack([share.clamp_min(1e-6).log().mean(1) for share in shares])
    found = torch.zeros(len(seen), len(prompt))
    for (start, end), share, scaled in zip(spans, shares, torch.softmax(logs, 0), strict=True):
        inside = seen[..., start:end] / share[..., None].clamp_min(1e-30)
        found[:, start:end] = inside.mean(1) * scaled[:, None]
    return found


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("support", get_args(Support))
@pytest.mark.parametrize("calibrated", [False, True])
def test_every_recipe_reads_what_eager_attention_shows_fast_or_slow_batched_or_alone(
    folders, name, support, calibrated
):
    """Spans may end beyond what two queries share (CoRe's one token more), where a pass counts tokens otherwise."""
    builder, made = prompts(RECIPES[name], last=("x", "", "Fish swim."))
    lists = [(one, builder.with_query(one, "N/A")) if calibrated else (one,) for one in made]
    eager = [[eager_attention(folders["qwen3"], prompt) for prompt in one] for one in lists]
    for without in ((), SHORTCUTS):
        for tokens in (1, 100_000):
            reader = reader_of(folders["qwen3"], batch_tokens=tokens, without=without)
            for one, seen, reads in zip(lists, eager, reader.stream(lists, support=support), strict=True):
                for prompt, attention, read in zip(one, seen, reads, strict=True):
                    whole = attention[:, :, slice(*prompt.rows)].mean(2).flatten(0, 1)
                    expected = whole if support == "all" else renormalised(attention, prompt, support)
                    assert (read - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_masks_reach_the_tap(folders, family):
    """Without a mask function under the tap's name transformers passes none and nothing warns."""
    tap_module.register()
    ids = torch.arange(20).reshape(2, 10)
    padding = torch.ones_like(ids)
    padding[0, :4] = 0  # left padding is what a causal mask alone gets wrong
    outputs = []
    for implementation in (tap_module.IMPLEMENTATION, "eager"):
        model = AutoModel.from_pretrained(folders[family], attn_implementation=implementation).eval()
        with torch.no_grad():
            outputs.append(model(ids, attention_mask=padding).last_hidden_state[padding.bool()])
    assert (outputs[0] - outputs[1]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("support", get_args(Support))
def test_long_queries_are_read_in_chunks_of_rows(folders, monkeypatch, support):
    _, made = prompts()
    whole = reader_of(folders["qwen3"]).read(made, support=support)
    monkeypatch.setattr(tap_module, "_MAX_LOGITS", 1)
    for one, other in zip(reader_of(folders["qwen3"]).read(made, support=support), whole, strict=True):
        assert (one - other).abs().max() <= TOLERANCE


def test_half_precision_models_are_reduced_in_float32(folders):
    _, (prompt, *_) = prompts()
    loaded = load(folders["qwen3"], "all", device="cpu", dtype="bfloat16")
    (read,) = AttentionReader(loaded).read([prompt])
    assert read.dtype == torch.float32
    assert (read.sum(1) - 1).abs().max() <= 1e-5  # bfloat16 sums would be off by 1e-2


def test_large_products_do_not_overflow_in_half_precision():
    query = torch.full((1, 1, 1, 64), 200.0, dtype=torch.float16)
    key = torch.full((1, 1, 4, 64), 200.0, dtype=torch.float16)
    read = mean_attention(
        query, key, torch.tensor([0]), torch.tensor([[0]]), torch.ones(1, 1, 1),
        mask=torch.ones(1, 1, 1, 4, dtype=torch.bool), owners=None, scaling=1.0,
    )  # fmt: skip
    assert torch.equal(read, torch.full((1, 1, 1, 4), 0.25))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_key_that_is_not_finite_is_never_read_as_no_attention(value):
    query, key = torch.full((1, 1, 1, 4), -1.0), torch.ones(1, 1, 3, 4)
    key[0, 0, 1, 0] = value  # times -1 an infinite one would weigh nothing, and the others be as before
    read = mean_attention(
        query, key, torch.tensor([0]), torch.tensor([[2]]), torch.ones(1, 1, 1), mask=None, owners=None, scaling=1.0
    )
    assert not torch.isfinite(read[..., 1]).any()
    owners = torch.tensor([[0, -1, 1]])
    for passages in (None, 2):
        read = mean_attention(
            query, key, torch.tensor([0]), torch.tensor([[2]]), torch.ones(1, 1, 1),
            mask=None, owners=owners, scaling=1.0, passages=passages,
        )  # fmt: skip
        assert torch.equal(read, torch.tensor([[[[0.5, 0.0, 0.5]]]]))  # it is no part of what is asked for


def test_rows_without_any_passage_token_read_zero(folders):
    builder, _ = prompts()
    prompt = builder.build(Ranking(Query("q", "birds"), (Candidate("d", 1.0, ""),)))
    for support in ("passages", "passages-geometric"):
        (read,) = reader_of(folders["qwen3"]).read([prompt], support=support)
        assert torch.equal(read, torch.zeros_like(read))


def test_no_prompts_give_no_readings(folders):
    assert reader_of(folders["qwen3"]).read([]) == []
    assert reader_of(folders["qwen3"]).read_calibrated([]) == []


def test_head_beyond_the_model_is_refused_by_name(folders):
    with pytest.raises(ValueError, match=r"'far' names 9-0, but .* has layers 0-3 with heads 0-3"):
        load(folders["qwen3"], HeadSet("far", ((9, 0),)), device="cpu")


def test_missing_model_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model folder .*nowhere does not exist"):
        load(tmp_path / "nowhere", "all", device="cpu")


def test_name_unknown_to_the_hub_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no retries
    with pytest.raises(FileNotFoundError, match="model 'no-such/model' is neither a local model folder"):
        load("no-such/model", "all", device="cpu")


def test_checkpoint_below_the_deepest_head_is_refused(folders, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(tiny_model(tmp_path / "two", layers=2), folder)
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"], config["layer_types"] = 4, ["full_attention"] * 4
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"the checkpoint lacks \d+ weights that the first 4 layers need"):
        load(folder, "all", device="cpu")


def test_sliding_window_layers_are_refused(folders, tmp_path):
    folder = tmp_path / "sliding"
    shutil.copytree(folders["qwen2"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["layer_types"] = ["full_attention", "sliding_attention"] * 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="full attention in every layer"):
        load(folder, "all", device="cpu")


def test_a_model_that_goes_past_the_tap_is_an_error(folders):
    reader = reader_of(folders["qwen3"], without=["spared_deepest"])
    reader.model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match=r"^[^/]+: its layers do not hand their attention to the tap"):
        reader.read(prompts()[1])


def test_absent_gpu_is_a_missing_prerequisite(folders):
    with pytest.raises(MissingPrerequisite, match="use device cpu"):
        load(folders["qwen3"], "all", device=f"cuda:{torch.cuda.device_count()}")


@pytest.mark.parametrize(("argument", "value"), [("device", "tpu!"), ("dtype", "int8")])
def test_unknown_device_or_dtype_is_refused(folders, argument, value):
    with pytest.raises(ValueError, match="expected auto"):
        load(folders["qwen3"], "all", **{"device": "cpu", argument: value})


class _Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize("calibrated", [False, True])
def test_nothing_of_size_n_by_n_is_made(folders, calibrated):
    builder, _ = prompts(ICR)
    texts = ["birds fly over the sea " * 50] * 12
    candidates = tuple(Candidate(f"d{i}", -float(i), text) for i, text in enumerate(texts))
    prompt = builder.build(Ranking(Query("q", "birds"), candidates))
    reader = reader_of(folders["qwen3"])
    with _Largest() as largest:
        if calibrated:
            reader.read_calibrated([(prompt, builder.with_query(prompt, "N/A"))])
        else:
            reader.read([prompt])
    assert len(prompt) > 3000
    assert largest.elements < len(prompt) ** 2 / 4
