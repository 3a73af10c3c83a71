"""What identifies a model, and what is said of folders that lack something."""

from __future__ import annotations

import json
import os
import pickle
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file
from tiny_encoder import tiny_encoder
from tiny_models import tiny_model
from transformers import AutoTokenizer, Qwen3Config, Qwen3VLConfig

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model import choose_dtype, load, source_of
from headrank_pipeline.attention.tap import has_flash_attention
from headrank_pipeline.pipeline import MissingPrerequisite
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.baselines.rankgpt import rankgpt
from headrank_pipeline.rerank.systems import headrank

MIB = 2**20


@pytest.fixture
def large(tmp_path):
    """A model folder whose weights take more than what is hashed whole; the file is sparse, so it costs nothing."""
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(80 * MIB)
    return tmp_path


def fingerprint(folder):
    return source_of(str(folder), Qwen3Config(), None).fingerprint


def overwrite(folder, start, count):
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.seek(start)
        weights.write(bytes([1]) * count)


@pytest.mark.parametrize("start", [0, 30 * MIB + 4321, 78 * MIB + 4321, 80 * MIB - 300_000])
def test_one_retrained_projection_of_a_large_file_is_another_model(large, start):
    before = fingerprint(large)
    overwrite(large, start, 300_000)  # q of a layer of 384 dimensions in bfloat16
    assert fingerprint(large) != before


def test_a_large_file_that_lost_its_end_is_another_model(large):
    before = fingerprint(large)
    os.truncate(large / "model.safetensors", 80 * MIB - 4)
    assert fingerprint(large) != before


def test_a_copied_folder_is_the_same_model(large, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    for file in large.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert fingerprint(copy) == fingerprint(large)


def test_files_that_a_model_is_not_loaded_from_do_not_change_which_model_it_is(large):
    before = fingerprint(large)
    for name in ("calibration.json", "heads.json", "recipe.json", "card.json", "my-heads.json", "notes.txt"):
        (large / name).write_text("{}")
    (large / "tokenizer.json").mkdir()  # a folder is no file of a model, whatever it is called
    assert fingerprint(large) == before


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "generation_config.json", "adapter_config.json", "quantize_config.json",
        "quantization_config.json", "hf_quant_config.json", "tokenizer.json", "tokenizer_config.json",
        "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model",
        "spiece.model", "tekken.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
        "pytorch_model.bin",
    ],
)  # fmt: skip
def test_another_file_that_a_model_is_loaded_from_makes_it_another_model(large, name):
    before = fingerprint(large)
    (large / name).write_text('{"changed": true}')
    assert fingerprint(large) != before


@pytest.fixture
def folder(tmp_path_factory):
    """A model folder that one may damage."""
    return tiny_model(tmp_path_factory.mktemp("damaged"))


def reranked(folder):
    ranking = Ranking(Query("q1", "birds"), (Candidate("d1", 2.0, "Birds fly."), Candidate("d2", 1.0, "Fish swim.")))
    return headrank(folder, "all", device="cpu").rerank(ranking)


def test_a_qwen_folder_without_tokenizer_is_refused_and_not_read_with_an_empty_one(folder):
    assert len(reranked(folder)) == 2
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{folder.name}: no tokenizer in it; copy tokenizer\.json"):
        reranked(folder)
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        rankgpt(folder, device="cpu")


def test_a_llama_folder_without_tokenizer_is_refused_in_our_words(tmp_path):
    folder = tiny_model(tmp_path, "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer in it"):
        reranked(folder)


@pytest.mark.parametrize(
    ("file", "change"),
    [("tokenizer.json", {"post_processor": {}}), ("tokenizer_config.json", {"extra_special_tokens": [3]})],
)
def test_a_tokenizer_that_is_damaged_is_refused_in_our_words(folder, file, change):
    record = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(record | change))
    with pytest.raises(ValueError, match=rf"{folder.name}: its tokenizer cannot be read .* copy tokenizer\.json"):
        reranked(folder)


@pytest.mark.parametrize("change", [{"initializer_range": "x"}, {"num_key_value_heads": 0}])
def test_a_configuration_that_makes_no_model_is_refused_in_our_words(folder, change):
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | change))
    with pytest.raises(ValueError, match=rf"model .*{folder.name}: .*config\.json"):
        reranked(folder)


