"""What runs on a GPU against the same on a CPU: ``pytest -m gpu`` where there is one.

The tests that compare run on a CPU everywhere, which says that they ask for the right things.
"""

from __future__ import annotations

import json
from typing import get_args

import pytest
import torch
from bird_prompts import builder, prompts
from graded_lists import overlap_lists
from scipy.stats import spearmanr
from tiny_models import tiny_model
from transformers import masking_utils

from headrank_pipeline.attention import model as model_module
from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model import load
from headrank_pipeline.attention.passage_cache import PassageCache
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.recipe import HEADRANK, Support
from headrank_pipeline.attention.scoring import passage_mass
from headrank_pipeline.learn.schedule import TrainingConfig
from headrank_pipeline.learn.trainer import Trainer, TrainingData
from headrank_pipeline.rerank.baselines.decoding import Decoding
from headrank_pipeline.rerank.baselines.generation import CausalModel, ModelSettings

HEADS = HeadSet("some", ((2, 3), (0, 1), (2, 0), (1, 2)))
TOLERANCE = 1e-4  # other kernels, other order of summation

absent = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device in sight: pytest -m gpu")
on_gpu = [pytest.mark.gpu, absent]
gpu_only = pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu)])
compared = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("gpu") / "model")


def reader_of(folder, device, dtype="float32", **options):
    return AttentionReader(load(folder, HEADS, device=device, dtype=dtype), **options)


def largest_difference(some, others):
    return max(float((one.cpu() - other.cpu()).abs().max()) for one, other in zip(some, others, strict=True))


@compared
@pytest.mark.parametrize("support", get_args(Support))
@pytest.mark.parametrize("passages", ["causal", "isolated"])
def test_readings_are_those_of_a_cpu(folder, device, passages, support):
    made_by = builder(passages=passages)
    made = prompts(made_by)
    pairs = [(prompt, made_by.with_query(prompt, "N/A")) for prompt in made]
    reader, reference = reader_of(folder, device), reader_of(folder, "cpu")
    assert reader.read(made)[0].device.type == device
    assert largest_difference(reader.read(made, support=support), reference.read(made, support=support)) <= TOLERANCE
    found, expected = (one.read_calibrated(pairs, support=support) for one in (reader, reference))
    assert all(largest_difference(*both) <= TOLERANCE for both in zip(found, expected, strict=True))


@compared
@pytest.mark.parametrize("passages", ["causal", "isolated"])
def test_bfloat16_ranks_as_on_a_cpu(folder, device, passages):
    made = prompts(builder(passages=passages), passages=30)
    readers = [reader_of(folder, where, "bfloat16") for where in (device, "cpu")]
    for prompt, *both in zip(made, *(reader.read(made, support="passages") for reader in readers), strict=True):
        found, expected = (passage_mass(read.cpu(), prompt.passages).mean(0) for read in both)
        assert spearmanr(found, expected).statistic >= 0.98


@compared
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keys_kept_on_one_device_serve_the_other(folder, tmp_path, monkeypatch, device, dtype):
    made = prompts(builder(passages="isolated"))
    computed = reader_of(folder, device, dtype, passage_cache=PassageCache(tmp_path)).read(made, support="passages")
    for where in ("cpu", device):
        reader = reader_of(folder, where, dtype, passage_cache=PassageCache(tmp_path))
        monkeypatch.setattr(reader, "prefill", None)  # nothing is computed again
        found = reader.read(made, support="passages")
        assert largest_difference(found, computed) <= (TOLERANCE if dtype == "float32" else 0.02)


