"""GGUF files as models: the scores of the unpacked folder to the bit, and nothing left out without a word."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("gguf", reason="GGUF files needs gguf: pip install 'headrank-pipeline[gguf]'")
pytest.importorskip("accelerate", reason="GGUF files need accelerate: pip install 'headrank-pipeline[gguf]'")

from gguf_files import write_gguf
from tiny_models import tiny_model

from headrank_pipeline import pipeline
from headrank_pipeline.attention.model import load
from headrank_pipeline.cli import main
from headrank_pipeline.pipeline import MissingPrerequisite
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.baselines.generation import CausalModel, ModelSettings
from headrank_pipeline.rerank.systems import headrank, icr

RANKING = Ranking(
    Query("q", "can a flea fly?"),
    tuple(Candidate(str(i), 3.0 - i, text) for i, text in enumerate(("Birds fly.", "A flea jumps far.", "It rains."))),
)
HEADS = "layers:1-2"


def scores(reranker):
    return [(candidate.docid, candidate.score) for candidate in reranker.rerank(RANKING).candidates]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Each family and type once: family, type -> (the file, the folder of its unpacked weights)."""
    made = {}

    def write(family: str, kind: str) -> tuple[Path, Path]:
        if (family, kind) not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{kind}")
            file = folder / "model.gguf"
            made[family, kind] = file, write_gguf(tiny_model(folder / "whole", family), file, kind)
        return made[family, kind]

    return write


@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "Q4_1"), ("llama", "F16"), ("qwen3", "Q8_0"), ("qwen3", "F32"), ("qwen2", "Q4_1")]
)
def test_a_file_gives_the_scores_of_its_unpacked_folder_bit_for_bit(written, family, kind):
    file, folder = written(family, kind)
    assert scores(headrank(file, HEADS, device="cpu")) == scores(headrank(folder, HEADS, device="cpu"))


def test_the_model_is_cut_off_and_plain(written):
    file, folder = written("llama", "Q4_1")
    loaded, twin = load(file, HEADS, device="cpu"), load(folder, HEADS, device="cpu")
    assert loaded.model.config.num_hidden_layers == 3 and loaded.source.layers == 4
    assert loaded.model.state_dict().keys() == twin.model.state_dict().keys()
    assert not hasattr(loaded.model.config, "quantization_config") and not loaded.model.is_quantized


def test_every_recipe_and_bfloat16_read_it(written):
    file, folder = written("qwen3", "Q8_0")
    assert scores(icr(file, device="cpu", dtype="bfloat16")) == scores(icr(folder, device="cpu", dtype="bfloat16"))


def test_a_whole_causal_model_comes_from_a_file(written):
    file, folder = written("llama", "Q4_1")
    ours, twin = (CausalModel(model, ModelSettings(device="cpu")) for model in (file, folder))
    assert torch.equal(ours.next_logits([[5, 6, 7]], range(50)), twin.next_logits([[5, 6, 7]], range(50)))


def test_the_manifest_names_the_file_and_its_digest(written, tmp_path):
    file, _ = written("llama", "Q4_1")
    told = headrank(file, HEADS, device="cpu").describe()
    assert told["model"] == "model.gguf" and len(told["fingerprint"]) == 64
    changed = tmp_path / "model.gguf"
    content = bytearray(file.read_bytes())
    content[-40] ^= 1  # in the last tensor
    changed.write_bytes(content)
    assert headrank(changed, HEADS, device="cpu").describe()["fingerprint"] != told["fingerprint"]


def test_the_tokenizer_is_the_file_s_whatever_lies_beside_it(written, tmp_path):
    file, folder = written("llama", "Q4_1")
    (tmp_path / "model.gguf").symlink_to(file)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    assert scores(headrank(tmp_path / "model.gguf", HEADS, device="cpu")) == scores(
        headrank(folder, HEADS, device="cpu")
    )


def test_a_trained_folder_made_from_a_file_is_read_again(written, tmp_path):
    from headrank_pipeline.learn.export import export

    file, _ = written("llama", "Q4_1")
    before = headrank(file, HEADS, device="cpu")
    out = export(load(file, HEADS, device="cpu"), before.recipe, tmp_path / "out")
    assert "quantization_config" not in json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert scores(headrank(out, device="cpu")) == scores(before)


def test_commands_learn_on_a_file(written, tmp_path):
    file, _ = written("qwen3", "Q8_0")
    lists = tmp_path / "lists.jsonl"
    passages = [
        {"docid": c.docid, "score": c.score, "doc": {"contents": c.text}, "grade": int(c.docid == "1")}
        for c in RANKING.candidates
    ]
    record = {"query": {"qid": "q", "text": RANKING.query.text}, "candidates": passages}
    lists.write_text(json.dumps(record) + "\n", encoding="utf-8")
    for command in (
        ["select-heads", "--model", file, "--lists", lists, "--output", tmp_path / "heads.json", "--num-heads", 2],
        ["train", "--model", file, "--heads", tmp_path / "heads.json", "--lists", lists, "--output", tmp_path / "out",
         "--moves", "lora", "--epochs", 1],
    ):  # fmt: skip
        result = CliRunner().invoke(main, [*map(str, command), "--no-figure", "--device", "cpu"])
        assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "heads.json").read_text(encoding="utf-8"))["model"] == "model.gguf"
    assert headrank(tmp_path / "out", device="cpu").rerank(RANKING).candidates