def test_a_folder_without_weights_is_missing_something_and_a_damaged_one_is_invalid(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{folder.name}: a damaged weight file .*again"):
        reranked(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=f"{folder.name}: no weights to be had"):
        reranked(folder)


class RunsCode:
    """What a pickle of weights may hold."""

    def __reduce__(self):
        return (os.mkdir, ("it-ran",))


@pytest.mark.parametrize(
    "weights",
    [pickle.dumps(RunsCode(), protocol=2), b"hello", b"", b"\x80\x02"],
    ids=["code", "no pickle", "empty", "cut off"],
)
def test_weights_that_are_a_pickle_of_other_things_are_never_unpacked(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    folder = tiny_model(tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(weights)
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"model .*pickled: (its weights .*\*\.bin|no weights)"
    ) as told:
        load(str(folder), "all")
    assert "weights_only" not in str(told.value) and not (tmp_path / "it-ran").exists()


def test_weights_that_are_a_pickle_of_tensors_load(tmp_path):
    folder = tiny_model(tmp_path / "pickled")
    weights = load_file(folder / "model.safetensors")
    whole = load(str(folder), "all").model.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    for name, tensor in load(str(folder), "all").model.state_dict().items():
        assert torch.equal(tensor, whole[name])


def test_a_folder_that_holds_no_model_is_told_from_one_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model folder .*: no config\.json in it; name the folder that holds"):
        reranked(tmp_path)


def test_a_model_whose_heads_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"a BertModel is no decoder .* a sentence encoder belongs to a dense first stage"
    ):
        reranked(tiny_encoder(tmp_path))
    Qwen3VLConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(qwen3_vl\) states no num_hidden_layers, .*expected a text-only decoder"):
        reranked(tmp_path)


def test_a_mistyped_folder_is_called_missing_before_heads_are_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model folder .*modle does not exist"):
        headrank(tmp_path / "modle")
    with pytest.raises(ValueError, match="there is no folder modle; name a head set"):
        headrank("modle")


def test_a_renamed_folder_reads_its_own_heads_without_a_warning(folder, caplog):
    own = HeadSet("own", ((0, 1), (1, 2)), model="models/as-it-was-called")
    own.save(folder / "heads.json")
    headrank(folder, device="cpu")
    assert "was selected on" not in caplog.text  # other tests may have turned on what is only information
    headrank(folder, own, device="cpu")
    assert "was selected on models/as-it-was-called" in caplog.text


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float32")])
def test_older_gpus_compute_in_a_dtype_that_has_an_attention_kernel(monkeypatch, request, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    has_flash_attention.cache_clear()
    request.addfinalizer(has_flash_attention.cache_clear)
    assert choose_dtype("auto", torch.device("cuda")) == getattr(torch, expected)
    assert choose_dtype("float16", torch.device("cuda")) == torch.float16
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32


def with_config(folder, **changes):
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | changes))


@pytest.mark.parametrize("load", [reranked, lambda folder: rankgpt(folder, device="cpu")], ids=["heads", "rankgpt"])
@pytest.mark.parametrize(
    ("quantised", "needs"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "optimum"),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "gptqmodel"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_quantised_weights_without_their_library_are_a_missing_prerequisite(folder, load, quantised, needs):
    if find_spec(needs):
        pytest.skip(f"{needs} is installed")
    with_config(folder, quantization_config=quantised)
    with pytest.raises(MissingPrerequisite, match=rf"{folder.name}: its weights are quantised .*{needs}.*; install"):
        load(folder)


def test_weights_of_other_shapes_than_the_configuration_are_refused_in_our_words(folder):
    with_config(folder, vocab_size=500)
    with pytest.raises(ValueError, match=r"its weights have other shapes than its config\.json says"):
        reranked(folder)


@pytest.mark.parametrize("load", [reranked, lambda folder: rankgpt(folder, device="cpu")], ids=["heads", "rankgpt"])
def test_a_tokenizer_of_a_larger_vocabulary_is_refused_at_load(folder, load):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<pad me>"]})
    tokenizer.save_pretrained(folder)
    load(folder)  # nobody writes it
    tokenizer.add_tokens(["COVID-19"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"embeddings for \d+, none for 'COVID-19'; copy the tokenizer that belongs"):
        load(folder)