@compared
@pytest.mark.parametrize("moves", ["lora", "heads", "all"])
def test_training_goes_as_on_a_cpu(folder, tmp_path, device, moves):
    config = TrainingConfig(moves=moves, learning_rate=1e-3, epochs=1, max_steps=4, list_size=4, lists_per_pass=4,
                            precision="float32", checkpoint_activations=True, evaluate_every=2)  # fmt: skip
    losses = {}
    for name, where in (("found", device), ("expected", "cpu")):
        for pause_after in (2, None):
            data = TrainingData(overlap_lists(32), overlap_lists(8, seed=1, prefix="v"))
            loaded = load(folder, HEADS, device=where, dtype="float32")
            trainer = Trainer(loaded, HEADRANK, data, config, directory=tmp_path / name)
            report = trainer.run(pause_after=pause_after)
        assert (report.end, report.steps) == ("finished", 4)
        events = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        losses[name] = [event["loss"] for event in events if event["event"] == "step"]
    assert losses["found"] == pytest.approx(losses["expected"], rel=1e-2)


@gpu_only
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_autocast_trains_and_a_resumed_run_draws_the_same_dropout(folder, tmp_path, device, dtype):
    config = TrainingConfig(moves="lora", learning_rate=1e-3, epochs=1, max_steps=4, list_size=4, lora_dropout=0.3)
    data = TrainingData(overlap_lists(32))
    losses = {}
    for name, pauses in (("whole", [None]), ("parts", [2, None])):
        for pause_after in pauses:
            loaded = load(folder, HEADS, device=device, dtype=dtype)
            report = Trainer(loaded, HEADRANK, data, config, directory=tmp_path / name).run(pause_after=pause_after)
        assert report.end == "finished"
        assert loaded.model.dtype == getattr(torch, dtype)
        events = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        losses[name] = [event["loss"] for event in events if event["event"] == "step"]
    assert losses["whole"] == pytest.approx(losses["parts"], rel=1e-2)


@compared
def test_baselines_write_and_score_as_on_a_cpu(folder, device):
    asked = [list(range(10, 40)), list(range(50, 58)), [7]]
    models = [CausalModel(folder, ModelSettings(device=where, dtype="float32")) for where in (device, "cpu")]
    logits = [model.next_logits(asked, [3, 5, 8]) for model in models]
    assert largest_difference(*([one] for one in logits)) <= 1e-3
    assert len({tuple(model.generate(asked, 8, Decoding())) for model in models}) == 1
    sampled = Decoding(temperature=0.8)
    assert models[0].generate(asked, 8, sampled) == models[0].generate(asked, 8, sampled)


# ------------------------------------------------------------------------------------------------- a GPU's own ways


@gpu_only
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("passages", ["causal", "isolated"])
def test_no_pass_waits(folder, monkeypatch, device, passages):
    # transformers looks for packed sequences in the positions, before its first layer
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    made_by = builder(passages=passages)
    made = prompts(made_by)
    pairs = [(prompt, made_by.with_query(prompt, "N/A")) for prompt in made]
    reader = reader_of(folder, device, "bfloat16")
    reader.read(made)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError):
            torch.ones((), device=device).item()  # a wait is noticed
        reader.read(made, support="passages")
        reader.read_calibrated(pairs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu_only
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_of_size_n_by_n_is_held(folder, device, dtype):
    (prompt,) = prompts(builder(max_prompt_tokens=8192), lists=1, passages=60, words=10)
    assert len(prompt) > 6000
    reader = reader_of(folder, device, dtype)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    reader.read([prompt])
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    reader.read([prompt])
    taken = torch.cuda.max_memory_allocated() - held
    assert taken < len(prompt) ** 2 * reader.model.dtype.itemsize  # of one head; there are four
    sizes = (reader.model.config, len(HEADS.heads), reader.model.dtype)
    assert taken < 2 * len(prompt) * model_module.bytes_per_token(*sizes)


@gpu_only
def test_a_pass_that_does_not_fit_is_read_in_parts(folder, caplog, device):
    made = prompts(builder(max_prompt_tokens=8192), lists=30, passages=20, words=10)
    expected = reader_of(folder, device, batch_tokens=1).read(made)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**26) / total)
    try:
        found = reader_of(folder, device, batch_tokens=10**6).read(made)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory with" in caplog.text
    assert largest_difference(found, expected) <= TOLERANCE