def test_llama_3_s_scaled_positions_are_taken_from_the_file(tmp_path):
    whole = tiny_model(tmp_path / "whole", "llama", positions=16384)
    config = json.loads((whole / "config.json").read_text(encoding="utf-8"))
    config["rope_parameters"] = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    (whole / "config.json").write_text(json.dumps(config), encoding="utf-8")
    inverse = load(whole, "all", device="cpu").model.rotary_emb.inv_freq.numpy()
    factors = (1.0 / 500000.0 ** (np.arange(0, 16, 2) / 16) / inverse).round(5).astype(np.float32)
    assert factors.max() == 8.0 and factors.min() == 1.0
    twin = write_gguf(whole, tmp_path / "scaled.gguf", also={"rope_freqs.weight": factors})
    ours = load(tmp_path / "scaled.gguf", "all", device="cpu").model
    assert torch.equal(ours.rotary_emb.inv_freq, load(twin, "all", device="cpu").model.rotary_emb.inv_freq)
    write_gguf(whole, tmp_path / "own.gguf", also={"rope_freqs.weight": factors[::-1].copy()})
    with pytest.raises(ValueError, match=r"own\.gguf: its rope_freqs\.weight is not what Llama 3\.1's rule"):
        load(tmp_path / "own.gguf", "all", device="cpu")


@pytest.mark.parametrize(
    ("also", "told"),
    [
        (
            {"blk.0.ffn_gate_exps.weight": np.zeros((2, 96, 64), np.float32)},
            "1 tensors that a qwen3 model has no",
        ),
        ({"string:qwen3.rope.scaling.type": "yarn"}, r"positions are scaled \(yarn\)"),
        ({"uint32:qwen3.attention.value_length": 32}, "of different widths"),
        ({"uint16:split.count": 3}, "one of 3 files of a model"),
    ],
)
def test_what_transformers_would_leave_out_is_refused(tmp_path, also, told):
    write_gguf(tiny_model(tmp_path / "whole", layers=2), tmp_path / "odd.gguf", also=also)
    with pytest.raises(ValueError, match=told):
        load(tmp_path / "odd.gguf", "all", device="cpu")


def test_another_architecture_is_refused_by_name(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "gemma3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match="architecture 'gemma3'; expected one of llama, qwen2, qwen3"):
        load(tmp_path / "other.gguf", "all", device="cpu")


def test_a_damaged_file_is_told_as_such(written, tmp_path):
    file, _ = written("llama", "Q4_1")
    content = file.read_bytes()
    for name, kept in (
        ("text", b"no model at all"),
        ("header", content[:2000]),
        ("half", content[: len(content) // 2]),
    ):
        (tmp_path / f"{name}.gguf").write_bytes(kept)
        with pytest.raises(ValueError, match=rf"{name}\.gguf: no GGUF file that can be read"):
            load(tmp_path / f"{name}.gguf", "all", device="cpu")


def test_a_file_without_layers_that_the_heads_need_is_refused(tmp_path):
    write_gguf(tiny_model(tmp_path / "whole", layers=2), tmp_path / "short.gguf", leave_out=("block_count",),
               also={"uint32:qwen3.block_count": 3})  # fmt: skip
    with pytest.raises(ValueError, match="lacks 11 weights that the first 3 layers need"):
        load(tmp_path / "short.gguf", "all", device="cpu")


def test_missing_files_and_folders_without_config_are_told(written, tmp_path):
    file, _ = written("llama", "Q4_1")
    for absent in (str(tmp_path / "none.gguf"), "./none.gguf", "none.gguf", "some/none.gguf"):
        with pytest.raises(FileNotFoundError, match=r"none\.gguf does not exist \(looked from"):
            load(absent, "all", device="cpu")
    with pytest.raises(FileNotFoundError, match=r"or a GGUF file in this one: .*/model\.gguf"):
        load(file.parent, "all", device="cpu")
    with pytest.raises(ValueError, match=r"headrank needs heads: .*model\.gguf brings no heads\.json"):
        headrank(file, device="cpu")


def test_a_file_on_the_hub_goes_by_repository_and_file_name(written, tmp_path, monkeypatch):
    file, folder = written("llama", "Q4_1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    home, commit = tmp_path / "models--some--tiny-GGUF", "0123456789abcdef0123456789abcdef01234567"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit, encoding="utf-8")
    (home / "snapshots" / commit).mkdir(parents=True)
    (home / "snapshots" / commit / "tiny.gguf").symlink_to(file)
    ours = headrank("some/tiny-GGUF/tiny.gguf", HEADS, device="cpu")
    assert ours.describe()["model"] == "some/tiny-GGUF/tiny.gguf" and len(ours.describe()["fingerprint"]) == 64
    assert scores(ours) == scores(headrank(folder, HEADS, device="cpu"))
    with pytest.raises(FileNotFoundError, match=r"other\.gguf' is neither a local GGUF file nor one that the Hugging"):
        load("some/tiny-GGUF/other.gguf", "all", device="cpu")


def test_without_the_extra_its_one_command_is_told(written, monkeypatch):
    file, _ = written("llama", "Q4_1")
    there = pipeline.find_spec
    monkeypatch.setattr(pipeline, "find_spec", lambda name: None if name == "gguf" else there(name))
    with pytest.raises(MissingPrerequisite, match=r"pip install 'headrank-pipeline\[gguf\]'"):
        load(file, "all", device="cpu")
