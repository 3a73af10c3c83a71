"""Every shortcut of the reader against its slow way."""

from __future__ import annotations

import logging
import math
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from bird_prompts import builder, prompts
from hypothesis import given
from hypothesis import strategies as st
from memory import gives_back, held, without_holes
from scipy.stats import spearmanr
from tiny_models import FAMILIES, tiny_model
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from headrank_pipeline.attention import model as model_module
from headrank_pipeline.attention import reader as engine
from headrank_pipeline.attention import tap
from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model import load, prefer_flash_attention
from headrank_pipeline.attention.passage_cache import PassageCache
from headrank_pipeline.attention.reader import SHORTCUTS, AttentionReader
from headrank_pipeline.attention.recipe import HEADRANK, RECIPES, Support
from headrank_pipeline.attention.scoring import passage_mass
from headrank_pipeline.attention.tap import (
    blockwise_causal_attention,
    fast_products,
)
from headrank_pipeline.pipeline import Failure
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.attention_reranker import AttentionReranker

TOLERANCE = 1e-5
SLOW = frozenset(SHORTCUTS)
HEADS = HeadSet("some", ((2, 3), (0, 1), (2, 0), (1, 2)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: tiny_model(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture
def always_worth(monkeypatch):
    """Tiny products go through oneDNN too, in small blocks, whoever made the processor."""
    monkeypatch.setattr(tap, "processor_maker", lambda: "AuthenticAMD")
    monkeypatch.setattr(tap, "_has_avx512", lambda: True)
    monkeypatch.setattr(tap, "_WORTH_PRODUCT", 0)
    monkeypatch.setattr(tap, "_WORTH_ATTENTION", 0)
    monkeypatch.setattr(tap, "_BLOCK_ROWS", 16)


class _Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.count = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.count[name] = self.count.get(name, 0) + 1
        return function(*args, **(kwargs or {}))


def differences(some, others):
    return [float((one - other).abs().max()) for one, other in zip(some, others, strict=True)]


@pytest.mark.parametrize("passages", ["causal", "isolated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_shortcuts_equal_the_slow_way(folders, always_worth, family, passages):
    made_by = builder(passages=passages)
    made = prompts(made_by)
    pairs = [(prompt, made_by.with_query(prompt, "N/A")) for prompt in made]
    loaded = load(folders[family], HEADS, device="cpu")
    slow, fast = AttentionReader(loaded, without=SLOW), AttentionReader(loaded)
    assert max(differences(fast.read(made), slow.read(made))) <= TOLERANCE
    for one, other in zip(fast.read_calibrated(pairs), slow.read_calibrated(pairs), strict=True):
        assert max(differences(one, other)) <= TOLERANCE


@pytest.mark.parametrize("switch", SHORTCUTS)
def test_each_shortcut_equals_its_slow_way(folders, always_worth, switch):
    made_by = builder()
    made = prompts(made_by)
    pairs = [(prompt, made_by.with_query(prompt, "N/A")) for prompt in made]
    loaded = load(folders["qwen3"], HEADS, device="cpu")
    off = AttentionReader(loaded, without=[switch])
    on = AttentionReader(loaded)
    assert max(differences(on.read(made, support="passages"), off.read(made, support="passages"))) <= TOLERANCE
    for one, other in zip(on.read_calibrated(pairs), off.read_calibrated(pairs), strict=True):
        assert max(differences(one, other)) <= TOLERANCE


def test_bfloat16_shortcuts_rank_as_the_slow_way_does(folders, always_worth):
    made = prompts(builder(), passages=30)
    loaded = load(folders["qwen3"], HEADS, device="cpu", dtype="bfloat16")
    readings = [AttentionReader(loaded, without=off).read(made, support="passages") for off in ((), SLOW)]
    for prompt, fast, slow in zip(made, *readings, strict=True):
        mine, reference = (passage_mass(read, prompt.passages).mean(0) for read in (fast, slow))
        assert spearmanr(mine, reference).statistic >= 0.99
        assert (mine - reference).abs().max() <= 0.02 * reference.max()


# ---------------------------------------------------------------------------------------------- the deepest layer


def test_deepest_layer_computes_keys_and_the_queries_of_the_rows_only(folders):
    loaded = load(folders["qwen3"], HEADS, device="cpu")
    (prompt,) = prompts(builder(), lists=1)
    tokens = {}
    for name, module in loaded.model.layers[2].named_modules():
        module.register_forward_hook(
            lambda module, given, result, name=name: (
                tokens.setdefault(name, []).append(given[0].shape[1])
                if given and name.endswith(("_proj", "mlp"))
                else None
            )
        )
    AttentionReader(loaded).read([prompt])
    rows = prompt.rows[1] - prompt.rows[0]
    assert tokens == {"self_attn.q_proj": [rows], "self_attn.k_proj": [len(prompt)]}


def test_first_layer_can_be_the_deepest(folders):
    loaded = load(folders["qwen3"], HeadSet("first", ((0, 1),)), device="cpu")
    made = prompts(builder())
    assert (
        max(differences(AttentionReader(loaded).read(made), AttentionReader(loaded, without=SLOW).read(made))) <= 1e-5
    )


@pytest.mark.parametrize("passages", ["causal", "isolated"])
def test_gradients_equal_those_of_the_whole_layer(folders, passages):
    made = prompts(builder(passages=passages))  # rows of different number, so that some are padding
    gradients = []
    for off in ((), SLOW):
        loaded = load(folders["qwen3"], HEADS, device="cpu")
        loaded.model.requires_grad_(True)
        read = AttentionReader(loaded, without=off).forward(made, support="passages")
        sum(passage_mass(one, prompt.passages)[:, 0].sum() for one, prompt in zip(read, made, strict=True)).backward()
        gradients.append({name: weight.grad for name, weight in loaded.model.named_parameters()})
    spared, whole = gradients
    assert whole["layers.2.self_attn.q_proj.weight"].abs().max() > 1e-3
    for name, gradient in whole.items():
        if gradient is None or not gradient.any():
            assert spared[name] is None or not spared[name].any()
        else:
            assert (spared[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max()


def test_model_is_left_as_it_was(folders):
    loaded = load(folders["qwen3"], HEADS, device="cpu")
    before = {name: list(module.__dict__) for name, module in loaded.model.named_modules()}
    AttentionReader(loaded).read(prompts(builder()))
    assert {name: list(module.__dict__) for name, module in loaded.model.named_modules()} == before
    assert all(not module._forward_pre_hooks for module in loaded.model.modules())


def test_readings_of_two_threads_do_not_meet(folders):
    loaded = load(folders["qwen3"], HEADS, device="cpu")
    made = prompts(builder(), lists=6)
    reader = AttentionReader(loaded, batch_tokens=1)
    expected = reader.read(made)
    with ThreadPoolExecutor(4) as threads:
        for read in threads.map(lambda _: reader.read(made), range(12)):
            assert max(differences(read, expected)) <= TOLERANCE


# ------------------------------------------------------------------------------------------- tokenising beside a pass


def rankings(lists=5):
    return [
        Ranking(Query(f"q{n}", f"what do {n} birds eat"), tuple(Candidate(f"d{i}", -float(i), f"Fish {i}. " * (n + i))
                                                               for i in range(1, 4)))
        for n in range(lists)
    ]  # fmt: skip


def reranker(folder, *, ahead, tokens=200, **options):
    reader = AttentionReader(
        load(folder, HEADS, device="cpu"), batch_tokens=tokens, without=() if ahead else ["build_ahead"]
    )
    return AttentionReranker(reader, HEADRANK.varied(options))


@pytest.mark.parametrize("options", [{}, {"content_free": "N/A"}, {"passages": "isolated"}], ids=str)
def test_prompts_built_ahead_give_the_scores_of_those_built_before(folders, options):
    ahead, before = (reranker(folders["qwen3"], ahead=ahead, **options) for ahead in (True, False))
    assert ahead.rerank_batch(rankings()) == before.rerank_batch(rankings())  # the same passes: the same last digit


@pytest.mark.parametrize("ahead", [True, False])
def test_next_prompts_are_built_after_a_pass_has_begun_and_before_it_is_read(folders, monkeypatch, ahead):
    made = reranker(folders["qwen3"], ahead=ahead, tokens=1)
    events = []

    def noted(owner, name):
        call = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, **named: (events.append(name), call(*given, **named))[1])

    noted(made.builder, "build")
    noted(made.reader, "forward")
    noted(made, "_scores")
    made.rerank_batch(rankings(4))
    if ahead:  # one more is built at first: only then is it known not to fit into the first pass
        assert events == ["build", "build", "forward", "build", "_scores", "forward", "build", "_scores",
                          "forward", "_scores", "forward", "_scores"]  # fmt: skip
    else:
        assert events == ["build"] * 4 + ["forward", "_scores"] * 4


@pytest.mark.parametrize("ahead", [True, False])
def test_a_prompt_that_cannot_be_built_fails_its_own_query_only(folders, ahead):
    made = reranker(folders["qwen3"], ahead=ahead)
    given = rankings()
    given[2] = Ranking(Query("broken", "birds"), (Candidate("d", 1.0, None),))
    attempts = made.attempt_batch(given)
    assert [attempt.query.qid for attempt in attempts] == ["q0", "q1", "broken", "q3", "q4"]
    assert isinstance(attempts[2], Failure)
    assert "qid broken docid d: the passage has no text" in str(attempts[2].error)
    others = [attempt for attempt in attempts if attempt is not attempts[2]]
    expected = made.rerank_batch([ranking for ranking in given if ranking is not given[2]])
    assert [one.scores for one in others] == [pytest.approx(other.scores, abs=TOLERANCE) for other in expected]
    with pytest.raises(ValueError, match="qid broken docid d: the passage has no text"):
        made.rerank_batch(given)


class _Waits(TorchDispatchMode):
    """Notes what makes Python wait for the device: operations over two devices, but for copies that need not."""

    def __init__(self):
        super().__init__()
        self.names, self.copies = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        flat = [value for one in (*args, result) for value in (one if isinstance(one, list | tuple) else [one])]
        devices = {value.device.type for value in flat if isinstance(value, torch.Tensor) and value.dim()}
        if len(devices) > 1 and (kwargs or {}).get("non_blocking"):
            self.copies += 1
        elif len(devices) > 1:
            self.names.append(function.overloadpacket.__name__)
        return result


@pytest.fixture
def without_values(monkeypatch):
    """The device "meta", which has no values: reading one back is an error there, as it is a wait on a GPU."""
    # transformers looks for packed sequences in the positions, before its first layer
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    monkeypatch.setattr(torch, "autocast", lambda *given, **named: nullcontext())  # it knows no "meta"
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    return "meta"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("passages", ["causal", "isolated"])
def test_a_pass_does_not_wait_for_the_device(folders, without_values, passages, dtype):
    made_by = builder(passages=passages)
    made = prompts(made_by)
    reader = AttentionReader(load(folders["qwen3"], HEADS, device=without_values, dtype=dtype))
    with _Waits() as waits:
        reader.read(made, support="passages")
        reader.read_calibrated([(prompt, made_by.with_query(prompt, "N/A")) for prompt in made])
    assert waits.copies > 10
    assert waits.names == []


class _Kernels(TorchFunctionMode):
    """Notes which kernel PyTorch 2.9 to 2.13 takes on a GPU (sdp_utils.cpp), cuDNN left out; flash from Ampere on."""

    def __init__(self, *, flash=True):
        super().__init__()
        self.names = []
        self.flash = flash

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            query, key, _ = args
            half, shared = query.dtype in (torch.float16, torch.bfloat16), query.shape[1] != key.shape[1]
            square = query.shape[2] == key.shape[2] or not kwargs.get("is_causal")
            fits = kwargs.get("attn_mask") is None and half and square and shared <= kwargs.get("enable_gqa", False)
            if fits and self.flash:
                self.names.append("flash")
            else:
                self.names.append("multiplied out" if shared else "memory-efficient")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("passages", ["causal", "isolated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_on_a_gpu_is_never_multiplied_out(folders, without_values, family, passages, dtype):
    made_by = builder(passages=passages)
    made = prompts(made_by)
    reader = AttentionReader(load(folders[family], HEADS, device=without_values, dtype=dtype))
    with _Kernels() as kernels:
        reader.read(made, support="passages")
        reader.read_calibrated([(prompt, made_by.with_query(prompt, "N/A")) for prompt in made])
    causal = "flash" if dtype == "bfloat16" else "memory-efficient"
    assert set(kernels.names) == {causal, "memory-efficient"}


@pytest.mark.parametrize("passages", ["causal", "isolated"])
def test_half_precision_is_not_multiplied_out_on_a_gpu_without_flash(folders, without_values, monkeypatch, passages):
    monkeypatch.setattr(tap, "has_flash_attention", lambda device: False)
    made = prompts(builder(passages=passages))
    reader = AttentionReader(load(folders["qwen3"], HEADS, device=without_values, dtype="float16"))
    with _Kernels(flash=False) as kernels:
        reader.read(made, support="passages")
    assert set(kernels.names) == {"memory-efficient"}


def test_attention_of_repeated_keys_is_that_of_shared_ones():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 9, 8, generator=generator) for heads in (6, 2, 2))
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True, scale=0.3)
    found = tap._repeated_attention(query, key, value, dropout=0.0, scaling=0.3)
    assert (found - expected.transpose(1, 2)).abs().max() <= TOLERANCE


def test_models_on_a_gpu_go_without_attention_that_plans_every_length():
    assert torch.backends.cuda.cudnn_sdp_enabled()
    try:
        prefer_flash_attention(torch.device("cpu"))
        assert torch.backends.cuda.cudnn_sdp_enabled()
        prefer_flash_attention(torch.device("cuda:1"))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


# ---------------------------------------------------------------------------------------------------------- memory


@gives_back
def test_what_was_freed_goes_back_to_the_system():
    before = without_holes()
    pieces = [bytearray(b"x") * 60_000 for _ in range(2000)]  # 120 MB, each too small for a mapping of its own
    last = pieces.pop()  # holds the heap's end, as a pass's readings do
    del pieces
    assert held() - before > 100e6
    model_module.give_back_memory()
    assert held() - before < 20e6
    del last


def test_memory_goes_back_between_passes_and_not_for_one_alone(folders, monkeypatch):
    events = []
    made = reranker(folders["qwen3"], ahead=True, tokens=1)
    forward = made.reader.forward
    monkeypatch.setattr(
        made.reader, "forward", lambda *given, **named: (events.append("pass"), forward(*given, **named))[1]
    )
    monkeypatch.setattr(engine, "give_back_memory", lambda: events.append("back"))
    made.rerank_batch(rankings(3))
    assert events == ["pass", "back", "pass", "back", "pass"]


# --------------------------------------------------------------------------------------------------------- kernels


@given(
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 300), st.sampled_from([4, 16]), st.data()
)
def test_blockwise_attention_equals_pytorchs(batch, key_heads, group, length, width, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 100)))
    shapes = [(batch, length, heads, width) for heads in (key_heads * group, key_heads, key_heads)]
    query, key, value = (3 * torch.randn(shape, generator=generator).transpose(1, 2) for shape in shapes)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    assert (blockwise_causal_attention(query, key, value) - expected).abs().max() <= TOLERANCE * value.abs().max()


def test_blocks_hold_few_logits_whatever_the_length(monkeypatch):
    held, causal_rows = [], tap._causal_rows

    def noted(*given):
        attention = causal_rows(*given)
        held.append(attention.numel())
        return attention

    monkeypatch.setattr(tap, "_BLOCK_LOGITS", 2000)
    monkeypatch.setattr(tap, "_causal_rows", noted)
    query = torch.randn(1, 2, 700, 8)
    expected = F.scaled_dot_product_attention(query, query, query, is_causal=True)
    assert (blockwise_causal_attention(query, query, query) - expected).abs().max() <= TOLERANCE
    assert 1000 < max(held) <= 2000


def test_attention_in_blocks_is_scaled_as_asked(always_worth):
    query = torch.randn(1, 2, 40, 8)
    expected = F.scaled_dot_product_attention(query, query, query, is_causal=True, scale=0.1)
    with torch.inference_mode(), fast_products(torch.device("cpu")):
        found = F.scaled_dot_product_attention(query, query, query, is_causal=True, scale=0.1)
    assert (found - expected).abs().max() <= TOLERANCE


def test_large_products_take_the_fast_way_and_small_ones_do_not(always_worth, monkeypatch):
    monkeypatch.setattr(tap, "_WORTH_PRODUCT", 64 * 64 * 64)
    weight = torch.randn(64, 64)
    with torch.inference_mode(), _Operations() as operations, fast_products(torch.device("cpu")):
        F.linear(torch.randn(32, 64), weight)
        assert "_linear_pointwise" not in operations.count
        F.linear(torch.randn(64, 64), weight)
    assert operations.count["_linear_pointwise"] == 1


@pytest.mark.parametrize(
    ("maker", "avx512", "takes"),
    [
        ("AuthenticAMD", True, True),
        ("AuthenticAMD", False, False),
        ("GenuineIntel", True, False),
        ("unknown", True, False),
    ],
)
def test_products_go_through_onednn_where_that_was_measured_to_be_faster(folders, monkeypatch, maker, avx512, takes):
    monkeypatch.setattr(tap, "processor_maker", lambda: maker)
    monkeypatch.setattr(tap, "_has_avx512", lambda: avx512)
    reader = AttentionReader(load(folders["qwen3"], HEADS, device="cpu"))
    assert reader.origins()["kernels"] == ("oneDNN" if takes else "PyTorch")
    assert (
        AttentionReader(load(folders["qwen3"], HEADS, device="cpu"), without=["early_exit"])
        .origins()["kernels"]
        .endswith(", without early_exit")
    )


@pytest.mark.parametrize(
    ("amx", "avx512", "expected"), [(True, True, "AMX"), (False, True, "AVX-512"), (False, False, "converted")]
)
def test_bfloat16_of_a_cpu_is_named_with_what_multiplies_it(folders, monkeypatch, amx, avx512, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(tap, "processor_maker", lambda: "GenuineIntel")
    exact, half = (
        AttentionReader(load(folders["qwen3"], HEADS, device="cpu", dtype=dtype)) for dtype in ("auto", "bfloat16")
    )
    assert exact.describe()["dtype"] == "float32"  # whatever the processor is: orders are those of every other one
    assert exact.origins()["kernels"] == "PyTorch"
    assert half.origins()["kernels"] == f"PyTorch, bfloat16 {expected}"


def test_how_it_is_computed_is_no_part_of_what_the_reader_is(folders, monkeypatch):
    loaded = load(folders["qwen3"], HEADS, device="cpu")
    before = AttentionReader(loaded).describe()
    monkeypatch.setattr(tap, "processor_maker", lambda: "another")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert AttentionReader(loaded, without=SHORTCUTS).describe() == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_reader_takes_the_fast_way(folders, always_worth, dtype):
    loaded = load(folders["qwen3"], HEADS, device="cpu", dtype=dtype)
    counts = []
    for off in ((), ["fast_products"]):
        with _Operations() as operations:
            AttentionReader(loaded, without=off).read(prompts(builder()))
        counts.append(operations.count)
    assert counts[0]["_linear_pointwise"] > 0
    assert not any("scaled_dot_product" in name for name in counts[0])
    assert "_linear_pointwise" not in counts[1]
    assert any("scaled_dot_product" in name for name in counts[1])


def test_gradients_are_recorded_as_ever(always_worth):
    weight = torch.randn(4, 4, requires_grad=True)
    with fast_products(torch.device("cpu")):
        F.linear(torch.randn(3, 4), weight).sum().backward()
    assert weight.grad is not None


# ---------------------------------------------------------------------------------------------------------- memory


def test_running_out_of_memory_halves_the_batch_and_changes_no_score(folders, fresh_python):
    """The limit is the operating system's, set a little above what the process holds."""
    finished = fresh_python(f"""
        import logging, resource, sys
        sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]!r}
        import torch
        from headrank_pipeline.attention import reader as engine
        from test_fast_path import AttentionReader, HEADS, builder, differences, load, prompts
        engine._CPU_PASS_TOKENS = 10**6  # as on a GPU: there prompts of any length share a pass
        logging.basicConfig(format="%(message)s", stream=sys.stdout)
        loaded = load({str(folders["qwen3"])!r}, HEADS, device="cpu")
        made = prompts(builder(), lists=12, passages=20)
        expected = AttentionReader(loaded, batch_tokens=1).read(made)
        held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        reader = AttentionReader(loaded, batch_tokens=10**6)
        resource.setrlimit(resource.RLIMIT_AS, (held + 24 * 2**20, -1))
        read = reader.read(made)
        print("largest difference", max(differences(read, expected)))
        assert max(differences(read, expected)) <= 1e-5
    """)
    assert finished.returncode == 0, finished.stderr
    assert "out of memory with" in finished.stdout


def test_an_isolated_list_too_large_for_memory_goes_on_in_smaller_passes(folders, monkeypatch):
    loaded = load(folders["qwen3"], HEADS, device="cpu")
    (prompt,) = prompts(builder(passages="isolated"), lists=1, passages=60)
    (expected,) = AttentionReader(loaded).read([prompt])
    forward, room, failed = loaded.model.forward, 300, []

    def little_memory(input_ids, **named):
        if input_ids.numel() > room:
            failed.append(input_ids.numel())
            raise torch.OutOfMemoryError("out of memory")
        return forward(input_ids=input_ids, **named)

    monkeypatch.setattr(loaded.model, "forward", little_memory)
    (read,) = AttentionReader(loaded, batch_tokens=10**6).read([prompt])
    assert (read - expected).abs().max() <= TOLERANCE
    assert 1 <= len(failed) <= math.log2(len(prompt) / room) + 1  # halves what failed, not what was allowed


def test_long_prompts_do_not_share_a_pass_on_a_cpu(folders, monkeypatch):
    loaded = load(folders["qwen3"], HEADS, device="cpu")
    passes = []
    loaded.model.register_forward_pre_hook(lambda *_: passes.append(1))
    made = prompts(builder(), lists=3)
    AttentionReader(loaded).read(made)
    assert len(passes) == 1
    monkeypatch.setattr(engine, "_CPU_PASS_TOKENS", max(map(len, made)))
    AttentionReader(loaded).read(made)
    assert len(passes) == 1 + 3


def test_a_prompt_too_large_for_memory_is_an_error_that_says_what_to_do(folders, monkeypatch):
    loaded = load(folders["qwen3"], HEADS, device="cpu")
    reader = AttentionReader(loaded)

    def full(*given, **named):
        raise torch.OutOfMemoryError("out of memory")  # a single prompt cannot be made to fail by a limit alone

    monkeypatch.setattr(loaded.model, "forward", full)
    with pytest.raises(MemoryError, match=r"a prompt of \d+ tokens does not fit .*rerank fewer passages") as caught:
        reader.read(prompts(builder()))
    # A server tells its clients so, whom the path of the model does not concern.
    assert f"beside {Path(folders['qwen3']).name} in" in str(caught.value)


def test_what_the_allocator_of_a_cpu_says_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert model_module.is_out_of_memory(caught.value)


@pytest.mark.parametrize("words", ["could not create a primitive", "could not execute a primitive"])
def test_what_onednn_says_is_understood(words):
    assert model_module.is_out_of_memory(RuntimeError(words))
    assert not model_module.is_out_of_memory(RuntimeError(f"{words} descriptor for the matmul"))


def test_other_errors_are_not_taken_for_lack_of_memory(folders, monkeypatch):
    loaded = load(folders["qwen3"], HEADS, device="cpu")
    monkeypatch.setattr(loaded.model, "forward", lambda **given: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        AttentionReader(loaded).read(prompts(builder()))


def test_automatic_budget_follows_free_memory(folders, monkeypatch, caplog):
    loaded = load(folders["qwen3"], HEADS, device="cpu")
    per_token = model_module.bytes_per_token(loaded.model.config, len(HEADS.heads), torch.float32)
    made = prompts(builder(), lists=6)
    for free, tokens in ((10**6, int(0.8 * 10**6 / per_token)), (2**60, 65536)):
        monkeypatch.setattr(model_module, "free_memory", lambda device, free=free: free)
        with caplog.at_level(logging.INFO, logger="headrank_pipeline"):
            reader = AttentionReader(loaded, batch_tokens="auto")
        assert f"passes of up to {tokens} tokens" in caplog.text
        assert reader.describe()["batch_tokens"] == "auto"
        assert max(differences(reader.read(made), AttentionReader(loaded, batch_tokens=1).read(made))) <= TOLERANCE


def test_automatic_budget_leaves_room_for_the_keys_that_an_isolated_list_keeps(folders, monkeypatch):
    loaded = load(folders["qwen3"], HEADS, device="cpu")
    sizes = (loaded.model.config, len(HEADS.heads), torch.float32)
    whole, keeping = model_module.bytes_per_token(*sizes), model_module.kept_bytes_per_token(*sizes)
    made_by = builder(passages="isolated")
    short, long = prompts(made_by, lists=1, passages=3)[0], prompts(made_by, lists=1, passages=60)[0]
    room = len(long) // 3
    monkeypatch.setattr(model_module, "free_memory", lambda device: int(room * whole / 0.8) + 1)
    largest = {}
    for name, prompt in (("short", short), ("long", long)):
        reader = AttentionReader(loaded, batch_tokens="auto")
        passes = []

        def noted(ids, *rest, passes=passes, prefill=reader.prefill, **more):
            passes.append(ids)
            prefill(ids, *rest, **more)

        monkeypatch.setattr(reader, "prefill", noted)
        (read,) = reader.read([prompt])
        assert (read - AttentionReader(loaded, batch_tokens=10**5).read([prompt])[0]).abs().max() <= TOLERANCE
        largest[name] = max(ids.numel() for ids in passes)
    kept = int(long.boundaries[-1] - long.boundaries[0])
    assert largest["long"] * (whole - keeping) + kept * keeping <= room * whole
    assert largest["long"] > room / 4  # and no smaller than it must be


def test_automatic_budget_leaves_room_for_the_passage_cache(folders, monkeypatch):
    loaded = load(folders["qwen3"], HEADS, device="cpu")
    per_token = model_module.bytes_per_token(loaded.model.config, len(HEADS.heads), torch.float32)
    monkeypatch.setattr(model_module, "free_memory", lambda device: 10**6)
    reader = AttentionReader(loaded, batch_tokens="auto", passage_cache=PassageCache(memory_bytes=500_000))
    assert reader.row_tokens(0) == 300_000 // per_token
    with pytest.raises(ValueError, match=r"may hold 2\.0 GiB more, cpu has 0\.0 GiB free; .*passage_cache_memory"):
        AttentionReader(loaded, batch_tokens="auto", passage_cache=PassageCache())


def test_free_memory_of_a_cpu_is_known(monkeypatch):
    assert 2**20 < model_module.free_memory(torch.device("cpu")) < 2**50
    monkeypatch.setattr(model_module, "_left_in_control_group", lambda: 2**63)
    unused = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # caches, which can be given up, left aside
    assert model_module.free_memory(torch.device("cpu")) > unused / 2


def test_free_memory_that_cannot_be_told_is_an_error():
    with pytest.raises(ValueError, match="free memory of device meta cannot be told here; give a number"):
        model_module.free_memory(torch.device("meta"))


@pytest.mark.parametrize("wrong", [0, -1, "all", True, 2.5])
def test_a_budget_that_is_no_budget_is_refused(folders, wrong):
    with pytest.raises(ValueError, match="expected auto or a whole number of at least 1"):
        AttentionReader(load(folders["qwen3"], HEADS, device="cpu"), batch_tokens=wrong)


def test_4b_with_100_passages_fits_a_card_of_24_gb():
    """The sum of docs/performance.md; the model's published sizes."""

    class Qwen34B:
        hidden_size, intermediate_size, num_hidden_layers = 2560, 9728, 36
        num_attention_heads, num_key_value_heads, head_dim = 32, 8, 128

    shape = Qwen34B()
    layer = 2560 * 128 * (32 + 8 + 8 + 32) + 3 * 2560 * 9728
    weights = 2 * (36 * layer + 151936 * 2560)
    tokens = 15_420  # 100 passages of 100 words of SciFact in Qwen3's tokens, with the prompt around them
    assert weights + tokens * model_module.bytes_per_token(shape, 1152, torch.bfloat16) < 24 * 10**9


@pytest.mark.parametrize("support", get_args(Support))
@pytest.mark.parametrize("recipe", list(RECIPES.values()), ids=list(RECIPES))
def test_every_recipe_scores_the_same_fast_or_slow_in_batches_or_alone(folders, always_worth, recipe, support):
    """Calibrated CORE reads a token beyond what its two prompts share."""
    rankings = []
    for n in range(3):
        texts = [f"{place} fleas live {'a ' * n}" for place in range(2 + n)]
        found = tuple(Candidate(f"d{place}", 9.0 - place, text) for place, text in enumerate(texts))
        rankings.append(Ranking(Query(f"q{n}", "how long do fleas live"), found))
    loaded = load(folders["qwen3"], HEADS, device="cpu")
    ways = []
    for without, tokens in (((), 100_000), ((), 1), (SHORTCUTS, 100_000), (SHORTCUTS, 1)):
        reader = AttentionReader(loaded, without=without, batch_tokens=tokens)
        made = AttentionReranker(reader, recipe.varied({"support": support})).rerank_batch(rankings)
        ways.append([[dict(zip(one.docids, one.scores, strict=True))[d] for d in sorted(one.docids)] for one in made])
    for other in ways[1:]:
        for one, same in zip(ways[0], other, strict=True):
            assert one == pytest.approx(same, abs=TOLERANCE)
